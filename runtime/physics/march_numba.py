"""The column march of `runtime.physics.march` as compiled loops, with its exact gradient (``physics.md`` section 4).

Arrays are indexed column first, ``(N, M)``: one bit line lies in neighbouring words of memory. Every function here takes
contiguous float64 arrays and trusts them. The interpreter lock is released, so threads may share a batch.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt

from runtime.physics.march import GROWTH, LEAK

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
P = ParamSpec("P")
R = TypeVar("R")

U, J, F = 0, 1, 2  # word-line voltages, currents, and the currents or voltages of the bit line being solved
U_BAR, J_BAR, F_BAR = 3, 4, 5  # their adjoints


def _compiled(*fast: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile to machine code that is kept on disk between processes; `fast` names the liberties with arithmetic."""

    def compiled(function: Callable[P, R]) -> Callable[P, R]:
        made: Callable[P, R] = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=set(fast))(function)
        return made

    return compiled


@_compiled("contract")
def _factor(a: Float64, swaps: npt.NDArray[np.int64]) -> None:
    """LU factors of ``a (M, M)`` in place, rows pivoted; four pivots update the rest at once."""
    m = a.shape[0]
    for k0 in range(0, m, 4):
        k1 = min(k0 + 4, m)
        for k in range(k0, k1):
            best, at = abs(a[k, k]), k
            for i in range(k + 1, m):
                if abs(a[i, k]) > best:
                    best, at = abs(a[i, k]), i
            swaps[k] = at
            if at != k:
                for c in range(m):
                    a[k, c], a[at, c] = a[at, c], a[k, c]
            inverse = 1.0 / a[k, k]
            for i in range(k + 1, m):
                factor = a[i, k] * inverse
                a[i, k] = factor
                for c in range(k + 1, k1):
                    a[i, c] -= factor * a[k, c]
        for k in range(k0, k1 - 1):
            for i in range(k + 1, k1):
                factor = a[i, k]
                for c in range(k1, m):
                    a[i, c] -= factor * a[k, c]
        if k1 - k0 == 4:
            for i in range(k1, m):
                f0, f1, f2, f3 = a[i, k0], a[i, k0 + 1], a[i, k0 + 2], a[i, k0 + 3]
                for c in range(k1, m):
                    a[i, c] -= f0 * a[k0, c] + f1 * a[k0 + 1, c] + f2 * a[k0 + 2, c] + f3 * a[k0 + 3, c]


@_compiled("contract")
def _divide(b: Float64, lu: Float64, swaps: npt.NDArray[np.int64]) -> None:
    """``b (R, M) <- b A^-1`` in place, from the LU factors of A."""
    m = lu.shape[0]
    whole = m - m % 4
    for r in range(b.shape[0]):
        for k0 in range(0, whole, 4):
            for k in range(k0, k0 + 4):
                b[r, k] /= lu[k, k]
                for c in range(k + 1, k0 + 4):
                    b[r, c] -= b[r, k] * lu[k, c]
            b0, b1, b2, b3 = b[r, k0], b[r, k0 + 1], b[r, k0 + 2], b[r, k0 + 3]
            for c in range(k0 + 4, m):
                b[r, c] -= b0 * lu[k0, c] + b1 * lu[k0 + 1, c] + b2 * lu[k0 + 2, c] + b3 * lu[k0 + 3, c]
        for k in range(whole, m):
            b[r, k] /= lu[k, k]
            for c in range(k + 1, m):
                b[r, c] -= b[r, k] * lu[k, c]
        for k in range(m - 1, whole - 1, -1):
            for c in range(k):
                b[r, c] -= b[r, k] * lu[k, c]
        for k0 in range(whole - 4, -1, -4):
            for k in range(k0 + 3, k0, -1):
                for c in range(k0, k):
                    b[r, c] -= b[r, k] * lu[k, c]
            b0, b1, b2, b3 = b[r, k0], b[r, k0 + 1], b[r, k0 + 2], b[r, k0 + 3]
            for c in range(k0):
                b[r, c] -= b0 * lu[k0, c] + b1 * lu[k0 + 1, c] + b2 * lu[k0 + 2, c] + b3 * lu[k0 + 3, c]
        for k in range(m - 1, -1, -1):
            at = swaps[k]
            if at != k:
                b[r, k], b[r, at] = b[r, at], b[r, k]


@_compiled("contract")
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


@_compiled("contract")
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


@_compiled("contract")
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


@_compiled("contract")
def _columns(
    g: Float64, keep: Float64, drop: Float64, rw: Float64, s: Float64, o: Float64, first: int, last: int
) -> None:
    """March through columns ``first`` down to ``last``: s (M + 1, 3, M) holds U, J and F, its last line zero."""
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
            r = rw[j, i]
            for k in range(m):
                y = d * s[i, F, k] + t * s[i + 1, F, k]
                s[i, F, k] = y
                current = s[i, J, k] + gi * (s[i, U, k] - y)
                s[i, J, k] = current
                s[i, U, k] += r * current


@_compiled("contract")
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


