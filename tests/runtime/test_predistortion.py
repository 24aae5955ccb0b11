"""Pre-distorted targets: how much of the wires' error is gone on fresh inputs, and the limits."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwspec.errors import DataError
from runtime.physics.predistortion import Effective, predistort, second_moment
from runtime.physics.wires import effective_matrix

Float64 = npt.NDArray[np.float64]
G_MIN, G_MAX = 1e-6, 1e-4
SPAN = G_MAX - G_MIN
LEVELS = np.linspace(G_MIN, G_MAX, 16)


def two_arrays(ohms: npt.ArrayLike) -> Effective:
    def effective(plus: Float64, minus: Float64) -> tuple[Float64, Float64]:
        W = effective_matrix(np.stack([plus, minus]), ohms, ohms, threads=1).swapaxes(1, 2)
        return W[0], W[1]

    return effective


def neighbouring_columns(ohms: float) -> Effective:
    def effective(plus: Float64, minus: Float64) -> tuple[Float64, Float64]:
        W = effective_matrix(np.stack([plus, minus], -1).reshape(len(plus), -1), ohms, ohms, threads=1).T
        return W[:, ::2], W[:, 1::2]

    return effective


def pairs(w: Float64, levels: Float64 | None = None) -> tuple[Float64, Float64]:
    """Ideal targets; weights must lie on the grid of the levels where these are given."""
    plus, minus = G_MIN + SPAN * w.clip(0), G_MIN + SPAN * (-w).clip(0)
    if levels is None:
        return plus, minus
    return levels[np.rint(15 * w.clip(0)).astype(int)], levels[np.rint(15 * (-w).clip(0)).astype(int)]


def normal(generator: np.random.Generator, m: int, n: int, grid: bool = False) -> Float64:
    w = (0.4 * generator.standard_normal((m, n))).clip(-1, 1)
    return np.rint(15 * w) / 15 if grid else w


def drive(kind: str, generator: np.random.Generator, count: int, m: int) -> Float64:
    if kind == "non-negative":
        return 0.2 * generator.random((count, m))
    return np.asarray(0.2 * (generator.standard_normal((count, m)) / 3).clip(0 if kind == "half zero" else -1, 1))


def off(D: Float64, target: Float64, volts: Float64) -> float:
    return float(np.linalg.norm(volts @ (D - target)) / np.linalg.norm(volts @ target))


def left(
    w: Float64, kind: str, effective: Effective, levels: Float64 | None, generator: np.random.Generator, vectors: int
) -> float:
    """Share of the wires' error that stays on fresh inputs."""
    plus, minus = pairs(w, levels)
    calibration, fresh = (drive(kind, generator, count, len(w)) for count in (vectors, 500))
    found = predistort(plus, minus, effective, calibration, G_MIN, G_MAX, levels)
    before, after = (np.subtract(*effective(*pair)) for pair in ((plus, minus), (found.plus, found.minus)))
    target = plus - minus
    return off(found.gain * after, target, fresh) / off(before, target, fresh)


KINDS = ("non-negative", "half zero", "signed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vectors", [64, 256])
def test_full_tiles_lose_the_wires_error_on_fresh_inputs(kind: str, vectors: int) -> None:
    generator = np.random.default_rng(1)
    assert left(normal(generator, 128, 128), kind, two_arrays(1), None, generator, vectors) < 0.01
    bound = {"non-negative": 0.14, "half zero": 0.20, "signed": 0.23}[kind]
    assert left(normal(generator, 128, 128, grid=True), kind, two_arrays(1), LEVELS, generator, vectors) < bound


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_weights_on_levels(kind: str) -> None:
    generator = np.random.default_rng(2)
    w = np.rint(15 * generator.uniform(-1, 1, (128, 128))) / 15
    assert left(w, kind, two_arrays(1), LEVELS, generator, 64) < 0.15


