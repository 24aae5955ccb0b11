"""What components take: time, energy and area of arrays, converters, buffers, links, digital units and writing.

Defaults are those of ISAAC (Shafiee et al., ISCA 2016, text corrected in October 2016; 32 nm, 128x128 arrays), with
converters by the survey and array energy from conductances; digital units and writing are our choice.
"""

import math
from typing import Literal

from pydantic import Field, model_validator

from hwspec.device import Section
from hwspec.units import BytesPerSecond, Hertz, Joule, Metre, Second, SquareMetre, Watt, Whole

SURVEY_BITS = 4
"""Bits that the survey of ADCs starts at: fewer cost as much."""


class AdcCost(Section):
    """An analogue-to-digital converter, shared by `periphery.columns_per_adc` columns."""

    model: Literal["survey", "fixed", "ramp"] = Field(
        default="survey",
        description="survey: energy and area from resolution, node and rate; fixed: energy a conversion; ramp: energy "
        "and time a step, 2^(b-1) steps a conversion",
    )
    rate: Hertz = Field(default=1.28e9, gt=0, le=1e15, description="conversions a second; steps a second of a ramp")
    energy: Joule | None = Field(
        default=None, ge=0, le=1.0, description="of a conversion, or of a step of a ramp; null takes the survey"
    )
    area: SquareMetre | None = Field(default=None, ge=0, le=1.0, description="of an ADC; null takes the survey")

    @model_validator(mode="after")
    def _given(self) -> "AdcCost":
        if self.model != "survey" and (self.energy is None or self.area is None):
            raise ValueError(f"energy and area must be given where model is {self.model}")
        if self.model == "survey" and (self.energy is not None or self.area is not None):
            raise ValueError("energy and area come from the survey; choose model fixed to give them")
        return self


class ArrayCost(Section):
    """The crossbar itself."""

    model: Literal["conductances", "fixed"] = Field(
        default="conductances",
        description="energy of a read from programmed conductances and calibration inputs, or always the same",
    )
    energy: Joule | None = Field(default=None, ge=0, le=1.0, description="of a read of an array, where it is fixed")
    cell_area: SquareMetre = Field(default=25e-12 / 16384, ge=0, le=1.0, description="of one device with its access")

    @model_validator(mode="after")
    def _given(self) -> "ArrayCost":
        if (self.model == "fixed") != (self.energy is not None):
            raise ValueError("energy must be given where model is fixed, and only there")
        return self


class Dac(Section):
    """The driver of a word line: ISAAC's of one bit."""

    energy: Joule = Field(default=0.391e-12, ge=0, le=1.0, description="of a word line, a digit of its input")
    area: SquareMetre = Field(default=0.166e-12, ge=0, le=1.0, description="of a word line")


class SampleHold(Section):
    """What holds a bit line's current for its conversion."""

    energy: Joule = Field(default=0.977e-15, ge=0, le=1.0, description="of a bit line, a read")
    area: SquareMetre = Field(default=0.039e-12, ge=0, le=1.0, description="of a bit line")


class ShiftAdd(Section):
    """What adds up digits, slices and row blocks behind an ADC."""

    energy: Joule = Field(default=0.0195e-12, ge=0, le=1.0, description="of a conversion")
    area: SquareMetre = Field(default=30e-12, ge=0, le=1.0, description="of an ADC")


class Buffer(Section):
    """The memory of a tile that activations lie in."""

    energy: Joule = Field(default=2.02e-12, ge=0, le=1.0, description="of a byte")
    rate: BytesPerSecond = Field(default=10.24e9, gt=0, le=1e18, description="bytes a second of a tile")


class Link(Section):
    """What moves activations between buffers and cores."""

    energy: Joule = Field(default=0.68e-12, ge=0, le=1.0, description="of a byte")
    rate: BytesPerSecond = Field(default=10.24e9, gt=0, le=1e18, description="bytes a second of a tile")


class CoreCost(Section):
    """Registers of a core, always on."""

    power: Watt = Field(default=1.47e-3, ge=0, le=1e6, description="drawn all the time")
    area: SquareMetre = Field(default=2.87e-9, ge=0, le=1.0, description="beside arrays and converters")


class TileCost(Section):
    """Router, pooling and memory cells of a tile, always on."""

    power: Watt = Field(default=13.15e-3, ge=0, le=1e6, description="drawn all the time, buffer and link apart")
    area: SquareMetre = Field(default=214.9e-9, ge=0, le=1.0, description="beside its cores, buffer and link included")


