"""``xbarc sweep``: every option has its effect, and what is refused says why."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tuning_cases as cases
from command_line import run_xbarc

import xbarc
from xbarc.sweeping.statistics import report_of
from xbarc.sweeping.store import read_rows

RATE = "failures.stuck_hrs.rate"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    cases.program().save(path / "model.xbar")
    dataclasses.replace(cases.program(), source=None).save(path / "bare.xbar")
    (path / "model.onnx").write_bytes(cases.classifier().SerializeToString())
    cases.save(path / "data.npz", cases.blobs(60, 7))
    return path


def run(folder: Path, *arguments: object, code: int = 0, program: str = "model.xbar") -> tuple[str, str]:
    """Standard output and standard error of the verb."""
    ended = run_xbarc("sweep", folder / program, "--data", folder / "data.npz", *arguments)
    assert ended.code == code, ended.stderr
    return ended.stdout, ended.stderr


@pytest.fixture(scope="module")
def written(folder: Path) -> tuple[Path, str]:
    """A run that writes all that it can, and what it prints."""
    tables = ["--csv", folder / "all.csv", "--parquet", folder / "all.parquet"]
    plot = folder / "all.svg" if _has("matplotlib") else None
    if not _has("pyarrow"):
        tables = tables[:2]
    out, _ = run(
        folder,
        *("--vary", f"{RATE}=0.05:0.4:lin2", "--vary", "time=0,1h", "--set", "failures.stuck_lrs.rate=0"),
        *("--without", "saturation", "--chips", "2", "--seed", "5", "--limit", "40", "--batch", "16"),
        *("--processes", "1", "-o", folder / "all.db", *tables, *(["--plot", plot] if plot else [])),
    )
    return folder, out


def _has(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def test_people_see_a_row_a_point_and_where_files_are(written: tuple[Path, str]) -> None:
    folder, out = written
    for told in ("8 trials, accuracy of 40 samples", RATE, "95 % interval", "yield", "worst", f"{folder / 'all.db'}"):
        assert told in out
    lines = [line.split() for line in out.splitlines() if line.strip().startswith(("0.05", "0.4"))]
    assert [line[1] for line in lines] == ["0", "1h", "0", "1h"]
    rows = read_rows(folder / "all.db")
    assert {(row[RATE], row["time"], row["chip_seed"]) for row in rows} == {
        (rate, time, seed) for rate in (0.05, 0.4) for time in (0, "1h") for seed in (5, 6)
    }
    assert {row["seconds_after"] for row in rows} == {0.0, 3600.0}
    with (folder / "all.csv").open(encoding="utf-8") as stream:
        assert [float(row["value"]) for row in csv.DictReader(stream)] == [row["value"] for row in rows]
    if _has("matplotlib"):
        assert "within 1 point of" in (folder / "all.svg").read_text(encoding="utf-8")
    assert not _has("pyarrow") or (folder / "all.parquet").stat().st_size


def test_the_set_field_and_the_effects_count(written: tuple[Path, str]) -> None:
    folder, _ = written
    program = cases.program().on(cases.program().spec.with_fields({RATE: 0.4, "failures.stuck_lrs.rate": 0}))
    data = xbarc.data.load.load_data(folder / "data.npz", program.tables.inputs, limit=40, seed=5)
    found = xbarc.evaluate(program, data, seed=5, chips=2, without=["saturation"], batch=16).chips
    rows = [row for row in read_rows(folder / "all.db") if row[RATE] == 0.4 and row["time"] == 0]
    assert [row["value"] for row in rows] == list(found)


def test_a_config_names_what_options_do_and_options_go_before_it(written: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = written
    config = tmp_path / "sweep.yaml"
    config.write_text(
        f"""
