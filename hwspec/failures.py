"""Failed devices: how often they occur, what they conduct, and what can gate them off."""

from collections.abc import Iterator
from enum import IntEnum
from typing import Literal

from pydantic import Field, model_validator

from hwspec.device import Device, Section
from hwspec.units import ElectronVolt, Number, Second, Share, Siemens

FailedName = Literal["unformed", "overformed", "stuck_hrs", "stuck_lrs"]
DEVIATIONS = 3.0
"""Standard deviations at which normal distributions of failed conductances end: a failure state is bounded."""


_NEARLY_ALL = 1 - 1e-9
"""Of rates that are to be at most 1 together, after rounding too."""
_CLUSTERS = 1e4
"""Clusters an array, at most."""


class State(IntEnum):
    """State of a device, as fault maps code it."""

    OK = 0
    """Can be programmed."""
    UNFORMED = 1
    """Never formed: near 0 S."""
    OVERFORMED = 2
    """Shorted: at or above g_max."""
    STUCK_HRS = 3
    """Stays at high resistance."""
    STUCK_LRS = 4
    """Stays at low resistance."""


class FailureState(Section):
    """Devices that fail in one way."""

    rate: Share = Field(default=0.0, ge=0, le=1, description="share of the devices")
    conductance: Siemens | None = Field(
        default=None,
        ge=0,
        le=1e3,
        description="what they conduct (the mean of model normal, the lower end of uniform); null is 0 S unformed, "
        "g_min stuck_hrs, g_max overformed and stuck_lrs",
    )
    model: Literal["fixed", "normal", "uniform"] = Field(
        default="fixed",
        description="distribution of the conductance; normal ends at three standard deviations, and at 0",
    )
    deviation: Share = Field(
        default=0.0, ge=0, le=10, description="model normal: standard deviation, a share of the conductance"
    )
    upper: Siemens | None = Field(default=None, ge=0, le=1e3, description="model uniform: upper end")
    isolatable: bool = Field(
        default=True, description="whether the access transistor still works, so that isolation can gate the device off"
    )

    @model_validator(mode="after")
    def _parameters_are_read(self) -> "FailureState":
        self._only("deviation", self.model, "normal")
        if (self.upper is not None) != (self.model == "uniform"):
            raise ValueError("upper is given for model uniform, and for no other")
        return self


class Clusters(Section):
    """Spots of an array where every device has failed."""

    rate: Number = Field(default=0.0, ge=0, le=_CLUSTERS, description="mean number of clusters an array (Poisson)")
    radius: Number = Field(default=1.5, gt=0, le=1e4, description="of a cluster, in devices")
    state: FailedName = Field(default="unformed", description="of its devices")


class Lines(Section):
    """Word and bit lines that fail as a whole; the devices of a line share its fate."""

    word_failed: Share = Field(default=0.0, ge=0, le=1, description="share of open word lines: devices as if unformed")
    word_shorted: Share = Field(default=0.0, ge=0, le=1, description="share of word lines of overformed devices")
    bit_failed: Share = Field(default=0.0, ge=0, le=1, description="share of open bit lines: devices as if unformed")
    bit_shorted: Share = Field(default=0.0, ge=0, le=1, description="share of bit lines of overformed devices")

    @model_validator(mode="after")
    def _shares_fit(self) -> "Lines":
        for kind in ("word", "bit"):
            if getattr(self, f"{kind}_failed") + getattr(self, f"{kind}_shorted") > 1:
                raise ValueError(f"{kind}_failed and {kind}_shorted must be at most 1 together")
        return self


class Retention(Section):
    """Devices that lose their state for good: lifetimes follow a Weibull distribution (our choice)."""

    state: FailedName | None = Field(default=None, description="what devices turn into; null is no retention loss")
    lifetime: Second = Field(
        default=3.15e8,
        gt=0,
        le=1e15,
        description="time after which 63 % of the devices are lost, at 25 degrees Celsius",
    )
    shape: Number = Field(default=1.0, gt=0, le=20, description="of the Weibull distribution; 1 is a constant rate")
    activation_energy: ElectronVolt = Field(
        default=0.0, ge=0, le=5, description="time runs faster by Arrhenius' law above 25 degrees Celsius"
    )


class Thresholds(Section):
    """Where measured conductances count as failures; null takes the device's range."""

    unformed: Siemens | None = Field(
        default=None, ge=0, le=1e3, description="below this a device is unformed; null is half of g_min"
    )
    stuck_hrs: Siemens | None = Field(
        default=None, ge=0, le=1e3, description="below this (not unformed) it is stuck_hrs; null is g_min"
    )
    stuck_lrs: Siemens | None = Field(
        default=None, ge=0, le=1e3, description="above this (not overformed) it is stuck_lrs; null is g_max"
    )
    overformed: Siemens | None = Field(
        default=None, ge=0, le=1e3, description="above this it is overformed; null is 1.25 g_max"
    )


