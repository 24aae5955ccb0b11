"""The device voltages of `runtime.physics.noise_transfer` as compiled loops.

Every function here takes contiguous float64 arrays and trusts them. The interpreter lock is released, so threads may
share a batch.
"""

import numpy as np

from runtime.physics.compiled_numba import Float64, compiled
from runtime.physics.noise_transfer import COMPONENTS


@compiled("contract")
def _ladder(taps: Float64, ohms: Float64, impedance: Float64, voltage: Float64) -> None:
    """Impedances and open voltages of lines (``noise_transfer._ladder``); all (K, lines)."""
    count, lines = taps.shape
    beyond = impedance  # read at a node before that node's impedance is written
    for c in range(lines):
        beyond[count - 1, c] = 0.0
    for k in range(count - 1, 0, -1):
        for c in range(lines):
            seen = taps[k, c] + beyond[k, c]
            beyond[k - 1, c] = seen / (1.0 + ohms[k, c] * seen)
    z, t = np.zeros(lines), np.ones(lines)
    for k in range(count):
        for c in range(lines):
            at = z[c] + ohms[k, c]
            share = 1.0 / (1.0 + beyond[k, c] * at)
            impedance[k, c] = at * share
            voltage[k, c] = t[c] * share
            share = 1.0 / (1.0 + taps[k, c] * at)
            z[c] = at * share
            t[c] *= share


@compiled("contract")
def _factors(taps: Float64, ohms: Float64, keep: Float64, drop: Float64) -> None:
    """Factors of the tridiagonal systems of lines (``noise_transfer._factors``); all (K, lines)."""
    count, lines = taps.shape
    seen = np.zeros(lines)
    for k in range(count - 1, -1, -1):
        for c in range(lines):
            s = seen[c] + taps[k, c]
            share = 1.0 / (1.0 + ohms[k, c] * s)
            keep[k, c] = share
            drop[k, c] = ohms[k, c] * share
            seen[c] = s * share


@compiled("contract")
def _word_lines(g: Float64, keep: Float64, drop: Float64, loads: Float64, v: Float64, u: Float64) -> None:
    """Solve every word line for the voltages v of the bit lines: g, keep, drop (M, N), v and u (M, N, components)."""
    m, n = g.shape
    for i in range(m):
        for c in range(COMPONENTS):
            u[i, n - 1, c] = g[i, n - 1] * v[i, n - 1, c]
        for j in range(n - 2, -1, -1):
            gi, t = g[i, j], keep[i, j + 1]
            for c in range(COMPONENTS):
                u[i, j, c] = gi * v[i, j, c] + t * u[i, j + 1, c]
        t, d = keep[i, 0], drop[i, 0]
        for c in range(COMPONENTS):
            u[i, 0, c] = t * loads[c, i] + d * u[i, 0, c]
        for j in range(1, n):
            t, d = keep[i, j], drop[i, j]
            for c in range(COMPONENTS):
                u[i, j, c] = t * u[i, j - 1, c] + d * u[i, j, c]


@compiled("contract")
def _bit_lines(g: Float64, keep: Float64, drop: Float64, u: Float64, f: Float64, v: Float64) -> float:
    """Solve every bit line for the voltages u of the word lines; keep and drop from the sense node up. How far v moved.

    f (M, N, components) is room for the currents.
    """
    m, n = g.shape
    for j in range(n):
        for c in range(COMPONENTS):
            f[0, j, c] = g[0, j] * u[0, j, c]
    for i in range(1, m):
        for j in range(n):
            gi, t = g[i, j], keep[m - i, j]
            for c in range(COMPONENTS):
                f[i, j, c] = gi * u[i, j, c] + t * f[i - 1, j, c]
    change = 0.0
    for i in range(m - 1, -1, -1):
        for j in range(n):
            t, d = keep[m - 1 - i, j], drop[m - 1 - i, j]
            for c in range(COMPONENTS):
                below = v[i + 1, j, c] if i + 1 < m else 0.0
                now = t * below + d * f[i, j, c]
                change = max(change, abs(now - v[i, j, c]))
                v[i, j, c] = now
    return change


