"""Pairs raised together where only the rates of failures are known."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import SmallModel, matmul, one_node, small_models, small_spec

from compiler.compile import CompileOptions, finish, run_compile
from compiler.frontend import load_model
from compiler.raised_pairs import CommonMode, failure_rates
from hwspec.chip import Chip
from hwspec.failures import State
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.quantize import level_conductances

Float64 = npt.NDArray[np.float64]
QUIET: Mapping[str, object] = {
    "device.spread": {"model": "none", "sigma": 0.0},
    "device.read_noise": {"model": "none", "share": 0.0},
}
SHORTED: Mapping[str, object] = {"failures.stuck_lrs.rate": 0.1}
OPEN: Mapping[str, object] = {"failures.stuck_hrs.rate": 0.1}


def compiled(model: SmallModel, spec: HardwareSpec, *, robust: bool = True) -> TileProgram:
    return finish(run_compile(load_model(model.proto), spec, CompileOptions(robust=robust), None))


def pair_conductances(program: TileProgram) -> tuple[Float64, Float64]:
    """Of all tiles' pairs, one after the other."""
    found = [program.target_conductances(tile.name) for tile in program.tables.tiles]
    plus, minus = (np.concatenate([sides[side].ravel() for sides in found]) for side in (0, 1))
    return plus, minus


@st.composite
def failing_specs(draw: st.DrawFn) -> HardwareSpec:
    """Pairs of devices of any levels that fail to any states."""
    levels = draw(st.none() | st.integers(2, 16) | st.just([1e-6, 20e-6, 50e-6, 100e-6]))
    fields: dict[str, object] = {
        "device.levels": levels,
        "array.pairing": draw(st.sampled_from(["two_arrays", "neighbouring_columns", "neighbouring_rows"])),
        "array.slices": draw(st.integers(1, 2)) if isinstance(levels, int) else 1,
        "failures.allow_unbounded": True,
    }
    for state in ("unformed", "overformed", "stuck_hrs", "stuck_lrs"):
        fields[f"failures.{state}.rate"] = draw(st.sampled_from([0.0, 0.05, 0.2]))
    if draw(st.booleans()):
        fields |= QUIET
    return small_spec(fields)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_models(), failing_specs())
def test_raised_pairs_keep_their_differences(model: SmallModel, spec: HardwareSpec) -> None:
    """So the weights stay; no device leaves its range; nothing falls."""
    robust, as_is = (compiled(model, spec, robust=choice) for choice in (True, False))
    one, other = pair_conductances(robust), pair_conductances(as_is)
    np.testing.assert_allclose(np.subtract(*one), np.subtract(*other), rtol=0, atol=1e-15)
    for raised, before in zip(one, other, strict=True):
        assert (raised >= before - 1e-15).all()
        assert raised.max() <= spec.device.g_max * (1 + 1e-12)
    np.testing.assert_allclose(robust.decoded_weights("layer"), as_is.decoded_weights("layer"), atol=1e-9)


def sampled_error(spec: HardwareSpec, difference: float, rises: Float64) -> Float64:
    """Mean squared error of a pair's weight over sampled failures of both devices, for each rise, shares."""
    generator, rates, device = np.random.default_rng(1), failure_rates(spec), spec.device
    states = np.array([State.OK, *rates])
    drawn = generator.choice(states, (2, 400_000), p=[1 - sum(rates.values()), *rates.values()])
    failed = {state: (spec.failures.conductances(state, device)[0] - device.g_min) / device.span for state in rates}
    errors = []
    for rise in rises:
        sides = []
        for side, target in zip(drawn, (rise + difference, rise), strict=True):
            held = np.full(side.shape, target)
            for state, share in failed.items():
                held[side == state] = share
            sides.append(held)
        errors.append(float(((sides[0] - sides[1] - difference) ** 2).mean()))
    return np.array(errors)


