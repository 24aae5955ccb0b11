"""Programmed chips have the mean and the spread that each model says, cell by cell and at the output."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from agreement import in_float64
from chips import chip_of, devices, matrices, program_of, quiet_spec, result_unit, targets, volts_of
from moments import assert_moments
from scipy.special import ndtr
from small_programs import compile_small, one_node

from runtime.engine import Engine
from runtime.physics.wires import effective_matrix
from runtime.programming import ProgrammedChip
from runtime.reference import Reference

Float64 = npt.NDArray[np.float64]
Law = Callable[[Float64], Float64]
"""Standard deviation by conductance, both in uS."""
WEIGHT = np.random.default_rng(0).uniform(-1, 1, (6, 5))
RUNS = pytest.mark.parametrize("run", [Reference, Engine])
WIRES = {"array.r_word": 2.0, "array.r_bit": 2.0}


def clipped(mean: Float64, sigma: Float64, low: float = 0.0) -> tuple[Float64, Float64]:
    """Mean and variance of ``max(mean + sigma z, low)``, from the moments of a censored normal."""
    with np.errstate(divide="ignore"):
        alpha = np.where(sigma > 0, (mean - low) / sigma, np.inf)
    density = np.exp(-(alpha**2) / 2) / math.sqrt(2 * math.pi)
    above = mean - low
    first = above * ndtr(alpha) + sigma * density
    second = (above**2 + sigma**2) * ndtr(alpha) + above * sigma * density
    return low + first, second - first**2


def ranged(low: float, high: float, fields: dict[str, object]) -> dict[str, object]:
    return {"device.g_min": low * 1e-6, "device.g_max": high * 1e-6, **fields}


def spread(model: str, **parameters: object) -> dict[str, object]:
    return {"device.spread": {"model": model, **parameters}}


SPREADS: dict[str, tuple[dict[str, object], Law]] = {
    "constant": (ranged(1, 100, spread("constant", sigma=4e-6)), lambda g: np.full_like(g, 4.0)),
    "relative": (ranged(1, 100, spread("relative", share=0.4)), lambda g: 0.4 * g),
    "wan2022": (
        ranged(1, 40, spread("wan2022")),
        lambda g: 0.348 + 16.03 * g / 40 - 43.85 * (g / 40) ** 2 + 45.39 * (g / 40) ** 3 - 16.82 * (g / 40) ** 4,
    ),
    "milo": (ranged(50, 225, spread("milo")), lambda g: 4.782 - 0.0091 * g),
    "cmo_hfox": (ranged(9, 88, spread("cmo_hfox")), lambda g: 0.0113 * g + 0.0112),
    "cmo_hfox at 0.2 %": (ranged(9, 88, spread("cmo_hfox", acceptance=0.002)), lambda g: 0.00107 * g + 0.00081),
    "pcm": (ranged(0.1, 25, spread("pcm")), lambda g: 0.263 + 1.965 * g / 25 - 1.173 * (g / 25) ** 2),
}


@pytest.mark.parametrize("name", SPREADS)
def test_spread_of_each_cell(name: str) -> None:
    """Over chips, the difference of a pair has the moments of two devices that cannot fall below zero."""
    fields, law = SPREADS[name]
    program = program_of(WEIGHT, fields)
    samples = np.stack([matrices(chip_of(program, seed))[0] for seed in range(400)])
    goal = targets(program)
    mean, variance = clipped(goal, law(goal * 1e6) * 1e-6)
    assert_moments(samples * 1e6, (mean[0] - mean[1]) * 1e6, variance.sum(0) * 1e12)


@pytest.mark.parametrize("pairing", ["neighbouring_columns", "neighbouring_rows", "reference"])
def test_spread_of_each_cell_wherever_it_lies(pairing: str) -> None:
    fields = spread("relative", share=0.1)
    size = {"array.pairing": pairing, "array.rows": 12, "array.cols": 10}
    program = program_of(WEIGHT, {**fields, **size})
    samples = np.stack([matrices(chip_of(program, seed))[0] for seed in range(400)])
    goal, share = targets(program), np.array([0.1, 0.0 if pairing == "reference" else 0.1])
    assert_moments(samples * 1e6, (goal[0] - goal[1]) * 1e6, ((goal * share[:, None, None]) ** 2).sum(0) * 1e12)


def test_lognormal_spread_keeps_the_median() -> None:
    program = program_of(WEIGHT, spread("lognormal", log_sigma=0.5) | {"periphery.subtract": "after"})
    samples = np.stack([devices(chip_of(program, seed)) for seed in range(600)])
    goal = targets(program)
    assert_moments(np.log(samples / goal), np.zeros_like(goal), np.full_like(goal, 0.25))
    assert (samples.mean(0) / goal).mean() == pytest.approx(math.exp(0.125), rel=0.02)


def test_devices_stay_within_the_limits_of_their_spread() -> None:
    """At g_min half of the devices are held there; what is censored below has the moments of that."""
    fields = spread("constant", sigma=3e-6, limits="range") | {"periphery.subtract": "after"}
    program = program_of(WEIGHT, ranged(10, 200, fields))
    samples = np.stack([devices(chip_of(program, seed)) for seed in range(400)])
    lowest, highest = program.spec.device.g_min, program.spec.device.g_max
    assert samples.min() == lowest
    assert samples.max() <= highest
    low = np.isclose(targets(program), lowest)
    assert (samples == lowest)[:, low].mean() == pytest.approx(0.5, abs=0.02)
    mean, variance = clipped(targets(program)[low], np.full(low.sum(), 3e-6), 10e-6)
    assert_moments(samples[:, low] * 1e6, mean * 1e6, variance * 1e12)


def test_two_cells_of_the_same_target_differ() -> None:
    fields = ranged(20, 100, spread("constant", sigma=1e-6) | {"periphery.subtract": "after"})
    chip = chip_of(program_of(np.ones((8, 8)), fields))
    assert len(np.unique(devices(chip))) == 2 * 64


def test_failed_devices_fall_to_their_state() -> None:
    fields = {
        "device.programming": {"failure_rate": 0.2, "failed_conductance": 0.5e-6},
        "periphery.subtract": "after",
    }
    program = program_of(np.random.default_rng(1).uniform(-1, 1, (60, 50)), fields)
    chip = chip_of(program)
    failed = devices(chip) == 0.5e-6
    assert failed.mean() == pytest.approx(0.2, abs=4.75 * math.sqrt(0.16 / failed.size))
    np.testing.assert_array_equal(devices(chip)[~failed], targets(program)[~failed])
    assert (chip.report.devices, chip.report.failed) == (6000, failed.sum())


def test_write_verify_takes_pulses_until_devices_are_accepted() -> None:
    """A pulse is accepted with the share of a normal within the tolerance: a geometric number of pulses."""
    verify = {"device.programming": {"pulses": 40, "tolerance": 1e-6}, "periphery.subtract": "after"}
    program = program_of(np.full((60, 50), 0.5), ranged(20, 200, spread("constant", sigma=2e-6) | verify))
    chip = chip_of(program)
    accepted = 2 * ndtr(0.5) - 1
    count, mean = chip.report.devices, 1 / accepted
    error = 4.75 * math.sqrt((1 - accepted) / accepted**2 / count)
    assert chip.report.pulses / count == pytest.approx(mean, abs=error)
    assert chip.report.unconverged <= 2
    assert (np.abs(devices(chip) - targets(program)) > 1.000001e-6).sum() == chip.report.unconverged


NOISES: dict[str, tuple[dict[str, object], float, Law]] = {
    "constant": (ranged(1, 100, {"device.read_noise": {"model": "constant", "sigma": 3e-6}}), 0.0, lambda g: 3 + 0 * g),
    "proportional": (
        ranged(1, 100, {"device.read_noise": {"model": "proportional", "share": 0.3}}),
        0.0,
        lambda g: 0.3 * g,
    ),
    "pcm": (
        ranged(0.1, 25, {"device.read_noise": {"model": "pcm"}}),
        100.0,
        lambda g: np.minimum(0.0088 / np.maximum((g / 25) ** 0.65, 0.001), 0.2) * g * math.sqrt(math.log(120 / 5e-7)),
    ),
    "cmo_hfox": (
        ranged(9, 88, {"device.read_noise": {"model": "cmo_hfox"}}),
        100.0,
        lambda g: 0.0277 * np.log10(g) * math.sqrt(math.log(100 / 2e-6)),
    ),
}


def reads(chip: ProgrammedChip, x: Float64, run: Any, count: int = 6000) -> Float64:
    """Currents of many reads of one vector, amperes."""
    repeated = np.repeat(x[None].astype(np.float32), count, axis=0)
    options = {"dtype": torch.float64} if run is Engine else {}
    found: Float64 = run(chip, seed=3, **options)(repeated)[0]
    return found / result_unit(chip)


@RUNS
@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"])
@pytest.mark.parametrize("name", NOISES)
def test_read_noise_at_the_output(name: str, pairing: str, run: Any) -> None:
    """Mean and variance of columns' currents over reads of one vector: sums of the cells' clipped moments."""
    fields, seconds, law = NOISES[name]
    size = {"array.pairing": pairing, "array.rows": 12, "array.cols": 10}
    program = in_float64(program_of(WEIGHT, {**fields, **size}))
    chip = chip_of(program, seconds=seconds)
    goal = targets(program)
    mean, variance = clipped(goal, law(goal * 1e6) * 1e-6)
    if pairing == "reference":
        mean[1], variance[1] = goal[1], 0.0
    x = np.random.default_rng(4).uniform(-1, 1, 6)
    volts = volts_of(chip, x[None].astype(np.float32))[0]
    samples = reads(chip, x, run) * 1e6
    assert_moments(samples, volts @ (mean[0] - mean[1]) * 1e6, volts**2 @ variance.sum(0) * 1e12)


@RUNS
@pytest.mark.parametrize("correlation", ["per_read", "per_vector"])
@pytest.mark.parametrize("signed", ["bipolar", "two_phase"])
def test_digits_share_the_noise_of_their_vector_or_draw_anew(signed: str, correlation: str, run: Any) -> None:
    """Per vector a cell is off by the same in all digits of a phase, as if it had been read once, at full input."""
    fields = {
        "device.read_noise": {"model": "proportional", "share": 0.2, "correlation": correlation},
        "periphery.dac_bits": 3,
        "periphery.input_bits": 7,
        "periphery.signed": signed,
    }
    program = in_float64(program_of(WEIGHT, fields))
    chip = chip_of(program)
    x = np.random.default_rng(4).uniform(-1, 1, 6).astype(np.float32).astype(np.float64)
    codes = chip.input_codes("layer", x[None])[0]
    base, top, v_read = (4 if signed == "bipolar" else 8), 63, 0.2
    magnitude = np.abs(codes)
    digits = [magnitude // base**number % base for number in range(3 if signed == "bipolar" else 2)]
    power = sum((base**number * digit) ** 2 for number, digit in enumerate(digits))
    volts = (magnitude if correlation == "per_vector" else np.sqrt(power)) / top * v_read
    mean, variance = clipped(targets(program), 0.2 * targets(program))
    expected = codes / top * v_read @ (mean[0] - mean[1])
    assert_moments(reads(chip, x, run) * 1e6, expected * 1e6, volts**2 @ variance.sum(0) * 1e12)


@RUNS
def test_fast_traps_are_noise(run: Any) -> None:
    """Their mean is in the matrix, and each read finds a trap occupied or not; what clipped noise adds comes on top."""
    fields = {
        "device.telegraph": {"amplitude": 0.4, "occupancy": 0.3},
        "device.read_noise": {"model": "proportional", "share": 0.1},
    }
    program = in_float64(program_of(WEIGHT, fields))
    chip, goal = chip_of(program), targets(program)
    mean, variance = goal * (1 - 0.4 * 0.3), (goal * 0.4) ** 2 * 0.3 * 0.7
    np.testing.assert_allclose(matrices(chip)[0], mean[0] - mean[1], rtol=1e-9, atol=1e-15)
    x = np.random.default_rng(4).uniform(-1, 1, 6)
    volts = volts_of(chip, x[None].astype(np.float32))[0]
    wanted = volts**2 @ (variance + (0.1 * goal) ** 2).sum(0)
    assert_moments(reads(chip, x, run) * 1e6, volts @ (mean[0] - mean[1]) * 1e6, wanted * 1e12)


def test_slow_traps_hold_their_state() -> None:
    """Between reads nothing changes; over seeds the share p is occupied, and its correlation decays with time."""
    telegraph = {"amplitude": 0.25, "occupancy": 0.3, "correlation_time": 10.0}
    program = program_of(np.full((50, 40), 0.5), {"device.telegraph": telegraph, "periphery.subtract": "after"})
    goal = targets(program)
    occupied = []
    for seconds in (0.0, 5.0, 1e6):
        chip = chip_of(program, simulate=1, seconds=seconds)
        first = chip.program.tables.tiles[0].name
        assert all(channel.variance is None for channel in chip.tiles[first].channels)
        ratio = devices(chip) / goal
        assert np.isclose(ratio, 1).sum() + np.isclose(ratio, 0.75).sum() == ratio.size
        occupied.append(ratio < 0.9)
    share = 4.75 * math.sqrt(0.21 / occupied[0].size)
    for state in occupied:
        assert state.mean() == pytest.approx(0.3, abs=share)
    error = 4.75 / math.sqrt(occupied[0].size)
    for state, decay in zip(occupied[1:], (math.exp(-0.5), 0.0), strict=True):
        found = np.corrcoef(occupied[0].ravel(), state.ravel())[0, 1]
        assert found == pytest.approx(decay, abs=error)


@pytest.mark.parametrize("name", NOISES)
def test_read_noise_behind_wires(name: str) -> None:
    """Of two 64x64 arrays with 2 ohm a segment: spread and mean of reads are those of sampling every cell."""
    fields, seconds, law = NOISES[name]
    generator = np.random.default_rng(5)
    weight = np.clip(0.4 * generator.standard_normal((64, 64)), -1, 1)
    program = in_float64(program_of(weight, {**fields, **WIRES}))
    chip = chip_of(program, seconds=seconds)
    goal = targets(program)
    sigma = law(goal * 1e6) * 1e-6
    sampled = np.maximum(goal + sigma * generator.standard_normal((250, 2, 64, 64)), 0)
    effective = effective_matrix(sampled, 2.0, 2.0)
    differences = effective[:, 0] - effective[:, 1]
    for x in generator.standard_normal((3, 64)).astype(np.float32).astype(np.float64):
        volts = volts_of(chip, x[None])[0]
        wanted = differences @ volts
        found = reads(chip, x, Reference, 1000)
        ratio = math.sqrt(found.var(0).mean() / wanted.var(0).mean())
        assert ratio == pytest.approx(1, abs=0.03)
        error = 4.75 * np.sqrt(found.var(0) / len(found) + wanted.var(0) / len(wanted))
        assert (np.abs(found.mean(0) - wanted.mean(0)) <= error + 1e-3 * np.abs(wanted.mean(0)).max()).all()


def test_wires_without_noise_are_exact() -> None:
    """Reading through them is the product with the exact effective matrix of what was programmed."""
    fields = {**WIRES, "array.r_driver": 50.0, "array.r_sense": 20.0, **spread("constant", sigma=2e-6)}
    program = in_float64(program_of(WEIGHT, {**fields, "periphery.subtract": "after"}))
    chip = chip_of(program, 3)
    bare = chip_of(program, 3, effects=["spread"])
    wanted = effective_matrix(devices(bare), 2.0, 2.0, 50.0, 20.0).swapaxes(1, 2)
    np.testing.assert_allclose(devices(chip), wanted, rtol=1e-12)


def test_access_and_temperature_change_every_device() -> None:
    """Conductances grow with temperature, then a resistance in series bounds them."""
    fields = {
        "device.temperature": 75.0,
        "device.temperature_coefficient": 2e-3,
        "device.r_access": 1e4,
        "periphery.subtract": "after",
    }
    program = program_of(WEIGHT, fields)
    hot = targets(program) * 1.1
    np.testing.assert_allclose(devices(chip_of(program)), 1 / (1 / hot + 1e4), rtol=1e-12)


def test_noise_behind_an_access_resistance_is_smaller() -> None:
    """Against sampling every device in series with its transistor."""
    noise = {"device.read_noise": {"model": "proportional", "share": 0.02}, "device.r_access": 5e3}
    program = in_float64(program_of(WEIGHT, noise))
    chip, goal = chip_of(program), targets(program)
    generator = np.random.default_rng(1)
    sampled = goal * (1 + 0.02 * generator.standard_normal((20000, *goal.shape)))
    sampled = sampled / (1 + sampled * 5e3)
    x = generator.uniform(-1, 1, 6)
    volts = volts_of(chip, x[None].astype(np.float32))[0]
    wanted = np.einsum("r,nrc->nc", volts, sampled[:, 0] - sampled[:, 1])
    np.testing.assert_allclose(reads(chip, x, Reference).std(0), wanted.std(0), rtol=0.06)


def test_a_virtual_ground_s_offset_draws_current_from_every_row() -> None:
    """``-V sum_i G_ij`` in each column of the array, with or without input."""
    fields = {"periphery.sense_offset_sigma": 5e-3, "periphery.subtract": "after"}
    program = program_of(WEIGHT, fields)
    chip = chip_of(program, 2)
    offsets = []
    for channel in chip.tiles[program.tables.tiles[0].name].channels:
        assert channel.static is not None
        offsets.append(channel.errors.sense_offset)
        np.testing.assert_allclose(channel.static, -offsets[-1] * channel.matrix.sum(0), rtol=1e-12)
    assert len(np.unique(offsets)) == 2 * program.tables.tiles[0].cols


@pytest.mark.parametrize("field", ["gain", "offset", "sense_offset", "adc_gain", "adc_offset", "adc_bow", "adc_steps"])
def test_errors_of_columns_have_their_spread(field: str) -> None:
    """One draw for each column, or for each converter that columns share."""
    sigmas = {
        "gain_sigma": 0.05,
        "offset_sigma": 0.5,
        "sense_offset_sigma": 2e-3,
        "adc_gain_sigma": 0.02,
        "adc_offset_sigma": 0.7,
        "adc_inl_sigma": 1.5,
        "adc_dnl_sigma": 0.4,
    }
    names = {"adc_bow": "adc_inl_sigma", "adc_steps": "adc_dnl_sigma"}
    fields = {f"periphery.{name}": value for name, value in sigmas.items()}
    shape = {"array.rows": 2, "array.cols": 2400, "periphery.columns_per_adc": 3, "periphery.adc_bits": 6}
    program = compile_small(one_node("MatMul", np.ones((2, 2400)), (2,)), quiet_spec({**fields, **shape}))
    found = getattr(chip_of(program).tiles[program.tables.tiles[0].name].channels[0].errors, field)
    sigma = sigmas[names.get(field, f"{field}_sigma")]
    if field.startswith("adc"):
        assert (found.reshape(800, 3, -1) == found.reshape(800, 3, -1)[:, :1]).all()
        found = found.reshape(800, 3, -1)[:, 0].ravel()
    variance = sigma**2 / (2 if field == "adc_steps" else 1)
    assert_moments(found[:, None], np.zeros(1), np.array([variance]))
