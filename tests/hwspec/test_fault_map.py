"""Fault maps: devices fail as often, where and as the spec says, and each device's fate is its own."""

import itertools
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from hwspec.array import Array, Pairing
from hwspec.device import Device
from hwspec.errors import ChipError
from hwspec.failures import Failures, MapErrors, State
from hwspec.fault_map import FaultMap, partners, sample_faults, with_map_errors
from hwspec.fault_statistics import count_states

DEVICE = Device(g_min=1e-6, g_max=100e-6, levels=16)
ROWS, COLS, ARRAYS = 48, 40, 12
FAILED = [state for state in State if state != State.OK]
NAMES = [state.name.lower() for state in FAILED]
RATES: dict[str, Any] = {"unformed": 0.02, "overformed": 0.05, "stuck_hrs": 0.1, "stuck_lrs": 0.15}
SIGMAS = 5.0


def array(pairing: Pairing = "two_arrays", rows: int = ROWS, cols: int = COLS) -> Array:
    return Array(rows=rows, cols=cols, pairing=pairing)


def failures(**fields: Any) -> Failures:
    """Failures by section, or by the rate of a state."""
    return Failures.model_validate(
        {
            name: {"rate": value} if name in NAMES and not isinstance(value, dict) else value
            for name, value in fields.items()
        }
    )


def drawn(seed: int = 1, arrays: int = ARRAYS, of: Array | None = None, **fields: Any) -> FaultMap:
    return sample_faults(failures(**fields), DEVICE, of or array(), arrays, seed)


def only(name: str, value: Any) -> dict[str, Any]:
    """Fields of one name."""
    return {name: value}


def as_often(count: int | np.integer[Any], trials: int | np.integer[Any], rate: float) -> None:
    """Fail unless independent events of this rate happen as often as they should."""
    assert abs(count - trials * rate) <= SIGMAS * np.sqrt(trials * rate * (1 - rate)) + 1e-9


def dense(faults: FaultMap) -> npt.NDArray[np.float64]:
    return np.stack([faults.stuck(number) for number in range(len(faults.states))])


# -- the map itself ---------------------------------------------------------------------------------------------------


@given(some.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 4)), st.integers(0, 2**32))
def test_each_failed_device_has_its_own_conductance(states: npt.NDArray[np.uint8], seed: int) -> None:
    failed = np.count_nonzero(states)
    conductance = np.random.default_rng(seed).random(failed)
    faults = FaultMap(states, conductance)
    assert faults.failed == failed
    assert faults.shape == (3, 4, 5)
    found = dense(faults)
    np.testing.assert_array_equal(np.isnan(found), states == State.OK)
    np.testing.assert_array_equal(found[states != State.OK], conductance)


def test_there_is_no_array_beyond_the_map() -> None:
    faults = drawn(arrays=2)
    for number in (-1, 2):
        with pytest.raises(IndexError):
            faults.stuck(number)


def test_equal_maps_have_equal_hashes_and_others_do_not() -> None:
    one = drawn(**RATES)
    copy = FaultMap(one.states.copy(), one.conductance.copy())
    assert one == copy
    assert hash(one) == hash(copy)
    assert len(one.sha256) == 64
    conductance = one.conductance.copy()
    conductance[-1] *= 1.001
    states = one.states.copy()
    first = np.unravel_index(np.flatnonzero(states)[0], states.shape)
    states[first] = states[first] % 4 + 1
    others = [
        FaultMap(one.states, conductance),
        FaultMap(states, one.conductance),
        FaultMap(one.states.reshape(ARRAYS, COLS, ROWS), one.conductance),
        drawn(2, **RATES),
    ]
    assert len({one.sha256, *(other.sha256 for other in others)}) == 5
    assert one != others[0]
    assert one != "a map"


def test_a_map_cannot_be_written() -> None:
    faults = drawn(**RATES)
    for values in (faults.states, faults.conductance):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0


