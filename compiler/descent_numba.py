"""Coordinate descent of a column's weights over what its pairs can hold, as compiled loops.

Every function here takes contiguous arrays and trusts them; the interpreter lock is released, so threads may share the
columns.
"""

import math

import numpy as np

from runtime.pairs_numba import Bytes, nearest_parts
from runtime.physics.compiled_numba import Float64, compiled

_BETTER = 1e-9
"""Moves closer to the best value than before by less than this are not taken: they could go round in circles."""
_GAIN = 1e-9
"""Moves of two weights lower the error by more than this share of it."""


@compiled()
def _sweep(
    covariance: Float64,
    value: Float64,
    slope: Float64,
    plus: Float64,
    minus: Float64,
    gate: Bytes,
    weights: Float64,
    steps: Float64,
    levels: Float64,
    open_share: float,
    unit: float,
    pinned: Bytes,
    devices: Float64,
    trial: Float64,
) -> bool:
    """One pass over a column: each weight in turn goes to the best that it can hold given the others."""
    changed = False
    k = len(value)
    for i in range(k):
        if pinned[i] or covariance[i, i] <= 0:
            continue
        held = value[i]
        wanted = held - slope[i] / covariance[i, i]
        found = nearest_parts(wanted, plus[i], minus[i], gate[i], weights, steps, levels, open_share, unit, trial)
        if abs(found - wanted) < abs(held - wanted) - _BETTER:
            step = found - held
            value[i] = found
            devices[i] = trial
            for m in range(k):
                slope[m] += covariance[i, m] * step
            changed = True
    return changed


@compiled()
def _neighbours(
    i: int,
    gap: float,
    value: Float64,
    plus: Float64,
    minus: Float64,
    gate: Bytes,
    weights: Float64,
    steps: Float64,
    levels: Float64,
    open_share: float,
    unit: float,
    pinned: Bytes,
    moves: Float64,
    trial: Float64,
) -> None:
    """Fill how far weight `i` can go up and down by about one level, 0 where it cannot."""
    moves[0, i] = moves[1, i] = 0.0
    if pinned[i]:
        return
    for way in range(2):
        wanted = value[i] + (gap if way == 0 else -gap)
        found = nearest_parts(wanted, plus[i], minus[i], gate[i], weights, steps, levels, open_share, unit, trial)
        step = found - value[i]
        if abs(step) > 1e-6 and abs(step) < 2 * gap and (step > 0) == (way == 0):
            moves[way, i] = step


@compiled("contract", "nsz", "nnan", "ninf", "reassoc")
def _best_partner(row: Float64, alone: Float64, moves: Float64, step: float, i: int) -> tuple[float, int, int]:
    """The second move that goes best with a step of weight `i`: its cost beside that step's own, way and weight."""
    best, way_at, at = math.inf, 0, -1
    for way in range(2):
        lowest = 1e300
        for m in range(len(row)):
            lowest = min(lowest, alone[way, m] + 2 * step * moves[way, m] * row[m])
        if lowest < best:
            best, way_at = lowest, way
    for m in range(len(row)):
        cost = alone[way_at, m] + 2 * step * moves[way_at, m] * row[m]
        if m != i and moves[way_at, m] != 0 and cost <= best:
            at = m
    return best, way_at, at


