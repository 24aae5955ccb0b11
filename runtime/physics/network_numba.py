"""The sweeps of `runtime.physics.network_sweeps` as compiled loops (``docs/physics.md``, Wires): see there.

Arrays are ``(M, N)``, word line by bit line, contiguous and float64; every function here trusts them. The interpreter
lock is released, so threads may share the vectors.
"""

import math

import numpy as np
import numpy.typing as npt

from runtime.physics.compiled_numba import Float64, Ints, compiled
from runtime.physics.network_sweeps import ENOUGH, FIRST_SHARE, LINE_SEARCH, NOISE, OVERSHOOT, PATIENCE, WORSE

KEEP_W, DROP_W, KEEP_B, DROP_B = 0, 1, 2, 3  # factors of the word lines and the bit lines
U, V, SUPPLIED, DRAINED, CURRENT = 4, 5, 6, 7, 8  # where the network is
TO_U, TO_V, NOW = 9, 10, 11  # where a step ends
SLOPE, SURPLUS, SEEN, GAP, PULL = 12, 13, 14, 15, 16  # the network of tangents
Z, STEP, STEP_SEEN, STEP_U = 17, 18, 19, 20  # the direction of a sweep
ROOMS = 21


@compiled("contract")
def _sinh(x: float) -> float:
    """Hyperbolic sine; faster than the library's, and as precise."""
    if abs(x) < 0.5:
        s = x * x
        # The series, to its term of order 15.
        rest = 1.0 + s / 110.0 * (1.0 + s / 156.0 * (1.0 + s / 210.0))
        return x * (1.0 + s / 6.0 * (1.0 + s / 20.0 * (1.0 + s / 42.0 * (1.0 + s / 72.0 * rest))))
    t = math.exp(x)
    return 0.5 * (t - 1.0 / t)


@compiled("contract")
def _currents(kind: int, law: Float64, G: Float64, e: Float64, current: Float64) -> None:
    """Currents at the voltages e, all raveled: 0 ohmic, 1 sinh, 2 cubic; law = (alpha, scale, share below 0 V)."""
    alpha, scale, below = law
    for k in range(e.size):
        x = e[k]
        g = G[k] * below if x < 0.0 else G[k]
        if kind == 0:
            current[k] = g * x
        elif kind == 1:
            current[k] = g * (scale * _sinh(alpha * x))
        else:
            current[k] = g * (x * scale * (1.0 + alpha * x * x))


@compiled("contract", "reassoc")
def _tangents(kind: int, law: Float64, G: Float64, u: Float64, v: Float64, current: Float64, w: Float64) -> None:
    """Slopes of the devices at their present currents, and the current that their tangents have at no voltage."""
    alpha, scale, below = law
    for k in range(u.size):
        x = u[k] - v[k]
        g = G[k] * below if x < 0.0 else G[k]
        if kind == 1:
            s = current[k] / (g * scale) if g > 0.0 else 0.0
            g *= scale * alpha * math.sqrt(1.0 + s * s)
        elif kind == 2:
            g *= scale * (1.0 + 3.0 * alpha * x * x)
        w[SLOPE, k] = g
        w[SURPLUS, k] = current[k] - g * x


@compiled("contract")
def _factor(g: Float64, rw: Float64, rb: Float64, w: Float64) -> None:
    """Factors of all lines (``march.bit_line_factors``), each from its open end."""
    m, n = g.shape
    seen = np.zeros(n)
    for i in range(m):
        s = 0.0
        for j in range(n - 1, -1, -1):
            s += g[i, j]
            r = rw[i, j]
            if r < np.inf:
                k = 1.0 / (1.0 + r * s)
                w[KEEP_W, i, j] = k
                w[DROP_W, i, j] = r * k
                s *= k
            else:
                w[KEEP_W, i, j] = 0.0
                w[DROP_W, i, j] = 1.0 / s if s > 0.0 else 0.0
                s = 0.0
        for j in range(n):
            s = seen[j] + g[i, j]
            r = rb[i, j]
            k = 1.0 / (1.0 + r * s) if r < np.inf else 0.0
            w[KEEP_B, i, j] = k
            w[DROP_B, i, j] = r * k if r < np.inf else (1.0 / s if s > 0.0 else 0.0)
            seen[j] = s * k


