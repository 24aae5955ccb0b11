"""The column march of `runtime.physics.march` as compiled loops, with its exact gradient (``docs/physics.md``, Wires).

Arrays are indexed column first, ``(N, M)``: one bit line lies in neighbouring words of memory. Every function here
takes contiguous float64 arrays and trusts them. The interpreter lock is released, so threads may share a batch.
"""

import numpy as np
import numpy.typing as npt

from runtime.physics.compiled_numba import Float64, Ints, compiled, divide, factor
from runtime.physics.march import GROWTH, LEAK

Bools = npt.NDArray[np.bool_]

U, J, F = 0, 1, 2  # word-line voltages, currents, and the currents or voltages of the bit line being solved
U_BAR, J_BAR, F_BAR = 3, 4, 5  # their adjoints


@compiled("contract")
def _tridiagonal(g: Float64, rb: Float64, keep: Float64, drop: Float64) -> None:
    """The factors of every bit line (``march.bit_line_factors``)."""
    n, m = g.shape
    for j in range(n):
        s = 0.0
        for i in range(m):
            s += g[j, i]
            r = rb[j, i]
            if r < np.inf:
                k = 1.0 / (1.0 + r * s)
                keep[j, i] = k
                drop[j, i] = r * k
                s *= k
            else:
                keep[j, i] = 0.0
                drop[j, i] = 1.0 / s if s > 0.0 else 0.0
                s = 0.0


@compiled("contract")
def _restarts(g: Float64, rw: Float64, restarts: Bools) -> None:
    """After which columns to restart from the identity (``march.restarts``)."""
    n, m = g.shape
    y = np.zeros(m)
    bound = 1.0
    for j in range(n - 1, -1, -1):
        growth = 1.0
        for i in range(m):
            r = rw[j, i]
            y[i] += g[j, i]
            if r < np.inf:
                rise = r * y[i]
                growth = max(growth, 1.0 + 2.0 * rise)
                y[i] /= 1.0 + rise
            else:
                growth = np.inf
                y[i] = 0.0
        bound *= growth
        restarts[j] = bound > GROWTH or (j == 0 and bound > 1.0)
        if restarts[j]:
            bound = 1.0


@compiled("contract")
def _leaks(g: Float64) -> Float64:
    """Conductances that pin hanging parts of word lines (``march.line_leaks``)."""
    n, m = g.shape
    leak = np.zeros(m)
    for j in range(n):
        for i in range(m):
            leak[i] += LEAK * g[j, i]
    for i in range(m):
        if leak[i] == 0.0:
            leak[i] = 1.0
    return leak


@compiled("contract")
def _columns(
    g: Float64, keep: Float64, drop: Float64, rw: Float64, s: Float64, o: Float64, first: int, last: int, stop: bool
) -> None:
    """March through columns ``first`` down to ``last``, and where told to stop, not over the segments left of that one.

    s (M + 1, 3, M) holds U, J and F, its last line zero.
    """
    m = g.shape[1]
    for j in range(first, last - 1, -1):
        gi = g[j, 0]
        for k in range(m):
            s[0, F, k] = gi * s[0, U, k]
        for i in range(1, m):
            gi = g[j, i]
            t = keep[j, i - 1]
            for k in range(m):
                s[i, F, k] = gi * s[i, U, k] + t * s[i - 1, F, k]
        t = keep[j, m - 1]
        for k in range(m):
            o[j, k] = t * s[m - 1, F, k]
        for i in range(m - 1, -1, -1):
            gi = g[j, i]
            t = keep[j, i]
            d = drop[j, i]
            r = 0.0 if stop and j == last else rw[j, i]
            for k in range(m):
                y = d * s[i, F, k] + t * s[i + 1, F, k]
                s[i, F, k] = y
                current = s[i, J, k] + gi * (s[i, U, k] - y)
                s[i, J, k] = current
                s[i, U, k] += r * current


@compiled("contract")
def _basis(s: Float64, r: Float64, leak: Float64, scale: Float64) -> Float64:
    """Word-line voltages left of a column, as rows scaled to a largest entry of one; an open line gives its current."""
    m = r.shape[0]
    basis = np.empty((m, m))
    for i in range(m):
        largest = 0.0
        for k in range(m):
            entry = s[i, U, k] + r[i] * s[i, J, k] if r[i] < np.inf else s[i, J, k] + leak[i] * s[i, U, k]
            basis[i, k] = entry
            largest = max(largest, abs(entry))
        scale[i] = 1.0 / largest
        for k in range(m):
            basis[i, k] *= scale[i]
    return basis


