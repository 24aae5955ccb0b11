"""Random number generators keyed by seed, purpose and array, so that no draw depends on another one's order."""

from enum import IntEnum

import numpy as np

from hwspec.errors import DataError

_LARGEST_SEED = (1 << 128) - 1
_LARGEST_ARRAY = (1 << 32) - 1


class Purpose(IntEnum):
    """What random numbers are drawn for. The values are part of every result: never change or reuse one.

    The first four belong to the chip and are keyed by its seed, the others to `simulate` and its seed.
    """

    STATES = 1
    """Failure states of the devices."""
    SPREAD = 2
    """Programming spread and programming failures."""
    COLUMN_OFFSETS = 3
    """Gain errors and offsets of readout and converters."""
    DRIFT = 4
    """Drift and relaxation trajectories."""
    PROGRAMMING = 5
    """Pulses of write-verify."""
    READ_NOISE = 6
    """Noise of each read."""
    TELEGRAPH = 7
    """States of the traps behind random telegraph noise."""
    TRIM = 8
    """Noise of the reads that the controller's trim is measured with."""
    RETENTION = 9
    """Lifetimes of devices that lose their state."""
    MAP_ERRORS = 10
    """Errors of the test that a fault map stems from."""


def array_generator(seed: int, purpose: Purpose, array: int, *, chip_seed: int | None = None) -> np.random.Generator:
    """A generator for one purpose on one array, independent of every other one.

    What it draws depends on nothing but the arguments: neither on how many arrays there are, nor on the order in
    which they are visited. Draw whole arrays from it, ``(rows, cols)`` in physical order, and a cell's number does not
    depend on the tiles that lie there either.

    The purpose and the array go into the spawn key and not into the entropy, because ``SeedSequence`` pads short
    entropies with zeros and cuts long ones into words: ``[s, 2]`` and ``[s, 2, 0]`` are the same seed there, and so
    are ``[1 + 7 * 2**32, 2]`` and ``[1, 7, 2]``.

    Parameters
    ----------
    seed
        Seed of the chip or of the simulation, from 0 to 2^128 - 1.
    purpose
        What is drawn.
    array
        Index of the physical array, from 0 to 2^32 - 1.
    chip_seed
        Of the chip, where `seed` is that of the simulation and its draws differ from one chip to the next.

    Raises
    ------
    DataError
        If the seed or the array is no whole number in its range.
    """
    checked = [("seed", seed, _LARGEST_SEED), ("array", array, _LARGEST_ARRAY)]
    if chip_seed is not None:
        checked.append(("chip seed", chip_seed, _LARGEST_SEED))
    for subject, value, largest in checked:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise DataError(subject, "must be a whole number", got=value)
        if not 0 <= value <= largest:
            raise DataError(subject, f"must be from 0 to 2^{largest.bit_length()} - 1", got=value)
    key = [int(purpose), int(array)]
    if chip_seed is not None:
        key += [int(chip_seed) >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)]
    sequence = np.random.SeedSequence(int(seed), spawn_key=tuple(key))
    return np.random.Generator(np.random.PCG64(sequence))
