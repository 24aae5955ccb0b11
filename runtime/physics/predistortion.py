"""Conductance targets that undo the wires: pre-distortion of differential pairs (``docs/physics.md``, Pre-distortion).

A tile of weights asks for pairs ``plus - minus = w * span``; resistive wires attenuate every device by a factor of its
own, so that the columns give less, and unevenly. Targets are moved until the *effective* difference of each pair is
``headroom_j * w_ij * span``, exactly where the devices are continuous and as near as a table of levels allows; one
digital gain a column then undoes the headroom. The low device of a pair stays at the lowest conductance: its part is
common to both sides, and scaling it up too would only cost current.

The layout is the caller's: ``effective(plus, minus)`` marches the arrays that hold the tile (`wires.effective_matrix`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from runtime.physics.pair_model import DeviceRange, LinearPairs, device_range

Float64 = npt.NDArray[np.float64]
Effective = Callable[[Float64, Float64], tuple[Float64, Float64]]
"""From the targets of both devices of every pair, (M, N) siemens each, to their effective siemens, (M, N) each."""

HEADROOMS = tuple(float(0.975**k) for k in range(49))
"""Candidates for a column's share of its signal range: 1 down to 0.30, in steps of 2.5 %."""
RIDGE = 1e-2
"""Added to the diagonal of the second moment of the inputs, in units of its mean: rows never driven keep a cost."""
_CLIPPED = 5e-3
"""Share of the wires' error that clipping may leave where that keeps more of the signal range."""
_SEARCHES = 2
"""Steps that search the headroom; those that follow refine the targets at it."""
_SWEEPS = 2
_OWN = 0.05
"""Devices below this share of the range take their attenuation from their lines, for sneak currents distort theirs."""


@dataclass(frozen=True, eq=False)
class Predistorted:
    """Targets of one tile, with what they are worth on the calibration vectors.

    Errors are ``|gain * y - t| / |t|`` over all calibration vectors and columns, ``t`` the exact products of the target
    weights without wires: zero where no product is off, infinite where there should be none.
    """

    plus: Float64
    """(M, N) siemens; where a table of levels was given, values of that table."""
    minus: Float64
    """(M, N) siemens, likewise."""
    headroom: Float64
    """(N,) share of the signal range that each column keeps, at most 1 where searched: its effective weights are
    about ``headroom`` times those asked for. ``headroom.min()`` is the figure of the tile."""
    gain: Float64
    """(N,) positive digital factors of the columns' currents."""
    error_before: float
    """Ideal targets behind wires."""
    error_gain_only: float
    """Ideal targets behind wires, one gain a column."""
    error: float
    """These targets with these gains; never above ``error_before`` or ``error_gain_only``."""


