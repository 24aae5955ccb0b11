"""How far weights and outputs are off after each step of mapping around failures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from runtime.quantize import Float64

FIRST = "identity"
"""Name of what is there before the first step: failures are not heeded."""

Errors = list[npt.NDArray[np.float32]]
"""Errors of the weights of a row block, one ``(cols, rows)`` for each of its column blocks, in the layer's units."""


@dataclass(frozen=True, eq=False)
class StepErrors:
    """Squared errors of a layer's weights, step by step.

    Attributes
    ----------
    sums
        By step: of the weights, and of the outputs as calibration predicts them.
    weights, outputs
        Squares of the weights and of the outputs themselves.
    """

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    weights: float = 0.0
    outputs: float = 0.0

    def then(self, step: str, sums: tuple[float, float]) -> "StepErrors":
        """With one more step."""
        return replace(self, sums={**self.sums, step: sums})

    def __add__(self, other: "StepErrors") -> "StepErrors":
        """Of two parts of a layer together, which took the same steps."""
        sums = dict(other.sums)
        for step, (one, two) in self.sums.items():
            more = sums.get(step, (0.0, 0.0))
            sums[step] = (one + more[0], two + more[1])
        return StepErrors(sums, self.weights + other.weights, self.outputs + other.outputs)


def joint_errors(rows: Sequence[Mapping[str, Errors]]) -> dict[str, Errors]:
    """Errors of neighbouring row blocks as one, by step.

    Parameters
    ----------
    rows
        Of each row block, by step; a block that lacks a step stays as it was.
    """
    steps = list(dict.fromkeys(step for block in rows for step in block))
    found: dict[str, Errors] = {}
    last: list[Errors] = [[]] * len(rows)
    for step in steps:
        last = [block.get(step, before) for block, before in zip(rows, last, strict=True)]
        found[step] = [np.concatenate(parts, axis=1) for parts in zip(*last, strict=True)]
    return found


def squared(errors: Errors, weighting: Float64) -> Float64:
    """``e' H e`` of each column block, ``(blocks,)``."""
    return np.array([np.einsum("nk,nk->", e @ weighting, e) for e in (one.astype(np.float64) for one in errors)])
