"""The controller's trim: digital gains and offsets, measured with known vectors on the programmed chip.

A controller knows the products that its vectors should give, runs them through the chip's own readout and converters,
and fits ``wanted = gain * measured + offset`` for each column of each tile by least squares. Gains are drawn towards 1
by what the converter's rounding alone makes uncertain (our choice), so that a column without signal keeps its own.
"""

import functools
from dataclasses import replace

import numpy as np

from hwspec.periphery import Trim
from runtime.arrays import calibration_codes
from runtime.channels import NoiseKind, conversions
from runtime.physics.cells import Moment
from hwspec.randomness import Purpose, array_generator
from runtime.programming import ProgrammedChip, TileOnChip
from runtime.quantize import Float64
from runtime.tables import Phase, Tile, input_phases


def trimmed(chip: ProgrammedChip, measured: ProgrammedChip, moment: Moment) -> ProgrammedChip:
    """`chip` with the gains and offsets that are found on `measured`, the same chip at the time of measuring."""
    trim = chip.spec.periphery.trim
    tiles = dict(chip.tiles)
    squares: dict[str, Float64] = {}
    for number, tile in enumerate(chip.program.tables.tiles):
        if tile.layer in chip.exact_layers or tile.name not in chip.tiles:
            continue
        wanted, found = _measure(
            measured, tile, trim.vectors, array_generator(moment.seed, Purpose.TRIM, number, chip_seed=moment.chip_seed)
        )
        gain, offset = _fit(wanted, found, trim, _rounding(measured, tile))
        tiles[tile.name] = TileOnChip(chip.tiles[tile.name].channels, gain, offset)
        errors = (found - wanted, gain * found + offset - wanted, wanted)
        scale = chip.program.tile_tensors[tile.name].scale
        sums = np.array([float(((error * scale) ** 2).sum()) for error in errors])
        squares[tile.layer] = squares.get(tile.layer, np.zeros(3)) + sums
    told = {
        layer: (float(np.sqrt(before / (size or 1.0))), float(np.sqrt(after / (size or 1.0))))
        for layer, (before, after, size) in squares.items()
    }
    return replace(chip, tiles=tiles, report=replace(chip.report, trim=told))


def _measure(chip: ProgrammedChip, tile: Tile, most: int, generator: np.random.Generator) -> tuple[Float64, Float64]:
    """Currents that known vectors should give and do give, ``(vectors, cols)``, amperes, all phases together."""
    program, layer = chip.program, chip.program.layers[tile.layer]
    drive, spec = chip.drive(tile.layer), chip.layer_spec(tile.layer)
    logical = calibration_codes(program, drive.code_max, tile, most)
    codes = np.empty_like(logical)
    codes[:, program.tile_tensors[tile.name].row_map] = logical

    def noise(channel: int, kind: NoiseKind, shape: tuple[int, ...]) -> Float64:
        del channel, kind
        return generator.standard_normal(shape)

    gain = program.tile_tensors[tile.name].gain
    unit = program.spec.periphery.v_read / (drive.code_max or 1) * program.spec.weight_span
    wanted = codes @ program.intended(tile.name) * (unit / gain)
    found = np.zeros_like(wanted)
    phases: tuple[Phase, ...] = input_phases(program.spec, layer.signed)
    for phase in phases:
        readout = functools.partial(chip.readout, tile, phase)
        for one in conversions(chip.tiles[tile.name].channels, readout, drive, spec, codes, phase, noise):
            found += one.estimate * (one.weight if phase != "-" else -one.weight)
    return wanted, found


def _rounding(chip: ProgrammedChip, tile: Tile) -> float:
    """Variance of a result by rounding alone, amperes²."""
    code_max = chip.spec.periphery.output_code_max
    return sum((limit / code_max) ** 2 / 12 for limit in tile.adc_range) if code_max else 0.0


def _fit(wanted: Float64, found: Float64, trim: Trim, rounding: float) -> tuple[Float64, Float64]:
    """Gain and offset of each column that bring what was found closest to what is wanted."""
    count, cols = wanted.shape
    centre_found = found.mean(0) if trim.offset else np.zeros(cols)
    centre_wanted = wanted.mean(0) if trim.offset else np.zeros(cols)
    x, y = found - centre_found, wanted - centre_wanted
    if trim.gain == "none":
        gain = np.ones(cols)
    else:
        axis = None if trim.gain == "tile" else 0
        prior = count * rounding * (cols if trim.gain == "tile" else 1)
        over, under = (x * y).sum(axis) + prior, (x * x).sum(axis) + prior
        ratio = np.divide(over, under, out=np.ones_like(over), where=under > 0)
        gain = np.broadcast_to(ratio, cols).copy()
    offset = centre_wanted - gain * centre_found if trim.offset else np.zeros(cols)
    return gain, offset
