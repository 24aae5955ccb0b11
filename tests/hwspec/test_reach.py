"""Reachable weights: the derived intervals are what trying every programmable conductance gives."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwspec.array import Array
from hwspec.device import Device
from hwspec.errors import SpecError
from hwspec.failures import Failures, FailureState, State
from hwspec.reach import (
    Interval,
    check_bounded,
    failed_share,
    isolation,
    reachable_interval,
    reachable_set,
    weight_bounds,
)
from hwspec.spec import HardwareSpec

G_MIN, G_MAX = 33.3e-6, 200e-6
SPAN = G_MAX - G_MIN
OPEN = -G_MIN / SPAN
STEPS = 200
PROGRAMMABLE = np.linspace(G_MIN, G_MAX, STEPS + 1)
FAILED = [state for state in State if state != State.OK]
OUT_OF_RANGE = (0.0, 10e-6, G_MIN, 90e-6, G_MAX, 300e-6, 800e-6)
"""Conductances of failed devices: below, in and above the range of good ones."""
CASES = [(State.OK, np.nan), *itertools.product(FAILED, OUT_OF_RANGE)]


def tried(state: State, siemens: float, gate: bool) -> npt.NDArray[np.float64]:
    """Every conductance that a device can be given."""
    values = PROGRAMMABLE if state == State.OK else np.array([siemens])
    return np.append(values, 0.0) if gate else values


def weights(plus: npt.NDArray[np.float64], minus: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Every weight of a pair of such devices, rising."""
    return np.sort(((plus[:, None] - minus) / SPAN).ravel())


def intervals(found: npt.NDArray[np.float64]) -> list[Interval]:
    """Where weights lie without a gap wider than a step of the grid."""
    breaks = np.flatnonzero(np.diff(found) > 1.5 / STEPS)
    starts, stops = [0, *(breaks + 1)], [*breaks, len(found) - 1]
    return [(float(found[start]), float(found[stop])) for start, stop in zip(starts, stops, strict=True)]


def joined(found: tuple[Interval, ...]) -> list[Interval]:
    """Intervals that the grid of the trial cannot tell apart become one."""
    merged: list[Interval] = []
    for low, high in found:
        if merged and low <= merged[-1][1] + 1.5 / STEPS:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return merged


@pytest.mark.parametrize("plus", CASES, ids=str)
def test_the_interval_is_what_trying_everything_reaches(plus: tuple[State, float]) -> None:
    for minus in CASES:
        low, high = reachable_interval(plus[0], minus[0], plus[1], minus[1], g_min=G_MIN, g_max=G_MAX)
        found = weights(tried(*plus, gate=False), tried(*minus, gate=False))
        assert (float(low), float(high)) == pytest.approx((found[0], found[-1]), abs=1e-12), (plus, minus)


@pytest.mark.parametrize("plus", CASES, ids=str)
@pytest.mark.parametrize("gates", list(itertools.product((False, True), repeat=2)), ids=str)
def test_the_set_and_its_gaps_are_what_trying_everything_reaches(
    plus: tuple[State, float], gates: tuple[bool, bool]
) -> None:
    for minus in CASES:
        shares = [float(failed_share(state, siemens, g_min=G_MIN, g_max=G_MAX)) for state, siemens in (plus, minus)]
        found = reachable_set(shares[0], shares[1], gate_pos=gates[0], gate_neg=gates[1], open_share=OPEN)
        for (_, high), (low, _) in itertools.pairwise(found):
            assert high < low
        both_good = plus[0] == minus[0] == State.OK
        gated = (False, False) if both_good else gates
        wanted = intervals(weights(tried(*plus, gate=gated[0]), tried(*minus, gate=gated[1])))
        np.testing.assert_allclose(joined(found), wanted, atol=1e-9, err_msg=f"{plus} {minus} {gates}")


TABLE = [
    ("ok", "ok", (-1, 1)),
    ("unformed", "ok", (-1, 0)),
    ("stuck_hrs", "ok", (-1, 0)),
    ("ok", "unformed", (0, 1)),
    ("ok", "stuck_hrs", (0, 1)),
    ("overformed", "ok", (0, 1)),
    ("stuck_lrs", "ok", (0, 1)),
    ("ok", "overformed", (-1, 0)),
    ("ok", "stuck_lrs", (-1, 0)),
    ("unformed", "stuck_hrs", (0, 0)),
    ("overformed", "stuck_lrs", (0, 0)),
    ("stuck_lrs", "stuck_hrs", (1, 1)),
    ("unformed", "overformed", (-1, -1)),
]