def states_of(*codes: int) -> npt.NDArray[np.uint8]:
    return np.array(codes, np.uint8).reshape(1, 1, -1)


@pytest.mark.parametrize(
    ("states", "conductance", "reason"),
    [
        (
            np.zeros((2, 2), np.uint8),
            np.zeros(0),
            r"states \(arrays, rows, cols\) of uint8, not 'uint8 of shape \(2, 2\)",
        ),
        (np.zeros((1, 2, 2), np.int64), np.zeros(0), "of uint8, not 'int64"),
        (np.zeros((1, 2, 2), np.uint8), np.zeros((0, 1)), r"conductances \(failed,\) of float64"),
        (np.zeros((1, 2, 2), np.uint8), np.zeros(0, np.float32), "of float64, not 'float32"),
        (np.zeros((1, 2, 2), np.uint8), np.zeros(1), "each of its 0 failed devices, not 1"),
        (states_of(1, 0, 2), np.zeros(1), "each of its 2 failed devices, not 1"),
        (states_of(0, 5, 9), np.zeros(2), "array 0, row 0, col 1 must have a state from 0 to 4, not 5"),
        (states_of(1, 0, 2), np.array([0, -1e-9]), "array 0, row 0, col 2 must have a finite .*, not -1e-09"),
        (states_of(1, 0, 2), np.array([np.nan, 0]), "array 0, row 0, col 0 must have a finite .*, not nan"),
        (states_of(1, 0, 2), np.array([0, np.inf]), "col 2 must have a finite conductance of at least 0 S, not inf"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(states: Any, conductance: Any, reason: str) -> None:
    with pytest.raises(ChipError, match=reason):
        FaultMap(states, conductance)


def test_the_first_offender_is_named_by_its_own_place() -> None:
    states = np.zeros((3, 2, 2), np.uint8)
    states[0, 1, 0] = states[2, 0, 1] = states[2, 1, 1] = 1
    with pytest.raises(ChipError, match="array 2, row 0, col 1"):
        FaultMap(states, np.array([1.0, -1.0, -1.0]))


# -- rates ------------------------------------------------------------------------------------------------------------


def test_states_are_as_frequent_as_their_rates() -> None:
    faults = drawn(**RATES)
    for state, name in zip(FAILED, NAMES, strict=True):
        as_often(np.count_nonzero(faults.states == state), faults.states.size, RATES[name])
    assert drawn().failed == 0
    assert drawn(stuck_lrs=1.0).failed == faults.states.size
    assert (drawn(stuck_hrs=0.5, stuck_lrs=0.5).states >= State.STUCK_HRS).all()


def test_devices_fail_independently_of_their_neighbours() -> None:
    hit = drawn(stuck_hrs=0.2).states != State.OK
    for axis in range(3):
        both = hit & np.roll(hit, 1, axis)
        as_often(np.count_nonzero(both), both.size, 0.04)


def test_seeds_and_arrays_differ() -> None:
    one, other = drawn(1, **RATES), drawn(2, **RATES)
    assert one == drawn(1, **RATES)
    for first, second in ((one.states, other.states), (one.states[0], one.states[1])):
        as_often(np.count_nonzero((first != 0) & (second != 0)), first.size, 0.32**2)


EVERYTHING: dict[str, Any] = {
    "unformed": {"rate": 0.05, "conductance": 1e-7, "model": "uniform", "upper": 5e-7},
    "overformed": {"rate": 0.05, "conductance": 1e-4, "model": "normal", "deviation": 0.05},
    "stuck_hrs": 0.05,
    "array_deviation": 0.5,
    "clusters": {"rate": 1.5, "radius": 3, "state": "stuck_lrs"},
    "lines": {"word_failed": 0.05, "word_shorted": 0.05, "bit_failed": 0.05, "bit_shorted": 0.05},
    "allow_unbounded": True,
}


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"])
@pytest.mark.parametrize("failed_pair", ["as_is", "zero"])
def test_a_chip_of_more_arrays_begins_with_the_same_ones(pairing: Pairing, failed_pair: str) -> None:
    whole = drawn(arrays=9, of=array(pairing), **EVERYTHING, failed_pair=failed_pair)
    for few in (1, 2, 3, 8):
        part = drawn(arrays=few, of=array(pairing), **EVERYTHING, failed_pair=failed_pair)
        np.testing.assert_array_equal(part.states, whole.states[:few])
        np.testing.assert_array_equal(part.conductance, whole.conductance[: part.failed])


HIGHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(({**RATES}, {**RATES, name: RATES[name] + 0.1}) for name in NAMES),
    ({**RATES, "array_deviation": 0.7}, {**RATES, "array_deviation": 0.7, "unformed": 0.2}),
    ({"clusters": {"rate": 0.4, "radius": 3}}, {"clusters": {"rate": 2.5, "radius": 3}}),
    ({"clusters": {"rate": 2.5, "radius": 2}}, {"clusters": {"rate": 2.5, "radius": 3.5}}),
    *(({"lines": {kind: 0.1}}, {"lines": {kind: 0.3}}) for kind in EVERYTHING["lines"]),
    ({**RATES}, {**EVERYTHING, **RATES, "array_deviation": 0.0}),
]


@pytest.mark.parametrize(("lower", "higher"), HIGHER)
def test_what_fails_at_some_rates_also_fails_at_higher_ones(lower: dict[str, Any], higher: dict[str, Any]) -> None:
    few, many = drawn(**lower).states != State.OK, drawn(**higher).states != State.OK
    assert np.count_nonzero(many) > np.count_nonzero(few) > 0
    assert many[few].all()


def test_a_device_is_the_same_whatever_other_settings_are() -> None:
    """Its state where nothing overrules it, and its conductance, by its own numbers."""
    plain = drawn(**{name: EVERYTHING[name] for name in ("unformed", "overformed")})
    more = drawn(**EVERYTHING | {"array_deviation": 0.0})
    same = (plain.states != State.OK) & (more.states == plain.states)
    assert np.count_nonzero(same) > 500
    np.testing.assert_array_equal(dense(plain)[same], dense(more)[same])


def test_yield_differs_from_array_to_array_and_keeps_its_mean() -> None:
    arrays, deviation, rate = 400, 0.6, 0.05
    of = array(rows=50, cols=50)
    faults = drawn(arrays=arrays, of=of, stuck_hrs=rate, array_deviation=deviation)
    shares = (faults.states != State.OK).mean((1, 2))
    spread = np.sqrt(np.expm1(deviation**2))
    assert abs(shares.mean() / rate - 1) < SIGMAS * spread / np.sqrt(arrays)
    logs = np.log(shares)
    assert abs(logs.std() - deviation) < 0.1
    even = (drawn(arrays=arrays, of=of, stuck_hrs=rate).states != State.OK).mean((1, 2))
    assert even.std() < 1.3 * np.sqrt(rate * (1 - rate) / 2500)


def test_rates_that_vary_never_exceed_one() -> None:
    faults = drawn(stuck_hrs=0.6, stuck_lrs=0.3, array_deviation=1.0, arrays=60)
    shares = (faults.states != State.OK).mean((1, 2))
    assert shares.max() == 1.0
    whole = faults.states[shares == 1.0]
    as_often(np.count_nonzero(whole == State.STUCK_LRS), whole.size, 1 / 3)


# -- conductances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", FAILED)
def test_conductances_follow_their_distributions(state: State) -> None:
    name = state.name.lower()
    base: dict[str, Any] = {"rate": 0.5, "conductance": 50e-6}
    assert set(drawn(**only(name, base)).conductance) == {50e-6}

    uniform = drawn(**only(name, base | {"model": "uniform", "upper": 80e-6})).conductance
    check_quantiles((uniform - 50e-6) / 30e-6)

    from scipy.stats import truncnorm

    for deviation in (0.1, 0.8):
        values = drawn(
            **only(name, base | {"model": "normal", "deviation": deviation}), allow_unbounded=True
        ).conductance
        z = (values / 50e-6 - 1) / deviation
        low = max(-3.0, -1 / deviation)
        assert values.min() >= 0
        assert low - 1e-9 <= z.min() <= z.max() <= 3 + 1e-9
        check_quantiles(truncnorm.cdf(z, low, 3.0))
    assert set(drawn(**only(name, base | {"model": "normal"})).conductance) == {50e-6}


def check_quantiles(values: npt.NDArray[np.float64]) -> None:
    """Fail unless the values are uniform from 0 to 1 (Kolmogorov and Smirnov's test)."""
    ordered = np.sort(values)
    assert ordered[0] >= -1e-9
    assert ordered[-1] <= 1 + 1e-9
    assert np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max() < 2.5 / np.sqrt(len(ordered))


def test_states_have_the_conductances_of_the_range_by_default() -> None:
    faults = drawn(**RATES)
    found = dense(faults)
    for state, wanted in zip(FAILED, (0.0, 100e-6, 1e-6, 100e-6), strict=True):
        assert set(found[faults.states == state]) == {wanted}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["fixed", "normal", "uniform"])
def test_conductances_stay_where_the_spec_says_they_are_bounded(name: str, model: str) -> None:
    more = {"fixed": {}, "normal": {"deviation": 0.9}, "uniform": {"upper": 3e-4}}[model]
    spec = failures(**{name: {"rate": 0.5, "conductance": 2e-4, "model": model, **more}}, allow_unbounded=True)
    found = sample_faults(spec, DEVICE, array(), 4, 0).conductance
    low, high = spec.conductances(State[name.upper()], DEVICE)
    assert low <= found.min() <= found.max() <= high


# -- clusters and lines -----------------------------------------------------------------------------------------------


def test_clusters_are_as_many_as_their_rate_says() -> None:
    arrays, rate = 3000, 1.3
    # A disc of a radius below one is a single device, and on a large array hardly any two meet.
    faults = drawn(arrays=arrays, of=array(rows=64, cols=64), clusters={"rate": rate, "radius": 0.5})
    counts = np.count_nonzero(faults.states, axis=(1, 2))
    assert abs(counts.mean() - rate) < SIGMAS * np.sqrt(rate / arrays)
    assert abs(counts.var() - rate) < SIGMAS * np.sqrt((rate + 2 * rate**2) / arrays)
    rows, cols = np.nonzero(faults.states)[1:]
    for place in (rows, cols):  # anywhere alike
        check_quantiles((place + np.random.default_rng(0).random(len(place))) / 64)


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5, 4.2])
@pytest.mark.parametrize("state", NAMES)
def test_a_cluster_is_a_disc_of_its_state(radius: float, state: str) -> None:
    faults = drawn(arrays=200, clusters={"rate": 0.3, "radius": radius, "state": state})
    away = np.arange(-10, 11)
    disc = np.count_nonzero(np.hypot(away[:, None], away) <= radius)
    sizes = [np.count_nonzero(one) for one in faults.states]
    assert disc in sizes
    assert {int(code) for code in np.unique(faults.states)} == {0, int(State[state.upper()])}
    whole = next(one for one, size in zip(faults.states, sizes, strict=True) if size == disc)
    rows, cols = np.nonzero(whole)
    middle = rows.mean(), cols.mean()
    assert np.hypot(rows - middle[0], cols - middle[1]).max() <= radius


