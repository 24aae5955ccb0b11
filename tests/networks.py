"""Crossbars to test networks with: arrays of one kind of trouble, and a dense Newton solve of their own."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from runtime.physics.network import CurrentVoltage

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
KINDS = ("random", "sparse", "shorted", "broken")
LAWS = [
    CurrentVoltage("ohmic", asymmetry=-0.4),
    CurrentVoltage("sinh", 3.0),
    CurrentVoltage("sinh", 6.0, 0.5, 0.1),
    CurrentVoltage("sinh", 40.0, -0.3),
    CurrentVoltage("cubic", 10.0),
    CurrentVoltage("cubic", 200.0, 2.0),
]
R_DRIVER, R_SENSE = 3.0, 7.0


def crossbar(kind: str, m: int, n: int, ohms: float, seed: int = 0) -> tuple[Float64, Float64, Float64]:
    """Devices and segment resistances of about `ohms` with one kind of trouble."""
    rng = np.random.default_rng([seed, m, n, KINDS.index(kind)])
    G = rng.uniform(1e-6, 1e-4, (m, n))
    rw, rb = ohms * rng.uniform(0.5, 1.5, (m, n)), ohms * rng.uniform(0.5, 1.5, (m, n))
    if kind == "sparse":
        G[rng.random((m, n)) < 0.7] = 0.0
    if kind == "shorted":
        G[rng.random((m, n)) < 0.1] = 1e-2
    if kind == "broken":
        rw[rng.random((m, n)) < 0.1] = np.inf
        rb[rng.random((m, n)) < 0.1] = np.inf
    return G, rw, rb


def off(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Largest error, relative to the largest value expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


def shape(iv: CurrentVoltage, e: Float64) -> tuple[Float64, Float64]:
    """The law and its derivative, written anew: exponentials and powers."""
    a, v = iv.alpha, iv.v_ref
    if iv.model == "sinh":
        high, low = np.exp(a * e), np.exp(-a * e)
        scale = v / (np.exp(a * v) - np.exp(-a * v))
        f, d = scale * (high - low), scale * a * (high + low)
    else:
        a = a if iv.model == "cubic" else 0.0
        f, d = (e + a * e**3) / (1 + a * v**2), (1 + 3 * a * e**2) / (1 + a * v**2)
    side = np.where(e < 0, 1 + iv.asymmetry, 1.0)
    return f * side, d * side


def nodal(
    G: Float64, rw: Float64, rb: Float64, volts: Float64, sense: Float64, iv: CurrentVoltage
) -> tuple[Float64, Float64]:
    """Sensed and driven currents by Newton's method on the dense equations of every node and every segment.

    Resistances have the ends in them, infinite where a line floats or is open. The unknowns are the voltages of all
    nodes and the currents of all segments, so that zero and infinite resistances are ordinary values. Newton starts at
    the ohmic network, comes near to rectifiers by degrees, and halves its step until Kirchhoff's law is broken less.
    No part of a network may hang free.
    """
    m, n = G.shape
    size = m * n
    u = np.arange(size).reshape(m, n)
    v, iw, ib = u + size, u + 2 * size, u + 3 * size
    A, b = np.zeros((4 * size, 4 * size)), np.zeros(4 * size)
    for i in range(m):
        for j in range(n):
            A[u[i, j], iw[i, j]] = 1.0
            if j + 1 < n:
                A[u[i, j], iw[i, j + 1]] = -1.0
            A[v[i, j], ib[i, j]] = -1.0
            if i:
                A[v[i, j], ib[i - 1, j]] = 1.0
            if np.isinf(rw[i, j]):
                A[iw[i, j], iw[i, j]] = 1.0
            else:
                A[iw[i, j], u[i, j]], A[iw[i, j], iw[i, j]] = 1.0, rw[i, j]
                if j:
                    A[iw[i, j], u[i, j - 1]] = -1.0
                else:
                    b[iw[i, j]] = volts[i]
            if np.isinf(rb[i, j]):
                A[ib[i, j], ib[i, j]] = 1.0
            else:
                A[ib[i, j], v[i, j]], A[ib[i, j], ib[i, j]] = 1.0, -rb[i, j]
                if i + 1 < m:
                    A[ib[i, j], v[i + 1, j]] = -1.0
                else:
                    b[ib[i, j]] = sense[j]
    nodes_u, nodes_v, g = u.ravel(), v.ravel(), G.ravel()

    def residual(x: Float64, law: CurrentVoltage) -> tuple[Float64, Float64]:
        f, d = shape(law, x[nodes_u] - x[nodes_v])
        r = A @ x - b
        r[nodes_u] -= g * f
        r[nodes_v] += g * f
        J = A.copy()
        for p, q, sign in (
            (nodes_u, nodes_u, -1),
            (nodes_u, nodes_v, 1),
            (nodes_v, nodes_u, 1),
            (nodes_v, nodes_v, -1),
        ):
            J[p, q] += sign * g * d
        return r, J

    x = np.zeros(4 * size)
    steps = 1 if abs(np.log(1 + iv.asymmetry)) < 2.0 else 20
    for law in (
        CurrentVoltage(),
        *(replace(iv, asymmetry=(1 + iv.asymmetry) ** (k / steps) - 1) for k in range(1, steps + 1)),
    ):
        r, J = residual(x, law)
        for _ in range(200):
            rows = 1.0 / np.abs(J).max(1)
            step = np.linalg.solve(J * rows[:, None], -r * rows)
            far = 1.0
            while True:
                now, J = residual(x + far * step, law)
                if np.abs(now).sum() < np.abs(r).sum() or far < 1e-6:
                    break
                far /= 2
            if far < 1e-6 or np.abs(step).max() < 1e-15:
                break
            x, r = x + far * step, now
    assert np.abs(r).max() < 1e-15 * max(1.0, np.abs(x).max())
    return x[ib[-1]], x[iw[:, 0]]


def with_ends(rw: Float64, rb: Float64, free_rows: Bools, free_cols: Bools) -> tuple[Float64, Float64]:
    """Segments with drivers and sense inputs in them, open where a line floats."""
    rw, rb = rw.copy(), rb.copy()
    rw[:, 0] += R_DRIVER
    rb[-1] += R_SENSE
    rw[free_rows, 0], rb[-1, free_cols] = np.inf, np.inf
    return rw, rb
