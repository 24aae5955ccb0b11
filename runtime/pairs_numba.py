"""What pairs with failed devices come closest to, and what that costs, as compiled loops.

A device's share ``s = (G - g_min) / (g_max - g_min)`` is NaN where the device is good. A pair holds ``unit (s+ - s-)``:
`unit` is 1, and 2 for single devices, whose minus is the reference at one half. A device is told by the number of its
level (by its share, where levels are continuous), or is `OFF`. Every function takes contiguous arrays and trusts them;
the interpreter lock is released, so threads may share the tiles.
"""

import math

import numpy as np
import numpy.typing as npt

from runtime.physics.compiled_numba import Float64, Ints, compiled

Bytes = npt.NDArray[np.uint8]
OFF = -1.0
"""What tells that a device is gated off."""
GATE_PLUS, GATE_MINUS = 1, 2
"""Bits of a pair's gates: which of its devices can be gated off."""


@compiled()
def _level(share: float, levels: Float64) -> float:
    """The nearest level's number; the share itself, within its range, where levels are continuous."""
    count = len(levels)
    if count == 0:
        return min(max(share, 0.0), 1.0)
    low, high = 0, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        if levels[middle] <= share:
            low = middle
        else:
            high = middle
    return float(high if share - levels[low] > levels[high] - share else low)


@compiled()
def _share(device: float, levels: Float64, open_share: float) -> float:
    """The share that a device's number stands for."""
    if device < 0:
        return open_share
    return device if len(levels) == 0 else levels[int(device)]


@compiled()
def nearest(
    wanted: float, plus: float, minus: float, gate: int, levels: Float64, open_share: float, unit: float
) -> tuple[float, float, float]:
    """The weight closest to `wanted` that a pair can hold, and its devices (``docs/failures.md``).

    Gating comes last: of weights as close as each other the one that needs the fewest gates is taken.
    """
    x = wanted / unit
    good_plus, good_minus = math.isnan(plus), math.isnan(minus)
    if good_plus and good_minus:
        if x >= 0:
            device = _level(x, levels)
            return unit * _share(device, levels, open_share), device, 0.0
        device = _level(-x, levels)
        return -unit * _share(device, levels, open_share), 0.0, device
    best, best_plus, best_minus, error = 0.0, 0.0, 0.0, math.inf
    for gates in range(4):
        if gates & ~gate:
            continue
        held_plus = open_share if gates & 1 else plus
        held_minus = open_share if gates & 2 else minus
        device_plus = OFF if gates & 1 else 0.0
        device_minus = OFF if gates & 2 else 0.0
        if math.isnan(held_plus):
            device_plus = _level(x + held_minus, levels)
            held_plus = _share(device_plus, levels, open_share)
        elif not gates & 1:
            device_plus = _level(plus, levels)
        if math.isnan(held_minus):
            device_minus = _level(held_plus - x, levels)
            held_minus = _share(device_minus, levels, open_share)
        elif not gates & 2:
            device_minus = _level(minus, levels)
        value = held_plus - held_minus
        if abs(value - x) < error - 1e-12:
            best, best_plus, best_minus, error = value, device_plus, device_minus, abs(value - x)
    return unit * best, best_plus, best_minus


@compiled()
def _hull(plus: float, minus: float, gate: int, open_share: float, unit: float) -> tuple[float, float]:
    """Lowest and highest weight that a pair can hold."""
    lowest = 0.0 if math.isnan(plus) else plus
    highest = 1.0 if math.isnan(plus) else plus
    lowest_minus = 0.0 if math.isnan(minus) else minus
    highest_minus = 1.0 if math.isnan(minus) else minus
    if gate & 1:
        lowest, highest = min(lowest, open_share), max(highest, open_share)
    if gate & 2:
        lowest_minus, highest_minus = min(lowest_minus, open_share), max(highest_minus, open_share)
    return unit * (lowest - highest_minus), unit * (highest - lowest_minus)


@compiled()
def nearest_pairs(
    wanted: Float64, plus: Float64, minus: Float64, gate: Bytes, levels: Float64, open_share: float, unit: float,
    devices: Float64,
) -> None:  # fmt: skip
    """The devices ``(pairs, 2)`` that `nearest` gives, pair by pair."""
    for at in range(len(wanted)):
        found = nearest(wanted[at], plus[at], minus[at], gate[at], levels, open_share, unit)
        devices[at, 0], devices[at, 1] = found[1], found[2]


@compiled()
def hulls(plus: Float64, minus: Float64, gate: Bytes, open_share: float, unit: float, found: Float64) -> None:
    """Lowest and highest weight ``(pairs, 2)`` that pairs can hold."""
    for at in range(len(plus)):
        found[at, 0], found[at, 1] = _hull(plus[at], minus[at], gate[at], open_share, unit)


