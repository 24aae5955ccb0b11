"""Measured maps as text: a table of devices, or the matrix of one array's conductances."""

import csv
import difflib
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hwspec.errors import ChipError
from hwspec.failures import State
from hwspec.units import parse_quantity

MAX_CSV_BYTES = 1 << 28
"""The most that a text file may take."""

PLACE = ("array", "row", "col")
"""Columns that say where a device is."""

_VALUES = ("state", "conductance")
_NAMES = {state.name.lower(): int(state) for state in State}
_LARGEST_CODE = max(State)
_Line = tuple[int, list[str]]


@dataclass(frozen=True)
class Listing:
    """Devices of a table; those it does not list are good.

    Parameters
    ----------
    places
        ``(devices, 3) int64``: array, row and column of each; no place is there twice.
    states
        ``(devices,) int64``: codes of `State`, -1 where the table gives none.
    conductance
        ``(devices,) float64``: siemens, NaN where the table gives none; then it gives a state.
    """

    places: npt.NDArray[np.int64]
    states: npt.NDArray[np.int64]
    conductance: npt.NDArray[np.float64]


def read_lines(path: Path) -> list[_Line]:
    """Cells of every line that is not blank, each with its number in the file.

    Raises
    ------
    ChipError
        If the file cannot be read, is too large, is no text, or holds nothing.
    """
    subject = f"fault map {path}"
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_CSV_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ChipError(subject, f"cannot be read ({reason})") from None
    if len(content) > MAX_CSV_BYTES:
        raise ChipError(subject, f"must be at most {MAX_CSV_BYTES} bytes long", hint="save it as .npz")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ChipError(subject, "must be text in UTF-8", hint="arrays of numpy go into .npz files") from None
    if "\0" in text:
        raise ChipError(subject, "must be text, and holds bytes of 0", hint="arrays of numpy go into .npz files")
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        numbered = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise ChipError(f"{subject}, line {reader.line_num}", f"must be lines of cells with commas ({error})") from None
    lines = [(line, cells) for line, cells in numbered if any(cells)]
    if not lines:
        raise ChipError(subject, "must hold a table of devices or a matrix of conductances, and is empty")
    return lines


def is_matrix(lines: list[_Line]) -> bool:
    """Whether the file is a matrix: its first line holds a number, which no header does."""
    return any(_number(cell) is not None for cell in lines[0][1])


def parse_matrix(lines: list[_Line], path: Path) -> npt.NDArray[np.float64]:
    """Conductances of one array, ``(rows, cols)`` siemens.

    Raises
    ------
    ChipError
        If lines differ in length, or a cell is no conductance.
    """
    width = len(lines[0][1])
    found = np.empty((len(lines), width))
    for row, (line, cells) in enumerate(lines):
        subject = f"fault map {path}, line {line}"
        if len(cells) != width:
            raise ChipError(subject, f"must have {width} cells as the first line has", got=len(cells))
        for col, cell in enumerate(cells):
            found[row, col] = _conductance(cell, f"{subject}, cell {col + 1}")
    return found


def parse_table(lines: list[_Line], path: Path, rows: int, cols: int, max_devices: int) -> Listing:
    """Devices of a table with the columns array, row and col, and state or conductance or both.

    Parameters
    ----------
    lines
        Of `read_lines`: the first is the header.
    path
        Of the file, for errors.
    rows, cols
        Size of an array.
    max_devices
        Of all arrays up to the last one that is named.

    Raises
    ------
    ChipError
        Naming the line and the column that is wrong.
    """
    columns = _columns(lines[0][1], f"fault map {path}, line {lines[0][0]}")
    limits = (max(max_devices // (rows * cols), 1), rows, cols)
    count = len(lines) - 1
    places, states = np.empty((count, 3), np.int64), np.full(count, -1, np.int64)
    conductance = np.full(count, np.nan)
    seen: dict[tuple[int, ...], int] = {}
    for number, (line, cells) in enumerate(lines[1:]):
        subject = f"fault map {path}, line {line}"
        if len(cells) != len(columns):
            raise ChipError(subject, f"must have {len(columns)} cells as the header has", got=len(cells))
        given = dict(zip(columns, cells, strict=True))
        place = tuple(
            _index(given[name], limit, f"{subject}, {name}") for name, limit in zip(PLACE, limits, strict=True)
        )
        if place in seen:
            raise ChipError(subject, f"must name a device of its own, and line {seen[place]} names the same")
        seen[place] = line
        places[number] = place
        if state := given.get("state"):
            states[number] = _state(state, f"{subject}, state")
        if value := given.get("conductance"):
            conductance[number] = _conductance(value, f"{subject}, conductance")
        if not (state or value):
            raise ChipError(subject, "must give a state or a conductance, and gives neither")
    return Listing(places, states, conductance)


def _columns(names: list[str], subject: str) -> list[str]:
    known = (*PLACE, *_VALUES)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"columns are {', '.join(known)}, with commas between"
            raise ChipError(f"{subject}, column {name[:100]!r}", "is none of a table of devices", hint=hint)
        if names.count(name) > 1:
            raise ChipError(f"{subject}, column {name!r}", "must be there once")
    for missing in (name for name in PLACE if name not in names):
        raise ChipError(subject, f"must have a column {missing!r}", hint=f"it has {', '.join(names)}")
    if not any(name in names for name in _VALUES):
        raise ChipError(subject, "must have a column 'state' or 'conductance'", hint=f"it has {', '.join(names)}")
    return names


def _index(text: str, limit: int, subject: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
    if not 0 <= number < limit:
        raise ChipError(subject, f"must be a whole number from 0 to {limit - 1}", got=text)
    return number


def _state(text: str, subject: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= _LARGEST_CODE:
        return int(text)
    if text.lower() in _NAMES:
        return _NAMES[text.lower()]
    close = difflib.get_close_matches(text.lower(), _NAMES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else ""
    raise ChipError(subject, f"must be {', '.join(_NAMES)} or a code from 0 to {_LARGEST_CODE}", got=text, hint=hint)


def _number(text: str) -> float | None:
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def _conductance(text: str, subject: str) -> float:
    value = _number(text)
    try:
        if value is None:
            value = _with_unit(text)
    except ValueError as error:
        raise ChipError(subject, str(error)) from None
    if not (math.isfinite(value) and value >= 0):
        raise ChipError(subject, "must be a finite conductance of at least 0 S", got=text)
    return value


@functools.lru_cache(maxsize=1 << 16)
def _with_unit(text: str) -> float:
    return parse_quantity(text, "siemens")
