"""Read noise through wires by one product: against the sum over all cells, a sampler of cells, and limits."""

import functools
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu

from hwspec.errors import DataError
from runtime.physics import noise_transfer as room
from runtime.physics.noise_transfer import noise_transfer
from runtime.physics.wires import effective_matrix

Float64 = npt.NDArray[np.float64]
INPUTS = ("uniform", "sparse", "signed")
DEVICES = ("log-uniform", "levels")


@pytest.fixture(params=["compiled", "numpy"])
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of computing."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(room, "kernels", lambda: None)


def devices(kind: str, *shape: int, seed: int = 0) -> Float64:
    """1 to 100 µS: of mean 21 µS, or of 16 uniform levels."""
    rng = np.random.default_rng([seed, *shape])
    if kind == "levels":
        return rng.choice(np.linspace(1e-6, 1e-4, 16), shape)
    return np.asarray(np.exp(rng.uniform(np.log(1e-6), np.log(1e-4), shape)))


def inputs(kind: str, vectors: int, m: int, seed: int) -> Float64:
    """Word-line voltages up to about 0.2 V."""
    rng = np.random.default_rng([seed, m])
    if kind == "uniform":
        return 0.2 * rng.random((vectors, m))
    if kind == "sparse":
        return 0.07 * np.maximum(rng.standard_normal((vectors, m)) - 0.5, 0.0)
    return 0.07 * rng.standard_normal((vectors, m))


def oracle(
    G: Float64, rw: npt.ArrayLike, rb: npt.ArrayLike, volts: Float64, columns: npt.NDArray[np.int64]
) -> tuple[Float64, Float64]:
    """Squared device voltages by sparse nodal solves: forward (M, N, vectors), adjoint (M, N, columns).

    Written from Kirchhoff's law alone. Every node leaks 1e-15 S, so that parts that hang free have a voltage.
    """
    m, n = G.shape
    word, bit = (1.0 / np.broadcast_to(np.asarray(r, np.float64), G.shape) for r in (rw, rb))
    u = np.arange(m * n).reshape(m, n)
    v = u + m * n
    entries: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float64]] = []
    for a, b, siemens in ((u, v, G), (u[:, 1:], u[:, :-1], word[:, 1:]), (v[1:], v[:-1], bit[:-1])):
        entries += [(a, a, siemens), (b, b, siemens), (a, b, -siemens), (b, a, -siemens)]
    entries += [(u[:, 0], u[:, 0], word[:, 0]), (v[-1], v[-1], bit[-1])]
    entries += [(x, x, np.full(x.shape, 1e-15)) for x in (u, v)]
    rows, cols, data = (np.concatenate([np.ravel(e[k]) for e in entries]) for k in range(3))
    solver = splu(coo_array((data, (rows, cols)), (2 * m * n, 2 * m * n)).tocsc())
    drive, sense = np.zeros((2 * m * n, len(volts))), np.zeros((2 * m * n, len(columns)))
    drive[u[:, 0]] = word[:, :1] * volts.T
    sense[v[-1][columns], range(len(columns))] = bit[-1, columns]
    forward, adjoint = solver.solve(drive), solver.solve(sense)
    return np.square(forward[u] - forward[v]), np.square(adjoint[u] - adjoint[v])


def exact_variance(sigma: Float64, forward: Float64, adjoint: Float64) -> Float64:
    """All cells: (vectors, columns)."""
    m, n = sigma.shape
    weighted = np.square(sigma)[..., None] * adjoint
    return forward.reshape(m * n, -1).T @ weighted.reshape(m * n, -1)


