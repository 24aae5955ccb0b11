"""Reference and engine compute the same on a chip as it comes from the line, whatever effects are on."""

import numpy as np
import pytest
import torch
from agreement import assert_agree, assert_nearly_agree, fixed_noise, in_float64, sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import (
    EVERY_EFFECT,
    SmallModel,
    compile_small,
    map_small,
    matmul,
    one_node,
    physical_specs,
    place_and_emit,
    small_models,
    small_spec,
)

from hwspec.effects import EFFECTS, active_effects
from hwspec.spec import HardwareSpec
from runtime.check import check_program
from runtime.engine import Engine
from runtime.reference import Reference

SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.sampled_from([0.0, 0.5, 3600.0])
PAIRINGS = ["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"]
CONV = one_node("Conv", np.random.default_rng(3).standard_normal((24, 8, 3, 3)), (8, 12, 12), pads=[1, 1, 1, 1])
PLAIN = {
    "array.unselected": "grounded",
    "periphery.saturation": 0.0,
    "periphery.cubic": 0.0,
    "periphery.compliance": None,
    "periphery.dac_nonlinearity": 0.0,
    "device.read_noise": {"correlation": "per_read"},
}
"""Without what bends, so that gains, offsets and noise fold into the matrix."""


@settings(max_examples=120, deadline=None, derandomize=True)
@given(small_models(), physical_specs(), SEEDS, TIMES)
def test_engine_agrees_whatever_is_on(model: SmallModel, spec: HardwareSpec, seed: int, seconds: float) -> None:
    quantized = map_small(model, spec, "quantize")
    program = in_float64(place_and_emit(quantized, np.random.default_rng(seed), predistort=bool(seed % 2)))
    check_program(program)
    assert_agree(sampled(program, seed, seconds), model.inputs(seed))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 9), st.booleans(), physical_specs(networks=True), SEEDS)
def test_engine_agrees_where_no_matrix_describes_an_array(
    rows: int, cols: int, positive: bool, spec: HardwareSpec, seed: int
) -> None:
    model = matmul(rows, cols, seed=seed, positive=positive)
    quantized = map_small(model, spec, "quantize")
    program = in_float64(place_and_emit(quantized, np.random.default_rng(seed)))
    chip = sampled(program, seed)
    assert any(channel.networks for tile in chip.tiles.values() for channel in tile.channels)
    assert_agree(chip, model.inputs(seed))


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("signed", ["bipolar", "two_phase"])
def test_engine_agrees_with_all_effects_at_once(pairing: str, signed: str) -> None:
    """Everything but a law that is not linear, on several tiles an array, read a while after programming."""
    fields = {"array.rows": 12, "array.cols": 10, "array.pairing": pairing, "periphery.signed": signed}
    subtract = "before" if pairing == "neighbouring_rows" else "after"
    spec = small_spec({**EVERY_EFFECT, **fields, "array.slices": 2, "periphery.subtract": subtract})
    assert set(active_effects(spec)) == set(EFFECTS) - {"iv"}
    model = matmul(17, 7)
    program = in_float64(place_and_emit(map_small(model, spec, "quantize"), np.random.default_rng(1), predistort=True))
    chip = sampled(program, 5, seconds=100.0)
    assert chip.report.failed > 0
    assert chip.report.pulses > chip.report.devices
    assert_agree(chip, model.inputs(2, batch=20))


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("serial", [False, True])
def test_engine_agrees_in_float32(pairing: str, bent: bool, serial: bool) -> None:
    """Thresholds of their own, noise of each kind, wires: the larger rounding moves few codes, and by one."""
    digits = {"periphery.dac_bits": 3, "periphery.input_bits": 7} if serial else {"periphery.dac_bits": 8}
    fields = {"array.rows": 32, "array.cols": 16, "array.pairing": pairing, "device.levels": 16}
    more = {} if bent else PLAIN
    spec = small_spec({**EVERY_EFFECT, "periphery.input_bits": None, **fields, **digits, **more})
    assert_nearly_agree(sampled(compile_small(CONV, spec), 3), CONV.inputs(5, batch=2), 20_000)


def test_a_seed_of_reads_gives_the_same_noise_again() -> None:
    model = matmul(12, 9)
    chip = sampled(in_float64(compile_small(model, small_spec({**EVERY_EFFECT, **PLAIN}))))
    x = model.inputs(1)
    for run in (Reference, Engine):
        first, again, other = (run(chip, seed=seed)(x)[0] for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_reads_of_one_run_draw_anew() -> None:
    """Each call, and each window of a call, has noise of its own."""
    model = matmul(12, 9)
    chip = sampled(
        in_float64(compile_small(model, small_spec({"periphery.adc_bits": None, "periphery.offset_sigma": 0})))
    )
    x = np.repeat(model.inputs(1, batch=1), 4, axis=0)
    for run in (Reference(chip), Engine(chip, dtype=torch.float64)):
        found = np.concatenate([run(x)[0], run(x)[0]])
        assert len(np.unique(found[:, 0])) == 8


def test_ideal_chips_are_read_without_noise() -> None:
    from runtime.programming import program_chip

    model = matmul(12, 9)
    program = in_float64(compile_small(model, small_spec({**EVERY_EFFECT, **PLAIN})))
    x = model.inputs(1)
    chip = program_chip(program)
    wanted = Reference(chip)(x)[0]
    np.testing.assert_array_equal(Reference(chip, seed=5, noise=fixed_noise)(x)[0], wanted)
    np.testing.assert_allclose(Engine(chip, dtype=torch.float64, seed=5)(x)[0], wanted, rtol=1e-9, atol=1e-12)