@pytest.mark.parametrize("rates", [(0.02, 0.1), (0.05, 0.05), (0.1, 0.02)], ids=str)
@pytest.mark.parametrize("levels", [6, None])
def test_the_rise_is_that_of_the_least_expected_error(rates: tuple[float, float], levels: int | None) -> None:
    """Against a Monte-Carlo over failed devices, for differences of none, some and all of the range.

    The analytic error counts each device alone; the product of both deviations, of order rate squared, is left out, so
    the rise found may err by that much.
    """
    fields = {
        **QUIET,
        "device.levels": levels,
        "failures.stuck_hrs.rate": rates[0],
        "failures.stuck_lrs.rate": rates[1],
    }
    spec = small_spec(fields)
    mode, count = CommonMode.of(spec), 6 if levels else 65
    for difference in (0, count // 3, count - 1):
        grid = np.arange(count - difference) / (count - 1)
        errors = sampled_error(spec, difference / (count - 1), grid)
        rise = 0 if mode is None else int(mode.rise[difference])
        bias = 2 * (rates[0] + rates[1]) ** 2
        assert errors[rise] <= errors.min() + bias * errors.max() + 1e-4


def test_without_failures_nothing_is_raised() -> None:
    assert CommonMode.of(small_spec()) is None
    retention = {"failures.retention.state": "stuck_lrs", "failures.retention.lifetime": 1e6}
    assert CommonMode.of(small_spec(retention)) is None
    program = compiled(matmul(9, 9), small_spec())
    assert min(side.min() for side in pair_conductances(program)) == pytest.approx(1e-6)
    assert not program.tables.robust


def test_shorts_raise_pairs_and_opens_do_not() -> None:
    assert CommonMode.of(small_spec({**QUIET, **SHORTED})) is not None
    assert CommonMode.of(small_spec({**QUIET, **OPEN})) is None
    assert CommonMode.of(small_spec({**QUIET, "failures.unformed.rate": 0.1})) is None
    assert CommonMode.of(small_spec({**QUIET, **SHORTED, "array.pairing": "reference"})) is None
    assert CommonMode.of(small_spec({**QUIET, **SHORTED, "failures.failed_pair": "zero"})) is None


@pytest.mark.parametrize("levels", [16, None, [1e-6, 30e-6, 100e-6]])
def test_where_all_failures_are_shorts_zeros_lie_at_the_top(levels: object) -> None:
    """A short is absorbed there, as an open device is at the bottom."""
    spec = small_spec({**QUIET, **SHORTED, "device.levels": levels})
    weight = np.random.default_rng(0).standard_normal((6, 5))
    weight[::2] = 0
    program = compiled(one_node("MatMul", weight, (6,)), spec)
    plus, minus = pair_conductances(program)
    zero = np.isclose(plus, minus, rtol=1e-9)
    assert zero.sum() >= 15
    np.testing.assert_allclose(plus[zero], spec.device.g_max, rtol=1e-9)
    table = level_conductances(spec.device)
    for side in (plus, minus):
        assert table is None or np.isclose(side[:, None], table, rtol=1e-9).any(1).all()


def test_spread_that_grows_with_the_conductance_holds_pairs_down() -> None:
    """Few shorts are not worth a large spread at high conductances."""
    spread = {"device.spread": {"model": "relative", "sigma": 0.0, "share": 0.3}}
    few = {"failures.stuck_lrs.rate": 0.01}
    quiet, wide = (CommonMode.of(small_spec({**QUIET, **few, **fields})) for fields in ({}, spread))
    assert quiet is not None
    assert quiet.rise[0] == 15
    assert wide is None or wide.rise[0] < 15


def test_raised_pairs_lose_less_on_sampled_chips() -> None:
    """What the device conducts is what counts: mean squared errors of weights on chips as they come from the line."""
    spec, model = small_spec({**QUIET, **SHORTED}), matmul(16, 12)
    errors = []
    for robust in (True, False):
        program = compiled(model, spec, robust=robust)
        lost = []
        for seed in range(20):
            faults = Chip.sample(spec, program.arrays, seed).fault_map
            for tile in program.tables.tiles:
                held = []
                targets = program.target_conductances(tile.name)
                for (number, rows, cols), target in zip(program.places(tile.name).values(), targets, strict=True):
                    stuck = faults.stuck(number)[np.ix_(rows, cols)]
                    held.append(np.where(np.isnan(stuck), target, stuck))
                lost.append((np.subtract(*held) - np.subtract(*targets)) ** 2)
        errors.append(np.mean(np.concatenate([one.ravel() for one in lost])))
    assert errors[0] < 0.8 * errors[1]
