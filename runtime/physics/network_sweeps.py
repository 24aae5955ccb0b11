"""Crossbars of non-ohmic devices and floating lines, one vector of voltages at a time, in numpy.

The state of a network is two voltages a device, u on its word line and v on its bit line, and the two currents that the
wires carry to it there (``supplied``) and away (``drained``). Wires are linear, so these four always fit each other,
zero resistances and floating ends included, and what is still wrong is only that a device does not pass just those
currents. No step divides by a wire's resistance.

A step of Newton's method replaces each device by its tangent. The linear network is solved by line Gauss-Seidel: all
bit lines exactly for given word lines, then all word lines for given bit lines. That is the iteration
``v <- v + P^-1 (b - S v)`` for the Schur complement S of the bit lines, which is symmetric, so conjugate gradients
choose how far and where each sweep goes: with weak wires they hardly differ, and with floating lines or shorts, where
plain sweeps crawl, they need about the square root of their number. Newton's steps may go around in circles (where
devices nearly rectify). When some have not helped, they are shortened to where the co-content (Millar 1951) is least
along them: the network minimises that function, and it is convex, since currents rise with voltages.

**When it is done.** A current that goes astray at a node reaches the ends of the lines in parts that sum to at most
itself (the difference of two solutions is a network of positive conductances), so the currents astray at all nodes
together bound the error of every sensed current.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.physics.march import bit_line_factors

Float64 = npt.NDArray[np.float64]

FIRST_SHARE = 0.2
"""The first network of tangents is solved to this share of what is astray; later ones the better, the faster it falls.
"""
PATIENCE = 5
"""Steps are taken whole until so many in a row have not halved the least that was astray, and again once it is."""
WORSE = 100.0
"""But never one that lets more than so many times as much go astray."""
OVERSHOOT = 0.5
"""A step to shorten ends where the co-content's slope is at most this share of the slope at its start."""
LINE_SEARCH = 40
"""Most tries to shorten a step."""
ENOUGH = 0.2
"""A linear network need not be solved to better than this share of the tolerance."""
NOISE = 16 * float(np.finfo(np.float64).eps)
"""What rounding can hide of a current, as a share of its device's slope times the voltages of its two ends."""


class Law(Protocol):
    """What a device's current is, by its voltage: `runtime.physics.network.CurrentVoltage`."""

    @property
    def linear(self) -> bool:
        """Whether tangents are the law itself."""

    def current_shape(self, volts: Float64) -> Float64:
        """Volts."""

    def slope(self, volts: Float64) -> Float64:
        """Derivative of `current_shape`."""


@dataclass(frozen=True)
class Found:
    """Where the sweeps of one vector ended."""

    sensed: Float64
    """Currents into the sense nodes ``(N,)``, amperes."""
    driven: Float64
    """Currents from the drivers ``(M,)``, amperes."""
    sweeps: int
    astray: float
    """Bound of the error of a current, as a share of the largest one."""
    converged: bool
    """Whether that is at most the tolerance (or no current is more than rounding makes of none)."""


class _Lines:
    """Word lines or bit lines with their devices, ``(lines, nodes)`` from the open end to the driven one."""

    def __init__(self, g: Float64, r: Float64) -> None:
        self.keep, self.drop = (f.T.copy() for f in bit_line_factors(g, r))

    def solve(self, pull: Float64, ends: Float64 | float) -> Float64:
        """Voltages, where the devices pull the currents ``pull`` (siemens times the volts beyond) to the line."""
        y = np.empty_like(pull.T)
        f = np.zeros(pull.shape[0])
        for i, source in enumerate(pull.T):
            f = source + f
            y[i] = self.drop[i] * f
            f = self.keep[i] * f
        below = ends + np.zeros(pull.shape[0])
        for i in reversed(range(len(y))):
            y[i] += self.keep[i] * below
            below = y[i]
        return y.T


def end_currents(currents: Float64, r: Float64) -> Float64:
    """Current through the driven end of each line ``(lines,)``: all that devices give beyond the last open segment."""
    flow = np.zeros(len(r))
    for i in range(r.shape[1]):
        flow = np.where(np.isinf(r[:, i]), 0.0, flow + currents[:, i])
    return flow


