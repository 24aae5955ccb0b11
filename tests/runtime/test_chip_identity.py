"""A chip of a seed is one chip: nothing but its own seed changes its devices, its columns and their trajectories."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from agreement import in_float64, sampled
from chips import chip_of, devices, matrices, program_of, quiet_spec, targets
from small_programs import EVERY_EFFECT, compile_small, matmul, one_node, small_spec

from hwspec.chip import Chip
from hwspec.effects import EFFECTS
from runtime.batches_torch import Batch
from runtime.channels import Channel
from runtime.engine import Engine
from runtime.program import TILE_TENSORS, TileProgram
from runtime.programming import ProgrammedChip, program_chip
from runtime.reference import Reference

Float64 = npt.NDArray[np.float64]
WEIGHT = np.random.default_rng(0).uniform(-1, 1, (20, 12))
ALL: dict[str, object] = {
    **EVERY_EFFECT,
    "array.rows": 8,
    "array.cols": 6,
    "periphery.trim": {"gain": "none", "offset": False},
}
"""Everything but trim, on several tiles an array."""
AFTER = {"periphery.subtract": "after"}


def everything(fields: Mapping[str, object] | None = None) -> TileProgram:
    return compile_small(one_node("MatMul", WEIGHT, (20,)), small_spec({**ALL, **(fields or {})}))


def parts(channel: Channel) -> dict[str, Float64 | None]:
    errors = channel.errors
    own = {"matrix": channel.matrix, "variance": channel.variance, "static": channel.static}
    names = ("gain", "offset", "sense_offset", "adc_gain", "adc_offset", "adc_bow", "adc_steps")
    return own | {name: getattr(errors, name) for name in names}


def assert_same_chip(found: ProgrammedChip, wanted: ProgrammedChip) -> None:
    """Bit by bit, tile by tile."""
    assert found.tiles.keys() == wanted.tiles.keys()
    assert found.report == wanted.report
    for name, tile in found.tiles.items():
        for mine, theirs in zip(tile.channels, wanted.tiles[name].channels, strict=True):
            others = parts(theirs)
            for part, value in parts(mine).items():
                np.testing.assert_array_equal(value, others[part], err_msg=f"{name} {part}")
        np.testing.assert_array_equal(tile.gain, wanted.tiles[name].gain)
        np.testing.assert_array_equal(tile.offset, wanted.tiles[name].offset)


def reordered(program: TileProgram, order: list[int]) -> TileProgram:
    """The same program with its table of tiles in another order."""
    tiles = tuple(program.tables.tiles[number] for number in order)
    tensors = dict(program.tensors)
    for key in TILE_TENSORS:
        tensors[f"layer/{key}"] = np.concatenate(
            [getattr(program.tile_tensors[tile.name], key).ravel() for tile in tiles]
        )
    return replace(program, tables=program.tables.model_copy(update={"tiles": tiles}), tensors=tensors)


def test_the_order_of_tiles_changes_nothing() -> None:
    program = everything()
    order = np.random.default_rng(0).permutation(len(program.tables.tiles)).tolist()
    assert order != sorted(order)
    assert_same_chip(sampled(reordered(program, order), 3, 50.0), sampled(program, 3, 50.0))


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = everything({"periphery.trim": {"gain": "column", "offset": True, "when": "read"}})
    found = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("NUMBA_NUM_THREADS", threads)
        found.append(sampled(program, 3, 50.0))
    assert_same_chip(found[1], found[0])
    assert_same_chip(found[2], found[0])


def test_a_chip_of_more_arrays_is_the_same_chip() -> None:
    program = everything()
    few, many = (Chip.sample(program.spec, program.arrays + more, 3) for more in (0, 40))
    assert_same_chip(program_chip(program, many, seconds=50.0), program_chip(program, few, seconds=50.0))


def test_a_program_of_more_arrays_has_the_same_first_ones() -> None:
    """How far a device of a constant spread lands from its target depends on the chip and its place alone."""
    fields = {"device.g_min": 20e-6, "device.spread": {"model": "constant", "sigma": 1e-6}, **AFTER}
    deviations = []
    for rows, cols in ((8, 8), (8, 40), (30, 20)):
        spec = quiet_spec(fields)
        weight = np.random.default_rng(rows * cols).uniform(-1, 1, (rows, cols))
        program = compile_small(one_node("MatMul", weight, (rows,)), spec)
        deviations.append(devices(chip_of(program, 4)) - targets(program))
    for deviation in deviations[1:]:
        np.testing.assert_allclose(deviation, deviations[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("run", [Reference, Engine])
def test_the_batch_size_changes_nothing(run: type[Reference] | type[Engine]) -> None:
    """Without noise of reads, which is drawn anew for each of them."""
    fields = {"device.read_noise": {"model": "none", "share": 0}, "device.telegraph": {"amplitude": 0}}
    program = in_float64(everything({**fields, "periphery.readout_noise": 0}))
    x = np.random.default_rng(1).standard_normal((6, 20)).astype(np.float32)
    chip = sampled(program, 3)
    engine = Engine(chip, dtype=torch.float64) if run is Engine else Reference(chip)
    whole = engine(x)[0]
    single = np.concatenate([engine(x[number : number + 1])[0] for number in range(6)])
    np.testing.assert_allclose(single, whole, rtol=0, atol=1e-12 * np.abs(whole).max())


def test_every_chip_is_another_one() -> None:
    fields = {
        "device.programming": {"failure_rate": 0.2, "pulses": 1, "tolerance": 0, "relative_tolerance": 0},
        "array.r_word": 0.0,
        "array.r_bit": 0.0,
        "array.r_driver": 0.0,
        "array.r_sense": 0.0,
    }
    program = everything({**fields, **AFTER})
    one, other = (next(iter(sampled(program, seed).tiles.values())).channels[0] for seed in (1, 2))
    for name, value in parts(one).items():
        twin = parts(other)[name]
        assert value is not None
        assert twin is not None
        assert (value != twin).mean() > 0.8, name  # some devices of both are at zero
    with pytest.raises(AssertionError):
        assert_same_chip(sampled(program, 1), sampled(program, 2))


def test_the_seed_of_simulation_changes_pulses_and_traps_but_not_the_spread() -> None:
    spread = {"device.spread": {"model": "constant", "sigma": 4e-6}, **AFTER}
    verify = {"device.programming": {"pulses": 20, "tolerance": 2e-6}}
    traps = {"device.telegraph": {"amplitude": 0.2, "correlation_time": 10.0}}

    def two(fields: Mapping[str, object]) -> list[Float64]:
        program = program_of(WEIGHT, {**spread, **fields})
        return [devices(chip_of(program, 3, simulate=seed)) for seed in (0, 1)]

    plain = two({})
    np.testing.assert_array_equal(plain[0], plain[1])
    pulsed, trapped = two(verify), two(traps)
    assert (pulsed[0] != pulsed[1]).mean() > 0.8  # some devices of both are at zero
    assert 0.4 < (trapped[0] != trapped[1]).mean() < 0.6
    program = program_of(WEIGHT, {**spread, **verify, **traps})
    pulses = [chip_of(program, seed, simulate=0).report.pulses for seed in (3, 4)]
    assert pulses[0] != pulses[1]
    failing = program_of(
        WEIGHT, {**spread, "device.programming": {**verify["device.programming"], "failure_rate": 0.3}}
    )
    failed = [chip_of(failing, 3, simulate=seed).report.failed for seed in (0, 1)]
    assert failed[0] == failed[1]


def test_the_seed_of_simulation_changes_no_column() -> None:
    program = everything()
    for name, tile in sampled(program, 3).tiles.items():
        other = program_chip(program, Chip.sample(program.spec, program.arrays, 3), seed=99).tiles[name]
        for mine, theirs in zip(tile.channels, other.channels, strict=True):
            for key, value in parts(mine).items():
                if key not in ("matrix", "variance", "static"):
                    np.testing.assert_array_equal(value, parts(theirs)[key])


def test_reading_a_chip_at_other_times_changes_nothing() -> None:
    """A chip that was read before is the same chip: each time is computed from what was programmed."""
    program = everything()
    first = sampled(program, 3, 50.0)
    sampled(program, 3, 9000.0)
    assert_same_chip(sampled(program, 3, 50.0), first)


DRIFTS: dict[str, tuple[float, float, str]] = {
    "pcm": (1, 25, "pcm"),
    "cmo_hfox": (20, 80, "cmo_hfox"),
    "wan2022": (2, 40, "wan2022"),
}


def drifting(name: str, weight: Float64, fields: Mapping[str, object] | None = None) -> TileProgram:
    low, high, spread = DRIFTS[name]
    own = {"device.g_min": low * 1e-6, "device.g_max": high * 1e-6, "device.spread": {"model": spread}}
    return program_of(weight, {**own, "device.drift": {"model": name}, **AFTER, **(fields or {})})


@pytest.mark.parametrize("name", DRIFTS)
def test_devices_start_from_what_was_programmed(name: str) -> None:
    program = drifting(name, WEIGHT)
    start = devices(chip_of(program, 2))
    np.testing.assert_array_equal(start, devices(chip_of(program, 2, effects=["spread"])))
    assert (devices(chip_of(program, 2, seconds=1000.0)) != start)[start > 0].mean() > 0.99


@pytest.mark.parametrize("name", DRIFTS)
def test_a_trajectory_is_the_chip_s_own(name: str) -> None:
    """It differs from chip to chip, and not with the seed of simulation."""
    program = drifting(name, WEIGHT)
    first, again = (devices(chip_of(program, 2, simulate=seed, seconds=1000.0)) for seed in (0, 1))
    np.testing.assert_array_equal(first, again)
    one, other = (devices(chip_of(program, seed, effects=["drift"], seconds=1000.0)) for seed in (2, 3))
    assert (one != other).mean() > 0.8


def test_one_trajectory_a_device() -> None:
    """Its conductances at two times follow from the same random number."""
    times = (100.0, 40_000.0)
    program = drifting("pcm", WEIGHT)
    start, early, late = (devices(chip_of(program, 2, seconds=seconds)) for seconds in (0.0, *times))
    moved = start > 0
    exponents = [
        -np.log(found[moved] / start[moved]) / math.log((seconds + 20) / 20)
        for found, seconds in zip((early, late), times, strict=True)
    ]
    np.testing.assert_allclose(exponents[0], exponents[1], rtol=1e-9)
    assert len(np.unique(exponents[0].round(12))) == moved.sum()
    program = drifting("cmo_hfox", WEIGHT)
    start, early, late = (devices(chip_of(program, 2, seconds=seconds)) * 1e6 for seconds in (0.0, *times))
    inside = (early > 9) & (late > 9) & (late < 88.2) & (early < 88.2)
    numbers = [
        ((found - start + 0.089 * math.log(seconds)) / (0.042 * math.log(seconds) + 0.412))[inside]
        for found, seconds in zip((early, late), times, strict=True)
    ]
    np.testing.assert_allclose(numbers[0], numbers[1], rtol=0, atol=1e-9)
    assert inside.mean() > 0.9


@pytest.mark.parametrize("name", ["pcm", "cmo_hfox"])
def test_devices_drift_as_their_model_says(name: str) -> None:
    """Mean and spread over 5000 devices of one target, with drift alone; correlation of two times is complete."""
    program = drifting(name, np.ones((50, 100)) * np.repeat([[1.0, -1.0]], 50, axis=1), {})
    low = 4.75 / math.sqrt(5000)
    found = [devices(chip_of(program, 1, effects=["drift"], seconds=seconds)) for seconds in (0.0, 1000.0)]
    high = np.isclose(found[0], found[0].max())
    start, late = found[0][high], found[1][high]
    if name == "pcm":
        numbers = (-np.log(late / start) / math.log(1020 / 20) - 0.049) / 0.008
    else:
        logarithm = math.log(1000)
        numbers = ((late - start) * 1e6 + 0.089 * logarithm) / (0.042 * logarithm + 0.412)
    assert len(numbers) == 5000
    assert abs(numbers.mean()) < low
    assert numbers.std() == pytest.approx(1, abs=low)


def test_heat_makes_time_run_faster() -> None:
    """Drift of 1000 s at 60 degrees is that of more seconds at 25, by Arrhenius' law."""
    hot = drifting(
        "pcm", WEIGHT, {"device.drift": {"model": "pcm", "activation_energy": 0.3}, "device.temperature": 60}
    )
    faster = math.exp(0.3 / 8.617333262e-5 * (1 / 298.15 - 1 / 333.15))
    cool = drifting("pcm", WEIGHT)
    found, wanted = devices(chip_of(hot, seconds=1000.0)), devices(chip_of(cool, seconds=1000.0 * faster))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def factors(program: TileProgram, effect: str, others: list[str], seconds: float) -> Float64:
    """What an effect does to each device, as a ratio, while others are on."""
    on = devices(chip_of(program, 5, effects=[effect, *others], seconds=seconds))
    off = devices(chip_of(program, 5, effects=others, seconds=seconds))
    return on / off


