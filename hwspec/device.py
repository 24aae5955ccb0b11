"""The memory device: what it can be programmed to, how far it lands from that, and where it goes with time."""

import itertools
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hwspec.errors import shown
from hwspec.units import ElectronVolt, Number, Ohm, PerKelvin, PerVolt, Second, Share, Siemens, Whole, parse_quantity

SpreadName = Literal["none", "constant", "relative", "lognormal", "wan2022", "milo", "cmo_hfox", "pcm"]
ReadNoiseName = Literal["none", "constant", "proportional", "pcm", "cmo_hfox"]
DriftName = Literal["none", "pcm", "cmo_hfox", "wan2022"]

MEASURED_RANGE: dict[str, tuple[float, float]] = {
    "wan2022": (0.0, 40e-6),
    "milo": (50e-6, 225e-6),
    "cmo_hfox": (8e-6, 90e-6),
    "pcm": (0.0, 25e-6),
}
"""Conductances (siemens) that a model was fitted to; it refuses others (``physics.md`` section 2)."""

_MOST_LEVELS = 65536
_SLACK = 1e-9


def _levels(value: object) -> object:
    """Nothing, a number of uniform levels, or the levels themselves."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        if not 2 <= len(value) <= _MOST_LEVELS:
            raise ValueError(f"must be at least 2 levels and at most {_MOST_LEVELS}, not {len(value)}")
        found = tuple(parse_quantity(level, "siemens") for level in value)
        if any(low >= high for low, high in itertools.pairwise(found)):
            raise ValueError(f"must be levels in rising order, not {shown(value)}")
        return found
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, float) and value.is_integer():
        value, whole = int(value), True
    if not whole or not 2 <= value <= _MOST_LEVELS:  # type: ignore[operator]
        raise ValueError(
            f"must be null (continuous), a number of levels from 2 to {_MOST_LEVELS}, or a list of conductances, "
            f"not {shown(value)}"
        )
    return value


Levels = Annotated[
    int | tuple[float, ...] | None, BeforeValidator(_levels), Field(json_schema_extra={"unit": "siemens"})
]


class Section(BaseModel):
    """A group of fields; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def _only(self, field: str, model: str, owner: str) -> None:
        """Refuse a parameter that the chosen model does not read."""
        if getattr(self, field) and model != owner:
            raise ValueError(f"{field} is read by model {owner} only, not by {model}; set it to 0 or choose {owner}")


class Spread(Section):
    """Programming spread: how far from its target a device lands, drawn for each device and pulse."""

    model: SpreadName = Field(default="none", description="how the standard deviation depends on the target")
    sigma: Siemens = Field(default=0.0, ge=0, le=1e3, description="model constant: standard deviation")
    share: Share = Field(default=0.0, ge=0, le=10, description="model relative: standard deviation, a share of G")
    log_sigma: Share = Field(default=0.0, ge=0, le=5, description="model lognormal: standard deviation of ln G")
    acceptance: Share = Field(
        default=0.02,
        description="model cmo_hfox: share of the target that its devices were accepted within, 0.02 or 0.002",
    )
    limits: Literal["zero", "range"] = Field(
        default="zero", description="what a device cannot leave: conductances from zero up, or from g_min to g_max"
    )

    @model_validator(mode="after")
    def _parameters_are_read(self) -> "Spread":
        self._only("sigma", self.model, "constant")
        self._only("share", self.model, "relative")
        self._only("log_sigma", self.model, "lognormal")
        if self.acceptance not in (0.02, 0.002):
            raise ValueError(f"acceptance must be 0.02 or 0.002, what was measured, not {shown(self.acceptance)}")
        return self


class Programming(Section):
    """How devices are written: pulses with reads in between, and the chance to fail."""

    failure_rate: Share = Field(default=0.0, ge=0, le=1, description="chance of a device not to be programmed")
    failed_conductance: Siemens | None = Field(
        default=None, ge=0, le=1e3, description="conductance of a device whose programming failed; null is g_min (HRS)"
    )
    pulses: Whole = Field(default=1, ge=1, le=10_000, description="most pulses a device; 1 is no write-verify")
    tolerance: Siemens = Field(default=0.0, ge=0, le=1e3, description="write-verify accepts targets within this")
    relative_tolerance: Share = Field(
        default=0.0, ge=0, le=10, description="write-verify accepts targets within this share of them, too"
    )

    @model_validator(mode="after")
    def _verify_can_end(self) -> "Programming":
        accepts = self.tolerance > 0 or self.relative_tolerance > 0
        if self.pulses > 1 and not accepts:
            raise ValueError("pulses above 1 need a tolerance or a relative_tolerance above 0 to accept a device")
        if self.pulses == 1 and accepts:
            raise ValueError("tolerance and relative_tolerance are read by write-verify only; set pulses above 1")
        return self


class Drift(Section):
    """Drift and relaxation of programmed conductances: one trajectory for each device."""

    model: DriftName = Field(default="none", description="the technology that was measured")
    activation_energy: ElectronVolt = Field(
        default=0.0, ge=0, le=5, description="of drift: time runs faster by Arrhenius' law above 25 degrees Celsius"
    )

    @model_validator(mode="after")
    def _parameters_are_read(self) -> "Drift":
        if self.activation_energy and self.model == "none":
            raise ValueError("activation_energy is read with a drift model only; set it to 0 or choose a model")
        return self


