"""What a sweep runs: points, each a program on a spec, and the chips of each."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import JsonValue

from compiler.compile import CompileOptions
from hwspec.effects import EFFECTS, OF_A_CHIP, QUANTISATION, active_effects, chosen_effects
from hwspec.errors import DataError, SpecError
from hwspec.spec import HardwareSpec
from hwspec.units import parse_quantity
from runtime.program import TileProgram
from xbarc.sweeping.design import Design

COMPILE = "compile."
"""Prefix of options of compiling among the fields that vary."""

OPTIONS = ("share_arrays", "predistort", "steps", "robust", "replicas", "copies", "array_budget")
"""Options of compiling that can vary: those that a program can be mapped anew with."""

TIME = "time"
"""Name of the time between programming and the reads among the fields that vary."""

_INERT = ("chip", "costs", "name")
"""Sections that no result of a run depends on."""


def _of_the_chip() -> tuple[str, ...]:
    """Fields and sections that a finished program meets on a chip, as opposed to those that it was made for."""
    fields = {path for name, effect in EFFECTS.items() if name not in QUANTISATION for path in effect}
    sections = {path.rsplit(".", 1)[0] for path in fields}
    whole = {path for path in sections if path.count(".") == 1}
    return ("failures", "device.temperature_coefficient", "device.drift", *sorted(whole), *sorted(fields))


_OF_THE_CHIP = _of_the_chip()


def stays(field: str) -> bool:
    """Whether a program stays as it is where this field of its spec changes, or must be mapped anew.

    It stays where the field is of an effect that a chip has, like failures, spread, noise, drift, wires or offsets. It
    was made for sizes, levels, converters and ways of coding.
    """
    return any(field == one or field.startswith(one + ".") for one in _OF_THE_CHIP)


@dataclass(frozen=True)
class Point:
    """One point of a sweep: all that decides its results but the seed of a chip.

    Attributes
    ----------
    program
        Hash of the program that it starts from.
    fields
        Of the spec that differ from the program's.
    options
        Of compiling that differ from the program's.
    seconds
        Between programming and the reads.
    remap
        Whether the program is mapped for each chip.
    effects
        Physical effects that are on.
    spec_sha256
        Hash of the spec with these fields.
    label
        What the user calls the program.
    values
        Of all that varies or is fixed, under the names that the user gave.
    random
        Whether chips differ; else there is one.
    """

    program: str
    fields: Mapping[str, JsonValue]
    options: Mapping[str, JsonValue]
    seconds: float
    remap: bool
    effects: tuple[str, ...]
    spec_sha256: str
    label: str
    values: Mapping[str, JsonValue]
    random: bool

    @property
    def key(self) -> str:
        """Hash of all that decides the results; points of the same key are the same."""
        decides = [self.program, self.spec_sha256, dict(self.options), self.seconds, self.remap, self.effects]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]

    def anew(self) -> bool:
        """Whether the program is mapped anew for the point."""
        return bool(self.options) or not all(map(stays, self.fields))

    def compile_options(self, recorded: CompileOptions) -> CompileOptions:
        """Those of the program, with what the point changes."""
        return with_options(recorded, self.options)

    def spec(self, base: HardwareSpec) -> HardwareSpec:
        """The program's spec with the point's fields."""
        return base.with_fields(dict(self.fields)) if self.fields else base

    def to_json(self) -> dict[str, Any]:
        """As plain data, for another process."""
        return {**dataclasses.asdict(self), "effects": list(self.effects)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_json` gave."""
        return cls(**{**data, "effects": tuple(data["effects"])})


def with_options(recorded: CompileOptions, changed: Mapping[str, Any]) -> CompileOptions:
    """Options with others; their own checks decide what values may be."""
    return dataclasses.replace(recorded, **changed)


def points_of(
    programs: Mapping[str, TileProgram],
    design: Design,
    recorded: Mapping[str, CompileOptions],
    *,
    fixed: Mapping[str, JsonValue] | None = None,
    seconds: float = 0.0,
    remap: bool = False,
    effects: frozenset[str] | None = None,
) -> list[Point]:
    """Every point of a design on every program, checked.

    Parameters
    ----------
    programs
        By the name that tells them apart.
    design
        Of fields of the spec, ``compile.`` options, and ``time``.
    recorded
        Options that each program was compiled with, by the same names.
    fixed
        Fields at every point.
    seconds
        Between programming and the reads, where ``time`` does not vary.
    remap
        Whether programs are mapped for each chip.
    effects
        That are on; None is all.

    Raises
    ------
    SpecError
        If a field does not exist, a value is out of range, or nothing depends on a field.
    DataError
        If an option does not exist or has another type.
    """
    held = dict(fixed or {})
    _check_names([*held, *design.fields], programs)
    for name in held:
        if name in design.fields:
            raise DataError(name, "must be varied or set once")
    points: dict[str, Point] = {}
    on = chosen_effects() if effects is None else effects
    rows = design.values()
    for label, program in programs.items():
        for values in rows:
            point = _point(program, {**held, **values}, recorded[label], seconds, remap, on)
            points.setdefault(point.key, dataclasses.replace(point, label=label, values={**held, **values}))
    return list(points.values())


def _check_names(names: list[str], programs: Mapping[str, TileProgram]) -> None:
    spec = next(iter(programs.values())).spec
    for name in names:
        if name.startswith(COMPILE):
            option = name.removeprefix(COMPILE)
            if option not in OPTIONS:
                close = difflib.get_close_matches(option, OPTIONS, n=1)
                hint = f"did you mean {COMPILE}{close[0]}?" if close else f"there are {', '.join(OPTIONS)}"
                raise DataError(name, "is no option of compiling that can vary", hint=hint)
        elif name != TIME:
            spec.check_names([name])
            if name.split(".")[0] in _INERT:
                raise SpecError(name, "changes no result of a run", hint="`xbarc tune-spec` tells what it costs")


def _point(
    program: TileProgram,
    values: Mapping[str, JsonValue],
    recorded: CompileOptions,
    seconds: float,
    remap: bool,
    effects: frozenset[str],
) -> Point:
    fields = {name: value for name, value in values.items() if name != TIME and not name.startswith(COMPILE)}
    options = {name.removeprefix(COMPILE): value for name, value in values.items() if name.startswith(COMPILE)}
    told = ", ".join(f"{name}={value}" for name, value in values.items())
    try:
        spec = program.spec.with_fields(fields) if fields else program.spec
    except SpecError as error:
        raise SpecError(f"point {told}", error.requirement, hint=error.hint) from None
    try:
        with_options(recorded, options)
    except (TypeError, ValueError) as error:
        reason = error.requirement if isinstance(error, DataError) else str(error)
        raise DataError(f"point {told}", f"has an option that {reason}") from None
    try:
        at = parse_quantity(str(values.get(TIME, seconds)), "second")
    except ValueError as error:
        raise DataError(f"point {told}", f"has a time that {error}") from None
    if not 0 <= at < float("inf"):
        raise DataError(f"point {told}", "must have a finite time from 0 s up", got=at)
    before = dict(program.spec.fields())
    changed = {name: value for name, value in fields.items() if dict(spec.fields())[name] != before[name]}
    random = bool(OF_A_CHIP.intersection(active_effects(spec)) & effects)
    return Point(
        program=program.sha256,
        fields=changed,
        options=options,
        seconds=float(at),
        remap=remap,
        effects=tuple(sorted(effects)),
        spec_sha256=spec.sha256,
        label="",
        values={},
        random=random,
    )
