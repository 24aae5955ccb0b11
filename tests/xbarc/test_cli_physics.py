"""The options of the physics on the command line: chips, time, effects, pre-distortion; what reports tell of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Ended, run_xbarc

from hwspec.effects import EFFECTS

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"
WIRED = ("--set", "array.r_word=1 ohm", "--set", "array.r_bit=1 ohm")


def run(*arguments: object, code: int = 0) -> Ended:
    """Run the command line in this process."""
    ended = run_xbarc(*arguments)
    assert ended.code == code, ended.stderr
    return ended


def told(*arguments: object, code: int = 0) -> dict[str, Any]:
    """The JSON that a verb prints."""
    value = json.loads(run(*arguments, "--json", code=code).stdout)
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of digits-cnn with wires, with targets that undo them and without, and some inputs."""
    folder = tmp_path_factory.mktemp("programs")
    calibrated = ("--calib", "digits", "--split", "train", "--limit", 64)
    run("compile", DIGITS, "-o", folder / "wired.xbar", *calibrated, *WIRED)
    run("compile", DIGITS, "-o", folder / "plain.xbar", *calibrated, *WIRED, "--no-predistort")
    values = np.random.default_rng(0).random((6, 1, 8, 8), dtype=np.float32)
    np.savez(folder / "x.npz", image=values)
    return folder


def outputs(folder: Path, *options: object, program: str = "wired.xbar") -> np.ndarray[Any, Any]:
    """What `run` writes."""
    run("run", folder / program, "--data", folder / "x.npz", "-o", folder / "y.npz", *options)
    with np.load(folder / "y.npz") as found:
        scores: np.ndarray[Any, Any] = found["scores"]
        return scores


def test_chips_follow_their_seeds(folder: Path) -> None:
    three = outputs(folder, "--chips", 3, "--seed", 5, "--without", "read_noise")
    assert three.shape == (3, 6, 10)
    assert (three[0] != three[1]).any()
    second = outputs(folder, "--seed", 6, "--without", "read_noise")
    np.testing.assert_array_equal(three[1], second)
    ideal = outputs(folder, "--chips", 0)
    assert ideal.shape == (6, 10)
    assert (ideal != second).any()
    np.testing.assert_array_equal(ideal, outputs(folder, "--chips", 0, "--seed", 9))


def test_effects_are_kept_and_switched_off(folder: Path) -> None:
    names = ",".join(sorted(set(EFFECTS) - {"spread"}))
    only = outputs(folder, "--only", "spread")
    np.testing.assert_array_equal(only, outputs(folder, "--without", names))
    assert (only != outputs(folder, "--only", "wires")).any()
    for option in ("--only", "--without"):
        failed = run("run", folder / "wired.xbar", "--data", folder / "x.npz", "-o", "y.npz", option, "spred", code=2)
        assert "did you mean 'spread'" in failed.stderr
        assert len(failed.stderr.splitlines()) == 1


def test_time_is_read_with_its_unit(folder: Path, tmp_path: Path) -> None:
    drifting = tmp_path / "pcm.xbar"
    run("compile", DIGITS, "-o", drifting, "--calib", "digits", "--limit", 32, "--spec", "pcm")
    data = ("--data", folder / "x.npz", "-o", tmp_path / "y.npz", "--only", "drift")
    assert told("run", drifting, *data, "--time", "1d")["time"] == 86400.0
    with np.load(tmp_path / "y.npz") as found:
        day = found["scores"]
    assert told("run", drifting, *data, "--time", "1 hour")["time"] == 3600.0
    with np.load(tmp_path / "y.npz") as found:
        hour = found["scores"]
    told("run", drifting, *data)
    with np.load(tmp_path / "y.npz") as found:
        start = found["scores"]
    assert 0 < np.abs(hour - start).mean() < np.abs(day - start).mean()
    for wrong, words in (("1 volt", "quantity in second"), ("-5 s", "must not be negative"), ("soon", "text such as")):
        failed = run("run", drifting, *data, "--time", wrong, code=2)
        assert "--time" in failed.stderr
        assert words in failed.stderr


