"""Read noise by moments: against integration, against cells drawn one by one, against a network solved node by node."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moments import assert_moments
from scipy import integrate, stats

from hwspec.errors import SpecError
from hwspec.randomness import Purpose, array_generator
from runtime.physics.noise import (
    advance_traps,
    clipped_moments,
    clipped_variance,
    cmo_hfox_read_sigma,
    draw_traps,
    pcm_read_sigma,
    telegraph_conductance,
    telegraph_moments,
)

Float64 = npt.NDArray[np.float64]
US = 1e-6


def generator(array: int = 0) -> np.random.Generator:
    return array_generator(1, Purpose.READ_NOISE, array)


# Clipped moments.


@given(ratio=st.floats(0, 12), sigma=st.floats(0.01, 100))
def test_clipped_moments_are_those_of_the_integral(ratio: float, sigma: float) -> None:
    """Integrated over z where nothing is clipped: below, max(G + σz, 0) is 0."""
    G = ratio * sigma
    mean, second = (float(moment) for moment in clipped_moments(G, sigma))

    def moment(power: int, centre: float) -> float:
        value, _ = integrate.quad(
            lambda z: (G + sigma * z - centre) ** power * stats.norm.pdf(z), max(-ratio, -12.0), 12.0, epsabs=0
        )
        return float(value)

    assert mean == pytest.approx(moment(1, 0.0), rel=1e-9)
    assert second == pytest.approx(moment(2, 0.0), rel=1e-9)
    variance = moment(2, mean) + stats.norm.cdf(-ratio) * mean**2
    assert float(clipped_variance(G, sigma)) == pytest.approx(variance, rel=1e-8)
    assert mean >= G * (1 - 1e-15)


def test_clipped_golden_points() -> None:
    """G = σ = 1: Φ(1) + φ(1) = 0.8413447 + 0.2419707, 2 Φ(1) + φ(1). G = 0: 1 / sqrt(2π), 1/2, 1/2 - 1/(2π)."""
    assert clipped_moments(1.0, 1.0) == pytest.approx((1.0833155, 1.9246602), abs=2e-7)
    assert float(clipped_variance(1.0, 1.0)) == pytest.approx(1.9246602 - 1.0833155**2, abs=5e-7)
    assert clipped_moments(0.0, 1.0) == pytest.approx((0.3989422804, 0.5), rel=1e-9)
    assert float(clipped_variance(0.0, 1.0)) == pytest.approx(0.5 - 0.5 / math.pi, rel=1e-12)


def test_clipping_vanishes_far_from_zero() -> None:
    """Without noise everything is exact, at 0 S too; with little, mean and variance are those of the normal."""
    G = np.array([0.0, 1e-12, 50 * US])
    mean, second = clipped_moments(G, 0.0)
    assert np.array_equal(mean, G)
    assert np.array_equal(second, G**2)
    assert np.array_equal(clipped_variance(G, 0.0), np.zeros(3))
    for sigma in (1e-320, 1e-20, 1e-12, 1e-7):
        assert clipped_variance(50 * US, sigma) == pytest.approx(sigma**2, rel=1e-12)
        assert clipped_moments(50 * US, sigma)[0] == 50 * US


def test_cells_clipped_at_zero_have_these_moments() -> None:
    G, sigma = np.array([0.0, 0.5, 1.0, 3.0]) * US, np.array([1.0, 1.0, 2.0, 1.0]) * US
    cells = np.maximum(G + sigma * generator().standard_normal((100000, 4)), 0.0)
    assert_moments(cells, clipped_moments(G, sigma)[0], clipped_variance(G, sigma))


# Columns.


def test_clipped_cells_sum_to_clipped_moments() -> None:
    """With noise as large as the conductance, the mean shifts: it belongs in the matrix."""
    rng = np.random.default_rng(3)
    volts, G = rng.uniform(0, 0.2, (3, 10)), rng.uniform(0, 2, (10, 4)) * US
    sigma = np.full(G.shape, 1 * US)
    cells = np.maximum(G + sigma * generator().standard_normal((20000, *G.shape)), 0.0)
    mean, _ = clipped_moments(G, sigma)
    variance = volts**2 @ clipped_variance(G, sigma)
    assert_moments(np.einsum("vr,nrc->nvc", volts, cells), volts @ mean, variance)


# Named devices.


@pytest.mark.parametrize(
    ("target", "seconds", "sigma"),
    [
        # x = 1, t = 0: 0.0088 · 25 · sqrt(ln(20.00000025 / 5e-7)) = 0.22 · sqrt(17.504390)
        (25, 0.0, 0.92044146),
        # a day: 0.22 · sqrt(ln(86420.00000025 / 5e-7)) = 0.22 · sqrt(25.875632)
        (25, 86400.0, 1.11909812),
        # x = 0.1: x^0.65 = e^(-0.65 · 2.302585) = 0.22387211, Q = 0.03930816
        (2.5, 0.0, 0.03930816 * 2.5 * 4.18382481),
        # x = 0.001: x^0.65 = 0.0112202, Q = min(0.784, 0.2)
        (0.025, 0.0, 0.2 * 0.025 * 4.18382481),
        (0, 0.0, 0.0),
    ],
)
def test_pcm_golden_points(target: float, seconds: float, sigma: float) -> None:
    assert pcm_read_sigma(target * US, seconds) == pytest.approx(sigma * US, rel=1e-7)


def test_pcm_noise_takes_its_quality_from_what_was_programmed() -> None:
    """x of 25 µS: Q = 0.0088, though the device has drifted to 10 µS."""
    root = math.sqrt(math.log((3600 + 20 + 250e-9) / 500e-9))
    assert pcm_read_sigma(10 * US, 3600.0, 25 * US) == pytest.approx(0.0088 * 10 * US * root, rel=1e-12)


@pytest.mark.parametrize(
    ("target", "seconds", "sigma"),
    [
        # log10(10) = 1: 0.0277 · sqrt(ln(1.000001 / 2e-6)) = 0.0277 · sqrt(13.1223644)
        (10, 1.0, 0.10034271),
        (100, 1.0, 0.20068542),
        (1, 1.0, 0.0),
        (0, 1.0, 0.0),
        (50, 1e-6, 0.0),
        (50, 0.0, 0.0),
    ],
)
def test_cmo_golden_points(target: float, seconds: float, sigma: float) -> None:
    assert cmo_hfox_read_sigma(target * US, seconds) == pytest.approx(sigma * US, rel=1e-7)


@pytest.mark.parametrize("read_sigma", [pcm_read_sigma, cmo_hfox_read_sigma])
def test_read_noise_grows_with_time_and_conductance(read_sigma: Callable[[npt.ArrayLike, float], Float64]) -> None:
    G = np.linspace(0, 90, 200) * US
    assert (np.diff(read_sigma(G, 60.0)) >= 0).all()
    assert (np.diff([float(read_sigma(20 * US, t)) for t in (1e-3, 1.0, 60.0, 1e5)]) > 0).all()


# Random telegraph noise.


def test_telegraph_golden_point() -> None:
    """50 µS, a tenth taken for a quarter of the time: 50 · 0.975 and 2500 · 0.01 · 0.1875."""
    mean, variance = telegraph_moments(50 * US, 0.1, 0.25)
    assert mean == pytest.approx(48.75 * US, rel=1e-12)
    assert variance == pytest.approx(4.6875 * US**2, rel=1e-12)


@pytest.mark.parametrize(("amplitude", "occupancy"), [(0.1, 0.25), (1.0, 0.5), (0.3, 0.02), (0.2, 0.0), (0.2, 1.0)])
def test_telegraph_cells_have_these_moments(amplitude: float, occupancy: float) -> None:
    G = np.array([1.0, 10.0, 100.0]) * US
    traps = draw_traps((50000, 3), occupancy, generator())
    cells = telegraph_conductance(G, amplitude, traps)
    mean, variance = telegraph_moments(G, amplitude, occupancy)
    assert_moments(cells / US, mean / US, variance / US**2)


def test_traps_keep_their_occupancy_and_forget_their_state() -> None:
    """Correlation e^(-elapsed / correlation time), whatever steps lead there; nothing moves in no time."""
    occupancy, tau = 0.3, 2.0
    rng = generator()
    first = draw_traps((200000,), occupancy, rng)
    assert np.array_equal(advance_traps(first, 0.0, tau, occupancy, rng), first)
    once = advance_traps(first, 1.0, tau, occupancy, rng)
    steps = first
    for _ in range(4):
        steps = advance_traps(steps, 0.25, tau, occupancy, rng)
    for later in (once, steps):
        assert_moments(later.astype(np.float64), occupancy, occupancy * (1 - occupancy))
        product = (first - occupancy) * (later - occupancy)
        assert_moments(product, occupancy * (1 - occupancy) * math.exp(-0.5), product.var())
    forgotten = advance_traps(first, 1e6, tau, occupancy, rng)
    assert abs(np.corrcoef(first, forgotten)[0, 1]) < 4.75 / math.sqrt(200000)


def test_slow_traps_are_a_device_s_own() -> None:
    """Drawn once, by array: the same in any order; two devices of the same conductance differ."""
    drawn = [draw_traps((30, 30), 0.5, array_generator(1, Purpose.TELEGRAPH, k)) for k in (0, 1, 2)]
    again = [draw_traps((30, 30), 0.5, array_generator(1, Purpose.TELEGRAPH, k)) for k in (2, 0)]
    assert np.array_equal(drawn[2], again[0])
    assert np.array_equal(drawn[0], again[1])
    assert not np.array_equal(drawn[0], drawn[1])
    assert len(np.unique(telegraph_conductance(np.full((30, 30), US), 0.1, drawn[0]))) == 2


# Bad input.


@pytest.mark.parametrize("value", [-1e-6, math.nan, math.inf])
def test_noise_must_be_possible(value: float) -> None:
    complaint = r"read noise must be finite and not negative, not .*; "
    with pytest.raises(SpecError, match=complaint):
        clipped_moments(1.0, value)
    with pytest.raises(SpecError, match="conductance must be finite and not negative"):
        clipped_variance(value, 1.0)
    with pytest.raises(SpecError, match="time since programming must be finite and not negative"):
        pcm_read_sigma(US, value)
    with pytest.raises(SpecError, match="time since programming must be finite and not negative"):
        cmo_hfox_read_sigma(US, value)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_telegraph_noise_must_be_possible(value: float) -> None:
    with pytest.raises(SpecError, match=r"amplitude of telegraph noise must be from 0 to 1, not .*; it is a share"):
        telegraph_moments(US, value, 0.5)
    with pytest.raises(SpecError, match="occupancy of telegraph noise must be from 0 to 1"):
        draw_traps((1,), value, generator())
    with pytest.raises(SpecError, match="correlation time of telegraph noise must be positive"):
        advance_traps(np.zeros(1, np.bool_), 1.0, 0.0, 0.5, generator())
