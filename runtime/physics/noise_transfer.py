"""How read noise of the devices reaches the currents of a crossbar with resistive wires (``docs/physics.md``).

A device is attenuated twice: by the wires that bring its voltage, and by those that take its noise to the sense node.
Exactly, ``Var I_j = Σ_ik σ_ik² (A^j_ik D_ik)²`` over all cells, with D the voltage across a device and ``A^j`` the
same when the sense node of column j is driven with 1 V instead of the word lines. Cells of other columns add less than
0.2 % to the spread; without them, and with D replaced by its mean square over calibration inputs, it is one product,
``Var I_j ≈ Σ_i v_i² σ_ij² S_ij``. The network is that of `wires`; the compiled loops are in `noise_transfer_numba`.
"""

import functools
import math
from types import ModuleType

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from runtime.physics.wires import OPEN, Float64, checked_conductances, checked_numbers, checked_segments, share_out

COMPONENTS = 4
"""Principal components of the inputs whose device voltages are solved for; what is left drives one row at a time."""
TOLERANCE = 1e-3
"""Largest change of a voltage, relative to the largest input, that ends the sweeps."""
SWEEPS = 60
"""Most sweeps: each leaves about ``ab / ((1 + a) (1 + b))`` of the error, a and b as in `wires.approximate_matrix`.

They suffice up to a and b of about 10; beyond, where hardly any signal is left, voltages of bit lines come out too low.
"""
DEAD = 1e-12
"""A row of less power, relative to the mean row, is never driven."""


@functools.cache
def kernels() -> ModuleType | None:
    """The compiled loops, or None where numba is missing."""
    try:
        from runtime.physics import noise_transfer_numba
    except ImportError:
        return None
    return noise_transfer_numba


def noise_transfer(
    G: npt.ArrayLike,
    volts: npt.ArrayLike,
    r_word: npt.ArrayLike,
    r_bit: npt.ArrayLike,
    r_driver: float = 0.0,
    r_sense: float = 0.0,
    *,
    sigma: npt.ArrayLike | None = None,
    threads: int | None = None,
) -> Float64:
    """Share S of each cell's noise variance that wires let through: ``Var I_j ≈ Σ_i v_i² σ_ij² S_ij``.

    ``S_ij = A_ij² E[D_ij²] / E[v_i²]``: A_ij from ladders of the cell's own two lines, D by sweeps over all lines, E
    the mean over `volts`, in which every vector counts alike, however large it is (derived; tested against the sum
    over all cells). Without wires S is exactly 1. It holds for inputs of the kind that `volts` are: where these differ
    much in how many rows they drive, one product for all of them is right on average only.

    Where ``E[D²] > E[v²]``, as in rows that are never driven, the row's S is that of the row driven alone, or at most
    ``A²``; what the noise of such cells adds to the column is put on the column's other cells.

    Parameters
    ----------
    G : (..., M, N)
        Conductances of the devices, siemens, finite and not negative.
    volts : (vectors, M) or (..., vectors, M)
        Word-line voltages of calibration inputs, of any number, shared or each array's own.
    r_word, r_bit, r_driver, r_sense
        Ohms, as in `wires.effective_matrix`.
    sigma : broadcastable to (..., M, N), optional
        Noise of the cells, in any unit: how much the cells of undriven rows add. All are alike unless given.
    threads
        How many threads share a batch, as in `wires.effective_matrix`.

    Returns
    -------
    (..., M, N) float64
        Dimensionless.

    Raises
    ------
    DataError
        A ValueError: a shape does not fit, or a value is NaN, infinite (other than wires) or, but for volts, negative.
    """
    g = checked_conductances(G)
    shape = g.shape
    m, n = shape[-2:]
    segments = checked_segments(shape, r_word, r_bit, r_driver, r_sense)
    inputs, weights = _inputs(volts, shape), _weights(sigma, shape)
    count = math.prod(shape[:-2])
    g = g.reshape(count, m, n)
    rw, rb = (np.broadcast_to(np.minimum(r, OPEN), shape).reshape(count, m, n) for r in segments)
    shared = inputs.ndim == 2
    found = [_components(v) for v in inputs.reshape(1 if shared else count, *inputs.shape[-2:])]
    power, loads = np.array([p for p, _ in found]), np.array([q for _, q in found])
    out = np.empty((count, m, n))
    compiled = kernels()

    def work(part: slice) -> None:
        # Writable, because the loops would be compiled anew for arrays that are not.
        arrays = tuple(np.require(a[part], requirements=["C", "W"]) for a in (g, rw, rb))
        own = [a if len(a) == 1 else a[part] for a in (power, loads, weights)]  # shared, or each array's own
        if compiled is not None:
            compiled.transfer_all(*arrays, *own, TOLERANCE, SWEEPS, out[part])
            return
        for b in range(part.stop - part.start):
            row_power, components, variances = (a[min(b, len(a) - 1)] for a in own)
            across = _voltages(arrays[0][b], arrays[1][b], arrays[2][b], components)
            out[part.start + b] = _shares(*across, row_power, variances)

    share_out(count, work, threads)
    return out.reshape(shape)


