"""Fault maps: which devices of a chip have failed, and what those conduct."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hwspec.array import Array
from hwspec.device import Device
from hwspec.errors import ChipError
from hwspec.failures import DEVIATIONS, Failures, Lines, MapErrors, State, nominal_conductance
from hwspec.randomness import Purpose, array_generator

Float64 = npt.NDArray[np.float64]
Uint8 = npt.NDArray[np.uint8]
_Number = TypeVar("_Number", bound=np.generic)
_CODES = len(State)


@dataclass(frozen=True, eq=False)
class FaultMap:
    """State of every device of a chip. Two maps are equal when their hashes are.

    Parameters
    ----------
    states
        ``(arrays, rows, cols) uint8``, codes of `State`.
    conductance
        ``(failed,) float64``, siemens: of the failed devices in C order of `states`.

    Raises
    ------
    ChipError
        If a shape or type is another, a code is no state, or a conductance is negative or not finite.
    """

    states: Uint8
    conductance: Float64

    def __post_init__(self) -> None:
        """Check both arrays, and keep them from being written."""
        states, conductance = np.asarray(self.states), np.asarray(self.conductance)
        if states.ndim != 3 or states.dtype != np.uint8:
            raise ChipError("fault map", "must have states (arrays, rows, cols) of uint8", got=_described(states))
        if states.size and states.max() >= _CODES:
            first = int(np.argmax(states >= _CODES))
            place = _place(first, states.shape)
            raise ChipError(place, f"must have a state from 0 to {_CODES - 1}", got=int(states.ravel()[first]))
        if conductance.ndim != 1 or conductance.dtype != np.float64:
            raise ChipError("fault map", "must have conductances (failed,) of float64", got=_described(conductance))
        object.__setattr__(self, "states", _read_only(states))
        object.__setattr__(self, "conductance", _read_only(conductance))
        failed = int(self._starts[-1])
        if len(conductance) != failed:
            wanted = f"must have a conductance for each of its {failed} failed devices"
            raise ChipError("fault map", wanted, got=len(conductance))
        bad = ~(np.isfinite(conductance) & (conductance >= 0))
        if bad.any():
            first = int(np.argmax(bad))
            array = int(np.searchsorted(self._starts, first, side="right")) - 1
            cell = np.flatnonzero(states[array])[first - self._starts[array]]
            place = _place(array * states[0].size + int(cell), states.shape)
            raise ChipError(place, "must have a finite conductance of at least 0 S", got=float(conductance[first]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Arrays, rows and columns."""
        arrays, rows, cols = self.states.shape
        return arrays, rows, cols

    @property
    def failed(self) -> int:
        """Number of failed devices."""
        return len(self.conductance)

    def stuck(self, array: int) -> Float64:
        """Conductances of the failed devices of one array, ``(rows, cols)`` siemens; NaN where a device is good.

        Raises
        ------
        IndexError
            If there is no such array.
        """
        if not 0 <= array < len(self.states):
            raise IndexError(f"array {array} of a fault map of {len(self.states)}")
        states = self.states[array]
        found = np.full(states.shape, np.nan)
        start, stop = self._starts[array : array + 2]
        if start != stop:
            found[states != State.OK] = self.conductance[start:stop]
        return found

    def first(self, arrays: int) -> "FaultMap":
        """The map of the first so many arrays."""
        return FaultMap(self.states[:arrays], self.conductance[: self._starts[min(arrays, len(self.states))]])

    def repeated(self, times: int) -> "FaultMap":
        """The map so many times, one after another."""
        return FaultMap(np.tile(self.states, (times, 1, 1)), np.tile(self.conductance, times))

    @functools.cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """Where the conductances of each array start, ``(arrays + 1,)``."""
        counts = [np.count_nonzero(states) for states in self.states]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the shape, the states and the conductances, in hexadecimal digits."""
        digest = hashlib.sha256(np.array(self.shape, "<i8").tobytes())
        digest.update(self.states.data)
        digest.update(self.conductance.astype("<f8", copy=False).data)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        """Whether both have the same states and conductances."""
        return self.sha256 == other.sha256 if isinstance(other, FaultMap) else NotImplemented

    def __hash__(self) -> int:
        """By the hash of the content."""
        return hash(self.sha256)


def sample_faults(failures: Failures, device: Device, array: Array, arrays: int, seed: int) -> FaultMap:
    """Draw the failed devices of a chip as it comes from the line.

    Each array has a generator of its own, and always takes the same numbers from it in the same order: a device's
    depend neither on how many arrays there are nor on other settings, and devices that fail at some rates also fail at
    higher ones. Independent failures give way to clusters, clusters to lines, word lines to bit lines.

    Parameters
    ----------
    failures, device, array
        Sections of the spec.
    arrays
        Number of physical arrays.
    seed
        Of the chip.

    Returns
    -------
    FaultMap
        ``(arrays, array.rows, array.cols)``.
    """
    states = np.zeros((arrays, array.rows, array.cols), np.uint8)
    conductances = [np.zeros(0)]
    zero = failures.failed_pair == "zero"
    # Both arrays of a pair are drawn, also where the last one has its partner beyond the chip's end.
    together = 2 if zero and array.pairing == "two_arrays" else 1
    for first in range(0, arrays, together):
        drawn = [_draw(failures, array, number, seed) for number in range(first, first + together)]
        group = np.stack([state for state, _ in drawn])
        if zero:
            group = np.where(group == State.OK, partners(group, array.pairing), group)
        for number, state, (_, quantile) in zip(range(first, arrays), group, drawn, strict=False):
            states[number] = state
            mask = state != State.OK
            conductances.append(failed_conductance(failures, device, state[mask], quantile[mask]))
    return FaultMap(states, np.concatenate(conductances))


def partners(states: Uint8, pairing: str) -> Uint8:
    """States of the other device of each pair, in the place of the first.

    Parameters
    ----------
    states
        ``(arrays, rows, cols)``, with an even number of whatever the two devices of a pair lie on.
    pairing
        As `hwspec.array.Array.pairing`; with ``reference`` a device is its own partner.
    """
    axis = {"two_arrays": 0, "neighbouring_rows": 1, "neighbouring_columns": 2}.get(pairing)
    return states if axis is None else np.take(states, np.arange(states.shape[axis]) ^ 1, axis=axis)


def with_map_errors(
    faults: FaultMap | None, shape: tuple[int, int, int], errors: MapErrors, device: Device, seed: int
) -> FaultMap:
    """A fault map as the test that finds failed devices draws it: some are missed, some good ones called stuck_hrs.

    Parameters
    ----------
    faults
        What has failed; None is nothing.
    shape
        Arrays, rows and columns of the chip.
    errors, device
        Sections of the spec: the rates, and g_min, which devices called stuck_hrs by mistake are taken to conduct.
    seed
        Of the chip: its test errs in the same way each time.
    """
    arrays, rows, cols = shape
    states = np.zeros(shape, np.uint8)
    conductances = [np.zeros(0)]
    for number in range(arrays):
        if faults is not None:
            states[number] = faults.states[number]
        failed = states[number] != State.OK
        draws = array_generator(seed, Purpose.MAP_ERRORS, number).random((rows, cols))
        missed, false = failed & (draws < errors.missed), ~failed & (draws < errors.false)
        values = np.full((rows, cols), device.g_min)
        if faults is not None:
            np.copyto(values, faults.stuck(number), where=failed)
        states[number][missed] = State.OK
        states[number][false] = State.STUCK_HRS
        conductances.append(values[states[number] != State.OK])
    return FaultMap(states, np.concatenate(conductances))


def _draw(failures: Failures, array: Array, number: int, seed: int) -> tuple[Uint8, Float64]:
    """States of one array, and the quantiles at which failed devices lie in the distribution of conductances."""
    generator = array_generator(seed, Purpose.STATES, number)
    size = (array.rows, array.cols)
    uniform, quantile = generator.random(size), generator.random(size)
    yield_deviation = generator.standard_normal()
    word, bit = generator.random(array.rows), generator.random(array.cols)

    rates = np.cumsum([state.rate for _, state in failures.states()])
    deviation = failures.array_deviation
    rates *= np.exp(deviation * yield_deviation - deviation**2 / 2)
    rates /= max(rates[-1], 1.0)
    states = np.zeros(size, np.uint8)
    failed = uniform < rates[-1]
    states[failed] = 1 + np.searchsorted(rates, uniform[failed], side="right")
    for spot in _clusters(failures.clusters.rate, failures.clusters.radius, array, generator):
        rows, cols, disc = spot
        states[rows, cols][disc] = State[failures.clusters.state.upper()]
    for line, state in _lines(failures.lines, "word", word):
        states[line] = state
    for line, state in _lines(failures.lines, "bit", bit):
        states[:, line] = state
    return states, quantile


def _clusters(
    rate: float, radius: float, array: Array, generator: np.random.Generator
) -> Iterator[tuple[slice, slice, npt.NDArray[np.bool_]]]:
    """Rows and columns of each cluster, and which devices there are within its radius of a device in its middle."""
    # One number for the count and two a cluster, so that a higher rate adds clusters to those of a lower one.
    count = int(np.searchsorted(_poisson(rate), generator.random(), side="right"))
    middles = (generator.random((count, 2)) * (array.rows, array.cols)).astype(int)
    for middle in middles:
        bands = []
        for at, size in zip(middle, (array.rows, array.cols), strict=True):
            reach = min(int(radius), size)
            bands.append(slice(max(at - reach, 0), min(at + reach + 1, size)))
        rows, cols = bands
        away = np.hypot(
            np.arange(rows.start, rows.stop)[:, None] - middle[0], np.arange(cols.start, cols.stop)[None] - middle[1]
        )
        yield rows, cols, away <= radius


@functools.lru_cache(maxsize=16)
def _poisson(mean: float) -> Float64:
    """Chances of at most 0, 1, 2, … events."""
    if mean == 0:
        return np.ones(1)
    count = np.arange(int(mean + 12 * np.sqrt(mean)) + 30)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, len(count))))])
    found: Float64 = np.cumsum(np.exp(count * np.log(mean) - mean - logs))
    return found


def _lines(lines: Lines, kind: str, uniform: Float64) -> Iterator[tuple[npt.NDArray[np.bool_], State]]:
    """Lines that failed, ``(lines,)``, and what their devices are then."""
    failed, shorted = getattr(lines, f"{kind}_failed"), getattr(lines, f"{kind}_shorted")
    yield uniform < failed, State.UNFORMED
    yield (uniform >= failed) & (uniform < failed + shorted), State.OVERFORMED


def failed_conductance(failures: Failures, device: Device, states: Uint8, quantile: Float64) -> Float64:
    """Conductances of failed devices, siemens: their quantiles of their states' distributions, ``(failed,)``."""
    found = np.empty(len(states))
    for state, section in failures.states():
        of_state = states == state
        if not of_state.any():
            continue
        nominal = nominal_conductance(section, state, device)
        low, high = failures.conductances(state, device)
        if section.model == "uniform":
            found[of_state] = low + (high - low) * quantile[of_state]
        elif section.model == "normal" and section.deviation > 0:
            from scipy.special import ndtr, ndtri

            ends = ndtr(np.array([max(-DEVIATIONS, -1 / section.deviation), DEVIATIONS]))
            z = ndtri(ends[0] + (ends[1] - ends[0]) * quantile[of_state])
            found[of_state] = np.clip(nominal * (1 + section.deviation * z), low, high)
        else:
            found[of_state] = nominal
    return found


def _read_only(values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """The values in C order, which nothing can write to through what is returned."""
    view = np.ascontiguousarray(values).view()
    view.flags.writeable = False
    return view


def _described(values: npt.NDArray[np.generic]) -> str:
    return f"{values.dtype} of shape {values.shape}"


def _place(index: int, shape: tuple[int, ...]) -> str:
    """A device by its place in the map."""
    array, row, col = np.unravel_index(index, shape)
    return f"device at array {array}, row {row}, col {col}"
