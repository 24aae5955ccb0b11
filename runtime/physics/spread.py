"""Programming spread: how far from its target a programmed device lands (``docs/physics.md``, Devices).

Conductances are in siemens throughout. Every draw takes its generator as an argument.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hwspec.device import MEASURED_RANGE
from hwspec.errors import SpecError, shown
from hwspec.units import format_quantity
from runtime.quantize import Float64

MICRO = 1e-6
DAY = 86400.0
"""Seconds of a day."""
_ROUNDING = 1e-9
"""Relative slack at the ends of a valid range: a target computed to lie there may miss it by rounding."""


@dataclass(frozen=True)
class SpreadModel:
    """The spread of programmed devices around their targets.

    Parameters
    ----------
    name
        What errors call the model.
    coefficients
        ``σ = Σ_k coefficients[k] (G / reference)^k``. Siemens for the law ``normal``; for ``lognormal``
        dimensionless, the standard deviation of ``ln G``.
    reference
        Conductance that the polynomial is written in, siemens.
    lowest, highest
        Targets, siemens, that the model is valid for.
    law
        ``normal``: ``G + σ z``. ``lognormal``: ``G e^(σ z)``, which keeps the median and not the mean: that grows by
        ``e^(σ²/2)`` (7.4 times at σ = 2) unless the result is clipped. z is standard normal.
    """

    name: str
    coefficients: tuple[float, ...]
    reference: float = 1.0
    lowest: float = 0.0
    highest: float = math.inf
    law: Literal["normal", "lognormal"] = "normal"

    def sigma(self, target: npt.ArrayLike) -> Float64:
        """Spread of devices programmed to `target` (siemens), in the unit of `coefficients`, and of its shape.

        Raises
        ------
        SpecError
            If a target is outside the valid range.
        """
        values = np.asarray(target, np.float64)
        self.check(values)
        return np.polynomial.polynomial.polyval(values / self.reference, self.coefficients) + np.zeros_like(values)

    def draw(self, target: npt.ArrayLike, generator: np.random.Generator) -> Float64:
        """Conductances of devices programmed once to `target` (siemens), drawn for each cell, not clipped."""
        values = np.asarray(target, np.float64)
        deviation = self.sigma(values) * generator.standard_normal(values.shape)
        return values + deviation if self.law == "normal" else values * np.exp(deviation)

    def check(self, target: npt.ArrayLike) -> None:
        """Raise `SpecError` unless every target (siemens) lies in the valid range of the model."""
        values = np.asarray(target, np.float64)
        low, high = self.lowest * (1 - _ROUNDING), self.highest * (1 + _ROUNDING)
        wrong = values[~((values >= low) & (values <= high) & np.isfinite(values))]
        if wrong.size:
            offending = float(wrong.flat[0])
            raise SpecError(
                f"spread model {self.name}",
                f"needs target conductances {self._range()}, not {_conductance(offending)}",
                hint="choose g_min and g_max within this range, or another spread model",
            )

    def _range(self) -> str:
        if math.isinf(self.highest):
            return f"of at least {_conductance(self.lowest)}"
        return f"from {_conductance(self.lowest)} to {_conductance(self.highest)}"


def _conductance(value: float) -> str:
    return format_quantity(float(f"{value:.6g}"), "siemens") if math.isfinite(value) else f"{value} siemens"


def _not_negative(subject: str, value: float, hint: str) -> None:
    if isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
        raise SpecError(subject, "must be finite and not negative", got=value, hint=hint)


def constant(sigma: float) -> SpreadModel:
    """The same spread `sigma` (siemens) at every conductance.

    Raises
    ------
    SpecError
        If it is negative or not finite.
    """
    _not_negative("constant spread", sigma, "give a standard deviation in siemens, 0 for none")
    return SpreadModel("constant", (sigma,))


def relative(share: float) -> SpreadModel:
    """A spread of `share` times the conductance.

    Raises
    ------
    SpecError
        If the share is negative or not finite.
    """
    _not_negative("relative spread", share, "give a share of the conductance, e.g. 0.15 for 15 %")
    return SpreadModel("relative", (0.0, share))


def lognormal(sigma: float) -> SpreadModel:
    """A lognormal spread, `sigma` the standard deviation of ``ln G``; the median of the devices is their target.

    It is not clipped unless `program_cells` is told to. Unclipped, the mean is ``e^(sigma²/2)`` times the target.

    Raises
    ------
    SpecError
        If `sigma` is negative, not finite or above 5 (a mean of 268 000 times the target).
    """
    _not_negative("lognormal spread", sigma, "give the standard deviation of ln G, e.g. 0.2")
    if sigma > 5:
        raise SpecError("lognormal spread", "must be at most 5", got=sigma, hint="it is that of ln G, not of G")
    return SpreadModel("lognormal", (sigma,), law="lognormal")


def _from_micro(*coefficients: float) -> tuple[float, ...]:
    return tuple(coefficient * MICRO for coefficient in coefficients)


_WAN_2022_FITS = (
    (1.0, (0.348, 16.03, -43.85, 45.39, -16.82)),
    (DAY, (0.701, 22.086, -50.773, 47.095, -16.458)),
    (2 * DAY, (0.782, 20.274, -43.507, 37.062, -11.934)),
)


def wan2022(seconds: float = 1.0) -> SpreadModel:
    """Spread of the RRAM of Wan et al. around its targets, `seconds` after programming; 0 to 40 µS.

    Fitted polynomials in ``G / 40 µS`` at 1 s, one day and two days. Between them coefficients, and so σ, are linear in
    ``ln t`` (our choice); before 1 s the spread is that at 1 s, which is the spread of programming.

    Parameters
    ----------
    seconds
        Time since programming, 0 to 172800 s.

    Raises
    ------
    SpecError
        If the time is outside this range.

    References
    ----------
    ``docs/physics.md``, Devices; Wan et al., Nature 608 (2022), as fitted in aihwkit.
    """
    times = [time for time, _ in _WAN_2022_FITS]
    if not 0 <= seconds <= times[-1]:
        raise SpecError(
            "spread model wan2022",
            f"needs a time from 0 s to {times[-1]:g} s, where its last fit is",
            got=seconds,
            hint="choose a time of at most two days, or another model",
        )
    logarithm = math.log(max(seconds, times[0]))
    fits = np.array([fit for _, fit in _WAN_2022_FITS])
    coefficients = [float(np.interp(logarithm, np.log(times), fit)) for fit in fits.T]
    return SpreadModel("wan2022", _from_micro(*coefficients), 40e-6, *MEASURED_RANGE["wan2022"])


MILO = SpreadModel("milo", _from_micro(4.782, -0.0091), MICRO, *MEASURED_RANGE["milo"])
"""``4.782 - 0.0091 G`` µS for 50 to 225 µS: HfO2 RRAM, Milo et al., IRPS 2021, figure 4, as fitted in CrossSim."""

PCM = SpreadModel("pcm", _from_micro(0.263, 1.965, -1.173), 25e-6, *MEASURED_RANGE["pcm"])
"""``0.263 + 1.965 x - 1.173 x²`` µS, ``x = G / 25 µS``: Nandakumar et al., ICECS 2019, as fitted in aihwkit."""

CMO_HFOX = {
    0.02: SpreadModel("cmo-hfox at 2 %", _from_micro(0.0112, 0.0113), MICRO, *MEASURED_RANGE["cmo_hfox"]),
    0.002: SpreadModel("cmo-hfox at 0.2 %", _from_micro(0.00081, 0.00107), MICRO, *MEASURED_RANGE["cmo_hfox"]),
}
"""Spread of CMO/HfOx devices by the acceptance range of their programming, a share of the target; 8 to 90 µS."""


def cmo_hfox(acceptance: float) -> SpreadModel:
    """Spread of CMO/HfOx devices accepted within `acceptance` times the target; 8 to 90 µS.

    ``0.0113 G + 0.0112`` µS at 2 %, ``0.00107 G + 0.00081`` µS at 0.2 %. Write-verify is part of the measurement: do
    not add another.

    Parameters
    ----------
    acceptance
        0.02 or 0.002: nothing else was measured.

    Raises
    ------
    SpecError
        If it is another number.

    References
    ----------
    ``docs/physics.md``, Devices; Falcone et al., as fitted in aihwkit.
    """
    if acceptance not in CMO_HFOX:
        known = " or ".join(str(value) for value in CMO_HFOX)
        raise SpecError("spread model cmo-hfox", f"needs an acceptance of {known}", got=acceptance, hint="0.02 is 2 %")
    return CMO_HFOX[acceptance]


@dataclass(frozen=True)
class WriteVerify:
    """Programming with reads in between: pulse until a device is within tolerance, or the budget is spent.

    A device is accepted when ``|G - target| <= tolerance + relative * target``.

    Parameters
    ----------
    budget
        Most pulses that a device gets.
    tolerance
        Siemens.
    relative
        Share of the target.

    Raises
    ------
    SpecError
        If the budget is below 1, a tolerance is negative or not finite, or both are 0.
    """

    budget: int
    tolerance: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what can never end."""
        if isinstance(self.budget, bool) or not isinstance(self.budget, int) or self.budget < 1:
            raise SpecError("write-verify budget", "must be a positive whole number of pulses", got=self.budget)
        hint = "a device is accepted within tolerance + relative * target"
        _not_negative("write-verify tolerance", self.tolerance, hint)
        _not_negative("write-verify relative tolerance", self.relative, hint)
        if self.tolerance == 0 and self.relative == 0:
            raise SpecError("write-verify", "must have a tolerance or a relative tolerance above 0", hint=hint)


