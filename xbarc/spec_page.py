"""The fields of a hardware spec and its effects, read from the schema: the page ``docs/spec.md``."""

import types
import typing
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hwspec.effects import EFFECTS
from hwspec.scope import EXCLUDED
from hwspec.spec import HardwareSpec
from hwspec.units import format_quantity, unit_of

_HEADINGS = {
    "device": "Devices",
    "array": "Arrays",
    "periphery": "Drivers, readout and converters",
    "chip": "Organisation of the chip",
    "costs": "Time, energy and area",
}


class DescribedField(NamedTuple):
    """A field of the spec: dotted name, what values it takes, default (None where it must be given) and meaning."""

    path: str
    kind: str
    default: str | None
    meaning: str


def described_fields() -> Iterator[DescribedField]:
    """Every field of a spec in the order of the schema, `sources` left out."""
    return _fields(HardwareSpec, "")


def _fields(model: type[BaseModel], prefix: str) -> Iterator[DescribedField]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{prefix}{name}.")
        elif f"{prefix}{name}" != "sources":
            default = None if info.is_required() else _shown(info.default, info)
            yield DescribedField(f"{prefix}{name}", _kind(info), default, info.description or "")


def _kind(info: FieldInfo) -> str:
    unit = unit_of(info)
    optional = "" if type(None) not in typing.get_args(info.annotation) else ", or null"
    parts = [part for part in typing.get_args(info.annotation) or (info.annotation,) if part is not types.NoneType]
    if typing.get_origin(info.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if tuple in (typing.get_origin(part) for part in parts):
        return f"number, or list of {unit}{optional}"
    if unit is not None:
        return unit.replace("_", " ") + optional
    names = {bool: "yes or no", int: "whole number", float: "number", str: "text"}
    found = next((text for kind, text in names.items() if kind in parts), "value")
    return found + optional


def _shown(value: object, info: FieldInfo) -> str:
    unit = unit_of(info)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if unit is not None and isinstance(value, float):
        return format_quantity(value, unit) if value else "0"
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown_page() -> str:
    """The page ``docs/spec.md``."""
    lines = [
        "# Fields of a hardware spec",
        "",
        "<!-- made by `make docs`; a test fails when it is stale -->",
        "",
        "Quantities are text with a unit (`100 uS`, `2.5 ohm`) or numbers in the unit named. A field without a default",
        "must be given, unless the file names a preset as its `base:`. `sources:` says where values come from.",
        "What each effect does, with its equation: [physics](physics.md).",
    ]
    section = ""
    for field in described_fields():
        top = field.path.split(".")[0]
        if top != section:
            section = top
            lines += ["", f"## {_HEADINGS.get(top, 'The spec')}", "", "| field | values | default | meaning |"]
            lines += ["|---|---|---|---|"]
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{field.path}` | {field.kind} | {default} | {field.meaning} |")
    lines += ["", "## Effects", "", "Each is switched by `--only` and `--without` of `xbarc run` and `xbarc eval`.", ""]
    lines += ["| effect | fields |", "|---|---|"]
    for name, fields in EFFECTS.items():
        lines.append(f"| `{name}` | {', '.join(f'`{path}`' for path in fields)} |")
    lines += ["", "## Not modelled", "", *(f"- {item}" for item in EXCLUDED)]
    return "\n".join(lines) + "\n"
