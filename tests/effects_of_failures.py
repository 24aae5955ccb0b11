"""Effects of the fields of `failures` that say which devices of a chip fail, what that leaves, and what a test sees.

Those of `failures.retention` and of isolation are with what reads them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from spec_effects import Effect, chance, effect

from hwspec.chip import Chip
from hwspec.errors import SpecError
from hwspec.failures import State
from hwspec.measured_map import classify
from hwspec.reach import isolation, weight_bounds
from hwspec.spec import HardwareSpec

ARRAYS, ROWS, COLS = 24, 40, 48
SHORTED: Mapping[str, object] = {"failures.overformed.rate": 0.1, "failures.overformed.conductance": "300 uS"}
"""Beyond every bound on devices of 1 to 100 µS."""
NAMES = ("unformed", "overformed", "stuck_hrs", "stuck_lrs")


def spec(**fields: Any) -> HardwareSpec:
    base = HardwareSpec.preset("rram-128").with_fields({"array.rows": ROWS, "array.cols": COLS})
    return base.with_fields({name.replace("__", "."): value for name, value in fields.items()})


def specs(field: str, one: object, other: object, fixed: Mapping[str, object]) -> tuple[HardwareSpec, HardwareSpec]:
    """Specs that differ in a field alone."""
    base = spec().with_fields({"failures.allow_unbounded": True, **fixed})
    first, second = (base.with_fields({field: value}) for value in (one, other))
    fields = dict(first.fields()), dict(second.fields())
    assert {name for name in fields[0] if fields[0][name] != fields[1][name]} == {field}
    return first, second


def states(of: HardwareSpec) -> npt.NDArray[np.uint8]:
    return Chip.sample(of, ARRAYS, 1).fault_map.states


def failed(of: HardwareSpec) -> npt.NDArray[np.float64]:
    """What the failed devices of a chip conduct, siemens."""
    return Chip.sample(of, ARRAYS, 1).fault_map.conductance


def tests_of(name: str) -> dict[str, Effect]:
    """Tests of the fields of one failure state."""
    state, prefix = State[name.upper()], f"failures.{name}"
    frequent: Mapping[str, object] = {f"{prefix}.rate": 0.5, f"{prefix}.conductance": "50 uS"}

    def rate() -> None:
        for share, of in zip((0.05, 0.3), specs(f"{prefix}.rate", 0.05, 0.3, {}), strict=True):
            chance(states(of) == state, share)
            assert not ((states(of) != state) & (states(of) != State.OK)).any()

    def conductance() -> None:
        for value, of in zip((30e-6, 60e-6), specs(f"{prefix}.conductance", 30e-6, 60e-6, frequent), strict=True):
            assert set(failed(of)) == {value}

    def model() -> None:
        one, other = specs(f"{prefix}.model", "fixed", "normal", frequent)
        assert set(failed(one)) == set(failed(other)) == {50e-6}, "no deviation is given"
        wide = other.with_fields({f"{prefix}.deviation": 0.1})
        assert abs(failed(wide).mean() / 50e-6 - 1) < 0.005
        with pytest.raises(SpecError, match="upper"):
            one.with_fields({f"{prefix}.model": "uniform"})

    def deviation() -> None:
        pair = specs(f"{prefix}.deviation", 0.02, 0.1, {**frequent, f"{prefix}.model": "normal"})
        for share, of in zip((0.02, 0.1), pair, strict=True):
            z = (failed(of) / 50e-6 - 1) / share
            assert np.abs(z).max() <= 3
            assert z.std() == pytest.approx(0.9866, abs=0.02)  # of a normal distribution that ends at 3 deviations

    def upper() -> None:
        fixed = {**frequent, f"{prefix}.model": "uniform", f"{prefix}.upper": 60e-6}
        base = spec().with_fields({"failures.allow_unbounded": True})
        for end in (60e-6, 90e-6):
            found = failed(base.with_fields({**fixed, f"{prefix}.upper": end}))
            assert found.min() == pytest.approx(50e-6, rel=1e-2)
            assert found.max() == pytest.approx(end, rel=1e-2)
            assert found.mean() == pytest.approx((50e-6 + end) / 2, rel=1e-2)

    return {"rate": rate, "conductance": conductance, "model": model, "deviation": deviation, "upper": upper}


for _name in NAMES:
    for _field, _test in tests_of(_name).items():
        effect(f"failures.{_name}.{_field}")(_test)


@effect("failures.array_deviation")
def _array_deviation() -> None:
    even, uneven = specs("failures.array_deviation", 0.0, 0.8, {"failures.stuck_hrs.rate": 0.1})
    shares = [(states(of) != State.OK).mean((1, 2)) for of in (even, uneven)]
    assert shares[0].std() < 0.02
    assert np.log(shares[1]).std() == pytest.approx(0.8, abs=0.35)


@effect("failures.clusters.rate")
def _clusters_rate() -> None:
    few, many = specs("failures.clusters.rate", 0.2, 5.0, {})
    assert ((states(few) != State.OK).any((1, 2))).mean() < 0.6
    assert ((states(many) != State.OK).any((1, 2))).mean() > 0.8


@effect("failures.clusters.radius")
def _clusters_radius() -> None:
    single, disc = specs("failures.clusters.radius", 0.5, 1.0, {"failures.clusters.rate": 2.0})
    centres = states(single) != State.OK
    grown = centres.copy()
    grown[:, 1:] |= centres[:, :-1]
    grown[:, :-1] |= centres[:, 1:]
    grown[:, :, 1:] |= centres[:, :, :-1]
    grown[:, :, :-1] |= centres[:, :, 1:]
    np.testing.assert_array_equal(states(disc) != State.OK, grown)


@effect("failures.clusters.state")
def _clusters_state() -> None:
    for name, of in zip(
        ("stuck_lrs", "overformed"),
        specs("failures.clusters.state", "stuck_lrs", "overformed", {"failures.clusters.rate": 2.0}),
        strict=True,
    ):
        assert set(np.unique(states(of))) == {State.OK, State[name.upper()]}


def line_test(field: str, state: State, axis: int) -> Effect:
    """The test of a share of lines, whose devices lie along an axis of an array."""

    def test() -> None:
        for share, of in zip((0.05, 0.3), specs(field, 0.05, 0.3, {}), strict=True):
            lines = states(of).take(0, axis)
            chance(lines == state, share)
            np.testing.assert_array_equal(states(of), np.broadcast_to(np.expand_dims(lines, axis), states(of).shape))

    return test


effect("failures.lines.word_failed")(line_test("failures.lines.word_failed", State.UNFORMED, 2))
effect("failures.lines.word_shorted")(line_test("failures.lines.word_shorted", State.OVERFORMED, 2))
effect("failures.lines.bit_failed")(line_test("failures.lines.bit_failed", State.UNFORMED, 1))
effect("failures.lines.bit_shorted")(line_test("failures.lines.bit_shorted", State.OVERFORMED, 1))


def threshold_test(name: str, values: tuple[float, float], between: float, kinds: tuple[State, State]) -> Effect:
    """The test of a threshold: what lies between two values of it is of one state by the first, another by the next."""

    def test() -> None:
        for state, of in zip(kinds, specs(f"failures.thresholds.{name}", *values, {}), strict=True):
            assert classify(between, of.device, of.failures.thresholds) == state

    return test


effect("failures.thresholds.unformed")(
    threshold_test("unformed", (0.1e-6, 0.4e-6), 0.3e-6, (State.STUCK_HRS, State.UNFORMED))
)
effect("failures.thresholds.stuck_hrs")(threshold_test("stuck_hrs", (1e-6, 3e-6), 2e-6, (State.OK, State.STUCK_HRS)))
effect("failures.thresholds.stuck_lrs")(
    threshold_test("stuck_lrs", (80e-6, 100e-6), 90e-6, (State.STUCK_LRS, State.OK))
)
effect("failures.thresholds.overformed")(
    threshold_test("overformed", (110e-6, 150e-6), 120e-6, (State.OVERFORMED, State.STUCK_LRS))
)


@effect("failures.map_errors.missed")
def _missed() -> None:
    pair = specs("failures.map_errors.missed", 0.1, 0.5, {"failures.stuck_lrs.rate": 0.2})
    for share, of in zip((0.1, 0.5), pair, strict=True):
        chip = Chip.sample(of, ARRAYS, 1)
        bad = chip.fault_map.states != State.OK
        found = chip.as_tested(of).fault_map.states
        chance(found[bad] == State.OK, share)
        np.testing.assert_array_equal(found[~bad], State.OK)


@effect("failures.map_errors.false")
def _false() -> None:
    for share, of in zip((0.1, 0.5), specs("failures.map_errors.false", 0.1, 0.5, {}), strict=True):
        chip = Chip.sample(of, ARRAYS, 1)
        assert chip.faults is None
        chance(chip.as_tested(of).fault_map.states == State.STUCK_HRS, share)
        assert set(chip.as_tested(of).fault_map.conductance) == {of.device.g_min}


@effect("failures.failed_pair")
def _failed_pair() -> None:
    as_is, zero = specs("failures.failed_pair", "as_is", "zero", {"failures.stuck_lrs.rate": 0.1})
    chance(states(as_is)[0::2] != State.OK, 0.1)
    np.testing.assert_array_equal(states(zero)[0::2], states(zero)[1::2])
    chance(states(zero)[0::2] != State.OK, 0.19)
    assert weight_bounds(zero.device, zero.array, zero.failures) == (-1.0, 1.0)


@effect("failures.bound_tolerance")
def _bound_tolerance() -> None:
    one, other = (
        {**SHORTED, "failures.bound_tolerance": value} for value in (2.0, 2.1)
    )  # 300 µS are a weight of 299 / 99, 2.02 beyond 1
    with pytest.raises(SpecError, match="beyond 1"):
        spec().with_fields(one)
    spec().with_fields(other)


@effect("failures.allow_unbounded")
def _allow_unbounded() -> None:
    with pytest.raises(SpecError, match="allow_unbounded: true"):
        spec().with_fields({**SHORTED, "failures.allow_unbounded": False})
    allowed = spec().with_fields({**SHORTED, "failures.allow_unbounded": True})
    assert weight_bounds(allowed.device, allowed.array, allowed.failures)[1] == pytest.approx(299 / 99)


@effect("array.cell")
def _cell() -> None:
    one, other = (spec(array__cell=cell) for cell in ("1T1R", "2T2R"))
    assert [isolation(of.array, of.failures) for of in (one, other)] == ["none", "device"]
    with pytest.raises(SpecError, match="beyond 1"):
        one.with_fields(SHORTED)
    other.with_fields(SHORTED)  # a gate of its own bounds a shorted device
    with pytest.raises(SpecError, match=r"isolation device needs array\.cell 2T2R"):
        one.with_fields({"failures.isolation": "device"})
    other.with_fields({"failures.isolation": "device"})
    with pytest.raises(SpecError, match="r_access must be 0 in 1R cells"):
        spec(array__cell="1R", device__r_access=1e3)