@pytest.mark.parametrize(("plus", "minus", "wanted"), TABLE)
def test_the_table_of_physics_is_the_case_of_shares_0_and_1(plus: str, minus: str, wanted: Interval) -> None:
    """``docs/physics.md``, Devices."""
    low, high = reachable_interval(plus, minus)
    assert (float(low), float(high)) == wanted


def test_an_open_device_takes_zero_from_pairs_of_a_high_g_min() -> None:
    """5 to 30 kohm: an unformed plus device reaches [-1.2, -0.2] (``docs/physics.md``, Devices)."""
    low, high = reachable_interval("unformed", "ok", g_min=1 / 30e3, g_max=1 / 5e3)
    assert (low, high) == pytest.approx((-1.2, -0.2))


@given(st.lists(st.sampled_from(range(len(CASES))), min_size=1, max_size=8))
def test_intervals_of_many_pairs_are_those_of_each(chosen: list[int]) -> None:
    states = np.array([CASES[number][0] for number in chosen], np.uint8)
    siemens = np.array([CASES[number][1] for number in chosen])
    low, high = reachable_interval(states[:, None], states, siemens[:, None], siemens, g_min=G_MIN, g_max=G_MAX)
    assert low.shape == high.shape == (len(chosen), len(chosen))
    for row, col in itertools.product(range(len(chosen)), repeat=2):
        one = reachable_interval(states[row], states[col], siemens[row], siemens[col], g_min=G_MIN, g_max=G_MAX)
        assert (low[row, col], high[row, col]) == one
    assert (low <= high).all()
    np.testing.assert_allclose(low, -high.T)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"state": "broken"}, "state 'broken' must be one of ok, unformed"),
        ({"state": [0, 5]}, "codes from 0 to 4"),
        ({"state": [-1]}, "codes from 0 to 4"),
        ({"state": [1.0]}, "codes from 0 to 4"),
        ({"state": 1, "conductance": -1e-6}, "finite and not negative"),
        ({"state": 1, "conductance": np.nan}, "finite and not negative"),
        ({"state": 1, "g_min": 1.0, "g_max": 1.0}, "0 <= g_min < g_max"),
        ({"state": 1, "g_min": -1.0}, "0 <= g_min < g_max"),
        ({"state": 1, "g_max": np.inf}, "0 <= g_min < g_max"),
    ],
)
def test_senseless_states_and_ranges_are_refused(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        failed_share(**arguments)  # type: ignore[arg-type]


# -- bounds of a spec -------------------------------------------------------------------------------------------------

DEVICE = Device(g_min=G_MIN, g_max=G_MAX, levels=None)


def array(pairing: str = "two_arrays", cell: str = "1T1R") -> Array:
    return Array.model_validate({"rows": 8, "cols": 8, "pairing": pairing, "cell": cell})


def failing(state: State, siemens: float, **fields: object) -> Failures:
    return Failures.model_validate({state.name.lower(): {"rate": 0.1, "conductance": siemens}, **fields})


@pytest.mark.parametrize("state", FAILED)
@pytest.mark.parametrize("siemens", OUT_OF_RANGE)
@pytest.mark.parametrize("r_access", [0.0, 2e3])
def test_bounds_are_the_worst_of_all_pairs(state: State, siemens: float, r_access: float) -> None:
    device = Device(g_min=G_MIN, g_max=G_MAX, levels=None, r_access=r_access)
    through = siemens / (1 + siemens * r_access)
    kinds = [PROGRAMMABLE, np.array([through])]
    found = [weights(plus, minus) for plus, minus in itertools.product(kinds, repeat=2)]
    wanted = min(one[0] for one in found), max(one[-1] for one in found)
    assert weight_bounds(device, array(), failing(state, siemens)) == pytest.approx(wanted)
    # A device against the middle reference: w = 2 s - 1.
    single = 2 * (np.concatenate(kinds) - G_MIN) / SPAN - 1
    bounds = weight_bounds(device, array("reference"), failing(state, siemens))
    assert bounds == pytest.approx((single.min(), single.max()))


def test_bounds_hold_for_the_ends_of_distributions() -> None:
    failures = Failures(overformed=FailureState(rate=0.1, conductance=G_MAX, model="uniform", upper=4 * G_MAX))
    worst = (4 * G_MAX - G_MIN) / SPAN
    assert weight_bounds(DEVICE, array(), failures) == pytest.approx((-worst, worst))
    normal = Failures(stuck_lrs=FailureState(rate=0.1, conductance=G_MAX, model="normal", deviation=0.1))
    worst = (1.3 * G_MAX - G_MIN) / SPAN
    assert weight_bounds(DEVICE, array(), normal) == pytest.approx((-worst, worst))


def test_failed_pairs_that_are_zeroed_are_bounded_by_their_own_difference() -> None:
    shorted = failing(State.OVERFORMED, 800e-6, failed_pair="zero")
    assert weight_bounds(DEVICE, array(), shorted) == (-1.0, 1.0)
    check_bounded(DEVICE, array(), shorted)
    with pytest.raises(ValueError, match="beyond 1"):
        check_bounded(DEVICE, array(), failing(State.OVERFORMED, 800e-6))
    # A device that failed otherwise than its partner is still read against it.
    both = Failures.model_validate({**shorted.model_dump(), "unformed": {"rate": 0.1}})
    assert weight_bounds(DEVICE, array(), both)[1] == pytest.approx(800e-6 / SPAN)


def test_a_gate_of_its_own_bounds_a_shorted_device() -> None:
    failures = failing(State.OVERFORMED, 800e-6)
    assert isolation(array(), failures) == "none"
    assert isolation(array(cell="2T2R"), failures) == "device"
    assert weight_bounds(DEVICE, array(cell="2T2R"), failures) == pytest.approx((-1 + OPEN, 1 - OPEN))
    check_bounded(DEVICE, array(cell="2T2R"), failures)
    for fields in ({"isolation": "none"}, {"isolation": "line"}):
        with pytest.raises(ValueError, match="beyond 1"):
            check_bounded(DEVICE, array(cell="2T2R"), failing(State.OVERFORMED, 800e-6, **fields))
    fixed = Failures(overformed=FailureState(rate=0.1, conductance=800e-6, isolatable=False))
    with pytest.raises(ValueError, match="beyond 1"):
        check_bounded(DEVICE, array(cell="2T2R"), fixed)


def test_an_access_resistance_bounds_a_shorted_device() -> None:
    short = failing(State.OVERFORMED, 1.0)
    with pytest.raises(ValueError, match="beyond 1"):
        check_bounded(DEVICE, array(), short)
    check_bounded(Device(g_min=G_MIN, g_max=G_MAX, levels=None, r_access=1 / G_MAX), array(), short)


@pytest.mark.parametrize("pairing", ["two_arrays", "reference"])
def test_open_devices_are_within_the_tolerance_that_a_spec_has_by_itself(pairing: str) -> None:
    """Zero siemens lie outside by ``g_min / (g_max - g_min)``, twice that against a reference, and no more."""
    check_bounded(DEVICE, array(pairing), failing(State.UNFORMED, 0.0))
    with pytest.raises(ValueError, match="beyond 1"):
        check_bounded(DEVICE, array(pairing), failing(State.UNFORMED, 0.0, bound_tolerance=-OPEN * 0.99))


@given(st.floats(201e-6, 1e-2), st.floats(0.5, 2))
def test_a_tolerance_allows_what_it_says(siemens: float, share: float) -> None:
    beyond = (siemens - G_MIN) / SPAN - 1
    failures = failing(State.STUCK_LRS, siemens, bound_tolerance=beyond * share)
    if share >= 1:
        check_bounded(DEVICE, array(), failures)
    elif share < 0.999:
        with pytest.raises(ValueError, match="beyond 1"):
            check_bounded(DEVICE, array(), failures)
    check_bounded(DEVICE, array(), failing(State.STUCK_LRS, siemens, bound_tolerance=0.0, allow_unbounded=True))


def test_an_unbounded_spec_is_refused_with_the_ways_out() -> None:
    spec = HardwareSpec.preset("rram-128")
    fields = {"failures.overformed.rate": 0.01, "failures.overformed.conductance": "300 uS"}
    with pytest.raises(SpecError, match=r"from -3\.02 to 3\.02.*isolate them.*bound_tolerance.*allow_unbounded"):
        spec.with_fields(fields)
    spec.with_fields({**fields, "failures.allow_unbounded": True})