@compiled("contract")
def _bit_lines(keep: Float64, drop: Float64, pull: Float64, ends: Float64, flow: Float64, y: Float64) -> None:
    """Voltages y of the bit lines to which devices pull the currents `pull`; flow (N,) is room to work in."""
    m, n = pull.shape
    for j in range(n):
        flow[j] = 0.0
    for i in range(m):
        for j in range(n):
            f = flow[j] + pull[i, j]
            y[i, j] = drop[i, j] * f
            flow[j] = keep[i, j] * f
    for j in range(n):
        y[m - 1, j] += keep[m - 1, j] * ends[j]
    for i in range(m - 2, -1, -1):
        for j in range(n):
            y[i, j] += keep[i, j] * y[i + 1, j]


@compiled("contract")
def _word_lines(keep: Float64, drop: Float64, pull: Float64, ends: Float64, y: Float64) -> None:
    """Voltages y of the word lines to which devices pull the currents `pull`; four lines at once, which hides waits."""
    m, n = pull.shape
    for i in range(0, m - m % 4, 4):
        a = b = c = d = 0.0
        for j in range(n - 1, -1, -1):
            a += pull[i, j]
            b += pull[i + 1, j]
            c += pull[i + 2, j]
            d += pull[i + 3, j]
            y[i, j] = drop[i, j] * a
            y[i + 1, j] = drop[i + 1, j] * b
            y[i + 2, j] = drop[i + 2, j] * c
            y[i + 3, j] = drop[i + 3, j] * d
            a *= keep[i, j]
            b *= keep[i + 1, j]
            c *= keep[i + 2, j]
            d *= keep[i + 3, j]
        a, b, c, d = ends[i], ends[i + 1], ends[i + 2], ends[i + 3]
        for j in range(n):
            a = y[i, j] + keep[i, j] * a
            b = y[i + 1, j] + keep[i + 1, j] * b
            c = y[i + 2, j] + keep[i + 2, j] * c
            d = y[i + 3, j] + keep[i + 3, j] * d
            y[i, j], y[i + 1, j], y[i + 2, j], y[i + 3, j] = a, b, c, d
    for i in range(m - m % 4, m):
        a = 0.0
        for j in range(n - 1, -1, -1):
            a += pull[i, j]
            y[i, j] = drop[i, j] * a
            a *= keep[i, j]
        a = ends[i]
        for j in range(n):
            a = y[i, j] + keep[i, j] * a
            y[i, j] = a


@compiled("contract", "reassoc")
def _pull_gap(w: Float64) -> float:
    """Let the devices pull by the gap; the currents astray."""
    total = 0.0
    for k in range(w.shape[1]):
        pull = w[SLOPE, k] * w[GAP, k]
        w[PULL, k] = pull
        total += abs(pull)
    return total


@compiled("contract", "reassoc")
def _turn(w: Float64, share: float) -> None:
    """Direction of the next sweep, conjugate to the one before, and what its devices pull."""
    for k in range(w.shape[1]):
        step = w[Z, k] + share * w[STEP, k]
        w[STEP, k] = step
        w[STEP_SEEN, k] = w[GAP, k] + share * w[STEP_SEEN, k]
        w[PULL, k] = w[SLOPE, k] * step


@compiled("contract", "reassoc")
def _curvature(w: Float64) -> float:
    total = 0.0
    for k in range(w.shape[1]):
        total += w[PULL, k] * (w[STEP_SEEN, k] - w[STEP_U, k])
    return total


@compiled("contract", "reassoc")
def _go(w: Float64, far: float) -> None:
    for k in range(w.shape[1]):
        w[TO_U, k] += far * w[STEP_U, k]
        w[TO_V, k] += far * w[STEP, k]
        w[SEEN, k] += far * w[STEP_SEEN, k]
        w[GAP, k] += far * (w[STEP_U, k] - w[STEP_SEEN, k])


@compiled("contract", "reassoc")
def _dot(a: Float64, b: Float64) -> float:
    total = 0.0
    for k in range(a.size):
        total += a[k] * b[k]
    return total