class MapErrors(Section):
    """Errors of the test that finds failed devices: compilation sees the map with them, the chip is as it is."""

    missed: Share = Field(default=0.0, ge=0, le=1, description="share of the failed devices that the test calls good")
    false: Share = Field(default=0.0, ge=0, le=1, description="share of the good devices that the test calls stuck_hrs")


class Failures(Section):
    """Failed devices (``physics.md`` section 2). What each pair can still hold follows in `hwspec.reach`."""

    unformed: FailureState = FailureState()
    overformed: FailureState = FailureState()
    stuck_hrs: FailureState = FailureState()
    stuck_lrs: FailureState = FailureState()
    array_deviation: Share = Field(
        default=0.0,
        ge=0,
        le=5,
        description="how much yield differs from array to array: standard deviation of ln(rate), the mean kept",
    )
    clusters: Clusters = Clusters()
    lines: Lines = Lines()
    retention: Retention = Retention()
    thresholds: Thresholds = Thresholds()
    map_errors: MapErrors = MapErrors()
    isolation: Literal["none", "line", "device"] | None = Field(
        default=None,
        description="what can gate a device off: nothing, its word line's gate (with all devices on it), or a gate of "
        "its own; null is device in 2T2R cells, else none",
    )
    failed_pair: Literal["as_is", "zero"] = Field(
        default="as_is",
        description="zero: when a chip is formed, the good partner of a failed device is made to fail alike, so that "
        "the pair reads 0",
    )
    bound_tolerance: Share | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="by how much a weight may leave [-1, 1]; null is g_min / (g_max - g_min)",
    )
    allow_unbounded: bool = Field(
        default=False, description="whether failures may push weights further than that (the report says how far)"
    )

    def rates_times(self, factor: float) -> dict[str, float]:
        """Rates of devices, lines and clusters that are not 0 times a factor, by dotted name, each within its bounds.

        Rates that exclude each other keep their ratio: those of the four states, and the two of a kind of line.
        """
        groups = [{f"{State(state).name.lower()}.rate": section.rate for state, section in self.states()}]
        lines = self.lines.model_dump()
        groups += [
            {f"lines.{name}": lines[name] for name in lines if name.startswith(kind)} for kind in ("word", "bit")
        ]
        found: dict[str, float] = {}
        for rates in groups:
            most = _NEARLY_ALL / max(sum(rates.values()), 1e-300)
            found |= {name: rate * min(factor, most) for name, rate in rates.items() if rate}
        if self.clusters.rate:
            found["clusters.rate"] = min(self.clusters.rate * factor, _CLUSTERS)
        return found

    @model_validator(mode="after")
    def _rates_fit(self) -> "Failures":
        total = sum(state.rate for _, state in self.states())
        if total > 1:
            raise ValueError(f"rates of the four states must be at most 1 together, not {total:g}")
        return self

    def states(self) -> Iterator[tuple[State, FailureState]]:
        """The four failure states by code."""
        yield State.UNFORMED, self.unformed
        yield State.OVERFORMED, self.overformed
        yield State.STUCK_HRS, self.stuck_hrs
        yield State.STUCK_LRS, self.stuck_lrs

    def of(self, state: State) -> FailureState:
        """The section of a failure state."""
        return dict(self.states())[state]

    @property
    def possible(self) -> frozenset[State]:
        """Failure states that devices of this technology can be in, with time too."""
        found = {code for code, state in self.states() if state.rate > 0}
        if self.clusters.rate:
            found.add(State[self.clusters.state.upper()])
        if self.lines.word_failed or self.lines.bit_failed:
            found.add(State.UNFORMED)
        if self.lines.word_shorted or self.lines.bit_shorted:
            found.add(State.OVERFORMED)
        if self.retention.state is not None:
            found.add(State[self.retention.state.upper()])
        return frozenset(found)

    @property
    def at_start(self) -> bool:
        """Whether any device has failed before time passes."""
        lines = self.lines
        shares = (lines.word_failed, lines.word_shorted, lines.bit_failed, lines.bit_shorted, self.clusters.rate)
        return any(shares) or any(state.rate > 0 for _, state in self.states())

    def conductances(self, state: State, device: Device) -> tuple[float, float]:
        """Lowest and highest conductance of devices in a failure state, siemens."""
        section = self.of(state)
        nominal = nominal_conductance(section, state, device)
        if section.model == "normal":
            width = DEVIATIONS * section.deviation
            return max(nominal * (1 - width), 0.0), nominal * (1 + width)
        return nominal, nominal if section.upper is None else section.upper


def nominal_conductance(section: FailureState, state: State, device: Device) -> float:
    """Conductance of a failure state (mean of a normal one, lower end of a uniform one), siemens."""
    if section.conductance is not None:
        return section.conductance
    return {State.UNFORMED: 0.0, State.STUCK_HRS: device.g_min}.get(state, device.g_max)