def test_a_large_cluster_covers_the_array() -> None:
    faults = drawn(clusters={"rate": 20, "radius": 1000})
    assert faults.failed == faults.states.size


def test_lines_fail_as_a_whole_and_as_often_as_they_should() -> None:
    shares = {"word_failed": 0.1, "word_shorted": 0.2}
    faults = drawn(arrays=60, lines=shares)
    assert (faults.states == faults.states[:, :, :1]).all()
    lines = faults.states[:, :, 0]
    as_often(np.count_nonzero(lines == State.UNFORMED), lines.size, 0.1)
    as_often(np.count_nonzero(lines == State.OVERFORMED), lines.size, 0.2)
    faults = drawn(arrays=60, lines={"bit_failed": 0.1, "bit_shorted": 0.2})
    assert (faults.states == faults.states[:, :1]).all()
    lines = faults.states[:, 0]
    as_often(np.count_nonzero(lines == State.UNFORMED), lines.size, 0.1)
    as_often(np.count_nonzero(lines == State.OVERFORMED), lines.size, 0.2)


def test_lines_overrule_clusters_and_clusters_overrule_single_devices() -> None:
    cells = only("stuck_hrs", 0.3)
    clusters = only("clusters", {"rate": 4, "radius": 4, "state": "stuck_lrs"})
    words, bits = {"word_failed": 0.2}, {"bit_shorted": 0.2}
    cell, cluster = drawn(**cells).states, drawn(**clusters).states
    word, bit = drawn(lines=words).states, drawn(lines=bits).states
    found = drawn(**cells, **clusters, lines=words | bits).states
    wanted = np.where(bit, bit, np.where(word, word, np.where(cluster, cluster, cell)))
    np.testing.assert_array_equal(found, wanted)
    assert {int(code) for code in np.unique(found)} == {0, 1, 2, 3, 4}


