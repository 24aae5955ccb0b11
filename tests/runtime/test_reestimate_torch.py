"""Columns re-estimated on a chip: gains and biases that bring its results closest to the expected ones."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from chips import chip_of, program_of, quiet_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from mapped_programs import with_body, with_residue
from small_programs import SmallModel, compile_small, one_node, small_models, two_matmuls

from compiler.compile import CompileOptions, finish, run_compile
from compiler.frontend import load_model
from hwspec.chip import Chip
from hwspec.errors import DataError, ProgramError
from runtime.engine import Engine
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, program_chip
from runtime.reestimate_torch import reestimated
from runtime.reference import Reference

WEIGHT = np.random.default_rng(0).uniform(-1, 1, (16, 12))
X = np.random.default_rng(1).uniform(-1, 1, (300, 16)).astype(np.float32)
FRESH = np.random.default_rng(2).uniform(-1, 1, (300, 16)).astype(np.float32)
FAILED: Mapping[str, object] = {"failures.stuck_hrs.rate": 0.15, "failures.stuck_lrs.rate": 0.05}


def found(chip: ProgrammedChip, x: npt.NDArray[np.float32] = X) -> ProgrammedChip:
    return reestimated(chip, program_chip(chip.program), [{"x": x}])


def told(chip: ProgrammedChip) -> Mapping[str, tuple[float, float]]:
    assert chip.report.reestimated is not None
    return chip.report.reestimated


def error(chip: ProgrammedChip, x: npt.NDArray[np.float32] = FRESH) -> float:
    wanted = Engine(program_chip(chip.program))(x)[0]
    return float(np.linalg.norm(Engine(chip)(x)[0] - wanted) / np.linalg.norm(wanted))


def assert_settled(chip: ProgrammedChip, x: npt.NDArray[np.float32]) -> None:
    """Once re-estimated, a chip's columns are re-estimated to what they are: every layer saw the corrected inputs."""
    once = found(chip, x)
    twice = found(once, x)
    for layer, (before, after) in told(once).items():
        assert after <= before + 1e-5
        assert told(twice)[layer] == pytest.approx((after, after), rel=1e-3, abs=1e-5)


def test_errors_of_columns_are_undone() -> None:
    """Without rounding and noise exactly: gains of the readout, and an offset before it."""
    chip = chip_of(program_of(WEIGHT, {"periphery.gain_sigma": 0.1, "periphery.sense_offset_sigma": 3e-3}), 3)
    corrected = found(chip)
    (tile,) = corrected.tiles.values()
    np.testing.assert_allclose(tile.gain * (1 + tile.channels[0].errors.gain), 1, rtol=1e-5)
    assert error(chip) > 0.05
    assert error(corrected) < 1e-5
    before, after = told(corrected)["layer"]
    assert before == pytest.approx(error(chip, X), rel=1e-3)
    assert after < 1e-5


def test_results_are_nearest_in_least_squares() -> None:
    """With failed devices no other gain or offset of a channel leaves less; the reference gives the same."""
    chip = found(chip_of(program_of(WEIGHT, FAILED), 3))
    wanted = Engine(program_chip(chip.program))(X)[0].astype(np.float64)
    results = Reference(chip)(X)[0].astype(np.float64)
    np.testing.assert_allclose(Engine(chip)(X)[0], results, rtol=0, atol=1e-5)
    left = results - wanted
    np.testing.assert_allclose(left.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose((left * results).mean(0), 0, atol=1e-5)
    assert np.abs(left).max() > 0.1
    assert error(chip) < error(chip_of(chip.program, 3))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(small_models(), st.integers(0, 10**6))
def test_every_kind_of_layer_settles(model: SmallModel, seed: int) -> None:
    """Products, convolutions with groups, and transposed ones, whose patches overlap."""
    program = compile_small(model, quiet_spec(FAILED))
    assert_settled(chip_of(program, seed), np.tile(model.inputs(seed), (20, *[1] * len(model.shape))))


def test_a_layer_is_re_estimated_behind_corrected_ones() -> None:
    program = compile_small(two_matmuls(), quiet_spec(FAILED))
    assert_settled(chip_of(program, 2), X[:, :6])


@pytest.mark.parametrize("kind", ["residue", "copies"])
def test_what_a_gain_would_spoil_gets_an_offset_alone(kind: str) -> None:
    if kind == "residue":
        program = with_residue(program_of(WEIGHT, FAILED), 0.3, np.random.default_rng(0))
        x = X
    else:
        weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3))
        model = one_node("Conv", weight, (3, 6, 6), bias=np.arange(4.0))
        options = CompileOptions(copies={"layer": 3})
        program = finish(run_compile(load_model(model.proto), quiet_spec(FAILED), options, None))
        x = np.random.default_rng(3).standard_normal((40, 3, 6, 6)).astype(np.float32)
    chip = chip_of(program, 3)
    corrected = found(chip, x)
    for name, tile in corrected.tiles.items():
        np.testing.assert_array_equal(tile.gain, chip.tiles[name].gain)
    left = Engine(corrected)(x)[0] - Engine(program_chip(program))(x)[0]
    axes = tuple(axis for axis in range(left.ndim) if axis != 1)
    np.testing.assert_allclose(left.mean(axes), 0, atol=1e-5)
    assert_settled(chip, x)


