"""Drivers and converters: ranges of codes, voltages, phases."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_programs import SmallModel, compile_small, mapped_specs, small_models, small_spec, small_specs

from hwspec.periphery import Periphery
from hwspec.spec import HardwareSpec
from runtime.physics.converters import CodeRange, Drive, adc_codes, adc_thresholds, phase_part
from runtime.programming import program_chip
from runtime.quantize import input_codes
from runtime.reference import Reference
from runtime.tables import input_phases

Float64 = npt.NDArray[np.float64]
CURRENTS = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e-3, 1e-3))


def periphery(**fields: object) -> Periphery:
    return small_spec({f"periphery.{name}": value for name, value in fields.items()}).periphery


@pytest.mark.parametrize("bits", range(2, 17))
def test_a_dac_uses_all_its_codes(bits: int) -> None:
    drivers = periphery(dac_bits=bits)
    x = np.linspace(-1, 1, 5001)
    for signed, lowest, highest in ((True, 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1), (False, 0, 2**bits - 1)):
        code_max = drivers.input_code_max(signed)
        codes = input_codes(x, 1.0, code_max, signed)
        assert (codes.min(), codes.max()) == (lowest, highest)
        shares = Drive.of(drivers, signed).shares(codes, 0)
        assert shares.max() == 1
        assert shares.min() == (-1 if signed else 0)


@pytest.mark.parametrize("bits", range(2, 25))
def test_an_adc_uses_all_its_codes(bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    assert periphery(adc_bits=bits).output_code_max == top
    both, upper = (CodeRange.of(top, 1.0, unipolar=unipolar) for unipolar in (False, True))
    current = np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]])
    np.testing.assert_array_equal(adc_codes(current / both.lsb, both), [[-top, -top, 0, top, top]])
    full = 2 * top + 1
    assert (upper.low, upper.high, full) == (0, full, 2**bits - 1)
    np.testing.assert_array_equal(adc_codes(current / upper.lsb, upper), [[0, 0, 0, full, full]])
    assert both.lsb * top == pytest.approx(1, rel=1e-12)
    assert upper.lsb * full == pytest.approx(1, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(CURRENTS, st.integers(2, 12), st.floats(1e-6, 1e-3))
def test_conversion_is_odd_and_within_half_an_lsb(current: Float64, bits: int, largest: float) -> None:
    """A swapped pair, which turns the sign of its current, is undone exactly."""
    codes = CodeRange.of(2 ** (bits - 1) - 1, largest, unipolar=False)
    lsbs = current[:, None] / codes.lsb
    found = adc_codes(lsbs, codes)
    np.testing.assert_array_equal(adc_codes(-lsbs, codes), -found)
    inside = np.abs(current) <= largest
    assert (np.abs(found[:, 0] * codes.lsb - current) <= codes.lsb * (0.5 + 1e-9))[inside].all()


RANGES = st.builds(
    lambda bits, unipolar: CodeRange.of(2 ** (bits - 1) - 1, 1.0, unipolar=unipolar), st.integers(2, 9), st.booleans()
)


@settings(max_examples=100, deadline=None)
@given(RANGES, st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_thresholds_without_errors_round(codes: CodeRange, cols: int, seed: int) -> None:
    """To the nearest code; values exactly between two go down, where rounding takes the even one."""
    thresholds = adc_thresholds(codes, np.zeros(cols), None)
    assert thresholds.shape == (cols, codes.high - codes.low)
    lsbs = np.random.default_rng(seed).uniform(codes.low - 3, codes.high + 3, (30, cols))
    np.testing.assert_array_equal(adc_codes(lsbs, codes, thresholds), adc_codes(lsbs, codes))
    ties = np.broadcast_to(np.arange(codes.low, codes.high) + 0.5, (cols, codes.high - codes.low)).T
    np.testing.assert_array_equal(adc_codes(ties, codes, thresholds), np.floor(ties))


@settings(max_examples=100, deadline=None)
@given(RANGES, st.floats(-5, 5), st.floats(0, 3), st.integers(0, 2**32 - 1))
def test_thresholds_with_errors_stay_in_order(codes: CodeRange, bow: float, dnl: float, seed: int) -> None:
    """So that a larger current never has a smaller code."""
    generator = np.random.default_rng(seed)
    steps = dnl * generator.standard_normal((3, codes.high - codes.low))
    thresholds = adc_thresholds(codes, np.full(3, bow), steps)
    assert (np.diff(thresholds, axis=1) >= 0).all()
    lsbs = np.sort(generator.uniform(codes.low - 5, codes.high + 5, (50, 3)), axis=0)
    found = adc_codes(lsbs, codes, thresholds)
    assert (np.diff(found, axis=0) >= 0).all()
    assert found.min() >= codes.low
    assert found.max() <= codes.high


def test_the_bow_of_an_adc_is_that_of_its_middle() -> None:
    codes = CodeRange.of(127, 1.0, unipolar=False)
    moved = adc_thresholds(codes, np.array([2.0]), None)[0] - (np.arange(-127, 127) + 0.5)
    assert moved.max() == pytest.approx(2, rel=1e-4)
    assert np.argmax(moved) in (126, 127)
    assert abs(moved[[0, -1]]).max() < 0.02
    np.testing.assert_allclose(moved, moved[::-1], atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.integers(2, 12), st.booleans(), st.sampled_from(["bipolar", "two_phase"]))
def test_digits_add_up_to_the_code(dac_bits: int, input_bits: int, signed: bool, drivers: str) -> None:
    if dac_bits == 1:
        drivers = "two_phase"
    input_bits = max(dac_bits, input_bits)
    drive = Drive.of(periphery(dac_bits=dac_bits, input_bits=input_bits, signed=drivers), signed)
    top = 2 ** (input_bits - 1) - 1 if signed else 2**input_bits - 1
    assert drive.code_max == top
    codes = np.arange(-top if signed and drivers == "bipolar" else 0, top + 1, dtype=np.float64)
    shares = [drive.shares(codes, number) for number in range(drive.digits)]
    total = sum(drive.digit_weight(number) * share for number, share in enumerate(shares))
    np.testing.assert_allclose(total, codes / top, rtol=1e-12, atol=1e-15)
    levels = 2 ** (dac_bits - 1) - 1 if signed and drivers == "bipolar" else 2**dac_bits - 1
    for share in shares:
        assert np.abs(share).max() <= 1
        np.testing.assert_allclose(share * drive.top, np.rint(share * drive.top), atol=1e-9)
        assert len(np.unique(np.abs(share))) <= levels + 1
        assert (share * codes >= 0).all()


def test_digits_of_a_bipolar_driver_leave_its_sign_bit() -> None:
    for signed, base in ((True, 4), (False, 8)):
        drive = Drive.of(periphery(dac_bits=3, input_bits=8), signed)
        assert (drive.base, drive.digits, drive.top) == (base, 4 if signed else 3, base - 1)


@pytest.mark.parametrize("k", [-0.2, 0.1])
def test_a_driver_s_curve_keeps_its_ends(k: float) -> None:
    drive = Drive.of(periphery(dac_bits=8, dac_nonlinearity=k), True)
    codes = np.arange(-127.0, 128)
    y = codes / 127
    np.testing.assert_allclose(drive.shares(codes, 0), y + k * y * (y**2 - 1), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(drive.shares(np.array([-127.0, 0.0, 127.0]), 0), [-1, 0, 1])


def test_ideal_converters_pass_everything() -> None:
    ideal = periphery(dac_bits=None, adc_bits=None, offset_sigma=0)
    assert ideal.input_code_max(True) is None
    assert ideal.input_code_max(False) is None
    assert ideal.output_code_max is None
    assert not ideal.needs_range
    drive = Drive.of(ideal, True)
    assert (drive.digits, drive.digit_weight(0)) == (1, 1.0)
    np.testing.assert_array_equal(drive.shares(np.array([0.5, -1.0]), 0), [0.5, -1.0])


@settings(max_examples=50, deadline=None)
@given(CURRENTS)
def test_phases_add_up(codes: Float64) -> None:
    plus, minus = phase_part(codes, "+"), phase_part(codes, "-")
    assert (plus >= 0).all()
    assert (minus >= 0).all()
    assert (plus * minus == 0).all()
    np.testing.assert_array_equal(plus - minus, codes)
    np.testing.assert_array_equal(phase_part(codes, "both"), codes)


def test_only_signed_inputs_need_two_phases() -> None:
    two, one = small_spec({"periphery.signed": "two_phase"}), small_spec()
    assert input_phases(two, signed=True) == ("+", "-")
    assert input_phases(two, signed=False) == input_phases(one, signed=True) == ("both",)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(small_models(), small_specs() | mapped_specs(), st.integers(0, 2**32 - 1))
def test_two_phases_equal_bipolar_drivers_with_an_ideal_adc(model: SmallModel, spec: HardwareSpec, seed: int) -> None:
    x = model.inputs(seed)
    outputs = []
    for signed in ("bipolar", "two_phase"):
        bits = None if spec.periphery.dac_bits is None else max(spec.periphery.dac_bits, 2)
        fields = {"periphery.adc_bits": None, "periphery.offset_sigma": 0, "periphery.signed": signed}
        fields["periphery.dac_bits"] = bits
        program = compile_small(model, spec.with_fields(fields))
        outputs.append(Reference(program_chip(program))(x)[0].astype(np.float64))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-6 * (np.abs(outputs[0]).max() or 1.0))
