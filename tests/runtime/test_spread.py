"""Programming spread: formulas, distributions, failures, write-verify, access resistance."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moments import assert_moments
from scipy import integrate, stats

from hwspec.errors import SpecError
from hwspec.randomness import Purpose, array_generator
from runtime.physics.noise import clipped_moments, clipped_variance
from runtime.physics.spread import (
    DAY,
    MILO,
    PCM,
    Programming,
    SpreadModel,
    WriteVerify,
    cmo_hfox,
    constant,
    lognormal,
    program_cells,
    relative,
    wan2022,
    with_access_resistance,
)

Float64 = npt.NDArray[np.float64]
US = 1e-6

NAMED = {
    "constant": constant(1.5 * US),
    "relative": relative(0.15),
    "wan2022": wan2022(),
    "wan2022 after a day": wan2022(DAY),
    "milo": MILO,
    "cmo-hfox 2 %": cmo_hfox(0.02),
    "cmo-hfox 0.2 %": cmo_hfox(0.002),
    "pcm": PCM,
}


def targets_of(model: SpreadModel) -> Float64:
    """Targets over the whole valid range, ends included."""
    return np.linspace(model.lowest, min(model.highest, 100 * US), 6)


def generator(array: int = 0) -> np.random.Generator:
    return array_generator(1, Purpose.SPREAD, array)


@pytest.mark.parametrize(
    ("model", "target", "sigma"),
    [
        (constant(1.5 * US), 70, 1.5),
        (relative(0.15), 40, 6.0),
        # x = 0.5: 0.348 + 8.015 - 10.9625 + 5.67375 - 1.05125
        (wan2022(), 20, 2.023),
        (wan2022(0.0), 20, 2.023),
        # x = 1: 0.348 + 16.03 - 43.85 + 45.39 - 16.82
        (wan2022(), 40, 1.098),
        (wan2022(), 0, 0.348),
        # x = 0.5: 0.701 + 11.043 - 12.69325 + 5.886875 - 1.028625
        (wan2022(DAY), 20, 3.909),
        # x = 0.5: 0.782 + 10.137 - 10.87675 + 4.63275 - 0.745875
        (wan2022(2 * DAY), 20, 3.929125),
        # the middle of 1 s and a day in ln t: (2.023 + 3.909) / 2
        (wan2022(math.sqrt(86400)), 20, 2.966),
        # 4.782 - 0.91, 4.782 - 0.455, 4.782 - 2.0475
        (MILO, 100, 3.872),
        (MILO, 50, 4.327),
        (MILO, 225, 2.7345),
        # 0.565 + 0.0112 and 0.0535 + 0.00081
        (cmo_hfox(0.02), 50, 0.5762),
        (cmo_hfox(0.002), 50, 0.05431),
        # x = 0.5: 0.263 + 0.9825 - 0.29325; x = 1: 0.263 + 1.965 - 1.173
        (PCM, 12.5, 0.95225),
        (PCM, 25, 1.055),
    ],
)
def test_golden_points(model: SpreadModel, target: float, sigma: float) -> None:
    """The formulas of docs/physics.md, Devices, worked out by hand, in µS."""
    assert model.sigma(target * US) == pytest.approx(sigma * US, rel=1e-12)


@pytest.mark.parametrize("name", NAMED)
def test_spread_is_never_negative_and_has_the_shape_of_the_targets(name: str) -> None:
    model = NAMED[name]
    targets = np.linspace(model.lowest, min(model.highest, 1e-3), 4001).reshape(1, -1)
    sigma = model.sigma(targets)
    assert sigma.shape == targets.shape
    assert (sigma >= 0).all()


@pytest.mark.parametrize("seconds", np.geomspace(1, 2 * DAY, 30))
def test_wan_spread_only_grows_from_its_first_fit(seconds: float) -> None:
    """What lets relaxation be added to programming: the spread at no time is below that of 1 s, at any target."""
    targets = np.linspace(0, 40 * US, 401)
    assert (wan2022(seconds).sigma(targets) >= wan2022().sigma(targets) * (1 - 1e-12)).all()


@pytest.mark.parametrize("name", NAMED)
def test_cells_have_the_moments_of_their_model(name: str) -> None:
    """Cell by cell, clipped at 0 as by default."""
    model = NAMED[name]
    targets = targets_of(model)
    cells = program_cells(np.tile(targets, (40000, 1)), model, generator()).conductance
    mean, _ = clipped_moments(targets, model.sigma(targets))
    assert_moments(cells, mean, clipped_variance(targets, model.sigma(targets)))
    assert (cells >= 0).all()


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 1.0])
def test_lognormal_keeps_the_median_and_not_the_mean(sigma: float) -> None:
    """Unclipped: median g, mean g e^(σ²/2), variance g² e^(σ²) (e^(σ²) - 1)."""
    targets = np.array([1.0, 10.0, 100.0]) * US
    cells = program_cells(np.tile(targets, (100000, 1)), lognormal(sigma), generator()).conductance
    grown = math.exp(sigma**2)
    assert_moments(cells / targets, math.sqrt(grown), grown * (grown - 1))
    assert (np.abs((cells < targets).mean(axis=0) - 0.5) < 4.75 * 0.5 / math.sqrt(len(cells))).all() or sigma == 0


def test_lognormal_mean_at_sigma_two() -> None:
    """The factor of 7.4 in docs/physics.md: e^2 = 7.389; the logarithms are normal with σ = 2."""
    cells = program_cells(np.full(100000, US), lognormal(2.0), generator()).conductance
    assert_moments(np.log(cells / US), 0.0, 4.0)
    assert cells.mean() / US == pytest.approx(math.exp(2), rel=0.1)


def test_lognormal_is_clipped_when_told_to() -> None:
    """Mean and variance of the clipped distribution, by numerical integration over z."""
    low, high, target, sigma = 2 * US, 50 * US, 10 * US, 1.0
    cells = program_cells(np.full(100000, target), lognormal(sigma), generator(), clip=(low, high)).conductance
    assert (cells.min(), cells.max()) == (low, high)

    def moment(power: int) -> float:
        edges = [math.log(edge / target) / sigma for edge in (low, high)]
        value, _ = integrate.quad(
            lambda z: float(np.clip(target * math.exp(sigma * z), low, high) / US) ** power * stats.norm.pdf(z),
            -9,
            9,
            points=edges,
            epsabs=1e-12,
        )
        return float(value)

    assert_moments(cells / US, moment(1), moment(2) - moment(1) ** 2)


@pytest.mark.parametrize("name", NAMED)
def test_two_cells_of_the_same_target_differ(name: str) -> None:
    target = targets_of(NAMED[name])[2]
    cells = program_cells(np.full((8, 8), target), NAMED[name], generator()).conductance
    assert len(np.unique(cells)) == 64


def test_no_spread_is_exact() -> None:
    targets = np.linspace(1, 100, 16).reshape(4, 4) * US
    for model in (constant(0.0), relative(0.0), lognormal(0.0)):
        result = program_cells(targets, model, generator())
        assert np.array_equal(result.conductance, targets)
        assert result.converged.all()
        assert (result.pulses == 1).all()
        assert not result.failed.any()


def test_an_array_does_not_depend_on_the_others() -> None:
    """Neither on how many arrays there are nor on the order in which they are programmed."""
    targets = np.random.default_rng(0).uniform(50, 225, (7, 6, 5)) * US
    verify = WriteVerify(budget=20, tolerance=2 * US)

    def program(arrays: list[int]) -> dict[int, Programming]:
        return {k: program_cells(targets[k], MILO, generator(k), verify=verify) for k in arrays}

    forwards, backwards = program(list(range(7))), program([4, 2, 0])
    for k, result in backwards.items():
        assert np.array_equal(result.conductance, forwards[k].conductance)
        assert np.array_equal(result.pulses, forwards[k].pulses)
    assert not np.array_equal(forwards[0].conductance / targets[0], forwards[1].conductance / targets[1])


def test_a_cell_does_not_depend_on_its_neighbours() -> None:
    """Other targets beside it, which need other numbers of pulses, leave a cell as it was; so does a failure rate."""
    verify = WriteVerify(budget=30, tolerance=1 * US)
    targets = np.full((6, 6), 100 * US)
    other = targets.copy()
    other[:, :3] = 60 * US
    first = program_cells(targets, MILO, generator(), verify=verify)
    second = program_cells(other, MILO, generator(), verify=verify)
    assert np.array_equal(first.conductance[:, 3:], second.conductance[:, 3:])
    assert np.array_equal(first.pulses[:, 3:], second.pulses[:, 3:])
    failing = program_cells(targets, MILO, generator(), verify=verify, failure_probability=0.3)
    assert np.array_equal(first.conductance[~failing.failed], failing.conductance[~failing.failed])


def test_programming_failures() -> None:
    """Failed cells conduct as HRS, at their rate, and write-verify spends its budget on them."""
    targets = np.full((200, 200), 100 * US)
    result = program_cells(
        targets,
        constant(2 * US),
        generator(),
        failure_probability=0.07,
        failed_conductance=1 * US,
        verify=WriteVerify(budget=12, tolerance=3 * US),
    )
    assert_moments(result.failed.reshape(-1).astype(np.float64), 0.07, 0.07 * 0.93)
    assert (result.conductance[result.failed] == 1 * US).all()
    assert not result.converged[result.failed].any()
    assert (result.pulses[result.failed] == 12).all()
    assert result.converged[~result.failed].mean() > 0.9999


def test_a_failed_cell_that_was_to_be_hrs_is_accepted() -> None:
    result = program_cells(
        np.full(5, 1 * US),
        constant(0.0),
        generator(),
        failure_probability=1.0,
        failed_conductance=1 * US,
        verify=WriteVerify(budget=9, tolerance=0.1 * US),
    )
    assert result.failed.all()
    assert result.converged.all()
    assert (result.pulses == 1).all()


def test_write_verify_reaches_its_tolerance_and_counts_pulses() -> None:
    """Accepted cells are within tolerance; pulses are geometric, p = P(|z| <= tolerance / σ), mean 1 / p."""
    sigma, tolerance = 3 * US, 1 * US
    targets = np.full((300, 100), 80 * US)
    result = program_cells(targets, constant(sigma), generator(), verify=WriteVerify(budget=1000, tolerance=tolerance))
    assert result.converged.all()
    assert (np.abs(result.conductance - targets) <= tolerance).all()
    p = 2 * stats.norm.cdf(tolerance / sigma) - 1
    assert_moments(result.pulses.reshape(-1).astype(np.float64), 1 / p, (1 - p) / p**2)
    # What is left is a normal distribution truncated to the tolerance.
    left = stats.truncnorm(-tolerance / sigma, tolerance / sigma, scale=sigma)
    assert_moments((result.conductance - targets).reshape(-1), 0.0, float(left.var()))


def test_write_verify_stops_at_its_budget() -> None:
    """After n pulses a share (1 - p)^n has not converged, and keeps what the last pulse left."""
    sigma, tolerance, budget = 3 * US, 0.6 * US, 4
    targets = np.full(60000, 80 * US)
    result = program_cells(
        targets, constant(sigma), generator(), verify=WriteVerify(budget=budget, tolerance=tolerance)
    )
    p = 2 * stats.norm.cdf(tolerance / sigma) - 1
    missed = (1 - p) ** budget
    assert_moments((~result.converged).astype(np.float64), missed, missed * (1 - missed))
    assert result.pulses.max() == budget
    assert (result.pulses[~result.converged] == budget).all()
    assert (np.abs(result.conductance - targets)[~result.converged] > tolerance).all()


def test_a_relative_tolerance_scales_with_the_target() -> None:
    targets = np.array([10.0, 100.0]) * US * np.ones((2000, 1))
    result = program_cells(targets, relative(0.2), generator(), verify=WriteVerify(budget=500, relative=0.05))
    assert (np.abs(result.conductance / targets - 1) <= 0.05 * (1 + 1e-12)).all()
    both = WriteVerify(budget=500, tolerance=1 * US, relative=0.05)
    result = program_cells(targets, relative(0.2), generator(), verify=both)
    error = np.abs(result.conductance - targets).max(axis=0) / US
    assert 1.45 < error[0] <= 1.5
    assert 5.9 < error[1] <= 6.0


@given(
    conductance=st.floats(1e-9, 1e-2),
    resistance=st.floats(0, 1e7),
)
def test_access_resistance_is_in_series(conductance: float, resistance: float) -> None:
    series = float(with_access_resistance(conductance, resistance))
    assert 1 / series == pytest.approx(1 / conductance + resistance, rel=1e-12)
    assert series <= conductance


def test_access_resistance_is_exact_at_zero() -> None:
    conductance = np.random.default_rng(0).uniform(0, 1e-4, (5, 5))
    conductance[0, 0] = 0.0
    assert np.array_equal(with_access_resistance(conductance, 0.0), conductance)
    assert with_access_resistance(conductance, 1e4)[0, 0] == 0
    # 100 µS in series with 2 kΩ: 1 / (10 kΩ + 2 kΩ)
    assert with_access_resistance(100 * US, 2e3) == pytest.approx(83.3333333333 * US, rel=1e-11)
    # A shorted device shows the access resistance alone.
    assert with_access_resistance(1e6, 2e3) == pytest.approx(500 * US, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "target", "complaint"),
    [
        (MILO, 40 * US, r"spread model milo needs target conductances from 50 uS to 225 uS, not 40 uS; choose g_min"),
        (MILO, 226 * US, "not 226 uS"),
        (wan2022(), 41 * US, "wan2022 needs target conductances from 0 S to 40 uS, not 41 uS"),
        (PCM, 25.1 * US, "pcm needs target conductances from 0 S to 25 uS, not 25.1 uS"),
        (cmo_hfox(0.02), 7.9 * US, "cmo-hfox at 2 % needs target conductances from 8 uS to 90 uS, not 7.9 uS"),
        (cmo_hfox(0.002), 100 * US, "cmo-hfox at 0.2 %"),
        (constant(US), -US, "constant needs target conductances of at least 0 S, not -1 uS"),
        (relative(0.1), math.nan, "not nan siemens"),
        (lognormal(0.1), math.inf, "not inf siemens"),
    ],
)
def test_targets_outside_the_valid_range_are_refused(model: SpreadModel, target: float, complaint: str) -> None:
    """Naming the model, its range, the offending value; also when it hides among good ones."""
    good = 60 * US if model is MILO else 10 * US
    for targets in (target, np.array([[good, good], [target, good]])):
        with pytest.raises(SpecError, match=complaint):
            model.sigma(targets)
        with pytest.raises(SpecError, match=complaint):
            program_cells(targets, model, generator())


def test_ends_of_the_range_allow_for_rounding() -> None:
    MILO.check(np.array([50 * US * (1 - 1e-12), 225 * US * (1 + 1e-12)]))


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_bad_parameters_are_refused(value: float) -> None:
    for make in (constant, relative, lognormal):
        with pytest.raises(SpecError, match=r"spread must be finite and not negative, not .*; give"):
            make(value)
    with pytest.raises(SpecError, match="access resistance must be finite and not negative"):
        with_access_resistance(1e-6, value)
    with pytest.raises(SpecError, match="probability must be from 0 to 1"):
        program_cells(US, constant(0.0), generator(), failure_probability=value)
    with pytest.raises(SpecError, match="conductance of a failed cell"):
        program_cells(US, constant(0.0), generator(), failed_conductance=value)
    with pytest.raises(SpecError, match="write-verify tolerance must be finite"):
        WriteVerify(budget=3, tolerance=value)
    with pytest.raises(SpecError, match="write-verify relative tolerance must be finite"):
        WriteVerify(budget=3, relative=value)


def test_contradictions_are_refused() -> None:
    with pytest.raises(SpecError, match="must have a tolerance or a relative tolerance above 0; a device is accepted"):
        WriteVerify(budget=3)
    for budget in (0, -1, True, 1.5):
        with pytest.raises(SpecError, match="budget must be a positive whole number of pulses"):
            WriteVerify(budget=budget, tolerance=US)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"0 <= low < high, not \(2.0, 1.0\)"):
        program_cells(US, constant(0.0), generator(), clip=(2.0, 1.0))
    with pytest.raises(SpecError, match=r"needs an acceptance of 0.02 or 0.002, not 0.01; 0.02 is 2 %"):
        cmo_hfox(0.01)
    with pytest.raises(SpecError, match="must be at most 5, not 6"):
        lognormal(6.0)
    for seconds in (-1.0, 3 * DAY, math.nan):
        with pytest.raises(SpecError, match="wan2022 needs a time from 0 s to 172800 s"):
            wan2022(seconds)
