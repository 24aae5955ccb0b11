"""The column march through a crossbar's wires as compiled loops (numba; ``physics.md`` section 4).

The state of one array is a square of ``M`` word lines by ``M`` columns of a basis. It is kept in panels of `PANEL`
columns, so that everything that one sweep of a bit line touches stays in the cache nearest to the core, and the
innermost loops are over a constant number of neighbours in memory, which the compiler turns into vector instructions.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
P = ParamSpec("P")
R = TypeVar("R")

PANEL = 32
"""Columns of the basis that are marched together."""


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile to machine code that releases the interpreter lock, kept on disk between processes."""
    # Fused multiply-add only: reordered sums would cost the accuracy that the march is written for.
    made: Callable[P, R] = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})(function)
    return made


@_compiled
def _factor(a: Float64, swaps: npt.NDArray[np.int64]) -> None:
    """LU factors of ``a (M, M)`` in place with row pivoting, four pivots at a time."""
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


@_compiled
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


@_compiled
def _march(
    g: Float64, keep: Float64, drop: Float64, rw: Float64, state: Float64, out: Float64, first: int, last: int
) -> None:
    """March panels through columns ``first`` down to ``last``.

    state (panels, M + 1, 3, PANEL): U, J and the currents on their way down, the last line zero; out (panels, N, PANEL).
    """
    m = g.shape[1]
    for p in range(state.shape[0]):
        s = state[p]
        o = out[p]
        for j in range(first, last - 1, -1):
            gi = g[j, 0]
            for k in range(PANEL):
                s[0, 2, k] = gi * s[0, 0, k]
            for i in range(1, m):
                gi = g[j, i]
                t = keep[j, i - 1]
                for k in range(PANEL):
                    s[i, 2, k] = gi * s[i, 0, k] + t * s[i - 1, 2, k]
            t = keep[j, m - 1]
            for k in range(PANEL):
                o[j, k] = t * s[m - 1, 2, k]
            for i in range(m - 1, -1, -1):
                gi = g[j, i]
                t = keep[j, i]
                d = drop[j, i]
                r = rw[j, i]
                for k in range(PANEL):
                    y = d * s[i, 2, k] + t * s[i + 1, 2, k]
                    s[i, 2, k] = y
                    current = s[i, 1, k] + gi * (s[i, 0, k] - y)
                    s[i, 1, k] = current
                    s[i, 0, k] += r * current
