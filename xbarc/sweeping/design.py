"""Which values a sweep takes: grids, and random or Sobol' designs over the same axes."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import JsonValue

from hwspec.errors import DataError
from xbarc.spec_grid import Axis

Kind = Literal["grid", "random", "sobol"]
KINDS: tuple[Kind, ...] = ("grid", "random", "sobol")
MOST_POINTS = 100_000
_EXAMPLE = "--vary failures.unformed.rate=0.001:0.1:log7"
_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_SPAN = re.compile(rf"\s*{_NUMBER}\s*:\s*{_NUMBER}\s*:\s*(lin|log)(\d{{1,6}})?\s*")


@dataclass(frozen=True)
class Span:
    """Fields that move together between two ends.

    Attributes
    ----------
    fields
        Dotted names.
    low, high
        Ends, both included.
    scale
        Whether they move in equal steps or in equal ratios.
    """

    fields: tuple[str, ...]
    low: float
    high: float
    scale: Literal["lin", "log"]

    def at(self, share: float) -> float:
        """The value at a share, 0 to 1, of the way."""
        if self.scale == "lin":
            return self.low + (self.high - self.low) * share
        return math.exp(math.log(self.low) + (math.log(self.high) - math.log(self.low)) * share)

    def steps(self, count: int) -> list[float]:
        """`count` values from end to end, of 12 digits; the ends are exact."""
        if count == 1:
            return [self.low]
        inner = [float(f"{self.at(index / (count - 1)):.12g}") for index in range(1, count - 1)]
        return [self.low, *inner, self.high]


def parse_axis(text: str) -> Axis | Span:
    """Read ``FIELD=VALUES``, as `Axis.parse` does, or ``FIELD=LOW:HIGH:log7``, ``:lin5``, ``:log`` or ``:lin``.

    With a number the axis has so many values from end to end; without, any value between them, for random designs.

    Raises
    ------
    DataError
        If the text is no such thing.
    """
    name, _, values = text.partition("=")
    found = _SPAN.fullmatch(values)
    return Axis.parse(text) if found is None else _span(name, text, found)


def axis_of(name: str, values: object) -> Axis | Span:
    """An axis from a name and a list of values, or the text that `parse_axis` takes behind the equals sign."""
    if isinstance(values, str):
        return parse_axis(f"{name}={values}")
    if isinstance(values, bool | int | float) or values is None:
        values = [values]
    if not isinstance(values, Iterable):
        raise DataError(f"vary {name}", "must have a list of values, or text such as 0.001:0.1:log7", got=values)
    return Axis.of(name, values)


def _span(name: str, text: str, found: re.Match[str]) -> Axis | Span:
    fields = tuple(part.strip() for part in name.split(","))
    low, high, scale, count = float(found[1]), float(found[2]), found[3], found[4]
    if not all(fields):
        raise DataError("--vary", "must name fields, separated by commas", got=text, hint=_EXAMPLE)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError("--vary", "must have ends LOW:HIGH of which the first is lower", got=text, hint=_EXAMPLE)
    if scale == "log" and low <= 0:
        raise DataError("--vary", "must have positive ends for equal ratios", got=text, hint="lin, or a list of values")
    span = Span(fields, low, high, "log" if scale == "log" else "lin")
    if count is None:
        return span
    if int(count) < 1:
        raise DataError("--vary", "must have at least one value", got=text, hint=_EXAMPLE)
    if int(count) > MOST_POINTS:
        raise DataError("--vary", f"must have at most {MOST_POINTS} values", got=text)
    return Axis.of(name, span.steps(int(count)))


@dataclass(frozen=True)
class Design:
    """The points of a sweep, each a value for every field that varies.

    Attributes
    ----------
    kind
        All combinations (``grid``), or `points` drawn evenly, at random or as a scrambled Sobol' sequence
        (``scipy.stats.qmc``), which fills the space more evenly.
    axes
        What varies.
    points
        Drawn ones; None for a grid.
    seed
        Of what is drawn. The first points of more points are those of fewer.
    """

    kind: Kind
    axes: tuple[Axis | Span, ...]
    points: int | None
    seed: int

    @classmethod
    def of(
        cls,
        vary: Mapping[str, object] | Sequence[Axis | Span],
        kind: str = "grid",
        points: int | None = None,
        seed: int = 0,
    ) -> Self:
        """A design that can be made.

        Raises
        ------
        DataError
            If there is no such kind, a field varies twice, or there are no points or too many.
        """
        if kind not in KINDS:
            raise DataError("design", f"must be one of {', '.join(KINDS)}", got=kind)
        axes = tuple(axis_of(*item) for item in vary.items()) if isinstance(vary, Mapping) else tuple(vary)
        names = [field for axis in axes for field in axis.fields]
        for name in names:
            if names.count(name) > 1:
                raise DataError(name, "must be varied once", hint="fields that move together go into one --vary")
        if kind == "grid":
            for axis in axes:
                if isinstance(axis, Span):
                    requirement = "must have a number of values in a grid"
                    raise DataError(f"vary {','.join(axis.fields)}", requirement, hint=f"{_EXAMPLE}, or --design sobol")
            if points is not None:
                raise DataError("points", "are those of a design that is drawn", hint="--design random or sobol")
        elif points is None or not 1 <= points <= MOST_POINTS:
            raise DataError("points", f"must be 1 to {MOST_POINTS} for a design that is drawn", got=points)
        if kind != "grid" and not axes:
            raise DataError("vary", "must name at least one field for a design that is drawn", hint=_EXAMPLE)
        design = cls(kind, axes, points, seed)
        if len(design) > MOST_POINTS:
            raise DataError("vary", f"must span at most {MOST_POINTS} points", got=len(design))
        return design

    def __len__(self) -> int:
        """Count the points; a grid over nothing has one."""
        if self.points is not None:
            return self.points
        return math.prod(len(axis.values) for axis in self.axes if isinstance(axis, Axis))

    @property
    def fields(self) -> list[str]:
        """All that vary."""
        return [field for axis in self.axes for field in axis.fields]

    def values(self) -> list[dict[str, JsonValue]]:
        """The varied fields of every point; of a grid the last axis moves fastest."""
        if self.kind != "grid":
            return [self._drawn(row) for row in self._shares()]
        shape = [len(axis.values) for axis in self.axes if isinstance(axis, Axis)]
        return [self._at(index) for index in np.ndindex(*shape)]

    def _at(self, index: tuple[int, ...]) -> dict[str, JsonValue]:
        chosen = [axis.values[at] for axis, at in zip(self.axes, index, strict=True) if isinstance(axis, Axis)]
        return {field: value for axis, value in zip(self.axes, chosen, strict=True) for field in axis.fields}

    def _drawn(self, shares: Sequence[float]) -> dict[str, JsonValue]:
        found: dict[str, JsonValue] = {}
        for axis, share in zip(self.axes, shares, strict=True):
            value: Any
            if isinstance(axis, Span):
                value = float(f"{axis.at(share):.12g}")
            else:
                value = axis.values[int(share * len(axis.values))]
            found |= dict.fromkeys(axis.fields, value)
        return found

    def _shares(self) -> list[list[float]]:
        count, axes = len(self), len(self.axes)
        if self.kind == "random":
            generator = np.random.default_rng(np.random.SeedSequence([self.seed, 0x5EE9]))
            drawn = generator.random((count, axes))
        else:
            from scipy.stats import qmc

            # The sequence is balanced in powers of two; the first of so many are the same for any number.
            drawn = qmc.Sobol(axes, rng=np.random.default_rng(self.seed)).random_base2((count - 1).bit_length())
        rows: list[list[float]] = drawn[:count].tolist()
        return rows
