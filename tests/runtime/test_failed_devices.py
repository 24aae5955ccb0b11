"""Failed devices on a chip: what they conduct, what gates them off, which join them in time, what programming tells."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from chips import chip_of, devices, program_of, quiet_spec, targets
from hypothesis import given, settings
from hypothesis import strategies as st
from mapped_programs import FAILED, chip_with, fault_map, mapped_for, with_gated
from small_programs import EVERY_EFFECT, TECHNOLOGIES, compile_small, matmul, small_spec
from test_chip_identity import assert_same_chip

from hwspec.chip import Chip
from hwspec.device import Device
from hwspec.effects import EFFECTS
from hwspec.failures import Failures, Retention, State
from hwspec.fault_map import FaultMap
from hwspec.reach import failed_share, reachable_interval, reachable_set
from runtime.physics import faults
from runtime.physics.cells import Cells, Moment, device_cells
from runtime.physics.retention import lost_devices
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, program_chip
from runtime.quantize import WeightCode, is_off, off_target, target_siemens

Float64 = npt.NDArray[np.float64]
SHAPE = (16, 24)
WEIGHT = np.random.default_rng(0).uniform(-1, 1, (8, 6))
TOLERANT: Mapping[str, object] = {"device.programming.tolerance": 1e-6}
AFTER: Mapping[str, object] = {"periphery.subtract": "after"}
ALL: Mapping[str, object] = {
    **EVERY_EFFECT,
    "array.pairing": "two_arrays",
    "periphery.trim": {"gain": "none", "offset": False},
}


def device_of(**fields: object) -> Device:
    return Device.model_validate({"g_min": 1e-6, "g_max": 100e-6, "levels": None, **fields})


def cells_of(
    device: Device,
    stuck: Float64 | None = None,
    *,
    target: Float64 | None = None,
    used: npt.NDArray[np.bool_] | None = None,
    off: npt.NDArray[np.bool_] | None = None,
    failures: Failures | None = None,
    seconds: float = 0.0,
    chip_seed: int = 3,
) -> Cells:
    aims = np.random.default_rng(5).uniform(device.g_min, device.g_max, SHAPE) if target is None else target
    on = np.ones(SHAPE, bool) if used is None else used
    moment = Moment(chip_seed, 7, seconds)
    return device_cells(device, aims, on, 2e-6, 4, moment, stuck=stuck, off=off, failures=failures or Failures())


def some_stuck(conductance: float, share: float = 0.3) -> Float64:
    return np.where(np.random.default_rng(1).random(SHAPE) < share, conductance, np.nan)


# What failed devices conduct.


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(TECHNOLOGIES)),
    st.sampled_from([0.0, 1e-6, 100e-6, 400e-6]),
    st.sampled_from([0.0, 1.0, 1e5]),
    st.data(),
)
def test_a_failed_device_conducts_what_it_does(name: str, siemens: float, seconds: float, data: st.DataObject) -> None:
    """Whatever it was programmed to, and however good devices spread and drift; no model refuses it."""
    low, high, spreads, drifts, noises = TECHNOLOGIES[name]
    spread, drift = data.draw(st.sampled_from(spreads)), data.draw(st.sampled_from(drifts))
    device = device_of(
        g_min=low * 1e-6,
        g_max=high * 1e-6,
        spread={"model": spread, "sigma": 1e-6 if spread == "constant" else 0.0, "share": 0.1 * (spread == "relative")}
        | ({"log_sigma": 0.2} if spread == "lognormal" else {}),
        drift={"model": drift},
        programming={"failure_rate": 0.1},
    )
    stuck = some_stuck(siemens)
    found, without = cells_of(device, stuck, seconds=seconds), cells_of(device, seconds=seconds)
    failed = ~np.isnan(stuck)
    np.testing.assert_array_equal(found.conductance[failed], siemens)
    np.testing.assert_array_equal(found.conductance[~failed], without.conductance[~failed])
    noise = data.draw(st.sampled_from(noises))
    noisy = device.model_copy(
        update={
            "read_noise": device.read_noise.model_validate(
                {"model": noise, "sigma": 1e-6 * (noise == "constant"), "share": 0.05 * (noise == "proportional")}
            )
        }
    )
    read = cells_of(noisy, stuck, seconds=seconds)
    assert np.isfinite(read.conductance).all()
    assert (read.conductance >= 0).all()
    if read.variance is not None:
        assert np.isfinite(read.variance).all()
        assert (read.variance >= 0).all()
        if noise in ("pcm", "cmo_hfox"):
            highest = cells_of(noisy, np.where(failed, high * 1e-6, np.nan), seconds=seconds)
            assert highest.variance is not None
            assert (read.variance[failed] <= highest.variance[failed].max() * 1.1).all()


def test_temperature_access_and_telegraph_noise_act_on_failed_devices_too() -> None:
    plain = device_of(temperature=75, temperature_coefficient=2e-3, r_access=1e3)
    stuck = some_stuck(50e-6)
    failed = ~np.isnan(stuck)
    warm = 50e-6 * (1 + 2e-3 * 50)
    np.testing.assert_allclose(cells_of(plain, stuck).conductance[failed], warm / (1 + warm * 1e3), rtol=1e-12)
    trapped = device_of(telegraph={"amplitude": 0.2, "occupancy": 0.5})
    found = cells_of(trapped, stuck)
    np.testing.assert_allclose(found.conductance[failed], 50e-6 * 0.9, rtol=1e-12)
    assert found.variance is not None
    np.testing.assert_allclose(found.variance[failed], (50e-6 * 0.2) ** 2 / 4, rtol=1e-12)


def test_failed_devices_that_no_tile_uses_conduct_too() -> None:
    stuck, used = some_stuck(50e-6), np.zeros(SHAPE, bool)
    used[:4] = True
    found = cells_of(device_of(), stuck, used=used).conductance
    np.testing.assert_array_equal(found[4:], np.where(np.isnan(stuck), 2e-6, stuck)[4:])


def test_write_verify_spends_its_pulses_on_failed_devices() -> None:
    """Unless they lie within tolerance of their target, which the first check finds."""
    device = device_of(
        spread={"model": "constant", "sigma": 1e-6}, programming={"pulses": 9, "tolerance": 2e-6, "failure_rate": 0.5}
    )
    stuck = some_stuck(50e-6)
    target = np.where(np.arange(SHAPE[1]) % 2, 51e-6, 60e-6) * np.ones(SHAPE)
    found, failed = cells_of(device, stuck, target=target), ~np.isnan(stuck)
    near = np.abs(target - 50e-6) <= 2e-6
    assert (found.pulses[failed & near] == 1).all()
    assert (found.pulses[failed & ~near] == 9).all()
    np.testing.assert_array_equal(found.converged[failed], near[failed])
    assert not found.failed[failed].any()
    assert found.failed.any()
    once = cells_of(device_of(), stuck)
    assert (once.pulses == 1).all()
    assert once.converged.all()


def test_programming_tells_how_many_failed_devices_hold_weights() -> None:
    """Those on lines that no tile uses do not count."""
    program = program_of(
        WEIGHT, {**AFTER, "array.rows": 10, "array.cols": 9, "device.programming.pulses": 4, **TOLERANT}
    )
    failed = {(0, 0, 0): (State.UNFORMED, 0.0), (1, 3, 5): (State.OVERFORMED, 4e-4), (0, 9, 8): (State.OVERFORMED, 1.0)}
    report = program_chip(program, chip_with(fault_map(program, failed))).report
    assert (report.stuck, report.unconverged, report.failed) == (2, 2, 0)
    assert report.pulses == report.devices - 2 + 2 * 4


# Chips.


def failing_program(fields: Mapping[str, object] | None = None) -> TileProgram:
    return compile_small(matmul(20, 12, seed=2), small_spec({**ALL, **FAILED, "device.levels": 4, **(fields or {})}))


def test_failures_elsewhere_change_no_bit_of_a_chip() -> None:
    program = failing_program()
    states = np.zeros((program.arrays + 1, 8, 8), np.uint8)
    states[-1, 2, 3] = State.OVERFORMED
    chip = Chip(rows=8, cols=8, arrays=program.arrays + 1, seed=5, faults=FaultMap(states, np.array([1e-3])))
    for seconds in (0.0, 100.0):
        found = program_chip(program, chip, seconds=seconds)
        assert_same_chip(found, program_chip(program, replace(chip, faults=None), seconds=seconds))


def test_failures_and_retention_can_be_switched_off() -> None:
    program = failing_program()
    chip = Chip.sample(program.spec, program.arrays, 5)
    assert chip.faults is not None
    good = replace(chip, faults=None)
    without = frozenset(EFFECTS) - {"failures"}
    assert_same_chip(program_chip(program, chip, effects=without), program_chip(program, good, effects=without))
    assert program_chip(program, chip).report.stuck > 0
    assert program_chip(program, chip, effects=without).report.stuck == 0
    still = program_chip(program, chip, effects=frozenset(EFFECTS) - {"retention"}, seconds=7200)
    assert largest_difference(still, program_chip(program, chip, seconds=7200)) > 0


def largest_difference(one: ProgrammedChip, other: ProgrammedChip) -> float:
    return max(
        float(np.abs(mine.matrix - theirs.matrix).max())
        for name, tile in one.tiles.items()
        for mine, theirs in zip(tile.channels, other.tiles[name].channels, strict=True)
    )


def test_the_nominal_chip_has_what_a_program_was_mapped_around() -> None:
    program = program_of(WEIGHT, {**AFTER, **FAILED})
    chip = Chip.sample(program.spec, program.arrays + 2, 1)
    mapped = mapped_for(program, chip)
    assert program.nominal_chip == Chip.ideal(program.spec, program.arrays)
    assert mapped.nominal_chip == replace(chip, seed=None)
    found, name = program_chip(mapped), mapped.tables.tiles[0].name
    assert found.report.stuck > 0
    np.testing.assert_array_equal(devices(found), np.stack(mapped.assumed_conductances(name)))
    np.testing.assert_array_equal(devices(program_chip(program)), targets(program))
    np.testing.assert_array_equal(devices(program_chip(mapped, seconds=1e9)), devices(found))
    stuck = np.stack(mapped.stuck_conductances(name))
    assert 0 < (~np.isnan(stuck)).sum() == found.report.stuck
    np.testing.assert_array_equal(np.stack(mapped.failed_states(name)) != State.OK, ~np.isnan(stuck))


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"])
def test_assumed_conductances_lie_where_the_devices_do(pairing: str) -> None:
    fields = {**FAILED, "array.pairing": pairing, "array.rows": 16, "array.cols": 12}
    program = program_of(WEIGHT, fields)
    mapped = mapped_for(program, Chip.sample(program.spec, program.arrays, 1))
    for tile in mapped.tables.tiles:
        sides = mapped.assumed_conductances(tile.name)
        for (number, rows, cols), side in zip(mapped.places(tile.name).values(), sides, strict=False):
            assert mapped.faults is not None
            stuck = mapped.faults.stuck(number)[np.ix_(rows, cols)]
            np.testing.assert_array_equal(side[~np.isnan(stuck)], stuck[~np.isnan(stuck)])
        if pairing == "reference":
            assert (sides[1] == mapped.spec.reference_conductance).all()


# Gates.


@pytest.mark.parametrize(("levels", "dtype"), [(4, "uint8"), (255, "uint8"), (256, "uint16"), (65536, "uint32")])
def test_the_code_of_a_gated_device_follows_those_of_the_levels(levels: int, dtype: str) -> None:
    code = WeightCode(device_of(levels=levels))
    assert code.dtype == np.dtype(dtype)
    codes = np.array([0, levels - 1, off_target(code.device)], code.dtype)
    np.testing.assert_array_equal(is_off(code.device, codes), [False, False, True])
    np.testing.assert_allclose(target_siemens(code.device, codes), [1e-6, 100e-6, 0.0])


def test_a_continuous_target_of_nothing_gates_a_device_off() -> None:
    assert WeightCode(device_of()).dtype == np.float64
    np.testing.assert_array_equal(is_off(device_of(), np.array([0.0, 1e-6])), [True, False])


def test_a_gated_device_conducts_nothing() -> None:
    """Neither spread, drift, noise nor failure makes it, and no pulse is spent on it."""
    device = device_of(
        spread={"model": "constant", "sigma": 1e-6},
        read_noise={"model": "constant", "sigma": 1e-6},
        telegraph={"amplitude": 0.1},
        programming={"pulses": 5, "tolerance": 1e-7, "failure_rate": 0.5},
    )
    off = np.random.default_rng(2).random(SHAPE) < 0.5
    found, without = cells_of(device, some_stuck(1e-3), off=off), cells_of(device, some_stuck(1e-3))
    assert found.variance is not None
    assert without.variance is not None
    for mine, theirs in ((found.conductance, without.conductance), (found.variance, without.variance)):
        assert not mine[off].any()
        np.testing.assert_array_equal(mine[~off], theirs[~off])
    assert not found.pulses[off].any()
    assert found.converged[off].all()
    assert not found.failed[off].any()


def gated_program(isolation: str, **fields: object) -> tuple[TileProgram, Chip]:
    cell = "2T2R" if isolation == "device" else "1T1R"
    more = {**FAILED, **AFTER, "array.cell": cell, "failures.isolation": isolation, "array.rows": 10, "array.cols": 9}
    program = program_of(WEIGHT, {**more, "array.unused": 3e-6, **fields})
    chip = Chip.sample(program.spec, program.arrays, 0)
    return with_gated(mapped_for(program, chip), 0.4, np.random.default_rng(0)), chip


@pytest.mark.parametrize("levels", [None, 16])
def test_devices_with_gates_of_their_own_are_gated_one_by_one(levels: int | None) -> None:
    program, chip = gated_program("device", **{"device.levels": levels})
    off, states = (np.stack(found(program.tables.tiles[0].name)) for found in (program.gated, program.failed_states))
    assert 0.2 < off.mean() < 0.6
    assert (off & (states != State.OK)).any()
    assert not (off & (states == State.OVERFORMED)).any()
    for on_chip in (program_chip(program), program_chip(program, chip)):
        conducting = devices(on_chip)
        assert not conducting[off].any()
        assert (conducting[~off & (states == State.OK)] > 0).all()
    assert not np.stack(program.assumed_conductances(program.tables.tiles[0].name))[off].any()


def test_a_device_whose_gate_has_failed_conducts_in_spite_of_it() -> None:
    """Where the test of the chip missed it."""
    program, _ = gated_program("device")
    off = np.stack(program.gated(program.tables.tiles[0].name))
    side, row, col = np.argwhere(off)[0]
    place = program.places(program.tables.tiles[0].name)[("plus", "minus")[side]]
    missed = fault_map(program, {(place[0], int(place[1][row]), int(place[2][col])): (State.OVERFORMED, 3e-4)})
    conducting = devices(program_chip(program, chip_with(missed)))
    assert conducting[side, row, col] == 3e-4
    assert np.count_nonzero(conducting[off]) == 1


def test_a_gated_word_line_takes_all_its_devices_along() -> None:
    """Those that no tile uses too: nothing of the line loads the wires or draws a current."""
    from runtime.programming import _aims, _gated  # the whole array is not to be seen from outside

    program, chip = gated_program("line", **{"failures.overformed.isolatable": True})
    assert chip.faults is not None
    aims = _aims(program, list(program.tables.tiles))
    for number, one in aims.items():
        gated = _gated(program.spec, one.off, chip.faults.states[number])
        np.testing.assert_array_equal(gated, np.broadcast_to(one.off.any(1, keepdims=True), gated.shape))
        assert gated.any()
        assert not gated.all()
    off = np.stack(program.gated(program.tables.tiles[0].name))
    assert not devices(program_chip(program, chip))[off].any()


# Retention.

LASTING = {"state": "stuck_lrs", "lifetime": 1000.0, "shape": 2.0}


def retention(**fields: object) -> Failures:
    return Failures(retention=Retention.model_validate({**LASTING, **fields}))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**64), st.lists(st.floats(0, 1e4), min_size=2, max_size=6), st.floats(0.3, 5))
def test_who_is_lost_stays_lost(seed: int, times: list[float], shape: float) -> None:
    failures = Failures.model_validate(
        {
            "retention": {**LASTING, "shape": shape},
            "stuck_lrs": {"conductance": 2e-5, "model": "uniform", "upper": 8e-5},
        }
    )
    before, conducting = np.zeros(SHAPE, bool), np.full(SHAPE, np.nan)
    for time in sorted(times):
        lost, found = lost_devices(failures, device_of(), SHAPE, 2, seed, time)
        assert not (before & ~lost).any()
        np.testing.assert_array_equal(found[before], conducting[before])
        np.testing.assert_array_equal(np.isnan(found), ~lost)
        assert ((found[lost] >= 2e-5) & (found[lost] <= 8e-5)).all()
        before, conducting = lost, found
    assert not lost_devices(failures, device_of(), SHAPE, 2, seed, 0.0)[0].any()


@pytest.mark.parametrize("shape", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("share_of_lifetime", [0.3, 1.0, 1.5])
def test_lifetimes_follow_a_weibull_distribution(shape: float, share_of_lifetime: float) -> None:
    size = (200, 250)
    found, _ = lost_devices(retention(shape=shape), device_of(), size, 0, 1, 1000 * share_of_lifetime)
    wanted = 1 - math.exp(-(share_of_lifetime**shape))
    assert abs(found.mean() - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / found.size)


def test_heat_makes_time_run_faster() -> None:
    """By Arrhenius' law: at 85 degrees Celsius and 1 eV about 678 times."""
    hot = device_of(temperature=85)
    factor = math.exp(1.0 / 8.617333262e-5 * (1 / 298.15 - 1 / 358.15))
    assert factor == pytest.approx(678, rel=0.01)
    energetic = retention(activation_energy=1.0)
    found = lost_devices(energetic, hot, SHAPE, 0, 1, 1.5)[0]
    np.testing.assert_array_equal(found, lost_devices(retention(), hot, SHAPE, 0, 1, 1.5 * factor)[0])
    assert 0 < found.sum() < found.size
    cold = lost_devices(energetic, device_of(), SHAPE, 0, 1, 700.0)[0]
    np.testing.assert_array_equal(cold, lost_devices(retention(), device_of(), SHAPE, 0, 1, 700.0)[0])


