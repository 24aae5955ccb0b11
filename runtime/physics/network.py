"""Crossbars whose devices are not ohmic or whose lines float: sensed currents for given voltages.

Equations: ``docs/physics.md``, Sneak paths.

The network is that of `runtime.physics.wires`, with the sense nodes at any voltage, lines that may be connected to
nothing at their end, and devices of any law that `CurrentVoltage` knows. No matrix describes it: each vector of
voltages is solved for itself. The method is told in `network_sweeps` (numpy); `network_numba` has the compiled loops.
"""

import functools
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from runtime.physics.network_sweeps import sweep
from runtime.physics.wires import checked_conductances, checked_numbers, checked_segments, share_out

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Model = Literal["ohmic", "sinh", "cubic"]

MODELS: tuple[Model, ...] = get_args(Model)
STEEPEST = 200.0
"""Largest product of a sinh's alpha and a voltage: the current would be 1e86 times that of an ohmic device."""
MAX_SWEEPS = 10_000
"""Sweeps that a vector may take unless told. A normal array takes about ten, one of shorts and weak wires hundreds."""


@dataclass(frozen=True)
class CurrentVoltage:
    """Current of a device by its voltage: ``I = G * shape(V)``, where ``shape(v_ref) = v_ref``.

    So G is the conductance at the voltage at which devices are programmed and read, whatever the law.

    Parameters
    ----------
    model
        ``ohmic``: ``shape(V) = V``. ``sinh`` (hopping, tunnelling): ``v_ref sinh(alpha V) / sinh(alpha v_ref)``.
        ``cubic``: ``V (1 + alpha V^2) / (1 + alpha v_ref^2)``.
    alpha
        How far from ohmic, at least 0, where all are ohmic; 1/V for ``sinh``, 1/V^2 for ``cubic``, else without effect.
    asymmetry
        Currents below 0 V are ``1 + asymmetry`` times as large; above -1.
    v_ref
        Volts, above 0.

    Raises
    ------
    DataError
        A ValueError: a parameter is out of its range.
    """

    model: Model = "ohmic"
    alpha: float = 0.0
    asymmetry: float = 0.0
    v_ref: float = 0.2

    def __post_init__(self) -> None:
        """Refuse parameters out of their range."""
        if self.model not in MODELS:
            raise DataError("model", f"must be one of {', '.join(MODELS)}", got=self.model)
        for name, least, includes in (("alpha", 0, True), ("asymmetry", -1, False), ("v_ref", 0, False)):
            value = getattr(self, name)
            wanted = f"must be a finite number {'of at least' if includes else 'above'} {least}"
            if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
                raise DataError(name, wanted, got=value)
            if not (least <= value < math.inf and (includes or value != least)):
                raise DataError(name, wanted, got=value)
        if self.model == "sinh" and self.alpha * self.v_ref > STEEPEST:
            raise DataError("alpha", f"must be at most {STEEPEST:g} / v_ref", got=self.alpha)

    def current_shape(self, volts: Float64) -> Float64:
        """Current for a device of one siemens, amperes, at each of `volts`."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self._ohmic:
                shape = volts
            elif self.model == "sinh":
                shape = self._scale * np.sinh(self.alpha * volts)
            else:
                shape = self._scale * volts * (1.0 + self.alpha * volts * volts)
            return shape * self._side(volts)

    def slope(self, volts: Float64) -> Float64:
        """Derivative of `current_shape` at each of `volts`; at 0 V that of the side above."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self._ohmic:
                return self._side(volts)
            if self.model == "sinh":
                return self._scale * self.alpha * np.cosh(self.alpha * volts) * self._side(volts)
            return self._scale * (1.0 + 3.0 * self.alpha * volts * volts) * self._side(volts)

    def _side(self, volts: Float64) -> Float64:
        return np.where(volts < 0.0, 1.0 + self.asymmetry, 1.0)

    @property
    def linear(self) -> bool:
        """Whether currents are proportional to voltages of either sign."""
        return self._ohmic and self.asymmetry == 0.0

    @property
    def _ohmic(self) -> bool:
        """Also where a sinh of less than 1e-9 per volt is no different, but for its rounding."""
        return self.model == "ohmic" or self.alpha == 0.0 or (self.model == "sinh" and self.alpha < 1e-9)

    @property
    def _scale(self) -> float:
        """What makes ``shape(v_ref) = v_ref``."""
        if self._ohmic:
            return 1.0
        if self.model == "sinh":
            return self.v_ref / math.sinh(self.alpha * self.v_ref)
        return 1.0 / (1.0 + self.alpha * self.v_ref**2)


