"""What pairs with failed devices can still hold: bounded failure states (``physics.md`` section 2).

A device's share is ``s = (G - g_min) / (g_max - g_min)``: 0 to 1 where it can be programmed, a constant where it has
failed. The weight of a pair is ``s+ - s-``.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from hwspec.array import Array
from hwspec.device import Device
from hwspec.errors import SpecError
from hwspec.failures import Failures, State

Float64 = npt.NDArray[np.float64]
Interval = tuple[float, float]
_NAMES = {state.name.lower(): state for state in State}


def failed_share(
    state: npt.ArrayLike, conductance: npt.ArrayLike | None = None, *, g_min: float = 0.0, g_max: float = 1.0
) -> Float64:
    """Shares of devices in given states; NaN where a device is good.

    Parameters
    ----------
    state
        Codes of `State`, or their names, any shape.
    conductance
        Of the failed devices, siemens; what is given for good ones is not read. None takes 0 S for unformed devices,
        g_min for stuck_hrs, g_max for overformed and stuck_lrs.
    g_min, g_max
        Range of good devices, siemens; the defaults give conductances as shares.

    Raises
    ------
    SpecError
        If a state is none, a failed conductance is negative or not finite, or the range is empty.
    """
    codes = _codes(state)
    if not (np.isfinite(g_min) and np.isfinite(g_max) and 0 <= g_min < g_max):
        raise SpecError("range of conductances", f"must be 0 <= g_min < g_max, not {g_min:g} to {g_max:g} S")
    if conductance is None:
        values = np.array([np.nan, 0.0, g_max, g_min, g_max])[codes]
    else:
        codes, values = np.broadcast_arrays(codes, np.asarray(conductance, np.float64))
        failed = values[codes != State.OK]
        if not (np.isfinite(failed) & (failed >= 0)).all():
            raise SpecError("conductance of a failed device", "must be finite and not negative", got=failed.min())
        values = np.where(codes == State.OK, np.nan, values)
    return (values - g_min) / (g_max - g_min)


def reachable_interval(
    state_pos: npt.ArrayLike,
    state_neg: npt.ArrayLike,
    conductance_pos: npt.ArrayLike | None = None,
    conductance_neg: npt.ArrayLike | None = None,
    *,
    g_min: float = 0.0,
    g_max: float = 1.0,
) -> tuple[Float64, Float64]:
    """Lowest and highest weight that pairs can hold when no device is gated off.

    One device failed leaves ``[s+ - 1, s+]`` (plus) or ``[-s-, 1 - s-]`` (minus), both ``{s+ - s-}``, none ``[-1, 1]``
    (``physics.md`` section 2).

    Parameters
    ----------
    state_pos, state_neg
        States of both devices: codes of `State` or their names, any shape.
    conductance_pos, conductance_neg
        Of failed devices, siemens; None takes those of `failed_share`.
    g_min, g_max
        Range of good devices, siemens.

    Returns
    -------
    low, high
        In the shape of the states, broadcast together.

    Raises
    ------
    SpecError
        As `failed_share`.
    """
    plus = failed_share(state_pos, conductance_pos, g_min=g_min, g_max=g_max)
    minus = failed_share(state_neg, conductance_neg, g_min=g_min, g_max=g_max)
    low = np.where(np.isnan(plus), 0.0, plus) - np.where(np.isnan(minus), 1.0, minus)
    high = np.where(np.isnan(plus), 1.0, plus) - np.where(np.isnan(minus), 0.0, minus)
    return low, high


def reachable_set(
    share_pos: float, share_neg: float, *, gate_pos: bool = False, gate_neg: bool = False, open_share: float = 0.0
) -> tuple[Interval, ...]:
    """Every weight that a pair can hold, as intervals in rising order that do not overlap.

    A device that can be gated off is also one at 0 S. A pair of good devices is left as it is: gating adds nothing
    within [-1, 1].

    Parameters
    ----------
    share_pos, share_neg
        Of failed devices; NaN of good ones.
    gate_pos, gate_neg
        Whether each can be gated off.
    open_share
        Share of a device at 0 S, ``-g_min / (g_max - g_min)``.
    """
    found = []
    for plus in (share_pos, open_share) if gate_pos else (share_pos,):
        for minus in (share_neg, open_share) if gate_neg else (share_neg,):
            low = (0.0 if np.isnan(plus) else plus) - (1.0 if np.isnan(minus) else minus)
            high = (1.0 if np.isnan(plus) else plus) - (0.0 if np.isnan(minus) else minus)
            found.append((float(low), float(high)))
    if np.isnan(share_pos) and np.isnan(share_neg):
        return (found[0],)
    return _merged(found)


def weight_bounds(device: Device, array: Array, failures: Failures) -> Interval:
    """Lowest and highest weight that any pair of failed or good devices can be left with.

    Devices that a mechanism of their own can gate off count as open ones (``physics.md`` section 2).
    """
    open_share = -device.g_min / device.span
    own_gate = isolation(array, failures) == "device"
    failed: list[float] = []
    for state in failures.possible:
        if own_gate and failures.of(state).isolatable:
            failed.append(open_share)
        else:
            bounds = (value / (1 + value * device.r_access) for value in failures.conductances(state, device))
            failed += [(value - device.g_min) / device.span for value in bounds]
    if array.pairing == "reference":
        return min([-1.0, *(2 * share - 1 for share in failed)]), max([1.0, *(2 * share - 1 for share in failed)])
    # Where failed devices come in pairs, none is read against a good one.
    ends = failed if failures.failed_pair == "zero" else [0.0, 1.0, *failed]
    width = max(ends, default=0.0) - min(ends, default=0.0)
    return min(-1.0, -width), max(1.0, width)


def isolation(array: Array, failures: Failures) -> str:
    """What can gate a device off: the spec's word, or what its cells allow."""
    if failures.isolation is not None:
        return failures.isolation
    return "device" if array.cell == "2T2R" else "none"


def _codes(state: npt.ArrayLike) -> npt.NDArray[np.int64]:
    given = np.asarray(state)
    if given.dtype.kind == "U":
        names = {str(name) for name in given.ravel()}
        unknown = names - _NAMES.keys()
        if unknown:
            raise SpecError(f"state {min(unknown)!r}", f"must be one of {', '.join(_NAMES)}")
        return np.array([_NAMES[str(name)] for name in given.ravel()], np.int64).reshape(given.shape)
    codes = given.astype(np.int64) if given.dtype.kind in "iu" else np.full(given.shape, -1)
    if codes.size and not (codes.min() >= 0 and codes.max() <= max(State)):
        raise SpecError(
            "states of devices", f"must be codes from 0 to {int(max(State))} or names", got=given.dtype.name
        )
    return codes


def _merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    merged: list[Interval] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def check_bounded(device: Device, array: Array, failures: Failures) -> None:
    """Raise ValueError unless failures leave every weight within ``[-1 - b, 1 + b]``, or the spec allows more."""
    tolerance = failures.bound_tolerance
    if tolerance is None:
        tolerance = device.g_min / device.span * (2 if array.pairing == "reference" else 1)
    low, high = weight_bounds(device, array, failures)
    worst = max(-low, high) - 1
    if worst > tolerance * (1 + 1e-9) + 1e-12 and not failures.allow_unbounded:
        raise ValueError(
            f"failures leave weights from {low:.4g} to {high:.4g}, beyond 1 + bound_tolerance = {1 + tolerance:.4g}: "
            "bound what failed devices conduct, isolate them (2T2R cells, isolation: device), widen "
            "failures.bound_tolerance, or set failures.allow_unbounded: true"
        )
