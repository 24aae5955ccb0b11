"""``xbarc tune-spec``: every option has its effect, and what is refused says why."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_xbarc

import xbarc
from xbarc.exploration_plot import plot_exploration
from xbarc.exploration_report import ExploreReport
from xbarc.figure import check_plot

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"
FEW = ("--images", "20", "--chips", "1")


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Standard output and standard error of the verb."""
    ended = run_xbarc("tune-spec", DIGITS, *arguments)
    assert ended.code == code, ended.stderr
    return ended.stdout, ended.stderr


def found(*arguments: object) -> dict[str, Any]:
    """What the verb prints as JSON."""
    value: dict[str, Any] = json.loads(run(*arguments, "--json")[0])
    return value


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run that writes all that it can, and what it prints."""
    folder = tmp_path_factory.mktemp("explored")
    out, err = run(
        *("--spec", "rram-128", "--vary", "periphery.adc_bits=1,8,9", "--vary", "chip.tiles=null,1"),
        *("--set", "chip.arrays_per_core=2", "--set", "chip.cores_per_tile=1", "--skip-invalid"),
        *("--data", "digits", "--split", "test", "--calib", "digits", "--calib-split", "train", *FEW),
        *("-o", folder / "results.json", "--csv", folder / "table.csv", "--plot", folder / "plot.svg"),
    )
    return folder, out, err


def test_people_see_the_table_and_what_was_left_out(written: tuple[Path, str, str]) -> None:
    folder, out, err = written
    report = ExploreReport.load(folder / "results.json")
    assert [point.state for point in report.points] == ["invalid"] * 2 + ["done", "does_not_fit"] * 2
    for told in (
        "6 points",
        "accuracy of 20 samples on 1 chip",
        "original",
        "TOPS/W",
        "does not fit",
        "no spec",
        "adc_bits",
    ):
        assert told in out
    assert "warning" not in err
    stars = [line.split()[1] for line in out.splitlines() if line.startswith("*") and "on the front" not in line]
    assert stars == [str(point.number) for point in report.front]
    for name in ("results.json", "table.csv", "plot.svg"):
        assert f"written to {folder / name}" in out


def test_the_table_has_every_point_in_si_units(written: tuple[Path, str, str]) -> None:
    folder, _, _ = written
    report = ExploreReport.load(folder / "results.json")
    with (folder / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["number"]) for row in rows] == [point.number for point in report.points]
    for row, point in zip(rows, report.points, strict=True):
        assert row["periphery.adc_bits"] == str(point.values["periphery.adc_bits"])
        assert bool(int(row["front"])) == point.on_front
        if point.quality is not None and point.cost is not None:
            assert float(row["accuracy"]) == point.quality.mean
            assert float(row["energy_j"]) == point.cost.energy
            assert float(row["area_m2"]) == point.cost.area
        else:
            assert row["reason"]
            assert not row["energy_j"]


def test_the_figure_names_what_it_shows(written: tuple[Path, str, str], tmp_path: Path) -> None:
    folder, _, _ = written
    text = (folder / "plot.svg").read_text(encoding="utf-8")
    for told in ("accuracy", "energy a sample", "area", "periphery.adc_bits", "original model", "front of the panel"):
        assert told in text
    assert len(text) < 60_000
    report = ExploreReport.load(folder / "results.json")
    plot_exploration(report, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == text
    for kind in ("png", "pdf"):
        plot_exploration(report, tmp_path / f"plot.{kind}")
        assert (tmp_path / f"plot.{kind}").stat().st_size > 1000
    with pytest.raises(xbarc.DataError, match="needs a point that fits"):
        plot_exploration(report.with_points({0: report.points[0]}), tmp_path / "none.svg")


def test_going_on_repeats_nothing(written: tuple[Path, str, str]) -> None:
    folder, out, _ = written
    again, _ = run(
        *("--vary", "periphery.adc_bits=1,8,9", "--vary", "chip.tiles=null,1", "--resume", "--skip-invalid"),
        *("--set", "chip.arrays_per_core=2", "--set", "chip.cores_per_tile=1", "-o", folder / "results.json"),
        *("--data", "digits", "--calib", "digits", "--calib-split", "train", *FEW),
    )
    assert again.splitlines()[:-1] == out.splitlines()[:-3]


def test_a_point_is_what_compile_eval_and_report_print(tmp_path: Path) -> None:
    (point,) = found("--vary", "periphery.adc_bits=6", "--data", "digits", *FEW, "--seed", 3, "--time", "1h")["points"]
    path = tmp_path / "point.xbar"
    assert run_xbarc("compile", DIGITS, "--set", "periphery.adc_bits=6", "--seed", 3, "-o", path).code == 0
    ended = run_xbarc(
        *("eval", path, "--data", "digits", "--limit", 20, "--chips", 1, "--seed", 3, "--time", "1h", "--json")
    )
    evaluated = json.loads(ended.stdout)
    costs = json.loads(run_xbarc("report", path, "--json").stdout)
    assert point["quality"]["mean"] == evaluated["mean"]
    assert point["quality"]["ci95"] == evaluated["ci95"]
    assert point["cost"]["energy"] == costs["pipelined"]["energy"]
    assert point["cost"]["area"] == sum(costs["area"].values())
    assert point["cost"]["arrays"] == costs["arrays"]


def test_without_labels_it_is_the_error(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((6, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", input=images)
    name = xbarc.compile(DIGITS, "ideal").tables.inputs[0].name
    np.savez(tmp_path / "x.npz", allow_pickle=False, **{name: images})
    given: tuple[str, ...] = (
        "--vary",
        "device.levels=16",
        "--batch",
        "4",
        "--device",
        "cpu",
        "--share",
        "all",
        "--no-predistort",
    )
    given += ("--copies", "balance", "--array-budget", "40")
    by_data = found(*given, "--data", tmp_path / "x.npz", "--chips", 0, "--input-shape", f"{name}=6,1,8,8")
    by_calibration = found(*given, "--calib", tmp_path / "x.npz", "--metric", "error", "--chips", 2)
    for report in (by_data, by_calibration):
        assert report["metric"] == "relative_error"
        assert report["samples"] == 6
    assert by_data["warnings"]
    assert not by_calibration["warnings"]
    out, err = run(*given, "--data", "digits", "--normalize", "0,1", "--metric", "error", "--images", 5, "--chips", 0)
    assert "relative error of 5 samples on ideal chips" in out
    assert "warning: ranges stem from random inputs" in err


def test_where_nothing_fits_there_is_no_figure(tmp_path: Path) -> None:
    fixed = ("--set", "chip.arrays_per_core=1", "--set", "chip.cores_per_tile=1")
    out, err = run("--vary", "chip.tiles=1,2", *fixed, "--data", "digits", *FEW, "--plot", tmp_path / "plot.svg")
    assert "does not fit" in out
    assert "no figure is drawn" in err
    assert not list(tmp_path.iterdir())


def test_large_grids_are_drawn_from_or_asked_about() -> None:
    large = ("--vary", "costs.t_read=1:201", "--data", "digits", *FEW)
    _, err = run(*large, code=2)
    assert "at most 200 points unless --yes" in err
    drawn = found(*large, "--points", 2)
    assert (drawn["grid"], drawn["drawn"], len(drawn["points"])) == (201, 2, 2)
    assert len(found(*large, "--yes")["points"]) == 201


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "digits"), "must name at least one field"),
        (("--vary", "periphery.adc_bits=9:5", "--data", "digits"), "must have ranges"),
        (("--vary", "periphery.adc_bit=5", "--data", "digits"), "did you mean 'periphery.adc_bits'"),
        (("--vary", "periphery.adc_bits=8,1", "--data", "digits"), "point periphery.adc_bits=1"),
        (("--vary", "periphery.adc_bits=8", "--vary", "periphery.adc_bits=6"), "varied or set once"),
        (("--vary", "periphery.adc_bits=8", "--set", "periphery.adc_bit=6"), "did you mean"),
        (("--vary", "periphery.adc_bits=8"), "must be given to measure quality on"),
        (("--vary", "periphery.adc_bits=8", "--data", "digitz"), "did you mean"),
        (("--vary", "periphery.adc_bits=8", "--calib", "digits", "--metric", "accuracy"), "must have labels"),
        (("--vary", "periphery.adc_bits=8", "--data", "digits", "--metric", "speed"), "must be accuracy or error"),
        (("--vary", "periphery.adc_bits=8", "--data", "digits", "--plot", "x.txt"), "must end in .png, .svg, .pdf"),
        (("--vary", "periphery.adc_bits=8", "--data", "digits", "--csv", "no/x.csv"), "existing folder"),
        (("--vary", "periphery.adc_bits=8", "--data", "digits", "--resume"), "must have an output"),
        (("--vary", "periphery.adc_bits=8", "--data", "digits", "--colour", "red"), "No such option"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: tuple[str, ...], told: str) -> None:
    _, err = run(*arguments, code=2)
    assert told in err


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(xbarc.DataError, match=r"pip install xbarc\[plots\]"):
        check_plot(tmp_path / "plot.png")
