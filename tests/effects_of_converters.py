"""Effects of the fields of `periphery` that make the output converters (ADC), and of the controller's trim."""

import numpy as np
import pytest
from effects_of_periphery import BRIGHT, COLUMNS, WIDE, lsb
from small_programs import matmul, one_node
from spec_effects import (
    IDEAL,
    MODEL,
    Fields,
    Float64,
    close,
    conversions,
    currents,
    driven,
    effect,
    error,
    outputs,
    pair,
    sampled,
    standard_normal,
)

from runtime.program import TileProgram
from runtime.programming import program_chip

OWN: Fields = {**COLUMNS, "periphery.columns_per_adc": 1}
"""512 columns, each with an ADC of its own."""
RAMP: Fields = {**OWN, "periphery.adc_bits": 5}
SINGLE = matmul(1, 128, seed=6)
"""128 columns of one device of full scale: a ramp of the input passes every code of every converter."""
MANY = one_node("MatMul", np.random.default_rng(1).standard_normal((24, 12)), (40, 24))
"""As `MODEL`, with 320 calibration vectors."""


@effect("periphery.adc_bits")
def _adc_bits() -> None:
    fixed: Fields = {"device.levels": None, "periphery.dac_bits": None}
    one, other = pair("periphery.adc_bits", 3, 8, fixed)
    for program, top in ((one, 3), (other, 127)):
        codes = np.concatenate([found.codes.ravel() for found in conversions(program)])
        assert np.abs(codes).max() == top
        np.testing.assert_array_equal(codes, np.rint(codes))
    ideal, _ = pair("periphery.adc_bits", None, 8, fixed)
    assert error(one) > 10 * error(other) > 0
    assert error(ideal) < 1e-6 < error(other)


@effect("periphery.adc_clip_share")
def _adc_clip_share() -> None:
    one, other = pair("periphery.adc_clip_share", 0.0, 0.2)
    assert all(
        twin.adc_range[0] < tile.adc_range[0] for tile, twin in zip(one.tables.tiles, other.tables.tiles, strict=True)
    )
    assert one.report.layers[0].calibration_clipped == 0
    assert 0.05 < other.report.layers[0].calibration_clipped <= 0.2


@effect("periphery.columns_per_adc")
def _columns_per_adc() -> None:
    fixed: Fields = {**COLUMNS, "periphery.adc_gain_sigma": 0.05, "periphery.gain_sigma": 0.0}
    own, shared = pair("periphery.columns_per_adc", 1, 4, fixed, WIDE)
    gains = [(currents(sampled(program), BRIGHT) / currents(program, BRIGHT))[0] for program in (own, shared)]
    assert len(np.unique(gains[0].round(9))) == 512
    assert len(np.unique(gains[1].round(9))) == 128
    groups = gains[1].reshape(128, 4)
    close(groups, np.repeat(groups[:, :1], 4, axis=1))


@effect("periphery.adc_gain_sigma")
def _adc_gain_sigma() -> None:
    for sigma, program in zip((0.02, 0.1), pair("periphery.adc_gain_sigma", 0.02, 0.1, OWN, WIDE), strict=True):
        ratio = currents(sampled(program), BRIGHT) / currents(program, BRIGHT) - 1
        standard_normal(ratio[0] / sigma)


@effect("periphery.adc_offset_sigma")
def _adc_offset_sigma() -> None:
    for sigma, program in zip((1.0, 3.0), pair("periphery.adc_offset_sigma", 1.0, 3.0, OWN, WIDE), strict=True):
        shift = currents(sampled(program), BRIGHT) - currents(program, BRIGHT)
        standard_normal(shift[0] / lsb(program) / sigma)


def thresholds(program: TileProgram) -> Float64:
    """Where a chip's converters step to the next code, in lsb, ``(128, codes - 1)``: read from a ramp."""
    bits = program.spec.periphery.adc_bits
    assert bits is not None
    ramp = np.linspace(-1.3, 1.3, 6001)[:, None]
    found = conversions(sampled(program), driven(program, ramp))
    codes = np.concatenate([one.codes for one in found], axis=1)
    lsbs = np.concatenate([one.current for one in found], axis=1) / lsb(program)
    codes, lsbs = np.where(lsbs[-1] > 0, codes, codes[::-1]), np.where(lsbs[-1] > 0, lsbs, lsbs[::-1])
    top = (1 << bits - 1) - 1
    assert (np.diff(codes, axis=0) >= 0).all()
    assert (codes.min(), codes.max()) == (-top, top)
    below = np.stack([(codes <= code).sum(0) for code in range(-top, top)])
    return ((np.take_along_axis(lsbs, below, 0) + np.take_along_axis(lsbs, below - 1, 0)) / 2).T


@effect("periphery.adc_inl_sigma")
def _adc_inl_sigma() -> None:
    for sigma, program in zip((0.2, 1.0), pair("periphery.adc_inl_sigma", 0.2, 1.0, RAMP, SINGLE), strict=True):
        ideal = np.arange(-15, 15) + 0.5
        bow = (thresholds(program) - ideal) / (1 - (ideal / 15) ** 2)
        close(bow[:, 1:-1], np.repeat(bow[:, 15:16], 28, axis=1), 0.05)
        standard_normal(bow[:, 15] / sigma)