def test_predistortion_is_reported_and_can_be_left_out(folder: Path) -> None:
    reports = [told("inspect", folder / name)["layers"] for name in ("wired.xbar", "plain.xbar")]
    for wired, plain in zip(*reports, strict=True):
        assert wired["wires"]["error_predistorted"] <= wired["wires"]["error_with_gain"] < wired["wires"]["error"]
        assert 0.3 < wired["wires"]["headroom"] <= 1
        assert plain["wires"]["error_predistorted"] is None
        assert plain["wires"]["error"] == pytest.approx(wired["wires"]["error"], rel=0.05)
        assert 0 < plain["wires"]["closed_form_error"] < 0.01
    truth = outputs(folder, "--chips", 0, "--only", "dac", program="plain.xbar")
    errors = [
        np.linalg.norm(outputs(folder, "--chips", 0, "--only", "dac,wires", program=name) - truth)
        for name in ("wired.xbar", "plain.xbar")
    ]
    assert errors[0] < 0.6 * errors[1]
    for name in ("wired.xbar", "plain.xbar"):
        assert told("verify", folder / name)["passed"]
    mapped = told("map", folder / "wired.xbar", "-o", folder / "again.xbar", "--no-predistort")
    assert [layer["wires"] for layer in mapped["layers"]] == [layer["wires"] for layer in reports[1]]
    summary = run("inspect", folder / "wired.xbar").stdout
    assert "pre-distorted" in summary
    assert "not modelled" in summary
    assert "RC settling" in summary


def test_eval_over_chips(folder: Path) -> None:
    data = ("--data", "digits", "--limit", 60)
    found = told("eval", folder / "wired.xbar", *data, "--chips", 3, "--seed", 2)
    assert len(found["chips"]) == 3
    assert found["mean"] == pytest.approx(np.mean(found["chips"]))
    assert found["std"] == pytest.approx(np.std(found["chips"], ddof=1))
    assert found["ci95"][0] <= found["mean"] <= found["ci95"][1]
    assert found["effects"] == ["spread", "read_noise", "wires", "dac", "readout", "adc"]
    alone = told("eval", folder / "wired.xbar", *data, "--chips", 1, "--seed", 3)
    assert alone["chips"][0] == found["chips"][1]
    ideal = told("eval", folder / "wired.xbar", *data, "--chips", 0)
    assert (ideal["effects"], ideal["chips"]) == (["wires", "dac", "adc"], [ideal["ideal"]])
    kept = told("eval", folder / "wired.xbar", *data, "--only", "spread", "--time", "1d")
    assert (kept["effects"], kept["seconds"]) == (["spread"], 86400.0)
    shown = run("eval", folder / "wired.xbar", *data, "--chips", 2, "--without", "readout").stdout
    assert "on 2 chips" in shown
    assert "from chip to chip" in shown
    assert "effects  spread, read_noise, wires, dac, adc" in shown


def test_trim_is_reported_with_its_gain(folder: Path) -> None:
    trimmed = folder / "trimmed.xbar"
    sets = ("--set", "periphery.trim.gain=column", "--set", "periphery.trim.offset=true")
    run("compile", DIGITS, "-o", trimmed, "--calib", "digits", "--limit", 64, *WIRED, "--no-predistort", *sets)
    found = told("run", trimmed, "--data", folder / "x.npz", "-o", folder / "z.npz")["programming"]
    assert found["devices"] == found["pulses"] == 114_464
    assert all(after < 0.8 * before for before, after in found["trim"].values())
    shown = run("eval", trimmed, "--data", "digits", "--limit", 20).stdout
    assert shown.count("trim of") == 5


def test_every_field_of_a_spec_is_described() -> None:
    fields = told("spec", "fields")["fields"]
    assert {"path": "array.slices", "kind": "whole number", "default": "1"}.items() <= fields[
        [field["path"] for field in fields].index("array.slices")
    ].items()
    assert "array.slices" in run("spec", "fields").stdout
    assert run("spec", "fields", "--markdown").stdout.startswith("# Fields of a hardware spec")