class ReadNoise(Section):
    """Gaussian noise of each device at each read."""

    model: ReadNoiseName = Field(default="none", description="how the standard deviation depends on G")
    sigma: Siemens = Field(default=0.0, ge=0, le=1e3, description="model constant: standard deviation")
    share: Share = Field(default=0.0, ge=0, le=10, description="model proportional: standard deviation, a share of G")
    correlation: Literal["per_read", "per_vector"] = Field(
        default="per_read", description="whether the bit-serial reads of one input vector draw anew"
    )

    @model_validator(mode="after")
    def _parameters_are_read(self) -> "ReadNoise":
        self._only("sigma", self.model, "constant")
        self._only("share", self.model, "proportional")
        return self


class Telegraph(Section):
    """Random telegraph noise: a trap that takes a share of the device's conductance while it is occupied."""

    amplitude: Share = Field(default=0.0, ge=0, le=1, description="share of G that an occupied trap takes; 0 is none")
    occupancy: Share = Field(default=0.5, ge=0, le=1, description="share of the time that a trap is occupied")
    correlation_time: Second = Field(
        default=0.0, ge=0, le=1e12, description="of a trap's state; 0 is shorter than the time between reads"
    )


class CurrentVoltageLaw(Section):
    """Current through a device against its voltage, equal to ``G v_read`` at `v_read`."""

    model: Literal["ohmic", "sinh", "cubic"] = Field(
        default="ohmic", description="sinh: ~ sinh(alpha V); cubic: ~ V (1 + (alpha V)^2)"
    )
    alpha: PerVolt = Field(default=0.0, ge=0, le=100, description="of models sinh and cubic: strength of the law")
    asymmetry: Share = Field(
        default=0.0, gt=-1, le=10, description="by how much larger currents are at negative voltages, a share"
    )

    @model_validator(mode="after")
    def _parameters_are_read(self) -> "CurrentVoltageLaw":
        if self.alpha and self.model == "ohmic":
            raise ValueError("alpha is read by models sinh and cubic only; set it to 0 or choose one of them")
        return self

    @property
    def linear(self) -> bool:
        """Whether currents are proportional to voltages."""
        return self.alpha == 0 and self.asymmetry == 0


class Device(Section):
    """One resistive memory device.

    Conductances are programmed within ``[g_min, g_max]``, either continuously (``levels: null``), to one of ``levels``
    values spaced uniformly in conductance, or to one of the values listed. A pair of devices represents the weight
    ``(g_plus - g_minus) / (g_max - g_min)`` in [-1, 1], so ``levels`` levels of a device give ``2 levels - 1`` weights.
    """

    g_min: Siemens = Field(ge=1e-15, le=1e3, description="lowest programmable conductance")
    g_max: Siemens = Field(ge=1e-15, le=1e3, description="highest programmable conductance")
    levels: Levels = Field(
        description="programmable levels of one device: a number of uniform ones, or a list of conductances from g_min "
        "to g_max; null is continuous"
    )
    r_access: Ohm = Field(default=0.0, ge=0, le=1e12, description="resistance in series with each device")
    spread: Spread = Spread()
    programming: Programming = Programming()
    drift: Drift = Drift()
    read_noise: ReadNoise = ReadNoise()
    telegraph: Telegraph = Telegraph()
    iv: CurrentVoltageLaw = CurrentVoltageLaw()
    temperature: Number = Field(
        default=25.0, ge=-273, le=1000, description="operating temperature, degrees Celsius; values are those at 25"
    )
    temperature_coefficient: PerKelvin = Field(
        default=0.0, ge=-0.1, le=0.1, description="relative change of conductance a kelvin above 25 degrees Celsius"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Device":
        if self.g_min >= self.g_max:
            raise ValueError(f"g_min must be below g_max ({self.g_max:g} S), not {self.g_min:g} S")
        if isinstance(self.levels, tuple):
            for level, end, name in ((self.levels[0], self.g_min, "first"), (self.levels[-1], self.g_max, "last")):
                if abs(level - end) > _SLACK * self.g_max:
                    raise ValueError(
                        f"levels must run from g_min to g_max: the {name} must be {end:g} S, not {level:g} S"
                    )
        return self

    @model_validator(mode="after")
    def _within_measured_ranges(self) -> "Device":
        for path, model in (
            ("spread", self.spread.model),
            ("drift", self.drift.model),
            ("read_noise", self.read_noise.model),
        ):
            low, high = MEASURED_RANGE.get(model, (0.0, float("inf")))
            if self.g_min < low * (1 - _SLACK) or self.g_max > high * (1 + _SLACK):
                raise ValueError(
                    f"{path}.model {model} was measured from {low * 1e6:g} to {high * 1e6:g} uS; choose g_min and "
                    f"g_max within this range (not {self.g_min * 1e6:g} to {self.g_max * 1e6:g} uS), or another model"
                )
        if 1 + self.temperature_coefficient * (self.temperature - 25.0) <= 0:
            raise ValueError("temperature_coefficient leaves no conductance at this temperature; take a smaller one")
        return self

    @property
    def span(self) -> float:
        """``g_max - g_min``, siemens."""
        return self.g_max - self.g_min

    @property
    def level_count(self) -> int | None:
        """Number of levels of one device; None when continuous."""
        return len(self.levels) if isinstance(self.levels, tuple) else self.levels
