"""Every field of a spec does something: two programs that differ in this field alone differ as they should.

The fields are read from the schema: one that is added without a test here fails. The tests are in the modules
`effects_of_arrays`, `effects_of_converters`, `effects_of_costs`, `effects_of_devices`, `effects_of_failed_devices`,
`effects_of_failures`, `effects_of_periphery` and `effects_of_read_noise`.
"""

import types
import typing

import effects_of_arrays  # noqa: F401
import effects_of_converters  # noqa: F401
import effects_of_costs  # noqa: F401
import effects_of_devices  # noqa: F401
import effects_of_failed_devices  # noqa: F401
import effects_of_failures  # noqa: F401
import effects_of_periphery  # noqa: F401
import effects_of_read_noise  # noqa: F401
import pytest
from pydantic import BaseModel
from spec_effects import EFFECTS, IDEAL, SMALL, Fields, close, currents, effect, on_spec, pair, sampled

from hwspec.spec import HardwareSpec


def leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of the schema's leaf fields, sections below optional and list types included."""
    found = []
    for name, info in model.model_fields.items():
        sections = [part for part in _parts(info.annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        for section in sections:
            found += leaves(section, f"{prefix}{name}.")
        if not sections and f"{prefix}{name}" != "sources":
            found.append(f"{prefix}{name}")
    return found


def _parts(annotation: object) -> list[object]:
    """The types that an annotation is made of."""
    if typing.get_origin(annotation) is None:
        return [annotation]
    return [part for argument in typing.get_args(annotation) for part in _parts(argument)]


@effect("name")
def _name() -> None:
    one, other = pair("name", "first", "second")
    assert (one.report.spec, other.report.spec) == ("first", "second")
    assert one.spec.sha256 != other.spec.sha256
    assert "first" in one.listing()
    assert "second" in other.listing()


@pytest.mark.parametrize("field", sorted(set(leaves(HardwareSpec)) | set(EFFECTS)))
def test_every_field_has_its_effect(field: str) -> None:
    assert field in leaves(HardwareSpec), f"{field} is no field of the spec: remove the test of its effect"
    assert field in EFFECTS, f"{field} has no test of its effect: register one here"
    EFFECTS[field]()


def test_the_walk_sees_what_a_spec_holds() -> None:
    assert sorted(leaves(HardwareSpec)) == sorted(dict(HardwareSpec.preset("rram-128").fields()))


def test_the_walk_reaches_optional_and_listed_sections() -> None:
    class Inner(BaseModel):
        a: int
        b: int | None

    class Outer(BaseModel):
        one: Inner | None
        many: tuple[Inner, ...]
        plain: dict[str, str]

    assert leaves(Outer) == ["one.a", "one.b", "many.a", "many.b", "plain"]


def test_union_types_are_walked() -> None:
    assert _parts(int | None) == [int, types.NoneType]


LIMITS: dict[str, Fields] = {
    "ohmic": {},
    "sense offset": {"periphery.sense_offset_sigma": 5e-3},
    "amplitudes": {"device.iv.model": "sinh", "device.iv.alpha": 8.0, "periphery.input_coding": "amplitude"},
    "pulses": {"device.iv.model": "cubic", "device.iv.alpha": 8.0, "device.iv.asymmetry": 0.5},
    "floating lines": {"array.unselected": "floating"},
    "biased lines and pulses": {"array.unselected": "third", "device.iv.asymmetry": 0.5},
    "neighbouring rows": {"array.pairing": "neighbouring_rows", "device.iv.asymmetry": 0.5},
    "telegraph noise": {"device.telegraph.amplitude": 0.2},
    "sense offset and amplitudes": {
        "periphery.sense_offset_sigma": 5e-3,
        "periphery.input_coding": "amplitude",
        "device.iv.model": "sinh",
        "device.iv.alpha": 8.0,
    },
    "sense offset and pulses": {"periphery.sense_offset_sigma": 5e-3, "device.iv.asymmetry": 0.5},
}
"""Devices and circuits whose currents are found in another way once wires have any resistance."""


@pytest.mark.parametrize("case", LIMITS)
def test_wires_of_almost_no_resistance_are_none(case: str) -> None:
    fixed: Fields = {**IDEAL, "array.rows": 18, "array.cols": 10, "array.unused": 5e-6, **LIMITS[case]}
    none, _ = pair("array.r_word", 0.0, 1.0, fixed, SMALL)
    some = on_spec(none, none.spec.with_fields({"array.r_word": 1e-6}))
    x = 0.4 * SMALL.inputs(4, batch=10)
    close(currents(sampled(none), x), currents(sampled(some), x), 1e-6)