@dataclass(frozen=True, eq=False)
class Programming:
    """What programming left in the cells of an array; every field has the shape of the targets.

    Attributes
    ----------
    conductance
        Siemens.
    pulses
        Pulses that each cell got.
    converged
        Cells within tolerance of their target; without write-verify nothing is checked, and all are.
    failed
        Cells whose programming failed.
    """

    conductance: Float64
    pulses: npt.NDArray[np.int32]
    converged: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_]


def program_cells(
    target: npt.ArrayLike,
    model: SpreadModel,
    generator: np.random.Generator,
    *,
    failure_probability: float = 0.0,
    failed_conductance: float = 0.0,
    verify: WriteVerify | None = None,
    clip: tuple[float, float] = (0.0, math.inf),
    pulses: np.random.Generator | None = None,
) -> Programming:
    """Program an array of cells.

    Each pulse draws the conductance of a cell anew from `model`. A cell whose programming failed stays at
    `failed_conductance` whatever it is pulsed with; it is not told apart, so that write-verify spends its budget on it.
    Verification reads without noise. A cell that runs out of pulses keeps what the last one left.

    Every pulse draws for the whole array, cells already accepted included: what a cell gets then depends neither on the
    targets nor on the fate of its neighbours, nor does its spread change with `failure_probability`. Use the generator
    for one call only: how far it advances depends on the pulses.

    Parameters
    ----------
    target
        Target conductances, any shape, siemens.
    model
        The spread.
    generator
        Source of the random numbers.
    failure_probability
        Chance of a cell to fail.
    failed_conductance
        Conductance of a failed cell (HRS), siemens.
    verify
        Tolerance and budget of write-verify; None gives one pulse and no check.
    clip
        Lowest and highest conductance, siemens, that a pulse can leave: what is drawn beyond them is put there. With a
        lower limit of 0, ``runtime.physics.noise.clipped_moments`` are the moments of a normal spread.
    pulses
        Source of what the pulses do, where it is not `generator`, from which failures are drawn first in any case.

    Raises
    ------
    SpecError
        If a target is outside the model's valid range, the probability is none, the conductance of failed cells is
        negative, or the limits are not in order.
    """
    values = np.asarray(target, np.float64)
    model.check(values)
    if not 0 <= failure_probability <= 1:
        raise SpecError("programming failure probability", "must be from 0 to 1", got=failure_probability)
    _not_negative("conductance of a failed cell", failed_conductance, "give siemens, 0 for an open cell")
    if not 0 <= clip[0] < clip[1]:
        raise SpecError("limits of programmed conductances", f"must be 0 <= low < high, not {shown(clip)}")
    failed = generator.random(values.shape) < failure_probability
    accepted = np.inf if verify is None else verify.tolerance + verify.relative * values
    conductance = np.empty_like(values)
    counts = np.zeros(values.shape, np.int32)
    waiting = np.ones(values.shape, np.bool_)
    for _ in range(1 if verify is None else verify.budget):
        drawn = np.where(failed, failed_conductance, np.clip(model.draw(values, pulses or generator), *clip))
        conductance = np.where(waiting, drawn, conductance)
        counts += waiting
        waiting = ~(np.abs(conductance - values) <= accepted)
        if not waiting.any():
            break
    return Programming(conductance, counts, ~waiting, failed)


def with_access_resistance(conductance: npt.ArrayLike, r_access: float) -> Float64:
    """Conductance of devices in series with their access transistors, siemens: ``1 / (1/G + r_access)``.

    Written as ``G / (1 + G r_access)``, which is exact for an access resistance of 0 and for open devices.

    Parameters
    ----------
    conductance
        Of the devices, siemens.
    r_access
        Ohms.

    Raises
    ------
    SpecError
        If the resistance is negative or not finite.
    """
    _not_negative("access resistance", r_access, "give ohms, 0 for none")
    values = np.asarray(conductance, np.float64)
    return values / (1.0 + values * r_access) if r_access else values
