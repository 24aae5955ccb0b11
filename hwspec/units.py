"""Physical quantities in specs: plain SI floats in code, text with units in files (``"100 uS"``)."""

import functools
import math
import numbers
import re
import typing
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo

from hwspec.errors import shown

if TYPE_CHECKING:
    import pint

_TEXT = re.compile(
    r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
    r"((?:1/)?[A-Za-zµμΩ_/ ]{0,40}(?:(?:²|\^2| ?\*\* ?2)(?![\d.]))?)"
)
"""A number and a unit: pint itself would also evaluate arithmetic, and take forever over ``9**9**9``."""


@functools.cache
def _registry() -> "pint.UnitRegistry[Any]":
    import pint

    # Decimal, so that "100 uS" is the float nearest to 1e-4, and not 100 times the one nearest to 1e-6.
    return pint.UnitRegistry(non_int_type=Decimal)


def parse_quantity(value: object, unit: str) -> float:
    """Read a number in SI units from a number or a text with units.

    Parameters
    ----------
    value
        A number (taken to be in ``unit``, as text too) or text such as ``"100 uS"`` or ``"2.5 ohm"``.
    unit
        The SI unit that the field is kept in, e.g. ``"siemens"``.

    Raises
    ------
    ValueError
        If the text is no quantity, of another dimension, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
        raise ValueError(f"must be a number or text with units of {unit}, not {shown(value)}")
    if isinstance(value, str):
        import pint

        malformed = f'must be text such as "1.5 {unit}", not {shown(value)}'
        found = _TEXT.fullmatch(value)
        if found is None:
            raise ValueError(malformed)
        try:
            # YAML hands numbers such as 1e-6 over as text.
            quantity = _registry().Quantity(Decimal(found[1]), found[2].strip() or unit)
            number = float(quantity.to(unit).magnitude)
        except pint.DimensionalityError:
            raise ValueError(f"must be a quantity in {unit}, not {shown(value)}") from None
        except Exception:  # pint raises tokenizer and attribute errors of many kinds on malformed text
            raise ValueError(malformed) from None
    else:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"must be finite, not {shown(value)}")
    return number


def format_quantity(value: float, unit: str) -> str:
    """Print an SI number with a readable prefix, e.g. ``1e-4`` siemens as ``"100 uS"``; it reads back unchanged."""
    quantity = _registry().Quantity(Decimal(repr(value)), unit)
    compact = quantity.to_compact() if value else quantity
    text = f"{float(compact.magnitude):.12g} {compact.units:~C}".replace("µ", "u")
    return text if parse_quantity(text, unit) == value else f"{value!r} {unit}"


def unit_of(info: FieldInfo) -> str | None:
    """The SI unit of a field's values; None where it is no quantity."""
    kinds = [info.json_schema_extra]
    for part in typing.get_args(info.annotation):  # optional quantities have it inside
        kinds += [one.json_schema_extra for one in getattr(part, "__metadata__", ()) if isinstance(one, FieldInfo)]
    return next((str(extra["unit"]) for extra in kinds if isinstance(extra, dict) and "unit" in extra), None)


def _quantity(unit: str) -> tuple[BeforeValidator, Any]:
    return BeforeValidator(lambda v: parse_quantity(v, unit)), Field(json_schema_extra={"unit": unit})


def _not_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {shown(value)}")
    return value


Siemens = Annotated[float, *_quantity("siemens")]
Volt = Annotated[float, *_quantity("volt")]
Ohm = Annotated[float, *_quantity("ohm")]
Second = Annotated[float, *_quantity("second")]
Ampere = Annotated[float, *_quantity("ampere")]
ElectronVolt = Annotated[float, *_quantity("electron_volt")]
PerVolt = Annotated[float, *_quantity("1/volt")]
PerKelvin = Annotated[float, *_quantity("1/kelvin")]
Joule = Annotated[float, *_quantity("joule")]
Watt = Annotated[float, *_quantity("watt")]
Hertz = Annotated[float, *_quantity("hertz")]
Metre = Annotated[float, *_quantity("meter")]
SquareMetre = Annotated[float, *_quantity("meter ** 2")]
BytesPerSecond = Annotated[float, *_quantity("byte / second")]
Whole = Annotated[int, BeforeValidator(_not_boolean)]
"""A whole number; ``true`` is none, though Python counts it as 1."""
Share = Annotated[float, BeforeValidator(_not_boolean)]
"""A fraction of something."""
Number = Annotated[float, BeforeValidator(_not_boolean)]
"""A number without a unit that has a prefix: least significant bits, degrees Celsius."""
