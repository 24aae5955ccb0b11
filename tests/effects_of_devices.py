"""Effects of the fields of `device`: levels, programming, drift, temperature and the law of current and voltage."""

import numpy as np
import pytest
from scipy.special import ndtr
from spec_effects import (
    IDEAL,
    SMALL,
    SQUARE,
    Fields,
    Float64,
    chance,
    close,
    conductances,
    conversions,
    currents,
    devices,
    effect,
    pair,
    sampled,
    standard_normal,
    volts,
)

from runtime.program import TileProgram
from runtime.programming import ProgrammingReport

LARGE: Fields = {"array.rows": 64, "array.cols": 64, "periphery.subtract": "after"}
"""8192 devices, each of which can be read."""
VERIFIED: Fields = {"device.g_min": 40e-6, "device.spread.model": "constant", "device.spread.sigma": 2e-6}
"""Write-verify meets a spread that clips nothing."""
AMPLITUDE: Fields = {**IDEAL, "periphery.input_coding": "amplitude"}
DAY = 86400.0


def spread_sigma(model: str, target: Float64) -> Float64:
    """Spread of measured devices, siemens (``docs/physics.md``, Devices)."""
    micro = target * 1e6
    polynomials = {
        "wan2022": (micro / 40, (0.348, 16.03, -43.85, 45.39, -16.82)),
        "wan2022 after a day": (micro / 40, (0.701, 22.086, -50.773, 47.095, -16.458)),
        "milo": (micro, (4.782, -0.0091)),
        "cmo_hfox": (micro, (0.0112, 0.0113)),
        "cmo_hfox at 0.2 %": (micro, (0.00081, 0.00107)),
        "pcm": (micro / 25, (0.263, 1.965, -1.173)),
    }
    x, coefficients = polynomials[model]
    return np.array(1e-6 * sum(c * x**k for k, c in enumerate(coefficients)))


def programmed(
    field: str, one: object, other: object, fixed: Fields, seconds: float = 0.0
) -> tuple[Float64, Float64, Float64]:
    """Targets of all devices, and what they conduct on one chip, for each of two values of a field; siemens."""
    programs = pair(field, one, other, {**LARGE, **fixed}, SQUARE)
    first, second = (devices(sampled(program, seconds=seconds)) for program in programs)
    return conductances(programs[0]), first, second


@effect("device.g_min")
def _g_min() -> None:
    one, other = pair("device.g_min", 1e-6, 5e-6)
    assert conductances(one).min() == 1e-6
    assert conductances(other).min() == 5e-6
    assert conductances(one).max() == pytest.approx(conductances(other).max(), rel=1e-12)


@effect("device.g_max")
def _g_max() -> None:
    one, other = pair("device.g_max", 1e-4, 2e-4)
    assert conductances(one).max() == pytest.approx(1e-4, rel=1e-12)
    assert conductances(other).max() == pytest.approx(2e-4, rel=1e-12)
    span = [program.spec.device.span for program in (one, other)]
    for mine, theirs in zip(conversions(one), conversions(other), strict=True):
        np.testing.assert_allclose(mine.current / span[0], theirs.current / span[1], rtol=1e-9, atol=1e-12)


@effect("device.levels")
def _levels() -> None:
    one, other = pair("device.levels", 2, 16)
    assert [len(np.unique(conductances(program))) for program in (one, other)] == [2, 16]
    continuous, listed = pair("device.levels", None, [1e-6, 3e-6, 9e-6, 1e-4])
    errors = [program.report.layers[0].weight_error for program in (one, other, continuous)]
    assert errors[0] > 5 * errors[1] > 0
    assert errors[2] < 1e-12
    np.testing.assert_array_equal(np.unique(conductances(listed)), [1e-6, 3e-6, 9e-6, 1e-4])


@effect("device.r_access")
def _r_access() -> None:
    """The compiler moves the targets to make up for it: each program is compared with its own."""
    one, other = pair("device.r_access", 0.0, 5e3, LARGE, SQUARE)
    np.testing.assert_array_equal(devices(sampled(one)), conductances(one))
    close(devices(sampled(other)), 1 / (1 / conductances(other) + 5e3))


@effect("device.spread.model")
def _spread_model() -> None:
    def compare(one: str, other: str, low: float, high: float) -> None:
        fixed = {"device.g_min": low, "device.g_max": high}
        target, *found = programmed("device.spread.model", one, other, fixed)
        z = [
            (found_of - target) / spread_sigma(model, target)
            for model, found_of in zip((one, other), found, strict=True)
        ]
        close(z[0], z[1], 1e-6)
        standard_normal(z[0])

    compare("pcm", "wan2022", 15e-6, 25e-6)
    compare("milo", "cmo_hfox", 50e-6, 90e-6)
    target, one, _ = programmed("device.spread.model", "none", "milo", {"device.g_min": 50e-6})
    np.testing.assert_array_equal(one, target)


@effect("device.spread.sigma")
def _spread_sigma() -> None:
    fixed: Fields = {"device.g_min": 50e-6, "device.spread.model": "constant"}
    target, one, other = programmed("device.spread.sigma", 2e-6, 4e-6, fixed)
    standard_normal((one - target) / 2e-6)
    standard_normal((other - target) / 4e-6)