@compiled()
def _pairs(
    covariance: Float64,
    value: Float64,
    slope: Float64,
    gap: float,
    plus: Float64,
    minus: Float64,
    gate: Bytes,
    weights: Float64,
    steps: Float64,
    levels: Float64,
    open_share: float,
    unit: float,
    pinned: Bytes,
    devices: Float64,
    trial: Float64,
    moves: Float64,
    alone: Float64,
    least: float,
) -> bool:
    """One pass over a column: each weight takes a step together with the other whose step goes best with it."""
    k, changed = len(value), False
    for i in range(k):
        _neighbours(i, gap, value, plus, minus, gate, weights, steps, levels, open_share, unit, pinned, moves, trial)
    for m in range(k):
        for way in range(2):
            alone[way, m] = moves[way, m] * (2 * slope[m] + moves[way, m] * covariance[m, m])
    for i in range(k):
        for way in range(2):
            step = moves[way, i]
            if step == 0:
                continue
            own = step * (2 * slope[i] + step * covariance[i, i])
            # The weight itself is no partner: its entries are out of the way while its row is searched.
            kept_up, kept_down = alone[0, i], alone[1, i]
            alone[0, i] = alone[1, i] = 1e300
            cost, other_way, other = _best_partner(covariance[i], alone, moves, step, i)
            alone[0, i], alone[1, i] = kept_up, kept_down
            if other < 0 or own + cost >= -least:
                continue
            for at, one in ((i, way), (other, other_way)):
                wanted = value[at] + (gap if one == 0 else -gap)  # as its step was found: what is nearest may be far
                found = nearest_parts(
                    wanted, plus[at], minus[at], gate[at], weights, steps, levels, open_share, unit, trial
                )
                devices[at] = trial
                by = found - value[at]
                value[at] = found
                for m in range(k):
                    slope[m] += covariance[at, m] * by
            for at in (i, other):
                _neighbours(
                    at, gap, value, plus, minus, gate, weights, steps, levels, open_share, unit, pinned, moves, trial
                )
            for m in range(k):
                for one in range(2):
                    alone[one, m] = moves[one, m] * (2 * slope[m] + moves[one, m] * covariance[m, m])
            changed = True
            break
    return changed


@compiled()
def descend(
    covariance: Float64,
    target: Float64,
    value: Float64,
    plus: Float64,
    minus: Float64,
    gate: Bytes,
    weights: Float64,
    steps: Float64,
    levels: Float64,
    open_share: float,
    unit: float,
    pinned: Bytes,
    devices: Float64,
    sweeps: int,
    rounds: int,
    errors: Float64,
) -> None:
    """Let the good devices of a column make up for its failed ones: coordinate descent over levels within reach.

    The error of a column is ``(v - w)' H (v - w)``; each weight in turn goes to the closest that it can hold to what
    is best given the others, ``v_i - (H e)_i / H_ii`` (``physics.md`` section 5, step 5). Where that ends, two weights
    at a time take a step of about a level, and the descent goes on from there. The error never rises.

    Parameters
    ----------
    covariance : (k, k)
        H.
    target, value : (n, k)
        Columns of weights wanted, and held; `value` is changed.
    plus, minus, gate : (n, k, parts)
        Of the pairs that hold each weight.
    weights, steps, levels, open_share, unit
        As in `runtime.pairs_numba.nearest_parts`.
    pinned : (n, k)
        Weights that stay as they are where it is not 0.
    devices : (n, k, parts, 2)
        Of each weight; is changed.
    sweeps
        At most so many passes over each column; they end when one changes nothing.
    rounds
        At most so many times two weights move at a time; continuous weights need none.
    errors : (n, 2)
        Error of each column before and after; is filled.
    """
    n, k = target.shape
    parts = len(weights)
    trial = np.zeros((parts, 2))
    slope = np.zeros(k)
    moves, alone = np.zeros((2, k)), np.zeros((2, k))
    smallest = weights[parts - 1]
    gap = unit * smallest / max(len(levels) - 1, 1)
    for j in range(n):
        slope[:] = 0.0
        before = 0.0
        for i in range(k):
            error = value[j, i] - target[j, i]
            if error != 0:
                for m in range(k):
                    slope[m] += covariance[i, m] * error
        for i in range(k):
            before += slope[i] * (value[j, i] - target[j, i])
        errors[j, 0] = before
        for turn in range(rounds + 1):
            for _ in range(sweeps):
                if not _sweep(
                    covariance,
                    value[j],
                    slope,
                    plus[j],
                    minus[j],
                    gate[j],
                    weights,
                    steps,
                    levels,
                    open_share,
                    unit,
                    pinned[j],
                    devices[j],
                    trial,
                ):
                    break
            if turn == rounds or not _pairs(
                covariance,
                value[j],
                slope,
                gap,
                plus[j],
                minus[j],
                gate[j],
                weights,
                steps,
                levels,
                open_share,
                unit,
                pinned[j],
                devices[j],
                trial,
                moves,
                alone,
                _GAIN * before,
            ):
                break
        after = 0.0
        for i in range(k):
            after += slope[i] * (value[j, i] - target[j, i])
        errors[j, 1] = after