@_compiled("contract")
def _march(
    g: Float64, rw: Float64, rb: Float64, out: Float64, restarts: Bools, tape: Float64, broken: Float64
) -> None:
    """One array: out (N, M) becomes its matrix.

    With a tape (restarts, 2, M, M), U and J before each restart are kept for the gradient; where word lines are open,
    `broken` (restarts, M + N, M) takes J and O after it, with the columns that no longer count.
    """
    n, m = g.shape
    keep, drop = np.empty((n, m)), np.empty((n, m))
    _tridiagonal(g, rb, keep, drop)
    closed = np.zeros((n, m))
    leak = _leaks(g)
    s = np.zeros((m + 1, 3, m))
    for i in range(m):
        s[i, U, i] = 1.0
    swaps = np.empty(m, np.int64)
    scale = np.empty(m)
    rows = np.empty((m, m))
    count = 0
    first = n - 1
    for last in range(n - 1, -1, -1):
        if not restarts[last]:
            continue
        _columns(g, keep, drop, rw, s, out, first, last + 1)
        _columns(g, keep, drop, closed, s, out, last, last)
        first = last - 1
        if tape.shape[0]:
            tape[count] = s[:m, :J + 1].copy().transpose(1, 0, 2)
        basis = _basis(s, rw[last], leak, scale)
        _factor(basis, swaps)
        right = out[last:]
        _divide(right, basis, swaps)
        for j in range(right.shape[0]):
            for k in range(m):
                right[j, k] *= scale[k]
        if last or broken.shape[0]:
            for i in range(m):
                for k in range(m):
                    rows[i, k] = s[i, J, k]
            _divide(rows, basis, swaps)
            for i in range(m):
                for k in range(m):
                    rows[i, k] *= scale[k]
        if broken.shape[0]:
            broken[count, :m] = rows
            broken[count, m + last :] = right
        for k in range(m):
            if rw[last, k] == np.inf:
                right[:, k] = 0.0
                rows[:, k] = 0.0
        for i in range(m):
            for k in range(m):
                s[i, U, k] = 1.0 if i == k else 0.0
                s[i, J, k] = rows[i, k]
        count += 1
    if first >= 0:
        _columns(g, keep, drop, rw, s, out, first, 0)


@_compiled("contract")
def march_all(g: Float64, rw: Float64, rb: Float64, out: Float64) -> None:
    """Matrices of a batch: g, rw, rb (B, N, M) and out (B, N, M), resistances with driver and sense included."""
    restarts = np.empty(g.shape[1], np.bool_)
    tape = np.empty((0, 2, 0, 0))
    broken = np.empty((0, 0, 0))
    for b in range(g.shape[0]):
        _restarts(g[b], rw[b], restarts)
        _march(g[b], rw[b], rb[b], out[b], restarts, tape, broken)


@_compiled("contract", "reassoc")
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


@_compiled("contract", "reassoc")
def _reverse_segments(
    j: int, rw: Float64, s: Float64, rw_bar: Float64
) -> None:
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


@_compiled("contract")
def _reverse_restart(
    j: int,
    rw: Float64,
    leak: Float64,
    saved: Float64,
    broken: Float64,
    s: Float64,
    o_bar: Float64,
    rw_bar: Float64,
) -> None:
    """Undo the segments left of column j and the restart after them: right-multiply the adjoints by ``basis^-T``."""
    m = rw.shape[1]
    n = rw.shape[0]
    for i in range(m):
        if rw[j, i] == np.inf:
            # The voltage beyond the break is fixed by its current being zero: what the restart took for known was not.
            for k in range(m):
                s[i, U_BAR, k] = 0.0
            for a in range(m):
                for k in range(m):
                    s[i, U_BAR, k] -= broken[a, i] * s[a, J_BAR, k]
            for a in range(j, n):
                for k in range(m):
                    s[i, U_BAR, k] -= broken[m + a, i] * o_bar[a, k]
    for i in range(m):
        s[i, U] = saved[0, i]
        s[i, J] = saved[1, i]
    scale = np.empty(m)
    basis = _basis(s, rw[j], leak, scale).T.copy()
    for k in range(m):
        if rw[j, k] == np.inf:
            scale[k] = 0.0
    swaps = np.empty(m, np.int64)
    _factor(basis, swaps)
    rest = n - j
    rows = np.empty((2 * m + rest, m))
    for i in range(m):
        rows[i] = s[i, U_BAR] * scale
        rows[m + i] = s[i, J_BAR] * scale
    for a in range(rest):
        rows[2 * m + a] = o_bar[j + a] * scale
    _divide(rows, basis, swaps)
    for a in range(rest):
        o_bar[j + a] = rows[2 * m + a]
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


@_compiled("contract")
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
        tape = np.empty((count, 2, m, m))
        broken = np.empty((count if (rw[b] == np.inf).any() else 0, m + n, m))
        _march(g[b], rw[b], rb[b], out, restarts, tape, broken)
        leak = _leaks(g[b])
        _tridiagonal(g[b], rb[b], keep, drop)
        o_bar = out_bar[b].copy()
        s = np.zeros((m + 1, 6, m))
        for j in range(n):
            for i in range(m):
                for k in range(m):
                    s[i, U_BAR, k] -= out[j, i] * o_bar[j, k]
        for j in range(n):
            if restarts[j]:
                count -= 1
                column = broken[count] if broken.shape[0] else tape[count, 0]
                _reverse_restart(j, rw[b], leak, tape[count], column, s, o_bar, rw_bar[b])
            else:
                _reverse_segments(j, rw[b], s, rw_bar[b])
            _reverse_column(j, g[b], keep, drop, s, o_bar, g_bar[b], rb_bar[b], want_rb)
