"""Resistive wires: against an independent nodal solve, two circuit simulators, limits, symmetries and differences."""

import importlib.util
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hwspec.errors import DataError
from runtime.physics import wires, wires_torch
from runtime.physics.wires import approximate_matrix, approximation_error, effective_matrix

Float64 = npt.NDArray[np.float64]
Network = tuple[Float64, Float64, Float64, float, float]
KINDS = ("random", "sparse", "shorted", "broken", "weak")
SHAPES = [(1, 1), (1, 6), (6, 1), (5, 9), (9, 5), (8, 8)]


@pytest.fixture(params=["compiled", "numpy"])
def march(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of marching."""
    _choose(monkeypatch, str(request.param))
    return str(request.param)


def _choose(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    if which == "compiled":
        pytest.importorskip("numba")
        return
    for room in (wires, wires_torch):
        monkeypatch.setattr(room, "kernels", lambda: None)


def network(kind: str, m: int, n: int, ohms: float, seed: int = 0, batch: tuple[int, ...] = ()) -> Network:
    """Devices and segment resistances of about `ohms` with one kind of trouble."""
    rng = np.random.default_rng([seed, m, n, KINDS.index(kind)])
    shape = (*batch, m, n)
    G = rng.uniform(1e-6, 1e-4, shape)
    rw, rb = ohms * rng.uniform(0.5, 1.5, shape), ohms * rng.uniform(0.5, 1.5, shape)
    if kind == "sparse":
        G[rng.random(shape) < 0.7] = 0.0
    if kind == "shorted":
        G[rng.random(shape) < 0.1] = 1e-2
    if kind == "broken":
        rw[rng.random(shape) < 0.1] = np.inf
        rb[rng.random(shape) < 0.1] = np.inf
    if kind == "weak":
        rw[rng.random(shape) < 0.2] *= 1e6
        rb[rng.random(shape) < 0.2] *= 1e6
    return G, rw, rb, 3.0, 7.0


def nodal(G: Float64, rw: Float64, rb: Float64, r_driver: float, r_sense: float) -> tuple[Float64, Float64]:
    """Solve the network for one volt on each driver in turn: currents (sensed, driver) and (driven, driver).

    Kirchhoff's current law at every node and Ohm's law of every segment, so that zero and infinite resistances are
    ordinary values. Parts of the network that touch neither drivers nor ground are tied to ground.
    """
    m, n = G.shape
    rw, rb = rw.copy(), rb.copy()
    rw[:, 0] += r_driver
    rb[-1] += r_sense
    u = np.arange(m * n).reshape(m, n)
    v, iw, ib = u + m * n, u + 2 * m * n, u + 3 * m * n
    A, B = np.zeros((4 * m * n, 4 * m * n)), np.zeros((4 * m * n, m))
    ground = 2 * m * n
    edges: list[tuple[int, int]] = []
    for i in range(m):
        for j in range(n):
            at_u, at_v, ohm_w, ohm_b = u[i, j], v[i, j], iw[i, j], ib[i, j]
            for row, sign in ((at_u, -1.0), (at_v, 1.0)):
                A[row, u[i, j]] += sign * G[i, j]
                A[row, v[i, j]] -= sign * G[i, j]
            A[at_u, iw[i, j]] += 1.0
            if j + 1 < n:
                A[at_u, iw[i, j + 1]] -= 1.0
            A[at_v, ib[i, j]] -= 1.0
            if i:
                A[at_v, ib[i - 1, j]] += 1.0
            if np.isinf(rw[i, j]):
                A[ohm_w, iw[i, j]] = 1.0
            else:
                A[ohm_w, u[i, j]], A[ohm_w, iw[i, j]] = 1.0, rw[i, j]
                if j:
                    A[ohm_w, u[i, j - 1]] = -1.0
                else:
                    B[ohm_w, i] = 1.0
                edges.append((u[i, j], u[i, j - 1] if j else ground))
            if np.isinf(rb[i, j]):
                A[ohm_b, ib[i, j]] = 1.0
            else:
                A[ohm_b, v[i, j]], A[ohm_b, ib[i, j]] = 1.0, -rb[i, j]
                if i + 1 < m:
                    A[ohm_b, v[i + 1, j]] = -1.0
                edges.append((v[i, j], v[i + 1, j] if i + 1 < m else ground))
            if G[i, j]:
                edges.append((u[i, j], v[i, j]))
    if edges:
        a, b = np.array(edges).T
        part = connected_components(coo_array((np.ones(len(a)), (a, b)), (ground + 1, ground + 1)), directed=False)[1]
        for label in set(part) - {part[ground]}:
            A[np.flatnonzero(part == label)[0]] = np.eye(1, len(A), int(np.flatnonzero(part == label)[0]))
    else:
        A[range(ground), range(ground)] = 1.0
    scale = 1.0 / np.abs(A).max(1)
    x = np.linalg.solve(A * scale[:, None], B * scale[:, None])
    return x[ib[-1]], x[iw[:, 0]]


def off(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Largest error, relative to the largest value expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ohms", [0.0, 0.1, 1.0, 100.0, 1e4])
def test_equals_an_independent_nodal_solve(kind: str, ohms: float, march: str) -> None:
    """Every shape and trouble, segments of 0 to 10 kilo-ohms; what the drivers give is what is sensed."""
    for m, n in SHAPES:
        for seed in range(2):
            case = network(kind, m, n, ohms, seed)
            sensed, driven = nodal(*case)
            W = effective_matrix(*case)
            assert off(W, sensed) < 1e-12, (m, n, seed, march)
            largest = np.abs(driven).max() or 1.0
            assert np.abs(W.sum(0) - driven.sum(0)).max() < 1e-11 * largest


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 7),
    st.integers(1, 7),
    st.floats(-1, 5),
    st.floats(-1, 5),
    st.integers(0, 10**6),
)
def test_word_and_bit_lines_of_different_resistance(
    kind: str, m: int, n: int, word: float, bit: float, seed: int
) -> None:
    G, rw, rb, *ends = network(kind, m, n, 1.0, seed)
    case = (G, rw * 10**word, rb * 10**bit, ends[0], ends[1])
    assert off(effective_matrix(*case), nodal(*case)[0]) < 1e-11


@pytest.mark.parametrize("shape", [(40, 40), (20, 64), (64, 20)])
@pytest.mark.parametrize("ohms", [0.1, 2.0, 1e4])
def test_large_arrays_equal_a_sparse_nodal_solve(shape: tuple[int, int], ohms: float, march: str) -> None:
    for kind in ("random", "sparse", "shorted"):
        G = network(kind, *shape, ohms)[0]
        expected, _ = sparse_nodal(G, ohms, 2 * ohms, 5.0, 6.0)
        assert off(effective_matrix(G, ohms, 2 * ohms, 5.0, 6.0), expected) < 1e-11, (kind, march)


def sparse_nodal(G: Float64, rw: float, rb: float, r_driver: float, r_sense: float) -> tuple[Float64, Float64]:
    """The network of voltages alone, by SuperLU, for uniform resistances other than zero.

    Returns the matrix (N, M), and its derivative (M, N, N, M) by each conductance, from forward and adjoint voltages.
    """
    from scipy.sparse.linalg import splu

    m, n = G.shape
    u = np.arange(m * n).reshape(m, n)
    v = u + m * n
    rows: list[npt.NDArray[np.int64]] = []
    cols: list[npt.NDArray[np.int64]] = []
    data: list[Float64] = []

    def connect(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], siemens: npt.ArrayLike) -> None:
        values = np.broadcast_to(siemens, a.shape).ravel()
        for p, q, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
            rows.append(p.ravel())
            cols.append(q.ravel())
            data.append(sign * values)

    connect(u, v, G)
    connect(u[:, 1:], u[:, :-1], 1 / rw)
    connect(v[1:], v[:-1], 1 / rb)
    for nodes, siemens in ((u[:, 0], 1 / (rw + r_driver)), (v[-1], 1 / (rb + r_sense))):
        rows.append(nodes)
        cols.append(nodes)
        data.append(np.full(nodes.size, siemens))
    where = (np.concatenate(rows), np.concatenate(cols))
    matrix = coo_array((np.concatenate(data), where), (2 * m * n, 2 * m * n)).tocsc()
    drive = np.zeros((2 * m * n, m))
    drive[u[:, 0], range(m)] = 1 / (rw + r_driver)
    sense = np.zeros((2 * m * n, n))
    sense[v[-1], range(n)] = 1 / (rb + r_sense)
    solver = splu(matrix)
    forward, adjoint = solver.solve(drive), solver.solve(sense)
    across, across_adjoint = forward[u] - forward[v], adjoint[u] - adjoint[v]
    return np.asarray(forward[v[-1]] / (rb + r_sense)), -np.einsum("rck,rcj->rcjk", across, across_adjoint)


@pytest.mark.usefixtures("march")
def test_no_resistance_gives_the_conductances_exactly() -> None:
    for kind in ("random", "sparse", "shorted"):
        for m, n in SHAPES:
            G = network(kind, m, n, 0.0)[0]
            np.testing.assert_array_equal(effective_matrix(G, 0.0, 0.0), G.T)
            np.testing.assert_array_equal(approximate_matrix(G, 0.0, 0.0), G.T)


@pytest.mark.usefixtures("march")
def test_vanishing_resistance_is_the_limit_of_zero() -> None:
    G = network("random", 9, 8, 0.0)[0]
    assert off(effective_matrix(G, 1e-9, 1e-9), G.T) < 1e-10
    assert off(effective_matrix(G, 0.0, 5.0), effective_matrix(G, 1e-12, 5.0)) < 1e-14


@pytest.mark.usefixtures("march")
def test_one_device_is_a_series_circuit() -> None:
    W = effective_matrix([[1e-3]], 10.0, 20.0, 30.0, 40.0)
    assert W.item() == pytest.approx(1 / (1e3 + 100), rel=1e-15)


@pytest.mark.usefixtures("march")
def test_ends_without_wires_are_dividers() -> None:
    """Only sense resistance: each bit line divides by one plus its conductance; the same for drivers."""
    G = network("random", 6, 9, 0.0)[0]
    np.testing.assert_allclose(effective_matrix(G, 0, 0, 0, 50.0), (G / (1 + 50.0 * G.sum(0))).T, rtol=1e-13)
    np.testing.assert_allclose(
        effective_matrix(G, 0, 0, 50.0, 0), (G / (1 + 50.0 * G.sum(1, keepdims=True))).T, rtol=1e-13
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("march")
def test_reciprocity(kind: str) -> None:
    """Drivers and sense nodes exchange their parts; a square array is not turned inside, so this is no tautology."""
    G, rw, rb, a, b = network(kind, 9, 9, 100.0)
    g, word, bit = (x[::-1, ::-1].T for x in (G, rb, rw))
    turned = effective_matrix(g, word, bit, b, a)
    assert off(turned[::-1, ::-1].T, effective_matrix(G, rw, rb, a, b)) < 1e-12


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 8), st.integers(1, 8), st.floats(0, 4), st.data())
def test_more_resistance_never_raises_the_total_current(
    kind: str, m: int, n: int, decade: float, data: st.DataObject
) -> None:
    """Rayleigh's law, for all drivers at one voltage; and no current is ever negative or above its device's own."""
    G, rw, rb, a, b = network(kind, m, n, 10**decade)
    W = effective_matrix(G, rw, rb, a, b)
    slack = 1e-13 * G.max()
    assert (-slack <= W).all()
    assert (W.sum(0) <= G.sum(1) + slack * n).all()
    i, j = data.draw(st.integers(0, m - 1)), data.draw(st.integers(0, n - 1))
    more = data.draw(st.sampled_from([1.001, 2.0, 1e5, np.inf]))
    for segments in (rw, rb):
        segments[i, j] *= more
        now = effective_matrix(G, rw, rb, a, b)
        assert now.sum() <= W.sum() + slack * m * n
        W = now


@pytest.mark.usefixtures("march")
def test_beyond_a_broken_line_nothing_is_driven_or_sensed() -> None:
    G = network("random", 6, 5, 1.0)[0]
    rw, rb = np.full_like(G, 2.0), np.full_like(G, 2.0)
    rw[2, 0], rb[-1, 3] = np.inf, np.inf
    W = effective_matrix(G, rw, rb)
    np.testing.assert_array_equal(W[:, 2], 0.0)
    np.testing.assert_array_equal(W[3], 0.0)
    assert np.count_nonzero(W) == 5 * 4
    np.testing.assert_array_equal(effective_matrix(G, np.inf, 1.0), np.zeros((5, 6)))
    np.testing.assert_array_equal(effective_matrix(G, 1.0, np.inf), np.zeros((5, 6)))
    assert (approximate_matrix(G, rw, rb) == 0.0).sum() == 5 + 6 - 1


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
@pytest.mark.usefixtures("march")
def test_a_batch_is_its_arrays(shape: tuple[int, int]) -> None:
    """Bit for bit, whatever the threads; resistances may be shared or each array's own."""
    G, rw, rb, a, b = network("weak", *shape, 50.0, batch=(3, 7))
    for word, bit in ((rw, rb), (rw[0, 0], rb[:, :1]), (5.0, rb[0])):
        words, bits = (np.broadcast_to(r, G.shape) for r in (word, bit))
        W = effective_matrix(G, word, bit, a, b)
        assert W.shape == (3, 7, *shape[::-1])
        assert W.flags.c_contiguous
        np.testing.assert_array_equal(W, effective_matrix(G, word, bit, a, b, threads=1))
        np.testing.assert_array_equal(W, effective_matrix(G, word, bit, a, b, threads=5))
        for k in np.ndindex(3, 7):
            np.testing.assert_array_equal(W[k], effective_matrix(G[k], words[k], bits[k], a, b))


@pytest.mark.usefixtures("march")
def test_no_arrays_give_no_matrices() -> None:
    assert effective_matrix(np.zeros((0, 3, 4)), 1.0, 1.0).shape == (0, 4, 3)
    assert wires_torch.effective_matrix(torch.zeros(2, 0, 3, 4), 1.0, 1.0).shape == (2, 0, 4, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ohms", [1.0, 300.0, 1e4])
def test_compiled_and_numpy_agree(kind: str, ohms: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a size where the march restarts many times, and is blocked in fours with a rest."""
    pytest.importorskip("numba")
    case = network(kind, 45, 47, ohms)
    compiled = effective_matrix(*case)
    _choose(monkeypatch, "numpy")
    assert off(effective_matrix(*case), compiled) < 1e-12


def test_without_numba_numpy_marches(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "numba", None)
    for name in [name for name in sys.modules if name.startswith("runtime.physics.") and name.endswith("_numba")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("runtime.physics.march_numba", raising=False)
    wires.kernels.cache_clear()
    try:
        assert wires.kernels() is None
        case = network("random", 4, 5, 1.0)
        assert off(effective_matrix(*case), nodal(*case)[0]) < 1e-13
    finally:
        wires.kernels.cache_clear()


def test_lists_and_integers_are_numbers() -> None:
    np.testing.assert_array_equal(effective_matrix([[1, 2], [3, 4]], 0, 0), [[1, 3], [2, 4]])
    G = np.array([[1e-5, 2e-5]], np.float32)
    assert effective_matrix(G, 1, 1).dtype == np.float64
    before = G.copy()
    effective_matrix(G, 1, 1, 5, 5)
    np.testing.assert_array_equal(G, before)


GOOD = np.full((2, 3), 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.full((2, 3), -1e-5), 1, 1), "G must be finite conductances of at least 0 siemens, not -1e-05"),
        ((np.full((2, 3), np.nan), 1, 1), "G must be finite conductances of at least 0 siemens, not nan"),
        ((np.full((2, 3), np.inf), 1, 1), "G must be finite conductances of at least 0 siemens, not inf"),
        ((np.zeros(3), 1, 1), r"G must have the shape \(..., M, N\), not \(3,\); its last axes"),
        ((np.zeros((3, 0)), 1, 1), r"G must have the shape \(..., M, N\), not \(3, 0\)"),
        (([["a"]], 1, 1), r"G must be real numbers in siemens, not \[\['a'\]\]"),
        (([[1], [1, 2]], 1, 1), "G must be real numbers in siemens"),
        ((GOOD * 1j, 1, 1), "G must be real numbers in siemens"),
        ((GOOD, -1, 1), "r_word must be at least 0 ohms, not -1"),
        ((GOOD, 1, np.nan), "r_bit must be at least 0 ohms, not nan; use infinity for an open line"),
        ((GOOD, 1, 1, -2.0), "r_driver must be at least 0 ohms, not -2"),
        ((GOOD, 1, 1, 0.0, [1.0]), r"r_sense must be one number, not \(1,\); give lines of different resistance"),
        (
            (GOOD, np.ones((3, 2)), 1),
            r"r_word must be one number or broadcast to \(2, 3\), the shape of G, not \(3, 2\)",
        ),
        ((GOOD, 1, np.ones((4, 2, 3))), r"r_bit must be one number or broadcast to \(2, 3\)"),
        ((GOOD, None, 1), "r_word must be real numbers in ohms, not None"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: tuple[object, ...], message: str) -> None:
    for function in (effective_matrix, approximate_matrix):
        with pytest.raises(DataError, match=f"^{message}"):
            function(*arguments)  # type: ignore[arg-type]


def test_threads_must_be_positive() -> None:
    with pytest.raises(DataError, match="threads must be at least 1, not 0"):
        effective_matrix(GOOD, 1, 1, threads=0)


def test_the_closed_form_is_the_first_order_of_the_exact_one() -> None:
    """Its error falls with the square of the resistance; per-segment values and ends included."""
    G, rw, rb, *_ = network("random", 12, 17, 1.0)
    errors = []
    for r in (0.1, 1.0, 10.0):
        case = (G, r * rw, r * rb, 2 * r, 3 * r)
        errors.append(approximation_error(approximate_matrix(*case), effective_matrix(*case)))
    assert 60 < errors[1] / errors[0] < 140
    assert errors[2] < 0.1
    ignoring = approximation_error(G.T, effective_matrix(G, rw, rb))
    assert approximation_error(approximate_matrix(G, rw, rb), effective_matrix(G, rw, rb)) < 0.1 * ignoring


@pytest.mark.parametrize(
    ("ohms", "error", "ignoring"), [(0.5, 9e-4, 0.13), (1, 3e-3, 0.26), (2, 9e-3, 0.51), (5, 3e-2, 1.2)]
)
def test_the_closed_form_is_as_good_as_documented(ohms: float, error: float, ignoring: float) -> None:
    """The figures of ``docs/physics.md``, Wires: a 128 x 128 array, 1 to 100 uS with mean 23 uS, inputs of one sign."""
    rng = np.random.default_rng(0)
    G = rng.lognormal(np.log(15e-6), 1.0, (128, 128)).clip(1e-6, 1e-4)
    inputs = rng.random((200, 128))
    exact = effective_matrix(G, ohms, ohms)
    assert approximation_error(approximate_matrix(G, ohms, ohms), exact, inputs) == pytest.approx(error, rel=0.2)
    assert approximation_error(G.T, exact, inputs) == pytest.approx(ignoring, rel=0.2)
    assert approximation_error(approximate_matrix(G, ohms, ohms), exact) < 5 * error


def test_the_error_of_an_approximation() -> None:
    one = np.eye(3)
    assert approximation_error(one, one) == 0.0
    assert approximation_error(1.1 * one, one) == pytest.approx(0.1)
    np.testing.assert_allclose(approximation_error(np.stack([one, 2 * one]), one), [0.0, 1.0])
    assert approximation_error(0 * one, 0 * one) == 0.0
    assert approximation_error(one, 0 * one) == np.inf
    with pytest.raises(DataError, match=r"inputs must have the shape \(V, 3\), not \(2,\)"):
        approximation_error(one, one, np.ones(2))


def gradient(G: torch.Tensor, W: torch.Tensor, weight: Float64) -> torch.Tensor:
    """Of the sum of W, weighted, with respect to G."""
    return torch.autograd.grad((W * torch.tensor(weight, dtype=W.dtype)).sum(), [G])[0]


def differences(function: Callable[[Float64], float], x: Float64) -> Float64:
    """Central differences of fourth order; zero for what is infinite."""
    out = np.zeros_like(x)
    for k in np.ndindex(x.shape):
        step = 2e-3 * (abs(x[k]) or 1.0)
        if np.isinf(step):
            continue
        at = []
        for shift in (-2, -1, 1, 2):
            moved = x.copy()
            moved[k] += shift * step
            at.append(function(moved))
        out[k] = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step)
    return out


@pytest.mark.parametrize("kind", ["random", "shorted", "broken", "weak"])
@pytest.mark.parametrize("ohms", [20.0, 3e3, 1e5])
@pytest.mark.parametrize("shape", [(4, 5), (5, 3), (1, 4), (4, 1)])
@pytest.mark.usefixtures("march")
def test_the_gradient_is_that_of_finite_differences(kind: str, ohms: float, shape: tuple[int, int]) -> None:
    """Conductances, every segment, driver and sense; the larger resistances restart the march after every column."""
    G, rw, rb, *_ = network(kind, *shape, ohms, seed=1)
    values = [G, rw, rb, np.array(3.0 * ohms), np.array(2.0 * ohms)]
    weight = np.random.default_rng(0).standard_normal(shape[::-1])
    tensors = [torch.tensor(value, requires_grad=True) for value in values]
    W = wires_torch.effective_matrix(*tensors)
    assert off(W.detach(), effective_matrix(G, rw, rb, 3.0 * ohms, 2.0 * ohms)) < 1e-13
    bars = torch.autograd.grad((W * torch.tensor(weight)).sum(), tensors)
    for at, bar in enumerate(bars):

        def loss(value: Float64, at: int = at) -> float:
            g, word, bit, driver, sense = (value if k == at else other for k, other in enumerate(values))
            return float((effective_matrix(g, word, bit, float(driver), float(sense)) * weight).sum())

        expected = differences(loss, values[at])
        error = np.abs(bar.numpy() - expected).max()
        # Differences of a loss of size L with steps of a share h of x resolve no better than about eps L / (h x).
        finite = np.abs(values[at])[np.isfinite(values[at])]
        noise = 1e-12 * np.abs(loss(values[at])) / (finite[finite > 0].min() if finite.any() else 1.0)
        assert error < 1e-7 * np.abs(expected).max() + noise, (at, kind)


@pytest.mark.usefixtures("march")
@pytest.mark.parametrize("ohms", [2.0, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(24, 30), (30, 24)])
def test_the_gradient_of_strongly_dropping_arrays(ohms: float, shape: tuple[int, int]) -> None:
    """Lines that drop nearly everything: an adjoint march that is not renewed at each restart grows wrong."""
    for kind in ("random", "sparse", "shorted"):
        G = torch.tensor(network(kind, *shape, ohms)[0], requires_grad=True)
        weight = np.random.default_rng(0).standard_normal(shape[::-1])
        found = gradient(G, wires_torch.effective_matrix(G, ohms, 2 * ohms, 5.0, 6.0), weight)
        _, derivative = sparse_nodal(G.detach().numpy(), ohms, 2 * ohms, 5.0, 6.0)
        assert off(found, np.einsum("rcjk,jk->rc", derivative, weight)) < 1e-10


@pytest.mark.usefixtures("march")
def test_the_gradient_of_an_array_without_resistance() -> None:
    """At zero resistance dW/dr is the first-order drop, which the closed form gives exactly."""
    G = torch.tensor(network("random", 5, 7, 0.0)[0], requires_grad=True)
    weight = torch.tensor(np.random.default_rng(0).standard_normal((7, 5)))
    gradients = []
    for function in (wires_torch.effective_matrix, wires_torch.approximate_matrix):
        zeros = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(4)]
        gradients.append(torch.autograd.grad((function(G, *zeros) * weight).sum(), [G, *zeros]))
    assert off(gradients[0][0], weight.mT) < 1e-14
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(33, 40), (40, 33)])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_operations_agree_with_the_compiled_march(
    kind: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrix and gradients of a batch whose arrays restart after different columns."""
    pytest.importorskip("numba")
    G, rw, rb, *_ = network(kind, *shape, 300.0, batch=(2,))
    rw[1] *= 10
    weight = torch.tensor(np.random.default_rng(0).standard_normal((2, *shape[::-1])))
    results = []
    for which in ("compiled", "numpy"):
        _choose(monkeypatch, which)
        tensors = [torch.tensor(value, requires_grad=True) for value in (G, rw, rb, 9.0, 8.0)]
        W = wires_torch.effective_matrix(*(t.double() for t in tensors))
        results.append([W.detach(), *torch.autograd.grad((W * weight).sum(), tensors)])
    for a, b in zip(*results, strict=True):
        assert off(b, a) < 1e-9


@pytest.mark.parametrize("ohms", [1.0, 100.0, 1e4])
@pytest.mark.usefixtures("march")
def test_single_precision(ohms: float) -> None:
    """Float32 loses no more than its own rounding, even where lines drop nearly everything."""
    G, rw, rb, *_ = network("random", 40, 48, ohms)
    weight = np.random.default_rng(0).standard_normal((48, 40))
    exact = torch.tensor(G, requires_grad=True)
    exact_bar = gradient(exact, wires_torch.effective_matrix(exact, torch.tensor(rw), torch.tensor(rb)), weight)
    single = torch.tensor(G, dtype=torch.float32, requires_grad=True)
    W = wires_torch.effective_matrix(single, torch.tensor(rw).float(), torch.tensor(rb).float())
    assert W.dtype == torch.float32
    assert off(W.detach(), effective_matrix(G, rw, rb)) < 3e-6
    single_bar = gradient(single, W, weight)
    assert single_bar.dtype == torch.float32
    assert off(single_bar, exact_bar) < 3e-5


@pytest.mark.usefixtures("march")
def test_only_asked_gradients_are_given() -> None:
    G = torch.full((2, 3, 4), 1e-5, dtype=torch.float64)
    r = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    W = wires_torch.effective_matrix(G, r, 5.0)
    (r_bar,) = torch.autograd.grad(W.sum(), [r])
    assert r_bar.shape == ()
    assert r_bar < 0
    assert not wires_torch.effective_matrix(G, 5.0, 5.0).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_in_torch(kind: str) -> None:
    case = network(kind, 6, 9, 50.0, batch=(2,))
    tensors = [torch.tensor(value, requires_grad=True) for value in case]
    W = wires_torch.approximate_matrix(*tensors)
    np.testing.assert_allclose(W.detach().numpy(), approximate_matrix(*case), rtol=1e-13)
    assert all(bool(bar.isfinite().all()) for bar in torch.autograd.grad(W.sum(), tensors))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.full((2, 3), -1e-5), 1, 1), "G must be finite conductances of at least 0 siemens"),
        ((torch.full((2, 3), torch.nan), 1, 1), "G must be finite conductances of at least 0 siemens"),
        ((torch.zeros(3), 1, 1), r"G must have the shape \(..., M, N\), not \(3,\)"),
        ((torch.zeros(2, 3, dtype=torch.int64), 1, 1), "G must be a tensor of float32 or float64, not torch.int64"),
        ((torch.zeros(2, 3), torch.tensor(-1.0), 1), "r_word must be at least 0 ohms"),
        ((torch.zeros(2, 3), 1, float("nan")), "r_bit must be at least 0 ohms, and not NaN"),
        ((torch.zeros(2, 3), torch.ones(3, 2), 1), r"r_word must broadcast to \(2, 3\), the shape of G, not \(3, 2\)"),
        ((torch.zeros(2, 3), 1, 1, torch.ones(3)), r"r_driver must be one number, not \(3,\)"),
    ],
)
def test_bad_tensors_are_refused_by_name(arguments: tuple[object, ...], message: str) -> None:
    for function in (wires_torch.effective_matrix, wires_torch.approximate_matrix):
        with pytest.raises(DataError, match=f"^{message}"):
            function(*arguments)  # type: ignore[arg-type]


