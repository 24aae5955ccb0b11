"""How far both devices of a pair are raised together where only the rates of failures are known.

A failed device changes a pair's weight by how far it lies from its target. Raising both devices leaves the weight, and
brings them closer to where devices fail: with many shorted devices pairs do best near g_max, and zeros there absorb a
short as they absorb an open device at g_min. Spread and read noise, which grow with the conductance, hold against it.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from compiler.mapping import Targets
from hwspec.failures import State
from hwspec.spec import HardwareSpec
from runtime.physics.cells import read_sigma, spread_model
from runtime.quantize import Float64, level_conductances

_CONTINUOUS = 65
"""Steps that the range of continuous devices is searched in."""


@dataclass(frozen=True, eq=False)
class CommonMode:
    """The rise that each weight takes.

    Attributes
    ----------
    rise : (levels,)
        Levels that both devices of a pair are raised by, by their difference in levels (of `_CONTINUOUS` steps, where
        levels are continuous).
    spec
        Of the devices.
    """

    rise: Float64
    spec: HardwareSpec

    @classmethod
    def of(cls, spec: HardwareSpec) -> "CommonMode | None":
        """The best rises for a spec's failures; None where there are none, or no pairs that they touch one by one.

        The expected squared error of a pair is the sum of its devices': ``f(a) = sum_x p_x (s_x - a)^2 + variance(a)``
        for failure states x of rate p and mean share s.
        """
        failures, device = spec.failures, spec.device
        rates = failure_rates(spec)
        if not rates or spec.array.pairing == "reference" or failures.failed_pair == "zero":
            return None
        table = level_conductances(device)
        grid = np.linspace(device.g_min, device.g_max, _CONTINUOUS) if table is None else table
        share = (grid - device.g_min) / device.span
        cost = (_sigma(spec, grid) / device.span) ** 2
        for state, rate in rates.items():
            low, high = failures.conductances(state, device)
            failed = ((low + high) / 2 - device.g_min) / device.span
            cost = cost + rate * (failed - share) ** 2
        rise = np.zeros(len(grid))
        listed = isinstance(device.levels, tuple)  # only equal levels stay a difference apart when both rise
        for difference in range(1 if listed else len(grid)):
            rise[difference] = np.argmin(cost[: len(grid) - difference] + cost[difference:])
        return cls(rise, spec) if rise.any() else None

    def apply(self, targets: Targets) -> Targets:
        """The targets of a tile, every pair raised."""
        device = self.spec.device
        if device.levels is not None:
            plus, minus = targets.plus.astype(np.int64), targets.minus.astype(np.int64)
            rise = self.rise[np.abs(plus - minus)].astype(np.int64)
            dtype = targets.plus.dtype
            return replace(targets, plus=(plus + rise).astype(dtype), minus=(minus + rise).astype(dtype))
        step = device.span / (_CONTINUOUS - 1)
        difference = np.abs(targets.plus - targets.minus)
        found = self.rise[np.rint(difference / step).astype(np.int64)] * step
        rise = np.minimum(found, device.g_max - np.maximum(targets.plus, targets.minus))
        # Sums may round to above g_max.
        plus, minus = (np.minimum(side + rise, device.g_max) for side in (targets.plus, targets.minus))
        return replace(targets, plus=plus, minus=minus)


def failure_rates(spec: HardwareSpec) -> dict[State, float]:
    """Expected share of devices in each failure state when a chip is new; lines and clusters counted."""
    failures, array = spec.failures, spec.array
    found = {state: section.rate for state, section in failures.states()}
    lines = failures.lines
    found[State.UNFORMED] += lines.word_failed + lines.bit_failed
    found[State.OVERFORMED] += lines.word_shorted + lines.bit_shorted
    area = math.pi * failures.clusters.radius**2 / (array.rows * array.cols)
    found[State[failures.clusters.state.upper()]] += failures.clusters.rate * min(area, 1.0)
    return {state: min(rate, 1.0) for state, rate in found.items() if rate > 0}


def _sigma(spec: HardwareSpec, conductance: Float64) -> Float64:
    """Standard deviation of devices by spread and one read, siemens."""
    device = spec.device
    model = spread_model(device.spread)
    spread = model.sigma(conductance) * (conductance if model.law == "lognormal" else 1.0)
    found: Float64 = np.hypot(spread, read_sigma(device.read_noise, conductance, conductance, 0.0))
    return found
