"""Measured fault maps: states or conductances of devices, from ``.npz`` and ``.csv`` files.

An ``.npz`` file holds ``states`` (codes of `hwspec.failures.State`), ``conductance`` (siemens) or both, ``(arrays,
rows, cols)`` or ``(rows, cols)`` for one array. A ``.csv`` file is a table of devices with the columns ``array``,
``row``, ``col`` and ``state`` (name or code) or ``conductance`` (siemens, or text such as ``4.2 uS``) or both, where
devices that it does not list are good; or a plain matrix of the conductances of one array. Conductances without states
are told apart by ``failures.thresholds``; states without conductances get those of the spec.
"""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hwspec.device import Device
from hwspec.errors import ChipError, DataError
from hwspec.failures import State, Thresholds, nominal_conductance
from hwspec.fault_map import FaultMap
from hwspec.measured_csv import Listing, is_matrix, parse_matrix, parse_table, read_lines
from hwspec.npz import ArrayHeader, read_npz
from hwspec.spec import HardwareSpec

MAX_DEVICES = 1 << 28
"""The most devices that a map may have."""

_SEED = (4,)
_ROUNDING = 1e-6
_NAMES = ("states", "conductance", "seed")


class MeasuredMap(NamedTuple):
    """What a file says of a chip."""

    faults: FaultMap
    seed: int | None
    """Of the chip; None where it has none, as measured ones."""


def classify(conductance: npt.ArrayLike, device: Device, thresholds: Thresholds) -> npt.NDArray[np.uint8]:
    """States of devices by what they conduct at any attempt to program them.

    Parameters
    ----------
    conductance
        Siemens, any shape. A millionth beyond a threshold counts as on it: files may hold float32.
    device, thresholds
        Sections of the spec: where a threshold is None, the device's range gives it.

    Returns
    -------
    ndarray
        Codes of `State` in the shape of the conductances; OK within the thresholds.
    """
    given = np.asarray(conductance, np.float64)
    unformed = device.g_min / 2 if thresholds.unformed is None else thresholds.unformed
    hrs = device.g_min if thresholds.stuck_hrs is None else thresholds.stuck_hrs
    lrs = device.g_max if thresholds.stuck_lrs is None else thresholds.stuck_lrs
    overformed = 1.25 * device.g_max if thresholds.overformed is None else thresholds.overformed
    states = np.full(given.shape, State.OK, np.uint8)
    states[given > lrs * (1 + _ROUNDING)] = State.STUCK_LRS
    states[given > overformed * (1 + _ROUNDING)] = State.OVERFORMED
    states[given < hrs * (1 - _ROUNDING)] = State.STUCK_HRS
    states[given < unformed * (1 - _ROUNDING)] = State.UNFORMED
    return states


def read_map(path: Path, spec: HardwareSpec | None = None, *, arrays: int | None = None) -> MeasuredMap:
    """Read a measured map, or the map of a chip that `hwspec.chip.Chip.save` wrote.

    Parameters
    ----------
    path
        The file, ``.npz`` or ``.csv``.
    spec
        Of the technology. Needed where the file lacks what only it knows; when given, arrays must be of its size.
    arrays
        Of the chip, where the file does not go on to the last one: those after it are good.

    Raises
    ------
    ChipError
        Naming the line, cell or device that is wrong.
    """
    subject = f"fault map {path}"
    if path.suffix.lower() == ".npz":
        states, values, seed = _read_npz(path, spec, subject)
    elif path.suffix.lower() == ".csv":
        states, values, seed = *_read_csv(path, _needed(spec, subject, "what its devices are"), subject), None
    else:
        raise ChipError(subject, "must be a .npz or .csv file", got=path.suffix or path.name)
    if spec is not None and states.shape[1:] != (spec.array.rows, spec.array.cols):
        wanted = f"must have arrays of {spec.array.rows}x{spec.array.cols} for {spec.name}"
        raise ChipError(subject, wanted, got=f"{states.shape[1]}x{states.shape[2]}")
    if arrays is not None:
        if not len(states) <= arrays <= MAX_DEVICES // states[0].size:
            wanted = f"must have at most the {arrays} arrays of the chip, and these at most {MAX_DEVICES} devices"
            raise ChipError(subject, wanted, got=len(states))
        states = np.concatenate([states, np.zeros((arrays - len(states), *states.shape[1:]), np.uint8)])
    try:
        return MeasuredMap(FaultMap(states, values), seed)
    except ChipError as error:
        where = "" if error.subject == "fault map" else f", {error.subject}"
        raise ChipError(subject + where, str(error).removeprefix(f"{error.subject} ")) from None


Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]


