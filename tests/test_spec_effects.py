"""Every field of a spec does something: two programs that differ in this field alone differ as they should.

The fields are read from the schema: one that is added without a test here fails.
"""

import types
import typing
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import BaseModel
from small_programs import compile_small, matmul, small_spec

from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.reference import Conversion, Reference
from runtime.tables import Mvm

Effect = Callable[[], None]
EFFECTS: dict[str, Effect] = {}
MODEL = matmul(24, 12, seed=1)


def effect(field: str) -> Callable[[Effect], Effect]:
    """Register the test of a field's effect."""

    def register(test: Effect) -> Effect:
        assert field not in EFFECTS
        EFFECTS[field] = test
        return test

    return register


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


def pair(field: str, one: object, other: object, **fixed: object) -> tuple[TileProgram, TileProgram]:
    """Programs of one model for two specs that differ in a field; `fixed` sets others in both, ``__`` for dots."""
    base = small_spec({name.replace("__", "."): value for name, value in fixed.items()})
    specs = [base.with_fields({field: value}) for value in (one, other)]
    found = [dict(spec.fields()) for spec in specs]
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {field}
    first, second = (compile_small(MODEL, spec) for spec in specs)
    return first, second


def conductances(program: TileProgram) -> npt.NDArray[np.float64]:
    """Target conductances of all devices, siemens."""
    both = [side for tile in program.tables.tiles for side in program.target_conductances(tile.name)]
    return np.concatenate([side.ravel() for side in both])


def conversions(program: TileProgram) -> list[Conversion]:
    """What every tile's converters do on the same inputs."""
    seen: list[Conversion] = []
    Reference(program_chip(program), seen.append)(MODEL.inputs(7, batch=50))
    return seen


def error(program: TileProgram) -> float:
    """Relative error of the results against the float weights, on inputs that nothing clips."""
    x = 0.4 * MODEL.inputs(7, batch=50)
    wanted = x.astype(np.float64) @ program.weights["layer"][0].astype(np.float64)
    return float(np.linalg.norm(Reference(program_chip(program))(x)[0] - wanted) / np.linalg.norm(wanted))


@effect("name")
def _name() -> None:
    one, other = pair("name", "first", "second")
    assert (one.report.spec, other.report.spec) == ("first", "second")
    assert one.spec.sha256 != other.spec.sha256
    assert "first" in one.listing()
    assert "second" in other.listing()


@effect("device.g_min")
def _g_min() -> None:
    one, other = pair("device.g_min", 1e-6, 5e-6)
    assert conductances(one).min() == 1e-6
    assert conductances(other).min() == 5e-6
    assert conductances(one).max() == pytest.approx(conductances(other).max(), rel=1e-12)


@effect("device.g_max")
def _g_max() -> None:
    one, other = pair("device.g_max", 1e-4, 2e-4)
    assert conductances(one).max() == pytest.approx(1e-4, rel=1e-12)
    assert conductances(other).max() == pytest.approx(2e-4, rel=1e-12)
    span = [program.spec.device.span for program in (one, other)]
    for mine, theirs in zip(conversions(one), conversions(other), strict=True):
        np.testing.assert_allclose(mine.current / span[0], theirs.current / span[1], rtol=1e-9, atol=1e-12)


@effect("device.levels")
def _levels() -> None:
    one, other = pair("device.levels", 2, 16)
    assert [len(np.unique(conductances(program))) for program in (one, other)] == [2, 16]
    continuous, _ = pair("device.levels", None, 2)
    errors = [program.report.layers[0].weight_error for program in (one, other, continuous)]
    assert errors[0] > 5 * errors[1] > 0
    assert errors[2] < 1e-12


@effect("array.rows")
def _rows() -> None:
    one, other = pair("array.rows", 8, 24)
    assert {tile.rows for tile in one.tables.tiles} == {8}
    assert {tile.rows for tile in other.tables.tiles} == {24}
    assert (one.report.layers[0].partial_sums, other.report.layers[0].partial_sums) == (2 * 12, 0)


@effect("array.cols")
def _cols() -> None:
    one, other = pair("array.cols", 4, 12)
    assert {tile.cols for tile in one.tables.tiles} == {4}
    assert {tile.cols for tile in other.tables.tiles} == {12}
    assert (one.arrays, other.arrays) == (2 * 9, 2 * 3)


@effect("array.pairing")
def _pairing() -> None:
    one, other = pair("array.pairing", "two_arrays", "neighbouring_columns", array__cols=12)
    assert {tile.cols for tile in one.tables.tiles} == {12}
    assert {tile.cols for tile in other.tables.tiles} == {6}
    assert one.arrays == other.arrays == 6
    assert {tile.array % 2 for tile in one.tables.tiles} == {0}
    assert {tile.array % 2 for tile in other.tables.tiles} == {0, 1}


@effect("periphery.v_read")
def _v_read() -> None:
    one, other = pair("periphery.v_read", 0.2, 0.4)
    for mine, theirs in zip(conversions(one), conversions(other), strict=True):
        np.testing.assert_allclose(2 * mine.current, theirs.current, rtol=1e-9)
    for tile, twin in zip(one.tables.tiles, other.tables.tiles, strict=True):
        assert 2 * tile.adc_range[0] == pytest.approx(twin.adc_range[0], rel=1e-9)


@effect("periphery.dac_bits")
def _dac_bits() -> None:
    one, other = pair("periphery.dac_bits", 2, 8, device__levels=None, periphery__adc_bits=None)
    assert [program.spec.periphery.input_code_max(True) for program in (one, other)] == [1, 127]
    ideal, _ = pair("periphery.dac_bits", None, 8, device__levels=None, periphery__adc_bits=None)
    assert error(one) > 10 * error(other) > 0
    assert error(ideal) < 1e-6 < error(other)


@effect("periphery.signed")
def _signed() -> None:
    one, other = pair("periphery.signed", "bipolar", "two_phase")
    phases = [
        {step.phase for loop in program.tables.loops for step in loop.body if isinstance(step, Mvm)}
        for program in (one, other)
    ]
    assert phases == [{"both"}, {"+", "-"}]
    assert len(conversions(other)) == 2 * len(conversions(one))


@effect("periphery.adc_bits")
def _adc_bits() -> None:
    one, other = pair("periphery.adc_bits", 3, 8, device__levels=None, periphery__dac_bits=None)
    for program, top in ((one, 3), (other, 127)):
        codes = np.concatenate([found.codes.ravel() for found in conversions(program)])
        assert np.abs(codes).max() == top
        np.testing.assert_array_equal(codes, np.rint(codes))
    ideal, _ = pair("periphery.adc_bits", None, 8, device__levels=None, periphery__dac_bits=None)
    assert error(one) > 10 * error(other) > 0
    assert error(ideal) < 1e-6 < error(other)


@effect("periphery.adc_clip_share")
def _adc_clip_share() -> None:
    one, other = pair("periphery.adc_clip_share", 0.0, 0.2)
    assert all(
        twin.adc_range[0] < tile.adc_range[0] for tile, twin in zip(one.tables.tiles, other.tables.tiles, strict=True)
    )
    assert one.report.layers[0].calibration_clipped == 0
    assert 0.05 < other.report.layers[0].calibration_clipped <= 0.2


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