def predistort(
    plus: npt.ArrayLike,
    minus: npt.ArrayLike,
    effective: Effective,
    volts: npt.ArrayLike,
    g_min: float,
    g_max: float,
    levels: npt.ArrayLike | None = None,
    headrooms: Sequence[float] = HEADROOMS,
    steps: int = 4,
    stuck: tuple[Float64, Float64] | None = None,
) -> Predistorted:
    """Targets that make a tile behind resistive wires compute what `plus` - `minus` asks for, up to a gain a column.

    Each step marches the arrays exactly and moves every pair by what it lacks, divided by its own attenuation. The
    first two steps also search the headroom of each column by the same linear model: with continuous devices the
    largest whose clipped pairs leave no more than 0.5 % of the wires' error, with levels the one that loses least by
    clipping and rounding together. Levels are chosen by coordinate descent on ``e^T H e``, row by row for all columns
    at once (``docs/physics.md``, Pre-distortion), so that the roundings of a column cancel for inputs like those of the
    calibration; H is `second_moment`. The best targets of all steps are kept; where they do not beat the ideal targets
    on the calibration vectors, the ideal ones are returned, with a gain where that helps. Deterministic.

    The lower device of a good pair keeps its target. Devices behind open lines are left there, too. Failed devices do
    not move: what the others should do about them is settled before (section 5), in the targets.

    Parameters
    ----------
    plus, minus : (M, N)
        Ideal targets of the two devices of each pair, siemens in [g_min, g_max]. With levels they may lie beside the
        table: errors then count the rounding, and "before" means the nearest levels.
    effective
        From targets to effective conductances, one march of the tile in its arrays.
    volts : (V, M)
        Calibration inputs on the word lines, volts. A few dozen are enough: H is shrunk.
    g_min, g_max
        Range of a device, siemens.
    levels : (L,), optional
        The conductances a device can be set to, siemens, ascending; continuous in [g_min, g_max] without them.
    headrooms
        Candidates in (0, 1].
    steps
        Marches beside the first; 4 and more change little.
    stuck
        Conductances of failed devices, plus and minus ``(M, N)`` siemens, NaN where a device is good: `effective` must
        hold them whatever their targets. None where all are good.

    Returns
    -------
    Predistorted
        Without wires the targets unchanged, with gain and headroom 1.

    Raises
    ------
    DataError
        A ValueError: a shape or value does not fit.
    """
    plus, minus, volts = (_matrix(name, a) for name, a in (("plus", plus), ("minus", minus), ("volts", volts)))
    if minus.shape != plus.shape:
        raise DataError("minus", f"must have the shape of plus, {plus.shape}", got=minus.shape)
    if volts.shape[1] != len(plus):
        raise DataError("volts", f"must have the shape (V, {len(plus)})", got=volts.shape)
    if not 0 <= g_min < g_max < np.inf:
        raise DataError("g_min, g_max", "must be 0 <= g_min < g_max siemens", got=(g_min, g_max))
    slack = 1e-9 * g_max
    for name, a in (("plus", plus), ("minus", minus)):
        if a.min() < g_min - slack or a.max() > g_max + slack:
            raise DataError(name, f"must lie in [{g_min:g}, {g_max:g}] siemens", got=(float(a.min()), float(a.max())))
    candidates = np.unique(np.asarray(headrooms, dtype=np.float64))[::-1]
    if not candidates.size or not (candidates[-1] > 0 and candidates[0] <= 1):
        raise DataError("headrooms", "must be some numbers in (0, 1]", got=headrooms)
    if steps < 1:
        raise DataError("steps", "must be at least 1", got=steps)
    devices = device_range(g_min, g_max, levels)

    fixed = (np.full(plus.shape, np.nan),) * 2 if stuck is None else stuck
    failed = ~np.isnan(fixed[0]), ~np.isnan(fixed[1])
    target = np.where(failed[0], fixed[0], plus) - np.where(failed[1], fixed[1], minus)
    ideal = (plus, minus) if devices.levels is None else (devices.nearest(plus), devices.nearest(minus))
    on_table = all(np.allclose(a, b, rtol=1e-9, atol=0) for a, b in zip(ideal, (plus, minus), strict=True))
    ones = np.ones(target.shape[1])
    W = _march(effective, *ideal)
    before = _output_error(W[0] - W[1], ones, target, volts)
    held = [np.where(bad, one, good) for bad, one, good in zip(failed, fixed, ideal, strict=True)]
    if on_table and all(np.allclose(w, g, rtol=1e-12, atol=0) for w, g in zip(W, held, strict=True)):
        return Predistorted(plus, minus, ones, ones.copy(), before, before, before)

    H = second_moment(volts)
    column_gain, _ = _gains(W[0] - W[1], target, H, ones)
    gain_only = _output_error(W[0] - W[1], column_gain, target, volts)
    if gain_only > before:  # H is shrunk: it need not favour the same gains as a few vectors
        column_gain, gain_only = ones, before
    spread = volts.var(0) + np.diag(H).mean() * RIDGE
    base = np.where(failed[0] | failed[1], devices.low, np.minimum(*ideal))
    problem = _Problem(target, H, spread, devices, candidates, failed, base)
    found = _search(problem, ideal, W, steps, lambda *targets: _march(effective, *targets))
    error = _output_error(found.difference, found.gain, target, volts)
    if not error < gain_only:
        return Predistorted(*ideal, ones, column_gain, before, gain_only, gain_only)
    return Predistorted(found.plus, found.minus, found.headroom, found.gain, before, gain_only, error)


