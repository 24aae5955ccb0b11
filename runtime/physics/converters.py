"""Input drivers and output converters, in SI units (numpy; ``docs/physics.md``, From an input to a code)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from hwspec.periphery import Periphery
from runtime.quantize import Float64, input_digit, output_codes
from runtime.tables import Phase

if TYPE_CHECKING:
    import torch

    ArrayT = TypeVar("ArrayT", npt.NDArray[Any], "torch.Tensor")
else:
    ArrayT = TypeVar("ArrayT")


@dataclass(frozen=True)
class Drive:
    """How the input codes of a layer become word-line voltages.

    Attributes
    ----------
    code_max
        Largest input code; None for an ideal DAC, whose codes are shares of full scale.
    digits, base
        A code is driven as so many digits in this base, the least significant first; one digit is the code itself.
    v_read
        Voltage of the largest digit, volts.
    nonlinearity
        k of the driver's curve ``y + k y (y² - 1)``, y the share of full scale.
    """

    code_max: int | None
    digits: int
    base: int
    v_read: float
    nonlinearity: float

    @classmethod
    def of(cls, periphery: Periphery, signed: bool) -> "Drive":
        """The drivers of a layer with signed or unsigned inputs."""
        code_max, digits = periphery.input_code_max(signed), periphery.digits(signed)
        base = periphery.digit_base(signed) if digits > 1 else 1
        return cls(code_max, digits, base, periphery.v_read, periphery.dac_nonlinearity)

    @property
    def top(self) -> int:
        """The largest digit."""
        return self.base - 1 if self.digits > 1 else self.code_max or 1

    def shares(self, codes: ArrayT, number: int) -> ArrayT:
        """Digit `number` of the codes as a share of the largest, as the driver puts it out."""
        digit = codes if self.digits == 1 else input_digit(codes, self.base, number)
        y = digit / self.top
        return y if self.nonlinearity == 0 else y + self.nonlinearity * y * (y * y - 1)

    def digit_weight(self, number: int) -> float:
        """What a digit's current counts for, where the sum is to be that of ``code / code_max * v_read``."""
        return 1.0 if self.digits == 1 else float(self.base**number * self.top / (self.code_max or 1))


def phase_part(codes: Float64, phase: Phase) -> Float64:
    """The part of the input codes that a phase drives: all of it, its positive or its negative part."""
    if phase == "both":
        return codes
    return np.maximum(codes, 0.0) if phase == "+" else np.maximum(-codes, 0.0)


@dataclass(frozen=True)
class CodeRange:
    """The codes of an ADC, from `low` to `high`, and the current of one step, amperes."""

    low: int
    high: int
    lsb: float

    @classmethod
    def of(cls, code_max: int, full_scale: float, *, unipolar: bool) -> "CodeRange":
        """Symmetric codes, or all of them from 0 up where currents have one sign; `full_scale` is the largest's."""
        high = 2 * code_max + 1 if unipolar else code_max
        return cls(0 if unipolar else -code_max, high, full_scale / high)


def adc_thresholds(codes: CodeRange, bow: Float64, steps: Float64 | None) -> Float64:
    """Where an ADC steps from one code to the next, in lsb, ``(converters, codes - 1)``, rising.

    An ideal ADC steps halfway between codes. Integral non-linearity bends them by a parabola that is zero at both ends
    of the range (our choice of shape); differential non-linearity moves each by itself. Thresholds that would cross
    are put in order.

    Parameters
    ----------
    codes
        The range.
    bow
        Integral non-linearity in the middle of the range, ``(converters,)``, lsb.
    steps
        How far each threshold lies off, ``(converters, codes - 1)``, lsb; None for none.
    """
    ideal = np.arange(codes.low, codes.high) + 0.5
    middle, half = (codes.high + codes.low) / 2, (codes.high - codes.low) / 2
    moved = ideal + bow[:, None] * (1 - ((ideal - middle) / half) ** 2)
    return np.sort(moved if steps is None else moved + steps, axis=1)


def adc_codes(lsbs: Float64, codes: CodeRange, thresholds: Float64 | None = None) -> Float64:
    """Codes of currents given in lsb, ``(windows, cols)``.

    Parameters
    ----------
    lsbs
        Currents in units of the lsb.
    codes
        The range; what lies beyond it is clipped.
    thresholds
        Of each column's converter, ``(cols, codes - 1)``; None rounds to the nearest code, ties to even.
    """
    if thresholds is None:
        return output_codes(lsbs, codes.low, codes.high)
    found = np.empty_like(lsbs)
    for column, steps in enumerate(thresholds):
        found[:, column] = codes.low + np.searchsorted(steps, lsbs[:, column])
    return found