# -- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns", "neighbouring_rows"])
def test_zeroed_pairs_fail_alike_and_by_their_own_quantiles(pairing: Pairing) -> None:
    fields = {**EVERYTHING, "array_deviation": 0.0}
    before, after = (drawn(of=array(pairing), **fields, failed_pair=failed_pair) for failed_pair in ("as_is", "zero"))
    other = partners(before.states, pairing)
    np.testing.assert_array_equal(after.states, np.where(before.states == 0, other, before.states))
    stays = before.states != 0
    np.testing.assert_array_equal(dense(after)[stays], dense(before)[stays])
    became = (before.states == 0) & (after.states == State.UNFORMED)
    values = dense(after)[became]
    single = values[values > 0]
    assert len(np.unique(single)) == len(single) > 100


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"])
def test_a_device_is_its_partners_partner(pairing: Pairing) -> None:
    places = np.arange(6 * 4 * 8).reshape(6, 4, 8)
    other = partners(places, pairing)  # type: ignore[arg-type]
    np.testing.assert_array_equal(partners(other, pairing), places)
    if pairing == "reference":
        np.testing.assert_array_equal(other, places)
    else:
        step = {"two_arrays": 32, "neighbouring_rows": 8, "neighbouring_columns": 1}[pairing]
        assert set(np.unique(np.abs(other - places))) == {step}