def _read_npz(path: Path, spec: HardwareSpec | None, subject: str) -> tuple[*Arrays, int | None]:
    try:
        found = read_npz(path, lambda headers: _check_headers(headers, subject))
    except DataError as error:
        raise ChipError(subject, f"cannot be read: {error}") from None
    seed = None
    if "seed" in found:
        seed = sum(int(word) << 32 * place for place, word in enumerate(found["seed"]))
    conductance = found.get("conductance")
    if "states" not in found:
        assert conductance is not None
        return *_by_conductance(
            _stacked(conductance), _needed(spec, subject, "which conductances count as failures"), subject
        ), seed
    given = _stacked(found["states"])
    bad = (given < 0) | (given > max(State))
    if bad.any():
        array, row, col = np.argwhere(bad)[0]
        raise ChipError(
            f"{subject}, device at array {array}, row {row}, col {col}",
            f"must have a state from 0 to {int(max(State))}",
            got=int(given[bad][0]),
        )
    states = given.astype(np.uint8)
    failed = states != State.OK
    if conductance is None:
        codes = states[failed]
        if not len(codes):
            return states, np.zeros(0), seed
        return states, _nominal(_needed(spec, subject, "what its failed devices conduct"))[codes], seed
    values = conductance.astype(np.float64)
    return states, values if values.ndim == 1 else _stacked(values)[failed], seed


def _check_headers(headers: Mapping[str, ArrayHeader], subject: str) -> None:
    """Refuse arrays by their names, types and shapes, before any values are read."""
    for name in headers:
        if name not in _NAMES:
            close = difflib.get_close_matches(name, _NAMES, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"a map has {', '.join(_NAMES)}"
            raise ChipError(f"{subject}, array {name[:100]!r}", "is none of a map", hint=hint)
    states, conductance, seed = (headers.get(name) for name in _NAMES)
    if states is None and conductance is None:
        raise ChipError(subject, "must hold an array 'states' or 'conductance'", hint="a map says what each device is")
    if states is not None and states.dtype.kind not in "iu":
        raise ChipError(f"{subject}, array 'states'", "must be whole numbers, codes of states", got=str(states.dtype))
    if conductance is not None and conductance.dtype.kind == "b":
        raise ChipError(f"{subject}, array 'conductance'", "must be numbers, in siemens", got=str(conductance.dtype))
    dense = conductance if states is None else states
    assert dense is not None
    name = "conductance" if states is None else "states"
    if len(dense.shape) not in (2, 3) or not 0 < math.prod(dense.shape) <= MAX_DEVICES:
        wanted = f"must be (arrays, rows, cols) or (rows, cols), with 1 to {MAX_DEVICES} devices"
        raise ChipError(f"{subject}, array {name!r}", wanted, got=dense.shape)
    if states is not None and conductance is not None:
        # What a chip saves has one number for each failed device; how many there must be the map itself checks.
        packed = len(conductance.shape) == 1 and conductance.shape[0] <= MAX_DEVICES
        if not packed and conductance.shape != states.shape:
            wanted = f"must be of the shape of 'states', {states.shape}, or one number for each failed device"
            raise ChipError(f"{subject}, array 'conductance'", wanted, got=conductance.shape)
    if seed is not None and (seed.shape != _SEED or seed.dtype != np.uint32):
        raise ChipError(f"{subject}, array 'seed'", "must be four words of uint32", got=f"{seed.dtype} {seed.shape}")


def _read_csv(path: Path, spec: HardwareSpec, subject: str) -> Arrays:
    lines = read_lines(path)
    if is_matrix(lines):
        return _by_conductance(parse_matrix(lines, path)[None], spec, subject)
    listing = parse_table(lines, path, spec.array.rows, spec.array.cols, MAX_DEVICES)
    return _listed(listing, spec)


def _listed(listing: Listing, spec: HardwareSpec) -> Arrays:
    """States of all devices, and conductances of the failed ones, by those that a table lists."""
    arrays = int(listing.places[:, 0].max(initial=0)) + 1
    shape = (arrays, spec.array.rows, spec.array.cols)
    with_state = listing.states >= 0
    measured = classify(
        np.where(with_state, spec.device.g_min, listing.conductance), spec.device, spec.failures.thresholds
    )
    codes = np.where(with_state, listing.states, measured)
    values = np.where(np.isnan(listing.conductance), _nominal(spec)[codes], listing.conductance)
    flat = np.ravel_multi_index(tuple(listing.places.T), shape)
    states = np.zeros(shape, np.uint8)
    states.ravel()[flat] = codes
    order = np.argsort(flat)
    return states, values[order][codes[order] != State.OK]


def _by_conductance(conductance: npt.NDArray[Any], spec: HardwareSpec, subject: str) -> Arrays:
    values = conductance.astype(np.float64)
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        array, row, col = np.argwhere(bad)[0]
        raise ChipError(
            f"{subject}, device at array {array}, row {row}, col {col}",
            "must have a finite conductance of at least 0 S",
            got=float(values[bad][0]),
        )
    states = classify(values, spec.device, spec.failures.thresholds)
    return states, values[states != State.OK]


def _nominal(spec: HardwareSpec) -> npt.NDArray[np.float64]:
    """What devices conduct by code of their state, siemens; NaN for good ones."""
    sections = spec.failures.states()
    return np.array([np.nan, *(nominal_conductance(section, state, spec.device) for state, section in sections)])


def _stacked(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[None] if values.ndim == 2 else values


def _needed(spec: HardwareSpec | None, subject: str, what: str) -> HardwareSpec:
    if spec is None:
        raise ChipError(subject, f"does not say {what}", hint="give the spec (--spec)")
    return spec