MULTIPLYING: dict[str, dict[str, object]] = {
    "drift": {"device.drift": {"model": "pcm"}},
    "temperature": {"device.temperature": 60.0, "device.temperature_coefficient": 1e-3},
    "telegraph": {"device.telegraph": {"amplitude": 0.2, "correlation_time": 10.0}},
    "spread": {"device.spread": {"model": "pcm"}},
}


@pytest.mark.parametrize("effect", MULTIPLYING)
def test_switching_other_effects_off_changes_no_device(effect: str) -> None:
    fields = {key: value for one in MULTIPLYING.values() for key, value in one.items()}
    ranged = {"device.g_min": 8e-6, "device.g_max": 25e-6}
    noise = {"device.read_noise": {"model": "proportional", "share": 0.001}, "device.r_access": 1.0}
    program = program_of(WEIGHT, {**ranged, **fields, **noise, **AFTER})
    alone = factors(program, effect, [], 100.0)
    for other in ("drift", "temperature", "telegraph", "spread", "programming_failures", "read_noise", "dac", "adc"):
        if other != effect:
            np.testing.assert_allclose(factors(program, effect, [other], 100.0), alone, rtol=1e-9, err_msg=other)
    assert len(np.unique(alone.round(9))) >= (1 if effect == "temperature" else 2)


