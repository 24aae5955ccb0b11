"""Effects of the fields of `device.read_noise` and `device.telegraph`: what differs from read to read."""

import numpy as np
import numpy.typing as npt
import pytest
from spec_effects import (
    IDEAL,
    SMALL,
    SQUARE,
    Fields,
    Float64,
    chance,
    close,
    conductances,
    currents,
    devices,
    driven,
    effect,
    outputs,
    pair,
    sampled,
    standard_normal,
    volts,
)

from runtime.program import TileProgram

UNCLIPPED: Fields = {**IDEAL, "device.g_min": 10e-6, "device.g_max": 25e-6}
"""Devices whose noise stays far from 0 S, and that every model was measured at."""
READS = 2000


def repeated() -> npt.NDArray[np.float32]:
    """One input vector, read many times."""
    found: npt.NDArray[np.float32] = np.repeat(0.4 * SMALL.inputs(4, batch=1), READS, axis=0)
    return found


def noise(program: TileProgram, seconds: float = 0.0, chip_seed: int = 1) -> Float64:
    """What repeated reads of a chip add to the currents of an ideal one, ``(reads, columns)``, amperes."""
    x = repeated()
    return currents(sampled(program, chip_seed, seconds=seconds), x) - currents(program, x)


def expected(program: TileProgram, sigma: Float64) -> Float64:
    """Standard deviation of each column's current by that of the devices (siemens), ordered as `conductances`."""
    plus, minus = (sigma**2).reshape(2, 8, 8)
    found: Float64 = np.sqrt(volts(program, repeated())[:1] ** 2 @ (plus + minus))
    return found


def read_sigma(model: str, target: Float64, seconds: float) -> Float64:
    """Read noise of measured devices, siemens (``docs/physics.md``, Read noise)."""
    if model == "pcm":
        quality = np.minimum(0.0088 / np.maximum((target / 25e-6) ** 0.65, 0.001), 0.2)
        found: Float64 = quality * target * np.sqrt(np.log((seconds + 20 + 250e-9) / 500e-9))
    else:
        found = 0.0277e-6 * np.log10(target * 1e6) * np.sqrt(np.log((seconds + 1e-6) / 2e-6))
    return found


@effect("device.read_noise.model")
def _read_noise_model() -> None:
    one, other = pair("device.read_noise.model", "pcm", "cmo_hfox", UNCLIPPED, SMALL)
    for model, program in (("pcm", one), ("cmo_hfox", other)):
        for seconds in (10, 1e5):
            sigma = read_sigma(model, conductances(program), seconds)
            standard_normal(noise(program, seconds) / expected(program, sigma))
    silent, _ = pair("device.read_noise.model", "none", "pcm", UNCLIPPED, SMALL)
    assert not noise(silent).any()


@effect("device.read_noise.sigma")
def _read_noise_sigma() -> None:
    one, other = pair(
        "device.read_noise.sigma", 1e-6, 2e-6, {**UNCLIPPED, "device.read_noise.model": "constant"}, SMALL
    )
    for sigma, program in ((1e-6, one), (2e-6, other)):
        standard_normal(noise(program) / expected(program, np.full(128, sigma)))
    assert not np.array_equal(currents(sampled(one), repeated(), seed=0), currents(sampled(one), repeated(), seed=1))


@effect("device.read_noise.share")
def _read_noise_share() -> None:
    fixed: Fields = {**UNCLIPPED, "device.read_noise.model": "proportional"}
    one, other = pair("device.read_noise.share", 0.01, 0.05, fixed, SMALL)
    for share, program in ((0.01, one), (0.05, other)):
        standard_normal(noise(program) / expected(program, share * conductances(program)))


@effect("device.read_noise.correlation")
def _read_noise_correlation() -> None:
    fixed: Fields = {
        **UNCLIPPED,
        "device.read_noise.model": "constant",
        "device.read_noise.sigma": 1e-6,
        "periphery.dac_bits": 2,
        "periphery.input_bits": 8,
    }
    per_read, per_vector = pair("device.read_noise.correlation", "per_read", "per_vector", fixed, SMALL)
    codes = np.random.default_rng(0).integers(0, 128, (READS, 8))
    x = driven(per_read, codes / 127)
    unit = 1e-6 * np.sqrt(2) * per_read.layers["layer"].full_scale / per_read.spec.device.span
    tensors = per_read.tile_tensors["t0"]
    unit = unit * tensors.scale[np.argsort(tensors.col_map)]
    found = [(outputs(sampled(program), x) - outputs(program, x)) / unit for program in (per_read, per_vector)]
    # Devices that are off by the same in every digit's read are off for the whole code; digits that draw anew are not.
    bits = np.array([((codes >> n & 1).sum(1) * 4.0**n) for n in range(7)]).sum(0)
    for z, variance in zip(found, (bits, (codes**2).sum(1)), strict=True):
        standard_normal(z / np.sqrt(variance / 127**2)[:, None])
    assert found[0].std() / found[1].std() == pytest.approx(0.71, abs=0.02)


@effect("device.telegraph.amplitude")
def _telegraph_amplitude() -> None:
    one, other = pair("device.telegraph.amplitude", 0.1, 0.3, {**UNCLIPPED, "device.telegraph.occupancy": 0.2}, SMALL)
    for amplitude, program in ((0.1, one), (0.3, other)):
        check_fast_traps(program, amplitude, 0.2)


@effect("device.telegraph.occupancy")
def _telegraph_occupancy() -> None:
    one, other = pair("device.telegraph.occupancy", 0.1, 0.5, {**UNCLIPPED, "device.telegraph.amplitude": 0.2}, SMALL)
    for occupancy, program in ((0.1, one), (0.5, other)):
        check_fast_traps(program, 0.2, occupancy)


def check_fast_traps(program: TileProgram, amplitude: float, occupancy: float) -> None:
    """Reads have the mean and the variance of traps that change from read to read."""
    x = repeated()
    mean = currents(program, x[:1]) * (1 - amplitude * occupancy)
    sigma = conductances(program) * amplitude * np.sqrt(occupancy * (1 - occupancy))
    standard_normal((currents(sampled(program), x) - mean) / expected(program, sigma))


@effect("device.telegraph.correlation_time")
def _telegraph_correlation_time() -> None:
    fixed: Fields = {**UNCLIPPED, "device.telegraph.amplitude": 0.2, "device.telegraph.occupancy": 0.3}
    fast, slow = pair("device.telegraph.correlation_time", 0.0, 10.0, fixed, SMALL)
    assert noise(fast).std(0).min() > 0
    assert not np.ptp(noise(slow), axis=0).any()

    large: Fields = {**fixed, "array.rows": 64, "array.cols": 64, "periphery.subtract": "after"}
    one, other = pair("device.telegraph.correlation_time", 10.0, 1e6, large, SQUARE)
    for tau, program in ((10.0, one), (1e6, other)):
        target = conductances(program)
        found = [devices(sampled(program, seconds=seconds)) / target for seconds in (0, 10)]
        for ratio in found:
            close(np.unique(np.round(ratio, 9)), [0.8, 1.0])
            chance(ratio < 0.9, 0.3)
        # A trap that has not forgotten where it was is still there; the others meet by chance.
        kept = np.exp(-10 / tau)
        chance((found[0] < 0.9) & (found[1] < 0.9), 0.3 * (0.3 + 0.7 * kept))