def test_a_rate_of_devices_hits_about_twice_as_many_pairs() -> None:
    """10.79 % of the devices are 20.4 % of the pairs (``docs/physics.md``, Devices)."""
    faults = drawn(arrays=20, of=array(rows=128, cols=128), stuck_hrs=0.0904, stuck_lrs=0.0175)
    for pairing in ("two_arrays", "neighbouring_columns", "neighbouring_rows"):
        found = count_states(faults, pairing)
        assert found.pairs == faults.states.size // 2
        assert found.failed_share == pytest.approx(0.1079, abs=0.003)
        assert found.failed_pair_share == pytest.approx(0.204, abs=0.005)
    single = count_states(faults, "reference")
    assert (single.pairs, single.failed_pairs) == (single.devices, single.failed)


# -- statistics -------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    some.arrays(np.uint8, (5, 2, 4), elements=st.integers(0, 4)), st.sampled_from(["two_arrays", "neighbouring_rows"])
)
def test_statistics_count_devices_and_pairs(states: npt.NDArray[np.uint8], pairing: Pairing) -> None:
    found = count_states(FaultMap(states, np.zeros(np.count_nonzero(states))), pairing)
    assert found.devices == 40
    assert found.counts == {name: int((states == state).sum()) for name, state in zip(NAMES, FAILED, strict=True)}
    assert found.failed == sum(found.counts.values())
    assert found.failed_share == pytest.approx(sum(found.shares.values()))
    hit = states != 0
    pairs = hit[0:4:2] | hit[1:4:2] if pairing == "two_arrays" else hit[:, 0::2] | hit[:, 1::2]
    assert (found.pairs, found.failed_pairs) == (pairs.size, int(pairs.sum()))
    shares = [share for _, share in found.worst]
    assert shares == sorted(shares, reverse=True)
    for number, share in found.worst:
        assert share == hit[number].mean() > 0
    if found.worst:
        assert shares[0] == hit.mean((1, 2)).max()