def test_a_column_without_signal_keeps_its_gain() -> None:
    """What is left of it is rounding, which no gain makes a signal of."""
    program = program_of(WEIGHT, {"periphery.adc_bits": 8, "failures.stuck_hrs.rate": 0.01})
    chip = chip_of(program, 3)
    (name,) = chip.tiles
    channel = chip.tiles[name].channels[0]
    matrix = channel.matrix.copy()
    matrix[:, 5] = 0.0
    dead = replace(chip, tiles={name: replace(chip.tiles[name], channels=(replace(channel, matrix=matrix),))})
    gain = found(dead).tiles[name].gain
    assert gain[5] == pytest.approx(1)
    assert np.ptp(np.delete(gain, 5)) > 1e-4


def test_exact_layers_stay_as_they_are() -> None:
    program = compile_small(two_matmuls(), quiet_spec(FAILED))
    chip = program_chip(program, Chip.sample(program.spec, program.arrays, 2), exact_layers=["first"])
    corrected = found(chip, X[:, :6])
    assert list(told(corrected)) == ["second"]
    assert corrected.bias("first").tolist() == chip.bias("first").tolist()
    whole = found(chip_of(program, 2), X[:, :6])
    kept = found(replace(whole, exact_layers=frozenset(["first"])), X[:, :6])
    np.testing.assert_array_equal(kept.bias_shift["first"], whole.bias_shift["first"])


def test_noise_of_reads_is_that_of_the_seed() -> None:
    fields = {"device.read_noise": {"model": "proportional", "share": 0.1, "correlation": "per_read"}}
    program = program_of(WEIGHT, {**FAILED, **fields})
    chip, expected = chip_of(program, 3), program_chip(program)
    one, same, other = (reestimated(chip, expected, [{"x": X}], seed=seed).bias("layer") for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_several_batches_are_one() -> None:
    chip: ProgrammedChip = chip_of(program_of(WEIGHT, FAILED), 3)
    expected = program_chip(chip.program)
    halves = reestimated(chip, expected, [{"x": X[:100]}, {"x": X[100:]}])
    np.testing.assert_allclose(halves.bias("layer"), found(chip).bias("layer"), atol=1e-6)


def test_data_that_do_not_do_are_refused() -> None:
    program: TileProgram = program_of(WEIGHT, FAILED)
    chip, expected = chip_of(program, 3), program_chip(program)
    with pytest.raises(DataError, match="must have samples"):
        reestimated(chip, expected, [])
    with pytest.raises(DataError, match="shape"):
        reestimated(chip, expected, [{"x": X[:, :5]}])
    with pytest.raises(DataError, match="finite"):
        reestimated(chip, expected, [{"x": np.full_like(X, np.nan)}])
    twice = with_body(program, lambda loop: [*loop.body, loop.body[-1]])
    with pytest.raises(ProgramError, match="layer 'layer' must store one result"):
        found(chip_of(twice, 3))
