"""Which points a sweep has: grids and drawn designs, and how a program meets each."""

import math
from typing import Any

import numpy as np
import pytest
import tuning_cases as cases
from hypothesis import given
from hypothesis import strategies as st

from compiler.compile import options_of
from hwspec.effects import EFFECTS
from hwspec.errors import DataError, SpecError
from runtime.program import TileProgram
from xbarc.spec_grid import Axis
from xbarc.sweeping.design import Design, Span, axis_of, parse_axis
from xbarc.sweeping.plan import Point, points_of, stays

VARY = {"failures.unformed.rate": "0.001:0.1:log", "array.r_word": [0, 1, 2]}


@pytest.fixture(scope="module")
def program() -> TileProgram:
    return cases.program()


def points(program: TileProgram, vary: dict[str, object], **given: Any) -> list[Point]:
    return points_of({"a": program}, Design.of(vary), {"a": options_of(program)}, **given)


# -- axes -----------------------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e3), st.floats(1.001, 1e4), st.integers(2, 50))
def test_steps_are_even_from_end_to_end(low: float, ratio: float, count: int) -> None:
    high = low * ratio
    for scale, steps in (("log", np.log), ("lin", np.asarray)):
        axis = parse_axis(f"a.b={low!r}:{high!r}:{scale}{count}")
        assert isinstance(axis, Axis)
        values = np.array(axis.values, np.float64)
        assert (values[0], values[-1], values.size) == (low, high, count)
        between = np.diff(steps(values))
        np.testing.assert_allclose(between, between.mean(), rtol=1e-6)


def test_other_texts_are_lists_and_ranges() -> None:
    assert parse_axis("a,b=0,0.5,1") == Axis.of("a,b", [0, 0.5, 1])
    assert parse_axis("a=5:9") == Axis.of("a", range(5, 10))
    assert axis_of("a", [1, 2]) == Axis.of("a", [1, 2])
    assert axis_of("a", 3) == Axis.of("a", [3])
    assert axis_of("a", "1:10:lin") == Span(("a",), 1.0, 10.0, "lin")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a=2:1:log3", "the first is lower"),
        ("a=0:1:log3", "positive ends"),
        ("a=1:2:lin0", "at least one"),
        ("a=1:2:lin999999", "at most"),
        (",a=1:2:lin3", "name fields"),
        ("a", "FIELD=VALUES"),
        ("a=[", "valid YAML"),
        ("a=1,1", "once"),
    ],
)
def test_axes_that_are_none_are_refused(text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        parse_axis(text)


# -- designs --------------------------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_the_last_axis_fastest() -> None:
    design = Design.of({"a": [1, 2], "b,c": [3, 4]})
    assert design.values() == [{"a": a, "b": b, "c": b} for a in (1, 2) for b in (3, 4)]
    assert Design.of({}).values() == [{}]


@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_drawn_points_lie_between_the_ends_and_more_of_them_begin_alike(kind: str) -> None:
    few, many = (Design.of(VARY, kind, count, seed=3).values() for count in (10, 64))
    assert many[:10] == few
    assert Design.of(VARY, kind, 10, seed=4).values() != few
    rates = np.array([row["failures.unformed.rate"] for row in many], np.float64)
    assert rates.min() >= 0.001
    assert rates.max() <= 0.1
    assert {row["array.r_word"] for row in many} == {0, 1, 2}


def test_a_sobol_design_fills_more_evenly_than_chance() -> None:
    shares = {}
    for kind in ("random", "sobol"):
        rates = [row["failures.unformed.rate"] for row in Design.of(VARY, kind, 64).values()]
        at = np.log(np.array(rates, np.float64) / 0.001) / math.log(100)
        shares[kind] = np.histogram(at, 16, (0, 1))[0]
    assert np.ptp(shares["sobol"]) == 0 < np.ptp(shares["random"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"vary": VARY}, "number of values in a grid"),
        ({"vary": {"a": [1]}, "points": 3}, "design that is drawn"),
        ({"vary": VARY, "kind": "sobol"}, "points must be 1"),
        ({"vary": {}, "kind": "sobol", "points": 3}, "at least one field"),
        ({"vary": {"a": [1]}, "kind": "latin"}, "must be one of"),
        ({"vary": {"a": [1], "b,a": [2]}}, "varied once"),
        ({"vary": {"a": range(400), "b": range(400)}}, "at most"),
        ({"vary": {"a": None, "b": object()}}, "list of values"),
    ],
)
def test_designs_that_are_none_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        Design.of(**given)


