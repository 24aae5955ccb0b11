"""The controller's trim: digital gains and offsets, measured with known vectors on the programmed chip.

A controller knows the products that its vectors should give: those with the weights or, of a program that was mapped
around failed devices, those of its arrays with the failed devices and wires that it was mapped for. It runs the vectors
through the chip's own readout and converters, and fits ``wanted = gain * measured + offset`` for each column of each
tile by least squares. Gains are drawn towards 1 by what the converter's rounding alone makes uncertain (our choice), so
that a column without signal keeps its own.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hwspec.effects import with_effects
from hwspec.fault_map import FaultMap
from hwspec.periphery import Trim
from hwspec.randomness import Purpose, array_generator
from runtime.arrays import calibration_codes
from runtime.channels import NoiseKind, conversions
from runtime.physics.cells import Moment
from runtime.programming import ProgrammedChip, TileOnChip, write_program
from runtime.quantize import Float64
from runtime.tables import Phase, Tile, input_phases

Noise = Callable[[int, NoiseKind, tuple[int, ...]], Float64]
_EXPECTED = frozenset({"failures", "wires", "access", "sneak_paths", "dac"})
"""Effects that a program mapped around failed devices was mapped with: trim leaves them as they are."""


def trimmed(
    chip: ProgrammedChip, measured: ProgrammedChip, moment: Moment, faults: FaultMap | None = None
) -> ProgrammedChip:
    """`chip` with the gains and offsets that are found on `measured`, the same chip at the time of measuring.

    `faults` are the chip's failed devices, None where it has none or their effect is off.
    """
    trim = chip.spec.periphery.trim
    nominal = _nominal(measured, faults is not None)
    tiles = dict(chip.tiles)
    squares: dict[str, Float64] = {}
    for number, tile in enumerate(chip.program.tables.tiles):
        if tile.layer in chip.exact_layers or tile.name not in chip.tiles:
            continue
        wanted, found = _measure(
            measured,
            nominal,
            tile,
            trim.vectors,
            array_generator(moment.seed, Purpose.TRIM, number, chip_seed=moment.chip_seed),
        )
        gain, offset = _fit(wanted, found, trim, measured.rounding(tile))
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


def _nominal(chip: ProgrammedChip, failures: bool) -> ProgrammedChip | None:
    """What a controller expects of a program that was mapped around failed devices; None of others."""
    program = chip.program
    if program.faults is None:
        return None
    spec = with_effects(chip.spec, _EXPECTED)
    return write_program(program, spec, Moment(0, 0, 0.0), chip.exact_layers, program.faults if failures else None)


def _measure(
    chip: ProgrammedChip, nominal: ProgrammedChip | None, tile: Tile, most: int, generator: np.random.Generator
) -> tuple[Float64, Float64]:
    """Currents that known vectors should give and do give, ``(vectors, cols)``, amperes, all phases together."""
    program, drive = chip.program, chip.drive(tile.layer)
    logical = calibration_codes(program, drive.code_max, tile, most)
    codes = np.empty_like(logical)
    codes[:, program.tile_tensors[tile.name].row_map] = logical

    def noise(channel: int, kind: NoiseKind, shape: tuple[int, ...]) -> Float64:
        del channel, kind
        return generator.standard_normal(shape)

    if nominal is None:
        gain = program.tile_tensors[tile.name].gain
        unit = program.spec.periphery.v_read / (drive.code_max or 1) * program.spec.weight_span
        wanted = codes @ program.intended(tile.name) * (unit / gain)
    else:
        wanted = _result(nominal, tile, codes, noise)
    return wanted, _result(chip, tile, codes, noise)


def _result(chip: ProgrammedChip, tile: Tile, codes: Float64, noise: Noise) -> Float64:
    """Currents that a chip finds for codes in the physical order of a tile's rows, ``(vectors, cols)``, amperes."""
    drive, spec = chip.drive(tile.layer), chip.layer_spec(tile.layer)
    total = np.zeros((len(codes), tile.cols))
    phases: tuple[Phase, ...] = input_phases(chip.program.spec, chip.program.layers[tile.layer].signed)
    for phase in phases:
        readout = functools.partial(chip.readout, tile, phase)
        for one in conversions(chip.tiles[tile.name].channels, readout, drive, spec, codes, phase, noise):
            total += one.estimate * (one.weight if phase != "-" else -one.weight)
    return total


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
