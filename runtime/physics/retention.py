"""Devices that lose their state for good, and when (``docs/physics.md``, Devices). Seconds, siemens."""

import numpy as np
import numpy.typing as npt

from hwspec.device import Device
from hwspec.failures import Failures, State
from hwspec.fault_map import failed_conductance
from hwspec.randomness import Purpose, array_generator
from runtime.physics.drift import accelerated
from runtime.quantize import Float64


def lost_devices(
    failures: Failures, device: Device, shape: tuple[int, int], array: int, chip_seed: int, seconds: float
) -> tuple[npt.NDArray[np.bool_], Float64]:
    """Which devices of an array have lost their state some time after programming, and what those conduct.

    Lifetimes follow ``P(lifetime <= t) = 1 - exp(-(t / lifetime)^shape)`` (our choice), where t runs faster above 25
    degrees Celsius by Arrhenius' law. A device has one lifetime, and one conductance once it is lost: the lost of one
    time are among those of every later one.

    Parameters
    ----------
    failures, device
        Sections of the spec.
    shape
        Rows and columns of the array.
    array
        Its number on the chip.
    chip_seed
        Of the chip.
    seconds
        Time since programming.

    Returns
    -------
    lost : (rows, cols) bool
    conductance : (rows, cols)
        Of the lost devices, siemens; NaN of the others.
    """
    retention = failures.retention
    lost, conductance = np.zeros(shape, np.bool_), np.full(shape, np.nan)
    if retention.state is None:
        return lost, conductance
    generator = array_generator(chip_seed, Purpose.RETENTION, array)
    uniform, quantile = generator.random(shape), generator.random(shape)
    elapsed = accelerated(seconds, retention.activation_energy, device.temperature)
    with np.errstate(over="ignore"):  # infinity is the right limit
        hazard = np.float64(elapsed / retention.lifetime) ** retention.shape
    lost = uniform < -np.expm1(-hazard)
    states = np.full(int(lost.sum()), State[retention.state.upper()], np.uint8)
    conductance[lost] = failed_conductance(failures, device, states, quantile[lost])
    return lost, conductance