# -- points ---------------------------------------------------------------------------------------------------------


def test_a_program_stays_for_effects_of_a_chip_and_for_nothing_else(program: TileProgram) -> None:
    made_for = {"dac", "adc"}
    for name, fields in EFFECTS.items():
        assert all(stays(field) == (name not in made_for) for field in fields), name
    kept = {name for name, _ in program.spec.fields() if stays(name)}
    others = {"array.rows", "array.cols", "array.pairing", "device.g_min", "device.g_max", "device.levels"}
    assert not kept & (others | {"periphery.adc_bits", "periphery.signed", "periphery.input_coding"})
    assert {"failures.overformed.conductance", "device.drift.model", "device.telegraph.occupancy"} <= kept


def test_points_that_compute_alike_are_one(program: TileProgram) -> None:
    now = program.spec.device.temperature
    found = points(program, {"device.temperature": [now, now + 20]})
    assert len({point.key for point in found}) == 2
    assert found[0].key == points(program, {})[0].key
    assert [point.fields for point in found] == [{}, {"device.temperature": now + 20}]
    others: list[dict[str, object]] = [
        {"time": ["1 h"]},
        {"compile.robust": [False]},
        {"failures.unformed.rate": [0.01]},
    ]
    for other in others:
        assert points(program, other)[0].key != found[0].key
    assert points(program, {}, remap=True)[0].key != found[0].key
    assert points(program, {"time": [3600]}) != points(program, {"time": ["1 h"]})
    assert points(program, {"time": [3600]})[0].key == points(program, {"time": ["1 h"]})[0].key


def test_points_survive_the_way_to_a_worker(program: TileProgram) -> None:
    for point in points(program, {"failures.unformed.rate": [0.01], "compile.steps": [["rows"]], "time": [5]}):
        assert Point.from_json(point.to_json()) == point


def test_a_point_without_chance_has_no_chips(program: TileProgram) -> None:
    assert not points_of(
        {"a": program}, Design.of({}), {"a": options_of(program)}, effects=frozenset({"wires", "adc"})
    )[0].random
    assert points(program, {})[0].random


@pytest.mark.parametrize(
    ("vary", "kind", "told"),
    [
        ({"failures.unformd.rate": [0.1]}, SpecError, "did you mean"),
        ({"failures.unformed.rate": [1.5]}, SpecError, "less than or equal to 1"),
        ({"array.rows": [-1]}, SpecError, "array.rows"),
        ({"costs.dac.energy": ["1 pJ"]}, SpecError, "changes no result"),
        ({"chip.tiles": [3]}, SpecError, "changes no result"),
        ({"compile.predistrot": [True]}, DataError, "did you mean compile.predistort"),
        ({"compile.seed": [1]}, DataError, "is no option of compiling that can vary"),
        ({"compile.replicas": [99]}, DataError, "whole number from 1 to 16"),
        ({"time": [-1]}, DataError, "from 0 s up"),
        ({"time": ["soon"]}, DataError, "time"),
    ],
)
def test_points_that_cannot_be_are_refused(
    program: TileProgram, vary: dict[str, object], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        points(program, vary)


def test_a_field_is_varied_or_set_once(program: TileProgram) -> None:
    with pytest.raises(DataError, match="varied or set once"):
        points(program, {"array.r_word": [1]}, fixed={"array.r_word": 2})
    (point,) = points(program, {}, fixed={"array.r_word": 2})
    assert point.spec(program.spec).array.r_word == 2
