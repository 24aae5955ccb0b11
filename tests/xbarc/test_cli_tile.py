"""``xbarc inspect --tile``: where a tile lies, what has failed there, what that leaves; text, JSON and picture."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_xbarc

from hwspec.chip import Chip
from hwspec.failures import State
from runtime.archive import load_program
from xbarc.cli.tile import ranges

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Standard output and standard error of the command line in this process."""
    ended = run_xbarc(*arguments)
    assert ended.code == code, ended.stderr
    return ended.stdout, ended.stderr


def told(*arguments: object) -> dict[str, Any]:
    """The JSON that a verb prints."""
    value = json.loads(run(*arguments, "--json")[0])
    assert isinstance(value, dict)
    return value


def refused(*arguments: object) -> str:
    """The one line of an error of the user."""
    out, err = run(*arguments, code=2)
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits-cnn for any chip of a faulty technology, and for one, with that chip's map."""
    folder = tmp_path_factory.mktemp("programs")
    calibrated = ("--calib", "digits", "--split", "train", "--limit", 64)
    run("compile", DIGITS, "-o", folder / "any.xbar", "--spec", "rram-128-faulty-lrs", *calibrated)
    run("chip", "sample", "--for", folder / "any.xbar", "--seed", 3, "-o", folder / "chip.npz")
    run("map", folder / "any.xbar", "-o", folder / "mapped.xbar", "--chip", folder / "chip.npz")
    return folder


def test_inspect_a_tile(folder: Path) -> None:
    program = load_program(folder / "mapped.xbar")
    chip = Chip.load(folder / "chip.npz")
    found = told("inspect", folder / "mapped.xbar", "--tile", "t3")
    assert found["tile"]["name"] == "t3"
    places = program.places("t3")
    assert list(found["sides"]) == ["plus", "minus"]
    for side, (array, rows, cols) in places.items():
        one = found["sides"][side]
        assert (one["array"], one["word_lines"], one["bit_lines"]) == (array, rows.tolist(), cols.tolist())
        states = chip.fault_map.states[array][np.ix_(rows, cols)]
        assert one["failed"]["stuck_lrs"] == int((states == State.STUCK_LRS).sum())
    assert found["signs"] == program.tile_tensors["t3"].col_sign.tolist()
    assert 0 < found["residual"]["rms"] < found["residual"]["largest"] <= 2
    out, _ = run("inspect", folder / "mapped.xbar", "--tile", "t3")
    assert f"array {program.tiles['t3'].array}, word lines" in out
    assert f"{found['failed_pairs']} of {program.tiles['t3'].rows * program.tiles['t3'].cols} pairs" in out
    assert "opposite sign" in out
    assert "t0 to t8" in refused("inspect", folder / "mapped.xbar", "--tile", "nosuch")
    assert "--tile" in refused("inspect", folder / "mapped.xbar", "--picture", "t.png")


def test_residual_of_good_tiles_is_that_of_levels(folder: Path) -> None:
    good, mapped = (told("inspect", folder / f"{name}.xbar", "--tile", "t3")["residual"] for name in ("any", "mapped"))
    assert good["largest"] <= 1 / 30 + 1e-6
    assert good["rms"] < mapped["rms"]
    whole = told("inspect", folder / "any.xbar", "--tile", "t3")
    assert not any(whole["sides"]["plus"]["failed"].values())
    assert whole["columns"] == sorted(whole["columns"])


def test_pictures_of_a_tile(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tile = ("inspect", folder / "mapped.xbar", "--tile", "t3", "--picture")
    for name, start in (("t.png", b"\x89PNG"), ("t.svg", b"<?xml"), ("t.pdf", b"%PDF")):
        run(*tile, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    before = (tmp_path / "t.svg").read_bytes()
    assert told(*tile, tmp_path / "t.svg")["picture"] == str(tmp_path / "t.svg")
    assert (tmp_path / "t.svg").read_bytes() == before
    assert ".png" in refused(*tile, tmp_path / "t.gif")
    assert "another file" in refused(*tile, folder / "mapped.xbar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.pdf", "t.png", "t.svg"]


def test_a_picture_needs_matplotlib(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = refused("inspect", folder / "mapped.xbar", "--tile", "t3", "--picture", tmp_path / "t.png")
    assert "pip install xbarc[plots]" in line


def test_lines_are_told_as_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([4]) == "4"
    assert ranges([]) == ""