@functools.cache
def errors(size: int, ohms: float, device: str, kind: str) -> dict[str, Float64]:
    """Error of the spread of fresh inputs, (vectors, columns): of this room, of what it replaces, and of no wires."""
    G = devices(device, size, size)
    columns = np.array([0, size // 3, size // 2, size - 1]) if size > 64 else np.arange(0, size, 3)
    fresh = inputs(kind, 20, size, 2)
    forward, adjoint = oracle(G, ohms, ohms, fresh, columns)
    transfer = noise_transfer(G, inputs(kind, 32, size, 1), ohms, ohms)
    old = np.square(effective_matrix(G, ohms, ohms).T / G)
    found: dict[str, Float64] = {}
    for noise, sigma in (("constant", np.ones_like(G)), ("proportional", G)):
        exact = exact_variance(sigma, forward, adjoint)
        for name, share in (("new", transfer), ("old", old), ("none", np.ones_like(G))):
            approximate = np.square(fresh) @ (np.square(sigma) * share)[:, columns]
            found[f"{name} {noise}"] = np.sqrt(approximate / exact) - 1.0
    return found


def size_of(error: Float64) -> float:
    return float(np.sqrt(np.square(error).mean()))


CASES = [(64, ohms, device) for ohms in (0.5, 1.0, 2.0, 5.0) for device in DEVICES]
CASES += [(128, 2.0, device) for device in DEVICES]


@pytest.mark.parametrize(("size", "ohms", "device"), CASES)
@pytest.mark.parametrize("kind", INPUTS)
def test_the_spread_of_fresh_inputs(size: int, ohms: float, device: str, kind: str) -> None:
    """At most 3 % off up to 2 ohms, root mean square over inputs and columns; the mean within 1 %."""
    found = errors(size, ohms, device, kind)
    for noise in ("constant", "proportional"):
        error = found[f"new {noise}"]
        worst = float(np.abs(error).max())
        print(
            f"{size} {ohms} ohm {device} {kind} {noise}: mean {error.mean():+.2%} rms {size_of(error):.2%} "
            f"largest {worst:.2%}, old rms {size_of(found[f'old {noise}']):.2%}, "
            f"no wires {size_of(found[f'none {noise}']):.2%}"
        )
        assert size_of(error) < (0.016 if ohms <= 2 else 0.03)
        assert abs(error.mean()) < 0.01
        assert worst < (0.06 if ohms <= 2 else 0.12)


@pytest.mark.parametrize(("size", "device"), [(64, "levels"), (128, "log-uniform"), (128, "levels")])
def test_what_it_replaces_fails_the_same_bound(size: int, device: str) -> None:
    found = errors(size, 2.0, device, "uniform")
    for noise in ("constant", "proportional"):
        assert size_of(found[f"old {noise}"]) > 0.03
        assert size_of(found[f"none {noise}"]) > 0.1


@pytest.mark.usefixtures("both")
def test_a_sampler_of_cells_finds_the_variance() -> None:
    """Every cell drawn, every draw solved exactly: 4000 draws know a variance to 2.2 %, so 4.5 sigmas are 10 %."""
    m, n, ohms, draws = 7, 5, 60.0, 4000
    G = devices("levels", m, n)
    volts = inputs("uniform", 3, m, 4)
    transfer = noise_transfer(G, volts, ohms, ohms, 10.0, 20.0)
    rng = np.random.default_rng(8)
    sigma = 1e-3 * G * rng.uniform(0.5, 1.5, G.shape)
    drawn = effective_matrix(G + sigma * rng.standard_normal((draws, m, n)), ohms, ohms, 10.0, 20.0)
    sampled = (drawn @ volts.T).var(0, ddof=1).mean(-1)
    expected = (np.square(volts) @ (np.square(sigma) * transfer)).mean(0)
    assert np.abs(sampled / expected - 1.0).max() < 0.1
    assert np.abs(sampled / (np.square(volts) @ np.square(sigma)).mean(0) - 1.0).min() > 0.1  # no wires would fail


@pytest.mark.usefixtures("both")
def test_without_resistance_it_is_one_exactly() -> None:
    G = devices("levels", 3, 9, 6)
    G[0, 2], G[1, :, 3] = 0.0, 0.0
    for kind in INPUTS:
        volts = inputs(kind, 40, 9, 0)
        volts[:, 4] = 0.0
        np.testing.assert_array_equal(noise_transfer(G, volts, 0.0, 0.0), np.ones(G.shape))
    near = noise_transfer(G, inputs("sparse", 8, 9, 0), 1e-9, 1e-9)
    np.testing.assert_allclose(near, 1.0, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (24, 40), (40, 24)])
@pytest.mark.usefixtures("both")
def test_rectangular_arrays_of_weak_and_broken_lines(shape: tuple[int, int]) -> None:
    """Every segment its own, drivers and sense inputs, cells of 0 S: the mean over the calibration inputs is right."""
    m, n = shape
    rng = np.random.default_rng(shape)
    G = devices("levels", m, n)
    if G.size > 9:
        G[rng.random(shape) < 0.2] = 0.0
    rw, rb = 3.0 * rng.uniform(0.5, 1.5, shape), 3.0 * rng.uniform(0.5, 1.5, shape)
    rw[rng.random(shape) < 0.1] *= 100.0
    if m > 9 and n > 9:
        rw[5, n // 2], rw[7, 0], rb[m // 3, 4] = np.inf, np.inf, np.inf
    ends_w, ends_b = rw.copy(), rb.copy()
    ends_w[:, 0] += 20.0
    ends_b[-1] += 30.0
    for kind in INPUTS:
        volts = inputs(kind, 24, m, 3)
        volts[np.abs(volts).max(1) == 0] = 0.1
        volts /= np.sqrt(np.square(volts).mean(1, keepdims=True))  # as they are weighed
        transfer = noise_transfer(G, volts, rw, rb, 20.0, 30.0)
        assert np.isfinite(transfer).all()
        sigma = np.full(shape, 1e-6)
        exact = exact_variance(sigma, *oracle(G, ends_w, ends_b, volts, np.arange(n))).mean(0)
        found = (np.square(volts) @ (np.square(sigma) * transfer)).mean(0)
        np.testing.assert_allclose(np.sqrt(found), np.sqrt(exact), rtol=0.01, err_msg=kind)


@pytest.mark.usefixtures("both")
def test_one_device_is_a_divider() -> None:
    transfer = noise_transfer([[1e-3]], [[0.1], [0.2]], 10.0, 20.0, 30.0, 40.0)
    assert transfer.item() == pytest.approx((1 / (1 + 1e-3 * 100)) ** 4, rel=1e-4)  # by sweeps
    transfer = noise_transfer([[1e-3]], [[0.0]], 10.0, 20.0, 30.0, 40.0)
    assert transfer.item() == pytest.approx((1 / (1 + 1e-3 * 100)) ** 4, rel=1e-12)  # by ladders


@pytest.mark.usefixtures("both")
def test_a_broken_bit_line_lets_nothing_through() -> None:
    rb = np.full((6, 5), 2.0)
    rb[-1, 3] = np.inf
    transfer = noise_transfer(devices("levels", 6, 5), inputs("uniform", 4, 6, 0), 2.0, rb)
    assert (transfer[:, 3] < 1e-30).all()
    assert (np.delete(transfer, 3, 1) > 0.9).all()


@pytest.mark.usefixtures("both")
def test_rows_never_driven_in_calibration() -> None:
    """They get the attenuation of a row driven alone, and what their cells add is on the column's other cells."""
    G = devices("levels", 64, 64)
    columns = np.arange(0, 64, 5)
    volts = inputs("uniform", 32, 64, 0)
    volts[:, ::2] = 0.0
    sigma = np.where(np.arange(64)[:, None] % 2, 1.0, 3.0) * np.ones_like(G)
    exact = exact_variance(sigma, *oracle(G, 5.0, 5.0, volts, columns))
    told = noise_transfer(G, volts, 5.0, 5.0, sigma=sigma)
    untold = noise_transfer(G, volts, 5.0, 5.0)
    found = (np.square(volts) @ (np.square(sigma) * transfer)[:, columns] for transfer in (told, untold))
    errors = [np.sqrt(variance / exact).mean() - 1.0 for variance in found]
    assert abs(errors[0]) < 0.01
    assert errors[1] < -0.02  # here these cells are the noisier ones: it must be told
    none = noise_transfer(G, np.zeros((3, 64)), 5.0, 5.0)
    rows = np.arange(0, 64, 7)
    forward, adjoint = oracle(G, 5.0, 5.0, np.eye(64)[rows], columns)
    alone = np.array([[forward[i, j, a] * adjoint[i, j, b] for b, j in enumerate(columns)] for a, i in enumerate(rows)])
    np.testing.assert_allclose(none[np.ix_(rows, columns)], alone, rtol=0.01)
    assert (told[::2] >= none[::2]).all()
    assert (told[::2] <= 1.3 * none[::2]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(-1, 2.5), st.sampled_from(["word", "bit", "ends"]))
def test_more_resistance_lets_less_through(m: int, n: int, decade: float, where: str) -> None:
    G, volts = devices("levels", m, n), np.full((1, m), 0.1)
    sums = []
    for ohms in 10.0**decade * np.array([0.0, 1.0, 1.5, 4.0]):
        rw, rb, end = (ohms if where == name else 3.0 for name in ("word", "bit", "ends"))
        sums.append(noise_transfer(G, volts, rw, rb, end, end).sum())
    assert (np.diff(sums) < 1e-9).all()


@pytest.mark.usefixtures("both")
def test_a_batch_is_its_arrays() -> None:
    """Bit for bit, whatever the threads; inputs, noise and resistances may be shared or each array's own."""
    G = devices("levels", 3, 7, 10, 6)
    rw, rb = np.full(G.shape, 8.0), np.full((10, 6), 9.0)
    rw[1] *= 3.0
    own = inputs("sparse", 3 * 7 * 5, 10, 0).reshape(3, 7, 5, 10)
    for volts in (own, own[0, 0]):
        for sigma in (None, G, G[0, 0]):
            found = noise_transfer(G, volts, rw, rb, 2.0, sigma=sigma)
            assert found.shape == G.shape
            np.testing.assert_array_equal(found, noise_transfer(G, volts, rw, rb, 2.0, sigma=sigma, threads=5))
            for k in np.ndindex(3, 7):
                v = volts[k] if volts.ndim == 4 else volts
                s = sigma[k] if sigma is not None and sigma.ndim == 4 else sigma
                np.testing.assert_allclose(found[k], noise_transfer(G[k], v, rw[k], rb, 2.0, sigma=s), rtol=1e-12)
    assert noise_transfer(np.zeros((0, 3, 4)), np.ones((2, 3)), 1.0, 1.0).shape == (0, 3, 4)


@pytest.mark.parametrize("ohms", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("shape", [(33, 40), (40, 33)])
def test_compiled_and_numpy_agree(ohms: float, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    G = devices("log-uniform", 2, *shape)
    rw = np.full(shape, ohms)
    rw[3, 5], rw[7, 0] = np.inf, np.inf
    volts = inputs("sparse", 12, shape[0], 0)
    volts[:, 3] = 0.0
    compiled = noise_transfer(G, volts, rw, ohms, 5.0, 6.0, sigma=G)
    monkeypatch.setattr(room, "kernels", lambda: None)
    np.testing.assert_allclose(noise_transfer(G, volts, rw, ohms, 5.0, 6.0, sigma=G), compiled, rtol=1e-9, atol=1e-15)


def test_without_numba_numpy_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "runtime.physics.noise_transfer_numba", None)
    monkeypatch.delattr("runtime.physics.noise_transfer_numba", raising=False)
    room.kernels.cache_clear()
    try:
        assert room.kernels() is None
        assert noise_transfer([[1e-5]], [[1.0]], 1.0, 1.0).shape == (1, 1)
    finally:
        room.kernels.cache_clear()


GOOD, VOLTS = np.full((2, 3), 1e-5), np.ones((4, 2))


@pytest.mark.parametrize(
    ("arguments", "sigma", "message"),
    [
        ((-GOOD, VOLTS, 1, 1), None, "G must be finite conductances of at least 0 siemens"),
        ((np.zeros(3), VOLTS, 1, 1), None, r"G must have the shape \(..., M, N\)"),
        ((GOOD, np.ones((4, 3)), 1, 1), None, r"volts must have the shape \(vectors, 2\), not \(4, 3\)"),
        ((GOOD, np.ones(2), 1, 1), None, r"volts must have the shape \(vectors, 2\), not \(2,\)"),
        ((GOOD[None], np.ones((2, 4, 2)), 1, 1), None, r"volts must have the shape .* or \(1, vectors, 2\)"),
        ((GOOD, np.ones((0, 2)), 1, 1), None, "volts must hold one input vector at least"),
        ((GOOD, VOLTS * np.nan, 1, 1), None, "volts must be finite, not nan"),
        ((GOOD, VOLTS, -1, 1), None, "r_word must be at least 0 ohms"),
        ((GOOD, VOLTS, 1, np.ones((3, 2))), None, "r_bit must be one number or broadcast"),
        ((GOOD, VOLTS, 1, 1), -GOOD, "sigma must be finite and not negative"),
        ((GOOD, VOLTS, 1, 1), np.ones(4), r"sigma must broadcast to \(2, 3\), the shape of G"),
    ],
)
def test_bad_input_is_refused_by_name(
    arguments: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike], sigma: Float64 | None, message: str
) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        noise_transfer(*arguments, sigma=sigma)
