"""Where the devices of a tile lie on physical arrays (`array.pairing` of the spec)."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from hwspec.array import Array

Side = Literal["plus", "minus"]
Lines = npt.NDArray[np.integer]
Place = tuple[int, Lines, Lines]
"""Number of an array, its word lines ``(rows,)`` and its bit lines ``(cols,)``: index matrices with ``np.ix_``."""


def device_places(array_number: int, word_lines: Lines, bit_lines: Lines, array: Array) -> dict[Side, Place]:
    """Where the devices of each side of a tile's pairs lie; a single device against a reference has no minus side.

    Parameters
    ----------
    array_number
        Of the site's first array.
    word_lines, bit_lines
        Rows and columns of weights on the site that the tile lies on, ``(rows,)`` and ``(cols,)``.
    array
        Of the spec.
    """
    rows, cols = np.asarray(word_lines, np.intp), np.asarray(bit_lines, np.intp)
    match array.pairing:
        case "two_arrays":
            return {"plus": (array_number, rows, cols), "minus": (array_number + 1, rows, cols)}
        case "neighbouring_columns":
            return {"plus": (array_number, rows, 2 * cols), "minus": (array_number, rows, 2 * cols + 1)}
        case "neighbouring_rows":
            return {"plus": (array_number, 2 * rows, cols), "minus": (array_number, 2 * rows + 1, cols)}
        case "reference":
            return {"plus": (array_number, rows, cols)}


def lines_of(places: dict[Side, Place], array: Array, number: int) -> tuple[npt.NDArray[np.bool_], ...]:
    """Which word lines a tile drives, and which bit lines it reads, on the array of this number."""
    rows, cols = np.zeros(array.rows, bool), np.zeros(array.cols, bool)
    for at, of_rows, of_cols in places.values():
        if at == number:
            rows[of_rows] = True
            cols[of_cols] = True
    return rows, cols


def driven_rows(places: dict[Side, Place], number: int, array: Array) -> tuple[tuple[Lines, int], ...]:
    """Rows of the array of this number that take a tile's inputs, and the sign that they take them with."""
    return tuple(
        (rows, -1 if side == "minus" and array.pairing == "neighbouring_rows" else 1)
        for side, (at, rows, _) in places.items()
        if at == number and (side == "plus" or array.pairing != "neighbouring_columns")
    )
