"""Chips whose defects are those of weights: a share of all pairs is stuck at 0, or at plus or minus one."""

import numpy as np

from hwspec.chip import Chip
from hwspec.failures import State
from hwspec.fault_map import FaultMap
from hwspec.spec import HardwareSpec


def defective_chip(
    spec: HardwareSpec, arrays: int, seed: int, rate: float, *, ones: bool, deviation: float = 0.0
) -> Chip:
    """A chip with a share of weight defects, on pairs of two arrays.

    Parameters
    ----------
    spec
        The hardware.
    arrays
        Physical arrays, two a site.
    seed
        Of the defects, and of the chip.
    rate
        Share of the pairs.
    ones
        Whether a defect is +1 or -1 (evenly), in place of 0.
    deviation
        Standard deviation of a defect's weight from that (Gaussian, cut at three of them).
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0xDEF,)))
    array, device = spec.array, spec.device
    shape = (arrays // 2, array.rows, array.cols)
    failed = generator.random(shape) < rate
    normals = generator.standard_normal(shape) if deviation or ones else np.zeros(shape)
    weight = np.clip(normals, -3, 3) * deviation
    if ones:
        weight = weight + np.where(generator.random(shape) < 0.5, 1.0, -1.0)
    states = np.zeros((arrays, array.rows, array.cols), np.uint8)
    conductance = np.full(states.shape, device.g_min)
    for side in (0, 1):
        share = np.maximum(weight if side == 0 else -weight, 0.0)
        states[side::2] = np.where(failed, np.uint8(State.OVERFORMED if ones else State.UNFORMED), np.uint8(State.OK))
        conductance[side::2] = device.g_min + share * device.span
    faults = FaultMap(states, conductance[states != State.OK])
    return Chip(rows=array.rows, cols=array.cols, arrays=arrays, seed=seed, faults=faults)
