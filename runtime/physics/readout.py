"""What stands between a column's current and its code: errors drawn once for each column and converter of a chip.

``docs/physics.md``, From an input to a code. Currents in amperes; errors in lsb are in units of the converter's step.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwspec.periphery import Periphery
from hwspec.randomness import Purpose, array_generator
from runtime.physics.converters import CodeRange, adc_codes, adc_thresholds
from runtime.quantize import Float64


@dataclass(frozen=True, eq=False)
class ColumnErrors:
    """Errors of the readout of some columns, one number each; all zero for ideal ones.

    Attributes
    ----------
    gain, offset
        Relative error and offset (lsb) of the readout.
    sense_offset
        Voltage of the virtual ground, volts.
    adc_gain, adc_offset, adc_bow
        Relative error, offset and integral non-linearity (lsb) of the converter.
    adc_steps : (cols, codes - 1) or None
        How far each threshold of the converter lies off (lsb).
    """

    gain: Float64
    offset: Float64
    sense_offset: Float64
    adc_gain: Float64
    adc_offset: Float64
    adc_bow: Float64
    adc_steps: Float64 | None = None

    @classmethod
    def none(cls, cols: int) -> "ColumnErrors":
        """Ideal readout and converters."""
        gain, offset, sense, adc_gain, adc_offset, bow = np.zeros((6, cols))
        return cls(gain, offset, sense, adc_gain, adc_offset, bow)

    def of(self, columns: npt.NDArray[np.integer]) -> "ColumnErrors":
        """Those of some of the columns."""
        return ColumnErrors(
            gain=self.gain[columns],
            offset=self.offset[columns],
            sense_offset=self.sense_offset[columns],
            adc_gain=self.adc_gain[columns],
            adc_offset=self.adc_offset[columns],
            adc_bow=self.adc_bow[columns],
            adc_steps=None if self.adc_steps is None else self.adc_steps[columns],
        )


def draw_column_errors(periphery: Periphery, cols: int, chip_seed: int, array: int) -> ColumnErrors:
    """Errors of the columns of one array, ``(cols,)``; `columns_per_adc` neighbours share a converter's.

    Every number is drawn whatever the spec, so that switching one error off changes no other.
    """
    generator = array_generator(chip_seed, Purpose.COLUMN_OFFSETS, array)
    gain, offset, sense = generator.standard_normal((3, cols))
    converter = np.arange(cols) // periphery.columns_per_adc
    adc_gain, adc_offset, bow = generator.standard_normal((3, int(converter[-1]) + 1))[:, converter]
    steps = None
    if periphery.adc_dnl_sigma and periphery.adc_bits is not None:
        # A step's width is the difference of two thresholds: its deviation is the root of two larger than theirs.
        drawn = generator.standard_normal((int(converter[-1]) + 1, (1 << periphery.adc_bits) - 1))
        steps = drawn[converter] * (periphery.adc_dnl_sigma / np.sqrt(2))
    return ColumnErrors(
        gain=periphery.gain_sigma * gain,
        offset=periphery.offset_sigma * offset,
        sense_offset=periphery.sense_offset_sigma * sense,
        adc_gain=periphery.adc_gain_sigma * adc_gain,
        adc_offset=periphery.adc_offset_sigma * adc_offset,
        adc_bow=periphery.adc_inl_sigma * bow,
        adc_steps=steps,
    )


def turning_point(cubic: float) -> float:
    """Where ``y + k y^3`` stops rising, for k below 0."""
    return float(1 / np.sqrt(-3 * cubic))


@dataclass(frozen=True, eq=False)
class Readout:
    """The readout of the columns of one conversion.

    Attributes
    ----------
    errors
        Of the columns, ``(cols,)``.
    codes
        Of the converter; None where it is ideal.
    lsb, full_scale
        Amperes: the unit of errors in lsb, and the range that a readout bends within; 0 where nothing needs them.
    saturation, cubic, compliance, noise
        As in the spec's periphery; `noise` in lsb.
    """

    errors: ColumnErrors
    codes: CodeRange | None
    lsb: float
    full_scale: float
    saturation: float
    cubic: float
    compliance: float | None
    noise: float

    def thresholds(self) -> Float64 | None:
        """Of each column's converter, ``(cols, codes - 1)`` in lsb; None where they lie halfway between codes."""
        if self.codes is None or (self.errors.adc_steps is None and not self.errors.adc_bow.any()):
            return None
        steps = self.errors.adc_steps
        return adc_thresholds(self.codes, self.errors.adc_bow, steps if steps is None else self._fitted(steps))

    def _fitted(self, steps: Float64) -> Float64:
        assert self.codes is not None
        return steps[:, : self.codes.high - self.codes.low]

    def amplify(self, current: Float64, noise: Float64 | None = None) -> Float64:
        """What reaches the converter, amperes: compliance, gain and offset, curvature, noise, in this order.

        Parameters
        ----------
        current
            Of the columns, ``(windows, cols)``.
        noise
            Standard normal numbers of the readout's own noise, of that shape; None for none.
        """
        errors = self.errors
        if self.compliance is not None:
            current = np.clip(current, -self.compliance, self.compliance)
        found = current * (1 + errors.gain) + errors.offset * self.lsb
        if self.cubic or self.saturation:
            y = found / self.full_scale
            if self.cubic < 0:  # beyond its turning point the curve would fall again: hold it there
                top = turning_point(self.cubic)
                y = np.clip(y, -top, top)
            y = y + self.cubic * y**3
            found = y / (1 + self.saturation * np.abs(y)) * self.full_scale
        return found if noise is None else found + noise * (self.noise * self.lsb)

    def convert(self, amplified: Float64) -> tuple[Float64, Float64, Float64]:
        """What the ADC rounds (amperes), its codes, and what these stand for (amperes); all the same if it is ideal."""
        errors = self.errors
        found = amplified * (1 + errors.adc_gain) + errors.adc_offset * self.lsb
        if self.codes is None:
            return found, found, found
        codes = adc_codes(found / self.codes.lsb, self.codes, self.thresholds())
        return found, codes, codes * self.codes.lsb