@effect("device.spread.share")
def _spread_share() -> None:
    target, one, other = programmed("device.spread.share", 0.05, 0.1, {"device.spread.model": "relative"})
    standard_normal((one - target) / (0.05 * target))
    standard_normal((other - target) / (0.1 * target))


@effect("device.spread.log_sigma")
def _spread_log_sigma() -> None:
    target, one, other = programmed("device.spread.log_sigma", 0.1, 0.5, {"device.spread.model": "lognormal"})
    standard_normal(np.log(one / target) / 0.1)
    standard_normal(np.log(other / target) / 0.5)


@effect("device.spread.acceptance")
def _spread_acceptance() -> None:
    fixed: Fields = {"device.g_min": 9e-6, "device.g_max": 88e-6, "device.spread.model": "cmo_hfox"}
    target, one, other = programmed("device.spread.acceptance", 0.02, 0.002, fixed)
    standard_normal((one - target) / spread_sigma("cmo_hfox", target))
    standard_normal((other - target) / spread_sigma("cmo_hfox at 0.2 %", target))


@effect("device.spread.limits")
def _spread_limits() -> None:
    fixed: Fields = {"device.spread.model": "constant", "device.spread.sigma": 10e-6}
    _, one, other = programmed("device.spread.limits", "zero", "range", fixed)
    assert one.min() == 0
    assert one.max() > 110e-6
    np.testing.assert_array_equal(other, np.clip(one, 1e-6, 100e-6))


def reports(
    field: str, one: object, other: object, fixed: Fields
) -> tuple[list[TileProgram], list[ProgrammingReport], list[Float64]]:
    """Two programs, what programming took, and how far the devices are from their targets (siemens)."""
    programs = pair(field, one, other, {**LARGE, **fixed}, SQUARE)
    chips = [sampled(program) for program in programs]
    off = [np.abs(devices(chip) - conductances(chip.program)) for chip in chips]
    return list(programs), [chip.report for chip in chips], off


@effect("device.programming.failure_rate")
def _failure_rate() -> None:
    fixed: Fields = {**VERIFIED, "device.programming.failed_conductance": 3e-6}
    programs, found, _ = reports("device.programming.failure_rate", 0.0, 0.1, fixed)
    one, other = (devices(sampled(program)) for program in programs)
    failed = other == 3e-6
    chance(failed, 0.1)
    assert not (one == 3e-6).any()
    assert (found[0].failed, found[1].failed) == (0, failed.sum())
    np.testing.assert_array_equal(one[~failed], other[~failed])


@effect("device.programming.failed_conductance")
def _failed_conductance() -> None:
    target, one, other = programmed(
        "device.programming.failed_conductance", None, 2e-4, {"device.programming.failure_rate": 0.1}
    )
    failed = other == 2e-4
    chance(failed, 0.1)
    np.testing.assert_array_equal(one, np.where(failed, 1e-6, target))
    np.testing.assert_array_equal(other[~failed], target[~failed])


@effect("device.programming.pulses")
def _pulses() -> None:
    fixed: Fields = {**VERIFIED, "device.programming.tolerance": 1e-6}
    _, found, off = reports("device.programming.pulses", 2, 6, fixed)
    missed = 2 * ndtr(-0.5)  # of a pulse with a spread of twice the tolerance
    for budget, report, distance in zip((2, 6), found, off, strict=True):
        chance(distance > 1e-6, missed**budget)
        assert report.unconverged == (distance > 1e-6).sum()
        expected = sum(missed**number for number in range(budget))
        assert report.pulses / report.devices == pytest.approx(expected, rel=0.05)
    assert found[0].devices == 2 * 64 * 64


@effect("device.programming.tolerance")
def _tolerance() -> None:
    fixed: Fields = {**VERIFIED, "device.programming.pulses": 3, "device.programming.relative_tolerance": 1e-3}
    programs, found, off = reports("device.programming.tolerance", 1e-6, 3e-6, fixed)
    target = conductances(programs[0])
    for tolerance, report, distance in zip((1e-6, 3e-6), found, off, strict=True):
        accepted = tolerance + 1e-3 * target
        chance(distance > accepted, (2 * ndtr(-accepted / 2e-6)) ** 3)
        assert report.unconverged == (distance > accepted).sum()


@effect("device.programming.relative_tolerance")
def _relative_tolerance() -> None:
    fixed: Fields = {**VERIFIED, "device.programming.pulses": 3, "device.programming.tolerance": 1e-7}
    programs, found, off = reports("device.programming.relative_tolerance", 0.0, 0.03, fixed)
    target = conductances(programs[0])
    for share, report, distance in zip((0.0, 0.03), found, off, strict=True):
        accepted = 1e-7 + share * target
        chance(distance > accepted, (2 * ndtr(-accepted / 2e-6)) ** 3)
        assert report.unconverged == (distance > accepted).sum()


