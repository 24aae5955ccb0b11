"""Columns re-estimated on the chip at hand: digital gains and biases from what its layers give for some inputs.

No map of failed devices and no labels are needed. The inputs run through the chip and, beside it, through what the
program expects of a chip. After each layer every channel gets the gain and the offset that bring its results closest to
the expected ones, ``wanted = gain * found + offset`` by least squares, and the next layer sees the corrected results.
That is the adaptive batch normalisation of Joshi et al., Nature Communications 11, 2473 (2020), with least squares in
place of equal means and deviations (our choice: where a channel lost its signal, less noise is passed on).

Gains are drawn towards 1 by what the converter's rounding alone makes uncertain, as in `runtime.trim`.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwspec.errors import DataError, ProgramError
from runtime.engine import Engine
from runtime.programming import ProgrammedChip
from runtime.quantize import Float64
from runtime.tables import Host, Loop, Scatter, Store


@dataclass(frozen=True, eq=False)
class _Correction:
    """A gain for each element of a layer's result, what its bias moves by, and its relative errors."""

    gain: Float64
    shift: Float64
    before: float
    after: float


def reestimated(
    chip: ProgrammedChip,
    expected: ProgrammedChip,
    batches: Sequence[Mapping[str, npt.NDArray[Any]]],
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> ProgrammedChip:
    """The chip with the columns of its layers re-estimated.

    Layers with digital residue or with copies get offsets alone: a gain would change what is not on these columns.
    Exact layers stay as they are.

    Parameters
    ----------
    chip
        The chip as it was programmed.
    expected
        The same program on the chip that it expects.
    batches
        Inputs by name, typical ones, some hundred samples in all; results of a layer are held for all of them.
    device
        Where torch computes.
    seed
        Of the noise of the reads that are measured.

    Raises
    ------
    DataError
        If there are no samples, or they do not fit the program or are not finite.
    ProgramError
        If a layer stores more than one result, which no compiled program does.
    """
    if not batches:
        raise DataError("data to re-estimate columns with", "must have samples")
    program = chip.program
    engines = [Engine(one, device, seed=seed) for one in (expected, chip)]
    wanted, found = ([engine.bind(batch) for batch in batches] for engine in engines)
    corrections: dict[str, _Correction] = {}
    with torch.no_grad():
        for number, step in enumerate(program.tables.instructions):
            for engine, all_buffers in zip(engines, (wanted, found), strict=True):
                for buffers in all_buffers:
                    engine.step(number, buffers)
            if isinstance(step, Host) or step.layer in chip.exact_layers:
                continue
            stores = [one for one in step.body if isinstance(one, Store)]
            if len(stores) > 1:
                requirement = "must store one result to have its columns re-estimated"
                raise ProgramError(f"layer {step.layer!r}", requirement, got=len(stores))
            corrections[step.layer] = _correct(chip, step, stores[0], wanted, found)
    return _corrected(chip, corrections)


def _correct(
    chip: ProgrammedChip, loop: Loop, store: Store, wanted: list[dict[str, Any]], found: list[dict[str, Any]]
) -> _Correction:
    """Find a layer's correction, and put the corrected results in place of those found."""
    program = chip.program
    layer, scatter = program.layers[loop.layer], program.scatters[store.scatter]
    axis = -1 if scatter.kind == "vectors" else 1

    def total(of_batch: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A sum over all batches of what is found and wanted, each ``(windows, channels)`` in float64."""
        parts = ((_by_channel(x[store.buffer], axis), _by_channel(y[store.buffer], axis)) for x, y in batches)
        return functools.reduce(torch.add, (of_batch(x, y) for x, y in parts))

    batches = list(zip(found, wanted, strict=True))
    count, sum_x, sum_y = total(lambda x, y: torch.stack([torch.full_like(x[0], len(x)), x.sum(0), y.sum(0)]))
    mean_x, mean_y = sum_x / count, sum_y / count

    def products(x: Tensor, y: Tensor) -> Tensor:
        x, y = x - mean_x, y - mean_y
        return torch.stack([(x * x).sum(0), (x * y).sum(0), (y * y).sum(0)])

    xx, xy, yy = total(products)
    bias = torch.from_numpy(chip.bias(loop.layer)).to(mean_x)
    gain = torch.ones_like(bias)
    if layer.copies == 1 and not len(program.residue(loop.layer)[0]):
        prior = count * torch.from_numpy(_rounding(chip, loop.layer, scatter)).to(bias)
        gain = torch.where(xx + prior > 0, (xy + prior) / (xx + prior), gain)
    shift = mean_y - gain * (mean_x - bias) - bias
    offset = bias - gain * bias + shift

    def error(gain: Tensor | float, offset: Tensor | float) -> float:
        """Root of the summed squares of ``gain * found + offset - wanted``, relative to what is wanted."""
        squares = gain * gain * xx - 2 * gain * xy + yy + count * (gain * mean_x + offset - mean_y) ** 2
        return math.sqrt(max(float(squares.sum()), 0.0)) / size

    size = math.sqrt(float((yy + count * mean_y**2).sum())) or 1.0
    before, after = error(1.0, 0.0), error(gain, offset)
    for buffers in found:
        values = buffers[store.buffer]
        shape = [1] * values.dim()
        shape[axis] = -1
        buffers[store.buffer] = values * gain.to(values).reshape(shape) + offset.to(values).reshape(shape)
    return _Correction(gain.cpu().numpy()[_channels(scatter)], shift.cpu().numpy(), before, after)


def _by_channel(values: Tensor, axis: int) -> Tensor:
    """A layer's results as ``(windows, channels)`` in float64."""
    return values.movedim(axis, -1).flatten(0, -2).double()


def _channels(scatter: Scatter) -> npt.NDArray[np.int64]:
    """The channel of each element of a result vector: patches are in order ``(group, *kernel, channel)``."""
    elements = np.arange(scatter.length)
    if scatter.kind != "fold":
        return elements
    each = scatter.channels // scatter.groups
    return elements // (math.prod(scatter.kernel) * each) * each + elements % each


def _rounding(chip: ProgrammedChip, layer: str, scatter: Scatter) -> Float64:
    """Variance of each channel's results by the converters' rounding alone."""
    program, channels = chip.program, _channels(scatter)
    found = np.zeros(scatter.channels)
    for tile in program.tables.tiles:
        if tile.layer == layer and tile.name in chip.tiles:
            tensors = program.tile_tensors[tile.name]
            unit = tensors.scale * tensors.gain * chip.tiles[tile.name].gain * chip.result_unit(layer)
            np.add.at(found, channels[tensors.col_map], unit**2 * chip.rounding(tile))
    return found


def _corrected(chip: ProgrammedChip, corrections: Mapping[str, _Correction]) -> ProgrammedChip:
    tiles = dict(chip.tiles)
    for tile in chip.program.tables.tiles:
        if tile.layer in corrections and tile.name in tiles:
            gain = corrections[tile.layer].gain[chip.program.tile_tensors[tile.name].col_map]
            own = tiles[tile.name]
            tiles[tile.name] = replace(own, gain=own.gain * gain, offset=own.offset * gain)
    told = {layer: (one.before, one.after) for layer, one in corrections.items()}
    shifts = {layer: chip.bias_shift.get(layer, 0.0) + one.shift for layer, one in corrections.items()}
    return replace(
        chip, tiles=tiles, bias_shift={**chip.bias_shift, **shifts}, report=replace(chip.report, reestimated=told)
    )