def peer_arrays(m: int, n: int) -> Iterator[tuple[str, Float64, float]]:
    """Random, sparse, open, shorted and strongly dropping arrays, with the resistance of a segment."""
    rng = np.random.default_rng(5)
    for ohms in (0.1, 1.0, 100.0, 1e4):
        yield "random", rng.uniform(1e-6, 1e-4, (m, n)), ohms
        yield "sparse", rng.uniform(1e-6, 1e-4, (m, n)) * (rng.random((m, n)) < 0.2), ohms
        opened = rng.uniform(1e-6, 1e-4, (m, n))
        opened[m // 3], opened[:, n // 2] = 0.0, 0.0
        yield "open", opened, ohms
        yield "shorted", np.where(rng.random((m, n)) < 0.05, 1e-2, rng.uniform(1e-6, 1e-4, (m, n))), ohms


@pytest.mark.peer
@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (16, 24), (24, 16)])
def test_ngspice(shape: tuple[int, int], tmp_path: Path) -> None:
    """At most 1e-10 of the largest current, driver and sense resistance included."""
    if shutil.which("ngspice") is None:
        pytest.skip("ngspice is not installed")
    m, n = shape
    x = np.random.default_rng(0).random(m)
    for name, G, ohms in peer_arrays(m, n):
        W = effective_matrix(G, ohms, 2 * ohms, 3.0, 4.0)
        assert off(W @ x, ngspice(G, ohms, 2 * ohms, 3.0, 4.0, x, tmp_path)) < 1e-10, (name, ohms)