def test_lost_devices_join_the_failed_ones() -> None:
    """They conduct their new state's conductance; those that had failed before keep theirs."""
    stuck = some_stuck(50e-6)
    found = cells_of(device_of(drift={"model": "none"}), stuck, failures=retention(), seconds=800.0)
    lost = lost_devices(retention(), device_of(), SHAPE, 4, 3, 800.0)[0]
    failed = ~np.isnan(stuck)
    assert (found.conductance[failed] == 50e-6).all()
    assert (found.conductance[lost & ~failed] == 100e-6).all()
    alive = cells_of(device_of(), stuck).conductance
    np.testing.assert_array_equal(found.conductance[~lost & ~failed], alive[~lost & ~failed])
    np.testing.assert_array_equal(found.pulses, cells_of(device_of(), stuck).pulses)


@pytest.mark.parametrize("isolatable", [False, True])
def test_a_gate_holds_a_lost_device_where_its_state_leaves_one(isolatable: bool) -> None:
    failures = Failures.model_validate({"retention": LASTING, "stuck_lrs": {"isolatable": isolatable}})
    off = np.ones(SHAPE, bool)
    found = cells_of(device_of(), off=off, failures=failures, seconds=800.0)
    lost = lost_devices(failures, device_of(), SHAPE, 4, 3, 800.0)[0]
    np.testing.assert_array_equal(found.conductance, np.where(lost & (not isolatable), 100e-6, 0.0))