@compiled("contract")
def _seen_taps(g: Float64, impedance: Float64, taps: Float64) -> None:
    """Devices (K, L) in series with the impedance of their other line (L, K), which runs the other way."""
    count, lines = g.shape
    for k in range(count):
        for c in range(lines):
            taps[k, c] = g[k, c] / (1.0 + g[k, c] * impedance[c, k])


@compiled("contract")
def _shares(
    own: Float64, passed: Float64, more: Float64, power: Float64, weights: Float64, kept: Float64, lost: Float64
) -> None:
    """S into `more`, from squares of device voltages (``noise_transfer._shares``)."""
    m, n = own.shape
    kept[:] = 0.0
    lost[:] = 0.0
    for i in range(m):
        p = power[i]
        for j in range(n):
            noise = weights[i, j] * passed[i, j]
            if p > 0.0:
                ratio = own[i, j] + more[i, j] / p
                share = min(max(ratio, 0.0), 1.0)
                kept[j] += noise * share * p
                lost[j] += noise * p * max(ratio - 1.0, 0.0)
                more[i, j] = passed[i, j] * share
            else:
                lost[j] += noise * more[i, j]
                more[i, j] = passed[i, j] * own[i, j]
    for j in range(n):
        kept[j] = 1.0 + (min(lost[j] / kept[j], 1.0) if kept[j] > lost[j] else 0.0)
    for i in range(m):
        for j in range(n):
            more[i, j] *= kept[j]


@compiled("contract")
def transfer_all(
    g: Float64,
    rw: Float64,
    rb: Float64,
    power: Float64,
    loads: Float64,
    weights: Float64,
    tolerance: float,
    sweeps: int,
    out: Float64,
) -> None:
    """S of a batch: g, rw, rb, out (B, M, N); power (B, M), loads (B, COMPONENTS, M), weights (B, M, N), or one each.

    Resistances are finite, with driver and sense included.
    """
    m, n = g.shape[1:]
    # Memory that is new is slow: all arrays of a batch use the same. Lines are indexed from their driven or sensed end.
    words, word_ohms, at_word, brought, word_taps = np.empty((5, n, m))
    bits, bit_ohms, at_bit, passed, bit_taps = np.empty((5, m, n))
    word_keep, word_drop, own, adjoint = np.empty((4, m, n))
    u, f, v = np.empty((3, m, n, COMPONENTS))
    kept, lost = np.empty((2, n))
    for b in range(g.shape[0]):
        q = loads[min(b, loads.shape[0] - 1)]
        for i in range(m):
            for j in range(n):
                words[j, i], word_ohms[j, i] = g[b, i, j], rw[b, i, j]
                bits[m - 1 - i, j], bit_ohms[m - 1 - i, j] = g[b, i, j], rb[b, i, j]
        _ladder(words, word_ohms, at_word, brought)
        _seen_taps(bits, at_word[:, ::-1], bit_taps)
        _ladder(bit_taps, bit_ohms, at_bit, passed)
        _seen_taps(words, at_bit[::-1], word_taps)
        _ladder(word_taps, word_ohms, at_word, brought)
        for i in range(m):
            for j in range(n):
                split = 1.0 / (1.0 + g[b, i, j] * (at_word[j, i] + at_bit[m - 1 - i, j]))
                own[i, j] = brought[j, i] * split
                adjoint[i, j] = (passed[m - 1 - i, j] * split) ** 2
        # The ladders' memory is free again.
        _factors(words, word_ohms, word_taps, at_word)
        word_keep[:], word_drop[:] = word_taps.T, at_word.T
        _factors(bits, bit_ohms, bit_taps, at_bit)
        v[:] = 0.0
        limit = tolerance * np.abs(q).max()
        for _ in range(sweeps):
            _word_lines(g[b], word_keep, word_drop, q, v, u)
            if _bit_lines(g[b], bit_taps, at_bit, u, f, v) <= limit:
                break
        for i in range(m):
            for j in range(n):
                total = 0.0
                for c in range(COMPONENTS):
                    across = u[i, j, c] - v[i, j, c]
                    alone = own[i, j] * q[c, i]
                    total += (across - alone) * (across + alone)
                out[b, i, j] = total
                own[i, j] *= own[i, j]
        _shares(
            own, adjoint, out[b], power[min(b, power.shape[0] - 1)], weights[min(b, weights.shape[0] - 1)], kept, lost
        )
