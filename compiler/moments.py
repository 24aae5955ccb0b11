"""Mean and covariance of a layer's inputs, and how they weigh errors of its weights."""

from dataclasses import dataclass

import numpy as np

from compiler.mapping import LayerStatistics, TileGrid
from runtime.quantize import Float64

RIDGE = 1e-3
"""Share of the mean variance that is added to every input's: what calibration has not seen also counts."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Of inputs whose covariance is known, rows of one group.

    Attributes
    ----------
    rows
        Of the group's matrix.
    mean : (k,)
    covariance : (k, k)
    """

    rows: slice
    mean: Float64
    covariance: Float64

    @classmethod
    def of_group(cls, statistics: LayerStatistics, grid: TileGrid, group: int) -> "tuple[Moments, ...]":
        """Of all rows of a group together, where calibration kept that, else of each row block."""
        parts = (slice(0, grid.rows),) if known_whole(statistics, grid) else grid.row_blocks
        found = []
        for number, rows in enumerate(parts):
            size, start = rows.stop - rows.start, group * grid.rows
            covariance = statistics.covariance[group * len(parts) + number, :size, :size]
            mean = statistics.mean[start + rows.start : start + rows.stop]
            found.append(cls(rows, mean.astype(np.float64), covariance.astype(np.float64)))
        return tuple(found)

    def holds(self, rows: slice) -> bool:
        """Whether these rows of the group are among them."""
        return bool(self.rows.start <= rows.start and rows.stop <= self.rows.stop)

    def within(self, rows: slice) -> slice:
        """Where rows of the group lie among these."""
        return slice(rows.start - self.rows.start, rows.stop - self.rows.start)

    def weighting(self, *, centred: bool) -> Float64:
        """Matrix ``H`` of the error of a column, ``e' H e`` (``physics.md`` section 5).

        It is the covariance where a bias takes the mean up (centred), else ``E[x x']``.
        """
        matrix = self.covariance if centred else self.covariance + np.outer(self.mean, self.mean)
        ridge = RIDGE * float(np.trace(matrix)) / len(matrix)
        found: Float64 = np.ascontiguousarray(matrix + max(ridge, 1e-30) * np.eye(len(matrix)))
        return found


def moments_of(parts: tuple[Moments, ...], rows: slice) -> Moments:
    """The moments that hold these rows of a group."""
    return next(part for part in parts if part.holds(rows))


def known_whole(statistics: LayerStatistics, grid: TileGrid) -> bool:
    """Whether calibration kept the covariance of all rows of a group together, and not of each row block alone."""
    return len(statistics.covariance) == grid.groups