@effect("periphery.adc_dnl_sigma")
def _adc_dnl_sigma() -> None:
    for sigma, program in zip((0.05, 0.1), pair("periphery.adc_dnl_sigma", 0.05, 0.1, RAMP, SINGLE), strict=True):
        found = thresholds(program)
        widths = np.diff(found, axis=1)
        assert abs(widths.mean() - 1) < 0.01
        assert widths.std() == pytest.approx(sigma, rel=0.05)
        # Thresholds move one by one: their errors do not add up.
        assert (found - np.arange(-15, 15) - 0.5).std() == pytest.approx(sigma / np.sqrt(2), rel=0.05)


UNTRIMMED: Fields = {**IDEAL, "array.rows": 24, "array.cols": 12, "periphery.gain_sigma": 0.1}


@effect("periphery.trim.gain")
def _trim_gain() -> None:
    none, column = pair("periphery.trim.gain", "none", "column", UNTRIMMED)
    _, tile = pair("periphery.trim.gain", "none", "tile", UNTRIMMED)
    bright = MODEL.inputs(5, batch=1)
    errors = (currents(sampled(none), bright) / currents(none, bright))[0]
    assert error(sampled(none)) > 0.05
    np.testing.assert_array_equal(sampled(none).tiles["t0"].gain, np.ones(12))
    close(sampled(column).tiles["t0"].gain, 1 / errors)
    assert error(sampled(column)) < 1e-6
    gain = sampled(tile).tiles["t0"].gain
    close(gain, np.full(12, gain[0]))
    # The common gain of least squares: the mean of the columns' by the power of their signals.
    vectors = tile.calibration["layer/vectors"]
    wanted = currents(tile, vectors)
    close(gain[0], (wanted**2 * errors).sum() / (wanted**2 * errors**2).sum(), 1e-6)
    report = sampled(column).report.trim
    assert report is not None
    power = (wanted * column.tile_tensors["t0"].scale) ** 2
    assert report["layer"][0] == pytest.approx(np.sqrt((power * (errors - 1) ** 2).sum() / power.sum()), rel=1e-6)
    assert report["layer"][1] < 1e-9


@effect("periphery.trim.offset")
def _trim_offset() -> None:
    fixed: Fields = {**UNTRIMMED, "periphery.gain_sigma": 0.0, "periphery.sense_offset_sigma": 5e-3}
    for signed in ("bipolar", "two_phase"):
        none, measured = pair("periphery.trim.offset", False, True, {**fixed, "periphery.signed": signed})
        offsets = sampled(measured).tiles["t0"].offset
        if signed == "bipolar":
            dark = currents(sampled(none), driven(none, np.zeros((1, 24))))[0]
            close(offsets, -dark, 1e-6)
            assert error(sampled(none)) > 0.02
        else:  # the negative phase subtracts what the positive one adds
            assert np.abs(offsets).max() < 1e-12
        assert not sampled(none).tiles["t0"].offset.any()
        assert error(sampled(measured)) < 1e-6


@effect("periphery.trim.vectors")
def _trim_vectors() -> None:
    fixed: Fields = {
        **UNTRIMMED,
        "device.read_noise.model": "proportional",
        "device.read_noise.share": 0.1,
        "periphery.trim.gain": "column",
    }
    programs = pair("periphery.trim.vectors", 2, 200, fixed, MANY)
    bright = MANY.inputs(5, batch=1)
    spreads = []
    for program in programs:
        found = []
        for seed in range(10):
            errors = currents(sampled(program, seed, effects=["readout"]), bright) / currents(program, bright)
            found.append(sampled(program, seed).tiles["t0"].gain * errors[0] - 1)
        spreads.append(float(np.sqrt(np.mean(np.square(found)))))
    assert spreads[0] > 0
    assert spreads[0] / spreads[1] == pytest.approx(10, rel=0.4)


@effect("periphery.trim.when")
def _trim_when() -> None:
    fixed: Fields = {
        **UNTRIMMED,
        "device.g_max": 25e-6,
        "device.drift.model": "pcm",
        "periphery.gain_sigma": 0.0,
        "periphery.trim.gain": "tile",
    }
    once, anew = pair("periphery.trim.when", "programming", "read", fixed)
    x = 0.4 * MODEL.inputs(7, batch=50)
    fresh = [sampled(program) for program in (once, anew)]
    assert fresh[0].tiles["t0"].gain[0] == pytest.approx(1, rel=1e-9)
    close(outputs(fresh[0], x), outputs(fresh[1], x))
    late = [sampled(program, seconds=1e4) for program in (once, anew)]
    np.testing.assert_array_equal(late[0].tiles["t0"].gain, fresh[0].tiles["t0"].gain)
    close(currents(late[0], x), currents(late[1], x))
    # The chip has lost this much of its signal, and only a gain measured now knows.
    decay = 1 / late[1].tiles["t0"].gain[0]
    nominal, now = currents(program_chip(anew), x), currents(late[1], x)
    assert decay == pytest.approx((nominal * now).sum() / (nominal**2).sum(), rel=0.02)
    assert decay < 0.8
    assert error(late[1]) < 0.3 * error(late[0])
