"""The resistance of a crossbar's wires: exact effective matrices, and their closed form (``docs/physics.md``, Wires).

The network of one array, M word lines by N bit lines::

    driver i --(r_driver + r_word[i, 0])-- u[i, 0] --r_word[i, 1]-- ... u[i, N-1]      right end open
    top open v[0, j] --r_bit[0, j]-- ... v[M-1, j] --(r_bit[M-1, j] + r_sense)-- 0 V
    device G[i, j] from u[i, j] to v[i, j]

Devices are ohmic, so the currents of the bit lines are ``I = W @ v`` for every input: W is computed once for each
programmed array. The march itself is in `march` (numpy) and `march_numba` (compiled); the torch twin is `wires_torch`.
"""

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from runtime.physics.march import march

Float64 = npt.NDArray[np.float64]

OPEN = 1e30
"""A segment of more ohms is an open line."""
_SHARE = 8
"""Most arrays that a thread takes at once."""


@functools.cache
def kernels() -> ModuleType | None:
    """The compiled march, or None where numba is missing."""
    try:
        from runtime.physics import march_numba
    except ImportError:
        return None
    return march_numba


def default_threads() -> int:
    """Threads that share a batch unless told: ``NUMBA_NUM_THREADS``, else the cores that this process may use."""
    told = os.environ.get("NUMBA_NUM_THREADS", "")
    if told.isdigit() and int(told):
        return int(told)
    return cores()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def effective_matrix(
    G: npt.ArrayLike,
    r_word: npt.ArrayLike,
    r_bit: npt.ArrayLike,
    r_driver: float = 0.0,
    r_sense: float = 0.0,
    *,
    threads: int | None = None,
) -> Float64:
    """Matrix of a crossbar with resistive wires: the currents at its sense nodes are ``I = W @ v``, exactly.

    The column march of ``docs/physics.md``, Wires: about ``10 K^2 L`` operations with ``K = min(M, N)``,
    ``L = max(M, N)``, and one LU factorisation of size K. Without wires W is exactly ``G.T``.

    Parameters
    ----------
    G : (..., M, N)
        Conductances of the devices, siemens, finite and not negative.
    r_word : broadcastable to (..., M, N)
        Ohms of the word-line segment left of each device (j = 0 is next to the driver); infinite: an open line.
    r_bit : broadcastable to (..., M, N)
        Ohms of the bit-line segment below each device (i = M - 1 leads to the sense node); infinite: an open line.
    r_driver, r_sense
        Ohms of every driver's output and every sense input.
    threads
        How many threads share a batch; `default_threads` unless given. It never changes a result.

    Returns
    -------
    (..., N, M) float64
        Siemens.

    Raises
    ------
    DataError
        A ValueError: a shape does not fit, or a value is negative, NaN, or (conductances) infinite.
    """
    g = checked_conductances(G)
    m, n = g.shape[-2:]
    rw, rb = checked_segments(g.shape, r_word, r_bit, r_driver, r_sense)
    batch = g.shape[:-2]
    count = math.prod(batch)
    g = g.reshape(count, m, n)
    rw, rb = (np.broadcast_to(r, g.shape) if r.ndim == 2 else r.reshape(g.shape) for r in (rw, rb))
    tall = m > n
    if tall:
        rw, rb = rb, rw
    out = np.empty((count, m, n) if tall else (count, n, m))
    compiled = kernels()

    def work(part: slice) -> None:
        arrays = (column_first(a[part], tall) for a in (g, rw, rb))
        if compiled is not None:
            compiled.march_all(*arrays, out[part])
            return
        for k, one in enumerate(zip(*arrays, strict=True)):
            out[part.start + k] = march(*one)

    share_out(count, work, threads)
    found = out[:, ::-1, ::-1].swapaxes(1, 2) if tall else out
    return np.ascontiguousarray(found).reshape(*batch, n, m)


def column_first(arrays: Float64, tall: bool) -> Float64:
    """Bring arrays (B, M, N) to the march, column first and with the shorter lines as its word lines.

    Where an array is `tall`, its bit lines take the part of the word lines, by reciprocity:
    ``W(G; r_w, r_b)[j, i] = W(G'; r_b, r_w)[M-1-i, N-1-j]`` with ``G'[a, b] = G[M-1-b, N-1-a]``.
    """
    return np.ascontiguousarray(arrays[:, ::-1, ::-1] if tall else arrays.swapaxes(1, 2))


