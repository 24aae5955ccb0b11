"""Drivers and converters: ranges of codes, voltages, phases."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_programs import SmallModel, compile_small, small_models, small_spec, small_specs

from hwspec.periphery import Periphery
from hwspec.spec import HardwareSpec
from runtime.physics.converters import convert, drive_voltages, phase_part
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
        volts = drive_voltages(codes, code_max, drivers.v_read)
        assert volts.max() == pytest.approx(drivers.v_read, rel=1e-12)
        assert volts.min() == pytest.approx(-drivers.v_read if signed else 0.0, rel=1e-12)


@pytest.mark.parametrize("bits", range(2, 25))
def test_an_adc_uses_all_its_codes(bits: int) -> None:
    codes, current = convert(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), 1.0, periphery(adc_bits=bits))
    top = 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(codes, [-top, -top, 0, top, top])
    np.testing.assert_allclose(current, [-1, -1, 0, 1, 1], rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(CURRENTS, st.integers(2, 12), st.floats(1e-6, 1e-3))
def test_conversion_is_odd_and_within_half_an_lsb(current: Float64, bits: int, largest: float) -> None:
    """A swapped pair, which turns the sign of its current, is undone exactly."""
    adc = periphery(adc_bits=bits)
    codes, estimate = convert(current, largest, adc)
    swapped, _ = convert(-current, largest, adc)
    np.testing.assert_array_equal(swapped, -codes)
    lsb = largest / (2 ** (bits - 1) - 1)
    inside = np.abs(current) <= largest
    assert (np.abs(estimate - current) <= lsb * (0.5 + 1e-9))[inside].all()


def test_ideal_converters_pass_everything() -> None:
    ideal = periphery(dac_bits=None, adc_bits=None)
    assert ideal.input_code_max(True) is None
    assert ideal.input_code_max(False) is None
    assert ideal.output_code_max is None
    current = np.array([1e-30, -3.0, 7e5])
    codes, estimate = convert(current, None, ideal)
    np.testing.assert_array_equal(codes, current)
    np.testing.assert_array_equal(estimate, current)
    np.testing.assert_array_equal(drive_voltages(np.array([0.5, -1.0]), None, 0.2), [0.1, -0.2])


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
@given(small_models(), small_specs(), st.integers(0, 2**32 - 1))
def test_two_phases_equal_bipolar_drivers_with_an_ideal_adc(model: SmallModel, spec: HardwareSpec, seed: int) -> None:
    x = model.inputs(seed)
    outputs = []
    for signed in ("bipolar", "two_phase"):
        fields = {"periphery.adc_bits": None, "periphery.signed": signed}
        program = compile_small(model, spec.with_fields(fields))
        outputs.append(Reference(program_chip(program))(x)[0].astype(np.float64))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-6 * (np.abs(outputs[0]).max() or 1.0))
