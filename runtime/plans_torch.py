"""Loops as the compiled passes of `blocks_torch` take them: arrays of one type, an empty one for what a spec lacks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.batches_torch import Batch
from runtime.loops_torch import CompiledLoop
from runtime.physics.readout import turning_point

BLOCK = 1 << 19
"""Codes and currents of a block of windows."""
ROUND = {torch.float32: 1.5 * 2.0**23, torch.float64: 1.5 * 2.0**52}
"""What rounds a number of a type to the nearest whole one when it is added and taken away again."""
_FEWEST = 64

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Conversion:
    """A batch as `runtime.convert_numba.convert` takes it; see there."""

    batch: Batch
    stream: int
    shift: Array
    curves: Array
    bend: Array
    own: Array
    limits: Array
    thresholds: Array
    factors: tuple[Array, ...]
    segments: npt.NDArray[np.int64]

    @classmethod
    def of(cls, batch: Batch, loop: CompiledLoop, stream: int) -> "Conversion":
        """Of a batch of a loop, whose first drive draws from this stream."""
        dtype = batch.matrix.dtype
        none = np.empty(0, batch.matrix.numpy().dtype)

        def each(value: Tensor | None) -> Array:
            return none.reshape(0, 0) if value is None else np.ascontiguousarray(value.numpy()[:, 0])

        bends = batch.bends
        curves, bend, own = none.reshape(0, 0, 0), none, batch.own_noise
        if bends is not None:
            compliance = torch.full_like(bends.gain, torch.inf) if bends.compliance is None else bends.compliance
            rows = (compliance, bends.gain, bends.offset, bends.to_lsb, bends.adc_offset)
            curves = np.ascontiguousarray(np.stack([each(row) for row in rows], 1))
            turn = turning_point(bends.cubic) if bends.cubic < 0 else np.inf
            bend, own = np.array([bends.cubic, turn, bends.saturation], none.dtype), bends.noise
        limits = none if batch.limits is None else np.array([*batch.limits, ROUND[dtype]], none.dtype)
        factor = each(batch.factor)
        return cls(
            batch=batch,
            stream=stream,
            shift=each(batch.shift),
            curves=curves,
            bend=bend,
            own=each(own),
            limits=limits,
            thresholds=none.reshape(0, 0, 0) if batch.thresholds is None else batch.thresholds.numpy(),
            factors=tuple(
                (factor * loop.drive.digit_weight(digit)).astype(none.dtype) for digit in range(loop.drive.digits)
            ),
            segments=_runs([drive.columns for drive in batch.drives]),
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """A loop, and its stores' batches as the compiled loops take them."""

    loop: CompiledLoop
    conversions: tuple[tuple[Conversion, ...], ...]
    rows: int
    """Windows of a block."""

    @classmethod
    def of(cls, loop: CompiledLoop, stream: int) -> "Plan":
        """Of a loop whose first drive draws from this stream."""
        conversions = []
        widest = 0
        for store in loop.stores:
            of_store = []
            for batch in store.batches:
                of_store.append(Conversion.of(batch, loop, stream))
                stream += len(batch.drives)
                drives, _, cols = batch.matrix.shape
                widest = max(widest, drives * cols * (1 if batch.variance is None else 2))
            conversions.append(tuple(of_store))
        noisy = any(batch.variance is not None for store in loop.stores for batch in store.batches)
        rows = BLOCK // (loop.length * (2 if noisy else 1) + widest)
        return cls(loop, tuple(conversions), max(rows, _FEWEST))


def _runs(columns: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Every run of columns that follow one another in the result: drive, first column, element, length."""
    found = []
    for drive, wanted in enumerate(columns):
        begins = np.flatnonzero(np.diff(wanted, prepend=wanted[0] - 2) != 1)
        lengths = np.diff(begins, append=len(wanted))
        found.append(np.stack([np.full_like(begins, drive), begins, wanted[begins], lengths], 1))
    return np.concatenate(found).astype(np.int64)