@compiled("contract")
def _tangent_network(
    w: Float64, flat: Float64, volts: Float64, sense: Float64, flow: Float64, enough: float, max_sweeps: int
) -> int:
    """From U and the tangents to TO_U, TO_V and SEEN (``network_sweeps._tangent_network``); the sweeps it took."""
    for k in range(flat.shape[1]):
        flat[SEEN, k] = flat[U, k]
        flat[PULL, k] = flat[SLOPE, k] * flat[U, k] + flat[SURPLUS, k]
    _bit_lines(w[KEEP_B], w[DROP_B], w[PULL], sense, flow, w[TO_V])
    for k in range(flat.shape[1]):
        flat[PULL, k] = flat[SLOPE, k] * flat[TO_V, k] - flat[SURPLUS, k]
    _word_lines(w[KEEP_W], w[DROP_W], w[PULL], volts, w[TO_U])
    for k in range(flat.shape[1]):
        flat[GAP, k] = flat[TO_U, k] - flat[SEEN, k]
        flat[STEP, k] = flat[STEP_SEEN, k] = 0.0
    no_sense, no_volts = np.zeros(sense.size), np.zeros(volts.size)
    before = np.inf
    sweeps = 1
    while _pull_gap(flat) > enough and sweeps < max_sweeps:
        _bit_lines(w[KEEP_B], w[DROP_B], w[PULL], no_sense, flow, w[Z])
        size = _dot(flat[Z], flat[PULL])
        _turn(flat, size / before)
        _word_lines(w[KEEP_W], w[DROP_W], w[PULL], no_volts, w[STEP_U])
        curvature = _curvature(flat)
        if not (size > 0.0 and curvature > 0.0):
            break
        _go(flat, size / curvature)
        before = size
        sweeps += 1
    return sweeps


@compiled("contract", "reassoc")
def _mismatch(w: Float64, far: float) -> tuple[float, float]:
    """Slope of the co-content along the step, and the currents astray, with the currents NOW at a share of the step."""
    slope = size = 0.0
    for k in range(w.shape[1]):
        to_supplied = w[SLOPE, k] * (w[TO_U, k] - w[TO_V, k]) + w[SURPLUS, k]
        to_drained = w[SLOPE, k] * (w[SEEN, k] - w[TO_V, k]) + w[SURPLUS, k]
        word = w[NOW, k] - (w[SUPPLIED, k] + far * (to_supplied - w[SUPPLIED, k]))
        bit = w[NOW, k] - (w[DRAINED, k] + far * (to_drained - w[DRAINED, k]))
        slope += word * (w[TO_U, k] - w[U, k]) - bit * (w[TO_V, k] - w[V, k])
        size += abs(word) + abs(bit)
    return slope, size


@compiled("contract")
def _advance(kind: int, law: Float64, G: Float64, w: Float64, patient: bool) -> None:
    """Go all of a step, or to about where the co-content is least on it (``network_sweeps._advance``)."""
    w[NOW] = w[CURRENT]
    at_start, size_start = _mismatch(w, 0.0)
    low, slope_low, high, slope_high = 0.0, at_start, 0.0, 0.0
    far = 1.0
    for tries in range(1, LINE_SEARCH + 1):
        for k in range(w.shape[1]):
            start = w[U, k] - w[V, k]
            w[PULL, k] = start + far * (w[TO_U, k] - w[TO_V, k] - start)
        _currents(kind, law, G, w[PULL], w[NOW])
        here, size = _mismatch(w, far)
        enough = OVERSHOOT * abs(at_start)
        fits = here <= enough and (far == 1.0 or here >= -enough)
        whole = patient and far == 1.0 and size <= WORSE * size_start
        if fits or whole or size < 0.5 * size_start or tries == LINE_SEARCH:
            break
        if here < 0.0:
            low, slope_low = far, here
        else:
            high, slope_high = far, here
        rise = slope_high - slope_low
        inside = -slope_low / rise if rise > 0.0 else 0.1
        far = low + (high - low) * min(max(inside, 0.1), 0.9)
    for k in range(w.shape[1]):
        to_supplied = w[SLOPE, k] * (w[TO_U, k] - w[TO_V, k]) + w[SURPLUS, k]
        to_drained = w[SLOPE, k] * (w[SEEN, k] - w[TO_V, k]) + w[SURPLUS, k]
        w[SUPPLIED, k] += far * (to_supplied - w[SUPPLIED, k])
        w[DRAINED, k] += far * (to_drained - w[DRAINED, k])
        w[U, k] += far * (w[TO_U, k] - w[U, k])
        w[V, k] += far * (w[TO_V, k] - w[V, k])
        w[CURRENT, k] = w[NOW, k]


