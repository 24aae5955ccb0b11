"""The devices of one array, from what they are programmed to, to what they conduct at a given time.

In order: spread and write-verify, drift, loss of retention, temperature, slow traps, the means of clipped noise and
fast traps, access resistance (``docs/physics.md``, Devices). Failed devices take part from temperature on, devices
that are gated off conduct nothing. Siemens, seconds.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwspec.device import MEASURED_RANGE, Device, ReadNoise, Spread
from hwspec.failures import Failures, State
from hwspec.randomness import Purpose, array_generator
from runtime.physics.drift import ROOM, accelerated, draw_trajectory
from runtime.physics.noise import (
    advance_traps,
    clipped_moments,
    clipped_variance,
    cmo_hfox_read_sigma,
    draw_traps,
    never_clips,
    pcm_read_sigma,
    telegraph_conductance,
    telegraph_moments,
)
from runtime.physics.retention import lost_devices
from runtime.physics.spread import (
    MILO,
    PCM,
    Programming,
    SpreadModel,
    WriteVerify,
    cmo_hfox,
    constant,
    lognormal,
    program_cells,
    relative,
    wan2022,
    with_access_resistance,
)
from runtime.quantize import Float64

_NO_FAILURES = Failures()


@dataclass(frozen=True)
class Moment:
    """Which chip is programmed and read, and when.

    Attributes
    ----------
    chip_seed
        Of spread, programming failures, trajectories and lifetimes.
    seed
        Of programming pulses and traps.
    seconds
        Time since programming.
    """

    chip_seed: int
    seed: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Cells:
    """The devices of an array as reads see them; every array is ``(rows, cols)``.

    Attributes
    ----------
    conductance
        Mean over reads, access resistance included, siemens.
    variance
        From read to read, siemens²; None without noise.
    pulses
        That programming took.
    converged, failed
        Devices within tolerance of their target, and those whose programming failed.
    """

    conductance: Float64
    variance: Float64 | None
    pulses: npt.NDArray[np.int32]
    converged: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_]


def spread_model(spread: Spread) -> SpreadModel:
    """The model of programming spread that a spec names."""
    match spread.model:
        case "none":
            return constant(0.0)
        case "constant":
            return constant(spread.sigma)
        case "relative":
            return relative(spread.share)
        case "lognormal":
            return lognormal(spread.log_sigma)
        case "wan2022":
            return wan2022()
        case "milo":
            return MILO
        case "cmo_hfox":
            return cmo_hfox(spread.acceptance)
        case "pcm":
            return PCM


def read_sigma(noise: ReadNoise, conductance: Float64, target: Float64, seconds: float) -> Float64:
    """Standard deviation of each device's conductance from read to read, siemens."""
    match noise.model:
        case "none":
            return np.zeros_like(conductance)
        case "constant":
            return np.full_like(conductance, noise.sigma)
        case "proportional":
            return noise.share * conductance
        case "pcm":
            return pcm_read_sigma(conductance, seconds, target)
        case "cmo_hfox":
            return cmo_hfox_read_sigma(conductance, seconds)


def drift_seconds(device: Device, seconds: float) -> float:
    """Time that has passed for drift: it runs faster above 25 degrees Celsius, by Arrhenius' law (our choice)."""
    return accelerated(seconds, device.drift.activation_energy, device.temperature)


def device_cells(
    device: Device,
    target: Float64,
    used: npt.NDArray[np.bool_],
    unused: float,
    array: int,
    moment: Moment,
    *,
    stuck: Float64 | None = None,
    off: npt.NDArray[np.bool_] | None = None,
    failures: Failures = _NO_FAILURES,
) -> Cells:
    """The devices of one array.

    Every draw is made for the whole array, so that a device's numbers depend neither on the tiles that lie on it nor
    on the effects that are switched on.

    Parameters
    ----------
    device
        Of the spec.
    target
        Target conductances, ``(rows, cols)``, siemens; what is given for devices not used is not read.
    used
        Devices that a tile uses.
    unused
        Conductance of the others, siemens.
    array
        Number of the array on the chip.
    moment
        Which chip, and when.
    stuck
        Conductances of failed devices, siemens, ``(rows, cols)``; NaN of good ones. They conduct this whatever they
        were programmed to, whether a tile uses them or not; write-verify spends all of its pulses on them, unless they
        happen to lie within tolerance of their target. None is no failed device.
    off
        Devices that are gated off: they are not programmed and conduct nothing, without noise, failed or not.
        None is none.
    failures
        Of the spec: which devices lose their state in time. Those count as failed from then on; one that cannot be
        gated off in its new state conducts in spite of `off`.

    Raises
    ------
    SpecError
        If the time lies beyond what a drift model was fitted to.
    """
    gated = np.zeros(used.shape, np.bool_) if off is None else off
    target = np.where(used & ~gated, target, device.g_min)
    held = np.full(used.shape, np.nan) if stuck is None else stuck
    written = _with_stuck(device, _programmed(device, target, array, moment), target, held)
    conductance = written.conductance
    if device.drift.model != "none":
        generator = array_generator(moment.chip_seed, Purpose.DRIFT, array)
        trajectory = draw_trajectory(device.drift.model, target, conductance, generator)
        conductance = np.where(written.failed, conductance, trajectory.at(drift_seconds(device, moment.seconds)))
    if failures.retention.state is not None:
        lost, lost_conductance = lost_devices(
            failures, device, (used.shape[0], used.shape[1]), array, moment.chip_seed, moment.seconds
        )
        held = np.where(np.isnan(held) & lost, lost_conductance, held)
        gated = gated & (~lost | _isolatable(failures))
    failed = ~np.isnan(held)
    conductance = np.where(failed, held, conductance)
    if device.temperature_coefficient:
        conductance = conductance * (1 + device.temperature_coefficient * (device.temperature - ROOM))
    conductance, variance = _read(device, conductance, target, failed, array, moment)
    present = (used | failed) & ~gated
    conductance = np.where(present, conductance, np.where(gated, 0.0, unused))
    if variance is not None:
        variance = np.where(present, variance, 0.0)
        if device.r_access:  # a series resistance leaves 1 / (1 + G r)^2 of a small change of G
            variance = variance / (1 + conductance * device.r_access) ** 4
    return Cells(
        conductance=with_access_resistance(conductance, device.r_access),
        variance=variance,
        pulses=np.where(gated, 0, written.pulses).astype(np.int32),
        converged=written.converged | gated,
        failed=written.failed & ~gated,
    )


