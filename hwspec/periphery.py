"""The circuits around an array: input drivers (DAC), readout, output converters (ADC), and the controller's trim."""

from typing import Literal

from pydantic import Field, model_validator

from hwspec.device import Section
from hwspec.units import Ampere, Number, Share, Volt, Whole

_MOST_THRESHOLDS = 12
"""Bits of an ADC whose thresholds are modelled one by one."""


class Trim(Section):
    """What the controller corrects digitally, from known vectors that it runs through the programmed chip."""

    gain: Literal["none", "tile", "column"] = Field(
        default="none", description="whether a digital gain is measured, one a tile or one a column"
    )
    offset: bool = Field(default=False, description="whether a digital offset a column is measured")
    vectors: Whole = Field(default=32, ge=2, le=2048, description="known vectors that are run")
    when: Literal["programming", "read"] = Field(
        default="programming", description="measured once after programming, or anew at the time of the reads"
    )


class Periphery(Section):
    """Drivers, readout and converters. A resolution of ``null`` means ideal (no quantisation), never 0.

    Errors in lsb are those of the ADC: an ideal one has no lsb, and none of them.
    """

    v_read: Volt = Field(ge=1e-6, le=1e3, description="word-line voltage of the largest input code")
    dac_bits: Whole | None = Field(
        ge=1, le=16, description="resolution of a driver, the sign included where it is bipolar; null is ideal"
    )
    input_bits: Whole | None = Field(
        default=None,
        ge=2,
        le=16,
        description="resolution of an input, the sign included; above dac_bits its digits are driven one after another "
        "(bit-serial), each with a conversion; null is dac_bits",
    )
    signed: Literal["bipolar", "two_phase"] = Field(
        description="how negative inputs are driven: bipolar drivers, or positive and negative parts in turn"
    )
    input_coding: Literal["pulse_width", "amplitude"] = Field(
        default="pulse_width",
        description="whether an input is the duration of a pulse of v_read or a voltage: a device's law of current "
        "against voltage bends voltages, not durations",
    )
    dac_nonlinearity: Share = Field(
        default=0.0, ge=-0.5, le=1, description="k of the driver's curve y + k y (y^2 - 1), y the share of full scale"
    )
    subtract: Literal["before", "after"] = Field(
        default="before", description="whether a pair's currents are subtracted before or after their conversion"
    )
    gain_sigma: Share = Field(default=0.0, ge=0, le=1, description="readout gain error, standard deviation a column")
    offset_sigma: Number = Field(
        default=0.0, ge=0, le=1e6, description="readout offset, standard deviation a column, in lsb of the ADC"
    )
    sense_offset_sigma: Volt = Field(
        default=0.0, ge=0, le=10, description="offset of a column's virtual ground, standard deviation"
    )
    saturation: Share = Field(
        default=0.0, ge=0, le=100, description="k of the readout's y / (1 + k abs(y)), y the share of the ADC's range"
    )
    cubic: Share = Field(
        default=0.0,
        ge=-0.3,
        le=10,
        description="k of the readout's y + k y^3, before saturation; held at its turning point",
    )
    compliance: Ampere | None = Field(
        default=None, gt=0, le=1e6, description="largest current that a column's readout takes; null is unlimited"
    )
    readout_noise: Number = Field(
        default=0.0, ge=0, le=1e6, description="noise of the readout, standard deviation a conversion, in lsb"
    )
    adc_bits: Whole | None = Field(ge=2, le=24, description="output resolution, the sign included; null is ideal")
    adc_clip_share: Share = Field(
        ge=0, lt=0.5, description="share of calibration conversions that each tile's ADC range may clip"
    )
    residue: Share = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="share of a layer's weights whose errors digital memory beside the arrays can hold",
    )
    columns_per_adc: Whole = Field(default=8, ge=1, le=65536, description="neighbouring columns that share an ADC")
    adc_gain_sigma: Share = Field(default=0.0, ge=0, le=1, description="ADC gain error, standard deviation an ADC")
    adc_offset_sigma: Number = Field(
        default=0.0, ge=0, le=1e6, description="ADC offset, standard deviation an ADC, in lsb"
    )
    adc_inl_sigma: Number = Field(
        default=0.0,
        ge=0,
        le=1e3,
        description="integral non-linearity: bow at half range, standard deviation an ADC, lsb",
    )
    adc_dnl_sigma: Number = Field(
        default=0.0, ge=0, le=1e3, description="differential non-linearity: step widths, standard deviation a code, lsb"
    )
    trim: Trim = Trim()

    @model_validator(mode="after")
    def _resolutions_fit(self) -> "Periphery":
        if self.dac_bits == 1 and self.signed == "bipolar":
            raise ValueError("dac_bits of 1 leave a bipolar driver no magnitude; choose 2 or more, or two_phase")
        if self.input_bits is not None:
            if self.dac_bits is None:
                raise ValueError("input_bits are read with dac_bits only; leave them null for an ideal DAC")
            if self.input_bits < self.dac_bits:
                raise ValueError(f"input_bits must be at least dac_bits ({self.dac_bits}), not {self.input_bits}")
        elif self.dac_bits == 1:
            raise ValueError("dac_bits of 1 need input_bits of 2 or more, driven one after another")
        thresholds = self.adc_inl_sigma or self.adc_dnl_sigma
        if thresholds and self.adc_bits is not None and self.adc_bits > _MOST_THRESHOLDS:
            raise ValueError(f"adc_inl_sigma and adc_dnl_sigma are modelled up to adc_bits {_MOST_THRESHOLDS}")
        return self

    def input_code_max(self, signed: bool) -> int | None:
        """Largest input code: ``2**(b-1) - 1`` for signed inputs, ``2**b - 1`` for unsigned, None when ideal."""
        bits = self.input_bits or self.dac_bits
        if bits is None:
            return None
        return (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1

    def digit_base(self, signed: bool) -> int:
        """Base of the digits that a driver puts out in turn: ``2**d``, d its bits without those of a bipolar sign."""
        assert self.dac_bits is not None
        return 1 << (self.dac_bits - 1 if signed and self.signed == "bipolar" else self.dac_bits)

    def digits(self, signed: bool) -> int:
        """Digits of an input code: the reads that one input vector takes in each phase."""
        code_max = self.input_code_max(signed)
        if code_max is None:
            return 1
        base, count = self.digit_base(signed), 1
        while base**count <= code_max:
            count += 1
        return count

    @property
    def output_code_max(self) -> int | None:
        """Largest ADC code: codes are symmetric, so that a column's sign commutes with clipping; None when ideal."""
        return None if self.adc_bits is None else (1 << (self.adc_bits - 1)) - 1

    @property
    def needs_range(self) -> bool:
        """Whether tiles need a full scale: for the ADC, or for a readout that bends."""
        return self.adc_bits is not None or self.saturation != 0 or self.cubic != 0
