"""What the tests of the effects of a spec's fields are made of, and where each registers: one test a field."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from small_programs import SmallModel, compile_small, matmul, small_spec

from hwspec.chip import Chip
from hwspec.effects import QUANTISATION, with_effects
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, program_chip
from runtime.reference import Conversion, Reference

Effect = Callable[[], None]
Float64 = npt.NDArray[np.float64]
Fields = Mapping[str, object]

EFFECTS: dict[str, Effect] = {}
MODEL = matmul(24, 12, seed=1)
SMALL = matmul(8, 8, seed=3)
SQUARE = matmul(64, 64, seed=2)
IDEAL: Fields = {"device.levels": None, "periphery.dac_bits": None, "periphery.adc_bits": None}
"""Nothing is rounded."""


def effect(field: str) -> Callable[[Effect], Effect]:
    """Register the test of a field's effect."""

    def register(test: Effect) -> Effect:
        assert field not in EFFECTS
        EFFECTS[field] = test
        return test

    return register


def pair(
    field: str, one: object, other: object, fixed: Fields | None = None, model: SmallModel = MODEL
) -> tuple[TileProgram, TileProgram]:
    """Programs of one model for two specs that differ in a field; both have `fixed`, and no effect but the converters'.

    The specs are those of `small_spec`: arrays of 8x8, 1 to 100 µS, 0.2 V.
    """
    base = with_effects(small_spec(), QUANTISATION)
    specs = [base.with_fields({**(fixed or {}), field: value}) for value in (one, other)]
    found = [dict(spec.fields()) for spec in specs]
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {field}
    first, second = (compile_small(model, spec) for spec in specs)
    return first, second


def on_spec(program: TileProgram, spec: HardwareSpec) -> TileProgram:
    """The same program, targets and ranges included, on other hardware."""
    return replace(program, tables=program.tables.model_copy(update={"spec": spec}))


def sampled(program: TileProgram, chip_seed: int = 1, **options: Any) -> ProgrammedChip:
    """The program on a chip as it comes from the line; `options` are those of `program_chip`."""
    return program_chip(program, Chip.sample(program.spec, program.arrays, chip_seed), **options)


def conductances(program: TileProgram) -> Float64:
    """Target conductances of all devices, siemens."""
    both = [side for tile in program.tables.tiles for side in program.target_conductances(tile.name)]
    return np.concatenate([side.ravel() for side in both])


def devices(chip: ProgrammedChip) -> Float64:
    """What all devices conduct where nothing is subtracted and no wire resists, siemens, ordered as `conductances`."""
    channels = [channel for tile in chip.program.tables.tiles for channel in chip.tiles[tile.name].channels]
    assert len(channels) == 2 * len(chip.program.tables.tiles)
    return np.concatenate([channel.matrix.ravel() for channel in channels])


def arrays(program: TileProgram) -> list[Float64]:
    """Target conductances of every array of a program whose tiles have arrays of their own, siemens."""
    array = program.spec.array
    found = [np.full((array.rows, array.cols), array.unused) for _ in range(program.arrays)]
    for tile in program.tables.tiles:
        places = program.places(tile.name)
        for place, side in zip(places.values(), program.target_conductances(tile.name), strict=True):
            found[place[0]][np.ix_(*place[1:])] = side
    return found


def volts(program: TileProgram, x: npt.NDArray[Any]) -> Float64:
    """Voltages that an ideal DAC makes of inputs."""
    found: Float64 = x.astype(np.float64) / program.layers["layer"].full_scale * program.spec.periphery.v_read
    return found


def driven(program: TileProgram, shares: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Inputs at these shares of full scale."""
    return (np.asarray(shares) * program.layers["layer"].full_scale).astype(np.float32)


def conversions(
    chip: TileProgram | ProgrammedChip, x: npt.NDArray[Any] | None = None, seed: int = 0
) -> list[Conversion]:
    """What every tile's converters do on inputs; of a program, on an ideal chip."""
    seen: list[Conversion] = []
    on_chip = program_chip(chip) if isinstance(chip, TileProgram) else chip
    Reference(on_chip, seen.append, seed=seed)(MODEL.inputs(7, batch=50) if x is None else x)
    return seen


def currents(chip: TileProgram | ProgrammedChip, x: npt.NDArray[Any], seed: int = 0) -> Float64:
    """Currents before they are rounded, ``(windows, columns of all conversions)``, amperes."""
    return np.concatenate([found.current for found in conversions(chip, x, seed)], axis=1)


def outputs(chip: TileProgram | ProgrammedChip, x: npt.NDArray[Any], seed: int = 0) -> Float64:
    """Results of the model."""
    on_chip = program_chip(chip) if isinstance(chip, TileProgram) else chip
    result: Float64 = Reference(on_chip, seed=seed)(x)[0].astype(np.float64)
    return result


def error(chip: TileProgram | ProgrammedChip, x: npt.NDArray[Any] | None = None) -> float:
    """Relative error of the results against the float weights, on inputs that nothing clips."""
    x = 0.4 * MODEL.inputs(7, batch=50) if x is None else x
    program = chip if isinstance(chip, TileProgram) else chip.program
    wanted = x.astype(np.float64) @ program.weights["layer"][0].astype(np.float64)
    return float(np.linalg.norm(outputs(chip, x) - wanted) / np.linalg.norm(wanted))


def close(found: npt.ArrayLike, wanted: npt.ArrayLike, rtol: float = 1e-9) -> None:
    """Fail unless numbers are equal but for rounding, relative to the largest of them."""
    expected = np.asarray(wanted, np.float64)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def standard_normal(z: Float64, sigmas: float = 5.0) -> None:
    """Fail unless many numbers have the mean and the variance of standard normal ones, within the chance of both."""
    assert z.size >= 100
    assert abs(z.mean()) < sigmas / np.sqrt(z.size)
    assert abs(np.square(z).mean() - 1) < sigmas * np.sqrt(2 / z.size)


def chance(hits: npt.NDArray[np.bool_], probability: npt.ArrayLike, sigmas: float = 5.0) -> None:
    """Fail unless independent events of these probabilities happen as often as they should."""
    p = np.broadcast_to(probability, hits.shape)
    assert abs(hits.sum() - p.sum()) < sigmas * np.sqrt((p * (1 - p)).sum())