def test_failures_strike_the_same_devices_whatever_else_is_on() -> None:
    fields = {"device.programming": {"failure_rate": 0.3, "failed_conductance": 0.7e-6, "pulses": 1}}
    plain = {"tolerance": 0, "relative_tolerance": 0}
    off = {"array.r_word": 0.0, "array.r_bit": 0.0, "array.r_driver": 0.0, "array.r_sense": 0.0}
    program = everything({"device.programming": fields["device.programming"] | plain, **off, **AFTER})
    wanted = devices(chip_of(program, 5, effects=["programming_failures"])) == 0.7e-6
    assert 0.1 < wanted.mean() < 0.5
    for others in (["spread"], ["drift"], ["spread", "drift", "adc_errors", "sneak_paths"]):
        found = devices(chip_of(program, 5, effects=["programming_failures", *others], seconds=100.0))
        np.testing.assert_array_equal(found == 0.7e-6, wanted)


def test_switching_other_effects_off_changes_no_column() -> None:
    program = everything(AFTER)
    sources = {
        "readout": ("gain", "offset"),
        "sense_offset": ("sense_offset",),
        "adc_errors": ("adc_gain", "adc_offset", "adc_bow", "adc_steps"),
    }
    name = program.tables.tiles[-1].name
    whole = [parts(channel) for channel in sampled(program, 3).tiles[name].channels]
    for effect, keys in sources.items():
        for effects in ([effect, "adc"], sorted(set(EFFECTS) - (set(sources) - {effect}))):
            alone = [parts(channel) for channel in chip_of(program, 3, effects=effects).tiles[name].channels]
            for found, wanted in zip(alone, whole, strict=True):
                for key in keys:
                    np.testing.assert_array_equal(found[key], wanted[key])