@compiled()
def _intervals(plus: float, minus: float, gate: int, open_share: float, unit: float, found: Float64) -> int:
    """Intervals of the weights that a pair can hold, one for each choice of gates; tells how many it filled."""
    count = 0
    for gates in range(4):
        if gates & ~gate:
            continue
        one = open_share if gates & 1 else plus
        other = open_share if gates & 2 else minus
        found[count, 0] = unit * ((0.0 if math.isnan(one) else one) - (1.0 if math.isnan(other) else other))
        found[count, 1] = unit * ((1.0 if math.isnan(one) else one) - (0.0 if math.isnan(other) else other))
        count += 1
    return count


@compiled()
def _rest(
    first: int,
    left: float,
    plus: Float64,
    minus: Float64,
    gate: Bytes,
    weights: Float64,
    steps: Float64,
    levels: Float64,
    open_share: float,
    unit: float,
    devices: Float64,
) -> float:
    """What the pairs from one on hold together for what is left, digit by digit; fills their devices."""
    parts = len(weights)
    low = high = span = 0.0
    for p in range(first, parts):
        span += weights[p]
        if p > first:
            a, b = _hull(plus[p], minus[p], gate[p], open_share, unit)
            low, high = low + weights[p] * a, high + weights[p] * b
    total, half = 0.0, weights[parts - 1] / max(len(levels) - 1, 1) / 2
    for p in range(first, parts):
        aim = left
        if p + 1 < parts:
            alike = 1
            while p + alike < parts and weights[p + alike] == weights[p]:
                alike += 1
            aim = left / alike
            if steps[p] > 0 and unit > 1:
                # Digits of single devices count from -1 up, not from 0.
                digit = math.floor(((left + span) / (2 * alike) + half) / steps[p] + 1e-9)
                aim = 2 * digit * steps[p] - weights[p]
            elif steps[p] > 0:
                aim = math.copysign(math.floor((abs(aim) + half) / steps[p] + 1e-9) * steps[p], aim)
            aim = min(max(aim, left - high), left - low)
        value, one, other = nearest(aim / weights[p], plus[p], minus[p], gate[p], levels, open_share, unit)
        devices[p, 0], devices[p, 1] = one, other
        total, left, span = total + weights[p] * value, left - weights[p] * value, span - weights[p]
        if p + 1 < parts:
            a, b = _hull(plus[p + 1], minus[p + 1], gate[p + 1], open_share, unit)
            low, high = low - weights[p + 1] * a, high - weights[p + 1] * b
    return total


@compiled()
def nearest_parts(
    wanted: float,
    plus: Float64,
    minus: Float64,
    gate: Bytes,
    weights: Float64,
    steps: Float64,
    levels: Float64,
    open_share: float,
    unit: float,
    devices: Float64,
) -> float:
    """The closest weight that several pairs can hold together, slices and replicas of one weight.

    Good pairs get the digits of the weight. Where one has a failed device, the most significant also tries its levels
    around what the others can make up for, whichever devices are gated off; of two pairs this finds the closest weight.

    Parameters
    ----------
    wanted
        In [-1, 1].
    plus, minus, gate : (parts,)
        Of the pairs, the most significant first.
    weights : (parts,)
        What each pair's full scale stands for.
    steps : (parts,)
        Step that a digit is cut to while less significant ones follow, 0 where none does.
    levels, open_share, unit
        Of the devices.
    devices : (parts, 2)
        Is filled.
    """
    parts = len(weights)
    total = _rest(0, wanted, plus, minus, gate, weights, steps, levels, open_share, unit, devices)
    whole = True
    for p in range(parts):
        whole = whole and math.isnan(plus[p]) and (unit > 1 or math.isnan(minus[p]))
    error = abs(total - wanted)
    if parts == 1 or whole or error < 1e-12:
        return total
    found, trial = np.empty((4, 2)), np.empty_like(devices)
    count = _intervals(plus[1], minus[1], gate[1], open_share, unit, found)
    for p in range(2, parts):
        a, b = _hull(plus[p], minus[p], gate[p], open_share, unit)
        for at in range(count):
            found[at, 0] += a * weights[p] / weights[1]
            found[at, 1] += b * weights[p] / weights[1]
    gap = unit / max(len(levels) - 1, 1)
    for gates in range(4):
        if gates & ~gate[0]:
            continue
        held_plus = open_share if gates & 1 else plus[0]
        held_minus = open_share if gates & 2 else minus[0]
        for at in range(count):
            middle = (wanted - weights[1] * (found[at, 0] + found[at, 1]) / 2) / weights[0]
            for way in range(-1, 2):
                value, one, other = nearest(middle + way * gap, held_plus, held_minus, 0, levels, open_share, unit)
                rest = _rest(
                    1, wanted - weights[0] * value, plus, minus, gate, weights, steps, levels, open_share, unit, trial
                )
                if abs(weights[0] * value + rest - wanted) < error - 1e-12:
                    total = weights[0] * value + rest
                    error = abs(total - wanted)
                    trial[0, 0] = OFF if gates & 1 else one
                    trial[0, 1] = OFF if gates & 2 else other
                    devices[:] = trial
    return total