def _isolatable(failures: Failures) -> bool:
    """Whether devices that lost their state can be gated off."""
    state = failures.retention.state
    return state is None or failures.of(State[state.upper()]).isolatable


def _with_stuck(device: Device, written: Programming, target: Float64, stuck: Float64) -> Programming:
    """What programming leaves where some devices have failed: those stay as they are."""
    failed = ~np.isnan(stuck)
    if not failed.any():
        return written
    options = device.programming
    pulses, converged = written.pulses, written.converged
    if options.pulses > 1:
        near = np.abs(stuck - target) <= options.tolerance + options.relative_tolerance * target
        pulses = np.where(failed, np.where(near, 1, options.pulses), pulses).astype(np.int32)
        converged = np.where(failed, near, converged)
    else:
        converged = converged | failed
    return Programming(np.where(failed, stuck, written.conductance), pulses, converged, written.failed & ~failed)


def _programmed(device: Device, target: Float64, array: int, moment: Moment) -> Programming:
    options, spread = device.programming, device.spread
    if spread.model == "none" and options.failure_rate == 0:
        shape = target.shape
        return Programming(target, np.ones(shape, np.int32), np.ones(shape, np.bool_), np.zeros(shape, np.bool_))
    verify = None
    if options.pulses > 1:
        verify = WriteVerify(options.pulses, options.tolerance, options.relative_tolerance)
    return program_cells(
        target,
        spread_model(spread),
        array_generator(moment.chip_seed, Purpose.SPREAD, array),
        failure_probability=options.failure_rate,
        failed_conductance=device.g_min if options.failed_conductance is None else options.failed_conductance,
        verify=verify,
        clip=(0.0, math.inf) if spread.limits == "zero" else (device.g_min, device.g_max),
        pulses=None if verify is None else _of_chip(moment, Purpose.PROGRAMMING, array),
    )


def _read(
    device: Device,
    conductance: Float64,
    target: Float64,
    failed: npt.NDArray[np.bool_],
    array: int,
    moment: Moment,
) -> tuple[Float64, Float64 | None]:
    """Mean and variance over the reads. Failed devices are as noisy as good ones of their conductance.

    Above the range that a noise model was fitted to, theirs is that of its upper end (our choice).
    """
    telegraph, noise = device.telegraph, device.read_noise
    variance: Float64 | None = None
    sigma: Float64 | None = None
    if noise.model != "none":
        highest = MEASURED_RANGE.get(noise.model, (0.0, math.inf))[1]
        within = np.where(failed, np.minimum(conductance, highest), conductance)
        sigma = read_sigma(noise, within, np.where(failed, within, target), moment.seconds)
    if telegraph.amplitude:
        if telegraph.correlation_time > 0:
            generator = _of_chip(moment, Purpose.TELEGRAPH, array)
            occupied = draw_traps(conductance.shape, telegraph.occupancy, generator)
            occupied = advance_traps(
                occupied, moment.seconds, telegraph.correlation_time, telegraph.occupancy, generator
            )
            conductance = telegraph_conductance(conductance, telegraph.amplitude, occupied)
        else:
            conductance, variance = telegraph_moments(conductance, telegraph.amplitude, telegraph.occupancy)
    if sigma is not None:
        far = never_clips(conductance, sigma)
        gaussian = sigma**2 if far else clipped_variance(conductance, sigma)
        variance = gaussian if variance is None else variance + gaussian
        conductance = conductance if far else clipped_moments(conductance, sigma)[0]
    return conductance, variance


def _of_chip(moment: Moment, purpose: Purpose, array: int) -> np.random.Generator:
    """A generator of the simulation's seed that differs from chip to chip."""
    return array_generator(moment.seed, purpose, array, chip_seed=moment.chip_seed)
