"""Drift and relaxation: formulas, distributions, and one trajectory for each device."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from moments import assert_moments
from scipy.special import ndtr

from hwspec.errors import SpecError
from hwspec.randomness import Purpose, array_generator
from runtime.physics.drift import (
    CmoHfOxRelaxation,
    DriftModel,
    PcmDrift,
    Trajectory,
    Wan2022Relaxation,
    draw_trajectory,
    pcm_drift_exponents,
)
from runtime.physics.spread import DAY, program_cells, wan2022

Float64 = npt.NDArray[np.float64]
US = 1e-6
MODELS: tuple[DriftModel, ...] = ("none", "pcm", "cmo_hfox", "wan2022")
TIMES = [0.0, 0.3, 1.0, 1.7, 60.0, 3600.0, DAY, 1.5 * DAY, 2 * DAY]


def generator(array: int = 0, seed: int = 1) -> np.random.Generator:
    return array_generator(seed, Purpose.DRIFT, array)


def some(model: DriftModel, shape: tuple[int, ...] = (20, 30), seed: int = 1) -> Trajectory:
    target = np.random.default_rng(5).uniform(10, 24, shape) * US
    return draw_trajectory(model, target, target * 1.01, generator(seed=seed))


# Formulas at points worked out by hand (docs/physics.md, Devices).


@pytest.mark.parametrize(
    ("target", "mean", "sigma"),
    [
        # x = 1: 0.0244 and -0.0059, both below their limits
        (25, 0.049, 0.008),
        # x = 0.1, ln x = -2.302585: 0.0356901 + 0.0244 and 0.0287823 - 0.0059
        (2.5, 0.0600900689, 0.0228823137),
        # x = 0: both at their upper limits
        (0, 0.1, 0.045),
    ],
)
def test_pcm_exponents(target: float, mean: float, sigma: float) -> None:
    assert pcm_drift_exponents(target * US) == pytest.approx((mean, sigma), rel=1e-8)


def test_pcm_golden_point() -> None:
    """ν = 0.049 after a day: (86420 / 20)^-0.049 = e^(-0.049 · 8.3712421) = 0.6635236."""
    drift = PcmDrift(np.array([20 * US]), np.array([0.049]))
    assert drift.at(DAY) / (20 * US) == pytest.approx(0.6635236, rel=1e-7)


def test_cmo_golden_points() -> None:
    """After a day, ln t = 11.366743: mean -1.011640, σ = 0.889403; both in µS."""
    relaxation = CmoHfOxRelaxation(np.full(3, 50 * US), np.array([0.0, 1.0, -1.0]))
    assert relaxation.at(DAY) / US == pytest.approx([48.988360, 49.877763, 48.098957], abs=2e-6)
    assert relaxation.at(1.0) / US == pytest.approx([50.0, 50.412, 49.588], rel=1e-12)


def test_wan_golden_point() -> None:
    """20 µS after a day: sqrt(3.909² - 2.023²) = 3.344810 µS for z = 1, added to what was programmed."""
    relaxation = Wan2022Relaxation(np.array([21 * US]), np.array([20 * US]), np.array([1.0]))
    assert relaxation.at(DAY) / US == pytest.approx(24.344810, abs=2e-6)
    assert relaxation.at(1.0) == 21 * US


# Distributions, cell by cell.


@pytest.mark.parametrize("seconds", [1.0, 3600.0, DAY, 3e7])
def test_pcm_moments(seconds: float) -> None:
    """E e^(-L|X|), X normal: the folded normal's transform, with L = ln((t + 20) / 20); twice L for the square."""
    targets = np.array([0.0, 0.5, 5.0, 15.0, 25.0]) * US
    programmed = np.tile([1.0, 0.6, 5.1, 15.2, 24.0], (50000, 1)) * US
    trajectory = draw_trajectory("pcm", np.tile(targets, (50000, 1)), programmed, generator())
    mean, sigma = pcm_drift_exponents(targets)

    def transform(L: float) -> Float64:
        grown = np.exp(0.5 * (L * sigma) ** 2)
        falling = np.exp(-L * mean) * ndtr(mean / sigma - L * sigma)
        rising = np.exp(L * mean) * ndtr(-mean / sigma - L * sigma)
        result: Float64 = grown * (falling + rising)
        return result

    L = math.log((seconds + 20) / 20)
    left = transform(L)
    assert_moments(trajectory.at(seconds) / programmed, left, transform(2 * L) - left**2)


