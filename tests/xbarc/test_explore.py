"""Exploring specs: each point is what compile, eval and report make of it, and a run that was killed goes on."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xbarc
from compiler.compile import CompileOptions
from runtime.costing import cost
from xbarc import exploration
from xbarc.data.load import Dataset, load_data
from xbarc.exploration_report import ExploreReport
from xbarc.pareto import pareto_front
from xbarc.spec_grid import Axis, SpecGrid

MODEL = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"
BASE = xbarc.HardwareSpec.preset("rram-128")
VARY = {"periphery.adc_bits": [4, 8], "costs.dac.energy": ["0.1 pJ", "0.4 pJ"]}


@pytest.fixture(scope="module")
def samples() -> Dataset:
    """Some labelled digits."""
    return load_data("digits", xbarc.compile(MODEL, spec="ideal").tables.inputs, limit=20)


def explored(samples: Dataset, **given: Any) -> ExploreReport:
    """The grid of these tests on one chip."""
    chosen: dict[str, Any] = {"vary": VARY, "data": samples, "calibration": samples, "chips": 1, **given}
    return xbarc.tune_spec(MODEL, BASE, **chosen)


@pytest.fixture(scope="module")
def whole(samples: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExploreReport, Path]:
    """All of it, and its file."""
    path = tmp_path_factory.mktemp("explored") / "whole.json"
    return explored(samples, output=path), path


# -- the front ------------------------------------------------------------------------------------------------------

few = st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan")])


@given(st.lists(st.tuples(few, few, few, few), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, ...]]) -> None:
    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    sound = [point for point in points if not any(np.isnan(point))]
    brute = [point in sound and not any(beats(other, point) for other in sound) for point in points]
    assert pareto_front(points) == brute


def test_better_quality_alone_is_enough_for_the_front(whole: tuple[ExploreReport, Path]) -> None:
    report, _ = whole
    beaten = [point for point in report.points if not point.on_front]
    assert report.front
    assert beaten
    objectives = np.array([report.objectives(point) for point in report.points])
    for point in beaten:
        own = np.array(report.objectives(point))
        assert ((objectives <= own).all(1) & (objectives < own).any(1)).any()
    quality = [point.quality.mean for point in report.ranked if point.quality]
    assert quality == sorted(quality, reverse=True)


# -- what a point is ------------------------------------------------------------------------------------------------


def test_points_are_what_compile_eval_and_report_say(whole: tuple[ExploreReport, Path], samples: Dataset) -> None:
    report, _ = whole
    assert report.metric == "accuracy"
    for point in report.points[1:3]:  # one of them was costed anew, and not compiled
        program = xbarc.compile(MODEL, BASE.with_fields(point.values), samples)
        evaluated, costs = xbarc.evaluate(program, samples, chips=1), cost(program)
        assert report.original == evaluated.float_
        assert point.quality is not None
        assert (point.quality.mean, point.quality.worst) == (evaluated.mean, evaluated.worst)
        assert (point.quality.chips, point.quality.ci95) == (evaluated.chips, evaluated.ci95)
        assert point.cost is not None
        assert point.cost.energy == costs.pipelined.energy
        assert point.cost.interval == costs.pipelined.interval
        assert point.cost.latency == costs.pipelined.latency
        assert point.cost.tops_per_watt == costs.pipelined.tops_per_watt
        assert point.cost.area == costs.total_area
        assert point.cost.arrays == costs.arrays


def counting(monkeypatch: pytest.MonkeyPatch, name: str, then: Callable[[int], None] | None = None) -> list[Any]:
    """Calls of a function of the room, each told to `then` beforehand."""
    calls: list[Any] = []
    real = getattr(exploration, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if then is not None:
            then(len(calls))
        return real(*arguments, **named)

    monkeypatch.setattr(exploration, name, counted)
    return calls


def test_fields_of_costs_run_nothing_again(samples: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated, finished = counting(monkeypatch, "evaluate"), counting(monkeypatch, "finish")
    vary = {"costs.t_read": ["50 ns", "100 ns"], "chip.arrays_per_core": [4, 8]}
    report = explored(samples, vary=vary)
    assert len(report.points) == 4
    assert len(evaluated) == len(finished) == 1
    assert len({point.quality.mean for point in report.points if point.quality}) == 1
    assert len({point.cost.latency for point in report.points if point.cost}) == 2


def test_more_adc_bits_leave_less_error(samples: Dataset) -> None:
    report = explored(samples, vary={"periphery.adc_bits": [4, 6, 8]}, metric="relative_error", chips=0)
    errors = [point.quality.mean for point in report.points if point.quality]
    assert report.metric == "relative_error"
    assert errors[0] > errors[1] > errors[2] > 0
    assert report.ranked[0].values == {"periphery.adc_bits": 8}


def test_what_is_not_random_runs_on_the_ideal_chip_and_calibration_data_do(samples: Dataset) -> None:
    report = xbarc.tune_spec(MODEL, "ideal", {"array.rows,array.cols": [64]}, calibration=samples, images=5, chips=3)
    (point,) = report.points
    assert report.samples == 5
    assert report.metric == "relative_error"
    assert point.values == {"array.rows": 64, "array.cols": 64}
    assert point.quality is not None
    assert point.quality.chips == (point.quality.ideal,)
    assert point.quality.mean < 1e-5


def test_what_does_not_fit_is_listed_with_demand_and_bound(samples: Dataset) -> None:
    fixed = {"chip.arrays_per_core": 2, "chip.cores_per_tile": 1}
    report = explored(samples, vary={"chip.tiles": [1, 100]}, fixed=fixed, chips=0)
    small, large = report.points
    assert small.state == "does_not_fit"
    assert large.state == "done"
    spec = BASE.with_fields({**fixed, "chip.tiles": 1})
    with pytest.raises(xbarc.ChipError) as refused:
        xbarc.compile(MODEL, spec, samples)
    assert small.misfit is not None
    assert f"at least {small.misfit.demand} arrays" in str(refused.value)
    assert small.misfit.bound == 2


# -- killed, and resumed --------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_file(
    whole: tuple[ExploreReport, Path], samples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, complete = whole
    path = tmp_path / "killed.json"

    def kill(call: int) -> None:
        if call == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        counting(patched, "cost_on", kill)
        with pytest.raises(KeyboardInterrupt):
            explored(samples, output=path)
    assert len(ExploreReport.load(path).points) == 3
    with monkeypatch.context() as patched:
        evaluated, costed = counting(patched, "evaluate"), counting(patched, "cost_on")
        assert explored(samples, output=path, resume=True) == report
        assert not evaluated  # the quality of the last point is that of one which is done
        assert len(costed) == 1
        assert explored(samples, output=path, resume=True) == report
        assert len(costed) == 1
    assert path.read_bytes() == complete.read_bytes()


def test_the_file_of_another_run_is_refused(
    whole: tuple[ExploreReport, Path], samples: Dataset, tmp_path: Path
) -> None:
    _, path = whole
    before = path.read_bytes()
    fewer = samples.take(slice(0, 10))
    for what, changed in (
        ("data", {"data": fewer}),
        ("calibration", {"calibration": fewer}),
        ("grid", {"vary": {"periphery.adc_bits": [4, 9]}}),
        ("grid", {"fixed": {"periphery.dac_bits": 6}}),
        ("settings", {"chips": 2}),
        ("settings", {"time": 3600.0}),
    ):
        with pytest.raises(xbarc.DataError, match=f"differ in {what}"):
            explored(samples, output=path, resume=True, **changed)
    with pytest.raises(xbarc.DataError, match="must not be there yet; --resume"):
        explored(samples, output=path)
    assert path.read_bytes() == before
    broken = tmp_path / "broken.json"
    for text in ("", "{}", json.dumps([1])):
        broken.write_text(text)
        with pytest.raises(xbarc.DataError, match="must be a file that tune-spec wrote"):
            explored(samples, output=broken, resume=True)


# -- grids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields", "values"),
    [
        ("periphery.adc_bits=5:9", ("periphery.adc_bits",), (5, 6, 7, 8, 9)),
        ("array.rows, array.cols=64:128:32,256", ("array.rows", "array.cols"), (64, 96, 128, 256)),
        ("a.b=5:09", ("a.b",), (5, 6, 7, 8, 9)),
        ("device.g_max=100 uS,1e-4", ("device.g_max",), ("100 uS", "1e-4")),
        ("device.levels=[1 uS, 2 uS],16", ("device.levels",), (["1 uS", "2 uS"], 16)),
        ("x=null,true,before", ("x",), (None, True, "before")),
    ],
)
def test_axes_are_read(text: str, fields: tuple[str, ...], values: tuple[object, ...]) -> None:
    axis = Axis.parse(text)
    assert (axis.fields, axis.values) == (fields, values)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("periphery.adc_bits", "must be FIELD=VALUES"),
        ("periphery.adc_bits=", "at least one value"),
        ("=4", "must name fields"),
        ("a,,b=4", "must name fields"),
        ("a=9:5", "must have ranges"),
        ("a=1:9:0", "must have ranges"),
        ("a=1:99999999", "at most 10000 values"),
        ("a=[1", "valid YAML"),
        ("a=4,4", "each value once"),
    ],
)
def test_axes_that_are_none(text: str, told: str) -> None:
    with pytest.raises(xbarc.DataError, match=told):
        Axis.parse(text)


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_drawn_points_are_some_of_the_grid(seed: int, points: int) -> None:
    grid = SpecGrid.of(BASE, {"periphery.adc_bits": range(4, 10), "array.rows,array.cols": np.array([32, 64, 128])})
    drawn = grid.numbers(points, seed)
    assert drawn == sorted(set(drawn)) == grid.numbers(points, seed)
    assert len(drawn) == min(points, 18)
    assert set(drawn) <= set(range(18))
    assert len({json.dumps(grid.values(number)) for number in range(18)}) == 18


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"vary": {}}, "must name at least one field"),
        ({"vary": {"periphery.adc_bit": [4]}}, "did you mean 'periphery.adc_bits'"),
        ({"vary": {"periphery.adc_bits": [8, "many"]}}, "point periphery.adc_bits=many is not valid"),
        ({"vary": {"periphery.adc_bits": [8, 1]}}, "--skip-invalid"),
        ({"vary": {"periphery.adc_bits": 8}}, "must have a list of values, not 8"),
        ({"vary": {"periphery.adc_bits": "8"}}, "must have a list of values"),
        ({"vary": {"periphery.adc_bits": [object()]}}, "must have finite numbers, text"),
        ({"vary": {"array.rows,array.rows": [64]}}, "varied or set once"),
        ({"fixed": {"periphery.adc_bits": 8}}, "varied or set once"),
        ({"vary": {"device.g_min": range(10_000), "device.g_max": range(10_000)}}, "points must be at most 100000"),
        (
            {"vary": {name: range(9_999) for name in ("device.g_min", "device.g_max", "costs.t_read", "costs.node")}},
            "span",
        ),
        ({"points": 0}, "at least 1"),
        ({"chips": -1}, "must not be negative"),
        ({"images": 0}, "must be positive"),
        ({"metric": "speed"}, "must be accuracy or relative_error"),
        ({"data": None, "metric": "accuracy"}, "must have labels for accuracy"),
        ({"data": None, "calibration": None}, "must be given to measure quality on"),
        ({"resume": True}, "must have an output"),
        ({"vary": {"periphery.adc_bits": [1]}, "skip_invalid": True}, "must leave a point that is a valid spec"),
    ],
)
def test_bad_input_is_told_before_anything_runs(
    samples: Dataset, given: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = counting(monkeypatch, "finish")
    with pytest.raises((xbarc.DataError, xbarc.SpecError), match=told):
        explored(samples, **given)
    assert not finished


def test_accuracy_needs_labels(samples: Dataset) -> None:
    with pytest.raises(xbarc.DataError, match="must have labels for accuracy"):
        explored(dataclasses.replace(samples, labels=None), metric="accuracy")


def test_copies_are_balanced_on_each_chip(samples: Dataset) -> None:
    """A larger chip takes more copies, which are another program: quality is measured anew, and the pipeline faster."""
    base = {"chip.arrays_per_core": 2, "chip.cores_per_tile": 1}
    options = CompileOptions(copies="balance")
    report = explored(samples, vary={"chip.tiles": [5, 12, 30]}, fixed=base, options=options)
    small, middle, large = report.points
    assert small.state == "does_not_fit"
    assert middle.cost is not None
    assert large.cost is not None
    assert middle.cost.arrays <= 24 < large.cost.arrays <= 60
    assert large.cost.interval < middle.cost.interval
    for point, tiles in ((middle, 12), (large, 30)):
        spec = BASE.with_fields({**base, "chip.tiles": tiles})
        program = xbarc.compile(MODEL, spec=spec, calibration=samples, options=options)
        assert point.cost is not None
        assert cost(program).pipelined.interval == point.cost.interval
        assert point.quality is not None
        assert point.quality.mean == xbarc.evaluate(program, samples, model=str(MODEL), chips=1).mean