def test_statistics_without_a_pairing_count_devices_only() -> None:
    found = count_states(drawn(**RATES))
    assert (found.pairs, found.failed_pairs, found.failed_pair_share) == (None, None, None)
    alone = count_states(drawn(arrays=1, **RATES), "two_arrays")
    assert (alone.pairs, alone.failed_pairs, alone.failed_pair_share) == (0, 0, None)


# -- errors of the map ------------------------------------------------------------------------------------------------


def test_a_test_misses_failed_devices_and_calls_good_ones_stuck() -> None:
    faults = drawn(**{**RATES, "unformed": EVERYTHING["unformed"]})
    found = with_map_errors(faults, faults.shape, MapErrors(missed=0.2, false=0.05), DEVICE, 1)
    failed = faults.states != State.OK
    missed, false = failed & (found.states == State.OK), ~failed & (found.states != State.OK)
    as_often(np.count_nonzero(missed), np.count_nonzero(failed), 0.2)
    as_often(np.count_nonzero(false), np.count_nonzero(~failed), 0.05)
    assert set(found.states[false]) == {State.STUCK_HRS}
    assert set(dense(found)[false]) == {DEVICE.g_min}
    kept = failed & ~missed
    np.testing.assert_array_equal(found.states[kept], faults.states[kept])
    np.testing.assert_array_equal(dense(found)[kept], dense(faults)[kept])


def test_a_test_errs_the_same_way_each_time_and_on_every_array_by_itself() -> None:
    faults, errors = drawn(**RATES), MapErrors(missed=0.2, false=0.05)
    one, again, other = (with_map_errors(faults, faults.shape, errors, DEVICE, seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    part = with_map_errors(drawn(arrays=2, **RATES), (2, ROWS, COLS), errors, DEVICE, 1)
    np.testing.assert_array_equal(part.states, one.states[:2])


def test_the_ends_of_map_errors() -> None:
    faults = drawn(**RATES)
    assert with_map_errors(faults, faults.shape, MapErrors(), DEVICE, 1) == faults
    assert with_map_errors(faults, faults.shape, MapErrors(missed=1), DEVICE, 1).failed == 0
    assert with_map_errors(None, (2, 3, 4), MapErrors(missed=1), DEVICE, 1).failed == 0
    called = with_map_errors(None, (2, 3, 4), MapErrors(false=1), DEVICE, 1)
    assert set(called.states.ravel()) == {State.STUCK_HRS}


def test_a_large_chip_is_drawn_in_seconds() -> None:
    start = time.process_time()
    faults = drawn(arrays=500, of=array(rows=128, cols=128), stuck_hrs=0.0904, stuck_lrs=0.0175)
    for number in itertools.chain(range(500), range(500)):
        faults.stuck(number)
    assert time.process_time() - start < 10
