"""Loops as the compiled passes of `blocks_torch` take them: arrays of one type, an empty one for what a spec lacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.batches_torch import Batch
from runtime.loops_torch import CompiledLoop
from runtime.physics.readout import turning_point
from runtime.tables import Gather

BLOCK = 1 << 19
"""Codes and currents of a block of windows."""
ROUND = {torch.float32: 1.5 * 2.0**23, torch.float64: 1.5 * 2.0**52}
"""What rounds a number of a type to the nearest whole one when it is added and taken away again."""
_FEWEST = 64

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Channels:
    """A batch of a depthwise convolution: one column a channel, that only its own taps reach.

    Attributes
    ----------
    first
        The first channel; the others follow.
    matrix, variance : (taps, channels)
        Of the batch; the variance is of size 0 for none.
    """

    first: int
    matrix: Array
    variance: Array

    @classmethod
    def of(cls, batch: Batch, gather: Gather) -> "Channels | None":
        """Of a batch, where it is that of a depthwise convolution; None otherwise."""
        drives, rows, cols = batch.matrix.shape
        taps = prod(gather.kernel)
        if gather.kind != "patches" or gather.groups != gather.channels or rows != taps or cols != 1 or drives == 1:
            return None
        starts = [drive.start for drive in batch.drives]
        if starts != list(range(starts[0], starts[0] + drives * taps, taps)):
            return None
        matrices = [batch.matrix, batch.matrix[:0] if batch.variance is None else batch.variance]
        matrix, variance = (np.ascontiguousarray(one.numpy()[:, :, 0].T) for one in matrices)
        return cls(starts[0] // taps, matrix, variance)


@dataclass(frozen=True, eq=False)
class Conversion:
    """A batch as `runtime.convert_numba.convert` takes it, which see; with channels, their columns are one drive's."""

    batch: Batch
    channels: Channels | None
    stream: int
    shift: Array
    curves: Array
    bend: Array
    own: Array
    limits: Array
    thresholds: Array
    factors: tuple[Array, ...]
    slope: Array
    """Of the result over the product of a column with the codes, ``(drives, cols)``, where nothing clips or rounds."""
    segments: npt.NDArray[np.int64]

    @classmethod
    def of(cls, batch: Batch, loop: CompiledLoop, stream: int) -> "Conversion":
        """Of a batch of a loop, whose first drive draws from this stream."""
        channels = Channels.of(batch, loop.gather)
        drives = 1 if channels is not None else len(batch.drives)
        none = np.empty(0, batch.matrix.numpy().dtype)

        def each(value: Tensor | None) -> Array:
            return none.reshape(0, 0) if value is None else np.ascontiguousarray(value.numpy().reshape(drives, -1))

        bends = batch.bends
        curves, bend, own = none.reshape(0, 0, 0), none, batch.own_noise
        if bends is not None:
            compliance = torch.full_like(bends.gain, torch.inf) if bends.compliance is None else bends.compliance
            rows = (compliance, bends.gain, bends.offset, bends.to_lsb, bends.adc_offset)
            curves = np.ascontiguousarray(np.stack([each(row) for row in rows], 1))
            turn = turning_point(bends.cubic) if bends.cubic < 0 else np.inf
            bend, own = np.array([bends.cubic, turn, bends.saturation], none.dtype), bends.noise
        thresholds = none.reshape(0, 0, 0)
        if batch.thresholds is not None:
            thresholds = batch.thresholds.numpy().reshape(drives, -1, batch.thresholds.shape[-1])
        columns = [drive.columns for drive in batch.drives]
        factor = each(batch.factor)
        drive = loop.drive
        unit = drive.top / (drive.code_max or 1) if drive.digits > 1 else 1.0
        unit *= 1.0 if loop.in_codes else drive.v_read / drive.top
        slope = factor * unit * (1.0 if bends is None else each(bends.gain) * each(bends.to_lsb))
        return cls(
            batch=batch,
            channels=channels,
            stream=stream,
            shift=each(batch.shift),
            curves=curves,
            bend=bend,
            own=each(own),
            limits=none if batch.limits is None else np.array([*batch.limits, ROUND[batch.matrix.dtype]], none.dtype),
            thresholds=thresholds,
            factors=tuple((factor * drive.digit_weight(digit)).astype(none.dtype) for digit in range(drive.digits)),
            slope=slope.astype(none.dtype),
            segments=_runs([np.concatenate(columns)] if channels is not None else columns),
        )

    def mask(self, windows: int) -> Tensor:
        """Ones for every conversion, ``(windows, drives, cols)``; of size 0 where the ADC is ideal and never clips."""
        shape = (windows, *self.factors[0].shape) if self.limits.size else (0, 0, 0)
        return torch.ones(shape, dtype=torch.uint8)

    def by_drive(self, found: Tensor) -> Tensor:
        """What was found for all columns as the batch's drives have it, ``(drives, windows, cols)``; a view."""
        return found if self.channels is None else found[0].T[:, :, None]


@dataclass(frozen=True, eq=False)
class Plan:
    """A loop, and its stores' batches as the compiled loops take them; `rows` is the windows of a block."""

    loop: CompiledLoop
    conversions: tuple[tuple[Conversion, ...], ...]
    rows: int

    @classmethod
    def of(cls, loop: CompiledLoop, stream: int) -> "Plan":
        """Of a loop whose first drive draws from this stream."""
        conversions = []
        inputs, widest = 0, 0
        for store in loop.stores:
            of_store = []
            for batch in store.batches:
                of_store.append(Conversion.of(batch, loop, stream))
                stream += len(batch.drives)
                matrices = 1 if batch.variance is None else 2
                widest = max(widest, matrices * len(batch.drives) * batch.matrix.shape[2])
                if of_store[-1].channels is None:
                    inputs = max(inputs, matrices * loop.length)
            conversions.append(tuple(of_store))
        return cls(loop, tuple(conversions), max(BLOCK // (inputs + widest), _FEWEST))


def _runs(columns: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Every run of columns that follow one another in the result: drive, first column, element, length."""
    found = []
    for drive, wanted in enumerate(columns):
        begins = np.flatnonzero(np.diff(wanted, prepend=wanted[0] - 2) != 1)
        lengths = np.diff(begins, append=len(wanted))
        found.append(np.stack([np.full_like(begins, drive), begins, wanted[begins], lengths], 1))
    return np.concatenate(found).astype(np.int64)
