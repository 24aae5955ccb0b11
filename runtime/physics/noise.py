"""Read noise by moments: means and variances of devices from read to read (``docs/physics.md``, Read noise).

The variance of a column is one more matrix product with them (`runtime.channels`), behind wires with the factor of
`noise_transfer`. Siemens, seconds.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from hwspec.errors import SpecError
from runtime.physics.drift import PCM_T0
from runtime.physics.spread import MICRO, PCM
from runtime.quantize import Float64

_PCM_T_READ = 250e-9
_CMO_T_READ = 1e-6
_FAR = 40.0
"""Standard deviations from 0 beyond which clipping changes nothing that a float64 could hold."""


def _cells(subject: str, sigma: npt.ArrayLike) -> Float64:
    values = np.asarray(sigma, np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        worst = float(values[~(np.isfinite(values) & (values >= 0))].flat[0])
        raise SpecError(subject, "must be finite and not negative", got=worst, hint="give siemens")
    return values


def _share(subject: str, value: float, hint: str) -> None:
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise SpecError(subject, "must be from 0 to 1", got=value, hint=hint)


# Conductances that cannot become negative.


def clipped_moments(conductance: npt.ArrayLike, sigma: npt.ArrayLike) -> tuple[Float64, Float64]:
    """Mean (siemens) and second moment (siemens²) of ``max(G + σ z, 0)``, z standard normal.

    With ``α = G / σ``: mean ``G Φ(α) + σ φ(α)``, second moment ``(G² + σ²) Φ(α) + G σ φ(α)``. The mean is above G: the
    matrix that the noise is added to must hold it. For the variance use `clipped_variance`, which does not subtract
    almost equal numbers.

    Parameters
    ----------
    conductance, sigma
        Siemens, shapes that broadcast; ``σ = 0`` is exact.

    Raises
    ------
    SpecError
        If either is negative or not finite.
    """
    G, spread, cdf, density = _clipped(conductance, sigma)
    return G * cdf + spread * density, (G**2 + spread**2) * cdf + G * spread * density


def clipped_variance(conductance: npt.ArrayLike, sigma: npt.ArrayLike) -> Float64:
    """Variance (siemens²) of ``max(G + σ z, 0)``: ``σ² (Φ(α) - d (α + d))`` with ``d = φ(α) - α Φ(-α)``, α = G / σ.

    Derived from `clipped_moments`; σd is what clipping adds to the mean. Parameters and errors are the same.
    """
    G, spread, cdf, density = _clipped(conductance, sigma)
    alpha = np.minimum(_ratio(G, spread), _FAR)
    added = np.maximum(density - alpha * ndtr(-alpha), 0.0)
    variance: Float64 = spread**2 * (cdf - added * (alpha + added))
    return variance


def never_clips(conductance: Float64, sigma: Float64) -> bool:
    """Whether no device is ever clipped, to the last bit: mean G and variance σ² are exact then."""
    return bool((conductance >= _FAR * sigma).all())


def _clipped(conductance: npt.ArrayLike, sigma: npt.ArrayLike) -> tuple[Float64, Float64, Float64, Float64]:
    G, spread = np.broadcast_arrays(_cells("conductance", conductance), _cells("read noise", sigma))
    alpha = _ratio(G, spread)
    return G, spread, ndtr(alpha), np.exp(-0.5 * np.minimum(alpha, _FAR) ** 2) / math.sqrt(2 * math.pi)


def _ratio(conductance: Float64, sigma: Float64) -> Float64:
    with np.errstate(over="ignore"):  # infinity is the right limit
        ratio: Float64 = np.divide(conductance, sigma, out=np.full(conductance.shape, np.inf), where=sigma > 0)
    return ratio


# Noise of the named devices.


def pcm_read_sigma(conductance: npt.ArrayLike, seconds: float, programmed: npt.ArrayLike | None = None) -> Float64:
    """1/f read noise of phase-change devices, siemens, `seconds` after programming.

    ``Q G sqrt(ln((t + t0 + tr) / (2 tr)))``, ``Q = min(0.0088 / max(x^0.65, 0.001), 0.2)``, ``x = G / 25 µS``,
    ``t0 = 20 s``, ``tr = 250 ns``.

    Parameters
    ----------
    conductance
        At the time of the read, siemens.
    seconds
        Time since programming.
    programmed
        Conductance that gives x; None takes `conductance`.

    References
    ----------
    ``docs/physics.md``, Read noise; Nandakumar et al., ICECS 2019, as fitted in aihwkit, where x is of the programmed
    device.
    """
    G = _cells("conductance", conductance)
    x = (G if programmed is None else _cells("conductance", programmed)) / PCM.reference
    quality = np.minimum(0.0088 / np.maximum(x**0.65, 0.001), 0.2)
    _check_time(seconds)
    return quality * G * math.sqrt(math.log((seconds + PCM_T0 + _PCM_T_READ) / (2 * _PCM_T_READ)))


def cmo_hfox_read_sigma(conductance: npt.ArrayLike, seconds: float) -> Float64:
    """Read noise of CMO/HfOx devices, siemens, `seconds` after programming.

    ``0.0277 log10(G) sqrt(ln((t + 1 µs) / 2 µs))`` in µS, G in µS. Fitted to 9 to 88.2 µS; the formula is negative
    below 1 µS, and its root is imaginary before 1 µs: there the noise is 0 (our choice).

    References
    ----------
    ``docs/physics.md``, Read noise; Lombardo et al., DRC 2024, as fitted in aihwkit.
    """
    G = _cells("conductance", conductance)
    _check_time(seconds)
    growth = math.sqrt(max(math.log((seconds + _CMO_T_READ) / (2 * _CMO_T_READ)), 0.0))
    return 0.0277 * MICRO * growth * np.log10(np.maximum(G / MICRO, 1.0))


def _check_time(seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise SpecError("time since programming", "must be finite and not negative", got=seconds, hint="give seconds")


# Random telegraph noise: a trap that is empty or holds a charge.


def telegraph_moments(conductance: npt.ArrayLike, amplitude: float, occupancy: float) -> tuple[Float64, Float64]:
    """Mean (siemens) and variance (siemens²) of devices with a two-state trap, over the states of the trap.

    A device has its conductance G while the trap is empty and ``G (1 - amplitude)`` while it is occupied: mean
    ``G (1 - a p)``, variance ``G² a² p (1 - p)``. As with clipping, the matrix must hold the mean.

    Parameters
    ----------
    conductance
        With the trap empty, siemens.
    amplitude
        Share a of the conductance that an occupied trap takes.
    occupancy
        Share p of the time that the trap is occupied.

    Raises
    ------
    SpecError
        If amplitude or occupancy is not from 0 to 1.
    """
    _check_telegraph(amplitude, occupancy)
    G = _cells("conductance", conductance)
    return G * (1 - amplitude * occupancy), G**2 * (amplitude**2 * occupancy * (1 - occupancy))


def draw_traps(shape: tuple[int, ...], occupancy: float, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which traps are occupied, one for each cell: the state of slow traps, which hold it over many reads."""
    _check_telegraph(0.0, occupancy)
    return generator.random(shape) < occupancy


