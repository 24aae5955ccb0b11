"""Compiled loops, and the LU factors that the column march needs in them (numba).

LAPACK would start threads of its own below those that share a batch, and its call would cost as much as a small array.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
P = ParamSpec("P")
R = TypeVar("R")


def compiled(*fast: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile to machine code that is kept on disk between processes; `fast` names the liberties with arithmetic."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        made: Callable[P, R] = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=set(fast))(function)
        return made

    return decorate


@compiled("contract")
def factor(a: Float64, swaps: Ints) -> None:
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
                share = a[i, k] * inverse
                a[i, k] = share
                for c in range(k + 1, k1):
                    a[i, c] -= share * a[k, c]
        for k in range(k0, k1 - 1):
            for i in range(k + 1, k1):
                share = a[i, k]
                for c in range(k1, m):
                    a[i, c] -= share * a[k, c]
        if k1 - k0 == 4:
            for i in range(k1, m):
                f0, f1, f2, f3 = a[i, k0], a[i, k0 + 1], a[i, k0 + 2], a[i, k0 + 3]
                for c in range(k1, m):
                    a[i, c] -= f0 * a[k0, c] + f1 * a[k0 + 1, c] + f2 * a[k0 + 2, c] + f3 * a[k0 + 3, c]


@compiled("contract")
def _subtract(b: Float64, c: Float64, lu: Float64, k: int, start: int, stop: int) -> None:
    """Subtract rows k to k + 7 of `lu` from two rows, `b` and `c`, each as often as these say in its column."""
    b0, b1, b2, b3, b4, b5, b6, b7 = b[k], b[k + 1], b[k + 2], b[k + 3], b[k + 4], b[k + 5], b[k + 6], b[k + 7]
    c0, c1, c2, c3, c4, c5, c6, c7 = c[k], c[k + 1], c[k + 2], c[k + 3], c[k + 4], c[k + 5], c[k + 6], c[k + 7]
    for i in range(start, stop):
        l0, l1, l2, l3 = lu[k, i], lu[k + 1, i], lu[k + 2, i], lu[k + 3, i]
        l4, l5, l6, l7 = lu[k + 4, i], lu[k + 5, i], lu[k + 6, i], lu[k + 7, i]
        b[i] -= (b0 * l0 + b1 * l1 + b2 * l2 + b3 * l3) + (b4 * l4 + b5 * l5 + b6 * l6 + b7 * l7)
        c[i] -= (c0 * l0 + c1 * l1 + c2 * l2 + c3 * l3) + (c4 * l4 + c5 * l5 + c6 * l6 + c7 * l7)


@compiled("contract")
def divide(rows: Float64, lu: Float64, swaps: Ints) -> None:
    """``rows (R, M) <- rows A^-1`` in place, from the LU factors of A; two rows and eight pivots at once."""
    m = lu.shape[0]
    whole = m - m % 8
    alone = np.zeros(m)
    for r in range(0, rows.shape[0], 2):
        b = rows[r]
        c = rows[r + 1] if r + 1 < rows.shape[0] else alone
        for k0 in range(0, m, 8):
            k1 = min(k0 + 8, m)
            for k in range(k0, k1):
                b[k] /= lu[k, k]
                c[k] /= lu[k, k]
                for i in range(k + 1, k1):
                    b[i] -= b[k] * lu[k, i]
                    c[i] -= c[k] * lu[k, i]
            if k1 < m:
                _subtract(b, c, lu, k0, k1, m)
        for k in range(m - 1, whole - 1, -1):
            for i in range(k):
                b[i] -= b[k] * lu[k, i]
                c[i] -= c[k] * lu[k, i]
        for k0 in range(whole - 8, -1, -8):
            for k in range(k0 + 7, k0, -1):
                for i in range(k0, k):
                    b[i] -= b[k] * lu[k, i]
                    c[i] -= c[k] * lu[k, i]
            _subtract(b, c, lu, k0, 0, k0)
        for k in range(m - 1, -1, -1):
            at = swaps[k]
            if at != k:
                b[k], b[at] = b[at], b[k]
                c[k], c[at] = c[at], c[k]