def test_without_effects_the_matrix_is_exact() -> None:
    """Of a sampled chip whose spec has none, and of one whose effects are all switched off."""
    for pairing in ("two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"):
        size = {"array.pairing": pairing, "array.rows": 40, "array.cols": 24}
        plain = program_of(WEIGHT, size)
        subtract = "before" if pairing == "neighbouring_rows" else "after"
        full = everything({"array.pairing": pairing, "array.cols": 12, "periphery.subtract": subtract})
        wanted = targets(plain)[0] - targets(plain)[1]
        np.testing.assert_array_equal(matrices(chip_of(plain, 7, seconds=1e6))[0], wanted)
        found = matrices(chip_of(full, 7, effects=[], seconds=1e6))
        goal = targets(full)
        np.testing.assert_array_equal(found, goal if subtract == "after" else goal[:1] - goal[1:])
        x = np.random.default_rng(0).uniform(-1, 1, (4, 20)).astype(np.float32)
        result = Reference(chip_of(in_float64(plain), 7))(x)[0]
        np.testing.assert_allclose(result, x @ plain.decoded_weights("layer")[0], rtol=0, atol=1e-10)


def batches(program: TileProgram) -> list[Batch]:
    engine = Engine(sampled(program, 3))
    return [batch for loop in engine.loops.values() for store in loop.stores for batch in store.batches]


def test_wires_and_spread_cost_nothing_when_a_program_runs() -> None:
    """They are in the matrices: batches are those of an ideal chip, without any further tensor."""
    spread = {"device.spread": {"model": "constant", "sigma": 1e-6}, "periphery.adc_bits": 8, "periphery.dac_bits": 8}
    wires = {"array.r_word": 2.0, "array.r_bit": 1.0, "array.r_driver": 10.0, "array.r_sense": 10.0}
    more = {"device.drift": {"model": "none"}, "periphery.gain_sigma": 0.02, "periphery.adc_gain_sigma": 0.01}
    model = matmul(30, 20)
    plain = batches(compile_small(model, quiet_spec({"periphery.adc_bits": 8, "periphery.dac_bits": 8})))
    found = batches(compile_small(model, quiet_spec({**spread, **wires, **more})))
    assert len(found) == len(plain)
    for mine, theirs in zip(found, plain, strict=True):
        for name in ("variance", "shift", "own_noise", "bends", "amperes", "thresholds"):
            assert getattr(mine, name) is None, name
            assert getattr(theirs, name) is None, name
        for name in ("matrix", "factor", "columns"):
            assert getattr(mine, name).shape == getattr(theirs, name).shape
        assert (mine.limits, mine.summed, mine.whole) == (theirs.limits, theirs.summed, theirs.whole)
        assert not torch.equal(mine.matrix, theirs.matrix)