def second_moment(volts: Float64, ridge: float = RIDGE) -> Float64:
    """``E[v v^T]`` of word-line voltages from few vectors: shrunk so that it does not take chance for correlation.

    The covariance is shrunk towards its own diagonal by the intensity of Schäfer and Strimmer (Statistical
    Applications in Genetics and Molecular Biology 4, 2005, section 2.4: the sum of the estimated variances of the
    covariances over the sum of their squares), then the mean's part and a ridge are added.

    Parameters
    ----------
    volts : (V, M)
        Inputs.
    ridge
        Share of the mean of the diagonal that is added to it.

    Returns
    -------
    (M, M) float64
        Volts squared, positive definite; the unit matrix where nothing is driven.
    """
    count, m = volts.shape
    mean = volts.mean(0)
    centred = volts - mean
    covariance = centred.T @ centred / count
    squares = centred**2
    spread = (squares.T @ squares / count - covariance**2) / max(count - 1, 1)
    off = ~np.eye(m, dtype=bool)
    size = np.square(covariance[off]).sum()
    shrink = min(1.0, float(spread[off].sum() / size)) if size > 0 and count > 1 else 1.0
    covariance[off] *= 1 - shrink
    H: Float64 = covariance + np.outer(mean, mean)
    level = np.trace(H) / m
    if not level > 0:
        return np.eye(m)
    H[np.diag_indices(m)] += ridge * level
    return H


@dataclass(frozen=True, eq=False)
class _Problem:
    """What the search is for: the differences wanted, the cost of missing them, and what devices can be set to."""

    target: Float64
    H: Float64
    spread: Float64
    """(M,) the part of H's diagonal that no other row can make up for."""
    devices: DeviceRange
    headrooms: Float64
    failed: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
    """Devices that do not move."""
    base: Float64
    """(M, N) what the lower device of each pair is set to."""


@dataclass(frozen=True, eq=False)
class _Found:
    """The targets of one step: what they give, and their cost."""

    plus: Float64
    minus: Float64
    difference: Float64
    headroom: Float64
    gain: Float64
    cost: float


def _search(
    problem: _Problem, ideal: tuple[Float64, Float64], W: tuple[Float64, Float64], steps: int, march: Effective
) -> _Found:
    """Alternate headrooms, targets and exact marches; the best step by ``e^T H e``."""
    target, H, devices = problem.target, problem.H, problem.devices
    plus, minus = ideal
    off = W[0] - W[1] - target
    allowed = _CLIPPED**2 * float((off * (H @ off)).sum()) / target.shape[1]
    headroom = gain = np.ones(target.shape[1])
    best: _Found | None = None
    for step in range(steps):
        model = _linear(plus, minus, W, problem)
        if step < _SEARCHES:
            headroom = _headrooms(problem, model, allowed)
        elif devices.levels is not None:
            headroom = 1 / gain
        wanted = headroom * target
        if step == 0 or devices.levels is None:
            plus, minus = devices.pair(wanted, model, problem.base)
        if devices.levels is not None:
            plus, minus = _descend(plus, minus, wanted, model, problem)
        W = march(plus, minus)
        gain, cost = _gains(W[0] - W[1], target, H, headroom)
        if best is None or cost < best.cost:
            best = _Found(plus, minus, W[0] - W[1], headroom, gain, cost)
    assert best is not None
    return best


def _headrooms(problem: _Problem, model: LinearPairs, allowed: float) -> Float64:
    """Headroom of each column by the cost that the model expects: clipping must stay below what is `allowed`.

    Roundings are costed as the descent will leave them: without what the rows have in common, for it cancels that.
    """
    costs = np.empty((len(problem.headrooms), problem.target.shape[1]))
    rounded = problem.devices.levels is not None
    for k, headroom in enumerate(problem.headrooms):
        e = (
            model.difference(*problem.devices.pair(headroom * problem.target, model, problem.base)) / headroom
            - problem.target
        )
        costs[k] = problem.spread @ e**2 if rounded else (e * (problem.H @ e)).sum(0)
    lowest = costs.min(0)
    good = costs <= (lowest if rounded else np.maximum(lowest, allowed))
    return np.asarray(problem.headrooms[good.argmax(0)])