@pytest.mark.parametrize("seconds", [0.25, 1.0, 3600.0, DAY, 3e7])
def test_cmo_moments(seconds: float) -> None:
    """Mean -0.089 ln t, σ = 0.042 ln t + 0.412 µS at every conductance, far from the clamps."""
    programmed = np.tile([15.0, 40.0, 80.0], (50000, 1)) * US
    trajectory = draw_trajectory("cmo_hfox", programmed, programmed, generator())
    logarithm = math.log(max(seconds, 1))
    sigma = 0.042 * logarithm + 0.412 * min(seconds, 1)
    assert_moments((trajectory.at(seconds) - programmed) / US, -0.089 * logarithm, sigma**2)


def test_cmo_is_clamped() -> None:
    """To 9 and 88.2 µS, at any time, so that trajectories stay continuous."""
    programmed = np.tile([8.5, 9.1, 88.1, 89.0], (1000, 1)) * US
    trajectory = draw_trajectory("cmo_hfox", programmed, programmed, generator())
    for seconds in (0.0, 1.0, DAY):
        values = trajectory.at(seconds)
        assert values.min() == 9e-6
        assert values.max() == 88.2e-6


@pytest.mark.parametrize("seconds", [1.0, 300.0, DAY, 1.3 * DAY, 2 * DAY])
def test_wan_spread_is_that_of_the_fit_at_any_time(seconds: float) -> None:
    """Programmed with the spread at 1 s, devices have the spread σ(t) around their targets later on."""
    targets = np.array([15.0, 20.0, 30.0, 40.0]) * US
    tiled = np.tile(targets, (50000, 1))
    spread = array_generator(1, Purpose.SPREAD, 0)
    programmed = program_cells(tiled, wan2022(), spread).conductance
    trajectory = draw_trajectory("wan2022", tiled, programmed, generator())
    assert_moments(trajectory.at(seconds), targets, wan2022(seconds).sigma(targets) ** 2)


def test_wan_times_correlate_as_they_must() -> None:
    """cov(G(t1), G(t2)) = σ(1s)² + sqrt((σ(t1)² - σ(1s)²) (σ(t2)² - σ(1s)²))."""
    target = 20 * US
    tiled = np.full(100000, target)
    programmed = program_cells(tiled, wan2022(), array_generator(1, Purpose.SPREAD, 0)).conductance
    trajectory = draw_trajectory("wan2022", tiled, programmed, generator())
    first = float(wan2022().sigma(target)) / US
    for t1, t2 in ((0.0, DAY), (1000.0, DAY), (DAY, 2 * DAY)):
        added = [math.sqrt((float(wan2022(t).sigma(target)) / US) ** 2 - first**2) for t in (t1, t2)]
        product = (trajectory.at(t1) - target) * (trajectory.at(t2) - target) / US**2
        assert_moments(product, first**2 + added[0] * added[1], product.var())


def test_wan_conductances_are_not_negative() -> None:
    targets = np.zeros(2000)
    trajectory = draw_trajectory("wan2022", targets, targets, generator())
    assert (trajectory.at(DAY) >= 0).all()
    assert (trajectory.at(DAY) == 0).mean() == pytest.approx(0.5, abs=0.05)


# One trajectory for each device.


def test_devices_keep_their_own_exponent() -> None:
    """ln(G(t) / G) / ln((t + 20) / 20) is -ν of the device, at any time."""
    trajectory = some("pcm")
    nus = [-np.log(trajectory.at(t) / trajectory.programmed) / math.log((t + 20) / 20) for t in (5.0, 3600.0, 3e7)]
    assert np.allclose(nus[0], nus[1], rtol=1e-12, atol=1e-13)
    assert np.allclose(nus[0], nus[2], rtol=1e-12, atol=1e-13)
    assert len(np.unique(nus[2])) == nus[2].size


def test_devices_keep_their_own_relaxation() -> None:
    programmed = np.full((30, 30), 50 * US)
    trajectory = draw_trajectory("cmo_hfox", programmed, programmed, generator())

    def z(t: float) -> Float64:
        logarithm = math.log(t)
        moved: Float64 = (trajectory.at(t) - programmed) / US
        return (moved + 0.089 * logarithm) / (0.042 * logarithm + 0.412)

    assert np.allclose(z(1.0), z(DAY), rtol=1e-9, atol=1e-11)
    assert len(np.unique(z(DAY))) == 900


