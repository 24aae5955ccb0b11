"""The conversions of a loop in torch: tiles side by side in matrices, matrices of one shape in batches.

Everything linear (the voltage of a code, the conductances, gain errors, the lsb of a converter) is folded into the
matrix, so that rounding its product gives ADC codes. What a spec does not have is None here and costs nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwspec.spec import HardwareSpec
from runtime.channels import Channel
from runtime.physics.converters import Drive
from runtime.physics.readout import Readout, turning_point
from runtime.programming import ProgrammedChip
from runtime.quantize import Float64, input_digit, output_codes
from runtime.straight_through_torch import follow, follow_digits, within
from runtime.tables import Load, Mvm, Phase

ToTensor = Callable[[npt.NDArray[np.float64]], Tensor]


@dataclass(frozen=True, eq=False)
class _Part:
    """One tile's channel, in the order of the elements that its rows are driven by."""

    tile: str
    channel: Channel
    readout: Readout
    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int64]
    factor: Float64
    """What an ampere counts for in the result, with the channel's sign."""


@dataclass(frozen=True, eq=False)
class _Drive:
    """One loaded vector, and one channel of all the tiles that it drives in one phase, side by side."""

    phase: Phase
    start: int
    number: int
    parts: tuple[_Part, ...]

    @cached_property
    def order(self) -> npt.NDArray[np.intp]:
        """The tiles' columns in the order of the elements that they belong to, slice after slice: long runs to add."""
        columns = np.concatenate([part.columns for part in self.parts])
        ranked = np.argsort(columns, kind="stable")
        begins = np.searchsorted(columns[ranked], columns[ranked])
        return ranked[np.lexsort((columns[ranked], np.arange(len(columns)) - begins))]

    @property
    def columns(self) -> npt.NDArray[np.int64]:
        """Elements of the result that its columns belong to."""
        return self.side_by_side([part.columns for part in self.parts])

    def side_by_side(self, of_parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Arrays ``(..., columns of a tile)`` of all tiles as ``(..., cols)``."""
        found: npt.NDArray[Any] = np.concatenate(of_parts, axis=-1)[..., self.order]
        return found

    def apart(self, found: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What was found for all columns, ``(windows, cols)``, for each tile by its name."""
        split = torch.split(found[:, np.argsort(self.order)], [len(part.columns) for part in self.parts], 1)
        yield from zip((part.tile for part in self.parts), split, strict=True)

    @property
    def kind(self) -> tuple[object, ...]:
        """What drives must share to be computed at once."""
        first = self.parts[0]
        cols = sum(len(part.columns) for part in self.parts)
        codes = first.readout.codes
        limits = None if codes is None else (codes.low, codes.high)
        thresholds = any(part.readout.thresholds() is not None for part in self.parts)
        return self.phase, self.number, len(first.rows), cols, limits, first.channel.exact, thresholds


@dataclass(frozen=True, eq=False)
class _Bends:
    """A readout that is not linear, in units of the range: everything ``(batch, 1, cols)``, or one number."""

    compliance: Tensor | None
    gain: Tensor
    offset: Tensor
    cubic: float
    saturation: float
    noise: Tensor | None
    to_lsb: Tensor
    adc_offset: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Drives of equal shape: ``inputs (batch, windows, rows) @ matrix (batch, rows, cols)`` and what follows.

    `factor` ``(batch, 1, cols)`` turns codes into results, which go to `columns`; `summed` when all drives share them.
    All are of one copy of the layer's matrix, which takes its own windows.
    """

    copy: int
    drives: tuple[_Drive, ...]
    matrix: Tensor
    variance: Tensor | None
    shift: Tensor | None
    own_noise: Tensor | None
    bends: _Bends | None
    amperes: Tensor | None
    """What turns the networks' amperes into the matrix's unit; None without networks."""
    limits: tuple[int, int] | None
    thresholds: Tensor | None
    factor: Tensor
    columns: Tensor
    summed: bool
    whole: bool

    def rows_of(self, inputs: Tensor) -> Tensor:
        """What inputs ``(windows, length)`` hold for each drive, ``(batch, windows, rows)``; a view if it can be."""
        rows, count = self.matrix.shape[1], len(self.drives)
        starts = [drive.start for drive in self.drives]
        if starts == list(range(starts[0], starts[0] + count * rows, rows)):
            return inputs[:, starts[0] : starts[0] + count * rows].reshape(len(inputs), count, rows).transpose(0, 1)
        return torch.stack([inputs[:, start : start + rows] for start in starts])

    def convert(self, current: Tensor, own: Tensor | None, clipped: list[Tensor] | None = None) -> Tensor:
        """Codes of currents in the matrix's unit (amperes where the ADC is ideal); `clipped` is told which clip."""
        found = current
        bends = self.bends
        if bends is not None:
            found = found if self.shift is None else found + self.shift
            if bends.compliance is not None:
                found = torch.minimum(torch.maximum(found, -bends.compliance), bends.compliance)
            found = found * bends.gain + bends.offset
            if bends.cubic:
                if bends.cubic < 0:
                    found = found.clamp(-turning_point(bends.cubic), turning_point(bends.cubic))
                found = found + bends.cubic * found**3
            if bends.saturation:
                found = found / (1 + bends.saturation * found.abs())
            if own is not None and bends.noise is not None:
                found = found + own * bends.noise
            found = found * bends.to_lsb + bends.adc_offset
        else:
            found = found if self.shift is None else found + self.shift
            if own is not None and self.own_noise is not None:
                found = found + own * self.own_noise
        if self.limits is None:
            return found
        if clipped is not None:
            clipped.append((found < self.limits[0] - 0.5) | (found > self.limits[1] + 0.5))
        if self.thresholds is None:
            return follow(output_codes(found, *self.limits), within(found, *self.limits))
        across = found.transpose(1, 2).contiguous()
        codes = self.limits[0] + torch.searchsorted(self.thresholds, across)
        return follow(codes.transpose(1, 2).to(found.dtype), within(found, *self.limits))


class BatchCompiler:
    """Makes the batches of a layer.

    Parameters
    ----------
    chip
        The programmed chip.
    to_tensor
        Puts an array where the engine computes.
    """

    def __init__(self, chip: ProgrammedChip, to_tensor: ToTensor) -> None:
        self._chip, self._tensor = chip, to_tensor

    def batches(self, layer: str, terms: list[tuple[Mvm, Load]], length: int) -> tuple[Batch, ...]:
        """Group MVMs: those that share a vector side by side, then those of equal shape on top of one another."""
        by_vector: dict[tuple[object, ...], list[tuple[_Part, Phase, int, int]]] = {}
        for mvm, load in terms:
            for number, part in enumerate(self._parts(layer, mvm)):
                codes, networks = part.readout.codes, bool(part.channel.networks)
                limits = None if codes is None else (codes.low, codes.high)
                key = (self._copy(part), mvm.phase, load.start, load.stop, number, limits, networks)
                by_vector.setdefault(key, []).append((part, mvm.phase, load.start, number))
        by_kind: dict[tuple[object, ...], list[_Drive]] = {}
        for found in by_vector.values():
            _, phase, start, number = found[0]
            drive = _Drive(phase, start, number, tuple(part for part, _, _, _ in found))
            first = drive.parts[0]
            by_kind.setdefault((self._copy(first), *drive.kind, bool(first.channel.networks)), []).append(drive)
        return tuple(self._batch(layer, tuple(drives), length) for drives in by_kind.values())

    def _copy(self, part: _Part) -> int:
        return self._chip.program.tiles[part.tile].copy_number

    def constants(self, layer: str, terms: list[tuple[Mvm, Load]], length: int) -> tuple[Tensor | None, ...]:
        """What the trim's offsets, and shifts of the bias, add to each element of a result of each copy; or None."""
        chip = self._chip
        totals = [np.zeros(length) for _ in range(chip.program.layers[layer].copies)]
        for mvm, _ in terms:
            on_chip, tensors = chip.tiles[mvm.tile], chip.program.tile_tensors[mvm.tile]
            if mvm.phase != "-":
                weight = tensors.col_sign * tensors.scale * tensors.gain * chip.result_unit(layer)
                of_copy = totals[chip.program.tiles[mvm.tile].copy_number]
                np.add.at(of_copy, tensors.col_map, on_chip.offset * weight)
        for number, total in enumerate(totals):
            shift = chip.copy_shift(layer, number)
            if shift is not None:
                total += shift
        return tuple(self._tensor(total) if total.any() else None for total in totals)

    def _parts(self, layer: str, mvm: Mvm) -> list[_Part]:
        chip = self._chip
        tile, tensors = chip.program.tiles[mvm.tile], chip.program.tile_tensors[mvm.tile]
        on_chip = chip.tiles[mvm.tile]
        unit = chip.result_unit(layer) * (-1 if mvm.phase == "-" else 1)
        weight = tensors.col_sign * tensors.scale * tensors.gain * on_chip.gain * unit
        return [
            _Part(
                tile=mvm.tile,
                channel=channel,
                readout=chip.readout(tile, mvm.phase, channel),
                rows=tensors.row_map,
                columns=tensors.col_map.astype(np.int64),
                factor=weight * channel.sign,
            )
            for channel in on_chip.channels
        ]

    def _batch(self, layer: str, drives: tuple[_Drive, ...], length: int) -> Batch:
        columns = [drive.columns for drive in drives]
        summed = all(np.array_equal(other, columns[0]) for other in columns)
        flat = columns[0] if summed else np.concatenate(columns)
        first = drives[0].parts[0]
        codes = None if first.channel.exact else first.readout.codes
        volt = self._volt(layer)
        bent = _is_bent(first)

        def rows(of: Callable[[_Part], Float64]) -> Tensor:
            return self._rows(drives, of)

        def row(of: Callable[[_Part], Float64]) -> Tensor:
            return rows(of)[:, None]

        def some(of: Callable[[_Part], Float64 | None]) -> bool:
            return any(of(part) is not None for drive in drives for part in drive.parts)

        noisy = not first.channel.exact
        read = first.readout
        return Batch(
            copy=self._copy(first),
            drives=drives,
            matrix=rows(lambda part: part.channel.matrix[part.rows] * (volt * _into(part))),
            variance=_nonzero(rows(lambda part: _variance(part)[part.rows] * (volt * _into(part)) ** 2))
            if some(lambda part: part.channel.variance)
            else None,
            shift=_nonzero(row(_shift)) if noisy else None,
            own_noise=row(_own) if noisy and read.noise else None,
            bends=self._bends(row, read) if bent else None,
            amperes=row(_into) if first.channel.networks else None,
            limits=None if codes is None else (codes.low, codes.high),
            thresholds=None
            if codes is None or all(part.readout.thresholds() is None for drive in drives for part in drive.parts)
            else rows(lambda part: _thresholds(part).T).transpose(1, 2).contiguous(),
            factor=row(lambda part: part.factor * _unit(part)),
            columns=torch.from_numpy(flat).to(self._tensor(np.zeros(1)).device),
            summed=summed,
            whole=np.array_equal(flat, np.arange(length)),
        )

    def slopes(self, layer: str, batch: Batch, of: Callable[[str, Channel], Float64]) -> Tensor:
        """What `of` gives for tiles' channels, ``(rows, cols)`` as they lie, in a batch's own order and unit."""
        volt = self._volt(layer)
        return self._rows(batch.drives, lambda part: of(part.tile, part.channel)[part.rows] * (volt * _into(part)))

    def _rows(self, drives: tuple[_Drive, ...], of: Callable[[_Part], Float64]) -> Tensor:
        return self._tensor(np.stack([d.side_by_side([of(part) for part in d.parts]) for d in drives]))

    def _volt(self, layer: str) -> float:
        """Volts of one unit of the inputs: a code where drivers and devices are linear, else a volt."""
        drive = self._chip.drive(layer)
        return drive.v_read / drive.top if in_codes(self._chip, layer, drive) else 1.0

    def _bends(self, row: Callable[[Callable[[_Part], Float64]], Tensor], read: Readout) -> _Bends:
        def each(of: Callable[[_Part], float]) -> Tensor:
            return row(lambda part: np.full(len(part.columns), of(part)))

        def scale(part: _Part) -> float:
            return part.readout.full_scale or 1.0

        limit = read.compliance
        return _Bends(
            compliance=None if limit is None else each(lambda part: limit / scale(part)),
            gain=row(lambda part: 1 + part.readout.errors.gain),
            offset=row(lambda part: part.readout.errors.offset * part.readout.lsb / scale(part)),
            cubic=read.cubic,
            saturation=read.saturation,
            noise=each(lambda part: read.noise * part.readout.lsb / scale(part)) if read.noise else None,
            to_lsb=row(lambda part: (1 + part.readout.errors.adc_gain) * (scale(part) / _unit(part))),
            adc_offset=row(lambda part: part.readout.errors.adc_offset * (part.readout.lsb / _unit(part))),
        )


def in_codes(chip: ProgrammedChip, layer: str, drive: Drive) -> bool:
    """Whether a layer's inputs can stay codes: their voltage is folded into the matrix."""
    return drive.nonlinearity == 0 and chip.layer_spec(layer).device.iv.linear


def digit_inputs(
    codes: Tensor, drive: Drive, spec: HardwareSpec, *, codes_suffice: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """What each digit of the codes that are driven multiplies the matrices with, and its share of v_read.

    Where codes suffice (`in_codes`), nobody needs the shares, and there are none.
    """
    if not codes_suffice:
        shares = [drive.shares(codes, number) for number in range(drive.digits)]
        return [effective_volts(share, spec) for share in shares], shares
    if drive.digits == 1:
        return [codes], []
    digits = [input_digit(codes, drive.base, number) for number in range(drive.digits)]
    return follow_digits(digits, [float(drive.base**number) for number in range(drive.digits)], codes), []


def effective_volts(shares: Tensor, spec: HardwareSpec) -> Tensor:
    """Voltages that ohmic devices would take for these shares of v_read; see `runtime.channels.effective_volts`."""
    law, v_read = spec.device.iv, spec.periphery.v_read
    volts = shares * v_read
    if spec.periphery.input_coding == "amplitude" and law.alpha:
        if law.model == "sinh":
            volts = torch.sinh(law.alpha * volts) * (v_read / math.sinh(law.alpha * v_read))
        else:
            volts = volts * (1 + (law.alpha * volts) ** 2) / (1 + (law.alpha * v_read) ** 2)
    return torch.where(shares < 0, (1 + law.asymmetry) * volts, volts) if law.asymmetry else volts


def _is_bent(part: _Part) -> bool:
    read = part.readout
    return not part.channel.exact and bool(read.cubic or read.saturation or read.compliance is not None)


def _unit(part: _Part) -> float:
    """Amperes that a converted number counts in: the lsb, or one where the ADC is ideal."""
    return 1.0 if part.channel.exact or part.readout.codes is None else part.readout.codes.lsb


def _into(part: _Part) -> Float64:
    """What an ampere is in the unit of a part's matrix, for each column: of the range where it bends, else lsb."""
    if _is_bent(part):
        return np.full(len(part.columns), 1 / (part.readout.full_scale or 1.0))
    if part.channel.exact:
        return np.ones(len(part.columns))
    errors = part.readout.errors
    return (1 + errors.gain) * (1 + errors.adc_gain) / _unit(part)


def _shift(part: _Part) -> Float64:
    """What a part's currents are off without any input, in the unit of its matrix."""
    static = part.channel.static
    found = np.zeros(len(part.columns)) if static is None else static * _into(part)
    if _is_bent(part):
        return found
    read = part.readout
    own = read.errors.offset * (1 + read.errors.adc_gain) + read.errors.adc_offset
    return found + own * (read.lsb / _unit(part))


def _own(part: _Part) -> Float64:
    """Standard deviation of the readout's noise, in the unit of a part's matrix."""
    read = part.readout
    return read.noise * read.lsb / _unit(part) * (1 + read.errors.adc_gain)


def _variance(part: _Part) -> Float64:
    found = part.channel.variance
    return np.zeros_like(part.channel.matrix) if found is None else found


def _thresholds(part: _Part) -> Float64:
    found, codes = part.readout.thresholds(), part.readout.codes
    assert codes is not None
    if found is not None:
        return found
    return np.broadcast_to(np.arange(codes.low, codes.high) + 0.5, (len(part.columns), codes.high - codes.low))


def _nonzero(value: Tensor) -> Tensor | None:
    return value if bool(value.any()) else None
