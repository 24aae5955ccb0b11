"""Chips with one effect at a time, and what their devices conduct."""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
from small_programs import Array, compile_small, one_node, small_spec

from hwspec.chip import Chip
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, program_chip

Float64 = npt.NDArray[np.float64]

NOTHING: Mapping[str, object] = {
    "device.levels": None,
    "device.spread": {"model": "none", "sigma": 0.0},
    "device.read_noise": {"model": "none", "share": 0.0},
    "periphery.dac_bits": None,
    "periphery.adc_bits": None,
    "periphery.gain_sigma": 0.0,
    "periphery.offset_sigma": 0.0,
}
"""The preset without any of its effects."""


def quiet_spec(fields: Mapping[str, object] | None = None) -> HardwareSpec:
    """A spec without effects but for these fields."""
    merged = {**NOTHING, **(fields or {})}
    for section in ("device.spread", "device.read_noise"):
        merged[section] = {**NOTHING[section], **merged[section]}  # type: ignore[dict-item]
    return small_spec(merged)


def program_of(weight: Array, fields: Mapping[str, object] | None = None) -> TileProgram:
    """A product with this matrix on a quiet spec of arrays of its size."""
    rows, cols = weight.shape
    size = {"array.rows": rows, "array.cols": cols}
    return compile_small(one_node("MatMul", weight, (rows,)), quiet_spec({**size, **(fields or {})}))


def chip_of(
    program: TileProgram,
    seed: int = 0,
    *,
    effects: Collection[str] | None = None,
    simulate: int = 0,
    seconds: float = 0.0,
) -> ProgrammedChip:
    """The program on a sampled chip."""
    chip = Chip.sample(program.spec, program.arrays, seed)
    return program_chip(program, chip, effects=effects, seed=simulate, seconds=seconds)


def matrices(chip: ProgrammedChip) -> Float64:
    """Matrices of the channels of the first tile, ``(channels, rows, cols)``, siemens."""
    first = chip.program.tables.tiles[0].name
    return np.stack([channel.matrix for channel in chip.tiles[first].channels])


def devices(chip: ProgrammedChip) -> Float64:
    """Conductances of both devices of the first tile's pairs, ``(2, rows, cols)``; needs ``subtract: after``."""
    found = matrices(chip)
    assert len(found) == 2
    return found


def targets(program: TileProgram) -> Float64:
    """What the devices of the first tile are programmed to, ``(2, rows, cols)``, siemens."""
    return np.stack(program.target_conductances(program.tables.tiles[0].name))


def result_unit(chip: ProgrammedChip) -> Float64:
    """What an ampere of each column of the first tile adds to the result."""
    tensors = chip.program.tile_tensors[chip.program.tables.tiles[0].name]
    found: Float64 = tensors.col_sign * tensors.scale * tensors.gain * chip.result_unit("layer")
    return found


def volts_of(chip: ProgrammedChip, x: Array) -> Float64:
    """Word-line voltages of inputs to an ideal DAC, in the physical order of the first tile's rows."""
    shares = chip.input_codes("layer", x.astype(np.float64))
    tensors = chip.program.tile_tensors[chip.program.tables.tiles[0].name]
    volts = np.empty_like(shares)
    volts[:, tensors.row_map] = shares * chip.spec.periphery.v_read
    return volts