def sweep(
    G: Float64,
    rw: Float64,
    rb: Float64,
    volts: Float64,
    sense: Float64,
    start: tuple[Float64, Float64],
    law: Law,
    tolerance: float,
    max_sweeps: int,
) -> Found:
    """Solve one network: G, rw, rb (M, N), ends included and infinite where open; volts (M,) and sense (N,).

    `start` has the voltages of the word lines (M,) and the bit lines (N,) to begin with: those of the ends, where
    lines have any.
    """
    u = np.repeat(start[0][:, None], G.shape[1], 1)
    v = np.repeat(start[1][None, :], G.shape[0], 0)
    supplied, drained = np.zeros_like(G), np.zeros_like(G)
    current = G * law.current_shape(u - v)
    before, least, patience, sweeps = np.inf, np.inf, PATIENCE, 0
    while True:
        astray = float(np.abs(supplied - current).sum() + np.abs(current - drained).sum())
        sensed = end_currents(current.T, rb.T)
        scale = max(float(np.abs(sensed).max()), float(np.abs(current).max()))
        g = G * law.slope(u - v)
        hidden = NOISE * float((g * (np.abs(u) + np.abs(v))).sum())
        converged = astray <= tolerance * scale or max(astray, scale) <= hidden
        if converged or sweeps >= max_sweeps:
            driven = end_currents(supplied[:, ::-1], rw[:, ::-1])
            return Found(sensed, driven, sweeps, astray / scale if scale else 0.0, converged)
        share = 0.0 if law.linear else FIRST_SHARE if before == np.inf else min(FIRST_SHARE, (astray / before) ** 2)
        before = astray
        if astray <= 0.5 * least:
            least, patience = astray, PATIENCE
        else:
            patience -= 1
        surplus = current - g * (u - v)
        enough = max(share * astray, ENOUGH * tolerance * scale)
        to_u, to_v, to_supplied, to_drained, used = _tangent_network(
            g, surplus, rw, rb, volts, sense, u, enough, max_sweeps - sweeps
        )
        sweeps += used
        ways = (to_u - u, to_v - v, to_supplied - supplied, to_drained - drained)
        u, v, supplied, drained, current = _advance(G, law, (u, v, supplied, drained, current), ways, patience > 0)


def _tangent_network(
    g: Float64,
    surplus: Float64,
    rw: Float64,
    rb: Float64,
    volts: Float64,
    sense: Float64,
    u: Float64,
    enough: float,
    max_sweeps: int,
) -> tuple[Float64, Float64, Float64, Float64, int]:
    """Solve the network of devices ``g e + surplus`` until at most `enough` amperes are astray."""
    words, bits = _Lines(g[:, ::-1], rw[:, ::-1]), _Lines(g.T, rb.T)

    def word_lines(pull: Float64, ends: Float64 | float) -> Float64:
        return words.solve(pull[:, ::-1], ends)[:, ::-1]

    def bit_lines(pull: Float64, ends: Float64 | float) -> Float64:
        return bits.solve(pull.T, ends).T

    # `seen` are the word lines that the bit lines v are solved for, and `gap` how far u has moved from there.
    seen = u
    v = bit_lines(g * seen + surplus, sense)
    u = word_lines(g * v - surplus, volts)
    gap = u - seen
    step, step_seen = np.zeros_like(g), np.zeros_like(g)
    before, sweeps = np.inf, 1
    while float(np.abs(g * gap).sum()) > enough and sweeps < max_sweeps:
        z = bit_lines(g * gap, 0.0)
        size = float((z * g * gap).sum())
        step, step_seen = z + size / before * step, gap + size / before * step_seen
        step_u = word_lines(g * step, 0.0)
        curvature = float((step * g * (step_seen - step_u)).sum())
        if not (size > 0.0 and curvature > 0.0):
            break  # as far as rounding lets it go
        far = size / curvature
        u, v, seen, gap = u + far * step_u, v + far * step, seen + far * step_seen, gap + far * (step_u - step_seen)
        before = size
        sweeps += 1
    return u, v, g * (u - v) + surplus, g * (seen - v) + surplus, sweeps


def _advance(
    G: Float64,
    law: Law,
    state: tuple[Float64, Float64, Float64, Float64, Float64],
    ways: tuple[Float64, Float64, Float64, Float64],
    patient: bool,
) -> tuple[Float64, Float64, Float64, Float64, Float64]:
    """Go all of `ways`, where patient and nothing forbids it, else to about where the co-content is least on them."""
    u, v, supplied, drained, current = state
    way_u, way_v, way_supplied, way_drained = ways

    def slope(far: float, now: Float64) -> float:
        word = now - (supplied + far * way_supplied)
        return float((word * way_u - (now - (drained + far * way_drained)) * way_v).sum())

    def size(far: float, now: Float64) -> float:
        word = now - (supplied + far * way_supplied)
        return float(np.abs(word).sum() + np.abs(now - (drained + far * way_drained)).sum())

    at_start, size_at_start = slope(0.0, current), size(0.0, current)
    low, slope_low, high, slope_high = 0.0, at_start, 0.0, 0.0
    far = 1.0
    for tries in range(1, LINE_SEARCH + 1):
        with np.errstate(over="ignore", invalid="ignore"):  # where a current overflows, the step is shortened
            now = G * law.current_shape(u - v + far * (way_u - way_v))
            here, astray = slope(far, now), size(far, now)
        fits = here <= OVERSHOOT * abs(at_start) and (far == 1.0 or here >= -OVERSHOOT * abs(at_start))
        whole = patient and far == 1.0 and astray <= WORSE * size_at_start
        if fits or whole or astray < 0.5 * size_at_start or tries == LINE_SEARCH:
            break
        if here < 0.0:
            low, slope_low = far, here
        else:
            high, slope_high = far, here
        rise = slope_high - slope_low
        inside = -slope_low / rise if rise > 0.0 else 0.1  # also where a rise has no number
        far = low + (high - low) * min(max(inside, 0.1), 0.9)
    return u + far * way_u, v + far * way_v, supplied + far * way_supplied, drained + far * way_drained, now