OHMIC = CurrentVoltage()


@dataclass(frozen=True)
class NetworkCurrents:
    """Currents of a crossbar, and what it took to find them."""

    sensed: Float64
    """Into the sense nodes, amperes ``(..., N)``: zero for floating columns."""
    driven: Float64
    """From the drivers, amperes ``(..., M)``: zero for floating rows."""
    sweeps: npt.NDArray[np.int64]
    """Sweeps (all bit lines, then all word lines) of each vector ``(...)``."""


@functools.cache
def kernels() -> ModuleType | None:
    """The compiled sweeps, or None where numba is missing."""
    try:
        from runtime.physics import network_numba
    except ImportError:
        return None
    return network_numba


def solve_currents(
    G: npt.ArrayLike,
    volts: npt.ArrayLike,
    iv: CurrentVoltage = OHMIC,
    *,
    r_word: npt.ArrayLike,
    r_bit: npt.ArrayLike,
    r_driver: float = 0.0,
    r_sense: float = 0.0,
    sense_volts: npt.ArrayLike = 0.0,
    floating_rows: npt.ArrayLike | None = None,
    floating_cols: npt.ArrayLike | None = None,
    tolerance: float = 1e-9,
    max_sweeps: int = MAX_SWEEPS,
    threads: int | None = None,
) -> Float64:
    """Currents into the sense nodes of a crossbar: `solve_network`, whose parameters and errors it has.

    Returns
    -------
    (..., N) float64
        Amperes, from the bit line into its sense node; zero for floating columns. Without any resistance it is
        ``sum_i G_ij shape(volts_i - sense_volts_j)``.
    """
    return solve_network(
        G,
        volts,
        iv,
        r_word=r_word,
        r_bit=r_bit,
        r_driver=r_driver,
        r_sense=r_sense,
        sense_volts=sense_volts,
        floating_rows=floating_rows,
        floating_cols=floating_cols,
        tolerance=tolerance,
        max_sweeps=max_sweeps,
        threads=threads,
    ).sensed


