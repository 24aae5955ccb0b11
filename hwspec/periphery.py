"""The circuits around an array: input drivers (DAC) and output converters (ADC)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hwspec.units import Share, Volt, Whole


class Periphery(BaseModel):
    """Drivers and converters. A resolution of ``null`` means ideal (no quantisation), never 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v_read: Volt = Field(ge=1e-6, le=1e3, description="word-line voltage of the largest input code")
    dac_bits: Whole | None = Field(
        ge=2, le=16, description="input resolution, the sign included where inputs are signed; null is ideal"
    )
    signed: Literal["bipolar", "two_phase"] = Field(
        description="how negative inputs are driven: bipolar drivers, or positive and negative parts in turn"
    )
    adc_bits: Whole | None = Field(ge=2, le=24, description="output resolution, the sign included; null is ideal")
    adc_clip_share: Share = Field(
        ge=0, lt=0.5, description="share of calibration conversions that each tile's ADC range may clip"
    )

    def input_code_max(self, signed: bool) -> int | None:
        """Largest input code: ``2**(b-1) - 1`` for signed inputs, ``2**b - 1`` for unsigned, None when ideal."""
        if self.dac_bits is None:
            return None
        return (1 << (self.dac_bits - 1)) - 1 if signed else (1 << self.dac_bits) - 1

    @property
    def output_code_max(self) -> int | None:
        """Largest ADC code: codes are symmetric, so that a column's sign commutes with clipping; None when ideal."""
        return None if self.adc_bits is None else (1 << (self.adc_bits - 1)) - 1