def test_pairs_on_neighbouring_columns_and_strong_wires() -> None:
    generator = np.random.default_rng(3)
    assert left(normal(generator, 64, 64), "half zero", neighbouring_columns(1), None, generator, 64) < 0.01
    assert left(normal(generator, 64, 48), "signed", neighbouring_columns(4), None, generator, 64) < 0.05
    w = normal(generator, 64, 64, grid=True)
    assert left(w, "non-negative", neighbouring_columns(1), LEVELS, generator, 64) < 0.25


def test_few_correlated_vectors_do_not_overfit() -> None:
    """Inputs of few causes, fewer vectors than rows: the fresh error must not lie far above that of the calibration."""
    generator = np.random.default_rng(4)
    w = normal(generator, 96, 64, grid=True)
    plus, minus = pairs(w, LEVELS)
    causes = generator.standard_normal((6, 96))
    volts = 0.03 * (generator.standard_normal((532, 6)) @ causes + 0.5 * generator.standard_normal((532, 96))).clip(0)
    effective = two_arrays(1.5)
    found = predistort(plus, minus, effective, volts[:32], G_MIN, G_MAX, LEVELS)
    after = np.subtract(*effective(found.plus, found.minus))
    fresh = off(found.gain * after, plus - minus, volts[32:])
    assert fresh < 1.5 * found.error
    assert fresh < 0.25 * off(np.subtract(*effective(plus, minus)), plus - minus, volts[32:])


@pytest.mark.parametrize("levels", [None, LEVELS])
def test_without_wires_nothing_changes(levels: Float64 | None) -> None:
    generator = np.random.default_rng(5)
    plus, minus = pairs(normal(generator, 20, 12, grid=True), levels)
    found = predistort(plus, minus, two_arrays(0), drive("signed", generator, 16, 20), G_MIN, G_MAX, levels)
    np.testing.assert_array_equal(found.plus, plus)
    np.testing.assert_array_equal(found.minus, minus)
    assert np.all(found.gain == 1)
    assert np.all(found.headroom == 1)
    assert found.error == pytest.approx(0, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 7),
    n=st.integers(1, 7),
    vectors=st.integers(1, 9),
    seed=st.integers(0, 999),
    ohms=st.sampled_from([0.5, 20.0, 2000.0]),
    table=st.booleans(),
    kind=st.sampled_from(KINDS),
)
def test_any_tile_is_never_worse_and_stays_in_range(
    m: int, n: int, vectors: int, seed: int, ohms: float, table: bool, kind: str
) -> None:
    generator = np.random.default_rng(seed)
    levels = LEVELS if table else None
    plus, minus = pairs(normal(generator, m, n, grid=True), levels)
    volts = drive(kind, generator, vectors, m)
    found = predistort(plus, minus, two_arrays(ohms), volts, G_MIN, G_MAX, levels)
    assert found.error <= found.error_gain_only <= found.error_before
    for targets in (found.plus, found.minus):
        assert targets.shape == (m, n)
        assert targets.min() >= G_MIN
        assert targets.max() <= G_MAX
        assert not table or np.isin(targets, LEVELS).all()
    assert np.all((found.gain > 0) & np.isfinite(found.gain))
    again = predistort(plus, minus, two_arrays(ohms), volts, G_MIN, G_MAX, levels)
    np.testing.assert_array_equal(found.plus, again.plus)
    np.testing.assert_array_equal(found.gain, again.gain)


@pytest.mark.parametrize("levels", [None, LEVELS])
def test_rows_never_driven_are_still_corrected(levels: Float64 | None) -> None:
    generator = np.random.default_rng(6)
    w = normal(generator, 64, 48, grid=True)
    plus, minus = pairs(w, levels)
    effective = two_arrays(2)
    volts = drive("half zero", generator, 64, 64)
    volts[:, 20:40] = 0
    found = predistort(plus, minus, effective, volts, G_MIN, G_MAX, levels)
    fresh = np.zeros((400, 64))
    fresh[:, 20:40] = generator.random((400, 20))
    after = found.gain * np.subtract(*effective(found.plus, found.minus))
    share = 0.05 if levels is None else 0.5  # roundings of rows that are never driven cannot know what to cancel
    assert off(after, plus - minus, fresh) < share * off(np.subtract(*effective(plus, minus)), plus - minus, fresh)


