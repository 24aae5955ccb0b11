"""The exact column march through a crossbar's wires (``docs/physics.md``, Wires), in numpy.

The network: word line i is driven from the left through segment (i, 0), bit line j is sensed below segment (M - 1, j).
Every column adds the currents of its devices, `J += S_j U`, and every word-line segment a voltage, `U += r_w J`, from
the open right end to the drivers; there, `W = O U^-1` for the sensed currents `O`. Arrays are indexed column first,
``(N, M)``, and resistances are given for each segment, with those of drivers and sense inputs included.
"""

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

GROWTH = 1e4
"""Restart from the identity before the voltages can have grown by more (they grow by about its root)."""
LEAK = 1e-14
"""Conductance to ground that pins a part of a word line that hangs free, as a share of the line's devices."""
_WORKSPACE = 1 << 23
"""Numbers in the device matrices that are built at once (64 MB)."""


def bit_line_factors(g: Float64, rb: Float64) -> tuple[Float64, Float64]:
    """Factors of the bit lines' tridiagonal systems, made without a subtraction.

    With ``s_i`` the conductance seen from node i upwards, a segment of resistance ``r`` keeps the share
    ``1 / (1 + r s_i)`` of a current and drops ``r / (1 + r s_i)`` volts an ampere; an open one 0 and ``1 / s_i``.

    Parameters
    ----------
    g : (..., M)
        Devices of a bit line from the top down, siemens.
    rb : (..., M)
        Resistance of the segment below each, ohms.

    Returns
    -------
    keep, drop : (..., M)
    """
    keep, drop = np.empty_like(g), np.empty_like(g)
    s = np.zeros(g.shape[:-1])
    opened = np.isinf(rb)
    finite = np.where(opened, 0.0, rb)
    for i in range(g.shape[-1]):
        s = s + g[..., i]
        at = opened[..., i]
        share = 1.0 / (1.0 + finite[..., i] * s)
        free = np.divide(1.0, s, out=np.zeros_like(s), where=s > 0)
        keep[..., i] = np.where(at, 0.0, share)
        drop[..., i] = np.where(at, free, finite[..., i] * share)
        s = s * keep[..., i]
    return keep, drop


def device_matrices(g: Float64, keep: Float64, drop: Float64) -> tuple[Float64, Float64]:
    """Device voltages and sensed current of a bit line, for voltages on the word lines.

    Returns
    -------
    voltage : (..., M, M)
        Device i's voltage for one volt on word line k: ``1 - (T_b + D)^-1 D``.
    sensed : (..., M)
        Current of the sense node for one volt on word line k, siemens.
    """
    m = g.shape[-1]
    flow = np.zeros((*g.shape, m))
    above = np.zeros_like(g)
    for i in range(m):
        row = flow[..., i, :]
        row[:] = above
        row[..., i] = g[..., i]
        above = row * keep[..., i, None]
    sensed = above
    below = np.zeros_like(g)
    for i in reversed(range(m)):
        below = drop[..., i, None] * flow[..., i, :] + keep[..., i, None] * below
        flow[..., i, :] = -below
        flow[..., i, i] += 1.0
    return flow, sensed


def restarts(g: Float64, rw: Float64) -> Bools:
    """After which columns the march restarts from the identity, so that what it solves stays well conditioned.

    Voltages grow by at most ``1 + 2 r_w y`` from one column to the next, where y is the conductance seen into a word
    line to the right if its bit lines were grounded (which bounds the diagonal of a diagonally dominant matrix).

    Parameters
    ----------
    g, rw : (N, M)

    Returns
    -------
    (N,) bool; the last one (column 0) only where any voltage changed since the previous restart.
    """
    found = np.zeros(g.shape[0], np.bool_)
    seen = np.zeros(g.shape[1])
    bound = 1.0
    opened = np.isinf(rw)
    finite = np.where(opened, 0.0, rw)
    for j in reversed(range(g.shape[0])):
        seen = seen + g[j]
        rise = finite[j] * seen
        bound *= np.inf if opened[j].any() else 1.0 + 2.0 * float(rise.max())
        seen = np.where(opened[j], 0.0, seen / (1.0 + rise))
        found[j] = bound > GROWTH or (j == 0 and bound > 1.0)
        if found[j]:
            bound = 1.0
    return found


def line_leaks(g: Float64) -> Float64:
    """Conductance to ground ``(M,)`` that pins parts of a word line that hang free; one siemens without devices."""
    leak = LEAK * g.sum(0)
    return np.where(leak > 0, leak, 1.0)


def march(g: Float64, rw: Float64, rb: Float64) -> Float64:
    """Effective matrix of one array.

    Parameters
    ----------
    g : (N, M)
        Conductances, siemens.
    rw, rb : (N, M)
        Resistance of the word-line segment left of each device (column 0 with the driver's) and of the bit-line
        segment below it (the last with the sense input's), ohms; infinite where a line is open.

    Returns
    -------
    (N, M)
        Currents of the bit lines for one volt on each word line, siemens.
    """
    n, m = g.shape
    keep, drop = bit_line_factors(g, rb)
    restart, leak = restarts(g, rw), line_leaks(g)
    voltages, currents, out = np.eye(m), np.zeros((m, m)), np.zeros((n, m))
    step = max(1, _WORKSPACE // (m * m))
    for top in range(n, 0, -step):
        chunk = slice(max(0, top - step), top)
        device, sensed = device_matrices(g[chunk], keep[chunk], drop[chunk])
        for j in reversed(range(chunk.start, top)):
            out[j] = sensed[j - chunk.start] @ voltages
            currents += g[j][:, None] * (device[j - chunk.start] @ voltages)
            broken = np.isinf(rw[j])
            if not restart[j]:
                voltages += rw[j][:, None] * currents
                continue
            step_up = np.where(broken, 0.0, rw[j])[:, None]
            basis = np.where(broken[:, None], currents + leak[:, None] * voltages, voltages + step_up * currents)
            scale = 1.0 / np.abs(basis).max(1)
            both = np.concatenate([currents, out[j:]])
            both = np.linalg.solve((basis * scale[:, None]).T, both.T).T * np.where(broken, 0.0, scale)
            voltages, currents, out[j:] = np.eye(m), both[:m], both[m:]
    return out
