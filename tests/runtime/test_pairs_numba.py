"""What pairs with failed devices come closest to: against all that they can hold, tried one by one."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.descent_numba import descend
from runtime.pairs_numba import OFF, add_row_costs, column_costs, nearest, nearest_parts

Float64 = npt.NDArray[np.float64]
NAN = math.nan
LEVELS = st.one_of(
    st.integers(2, 16).map(lambda count: np.linspace(0, 1, count)),
    st.sets(st.integers(1, 19), max_size=4).map(lambda inner: np.array([0.0, *(n / 20 for n in sorted(inner)), 1.0])),
    st.just(np.zeros(0)),
)
"""Uniform, listed, and none: continuous."""
OPEN = st.sampled_from([-0.01, -0.2])
FAILED = st.sampled_from([0.0, 1.0, -0.01, -0.2]) | st.floats(-0.2, 4)
"""Stuck at the ends, open, and within and beyond the range of good devices."""


@dataclass(frozen=True)
class Pair:
    """A pair: shares of its failed devices (NaN of good ones), and which can be gated off."""

    plus: float
    minus: float
    gate: int


@st.composite
def pairs(draw: st.DrawFn, unit: float) -> Pair:
    """Any pair; gates belong to pairs with a failed device, as `site_pairs` tells them."""
    plus = draw(st.just(NAN) | FAILED)
    minus = 0.5 if unit > 1 else draw(st.just(NAN) | FAILED)
    whole = math.isnan(plus) and (unit > 1 or math.isnan(minus))
    return Pair(plus, minus, 0 if whole else draw(st.integers(0, 1 if unit > 1 else 3)))


def shares_of(side: float, gated: bool, levels: Float64, open_share: float) -> list[float]:
    """All shares that a device can have."""
    good = levels if len(levels) else np.linspace(0, 1, 401)
    own = good.tolist() if math.isnan(side) else [side]
    return [*own, open_share] if gated else own


def all_values(pair: Pair, levels: Float64, open_share: float, unit: float) -> Float64:
    """All weights that a pair can hold; one device of a good pair stays at the lowest level."""
    plus = shares_of(pair.plus, bool(pair.gate & 1), levels, open_share)
    minus = shares_of(pair.minus, bool(pair.gate & 2), levels, open_share)
    if math.isnan(pair.plus) and math.isnan(pair.minus):
        return np.array([*plus, *(-share for share in plus)])
    return np.array([unit * (a - b) for a, b in itertools.product(plus, minus)])


def value_of(devices: Sequence[float], pair: Pair, levels: Float64, open_share: float, unit: float) -> float:
    """The weight that a pair holds whose devices are told by their numbers."""
    shares = []
    for device, stuck, bit in zip(devices, (pair.plus, pair.minus), (1, 2), strict=True):
        if device == OFF:
            assert pair.gate & bit
            shares.append(open_share)
        elif not math.isnan(stuck):
            shares.append(stuck)
        else:
            assert 0 <= device <= max(len(levels) - 1, 1)
            shares.append(float(levels[int(device)]) if len(levels) else device)
    return unit * (shares[0] - shares[1])


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(st.sampled_from([1.0, 2.0]), LEVELS, OPEN, st.floats(-1.5, 1.5), st.data())
def test_a_pair_holds_the_closest_weight(
    unit: float, levels: Float64, open_share: float, wanted: float, data: st.DataObject
) -> None:
    """No weight that any choice of levels and gates gives is closer; the devices told give the weight told."""
    pair = data.draw(pairs(unit))
    value, *devices = nearest(wanted, pair.plus, pair.minus, pair.gate, levels, open_share, unit)
    assert value == pytest.approx(value_of(devices, pair, levels, open_share, unit), abs=1e-12)
    best = np.abs(all_values(pair, levels, open_share, unit) - wanted).min()
    assert abs(value - wanted) <= best + 3e-12
    if len(levels):
        assert abs(value - wanted) >= best - 1e-12
    ungated = np.abs(all_values(Pair(pair.plus, pair.minus, 0), levels, open_share, unit) - wanted).min()
    if len(levels) and ungated <= best + 1e-13:
        assert OFF not in devices


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(st.sampled_from([1.0, 2.0]), st.integers(2, 5), OPEN, st.floats(-1, 1), st.booleans(), st.data())
def test_two_pairs_hold_the_closest_weight(
    unit: float, base: int, open_share: float, wanted: float, replicas: bool, data: st.DataObject
) -> None:
    """Two slices, or two replicas, of few levels: no combination is closer, standard digits among them."""
    levels = np.linspace(0, 1, base)
    weights, steps = np.array([0.5, 0.5]), np.zeros(2)
    if not replicas:
        weights = np.array([base, 1]) * (base - 1) / (base**2 - 1)
        steps[0] = weights[0] / (base - 1)
    found = [data.draw(pairs(unit)) for _ in range(2)]
    plus, minus = (np.array([getattr(pair, side) for pair in found]) for side in ("plus", "minus"))
    gate, devices = np.array([pair.gate for pair in found], np.uint8), np.zeros((2, 2))
    value = nearest_parts(wanted, plus, minus, gate, weights, steps, levels, open_share, unit, devices)
    told = [value_of(devices[p].tolist(), found[p], levels, open_share, unit) for p in range(2)]
    assert value == pytest.approx(weights @ told, abs=1e-12)
    one, other = (all_values(pair, levels, open_share, unit) for pair in found)
    best = np.abs(weights[0] * one[:, None] + weights[1] * other - wanted).min()
    assert abs(value - wanted) == pytest.approx(best, abs=1e-9)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.sampled_from([1.0, 2.0]), st.integers(2, 4), st.integers(3, 4), st.integers(1, 2), st.floats(-1, 1))
def test_good_pairs_hold_the_digits_of_a_weight(
    unit: float, base: int, slices: int, replicas: int, wanted: float
) -> None:
    """Slices of good pairs hold a weight to half of the finest level, whatever the target."""
    count = base**slices - 1
    weights = np.repeat([(base - 1) * base**n / count / replicas for n in reversed(range(slices))], replicas)
    steps = weights / (base - 1)
    steps[-replicas:] = 0
    parts = len(weights)
    plus, minus = np.full(parts, NAN), np.full(parts, NAN if unit == 1 else 0.5)
    value = nearest_parts(
        wanted, plus, minus, np.zeros(parts, np.uint8), weights, steps, np.linspace(0, 1, base), -0.01, unit,
        np.zeros((parts, 2)),
    )  # fmt: skip
    assert abs(value - wanted) <= unit / count / 2 + 1e-9


def test_three_pairs_hold_nearly_the_closest_weight() -> None:
    """Only of two pairs the closest weight is found for sure.

    Of three slices of three levels with 30 % failed devices, s in {0, 1}, 3 % of the weights are further off than they
    need be, by one of the finest levels.
    """
    generator, base = np.random.default_rng(0), 3
    weights = np.array([9, 3, 1]) * 2 / 26
    steps, levels = np.append(weights[:2] / 2, 0), np.linspace(0, 1, base)
    excess = []
    for _ in range(2000):
        sides = np.where(generator.random((2, 3)) < 0.3, generator.integers(0, 2, (2, 3)), NAN)
        wanted = generator.uniform(-1, 1)
        value = nearest_parts(
            wanted, sides[0], sides[1], np.zeros(3, np.uint8), weights, steps, levels, 0.0, 1.0, np.zeros((3, 2))
        )
        held = [all_values(Pair(sides[0, p], sides[1, p], 0), levels, 0.0, 1.0) for p in range(3)]
        sums = weights[0] * held[0][:, None, None] + weights[1] * held[1][:, None] + weights[2] * held[2]
        excess.append(abs(value - wanted) - np.abs(sums - wanted).min())
    print(f"further off: {np.mean(np.array(excess) > 1e-9):.3f} of the weights, by at most {max(excess) * 26:.2f}/26")
    assert np.mean(np.array(excess) > 1e-9) < 0.05
    assert max(excess) <= 1 / 26 + 1e-9


def distance(weight: float, pair: Pair, open_share: float, unit: float) -> float:
    """How far a weight lies from all that a pair of continuous devices can hold."""
    found = math.inf
    for gates in range(4):
        if gates & ~pair.gate:
            continue
        plus, minus = (open_share if gates & 1 else pair.plus), (open_share if gates & 2 else pair.minus)
        low = unit * ((0 if math.isnan(plus) else plus) - (1 if math.isnan(minus) else minus))
        high = unit * ((1 if math.isnan(plus) else plus) - (0 if math.isnan(minus) else minus))
        found = min(found, max(low - weight, weight - high, 0.0))
    return found


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from([1.0, 2.0]), OPEN, st.integers(0, 2**32 - 1), st.data())
def test_costs_of_lines_are_what_weights_lose_there(
    unit: float, open_share: float, seed: int, data: st.DataObject
) -> None:
    """Of each column on each line, as it is and turned; and of each row: sums over all pairs, one by one."""
    generator = np.random.default_rng(seed)
    rows, cols, lines, places = (data.draw(st.integers(1, 5)) for _ in range(4))
    lines, places = max(lines, cols), max(places, rows)
    board = [[data.draw(pairs(unit)) for _ in range(places)] for _ in range(lines)]
    plus, minus = (np.array([[getattr(one, side) for one in line] for line in board]) for side in ("plus", "minus"))
    gate = np.array([[one.gate for one in line] for line in board], np.uint8)
    weights, importance, scales = generator.uniform(-1, 1, (rows, cols)), generator.random(rows), generator.random(cols)
    row_at, col_at = np.full(places, -1), np.full(lines, -1)
    row_at[generator.permutation(places)[:rows]] = np.arange(rows)
    col_at[generator.permutation(lines)[:cols]] = np.arange(cols)

    def lost(row: int, col: int, line: int, place: int, sign: int = 1) -> float:
        pair = board[line][place]
        if math.isnan(pair.plus) and (unit > 1 or math.isnan(pair.minus)):
            return 0.0
        return float(importance[row] * distance(sign * weights[row, col], pair, open_share, unit) ** 2)

    costs, turned = np.empty((2, lines, cols))
    column_costs(weights, importance, row_at, plus, minus, gate, open_share, unit, costs, turned)
    for sign, found in ((1, costs), (-1, turned)):
        wanted = [
            [sum(lost(r, c, line, p, sign) for p, r in enumerate(row_at) if r >= 0) for c in range(cols)]
            for line in range(lines)
        ]
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    of_rows = np.ones((places, rows))
    add_row_costs(
        np.ascontiguousarray(weights.T), importance, scales, col_at, plus, minus, gate, open_share, unit, of_rows
    )
    wanted = [
        [1 + sum(scales[c] * lost(r, c, line, p) for line, c in enumerate(col_at) if c >= 0) for r in range(rows)]
        for p in range(places)
    ]
    np.testing.assert_allclose(of_rows, wanted, atol=1e-12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from([1.0, 2.0]), LEVELS, OPEN, st.integers(1, 2), st.integers(0, 2**32 - 1), st.data())
def test_the_descent_never_loses(
    unit: float, levels: Float64, open_share: float, replicas: int, seed: int, data: st.DataObject
) -> None:
    """No column's error rises; every weight is one that its devices hold; pinned weights stay; errors are told."""
    generator = np.random.default_rng(seed)
    cols, rows = 2, data.draw(st.integers(1, 8))
    board = [[[data.draw(pairs(unit)) for _ in range(replicas)] for _ in range(rows)] for _ in range(cols)]
    plus, minus = (
        np.array([[[getattr(one, side) for one in weight] for weight in column] for column in board])
        for side in ("plus", "minus")
    )
    gate = np.array([[[one.gate for one in weight] for weight in column] for column in board], np.uint8)
    weights, steps = np.full(replicas, 1 / replicas), np.zeros(replicas)
    target = generator.uniform(-1, 1, (cols, rows))
    value, devices = np.empty((cols, rows)), np.zeros((cols, rows, replicas, 2))
    for at in np.ndindex(cols, rows):
        value[at] = nearest_parts(
            float(target[at]), plus[at], minus[at], gate[at], weights, steps, levels, open_share, unit, devices[at]
        )
    root = generator.standard_normal((rows, rows))
    H = np.ascontiguousarray(root @ root.T + 1e-3 * np.eye(rows))
    pinned = (generator.random((cols, rows)) < 0.2).astype(np.uint8)
    value[pinned > 0] = target[pinned > 0]
    before, kept, errors = value.copy(), devices.copy(), np.empty((cols, 2))
    descend(
        H, target, value, plus, minus, gate, weights, steps, levels, open_share, unit, pinned, devices, 40,
        4 if len(levels) else 0, errors,
    )  # fmt: skip
    of = [np.einsum("nk,kl,nl->n", one - target, H, one - target) for one in (before, value)]
    assert (of[1] <= of[0] * (1 + 1e-9) + 1e-12).all()
    np.testing.assert_allclose(errors.T, of, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(value[pinned > 0], before[pinned > 0])
    np.testing.assert_array_equal(devices[pinned > 0], kept[pinned > 0])
    for c, r in zip(*np.nonzero(pinned == 0), strict=True):
        told = [value_of(devices[c, r, p].tolist(), board[c][r][p], levels, open_share, unit) for p in range(replicas)]
        assert value[c, r] == pytest.approx(weights @ told, abs=1e-9)


def test_the_descent_lets_good_devices_make_up_for_failed_ones() -> None:
    """Two inputs that are always alike: what one weight cannot hold the other takes over, to nothing."""
    H = np.ones((2, 2)) + 1e-9 * np.eye(2)
    target, value = np.array([[0.6, 0.1]]), np.array([[0.0, 0.1]])
    plus, minus = np.array([[[0.0], [NAN]]]), np.full((1, 2, 1), NAN)
    devices, errors = np.zeros((1, 2, 1, 2)), np.empty((1, 2))
    descend(
        H, target, value, plus, minus, np.zeros((1, 2, 1), np.uint8), np.ones(1), np.zeros(1), np.zeros(0), -0.01, 1.0,
        np.zeros((1, 2), np.uint8), devices, 40, 0, errors,
    )  # fmt: skip
    np.testing.assert_allclose(value.sum(), 0.7, atol=1e-6)
    assert errors[0, 1] < 1e-6 * errors[0, 0]