programs: [{folder / "model.xbar"}]
data: {folder / "data.npz"}
vary: {{{RATE}: "0.05:0.4:lin2", time: [0, 1h]}}
set: {{failures.stuck_lrs.rate: 0}}
without: saturation
chips: 2
seed: 5
limit: 40
batch: 16
output: {folder / "all.db"}
loss: 90
""",
        encoding="utf-8",
    )
    before = read_rows(folder / "all.db")
    ended = run_xbarc("sweep", "--config", config, "--resume", "--json")
    assert ended.code == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert read_rows(folder / "all.db") == before  # nothing was missing
    assert report["loss"] == 0.9
    assert {point["chip_yield"] for point in report["points"]} == {1.0}
    assert report["results"] == str(folder / "all.db")
    ended = run_xbarc("sweep", "--config", config, "--resume", "--json", "--loss", "0", "--chips", "1")
    assert json.loads(ended.stdout)["loss"] == 0
    assert {point["chips"] for point in json.loads(ended.stdout)["points"]} == {1}


def test_the_page_of_a_program_shows_a_sweep(written: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = written
    page, other = tmp_path / "page.html", tmp_path / "other.xbar"
    ended = run_xbarc("report", folder / "model.xbar", "--html", page, "--sweep", folder / "all.db")
    assert ended.code == 0, ended.stderr
    text = page.read_text(encoding="utf-8")
    for told in ('id="sweep"', 'href="#sweep"', RATE, "0.05", "1h", "Sweep"):
        assert told in text
    assert ("data:image/svg+xml" in text) == _has("matplotlib")
    cases.program_of(model=cases.classifier(softmax=True)).save(other)
    for arguments, told in (
        ((other, "--html", page, "--sweep", folder / "all.db"), "must be of the model of this program"),
        ((other, "--sweep", folder / "all.db"), "--sweep must be given with --html"),
        ((other, "--html", page, "--sweep", other), "must be a file that `xbarc sweep` wrote"),
    ):
        ended = run_xbarc("report", *arguments)
        assert ended.code == 2
        assert told in ended.stderr
    assert page.read_text(encoding="utf-8") == text


def test_chips_are_added_until_the_interval_is_narrow(folder: Path) -> None:
    out, _ = run(
        folder,
        *("--until-ci", "9", "--chips", "3", "--max-chips", "60", "-o", folder / "until.db", "--json"),
        *("--vary", f"{RATE}=0.05,0.3", "--processes", "1"),
    )
    for point in json.loads(out)["points"]:
        low, high = point["ci95"]
        assert high - low <= 0.09
        assert 3 <= point["chips"] < 60


def test_drawn_designs_on_programs_that_are_mapped_for_each_chip(folder: Path) -> None:
    """Workers of Dask, started here, and a program without its model beside one that has it."""
    pytest.importorskip("distributed")
    arguments: list[Any] = [
        *("sweep", folder / "bare.xbar", folder / "model.xbar", "--data", folder / "data.npz"),
        *("--model", folder / "model.onnx", "--vary", f"{RATE}=0.01:0.4:log", "--design", "sobol", "--points", "4"),
        *("--remap", "--chips", "1", "--only", "failures,adc", "--time", "90 s", "--workers", "1"),
    ]
    ended = run_xbarc(*arguments, "-o", folder / "drawn.db", "--json")
    assert ended.code == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert len(report["points"]) == 4  # the programs compute the same, so each point is one
    rows = read_rows(folder / "drawn.db")
    assert all(row["remap"] and row["seconds_after"] == 90.0 for row in rows)
    assert len({row[RATE] for row in rows}) == 4
    assert report_of(folder / "drawn.db").axes == (RATE,)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--vary", "failures.stuck_hr.rate=0.1"), "did you mean"),
        (("--vary", f"{RATE}=0.1", "--vary", f"{RATE}=0.2"), "must be varied once"),
        (("--vary", f"{RATE}=2"), "less than or equal to 1"),
        (("--vary", "nothing"), "FIELD=VALUES"),
        (("--set", "nothing"), "FIELD=VALUE"),
        (("--vary", f"{RATE}=0:0.1:lin200", "--chips", "100"), "--yes"),
        (("--scheduler", "tcp://127.0.0.1:9", "--workers", "2"), "exclude each other"),
        (("--split", "train"), "is for image folders"),
        (("--normalize", "0,1"), "is for images"),
        (("--plot", "a.txt"), "must end in"),
        (("--csv", "/nosuch/a.csv"), "existing folder"),
        (("--config", "/nosuch.yaml"), "cannot be read"),
    ],
)
def test_what_is_refused_says_why(arguments: tuple[str, ...], told: str, folder: Path) -> None:
    _, err = run(folder, *arguments, "-o", folder / "refused.db", code=2)
    assert told in err
    assert not (folder / "refused.db").exists()


def test_no_input_and_no_other_output_is_written_over(folder: Path, tmp_path: Path) -> None:
    second, config = tmp_path / "second.xbar", tmp_path / "a.yaml"
    second.write_bytes((folder / "model.xbar").read_bytes())
    config.write_text("chips: 1", encoding="utf-8")
    for path in (second, config):
        content = path.read_bytes()
        _, err = run(folder, second, "--config", config, "--csv", path, "-o", tmp_path / "a.db", code=2)
        assert "another file than the input" in err
        assert path.read_bytes() == content
    _, err = run(folder, "-o", tmp_path / "a.db", "--csv", tmp_path / "a.db", code=2)
    assert "must be different files" in err
    assert not (tmp_path / "a.db").exists()


def test_sweeps_that_differ_in_what_does_not_vary_stay_apart(folder: Path, tmp_path: Path) -> None:
    """Other effects and other fixed fields in one file: as many points, which reports keep apart."""
    once = ("--chips", "1", "--processes", "1", "-o", tmp_path / "a.db", "--resume")
    for more in ((), ("--without", "failures"), ("--set", f"{RATE}=0.4")):
        run(folder, *once, *more)
    rows = read_rows(tmp_path / "a.db")
    assert len({row["point"] for row in rows}) == len(rows) == 3
    assert len({row["effects"] for row in rows}) == 2
    assert {row.get(RATE) for row in rows} == {None, 0.4}
    report = report_of(tmp_path / "a.db")
    assert [point.chips for point in report.points] == [1, 1, 1]
    assert report.axes == (RATE,)


def test_many_trials_run_when_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xbarc.sweeping.sweep.ASK_BEYOND", 1)
    few = ("--vary", f"{RATE}=0.1,0.2", "--chips", "1", "-o", folder / "yes.db", "--processes", "1")
    run(folder, *few, code=2)
    run(folder, *few, "--yes")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("chip: 3", "did you mean 'chips'"),
        ("chips: many", "must be a whole number"),
        ("chips: true", "must be a whole number"),
        ("vary: [1]", "must be a mapping"),
        ("vary: {1: [2]}", "names of fields"),
        ("- a", "must be a mapping of options"),
        ("a: [", "valid YAML"),
        ("data: x", "programs must be given"),
        ("programs: a.xbar", "--data must be given"),
    ],
)
def test_a_config_that_is_none_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    ended = run_xbarc("sweep", "--config", tmp_path / "a.yaml")
    assert ended.code == 2
    assert told in ended.stderr


def test_results_of_another_model_or_program_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.xbar"
    cases.program_of(model=cases.classifier(softmax=True)).save(other)
    run(folder, "--chips", "1", "-o", tmp_path / "a.db", "--processes", "1")
    ended = run_xbarc("sweep", other, "--data", folder / "data.npz", "-o", tmp_path / "a.db", "--resume")
    assert ended.code == 2
    assert "differ in model" in ended.stderr
    assert "must not be there yet" in run(folder, "-o", tmp_path / "a.db", code=2)[1]
    text = tmp_path / "text.db"
    text.write_text("no database, but a long text" * 99, encoding="utf-8")
    assert "must be a file that `xbarc sweep` wrote" in run(folder, "-o", text, "--resume", code=2)[1]
    assert text.read_text(encoding="utf-8").startswith("no database")
