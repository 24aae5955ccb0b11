"""A grid of hardware specs: fields of one that vary, alone or together, and the values that they take."""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, JsonValue

from hwspec.errors import DataError, SpecError
from hwspec.spec import HardwareSpec

MOST_VALUES = 10_000
MOST_POINTS = 100_000
_LARGEST_GRID = 10**12
_RANGE = re.compile(r"\s*([+-]?\d{1,9})\s*:\s*([+-]?\d{1,9})\s*(?::\s*([+-]?\d{1,9})\s*)?")
_FORM = "must be FIELD=VALUES, or FIELD,FIELD=VALUES"
_EXAMPLE = "--vary array.rows,array.cols=64,128 --vary periphery.adc_bits=5:9"


class Axis(BaseModel):
    """Fields that move together, and the values that they take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: tuple[str, ...]
    values: tuple[JsonValue, ...]

    @property
    def name(self) -> str:
        """The fields, separated by commas."""
        return ",".join(self.fields)

    @classmethod
    def of(cls, name: str, values: Iterable[object]) -> Self:
        """The axis of fields separated by commas; raises `DataError` where names or values are missing or repeated."""
        subject = f"vary {name}".strip()
        fields = tuple(part.strip() for part in name.split(","))
        if not all(fields):
            raise DataError(subject, "must name fields, separated by commas", hint=_EXAMPLE)
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise DataError(subject, "must have a list of values", got=values)
        found = tuple(_plain(subject, value) for value in itertools.islice(values, MOST_VALUES + 1))
        if not found:
            raise DataError(subject, "must have at least one value", hint=_EXAMPLE)
        if len(found) > MOST_VALUES:
            raise DataError(subject, f"must have at most {MOST_VALUES} values")
        seen: set[str] = set()
        for value in found:
            text = json.dumps(value)
            if text in seen:
                raise DataError(subject, "must have each value once", got=value)
            seen.add(text)
        return cls(fields=fields, values=found)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``array.rows,array.cols=64,128`` or ``periphery.adc_bits=5:9``.

        Values are YAML, as those of ``--set``; ``low:high`` and ``low:high:step`` are whole numbers, both ends
        included.

        Raises
        ------
        DataError
            If the text is no such thing, or a range is empty.
        """
        name, separator, listed = text.partition("=")
        if not separator:
            raise DataError("--vary", _FORM, got=text, hint=_EXAMPLE)
        try:
            # YAML takes 5:09 for a number of minutes, so ranges are looked for in the text of each value.
            texts = yaml.load(f"[{listed}]", Loader=yaml.BaseLoader)
            values = yaml.safe_load(f"[{listed}]")
        except yaml.YAMLError:
            raise DataError("--vary", "must have values that are valid YAML", got=text) from None
        found: list[object] = []
        for written, value in zip(texts, values, strict=True):
            matched = _RANGE.fullmatch(written) if isinstance(written, str) else None
            found += _range(text, matched) if matched else [value]
        return cls.of(name.strip(), found)


def _range(text: str, found: re.Match[str]) -> Sequence[int]:
    low, high, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if step < 1 or high < low:
        raise DataError("--vary", "must have ranges low:high or low:high:step that hold a number", got=text)
    numbers = range(low, high + 1, step)
    if len(numbers) > MOST_VALUES:
        raise DataError("--vary", f"must have at most {MOST_VALUES} values", got=text)
    return numbers


def _plain(subject: str, value: object) -> JsonValue:
    """A value as JSON has it: numbers of numpy and tuples become Python's numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_plain(subject, one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(subject, one) for key, one in value.items()}
    raise DataError(subject, "must have finite numbers, text, true, false, null, or lists of them as values", got=value)


@dataclass(frozen=True)
class SpecGrid:
    """All combinations of the values of some axes; points are numbered, the last axis moves fastest.

    Attributes
    ----------
    base
        What does not vary.
    axes
        What varies; no field twice.
    fixed
        Fields that are set at every point.
    """

    base: HardwareSpec
    axes: tuple[Axis, ...]
    fixed: Mapping[str, JsonValue]

    @classmethod
    def of(
        cls,
        base: HardwareSpec,
        vary: Mapping[str, Iterable[object]] | Sequence[Axis],
        fixed: Mapping[str, object] | None = None,
    ) -> Self:
        """A grid, every field of which the spec has.

        Raises
        ------
        SpecError
            If there is no such field.
        DataError
            If nothing varies, a field is given twice, or there are too many points.
        """
        axes = tuple(Axis.of(*item) for item in vary.items()) if isinstance(vary, Mapping) else tuple(vary)
        if not axes:
            raise DataError("vary", "must name at least one field", hint=_EXAMPLE)
        held = {name: _plain(name, value) for name, value in (fixed or {}).items()}
        names = [*held, *(field for axis in axes for field in axis.fields)]
        base.check_names(names)
        for name in names:
            if names.count(name) > 1:
                raise DataError(name, "must be varied or set once", hint="fields that move together go into one --vary")
        grid = cls(base, axes, held)
        if len(grid.shape) > 32 or math.prod(grid.shape) > _LARGEST_GRID:
            raise DataError("vary", f"must span a grid of at most {_LARGEST_GRID} points")
        return grid

    @property
    def shape(self) -> tuple[int, ...]:
        """Values of each axis."""
        return tuple(len(axis.values) for axis in self.axes)

    def __len__(self) -> int:
        """Count the points."""
        return math.prod(self.shape)

    def numbers(self, points: int | None, seed: int) -> list[int]:
        """Numbers of `points` points drawn at random, in order; None, or as many as there are, takes all.

        Raises
        ------
        DataError
            If that is too many, or none.
        """
        wanted = len(self) if points is None else min(points, len(self))
        if wanted < 1:
            raise DataError("points", "must be at least 1", got=points)
        if wanted > MOST_POINTS:
            raise DataError("points", f"must be at most {MOST_POINTS}", got=wanted, hint="--points N draws some")
        if wanted == len(self):
            return list(range(wanted))
        bits, drawn = np.random.PCG64(np.random.SeedSequence([seed, len(self)])), set[int]()
        while len(drawn) < wanted:
            drawn.add(int(bits.random_raw()) % len(self))
        return sorted(drawn)

    def values(self, number: int) -> dict[str, JsonValue]:
        """The varied fields of a point."""
        at = np.unravel_index(number, self.shape)
        return {field: axis.values[index] for axis, index in zip(self.axes, at, strict=True) for field in axis.fields}

    def spec(self, number: int) -> HardwareSpec:
        """The spec of a point; raises `SpecError` naming the point where it is none."""
        try:
            return self.base.with_fields({**self.fixed, **self.values(number)})
        except SpecError as error:
            told = ", ".join(f"{name}={value}" for name, value in self.values(number).items())
            raise SpecError(f"point {told}", error.requirement, hint=error.hint) from None