def _descend(
    plus: Float64, minus: Float64, wanted: Float64, model: LinearPairs, problem: _Problem
) -> tuple[Float64, Float64]:
    """Coordinate descent of the levels on ``e^T H e``: every pair in turn, all columns at once; it never rises."""
    plus, minus, H = plus.copy(), minus.copy(), problem.H
    D = model.difference(plus, minus)
    slope = H @ (D - wanted)
    curvature = np.diag(H)
    for _ in range(_SWEEPS):
        for i, h in enumerate(curvature):
            best = D[i] - slope[i] / h
            line = model.row(i)
            p, q = problem.devices.pair(best, line, problem.base[i])
            new = line.difference(p, q)
            better = np.abs(new - best) < np.abs(D[i] - best) * (1 - 1e-9)
            if not better.any():
                continue
            plus[i] = np.where(better, p, plus[i])
            minus[i] = np.where(better, q, minus[i])
            change = np.where(better, new - D[i], 0.0)
            D[i] += change
            slope += H[:, i, np.newaxis] * change
    return plus, minus


def _linear(plus: Float64, minus: Float64, W: tuple[Float64, Float64], problem: _Problem) -> LinearPairs:
    sp, sm = (
        np.where(failed, 0.0, _attenuation(side, of_wires, problem.devices))
        for side, of_wires, failed in zip((plus, minus), W, problem.failed, strict=True)
    )
    return LinearPairs(sp, sm, W[0] - W[1] - sp * plus + sm * minus)


def _attenuation(G: Float64, W: Float64, devices: DeviceRange) -> Float64:
    """Slope of an effective conductance in its device's, for (M, N) devices of one side.

    W / G where the device is strong. A weak device's own ratio says nothing, for sneak currents through its neighbours
    add to W: it takes the sum of its lines' means less the mean of all, weighted by the devices' squares.
    """
    ratio = np.divide(W, G, out=np.zeros_like(W), where=G > 0).clip(0, 1)
    span = devices.high - devices.low
    weight = (G - devices.low) ** 2 + (1e-4 * span) ** 2
    weighted = ratio * weight
    row = weighted.sum(1, keepdims=True) / weight.sum(1, keepdims=True)
    column = weighted.sum(0) / weight.sum(0)
    lines = (row + column - weighted.sum() / weight.sum()).clip(ratio.min(), 1)
    return np.where(devices.low + _OWN * span < G, ratio, lines)


def _gains(D: Float64, target: Float64, H: Float64, headroom: Float64) -> tuple[Float64, float]:
    """Positive gains of the columns by least squares under H, and the cost of what they leave."""
    HD = H @ D
    power = (D * HD).sum(0)
    match = (target * HD).sum(0)
    gain = np.divide(match, power, out=1 / headroom, where=match > 0)
    e = gain * D - target
    return gain, float((e * (H @ e)).sum())


def _output_error(D: Float64, gain: Float64, target: Float64, volts: Float64) -> float:
    off, size = (float(np.linalg.norm(volts @ a)) for a in (gain * D - target, target))
    if size > 0:
        return off / size
    return np.inf if off > 0 else 0.0


def _march(effective: Effective, plus: Float64, minus: Float64) -> tuple[Float64, Float64]:
    W_plus, W_minus = effective(plus, minus)
    if W_plus.shape != plus.shape or W_minus.shape != plus.shape:
        hint = "effective_matrix gives (N, M): transpose it"
        raise DataError("effective", f"must return two {plus.shape}", got=(W_plus.shape, W_minus.shape), hint=hint)
    return W_plus, W_minus


def _matrix(name: str, value: npt.ArrayLike) -> Float64:
    a = np.asarray(value, dtype=np.float64)
    if a.ndim != 2 or 0 in a.shape:
        raise DataError(name, "must be a matrix of at least one row and column", got=a.shape)
    if not np.isfinite(a).all():
        raise DataError(name, "must be finite", got=float(a[~np.isfinite(a)][0]))
    return a
