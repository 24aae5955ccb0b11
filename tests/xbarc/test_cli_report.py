"""``xbarc report``: one program, two compared, what machines read, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run_xbarc

import xbarc
from runtime.costing import cost

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Standard output and standard error of the command line in this process."""
    ended = run_xbarc(*arguments)
    assert ended.code == code, ended.stderr
    return ended.stdout, ended.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits-cnn on two technologies."""
    folder = tmp_path_factory.mktemp("programs")
    run("compile", DIGITS, "-o", folder / "a.xbar", "--spec", "rram-128")
    run("compile", DIGITS, "-o", folder / "b.xbar", "--spec", "wan2022")
    return folder


def test_what_one_program_takes(folder: Path) -> None:
    found = cost(xbarc.load(folder / "a.xbar"))
    out, _ = run("report", folder / "a.xbar")
    for layer in found.layers:
        assert layer.name in out
    assert "8 bits, too few to tell every sum apart in 5 of 5 layers" in out
    for told in ("bottleneck", found.bottleneck, "TOPS/W", "1 MAC is 2 operations", "ISAAC", "left out"):
        assert told in out


def test_machines_read_the_same(folder: Path) -> None:
    value: dict[str, Any] = json.loads(run("report", folder / "a.xbar", "--json")[0])
    found = cost(xbarc.load(folder / "a.xbar"))
    assert value["program"] == str(folder / "a.xbar")
    assert value["pipelined"]["interval"] == found.pipelined.interval
    assert value["energy"] == found.energy
    assert [layer["name"] for layer in value["layers"]] == [layer.name for layer in found.layers]


def test_two_programs_side_by_side(folder: Path) -> None:
    out, _ = run("report", folder / "a.xbar", folder / "b.xbar")
    one, other = (cost(xbarc.load(folder / name)).pipelined for name in ("a.xbar", "b.xbar"))
    (line,) = (line for line in out.splitlines() if line.startswith("interval"))
    assert float(line.split()[-1]) == pytest.approx(other.interval / one.interval, rel=0.01)
    value = json.loads(run("report", folder / "a.xbar", folder / "b.xbar", "--json")[0])
    assert len(value["programs"]) == 2


def test_three_programs_are_refused(folder: Path) -> None:
    _, err = run("report", *[folder / "a.xbar"] * 3, code=2)
    assert "must be one, or two to compare" in err


def test_what_does_not_fit_says_by_how_much(folder: Path) -> None:
    spec = folder / "small.yaml"
    spec.write_text("base: rram-128\nname: small\nchip: {arrays_per_core: 1, cores_per_tile: 2, tiles: 1}\n")
    _, err = run("compile", DIGITS, "-o", folder / "c.xbar", "--spec", spec, code=4)
    assert "too few" in err
    assert not (folder / "c.xbar").exists()


# -- pages ------------------------------------------------------------------------------------------------------------


def test_a_page_beside_the_table(folder: Path) -> None:
    out, err = run("report", folder / "a.xbar", "--html", folder / "a.html")
    assert "TOPS/W" in out
    assert "written to" in err
    assert (folder / "a.html").read_text(encoding="utf-8") == xbarc.report_page(xbarc.load(folder / "a.xbar"))
    value = json.loads(run("report", folder / "a.xbar", "--html", folder / "a.html", "--json")[0])
    assert value["html"] == str(folder / "a.html")
    assert value["arrays"] == cost(xbarc.load(folder / "a.xbar")).arrays


def test_a_page_with_an_evaluation(folder: Path) -> None:
    arguments = ("--data", "digits", "--limit", 40, "--chips", 3, "--json")
    told, _ = run("eval", folder / "a.xbar", *arguments)
    (folder / "eval.json").write_text(told, encoding="utf-8")
    run("report", folder / "a.xbar", "--html", folder / "a.html", "--eval", folder / "eval.json")
    page = (folder / "a.html").read_text(encoding="utf-8")
    assert page.count('class="chip"') == 3
    assert "Accuracy across chips" in page
    _, err = run("report", folder / "b.xbar", "--html", folder / "b.html", "--eval", folder / "eval.json", code=2)
    assert "must be of this program" in err
    assert not (folder / "b.html").exists()


def test_pages_that_are_refused(folder: Path) -> None:
    page, other = folder / "c.html", folder / "no.json"
    other.write_text("no")
    for arguments, words in (
        (("a.xbar", "b.xbar", "--html", page), "--html must be given with one program"),
        (("a.xbar", "--eval", other), "--eval must be given with --html"),
        (("a.xbar", "--html", page, "--eval", other), "eval --json"),
        (("a.xbar", "--html", page, "--eval", folder / "nosuch.json"), "existing file"),
        (("a.xbar", "--html", other, "--eval", other), "must be another file than the input"),
        (("a.xbar", "--html", folder / "a.xbar"), "must be another file than the input"),
        (("a.xbar", "--html", folder / "nosuch" / "c.html"), "existing folder"),
        (("a.xbar", "--html", folder), "is a folder"),
    ):
        given = [folder / one if str(one).endswith(".xbar") else one for one in arguments]
        _, err = run("report", *given, code=2)
        assert words in err
        assert err.count("\n") == 1
    assert not page.exists()
    assert other.read_text() == "no"
    assert list(folder.glob(".*")) == []


def test_a_page_that_cannot_be_written_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = folder / "kept.html"
    page.write_text("before")

    def full(*_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    _, err = run("report", folder / "a.xbar", "--html", page, code=2)
    assert "No space left" in err
    assert page.read_text() == "before"