def advance_traps(
    occupied: npt.NDArray[np.bool_],
    elapsed: float,
    correlation_time: float,
    occupancy: float,
    generator: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Which traps are occupied `elapsed` seconds later.

    A two-state Markov process: the chance to be occupied is ``p + (s - p) e^(-elapsed / correlation_time)`` from a
    state s of 1 or 0, so that the share of occupied traps stays p and the correlation decays exponentially (derived).

    Raises
    ------
    SpecError
        If the time is negative, the correlation time not positive, or the occupancy not from 0 to 1.
    """
    _check_telegraph(0.0, occupancy)
    _check_time(elapsed)
    if not correlation_time > 0:
        raise SpecError("correlation time of telegraph noise", "must be positive", got=correlation_time)
    chance = occupancy + (occupied - occupancy) * math.exp(-elapsed / correlation_time)
    return generator.random(occupied.shape) < chance


def telegraph_conductance(conductance: npt.ArrayLike, amplitude: float, occupied: npt.NDArray[np.bool_]) -> Float64:
    """Conductance of devices by the state of their traps, siemens: ``G (1 - amplitude)`` where occupied, else G."""
    _check_telegraph(amplitude, 0.0)
    return _cells("conductance", conductance) * np.where(occupied, 1.0 - amplitude, 1.0)


def _check_telegraph(amplitude: float, occupancy: float) -> None:
    _share("amplitude of telegraph noise", amplitude, "it is a share of the conductance")
    _share("occupancy of telegraph noise", occupancy, "it is a share of the time")
