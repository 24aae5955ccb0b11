"""Running a model over data batch by batch, and putting its outputs together along the axis that counts samples."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from runtime.tables import TensorInfo
from xbarc.data.load import Dataset
from xbarc.data.sample_axis import sample_axes

Array = npt.NDArray[Any]
Advance = Callable[[int, int], None]
"""Called with the samples done and the samples in all."""


def run_batches(
    run: Callable[[dict[str, Array]], Sequence[Any]],
    data: Dataset,
    size: int,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    advance: Advance | None = None,
) -> dict[str, tuple[Array, int | None]]:
    """Run a model over all samples.

    Parameters
    ----------
    run
        Gives the outputs of a batch, in the order of `outputs`.
    data
        The samples.
    size
        Samples a batch.
    inputs, outputs
        Those of the model.
    advance
        Called after each batch.

    Returns
    -------
    Each tensor output of all samples, and its axis of samples (None: one value a batch, stacked along axis 0). Outputs
    that are no tensors are left out.
    """
    parts: list[Sequence[Any]] = []
    counts: list[int] = []
    for feeds in data.batches(size):
        parts.append(run(feeds))
        counts.append(min(data.fixed_batch or size, len(data) - sum(counts)))
        if advance:
            advance(sum(counts), len(data))
    axes = sample_axes([info.shape for info in inputs])
    batch = {info.shape[axis] for info, axis in zip(inputs, axes, strict=True) if axis is not None}
    joined: dict[str, tuple[Array, int | None]] = {}
    for info, values in zip(outputs, zip(*parts, strict=True), strict=True):
        if all(isinstance(value, np.ndarray) for value in values):
            axis = output_axis(info, [value.shape for value in values], counts, batch)
            joined[info.name] = _joined(info.name, values, axis), axis
    return joined


def _joined(name: str, values: Sequence[Array], axis: int | None) -> Array:
    try:
        return np.stack(values) if axis is None else np.concatenate(values, axis)
    except ValueError:
        shapes = sorted({value.shape for value in values})
        hint = "its shape depends on the data; take one batch: --batch as large as the number of samples"
        raise DataError(f"output {name!r}", "must have one shape in all batches", got=shapes, hint=hint) from None


def output_axis(
    info: TensorInfo, shapes: Sequence[tuple[int, ...]], counts: Sequence[int], batch: set[int | str]
) -> int | None:
    """The axis of an output along which samples run.

    Parameters
    ----------
    info
        The output.
    shapes, counts
        Its shape in each batch, and the samples of the batch.
    batch
        Sizes that stand for the batch in the model's inputs.

    Returns
    -------
    The axis that is as long as the batch in every one: that with the batch's symbol, else the first; None where there
    is none.
    """
    rank = len(shapes[0])
    if any(len(shape) != rank for shape in shapes):
        return None
    found = [
        axis for axis in range(rank) if all(shape[axis] == count for shape, count in zip(shapes, counts, strict=True))
    ]
    named = [axis for axis in found if len(info.shape) == rank and info.shape[axis] in batch]
    return next(iter([*named, *found]), None)