def ngspice(G: Float64, rw: float, rb: float, r_driver: float, r_sense: float, x: Float64, folder: Path) -> Float64:
    m, n = G.shape
    lines = ["crossbar"]
    for i in range(m):
        lines.append(f"Vx{i} x{i} 0 {x[i]:.17g}")
        for j in range(n):
            before = f"u{i}_{j - 1}" if j else f"x{i}"
            lines.append(f"Rw{i}_{j} {before} u{i}_{j} {rw + (0.0 if j else r_driver):.17g}")
            after = f"v{i + 1}_{j}" if i + 1 < m else f"s{j}"
            lines.append(f"Rb{i}_{j} v{i}_{j} {after} {rb + (0.0 if i + 1 < m else r_sense):.17g}")
            if G[i, j]:
                lines.append(f"Rg{i}_{j} u{i}_{j} v{i}_{j} {1 / G[i, j]:.17g}")
    lines += [f"Vs{j} s{j} 0 0" for j in range(n)]
    lines += [".options gmin=1e-40 rshunt=0 reltol=1e-12", ".control", "set numdgt=16", "op"]
    lines += [f"print i(vs{j})" for j in range(n)]
    lines += ["quit", ".endc", ".end"]
    netlist = folder / "crossbar.cir"
    netlist.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = subprocess.run(["ngspice", "-b", str(netlist)], capture_output=True, text=True, check=False, timeout=120)
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("i(vs"):
            name, value = line.split(" = ")
            found[int(name[4:-1])] = float(value)
    assert sorted(found) == list(range(n)), done.stdout + done.stderr
    return np.array([found[j] for j in range(n)])


@pytest.mark.peer
@pytest.mark.parametrize("shape", [(128, 128), (128, 64), (64, 128)])
def test_badcrossbar(shape: tuple[int, int]) -> None:
    """At most 1e-9 of the largest current."""
    if importlib.util.find_spec("badcrossbar") is None:
        pytest.skip("badcrossbar is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of newer numpy and scipy
        import badcrossbar

        x = np.random.default_rng(0).random((shape[0], 3))
        for name, G, ohms in peer_arrays(*shape):
            with np.errstate(divide="ignore"):
                solution = badcrossbar.compute(x, 1 / G, r_i_word_line=ohms, r_i_bit_line=2 * ohms)
            expected = np.asarray(solution.currents.output)
            assert off((effective_matrix(G, ohms, 2 * ohms) @ x).T, expected) < 1e-9, (name, ohms)