@compiled("contract")
def _march(
    g: Float64, rw: Float64, rb: Float64, out: Float64, restarts: Bools, before: Float64, after: Float64
) -> None:
    """One array: out (N, M) becomes its matrix.

    `before` (restarts, 2, M, M) takes U and J before each restart, and `after` (restarts, M + N, M) takes J (but at
    column 0) and O after it, with the columns that open lines then drop: what the gradient needs. Empty: not kept.
    """
    n, m = g.shape
    keep, drop = np.empty((n, m)), np.empty((n, m))
    _tridiagonal(g, rb, keep, drop)
    leak = _leaks(g)
    s = np.zeros((m + 1, 3, m))
    swaps, scale = np.empty(m, np.int64), np.empty(m)
    rows = np.zeros((m, m))
    _restart(s, rows)
    count = 0
    first = n - 1
    for last in range(n - 1, -1, -1):
        if not (restarts[last] or last == 0):
            continue
        _columns(g, keep, drop, rw, s, out, first, last, restarts[last])
        if not restarts[last]:
            return
        first = last - 1
        basis = _basis(s, rw[last], leak, scale)
        factor(basis, swaps)
        right = out[last:]
        _divide_scaled(right, basis, swaps, scale)
        if before.shape[0]:
            _copy(before[count, 0], s[:m, U])
            _copy(before[count, 1], s[:m, J])
            _copy(after[count, m + last :], right)
        _drop_columns(right, rw[last])
        if last:
            _copy(rows, s[:m, J])
            _divide_scaled(rows, basis, swaps, scale)
            if before.shape[0]:
                _copy(after[count, :m], rows)
            _drop_columns(rows, rw[last])
            _restart(s, rows)
        count += 1


@compiled("contract")
def _restart(s: Float64, currents: Float64) -> None:
    """Let the voltages be the basis again, and the currents these."""
    for i in range(currents.shape[0]):
        for k in range(currents.shape[1]):
            s[i, U, k] = 1.0 if i == k else 0.0
            s[i, J, k] = currents[i, k]


@compiled("contract")
def _copy(into: Float64, rows: Float64) -> None:
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            into[i, k] = rows[i, k]


@compiled("contract")
def _drop_columns(rows: Float64, r: Float64) -> None:
    """Zero the columns of open lines: what lies left of the break has no effect beyond it."""
    for k in range(rows.shape[1]):
        if r[k] == np.inf:
            for i in range(rows.shape[0]):
                rows[i, k] = 0.0


@compiled("contract")
def _divide_scaled(b: Float64, lu: Float64, swaps: Ints, scale: Float64) -> None:
    """``b <- b A^-1`` for an A whose rows were multiplied with `scale` before it was factored."""
    divide(b, lu, swaps)
    for r in range(b.shape[0]):
        for k in range(b.shape[1]):
            b[r, k] *= scale[k]


@compiled("contract")
def march_all(g: Float64, rw: Float64, rb: Float64, out: Float64) -> None:
    """Matrices of a batch: g, rw, rb (B, N, M) and out (B, N, M), resistances with driver and sense included."""
    restarts = np.empty(g.shape[1], np.bool_)
    before, after = np.empty((0, 2, 0, 0)), np.empty((0, 0, 0))
    for b in range(g.shape[0]):
        _restarts(g[b], rw[b], restarts)
        _march(g[b], rw[b], rb[b], out[b], restarts, before, after)


@compiled("contract", "reassoc")
def _reverse_column(
    j: int,
    g: Float64,
    keep: Float64,
    drop: Float64,
    s: Float64,
    o_bar: Float64,
    g_bar: Float64,
    rb_bar: Float64,
    want_rb: bool,
) -> None:
    """Undo the devices of column j: s (M + 1, 6, M) has U before its segments, J, and the adjoints of both."""
    m = g.shape[1]
    t = 0.0
    for i in range(m):
        gi = g[j, i]
        # The line before the first is the empty last one: its F are zero, and t is too.
        for k in range(m):
            s[i, F, k] = gi * s[i, U, k] + t * s[i - 1, F, k]
            s[i, F_BAR, k] = gi * (s[i, J_BAR, k] + o_bar[j, k]) + t * s[i - 1, F_BAR, k]
        t = keep[j, i]
    for i in range(m - 1, -1, -1):
        gi = g[j, i]
        t = keep[j, i]
        d = drop[j, i]
        total = 0.0
        for k in range(m):
            y = d * s[i, F, k] + t * s[i + 1, F, k]
            y_bar = d * s[i, F_BAR, k] + t * s[i + 1, F_BAR, k]
            s[i, F, k] = y
            s[i, F_BAR, k] = y_bar
            e = s[i, U, k] - y
            e_bar = s[i, J_BAR, k] + o_bar[j, k] - y_bar
            total += e_bar * e
            s[i, J, k] -= gi * e
            s[i, U_BAR, k] += gi * e_bar
        g_bar[j, i] = total
    if want_rb:
        # Forward and adjoint currents of each segment: the sums of what enters the line above it.
        flow, flow_bar = np.zeros(m), np.zeros(m)
        for i in range(m):
            gi = g[j, i]
            total = 0.0
            for k in range(m):
                flow[k] += gi * (s[i, U, k] - s[i, F, k])
                flow_bar[k] += gi * (s[i, J_BAR, k] + o_bar[j, k] - s[i, F_BAR, k])
                total += flow_bar[k] * flow[k]
            rb_bar[j, i] = -total