@pytest.mark.parametrize("model", MODELS)
def test_the_same_time_gives_the_same_conductances(model: DriftModel) -> None:
    trajectory = some(model)
    first = trajectory.at(3600.0)
    first_copy = first.copy()
    first += 1  # what is handed out is the caller's
    trajectory.at(DAY)
    assert np.array_equal(trajectory.at(3600.0), first_copy)
    assert np.array_equal(some(model).at(3600.0), first_copy)


@pytest.mark.parametrize("model", MODELS)
def test_trajectories_start_from_what_was_programmed(model: DriftModel) -> None:
    trajectory = some(model)
    assert np.array_equal(trajectory.at(0.0), trajectory.programmed)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seconds", TIMES)
def test_trajectories_are_continuous(model: DriftModel, seconds: float) -> None:
    """A step of time of 1e-7 moves nothing by more than about 1e-7 of a µS; square roots start steeply at 1 s."""
    trajectory = some(model)
    step = max(1.0, seconds) * 1e-7
    after = trajectory.at(min(seconds + step, 2 * DAY))
    before = trajectory.at(max(seconds - step, 0.0))
    assert np.abs(after - before).max() < (1e-2 if model == "wan2022" and seconds == 1.0 else 1e-5) * US


@pytest.mark.parametrize("model", ["pcm", "cmo_hfox"])
def test_the_mean_falls(model: DriftModel) -> None:
    trajectory = some(model, (200, 300))
    means = [trajectory.at(t).mean() for t in (2.0, 10.0, 100.0, 3600.0, DAY, 3e7)]
    assert (np.diff(means) < 0).all()


def test_every_pcm_device_falls() -> None:
    trajectory = some("pcm")
    values = np.array([trajectory.at(t) for t in TIMES])
    assert (np.diff(values, axis=0) < 0).all()


def test_without_a_model_nothing_moves() -> None:
    trajectory = some("none")
    assert np.array_equal(trajectory.at(1e9), trajectory.programmed)


@pytest.mark.parametrize("model", ["pcm", "cmo_hfox", "wan2022"])
def test_an_array_does_not_depend_on_the_others(model: DriftModel) -> None:
    """Arrays drawn in another order or number, or with other neighbours, keep their trajectories."""
    targets = np.random.default_rng(0).uniform(10, 24, (5, 8, 9)) * US

    def drawn(arrays: list[int]) -> dict[int, Float64]:
        return {k: draw_trajectory(model, targets[k], targets[k], generator(k)).at(DAY) for k in arrays}

    everything = drawn([0, 1, 2, 3, 4])
    for k, values in drawn([3, 1]).items():
        assert np.array_equal(values, everything[k])
    same = np.full((8, 9), 20 * US)
    first, second = (draw_trajectory(model, same, same, generator(k)).at(DAY) for k in (0, 1))
    assert not (first == second).any()
    other = targets[0].copy()
    other[:4] = 11 * US
    changed = draw_trajectory(model, other, other, generator(0)).at(DAY)
    assert np.array_equal(changed[4:], everything[0][4:])


@pytest.mark.parametrize("model", MODELS)
def test_a_trajectory_does_not_share_memory_with_its_inputs(model: DriftModel) -> None:
    target = np.full((3, 3), 20 * US)
    programmed = target.copy()
    trajectory = draw_trajectory(model, target, programmed, generator())
    before = trajectory.at(DAY)
    target += 5 * US
    programmed += 5 * US
    assert np.array_equal(trajectory.at(DAY), before)


# Bad input.


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_times_must_be_possible(model: DriftModel, seconds: float) -> None:
    with pytest.raises(SpecError, match=r"must be finite and not negative, not .*; give seconds"):
        some(model).at(seconds)


def test_wan_has_no_fit_beyond_two_days() -> None:
    with pytest.raises(SpecError, match="wan2022 needs a time from 0 s to 172800 s, where its last fit is, not 259200"):
        some("wan2022").at(3 * DAY)


def test_wan_targets_must_be_in_range() -> None:
    with pytest.raises(SpecError, match="wan2022 needs target conductances from 0 S to 40 uS, not 50 uS"):
        draw_trajectory("wan2022", 50 * US, 50 * US, generator())


def test_unknown_models_are_refused() -> None:
    with pytest.raises(SpecError, match="must be one of none, pcm, cmo_hfox, wan2022, not 'flash'"):
        draw_trajectory("flash", US, US, generator())  # type: ignore[arg-type]
