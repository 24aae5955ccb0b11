"""How a pair behind wires answers to its targets, and what its devices can be set to."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError

Float64 = npt.NDArray[np.float64]
_DEAD = 1e-3
"""Attenuation below which no target helps: a device behind an open line."""


@dataclass(frozen=True, eq=False)
class LinearPairs:
    """How the effective differences answer to targets near those last marched: ``offset + sp * plus - sm * minus``."""

    slope_plus: Float64
    slope_minus: Float64
    offset: Float64

    def difference(self, plus: Float64 | float, minus: Float64 | float) -> Float64:
        """Effective differences at these targets, siemens."""
        return self.offset + self.slope_plus * plus - self.slope_minus * minus

    def row(self, i: int) -> "LinearPairs":
        """The same of one word line."""
        return LinearPairs(self.slope_plus[i], self.slope_minus[i], self.offset[i])


@dataclass(frozen=True, eq=False)
class DeviceRange:
    """What a device can be set to: all of [low, high], or the levels."""

    low: float
    high: float
    levels: Float64 | None
    between: Float64 | None

    def nearest(self, siemens: Float64) -> Float64:
        """The conductances closest to these that a device can be set to."""
        if self.levels is None or self.between is None:
            return siemens.clip(self.low, self.high)
        found: Float64 = self.levels[np.searchsorted(self.between, siemens)]
        return found

    def pair(self, wanted: Float64, model: LinearPairs, base: Float64) -> tuple[Float64, Float64]:
        """Targets whose difference comes nearest to the one wanted, with one device of each pair at its base."""
        above = wanted - model.difference(base, base)
        up = above >= 0
        slope = np.where(up, model.slope_plus, model.slope_minus)
        high = self.nearest(base + np.abs(above) / np.maximum(slope, _DEAD))
        high = np.where(slope < _DEAD, base, high)
        return np.where(up, high, base), np.where(up, base, high)


def device_range(g_min: float, g_max: float, levels: npt.ArrayLike | None) -> DeviceRange:
    """What a device can be set to: any of [g_min, g_max], or levels, siemens; DataError where they do not rise."""
    if levels is None:
        return DeviceRange(g_min, g_max, None, None)
    table = np.asarray(levels, dtype=np.float64)
    ascending = table.ndim == 1 and len(table) > 1 and np.all(np.diff(table) > 0) and np.isfinite(table[-1])
    if not ascending or table[0] < 0:
        raise DataError("levels", "must be two or more conductances in siemens, ascending", got=levels)
    return DeviceRange(float(table[0]), float(table[-1]), table, (table[1:] + table[:-1]) / 2)