@compiled("contract")
def _sensed(current: Float64, rb: Float64, out: Float64) -> None:
    for j in range(current.shape[1]):
        out[j] = 0.0
    for i in range(current.shape[0]):
        for j in range(current.shape[1]):
            out[j] = out[j] + current[i, j] if rb[i, j] < np.inf else 0.0


@compiled("contract")
def _driven(supplied: Float64, rw: Float64, out: Float64) -> None:
    for i in range(supplied.shape[0]):
        flow = 0.0
        for j in range(supplied.shape[1] - 1, -1, -1):
            flow = flow + supplied[i, j] if rw[i, j] < np.inf else 0.0
        out[i] = flow


@compiled("contract", "reassoc")
def _astray(w: Float64) -> tuple[float, float, float]:
    """Currents astray, the largest current of a device, and how much of a current rounding can hide."""
    total = largest = hidden = 0.0
    for k in range(w.shape[1]):
        current = w[CURRENT, k]
        total += abs(w[SUPPLIED, k] - current) + abs(current - w[DRAINED, k])
        largest = max(largest, abs(current))
        hidden += w[SLOPE, k] * (abs(w[U, k]) + abs(w[V, k]))
    return total, largest, NOISE * hidden


@compiled("contract")
def sweep_all(
    G: Float64,
    rw: Float64,
    rb: Float64,
    volts: Float64,
    sense: Float64,
    word_start: Float64,
    bit_start: Float64,
    kind: int,
    law: Float64,
    tolerance: float,
    max_sweeps: int,
    sensed: Float64,
    driven: Float64,
    sweeps: Ints,
    astray: Float64,
    converged: npt.NDArray[np.bool_],
) -> None:
    """Solve the network for each vector: volts, word_start, driven (B, M), bit_start, sensed (B, N), the last (B,)."""
    m, n = G.shape
    w = np.empty((ROOMS, m, n))
    flat = w.reshape(ROOMS, m * n)
    devices = G.reshape(m * n)
    flow = np.empty(n)
    for b in range(volts.shape[0]):
        for i in range(m):
            for j in range(n):
                w[U, i, j] = word_start[b, i]
                w[V, i, j] = bit_start[b, j]
        flat[SUPPLIED] = 0.0
        flat[DRAINED] = 0.0
        flat[PULL] = flat[U] - flat[V]
        _currents(kind, law, devices, flat[PULL], flat[CURRENT])
        before = least = np.inf
        patience = PATIENCE
        sweeps[b] = 0
        while True:
            _tangents(kind, law, devices, flat[U], flat[V], flat[CURRENT], flat)
            wrong, scale, hidden = _astray(flat)
            _sensed(w[CURRENT], rb, sensed[b])
            scale = max(scale, np.abs(sensed[b]).max())
            converged[b] = wrong <= tolerance * scale or max(wrong, scale) <= hidden
            if converged[b] or sweeps[b] >= max_sweeps:
                break
            share = FIRST_SHARE if before == np.inf else min(FIRST_SHARE, (wrong / before) ** 2)
            if kind == 0 and law[2] == 1.0:
                share = 0.0
            before = wrong
            if wrong <= 0.5 * least:
                least, patience = wrong, PATIENCE
            else:
                patience -= 1
            _factor(w[SLOPE], rw, rb, w)
            enough = max(share * wrong, ENOUGH * tolerance * scale)
            sweeps[b] += _tangent_network(w, flat, volts[b], sense, flow, enough, max_sweeps - sweeps[b])
            _advance(kind, law, devices, flat, patience > 0)
        _driven(w[SUPPLIED], rw, driven[b])
        astray[b] = wrong / scale if scale > 0.0 else 0.0