@pytest.mark.parametrize("levels", [None, LEVELS])
def test_columns_of_zeros_keep_low_devices(levels: Float64 | None) -> None:
    generator = np.random.default_rng(7)
    w = normal(generator, 32, 16, grid=True)
    w[:, [0, 9]] = 0
    plus, minus = pairs(w, levels)
    found = predistort(plus, minus, two_arrays(2), drive("signed", generator, 32, 32), G_MIN, G_MAX, levels)
    np.testing.assert_allclose(found.plus[:, [0, 9]], G_MIN, atol=0.01 * SPAN)
    nothing = predistort(*pairs(0 * w), two_arrays(2), np.zeros((3, 32)), G_MIN, G_MAX, levels)
    assert np.isfinite(nothing.gain).all()


def test_lowest_conductance_of_zero_and_an_open_line() -> None:
    generator = np.random.default_rng(8)
    w = normal(generator, 32, 32)
    plus, minus = SPAN * w.clip(0), SPAN * (-w).clip(0)
    ohms = np.ones((32, 32))
    ohms[5, 10] = np.inf
    volts = drive("half zero", generator, 64, 32)
    found = predistort(plus, minus, two_arrays(1), volts, 0, G_MAX)
    assert found.error < 0.05 * found.error_before
    cut = predistort(plus, minus, two_arrays(ohms), volts, 0, G_MAX)
    assert cut.error <= cut.error_gain_only
    assert np.isfinite(cut.plus).all()


def test_low_devices_stay_low_and_full_scale_needs_headroom() -> None:
    generator = np.random.default_rng(9)
    w = generator.choice([-1.0, 1.0], (64, 64))
    found = predistort(*pairs(w), two_arrays(1), drive("signed", generator, 64, 64), G_MIN, G_MAX)
    np.testing.assert_array_equal(np.minimum(found.plus, found.minus), G_MIN)
    assert found.headroom.max() < 1
    np.testing.assert_allclose(found.gain * found.headroom, 1, rtol=0.02)


def test_second_moment_is_shrunk_and_positive_definite() -> None:
    generator = np.random.default_rng(10)
    few = second_moment(generator.standard_normal((8, 40)))
    assert np.linalg.eigvalsh(few).min() > 0
    off_diagonal = ~np.eye(40, dtype=bool)
    assert (
        np.abs(few[off_diagonal]).mean()
        < 0.5 * np.abs(np.cov(generator.standard_normal((8, 40)).T))[off_diagonal].mean()
    )
    common = generator.standard_normal((2000, 1)) + 0.1 * generator.standard_normal((2000, 6))
    np.testing.assert_allclose(second_moment(common), common.T @ common / 2000, rtol=0.02)


def bad_shape(plus: Float64, minus: Float64) -> tuple[Float64, Float64]:
    return plus.T, minus.T


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p, v: predistort(p, p[:1], two_arrays(1), v, G_MIN, G_MAX), "minus"),
        (lambda p, v: predistort(p, p, two_arrays(1), v[:, :1], G_MIN, G_MAX), "volts"),
        (lambda p, v: predistort(p, p, two_arrays(1), v, G_MAX, G_MIN), "g_min"),
        (lambda p, v: predistort(2 * p, p, two_arrays(1), v, G_MIN, G_MIN * 1.5), "plus"),
        (lambda p, v: predistort(p, p, two_arrays(1), v, G_MIN, G_MAX, levels=LEVELS[::-1]), "levels"),
        (lambda p, v: predistort(p, p, two_arrays(1), v, G_MIN, G_MAX, headrooms=(1.2,)), "headrooms"),
        (lambda p, v: predistort(p, p, two_arrays(1), v, G_MIN, G_MAX, steps=0), "steps"),
        (lambda p, v: predistort(p, p, bad_shape, v, G_MIN, G_MAX), "effective"),
        (lambda p, v: predistort(p, p, two_arrays(1), v * np.nan, G_MIN, G_MAX), "volts"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[Float64, Float64], object], text: str) -> None:
    with pytest.raises(DataError, match=text):
        call(np.full((3, 2), G_MIN), np.ones((4, 3)))