def share_out(count: int, work: Callable[[slice], None], threads: int | None = None) -> None:
    """Call `work` on slices that cover ``range(count)``, in several threads at once."""
    threads = default_threads() if threads is None else threads
    if threads < 1:
        raise DataError("threads", "must be at least 1", got=threads)
    step = max(1, min(_SHARE, -(-count // threads)))
    parts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    if threads == 1 or len(parts) < 2:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(min(threads, len(parts))) as pool:
        list(pool.map(work, parts))


def approximate_matrix(
    G: npt.ArrayLike, r_word: npt.ArrayLike, r_bit: npt.ArrayLike, r_driver: float = 0.0, r_sense: float = 0.0
) -> Float64:
    """Closed form of `effective_matrix`, of first order in the wires: ``G / (1 + a + b)``, transposed.

    ``a_ij`` is the resistance of the word line up to column j weighted with the devices that draw current through it,
    ``a_ij = sum_m<=j r_word_im sum_l>=m G_il``, and ``b_ij = sum_m>=i r_bit_mj sum_k<=m G_kj`` the same for the bit
    line (``docs/physics.md``, Wires; driver and sense included). Devices beyond an open segment give nothing.

    Parameters and errors are those of `effective_matrix`.

    Returns
    -------
    (..., N, M) float64
        Siemens.
    """
    g = checked_conductances(G)
    rw, rb = checked_segments(g.shape, r_word, r_bit, r_driver, r_sense)
    no_word, no_bit = np.isinf(rw), np.isinf(rb)
    a = (np.where(no_word, 0.0, rw) * g[..., ::-1].cumsum(-1)[..., ::-1]).cumsum(-1)
    b = (np.where(no_bit, 0.0, rb) * g.cumsum(-2))[..., ::-1, :].cumsum(-2)[..., ::-1, :]
    cut = np.logical_or.accumulate(no_word, -1) | np.logical_or.accumulate(no_bit[..., ::-1, :], -2)[..., ::-1, :]
    return np.ascontiguousarray(np.where(cut, 0.0, g / (1.0 + a + b)).swapaxes(-1, -2))


def approximation_error(approximate: Float64, exact: Float64, inputs: npt.ArrayLike | None = None) -> Float64:
    """How far the currents of an approximate matrix are from the exact ones: ``|(A - W) v| / |W v|`` in all.

    Parameters
    ----------
    approximate, exact : (..., N, M)
        `approximate_matrix` (or ``G`` transposed, to see what the wires do) and `effective_matrix`.
    inputs : (V, M), optional
        Word-line voltages. Without them, inputs of both signs are taken, independent and of one variance: the ratio
        of Frobenius norms. Inputs of one sign let the errors of a column average out, and give about a quarter of it.

    Returns
    -------
    (...)
        Zero where no current is off, infinite where there should be none.
    """
    error = approximate - exact
    if inputs is not None:
        v = checked_numbers("inputs", "volts", inputs)
        if v.ndim != 2 or v.shape[1] != exact.shape[-1]:
            raise DataError("inputs", f"must have the shape (V, {exact.shape[-1]})", got=v.shape)
        error, exact = error @ v.T, exact @ v.T
    off, size = (np.sqrt(np.square(a).sum((-2, -1))) for a in (error, exact))
    ratio: Float64 = np.divide(off, size, out=np.where(off > 0, np.inf, 0.0), where=size > 0)
    return ratio


def checked_numbers(name: str, unit: str, value: npt.ArrayLike) -> Float64:
    """An array of real numbers; raises `DataError` naming it if it is none."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "fiu":
        raise DataError(name, f"must be real numbers in {unit}", got=value)
    return array.astype(np.float64, copy=False)


def checked_conductances(value: npt.ArrayLike) -> Float64:
    """Conductances ``(..., M, N)``; raises `DataError` unless they are finite and not negative."""
    g = checked_numbers("G", "siemens", value)
    if g.ndim < 2 or 0 in g.shape[-2:]:
        hint = "its last axes are the word lines and the bit lines, one of each at least"
        raise DataError("G", "must have the shape (..., M, N)", got=g.shape, hint=hint)
    bad = ~((g >= 0) & (g < np.inf))
    if bad.any():
        raise DataError("G", "must be finite conductances of at least 0 siemens", got=float(g[bad][0]))
    return g


def _resistances(name: str, value: npt.ArrayLike) -> Float64:
    r = checked_numbers(name, "ohms", value)
    bad = ~(r >= 0)
    if bad.any():
        hint = "use infinity for an open line" if np.isnan(r[bad][0]) else ""
        raise DataError(name, "must be at least 0 ohms", got=float(r[bad][0]), hint=hint)
    return r


def checked_segments(
    shape: tuple[int, ...], r_word: npt.ArrayLike, r_bit: npt.ArrayLike, r_driver: float, r_sense: float
) -> tuple[Float64, Float64]:
    """Ohms of every segment, ends included: ``(M, N)`` where all arrays of a batch share them, else of `shape`."""
    ends = []
    for name, ohms in (("r_driver", r_driver), ("r_sense", r_sense)):
        end = _resistances(name, ohms)
        if end.ndim:
            hint = "give lines of different resistance by r_word and r_bit"
            raise DataError(name, "must be one number", got=end.shape, hint=hint)
        ends.append(end)
    found = []
    for name, value in (("r_word", r_word), ("r_bit", r_bit)):
        r = _resistances(name, value)
        try:
            fits = np.broadcast_shapes(r.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise DataError(name, f"must be one number or broadcast to {shape}, the shape of G", got=r.shape)
        found.append(np.broadcast_to(r, shape[-2:] if r.ndim <= 2 else shape).copy())
    rw, rb = found
    rw[..., 0] += ends[0]
    rb[..., -1, :] += ends[1]
    for r in found:
        r[r > OPEN] = np.inf
    return rw, rb
