"""Each physical effect can be switched off, or on alone: a chip is then that of a spec without it, or with it alone."""

from collections.abc import Collection
from functools import cache

import numpy as np
import pytest
from small_programs import compile_small, matmul, small_spec
from spec_effects import Fields, Float64, conversions, on_spec, outputs, sampled

from hwspec.effects import EFFECTS, OF_A_CHIP, QUANTISATION, chosen_effects, with_effects
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, program_chip

MODEL = matmul(10, 6, seed=9)
X = 0.5 * MODEL.inputs(2, batch=4)
NIGHT = 3e4

CONTEXT: Fields = {
    "array.rows": 12,
    "array.cols": 8,
    "array.unused": 5e-6,
    "device.g_max": 25e-6,
    "device.temperature_coefficient": 0.002,
    "periphery.dac_bits": None,
    "periphery.adc_bits": None,
    "periphery.input_coding": "amplitude",
    "periphery.subtract": "after",
}
"""What no effect stands for."""

FIELDS: dict[str, Fields] = {
    "failures": {"failures.stuck_lrs.rate": 0.03, "failures.stuck_hrs.rate": 0.03, "failures.lines.bit_failed": 0.05},
    "retention": {"failures.retention.state": "stuck_hrs", "failures.retention.lifetime": 6e4},
    "spread": {"device.spread.model": "constant", "device.spread.sigma": 1e-6},
    "programming_failures": {"device.programming.failure_rate": 0.05},
    "drift": {"device.drift.model": "pcm"},
    "temperature": {"device.temperature": 60},
    "access": {"device.r_access": 2e3},
    "iv": {"device.iv.model": "sinh", "device.iv.alpha": 4.0, "device.iv.asymmetry": 0.1},
    "telegraph": {"device.telegraph.amplitude": 0.1},
    "read_noise": {"device.read_noise.model": "proportional", "device.read_noise.share": 0.05},
    "wires": {"array.r_word": 50.0, "array.r_bit": 50.0, "array.r_driver": 200.0, "array.r_sense": 100.0},
    "sneak_paths": {"array.unselected": "third"},
    "dac": {"periphery.dac_bits": 3, "periphery.input_bits": 6},
    "dac_nonlinearity": {"periphery.dac_nonlinearity": 0.1},
    "sense_offset": {"periphery.sense_offset_sigma": 5e-3},
    "readout": {"periphery.gain_sigma": 0.05, "periphery.offset_sigma": 1.0},
    "saturation": {"periphery.saturation": 0.2, "periphery.cubic": -0.05, "periphery.compliance": 10e-6},
    "readout_noise": {"periphery.readout_noise": 1.0},
    "adc": {"periphery.adc_bits": 7},
    "adc_errors": {
        "periphery.adc_gain_sigma": 0.05,
        "periphery.adc_offset_sigma": 1.0,
        "periphery.adc_inl_sigma": 1.0,
        "periphery.adc_dnl_sigma": 0.1,
    },
    "trim": {"periphery.trim.gain": "column", "periphery.trim.offset": True},
}
"""A value of the fields of each effect."""

IN_LSB = frozenset({"readout", "readout_noise", "adc_errors"})
"""Effects that a spec cannot have without an ADC."""


def spec_of(names: Collection[str]) -> HardwareSpec:
    """The spec that has these effects, and no other."""
    fields = dict(CONTEXT)
    for name in names:
        fields.update(FIELDS[name])
    return with_effects(small_spec(), ()).with_fields(fields)


@cache
def everything() -> TileProgram:
    """A program for the spec that has every effect."""
    return compile_small(MODEL, spec_of(FIELDS))


def having(names: Collection[str]) -> TileProgram:
    """The same program, targets and ranges included, on the spec that has these effects."""
    return on_spec(everything(), spec_of(names))


def results(chip: ProgrammedChip) -> tuple[Float64, Float64]:
    """Outputs, and what every conversion makes of its current."""
    found = conversions(chip, X, seed=5)
    return outputs(chip, X, seed=5), np.concatenate([np.stack([one.codes, one.current]) for one in found], axis=2)


def same(one: ProgrammedChip, other: ProgrammedChip) -> bool:
    """Whether two chips do the same, bit for bit."""
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(results(one), results(other), strict=True))


def test_every_effect_is_here() -> None:
    assert list(FIELDS) == list(EFFECTS)
    fields = dict(spec_of(()).fields())
    for name, changed in FIELDS.items():
        for path in changed:
            assert any(path == off or path.startswith(f"{off}.") for off in EFFECTS[name]), path
            assert path in fields


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_off_is_a_spec_without_it(name: str) -> None:
    present = frozenset(EFFECTS) - (IN_LSB if name == "adc" else set())
    full, without = having(present), having(present - {name})
    off = sampled(full, seconds=NIGHT, effects=chosen_effects(without=[name]))
    assert same(off, sampled(without, seconds=NIGHT))
    assert not same(off, sampled(full, seconds=NIGHT))


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_alone_is_a_spec_with_it_alone(name: str) -> None:
    alone = {name} if name in QUANTISATION else {name} | QUANTISATION
    chip = sampled(everything(), seconds=NIGHT, effects=chosen_effects(only=alone))
    assert same(chip, sampled(having(alone), seconds=NIGHT))
    assert not same(chip, sampled(having(alone - {name}), seconds=NIGHT))


def test_all_effects_are_on_unless_told() -> None:
    program = everything()
    assert same(sampled(program, seconds=NIGHT), sampled(program, seconds=NIGHT, effects=chosen_effects()))


def test_without_effects_a_chip_computes_the_weights() -> None:
    program = having(())
    found = outputs(sampled(everything(), seconds=NIGHT, effects=()), X)
    np.testing.assert_allclose(found, X @ program.decoded_weights("layer")[0], rtol=1e-5, atol=1e-5)


def test_an_ideal_chip_has_no_effect_that_differs_from_chip_to_chip() -> None:
    program = everything()
    ideal = program_chip(program, seconds=NIGHT)
    assert same(ideal, sampled(program, seconds=NIGHT, effects=chosen_effects(without=OF_A_CHIP)))
    for name in EFFECTS:
        alone = chosen_effects(only={name} | QUANTISATION)
        one, other = (sampled(program, chip_seed, seconds=NIGHT, effects=alone) for chip_seed in (1, 2))
        alike = same(one, other) and np.array_equal(outputs(one, X, seed=1), outputs(one, X, seed=2))
        assert alike == (name not in OF_A_CHIP), name