def solve_network(
    G: npt.ArrayLike,
    volts: npt.ArrayLike,
    iv: CurrentVoltage = OHMIC,
    *,
    r_word: npt.ArrayLike,
    r_bit: npt.ArrayLike,
    r_driver: float = 0.0,
    r_sense: float = 0.0,
    sense_volts: npt.ArrayLike = 0.0,
    floating_rows: npt.ArrayLike | None = None,
    floating_cols: npt.ArrayLike | None = None,
    tolerance: float = 1e-9,
    max_sweeps: int = MAX_SWEEPS,
    threads: int | None = None,
) -> NetworkCurrents:
    """Solve a crossbar of non-ohmic devices, biased and floating lines, for each vector of driver voltages.

    Newton's method, each step by line Gauss-Seidel sweeps that conjugate gradients speed up (``docs/physics.md``;
    `network_sweeps` tells how and why it converges). Zero resistances are exact, devices of 0 S are none.

    Parameters
    ----------
    G : (M, N)
        Conductances of the devices at ``iv.v_ref``, siemens, finite and not negative.
    volts : (..., M)
        Voltages of the word lines' drivers, finite; those of floating rows are not used.
    iv
        Law of all devices.
    r_word, r_bit : broadcastable to (M, N)
        Ohms of each segment, as for `wires.effective_matrix`; infinite: an open line.
    r_driver, r_sense
        Ohms of every driver's output and every sense input.
    sense_volts : one number or (N,)
        Voltages of the sense nodes: the bias of columns that are not read, or a virtual ground's offset.
    floating_rows : (M,) bool, floating_cols : (N,) bool
        Lines that are connected to nothing at their end.
    tolerance
        Largest error of a current, as a share of the vector's largest current (of a device or a sense node).
    max_sweeps
        Most sweeps of a vector.
    threads
        How many threads share the vectors; `wires.default_threads` unless given. It never changes a result.

    Returns
    -------
    NetworkCurrents

    Raises
    ------
    DataError
        A ValueError: a shape does not fit, a value is out of its range, or a vector does not converge.
    """
    g = checked_conductances(G)
    if g.ndim != 2:
        raise DataError("G", "must have the shape (M, N)", got=g.shape)
    m, n = g.shape
    v = _finite("volts", volts)
    if v.ndim == 0 or v.shape[-1] != m:
        raise DataError("volts", f"must have the shape (..., {m}), one for each word line", got=v.shape)
    sense = _finite("sense_volts", sense_volts)
    if sense.shape not in ((), (n,)):
        raise DataError("sense_volts", f"must be one number or have the shape ({n},)", got=sense.shape)
    sense = np.broadcast_to(sense, n).copy()
    rw, rb = (np.ascontiguousarray(r) for r in checked_segments(g.shape, r_word, r_bit, r_driver, r_sense))
    rw[_flags("floating_rows", floating_rows, m), 0] = np.inf
    rb[-1, _flags("floating_cols", floating_cols, n)] = np.inf
    if not 0.0 < tolerance < 1.0:
        raise DataError("tolerance", "must be above 0 and below 1", got=tolerance)
    if max_sweeps < 1:
        raise DataError("max_sweeps", "must be at least 1", got=max_sweeps)
    batch, v = v.shape[:-1], np.ascontiguousarray(v.reshape(-1, m))
    word_start, bit_start = _start(v, sense, np.isinf(rw[:, 0]), np.isinf(rb[-1]))
    if iv.model == "sinh" and v.size:
        span = max(np.ptp(np.append(one, sense)) for one in word_start)
        if iv.alpha * span > STEEPEST:
            raise DataError("volts", f"must span at most {STEEPEST:g} / alpha", got=float(span))

    count = len(v)
    sensed, driven, astray = np.empty((count, n)), np.empty((count, m)), np.empty(count)
    sweeps, converged = np.empty(count, np.int64), np.empty(count, np.bool_)
    compiled = kernels()
    kind = 0 if iv._ohmic else MODELS.index(iv.model)
    law = np.array([iv.alpha, iv._scale, 1.0 + iv.asymmetry])
    g = np.ascontiguousarray(g)

    def work(part: slice) -> None:
        if compiled is not None:
            starts = word_start[part], bit_start[part]
            out = sensed[part], driven[part], sweeps[part], astray[part], converged[part]
            compiled.sweep_all(g, rw, rb, v[part], sense, *starts, kind, law, tolerance, max_sweeps, *out)
            return
        for k in range(part.start, part.stop):
            found = sweep(g, rw, rb, v[k], sense, (word_start[k], bit_start[k]), iv, tolerance, max_sweeps)
            sensed[k], driven[k], sweeps[k] = found.sensed, found.driven, found.sweeps
            astray[k], converged[k] = found.astray, found.converged

    share_out(count, work, threads)
    if not converged.all():
        bad = int(np.flatnonzero(~converged)[0])
        where = f"vector {[int(k) for k in np.unravel_index(bad, batch)]}" if batch else "network"
        raise DataError(
            where,
            f"must converge to {tolerance:g} of its largest current in {sweeps[bad]} sweeps",
            got=float(astray[bad]),
            hint="raise max_sweeps or tolerance, or check for devices far stronger than the wires to them",
        )
    return NetworkCurrents(sensed.reshape(*batch, n), driven.reshape(*batch, m), sweeps.reshape(batch))


def _start(volts: Float64, sense: Float64, free_rows: Bools, free_cols: Bools) -> tuple[Float64, Float64]:
    """Voltages of the lines ``(B, M), (B, N)`` to start from: of their ends, for floating ones the mean of all ends."""
    words, bits = volts.copy(), np.tile(sense, (len(volts), 1))
    ends = np.concatenate([words[:, ~free_rows], bits[:, ~free_cols]], axis=1)
    mean = ends.mean(1, keepdims=True) if ends.shape[1] else np.zeros((len(volts), 1))
    words[:, free_rows] = mean
    bits[:, free_cols] = mean
    return words, bits


def _finite(name: str, value: npt.ArrayLike) -> Float64:
    volts = checked_numbers(name, "volts", value)
    if not np.isfinite(volts).all():
        raise DataError(name, "must be finite voltages", got=float(volts[~np.isfinite(volts)][0]))
    return volts


def _flags(name: str, value: npt.ArrayLike | None, lines: int) -> Bools:
    if value is None:
        return np.zeros(lines, np.bool_)
    flags = np.asarray(value)
    if flags.dtype != np.bool_ or flags.shape != (lines,):
        got = f"{flags.shape} of {flags.dtype}"
        raise DataError(name, f"must be ({lines},) of bool, true where a line floats", got=got)
    return flags
