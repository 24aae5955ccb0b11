"""Where the devices of a tile lie on physical arrays (`array.pairing` of the spec)."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from hwspec.array import Array
from runtime.tables import Tile

Side = Literal["plus", "minus"]
Place = tuple[int, slice, slice]
"""Number of an array, its rows and its columns."""


def device_places(tile: Tile, array: Array) -> dict[Side, Place]:
    """Where the devices of each side of a tile's pairs lie; a single device against a reference has no minus side."""
    rows, cols = slice(tile.row, tile.row + tile.rows), slice(tile.col, tile.col + tile.cols)
    match array.pairing:
        case "two_arrays":
            return {"plus": (tile.array, rows, cols), "minus": (tile.array + 1, rows, cols)}
        case "neighbouring_columns":
            return {
                "plus": (tile.array, rows, slice(2 * cols.start, 2 * cols.stop, 2)),
                "minus": (tile.array, rows, slice(2 * cols.start + 1, 2 * cols.stop, 2)),
            }
        case "neighbouring_rows":
            return {
                "plus": (tile.array, slice(2 * rows.start, 2 * rows.stop, 2), cols),
                "minus": (tile.array, slice(2 * rows.start + 1, 2 * rows.stop, 2), cols),
            }
        case "reference":
            return {"plus": (tile.array, rows, cols)}


def lines_of(places: dict[Side, Place], array: Array, number: int) -> tuple[npt.NDArray[np.bool_], ...]:
    """Which word lines a tile drives, and which bit lines it reads, on the array of this number."""
    rows, cols = np.zeros(array.rows, bool), np.zeros(array.cols, bool)
    for at, of_rows, of_cols in places.values():
        if at == number:
            rows[of_rows] = True
            cols[of_cols] = True
    return rows, cols


def driven_rows(places: dict[Side, Place], number: int, array: Array) -> tuple[tuple[slice, int], ...]:
    """Rows of the array of this number that take a tile's inputs, and the sign that they take them with."""
    return tuple(
        (rows, -1 if side == "minus" and array.pairing == "neighbouring_rows" else 1)
        for side, (at, rows, _) in places.items()
        if at == number and (side == "plus" or array.pairing != "neighbouring_columns")
    )