def test_lost_devices_stay_lost_when_trim_measures_at_the_read() -> None:
    trim = {"gain": "column", "offset": True, "when": "read"}
    fields = {**AFTER, "failures.retention": LASTING, "periphery.trim": trim}
    program = program_of(WEIGHT, fields)
    plain = program_of(WEIGHT, {**AFTER, "failures.retention": LASTING})
    chip, untrimmed = (chip_of(one, 1, seconds=900.0) for one in (program, plain))
    np.testing.assert_array_equal(devices(chip), devices(untrimmed))
    (tile,) = chip.tiles.values()
    assert (tile.gain != 1).any()


def test_an_ideal_chip_loses_nothing() -> None:
    program = program_of(WEIGHT, {**AFTER, "failures.retention": LASTING})
    np.testing.assert_array_equal(devices(program_chip(program, seconds=1e9)), targets(program))


# Trim.


@pytest.mark.parametrize("wires", [0.0, 5.0])
def test_trim_leaves_what_a_program_was_mapped_around(wires: float) -> None:
    """The chip that a program expects has nothing to trim; where it expects no failures, trim works against them."""
    trim = {"gain": "column", "offset": True, "vectors": 64}
    program = program_of(WEIGHT, {**FAILED, "periphery.trim": trim, "array.r_word": wires})
    chip = Chip.sample(program.spec, program.arrays, 1)
    (expected,) = program_chip(mapped_for(program, chip)).tiles.values()
    np.testing.assert_allclose(expected.gain, 1, rtol=1e-9)
    np.testing.assert_allclose(expected.offset, 0, atol=1e-15)
    (surprised,) = program_chip(program, chip).tiles.values()
    assert (np.abs(surprised.gain - 1) > 1e-3).any()
    (without,) = program_chip(mapped_for(program, chip), effects=frozenset(EFFECTS) - {"failures"}).tiles.values()
    np.testing.assert_allclose(without.gain, 1, rtol=1e-9)


def test_the_mathematics_of_pairs_is_at_hand() -> None:
    assert (faults.failed_share, faults.reachable_interval) == (failed_share, reachable_interval)
    assert faults.reachable_set is reachable_set
    assert quiet_spec().failures == Failures()
