"""Drift and relaxation: where the conductances of programmed devices go with time (``docs/physics.md``, Devices).

The random variables of a device are drawn once; from then on its conductance is a function of time. Siemens, seconds.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from hwspec.errors import SpecError
from runtime.physics.spread import MICRO, PCM, wan2022
from runtime.quantize import Float64

_BOLTZMANN = 8.617333262e-5
"""Electronvolts a kelvin."""
_ZERO_CELSIUS = 273.15
ROOM = 25.0
"""Degrees Celsius at which time runs as it does."""
DriftModel = Literal["none", "pcm", "cmo_hfox", "wan2022"]

PCM_T0 = 20.0
"""Seconds between programming and the first read that drift is counted from."""
_SMALLEST_X = 1e-7
_CMO_LIMITS = (9e-6, 88.2e-6)


def accelerated(seconds: float, activation_energy: float, temperature: float) -> float:
    """Time that has passed for what heat drives: it runs faster above 25 degrees Celsius, by Arrhenius' law.

    Parameters
    ----------
    seconds
        On the clock.
    activation_energy
        Electronvolts.
    temperature
        Degrees Celsius.
    """
    kelvin = max(temperature + _ZERO_CELSIUS, 1.0)
    exponent = activation_energy / _BOLTZMANN * (1 / (ROOM + _ZERO_CELSIUS) - 1 / kelvin)
    return seconds * math.exp(min(max(exponent, -700.0), 700.0))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The conductances of an array's devices over time; this one stays where it is, the others derive from it.

    Attributes
    ----------
    programmed
        Conductances when programming ends, siemens, any shape.
    """

    programmed: Float64

    def at(self, seconds: float) -> Float64:
        """Conductances `seconds` after programming, siemens; continuous in time.

        Raises
        ------
        SpecError
            If the time is negative, not finite, or beyond what the model was fitted to.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise SpecError(
                "time since programming", "must be finite and not negative", got=seconds, hint="give seconds"
            )
        return self._at(seconds)

    def _at(self, seconds: float) -> Float64:
        del seconds
        return self.programmed.copy()


@dataclass(frozen=True, eq=False)
class PcmDrift(Trajectory):
    """Drift of phase-change memory: ``G(t) = G ((t + t0) / t0)^-ν``, ``t0 = 20 s``.

    Attributes
    ----------
    nu
        Drift exponents of the devices.
    """

    nu: Float64

    def _at(self, seconds: float) -> Float64:
        result: Float64 = self.programmed * ((seconds + PCM_T0) / PCM_T0) ** -self.nu
        return result


@dataclass(frozen=True, eq=False)
class CmoHfOxRelaxation(Trajectory):
    """Relaxation of CMO/HfOx devices, the same at every conductance.

    From 1 s on ``G(t) = G - 0.089 ln t + (0.042 ln t + 0.412) z`` in µS, t in seconds. Before, where nothing is
    fitted, the ``0.412 z`` grow in proportion to t, so that a trajectory starts from what was programmed (our choice).
    Conductances are clamped to 9 to 88.2 µS at any time, 0 s included.

    Attributes
    ----------
    z
        Standard normal, one number a device.
    """

    z: Float64

    def _at(self, seconds: float) -> Float64:
        logarithm = math.log(max(seconds, 1.0))
        mean = -0.089 * logarithm
        sigma = 0.042 * logarithm + 0.412 * min(seconds, 1.0)
        return np.clip(self.programmed + (mean + sigma * self.z) * MICRO, *_CMO_LIMITS)


@dataclass(frozen=True, eq=False)
class Wan2022Relaxation(Trajectory):
    """Relaxation of the RRAM of Wan et al.: its spread around the target grows, from 1 s to two days.

    The fits give the spread σ(t) around the target that all devices have at a time. A device keeps what programming
    left, and adds ``sqrt(σ(t)² - σ(1 s)²) z``: then devices programmed with the spread of 1 s have that of the fit at
    any time, and devices programmed better keep their lead (our choice). Before 1 s nothing moves. Conductances are
    clipped at 0.

    Attributes
    ----------
    target
        What the devices were programmed to, siemens.
    z
        Standard normal, one number a device.
    """

    target: Float64
    z: Float64

    def _at(self, seconds: float) -> Float64:
        first, now = wan2022().sigma(self.target), wan2022(seconds).sigma(self.target)
        added = np.sqrt(np.maximum(now**2 - first**2, 0.0))
        return np.maximum(self.programmed + added * self.z, 0.0)


def pcm_drift_exponents(target: npt.ArrayLike) -> tuple[Float64, Float64]:
    """μ and σ of the drift exponents ``ν = |μ + σ z|`` of phase-change devices programmed to `target` (siemens).

    ``μ = clip(-0.0155 ln x + 0.0244, 0.049, 0.1)``, ``σ = clip(-0.0125 ln x - 0.0059, 0.008, 0.045)``,
    ``x = target / 25 µS``; at 0 S both have their upper limit.

    References
    ----------
    ``docs/physics.md``, Devices; Nandakumar et al., ICECS 2019, as fitted in aihwkit.
    """
    logarithm = np.log(np.maximum(np.asarray(target, np.float64) / PCM.reference, _SMALLEST_X))
    return np.clip(-0.0155 * logarithm + 0.0244, 0.049, 0.1), np.clip(-0.0125 * logarithm - 0.0059, 0.008, 0.045)


def draw_trajectory(
    model: DriftModel, target: npt.ArrayLike, programmed: npt.ArrayLike, generator: np.random.Generator
) -> Trajectory:
    """The trajectories of an array's devices.

    Every model but ``none`` draws one standard normal number for each cell, whatever its target. Failed devices do not
    drift: put their conductances back into what `Trajectory.at` gives.

    Parameters
    ----------
    model
        ``none``, ``pcm``, ``cmo_hfox`` or ``wan2022``.
    target
        Target conductances, siemens, any shape.
    programmed
        Conductances that programming left, siemens, of the same shape.
    generator
        Source of the random numbers; the chip's own, so that a device has one trajectory.

    Raises
    ------
    SpecError
        If there is no such model, or a target is outside its valid range.
    """
    aims, start = np.array(target, np.float64), np.array(programmed, np.float64)
    if model == "none":
        return Trajectory(start)
    z = generator.standard_normal(start.shape)
    if model == "pcm":
        mean, sigma = pcm_drift_exponents(aims)
        return PcmDrift(start, np.abs(mean + sigma * z))
    if model == "cmo_hfox":
        return CmoHfOxRelaxation(start, z)
    if model == "wan2022":
        wan2022().check(aims)
        return Wan2022Relaxation(start, aims, z)
    raise SpecError("drift model", f"must be one of {', '.join(get_args(DriftModel))}", got=model)
