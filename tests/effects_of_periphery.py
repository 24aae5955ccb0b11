"""Effects of the fields of `periphery` that stand between inputs and converters: drivers and readout."""

import numpy as np
import pytest
from small_programs import matmul
from spec_effects import (
    IDEAL,
    MODEL,
    SMALL,
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
from runtime.tables import Mvm

WIDE = matmul(8, 512, seed=4)
COLUMNS: Fields = {"array.cols": 64, "device.levels": None, "periphery.dac_bits": None}
"""512 columns, each with a readout of its own."""
BRIGHT = 0.5 * WIDE.inputs(11, batch=1)


def lsb(program: TileProgram) -> Float64:
    """Current of one step of each column's ADC, for the tiles of `WIDE`."""
    top = program.spec.periphery.output_code_max
    assert top is not None
    return np.repeat([tile.adc_range[0] / top for tile in program.tables.tiles], 64)


@effect("periphery.v_read")
def _v_read() -> None:
    one, other = pair("periphery.v_read", 0.2, 0.4)
    for mine, theirs in zip(conversions(one), conversions(other), strict=True):
        np.testing.assert_allclose(2 * mine.current, theirs.current, rtol=1e-9)
    for tile, twin in zip(one.tables.tiles, other.tables.tiles, strict=True):
        assert 2 * tile.adc_range[0] == pytest.approx(twin.adc_range[0], rel=1e-9)


@effect("periphery.dac_bits")
def _dac_bits() -> None:
    fixed: Fields = {"device.levels": None, "periphery.adc_bits": None}
    one, other = pair("periphery.dac_bits", 2, 8, fixed)
    assert [program.spec.periphery.input_code_max(True) for program in (one, other)] == [1, 127]
    ideal, _ = pair("periphery.dac_bits", None, 8, fixed)
    assert error(one) > 10 * error(other) > 0
    assert error(ideal) < 1e-6 < error(other)


@effect("periphery.input_bits")
def _input_bits() -> None:
    fixed: Fields = {**IDEAL, "periphery.dac_bits": 4}
    one, other = pair("periphery.input_bits", None, 8, fixed)
    whole, _ = pair("periphery.input_bits", None, 8, {**fixed, "periphery.dac_bits": 8})
    # A bipolar driver of 4 bits puts out digits in base 8, and 127 has three of them.
    assert len(conversions(other)) == 3 * len(conversions(one))
    assert sorted({found.weight for found in conversions(other)}) == pytest.approx([7 / 127, 56 / 127, 448 / 127])
    x = 0.4 * MODEL.inputs(7, batch=50)
    close(outputs(other, x), outputs(whole, x), 1e-6)
    assert error(one) > 10 * error(other)


@effect("periphery.signed")
def _signed() -> None:
    one, other = pair("periphery.signed", "bipolar", "two_phase")
    phases = [
        {step.phase for loop in program.tables.loops for step in loop.body if isinstance(step, Mvm)}
        for program in (one, other)
    ]
    assert phases == [{"both"}, {"+", "-"}]
    assert len(conversions(other)) == 2 * len(conversions(one))


@effect("periphery.input_coding")
def _input_coding() -> None:
    cells: Fields = {**IDEAL, "device.iv.model": "sinh", "device.iv.alpha": 8.0}
    half = np.sinh(8 * 0.1) / np.sinh(8 * 0.2)
    for fixed in (cells, {**cells, "array.r_word": 20.0}):
        pulses, amplitudes = pair("periphery.input_coding", "pulse_width", "amplitude", fixed, SMALL)
        row = np.zeros((2, 8))
        row[:, 3] = 1.0, 0.5
        one, other = (currents(program, driven(program, row)) for program in (pulses, amplitudes))
        close(one[1], one[0] / 2, 1e-6)
        close(one[0], other[0], 1e-6)
        # A line's own drop is below 1 % here.
        close(other[1], half * other[0], 1e-6 if fixed is cells else 1e-2)
        assert half < 0.4


@effect("periphery.dac_nonlinearity")
def _dac_nonlinearity() -> None:
    one, other = pair("periphery.dac_nonlinearity", 0.0, 0.3, IDEAL, SMALL)
    y = np.array([[-1.0], [-0.5], [0.2], [0.5], [1.0]]) * np.ones(8)
    straight, bent = (currents(program, driven(program, y)) for program in (one, other))
    close(straight, straight[-1] * y, 1e-6)
    close(bent, straight[-1] * (y + 0.3 * y * (y**2 - 1)), 1e-6)


@effect("periphery.subtract")
def _subtract() -> None:
    one, other = pair("periphery.subtract", "before", "after")
    before, after = conversions(one), conversions(other)
    assert len(after) == 2 * len(before)
    assert [found.weight for found in after[:4]] == [1, -1, 1, -1]
    for number, difference in enumerate(before):
        plus, minus = after[2 * number : 2 * number + 2]
        close(difference.current, plus.current - minus.current)
    codes = np.concatenate([found.codes.ravel() for found in after])
    assert (codes.min(), codes.max()) == (-127, 127)
    # Currents of one sign get all codes.
    _, positive = pair("periphery.subtract", "before", "after", model=matmul(24, 12, seed=1, positive=True))
    codes = np.concatenate([found.codes.ravel() for found in conversions(positive)])
    assert codes.min() >= 0
    assert codes.max() == 255


@effect("periphery.gain_sigma")
def _gain_sigma() -> None:
    for sigma, program in zip((0.02, 0.1), pair("periphery.gain_sigma", 0.02, 0.1, COLUMNS, WIDE), strict=True):
        ratio = currents(sampled(program), BRIGHT) / currents(program, BRIGHT) - 1
        standard_normal(ratio[0] / sigma)


@effect("periphery.offset_sigma")
def _offset_sigma() -> None:
    for sigma, program in zip((1.0, 3.0), pair("periphery.offset_sigma", 1.0, 3.0, COLUMNS, WIDE), strict=True):
        shift = currents(sampled(program), BRIGHT) - currents(program, BRIGHT)
        standard_normal(shift[0] / lsb(program) / sigma)


@effect("periphery.sense_offset_sigma")
def _sense_offset_sigma() -> None:
    fixed: Fields = {**COLUMNS, "periphery.subtract": "after"}
    programs = pair("periphery.sense_offset_sigma", 1e-3, 5e-3, fixed, WIDE)
    for sigma, program in zip((1e-3, 5e-3), programs, strict=True):
        loads = [side.sum(0) for tile in program.tables.tiles for side in program.target_conductances(tile.name)]
        for x in (0 * BRIGHT, BRIGHT):
            shift = currents(sampled(program), x) - currents(program, x)
            standard_normal(-shift[0] / np.concatenate(loads) / sigma)


CURVED: Fields = {**IDEAL, "array.rows": 24, "array.cols": 12}


def shares(field: str, strength: float) -> tuple[Float64, Float64]:
    """What a readout's curve makes of currents: both as shares of the range, for a straight and a bent readout."""
    straight, bent = pair(field, 0.0, strength, CURVED)
    x = MODEL.inputs(3, batch=20)
    (tile,) = bent.tables.tiles
    return currents(straight, x) / tile.adc_range[0], currents(bent, x) / tile.adc_range[0]


@effect("periphery.saturation")
def _saturation() -> None:
    straight, bent = shares("periphery.saturation", 0.4)
    assert np.abs(straight).max() > 0.8
    close(bent, straight / (1 + 0.4 * np.abs(straight)))


@effect("periphery.cubic")
def _cubic() -> None:
    straight, bent = shares("periphery.cubic", -0.2)
    assert np.abs(straight).max() > 0.8
    close(bent, straight - 0.2 * straight**3)


@effect("periphery.compliance")
def _compliance() -> None:
    x = MODEL.inputs(3, batch=20)
    free, limited = pair("periphery.compliance", None, 10e-6, CURVED)
    assert np.abs(currents(free, x)).max() > 15e-6
    close(currents(limited, x), np.clip(currents(free, x), -10e-6, 10e-6))


@effect("periphery.readout_noise")
def _readout_noise() -> None:
    programs = pair("periphery.readout_noise", 0.5, 2.0, COLUMNS, WIDE)
    x = np.repeat(BRIGHT, 20, axis=0)
    for sigma, program in zip((0.5, 2.0), programs, strict=True):
        shift = currents(sampled(program), x) - currents(program, x)
        standard_normal(shift / lsb(program) / sigma)
        assert not np.array_equal(currents(sampled(program), x, seed=1), currents(sampled(program), x, seed=2))
        close(currents(program, x), np.repeat(currents(program, BRIGHT), 20, axis=0))
