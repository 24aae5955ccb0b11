"""Input drivers and output converters, in SI units (numpy; ``physics.md`` section 1)."""

import numpy as np

from hwspec.periphery import Periphery
from runtime.quantize import Float64, output_codes
from runtime.tables import Phase


def phase_part(codes: Float64, phase: Phase) -> Float64:
    """The part of the input codes that a phase drives: all of it, its positive or its negative part."""
    if phase == "both":
        return codes
    return np.maximum(codes, 0.0) if phase == "+" else np.maximum(-codes, 0.0)


def drive_voltages(codes: Float64, code_max: int | None, v_read: float) -> Float64:
    """Word-line voltages of input codes: the largest code drives `v_read`. An ideal DAC takes fractions of it."""
    return codes * (v_read / (code_max or 1))


def convert(current: Float64, adc_range: float | None, periphery: Periphery) -> tuple[Float64, Float64]:
    """Convert column currents to ADC codes.

    Parameters
    ----------
    current
        Amperes, any shape.
    adc_range
        Current of the largest code; not read by an ideal ADC.

    Returns
    -------
    The codes, and the current that each stands for (amperes). An ideal ADC gives the current for both.
    """
    code_max = periphery.output_code_max
    if code_max is None or adc_range is None:
        return current, current
    lsb = adc_range / code_max
    codes = output_codes(current / lsb, code_max)
    return codes, codes * lsb