class ChipCost(Section):
    """Links off the chip, always on."""

    power: Watt = Field(default=0.0, ge=0, le=1e6, description="drawn all the time")
    area: SquareMetre = Field(default=0.0, ge=0, le=1.0, description="beside its tiles")


class Digital(Section):
    """The digital units that run what stays off the arrays."""

    energy: Joule = Field(default=1e-12, ge=0, le=1.0, description="of one operation on one element")
    rate: Hertz = Field(default=1e12, gt=0, le=1e18, description="operations a second, all units together")
    area: SquareMetre = Field(default=0.0, ge=0, le=1.0, description="of all units")


class Write(Section):
    """Programming the devices."""

    energy: Joule = Field(default=10e-12, ge=0, le=1.0, description="of one pulse on one device, its read included")
    time: Second = Field(default=100e-9, gt=0, le=1e3, description="of one pulse, its read included")
    parallel: Whole = Field(default=1, ge=1, le=65536, description="devices of an array written at once")


class Costs(Section):
    """Time, energy and area of everything that a program uses."""

    node: Metre = Field(default=32e-9, ge=1e-9, le=1e-4, description="technology node, for the survey of ADCs")
    t_read: Second = Field(default=100e-9, gt=0, le=1e3, description="read of an array: one digit of the inputs")
    overlap: bool = Field(
        default=True, description="whether columns are held, so that the next read runs while they are converted"
    )
    adc: AdcCost = AdcCost()
    array: ArrayCost = ArrayCost()
    dac: Dac = Dac()
    sample_hold: SampleHold = SampleHold()
    shift_add: ShiftAdd = ShiftAdd()
    buffer: Buffer = Buffer()
    link: Link = Link()
    digital: Digital = Digital()
    core: CoreCost = CoreCost()
    tile: TileCost = TileCost()
    chip: ChipCost = ChipCost()
    write: Write = Write()


class Organisation(Section):
    """How the arrays of a chip are grouped, and how many there are."""

    arrays_per_core: Whole = Field(default=8, ge=1, le=1 << 20, description="arrays that share registers")
    cores_per_tile: Whole = Field(default=12, ge=1, le=1 << 20, description="cores that share a buffer and a link")
    tiles: Whole | None = Field(
        default=None, ge=1, le=1 << 20, description="tiles of the chip; null is as many as a program takes"
    )

    @property
    def arrays(self) -> int | None:
        """Arrays of the chip; None where they are not limited."""
        return None if self.tiles is None else self.tiles * self.cores_per_tile * self.arrays_per_core


def adc_energy(cost: AdcCost, bits: int, node: float) -> float:
    """Energy of a conversion, joules.

    A regression over B. Murmann's ADC Performance Survey in the form of the Accelergy ADC plug-in: SNDR = 6.0206 b +
    1.7609 dB, the figure of merit the lower of that of the rate and that of the resolution, and corrections for node
    and resolution.

    Parameters
    ----------
    cost
        The converter.
    bits
        Its resolution.
    node
        Technology node, metres.
    """
    if cost.energy is not None:
        return cost.energy * (1 << (bits - 1)) if cost.model == "ramp" else cost.energy
    b = max(bits, SURVEY_BITS)
    sndr = 6.0206 * b + 1.7609
    merit = min(213.78067 - 2.871903 * math.log(cost.rate), 128.30684 + 3.2205115 * math.ceil(b))
    scale = math.exp(26.0496216 + 1.8800369 * math.log(node * 1e9) - 2.8291256 * math.log(b) - 1.4702022)
    return float(0.5 * 10 ** ((sndr - merit) / 10) * scale * 1e-12)


def adc_area(cost: AdcCost, bits: int, node: float) -> float:
    """Area of an ADC, square metres; see `adc_energy`."""
    if cost.area is not None:
        return cost.area
    energy = adc_energy(cost, bits, node) * 1e12
    terms = 1.3461916 + 0.9932795 * math.log(node * 1e9) + 0.1807154 * math.log(cost.rate)
    return float(math.exp(terms + 0.2991243 * math.log(energy)) * 1e-12)


def conversion_time(cost: AdcCost, bits: int) -> float:
    """Time of a conversion, seconds."""
    return (1 << (bits - 1) if cost.model == "ramp" else 1) / cost.rate