@compiled("contract", "reassoc")
def _reverse_segments(j: int, rw: Float64, s: Float64, rw_bar: Float64) -> None:
    """Undo the word-line segments left of column j, where the march did not restart."""
    m = rw.shape[1]
    for i in range(m):
        r = rw[j, i]
        total = 0.0
        for k in range(m):
            total += s[i, U_BAR, k] * s[i, J, k]
            s[i, J_BAR, k] += r * s[i, U_BAR, k]
            s[i, U, k] -= r * s[i, J, k]
        rw_bar[j, i] = total


@compiled("contract")
def _reverse_restart(
    j: int,
    rw: Float64,
    leak: Float64,
    before: Float64,
    after: Float64,
    s: Float64,
    o_bar: Float64,
    rw_bar: Float64,
) -> None:
    """Undo the segments left of column j and the restart after them: right-multiply the adjoints by ``basis^-T``."""
    m = rw.shape[1]
    n = rw.shape[0]
    rest = n - j
    rows = np.empty((2 * m + rest, m))
    _copy(rows[m : 2 * m], s[:m, J_BAR])
    _copy(rows[2 * m :], o_bar[j:])
    # The adjoint of the voltages follows from the others, since a change of basis changes nothing. Marching it on from
    # the left instead would let its errors grow as the voltages do, and does not know what hangs beyond an open line.
    for i in range(m):
        for k in range(m):
            rows[i, k] = 0.0
        if j:
            for a in range(m):
                share = after[a, i]
                for k in range(m):
                    rows[i, k] -= share * rows[m + a, k]
        for a in range(rest):
            share = after[m + j + a, i]
            for k in range(m):
                rows[i, k] -= share * rows[2 * m + a, k]
    _copy(s[:m, U], before[0])
    _copy(s[:m, J], before[1])
    scale = np.empty(m)
    basis = _basis(s, rw[j], leak, scale).T.copy()
    for i in range(rows.shape[0]):
        for k in range(m):
            rows[i, k] *= scale[k] if rw[j, k] < np.inf else 0.0
    swaps = np.empty(m, np.int64)
    factor(basis, swaps)
    divide(rows, basis, swaps)
    _copy(o_bar[j:], rows[2 * m :])
    for i in range(m):
        r = rw[j, i]
        total = 0.0
        if r < np.inf:
            for k in range(m):
                total += rows[i, k] * s[i, J, k]
                s[i, U_BAR, k] = rows[i, k]
                s[i, J_BAR, k] = rows[m + i, k] + r * rows[i, k]
        else:
            for k in range(m):
                s[i, U_BAR, k] = leak[i] * rows[i, k]
                s[i, J_BAR, k] = rows[m + i, k] + rows[i, k]
        rw_bar[j, i] = total


@compiled("contract")
def gradient_all(
    g: Float64,
    rw: Float64,
    rb: Float64,
    out_bar: Float64,
    g_bar: Float64,
    rw_bar: Float64,
    rb_bar: Float64,
    want_rb: bool,
) -> None:
    """Gradients of a batch, all (B, N, M), given that of its matrices; an open segment's own is zero."""
    n, m = g.shape[1:]
    restarts = np.empty(n, np.bool_)
    keep, drop = np.empty((n, m)), np.empty((n, m))
    out = np.empty((n, m))
    for b in range(g.shape[0]):
        _restarts(g[b], rw[b], restarts)
        restarts[0] = True
        count = restarts.sum()
        before, after = np.empty((count, 2, m, m)), np.empty((count, m + n, m))
        _march(g[b], rw[b], rb[b], out, restarts, before, after)
        leak = _leaks(g[b])
        _tridiagonal(g[b], rb[b], keep, drop)
        o_bar = out_bar[b].copy()
        s = np.zeros((m + 1, 6, m))
        for j in range(n):
            if restarts[j]:
                count -= 1
                _reverse_restart(j, rw[b], leak, before[count], after[count], s, o_bar, rw_bar[b])
            else:
                _reverse_segments(j, rw[b], s, rw_bar[b])
            _reverse_column(j, g[b], keep, drop, s, o_bar, g_bar[b], rb_bar[b], want_rb)