@compiled()
def column_costs(
    weights: Float64,
    importance: Float64,
    row_at: Ints,
    plus: Float64,
    minus: Float64,
    gate: Bytes,
    open_share: float,
    unit: float,
    costs: Float64,
    flipped: Float64,
) -> None:
    """What each column of weights loses on each column of pairs, as it is and with the opposite sign.

    A weight loses the square of its distance to what its pair can hold.

    Parameters
    ----------
    weights : (k, n)
        Rows of weights.
    importance : (k,)
        Of the rows: variance of the inputs.
    row_at : (rows,)
        Row of weights on each row of pairs; -1 on rows that are not driven.
    plus, minus, gate : (cols, rows)
        Of the pairs.
    open_share, unit
        Of the devices.
    costs, flipped : (cols, n)
        Are filled.
    """
    costs[:] = 0.0
    flipped[:] = 0.0
    found = np.empty((4, 2))
    for c in range(plus.shape[0]):
        for r in range(plus.shape[1]):
            i = row_at[r]
            a, b = plus[c, r], minus[c, r]
            if i < 0 or (math.isnan(a) and (unit > 1 or math.isnan(b))):
                continue
            count = _intervals(a, b, gate[c, r], open_share, unit, found)
            scale = importance[i]
            for j in range(weights.shape[1]):
                w = weights[i, j]
                lost = max(w - found[0, 1], found[0, 0] - w, 0.0)
                turned = max(-w - found[0, 1], found[0, 0] + w, 0.0)
                for one in range(1, count):
                    lost = min(lost, max(w - found[one, 1], found[one, 0] - w, 0.0))
                    turned = min(turned, max(-w - found[one, 1], found[one, 0] + w, 0.0))
                costs[c, j] += scale * lost * lost
                flipped[c, j] += scale * turned * turned


@compiled()
def add_row_costs(
    weights: Float64,
    importance: Float64,
    column_importance: Float64,
    column_at: Ints,
    plus: Float64,
    minus: Float64,
    gate: Bytes,
    open_share: float,
    unit: float,
    costs: Float64,
) -> None:
    """Add what each row of weights loses on each row of a tile's pairs, its columns and signs being settled.

    Parameters
    ----------
    weights : (n, k)
        Columns of weights, signs applied.
    importance : (k,)
        Of the rows.
    column_importance : (n,)
        Of the columns.
    column_at : (cols,)
        Column of weights on each column of pairs; -1 on those that are not read.
    plus, minus, gate : (cols, rows)
        Of the pairs.
    open_share, unit
        Of the devices.
    costs : (rows, k)
        Is added to.
    """
    found = np.empty((4, 2))
    for c in range(plus.shape[0]):
        j = column_at[c]
        if j < 0:
            continue
        for r in range(plus.shape[1]):
            a, b = plus[c, r], minus[c, r]
            if math.isnan(a) and (unit > 1 or math.isnan(b)):
                continue
            count = _intervals(a, b, gate[c, r], open_share, unit, found)
            scale = column_importance[j]
            for i in range(weights.shape[1]):
                w = weights[j, i]
                lost = max(w - found[0, 1], found[0, 0] - w, 0.0)
                for one in range(1, count):
                    lost = min(lost, max(w - found[one, 1], found[one, 0] - w, 0.0))
                costs[r, i] += scale * importance[i] * lost * lost


@compiled()
def fit(
    target: Float64,
    plus: Float64,
    minus: Float64,
    gate: Bytes,
    chosen: Bytes,
    weights: Float64,
    steps: Float64,
    levels: Float64,
    open_share: float,
    unit: float,
    devices: Float64,
    value: Float64,
) -> None:
    """Bring chosen weights as close to what is wanted as their own pairs can.

    Parameters
    ----------
    target : (n, k)
        Columns of weights.
    plus, minus, gate : (n, k, parts)
        Of the pairs that hold each weight.
    chosen : (n, k)
        Weights to fit where it is not 0.
    weights, steps, levels, open_share, unit
        As in `nearest_parts`.
    devices, value : (n, k, parts, 2), (n, k)
        Are changed where chosen.
    """
    for j in range(target.shape[0]):
        for i in range(target.shape[1]):
            if chosen[j, i]:
                value[j, i] = nearest_parts(
                    target[j, i], plus[j, i], minus[j, i], gate[j, i], weights, steps, levels, open_share, unit,
                    devices[j, i],
                )  # fmt: skip