@effect("device.drift.model")
def _drift_model() -> None:
    fixed: Fields = {"device.g_max": 25e-6, "device.levels": 2}
    target, one, other = programmed("device.drift.model", "none", "pcm", fixed, seconds=1e4)
    np.testing.assert_array_equal(one, target)
    exponent = -np.log(other / target) / np.log((1e4 + 20) / 20)
    strong = target > 20e-6
    standard_normal((exponent[strong] - 0.049) / 0.008)
    mean, sigma = 0.0244 - 0.0155 * np.log(1 / 25), -0.0059 - 0.0125 * np.log(1 / 25)
    low = exponent[~strong]
    assert low.min() >= 0
    assert np.square(low).mean() == pytest.approx(mean**2 + sigma**2, rel=0.05)
    assert np.median(low) == pytest.approx(mean, rel=0.05)

    fixed = {"device.g_min": 15e-6, "device.g_max": 40e-6}
    target, one, other = programmed("device.drift.model", "cmo_hfox", "wan2022", fixed, seconds=DAY)
    standard_normal((one - target + 0.089e-6 * np.log(DAY)) / (0.042e-6 * np.log(DAY) + 0.412e-6))
    first, day = spread_sigma("wan2022", target), spread_sigma("wan2022 after a day", target)
    standard_normal((other - target) / np.sqrt(day**2 - first**2))
    target, one, other = programmed("device.drift.model", "cmo_hfox", "wan2022", fixed, seconds=0)
    np.testing.assert_array_equal(one, target)
    np.testing.assert_array_equal(other, target)


@effect("device.drift.activation_energy")
def _activation_energy() -> None:
    fixed: Fields = {"device.g_max": 25e-6, "device.drift.model": "pcm", "device.temperature": 85}
    target, one, other = programmed("device.drift.activation_energy", 0.0, 0.3, fixed, seconds=100)
    faster = np.exp(0.3 / 8.617333e-5 * (1 / 298.15 - 1 / 358.15))
    assert faster > 5
    exponent = np.log(one / target) / np.log(120 / 20)
    close(np.log(other / target), exponent * np.log((100 * faster + 20) / 20), 1e-6)


@effect("device.temperature")
def _temperature() -> None:
    target, one, other = programmed("device.temperature", 25, 75, {"device.temperature_coefficient": 0.002})
    np.testing.assert_array_equal(one, target)
    close(other, 1.1 * target)


@effect("device.temperature_coefficient")
def _temperature_coefficient() -> None:
    target, one, other = programmed("device.temperature_coefficient", 0.0, -0.002, {"device.temperature": 75})
    np.testing.assert_array_equal(one, target)
    close(other, 0.9 * target)


def law(model: str, alpha: float, v: Float64) -> Float64:
    """Current of a device of one siemens that conducts it at 0.2 V."""
    if model == "sinh":
        return 0.2 * np.sinh(alpha * v) / np.sinh(alpha * 0.2) if alpha else v
    return v * (1 + (alpha * v) ** 2) / (1 + (alpha * 0.2) ** 2)


@effect("device.iv.model")
def _iv_model() -> None:
    one, other = pair("device.iv.model", "sinh", "cubic", {**AMPLITUDE, "device.iv.alpha": 8.0}, SMALL)
    x = 0.4 * SMALL.inputs(4, batch=10)
    for model, program in (("sinh", one), ("cubic", other)):
        plus, minus = program.target_conductances("t0")
        close(currents(program, x), law(model, 8.0, volts(program, x)) @ (plus - minus))
    ohmic, bent = pair("device.iv.model", "ohmic", "cubic", AMPLITUDE, SMALL)
    close(currents(ohmic, x), currents(bent, x))


@effect("device.iv.alpha")
def _iv_alpha() -> None:
    x = 0.4 * SMALL.inputs(4, batch=10)
    for model in ("sinh", "cubic"):
        programs = pair("device.iv.alpha", 0.0, 8.0, {**AMPLITUDE, "device.iv.model": model}, SMALL)
        for alpha, program in zip((0.0, 8.0), programs, strict=True):
            plus, minus = program.target_conductances("t0")
            close(currents(program, x), law(model, alpha, volts(program, x)) @ (plus - minus))


@effect("device.iv.asymmetry")
def _iv_asymmetry() -> None:
    x = 0.4 * np.abs(SMALL.inputs(4, batch=10))
    for pairing in ("two_arrays", "neighbouring_rows"):
        fixed: Fields = {**IDEAL, "array.rows": 16, "array.pairing": pairing}
        one, other = pair("device.iv.asymmetry", 0.0, 0.5, fixed, SMALL)
        plus, minus = (volts(one, x) @ side for side in one.target_conductances("t0"))
        close(currents(one, x), plus - minus)
        close(currents(one, -x), minus - plus)
        if pairing == "two_arrays":
            close(currents(other, x), plus - minus)
            close(currents(other, -x), 1.5 * (minus - plus))
        else:  # the minus devices are driven with the opposite voltage
            close(currents(other, x), plus - 1.5 * minus, 1e-7)
            close(currents(other, -x), minus - 1.5 * plus, 1e-7)
