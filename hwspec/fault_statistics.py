"""How many devices and pairs of a chip have failed."""

from dataclasses import dataclass

import numpy as np

from hwspec.array import Pairing
from hwspec.failures import State
from hwspec.fault_map import FaultMap, partners

_WORST = 5


@dataclass(frozen=True)
class FaultStatistics:
    """Failed devices and pairs of a chip.

    Parameters
    ----------
    devices, failed
        All of them, and those that have failed.
    counts
        Failed devices by the name of their state.
    pairs, failed_pairs
        Pairs of devices, and those with a failed one; None where the pairing is not known. A single device against a
        reference counts as a pair. A last array without its partner holds none.
    worst
        Arrays with the most failed devices, worst first: index and share of its devices.
    """

    devices: int
    failed: int
    counts: dict[str, int]
    pairs: int | None
    failed_pairs: int | None
    worst: tuple[tuple[int, float], ...]

    @property
    def failed_share(self) -> float:
        """Share of the devices that have failed."""
        return self.failed / self.devices

    @property
    def shares(self) -> dict[str, float]:
        """Share of the devices in each failure state."""
        return {name: count / self.devices for name, count in self.counts.items()}

    @property
    def failed_pair_share(self) -> float | None:
        """Share of the pairs that hold a failed device; None where there are none or the pairing is not known."""
        return self.failed_pairs / self.pairs if self.pairs and self.failed_pairs is not None else None


def count_states(faults: FaultMap, pairing: Pairing | None = None) -> FaultStatistics:
    """Count the failed devices of a map, and the pairs that hold one.

    Parameters
    ----------
    faults
        The map.
    pairing
        Where the two devices of a pair lie; None counts devices only.
    """
    states = faults.states
    counts = sum((np.bincount(one.ravel(), minlength=len(State)) for one in states), np.zeros(len(State), np.int64))
    of_array = np.array([np.count_nonzero(one) for one in states]) / states[0].size
    order = np.argsort(-of_array, kind="stable")[:_WORST]
    pairs = failed_pairs = None
    if pairing is not None:
        whole = states[: len(states) // 2 * 2] if pairing == "two_arrays" else states
        hit = (whole != State.OK) | (partners(whole, pairing) != State.OK)
        devices = 1 if pairing == "reference" else 2
        pairs, failed_pairs = whole.size // devices, int(np.count_nonzero(hit)) // devices
    return FaultStatistics(
        devices=states.size,
        failed=faults.failed,
        counts={state.name.lower(): int(counts[state]) for state in State if state != State.OK},
        pairs=pairs,
        failed_pairs=failed_pairs,
        worst=tuple((int(number), float(of_array[number])) for number in order if of_array[number] > 0),
    )