def _inputs(value: npt.ArrayLike, shape: tuple[int, ...]) -> Float64:
    volts = checked_numbers("volts", "volts", value)
    m, batch = shape[-2], shape[:-2]
    if volts.ndim < 2 or volts.shape[-1] != m or volts.shape[:-2] not in ((), batch):
        wanted = f"(vectors, {m})" + (f" or ({', '.join(map(str, batch))}, vectors, {m})" if batch else "")
        raise DataError("volts", f"must have the shape {wanted}", got=volts.shape)
    if not volts.shape[-2]:
        raise DataError("volts", "must hold one input vector at least", got=volts.shape)
    bad = ~np.isfinite(volts)
    if bad.any():
        raise DataError("volts", "must be finite", got=float(volts[bad][0]))
    return volts


def _weights(sigma: npt.ArrayLike | None, shape: tuple[int, ...]) -> Float64:
    """Variances of the cells, the largest one; (arrays or 1, M, N)."""
    m, n = shape[-2:]
    if sigma is None:
        return np.ones((1, m, n))
    values = checked_numbers("sigma", "any one unit", sigma)
    try:
        fits = np.broadcast_shapes(values.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise DataError("sigma", f"must broadcast to {shape}, the shape of G", got=values.shape)
    bad = ~((values >= 0) & (values < np.inf))
    if bad.any():
        raise DataError("sigma", "must be finite and not negative", got=float(values[bad][0]))
    largest = values.max(initial=0.0)
    scaled = np.square(values / largest) if largest > 0 else np.ones(())
    if values.ndim <= 2:
        return np.broadcast_to(scaled, (1, m, n)).copy()
    return np.broadcast_to(scaled, shape).copy().reshape(-1, m, n)


def _components(volts: Float64) -> tuple[Float64, Float64]:
    """Power of each row ``E[v²]`` (M,), relative to the mean row, and principal components (COMPONENTS, M).

    ``E[v vᵀ] = Σ_k q_k q_kᵀ`` over all components; the first few carry what rows do together, such as their mean.
    """
    peak = np.abs(volts).max(1, keepdims=True)
    driven = peak[:, 0] > 0
    x = volts[driven] / peak[driven]
    m = x.shape[1]
    loads = np.zeros((COMPONENTS, m))
    if not x.size:
        return np.zeros(m), loads
    x /= np.sqrt(np.square(x).mean(1, keepdims=True) * len(x))
    power: Float64 = np.square(x).sum(0)
    power[power < DEAD] = 0.0
    if len(x) > m:
        x = np.linalg.qr(x, mode="r")
    found = np.linalg.eigh(x @ x.T)[1][:, : -COMPONENTS - 1 : -1].T @ x
    loads[: len(found)] = np.where(power > 0, found, 0.0)
    return power, loads


def _shares(own: Float64, adjoint: Float64, more: Float64, power: Float64, weights: Float64) -> Float64:
    """S (M, N) of one array, from `_voltages`, the power of rows (M,) and the variances of cells (M, N)."""
    driven = power[:, None] > 0
    alone = np.square(own)
    # Mean squares of device voltages, relative to that of the row's input where it has any.
    ratio = alone + np.divide(more, power[:, None], out=np.zeros_like(more), where=driven)
    share = np.clip(ratio, 0.0, 1.0)
    missing = np.where(driven, power[:, None] * np.maximum(ratio - 1.0, 0.0), more)
    passed = np.square(adjoint)
    noise = weights * passed
    lost, kept = (noise * missing).sum(0), (noise * share * power[:, None]).sum(0)
    scale = 1.0 + np.minimum(np.divide(lost, kept, out=np.zeros_like(lost), where=kept > lost), 1.0)
    result: Float64 = passed * np.where(driven, share, alone) * scale
    return result


def _voltages(g: Float64, rw: Float64, rb: Float64, loads: Float64) -> tuple[Float64, Float64, Float64]:
    """Device voltages (M, N) of one array whose lines are all of finite resistance, driver and sense included.

    For 1 V on the device's word line, with every other driver at 0 V; for 1 V at its sense node; and what the loads
    (COMPONENTS, M) give beyond that, ``Σ_k D(q_k)² - (own q_k)²``.
    """
    # A line is indexed from its driven or sensed end: (position, lines).
    words, bits = np.ascontiguousarray(g.T), g[::-1]
    word_ohms, bit_ohms = np.ascontiguousarray(rw.T), rb[::-1]
    at_word = _ladder(words, word_ohms)[0].T
    at_bit, passed = (a[::-1] for a in _ladder((g / (1.0 + g * at_word))[::-1], bit_ohms))
    at_word, brought = (a.T for a in _ladder((g / (1.0 + g * at_bit)).T, word_ohms))
    split = 1.0 / (1.0 + g * (at_word + at_bit))
    own, adjoint = brought * split, passed * split
    across = _sweep(words, bits, word_ohms, bit_ohms, loads)
    alone = own[..., None] * loads.T[:, None, :]
    return own, adjoint, ((across - alone) * (across + alone)).sum(-1)


def _ladder(taps: Float64, ohms: Float64) -> tuple[Float64, Float64]:
    """Impedance at each node of lines, but for its own tap, and the voltage there for 1 V at the end; (K, lines).

    Taps are conductances to ground. The part of the line before a node has the impedance z and the open voltage t.
    """
    impedance, voltage = np.empty_like(taps), np.empty_like(taps)
    beyond = np.zeros_like(taps)
    for k in range(len(taps) - 1, 0, -1):
        seen = taps[k] + beyond[k]
        beyond[k - 1] = seen / (1.0 + ohms[k] * seen)
    z, t = np.zeros(taps.shape[1]), np.ones(taps.shape[1])
    for k in range(len(taps)):
        z = z + ohms[k]
        share = 1.0 / (1.0 + beyond[k] * z)
        impedance[k], voltage[k] = z * share, t * share
        share = 1.0 / (1.0 + taps[k] * z)
        z, t = z * share, t * share
    return impedance, voltage


def _factors(taps: Float64, ohms: Float64) -> tuple[Float64, Float64]:
    """Factors of the lines' tridiagonal systems, free of subtraction, as ``march.bit_line_factors``; (K, lines, 1)."""
    keep, drop = np.empty_like(taps), np.empty_like(taps)
    seen = np.zeros(taps.shape[1])
    for k in reversed(range(len(taps))):
        seen = seen + taps[k]
        keep[k] = 1.0 / (1.0 + ohms[k] * seen)
        drop[k] = ohms[k] * keep[k]
        seen = seen * keep[k]
    return keep[..., None], drop[..., None]


def _solve(taps: Float64, keep: Float64, drop: Float64, held: Float64, end: Float64) -> Float64:
    """Voltages (K, lines, components) of lines whose taps lead to held nodes, and whose first ends are held too."""
    found = taps[..., None] * held
    for k in range(len(found) - 2, -1, -1):
        found[k] += keep[k + 1] * found[k + 1]
    for k in range(len(found)):
        end = keep[k] * end + drop[k] * found[k]
        found[k] = end
    return found


def _sweep(words: Float64, bits: Float64, word_ohms: Float64, bit_ohms: Float64, loads: Float64) -> Float64:
    """Device voltages (M, N, components): all word lines are solved exactly, then all bit lines, in turn."""
    word_factors, bit_factors = _factors(words, word_ohms), _factors(bits, bit_ohms)
    driven, grounded = np.ascontiguousarray(loads.T), np.zeros((bits.shape[1], len(loads)))
    v = np.zeros((*bits.shape, len(loads)))
    limit = TOLERANCE * np.abs(loads).max(initial=0.0)
    u = v
    for _ in range(SWEEPS):
        before = v
        u = _solve(words, *word_factors, v[::-1].swapaxes(0, 1), driven).swapaxes(0, 1)
        v = _solve(bits, *bit_factors, u[::-1], grounded)
        if np.abs(v - before).max() <= limit:
            break
    across: Float64 = u - v[::-1]
    return across
