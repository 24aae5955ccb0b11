"""Failed devices on the command line: programs are mapped for a chip, run on it, and are compared with it whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_xbarc

from compiler.steps import STEPS
from hwspec.chip import Chip
from hwspec.failures import State
from hwspec.spec import HardwareSpec
from runtime.archive import load_program

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"
FAULTY = "rram-128-faulty-lrs"
CALIBRATED = ("--calib", "digits", "--split", "train", "--limit", 64)
SEED = 3
ARRAYS = 14


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Standard output and standard error of the command line in this process."""
    ended = run_xbarc(*arguments)
    assert ended.code == code, ended.stderr
    return ended.stdout, ended.stderr


def told(*arguments: object, code: int = 0) -> dict[str, Any]:
    """The JSON that a verb prints."""
    value = json.loads(run(*arguments, "--json", code=code)[0])
    assert isinstance(value, dict)
    return value


def refused(*arguments: object, code: int = 2) -> str:
    """The one line of an error of the user."""
    out, err = run(*arguments, code=code)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits-cnn for any chip and for chip 3 of a faulty technology, that chip's map, and a tenth of it."""
    folder = tmp_path_factory.mktemp("programs")
    run("compile", DIGITS, "-o", folder / "any.xbar", "--spec", FAULTY, *CALIBRATED)
    run("chip", "sample", "--for", folder / "any.xbar", "--seed", SEED, "-o", folder / "chip.npz")
    run("chip", "sample", "--spec", FAULTY, "--arrays", 4, "-o", folder / "small.npz")
    run("map", folder / "any.xbar", "-o", folder / "mapped.xbar", "--chip", folder / "chip.npz")
    return folder


# -- compile and map --------------------------------------------------------------------------------------------------


def test_map_for_a_chip_by_its_file_or_its_seed(folder: Path) -> None:
    chip = Chip.load(folder / "chip.npz")
    for name, options in (("seed", ("--chip-seed", SEED)), ("again", ("--chip", folder / "chip.npz"))):
        found = told("map", folder / "any.xbar", "-o", folder / f"{name}.xbar", *options)
        assert found["mapped_for"] == chip.sha256
        assert [step["step"] for step in found["layers"][0]["failures"]["steps"]] == [
            "identity", *(name for name in STEPS if name != "residue"),
        ]  # fmt: skip
        assert load_program(folder / f"{name}.xbar").tables == load_program(folder / "mapped.xbar").tables
    back = told("map", folder / "mapped.xbar", "-o", folder / "back.xbar")
    assert (back["mapped_for"], back["layers"][0]["failures"]) == (None, None)
    assert load_program(folder / "back.xbar").tables == load_program(folder / "any.xbar").tables


def test_compile_for_a_chip_is_compile_and_map(folder: Path) -> None:
    for options in (("--chip", folder / "chip.npz"), ("--chip-seed", SEED)):
        path = folder / "compiled.xbar"
        run("compile", DIGITS, "-o", path, "--spec", FAULTY, *CALIBRATED, *options)
        assert load_program(path).tables == load_program(folder / "mapped.xbar").tables
    assert told("verify", folder / "compiled.xbar")["passed"]


def test_spare_arrays_are_beyond_those_needed(folder: Path) -> None:
    options = ("--chip-seed", SEED, "--spare-arrays", 4)
    run("map", folder / "any.xbar", "-o", folder / "spare.xbar", *options)
    loaded = load_program(folder / "spare.xbar")
    assert max(tile.array for tile in loaded.tables.tiles) >= ARRAYS
    assert loaded.tables.mapped_for == Chip.sample(loaded.spec, ARRAYS + 4, SEED).sha256
    run("compile", DIGITS, "-o", folder / "spare2.xbar", "--spec", FAULTY, *CALIBRATED, *options)
    assert load_program(folder / "spare2.xbar").tables == loaded.tables


def test_steps_are_chosen_and_left_out(folder: Path) -> None:
    chip = ("--chip", folder / "chip.npz")

    def steps(*options: object) -> tuple[str, ...]:
        run("map", folder / "any.xbar", "-o", folder / "steps.xbar", *chip, *options)
        return load_program(folder / "steps.xbar").tables.mapping_steps

    assert steps("--steps", "all") == tuple(STEPS)
    assert steps("--steps", "none") == ()
    assert steps("--steps", "sign, pair") == ("pair", "sign")
    left = steps("--without-steps", "rows,compensation")
    assert left == tuple(name for name in STEPS if name not in ("rows", "compensation"))
    assert steps("--steps", "pair,sign", "--without-steps", "sign") == ("pair",)
    found = told("compile", DIGITS, "-o", folder / "s.xbar", "--spec", FAULTY, *CALIBRATED, *chip, "--steps", "pair")
    assert [step["step"] for step in found["layers"][0]["failures"]["steps"]] == ["identity", "pair"]
    for verb in (("map", folder / "any.xbar"), ("compile", DIGITS)):
        assert "did you mean 'pair'" in refused(*verb, "-o", folder / "no.xbar", "--steps", "pairs")
        assert "did you mean 'rows'" in refused(*verb, "-o", folder / "no.xbar", "--without-steps", "row")
        assert "alone" in refused(*verb, "-o", folder / "no.xbar", "--steps", "all,pair")
    assert not (folder / "no.xbar").exists()
    for verb_name in ("compile", "map", "eval"):
        assert ",".join(STEPS).replace(",", "") in "".join(run(verb_name, "--help")[0].split()).replace(",", "")


def test_replicas_take_tiles_and_stay(folder: Path) -> None:
    double = told("map", folder / "any.xbar", "-o", folder / "double.xbar", "--replicas", 2, "--chip-seed", SEED)
    once = told("inspect", folder / "any.xbar")
    assert double["totals"]["tiles"] == 2 * once["totals"]["tiles"]
    kept = told("map", folder / "double.xbar", "-o", folder / "kept.xbar")
    assert kept["totals"]["tiles"] == double["totals"]["tiles"]
    back = told("map", folder / "double.xbar", "-o", folder / "one.xbar", "--replicas", 1)
    assert back["totals"] == once["totals"]
    found = told("compile", DIGITS, "-o", folder / "r.xbar", "--spec", FAULTY, *CALIBRATED, "--replicas", 2)
    assert found["totals"] == kept["totals"]
    run("map", folder / "any.xbar", "-o", folder / "x.xbar", "--replicas", 17, code=2)


def test_pairs_are_raised_unless_told(tmp_path: Path) -> None:
    shorted = ("--spec", FAULTY, *CALIBRATED)
    run("compile", DIGITS, "-o", tmp_path / "raised.xbar", *shorted)
    run("compile", DIGITS, "-o", tmp_path / "plain.xbar", *shorted, "--no-robust")
    run("map", tmp_path / "raised.xbar", "-o", tmp_path / "mapped.xbar", "--no-robust")
    raised, plain, mapped = (load_program(tmp_path / f"{name}.xbar") for name in ("raised", "plain", "mapped"))
    assert (raised.tables.robust, plain.tables.robust, mapped.tables.robust) == (True, False, False)
    layer = next(iter(plain.layers))
    lower = [np.minimum(one.tensors[f"{layer}/plus"], one.tensors[f"{layer}/minus"]) for one in (raised, plain, mapped)]
    assert lower[0].mean() > 3
    assert not lower[1].any()
    assert not lower[2].any()
    for name, words in (("raised", "pairs raised"), ("plain", "not raised (--no-robust)")):
        assert words in run("inspect", tmp_path / f"{name}.xbar")[0]


def test_a_program_that_does_not_fit_ends_with_4(folder: Path) -> None:
    small = ("--chip", folder / "small.npz")
    for verb in (("map", folder / "any.xbar"), ("compile", DIGITS, "--spec", FAULTY, *CALIBRATED)):
        path = folder / "unfit.xbar"
        line = refused(*verb, "-o", path, *small, code=4)
        assert f"at least {ARRAYS} arrays" in line
        assert "a chip with more arrays" in line
        found = told(*verb, "-o", path, *small, code=4)
        assert (found["error"], found["exit_code"]) == ("DoesNotFit", 4)
        report = found["report"]
        assert (report["demand"], report["bound"], report["gap"], report["unit"]) == (ARRAYS, 4, ARRAYS - 4, "arrays")
        assert report["levers"]
        assert not path.exists()
    data = ("--data", "digits", "--limit", 4)
    assert "arrays" in refused("run", folder / "any.xbar", *data, "-o", folder / "y.npz", *small, code=4)
    assert "arrays" in refused("eval", folder / "any.xbar", *data, *small, code=4)


def test_chips_that_make_no_sense(folder: Path) -> None:
    verb = ("map", folder / "any.xbar", "-o", folder / "no.xbar")
    chip = ("--chip", folder / "chip.npz")
    assert "not be given together" in refused(*verb, *chip, "--chip-seed", 1)
    assert "--chip-seed" in refused(*verb, "--spare-arrays", 2)
    assert "--chip-seed" in refused(*verb, *chip, "--spare-arrays", 2)
    assert "nosuch.npz" in refused(*verb, "--chip", folder / "nosuch.npz")
    assert ".npz or .csv" in refused(*verb, "--chip", folder / "any.xbar")
    run("chip", "sample", "--spec", "wan2022", "--arrays", 2, "-o", folder / "large.npz")
    assert "128x128" in refused(*verb, "--chip", folder / "large.npz")
    data = ("--data", "digits", "--limit", 4)
    assert "not be given together" in refused("eval", folder / "any.xbar", *data, *chip, "--chips", 2)
    assert "not be given together" in refused(
        "run", folder / "any.xbar", *data, "-o", folder / "y.npz", *chip, "--chips", 0
    )


def test_a_measured_map_is_a_chip(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text(f"array,row,col,state\n0,0,0,stuck_lrs\n{ARRAYS - 1},5,2,stuck_hrs\n")
    found = told("map", folder / "any.xbar", "-o", tmp_path / "m.xbar", "--chip", tmp_path / "some.csv")
    assert sum(layer["failures"]["failed"] for layer in found["layers"]) <= 2
    _, err = run("run", tmp_path / "m.xbar", "--data", "digits", "--limit", 2, "-o", tmp_path / "y.npz",
                 "--chip", tmp_path / "some.csv")  # fmt: skip
    assert "no seed" in err
    (tmp_path / "good.csv").write_text(f"array,row,col,state\n{ARRAYS - 1},0,0,ok\n")
    _, err = run("map", folder / "any.xbar", "-o", tmp_path / "g.xbar", "--chip", tmp_path / "good.csv")
    assert "no failed devices" in err


# -- what is printed --------------------------------------------------------------------------------------------------


def test_the_summary_tells_what_each_step_left(folder: Path) -> None:
    out, _ = run("inspect", folder / "mapped.xbar")
    report = load_program(folder / "mapped.xbar").report
    head = next(line for line in out.splitlines() if line.startswith("failed devices  of devices"))
    steps = [name for name in STEPS if name != "residue"]
    assert head.split()[7:] == ["identity", *steps, "worst", "column"]
    for layer in report.layers:
        assert layer.failures is not None
        line = next(line for line in out.splitlines() if line.startswith(layer.name) and "(" in line)
        for step in layer.failures.steps:
            assert f"{step.output_error:.2%}" in line
        assert f"{layer.failures.worst_columns[0].output_error:.2%} ({layer.failures.worst_columns[0].column})" in line
    assert report.mapped_for is not None
    assert report.mapped_for[:12] in out
    failed = sum(layer.failures.failed for layer in report.layers if layer.failures)
    devices = sum(layer.failures.devices for layer in report.layers if layer.failures)
    assert f"{failed / devices:.2%} of the devices" in out
    assert "of the pairs" in out
    assert "push weights" not in out
    whole, _ = run("inspect", folder / "any.xbar")
    assert "for no chip in particular" in whole
    assert "xbarc map PROGRAM" in whole
    assert "failed devices" not in run("compile", DIGITS, "-o", folder / "good.xbar", *CALIBRATED)[0]


def test_unbounded_failures_say_how_far(tmp_path: Path) -> None:
    out, _ = run("compile", DIGITS, "-o", tmp_path / "u.xbar", "--spec", "kim2020-1t1r", *CALIBRATED, "--chip-seed", 1)
    low, high = load_program(tmp_path / "u.xbar").report.reachable
    assert f"push weights to {low:.3g} and {high:.3g}" in out
    assert high > 5


def test_gated_devices_and_the_residue_are_counted(tmp_path: Path) -> None:
    out, _ = run("compile", DIGITS, "-o", tmp_path / "g.xbar", "--spec", "kim2020-2t2r", *CALIBRATED, "--chip-seed", 1)
    assert "gated off" in out
    out, _ = run(
        "compile", DIGITS, "-o", tmp_path / "r.xbar", "--spec", FAULTY, *CALIBRATED, "--chip-seed", 1,
        "--set", "periphery.residue=0.01",
    )  # fmt: skip
    assert "weights in digital memory" in out
    assert "residue" in next(line for line in out.splitlines() if line.startswith("failed devices  of devices"))


# -- run and eval -----------------------------------------------------------------------------------------------------


def test_run_on_the_chip_and_on_another(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32))
    data = ("--data", tmp_path / "x.npz")

    def scores(*options: object) -> tuple[np.ndarray[Any, Any], str]:
        _, err = run("run", folder / "mapped.xbar", *data, "-o", tmp_path / "y.npz", *options)
        with np.load(tmp_path / "y.npz") as found:
            return found["scores"], err

    by_file, note = scores("--chip", folder / "chip.npz", "--without", "read_noise")
    assert note == ""
    by_seed, note = scores("--seed", SEED, "--without", "read_noise")
    assert note == ""
    nominal, note = scores("--chips", 0)
    assert note == ""
    other, note = scores("--seed", SEED + 1, "--without", "read_noise")
    assert "mapped around the failed devices of chip" in note
    assert "xbarc map --chip" in note
    assert "other chips" in scores("--chips", 2, "--without", "read_noise")[1]
    own = np.abs(by_file - nominal).mean()
    assert np.abs(by_seed - nominal).mean() < 3 * own
    assert np.abs(other - nominal).mean() > 3 * own
    assert "had failed before" in run("run", folder / "mapped.xbar", *data, "-o", tmp_path / "y.npz", "--seed", SEED)[0]


def test_the_chip_with_spare_arrays_is_known_by_its_seed(folder: Path, tmp_path: Path) -> None:
    run("map", folder / "any.xbar", "-o", tmp_path / "s.xbar", "--chip-seed", 5, "--spare-arrays", 2)
    data = ("--data", "digits", "--limit", 4)
    assert run("run", tmp_path / "s.xbar", *data, "-o", tmp_path / "y.npz", "--seed", 5)[1] == ""


def test_eval_on_one_chip_with_the_drop(folder: Path) -> None:
    data = ("--data", "digits", "--limit", 60)
    chip = ("--chip", folder / "chip.npz")
    mapped = told("eval", folder / "mapped.xbar", *data, *chip, "--drop")
    unmapped = told("eval", folder / "any.xbar", *data, *chip, "--drop")
    for found in (mapped, unmapped):
        assert len(found["chips"]) == len(found["good_chips"]) == 1
        assert found["drop"] == pytest.approx(found["good_chips"][0] - found["chips"][0])
        assert found["drop_ci95"][0] <= found["drop"] <= found["drop_ci95"][1]
        assert found["worst"] == found["chips"][0]
        assert 0.10 < found["failed_devices"] < 0.115
        assert 0.19 < found["failed_pairs"] < 0.215
    assert mapped["drop"] < 0.06 < unmapped["drop"]
    assert mapped["good_chips"] == unmapped["good_chips"]
    out, err = run("eval", folder / "mapped.xbar", *data, *chip, "--drop")
    assert err == ""
    assert "on the chip given" in out
    assert "points by failures" in out
    assert "of the pairs" in out
    assert "mapped around" in run("eval", folder / "mapped.xbar", *data, "--chips", 2)[1]
    assert "and the failures" in run("eval", folder / "mapped.xbar", *data, "--chips", 0)[0]


def test_eval_maps_for_each_chip(folder: Path) -> None:
    data = ("--data", "digits", "--limit", 40)
    none = told("eval", folder / "any.xbar", *data)
    assert (none["remapped"], none["drop"], none["good_chips"], none["drop_ci95"]) == (False, None, None, None)
    all_steps = told("eval", folder / "any.xbar", *data, "--remap")
    pair = told("eval", folder / "any.xbar", *data, "--remap", "--steps", "pair")
    assert all_steps["remapped"]
    assert all_steps["mean"] > pair["mean"] > none["mean"]
    few = told("eval", folder / "any.xbar", *data, "--remap", "--without-steps", ",".join(set(STEPS) - {"pair"}))
    assert few["chips"] == pair["chips"]
    twice = told("eval", folder / "any.xbar", *data, "--remap", "--steps", "none", "--replicas", 2)
    once = told("eval", folder / "any.xbar", *data, "--remap", "--steps", "none")
    assert twice["mean"] > once["mean"]
    out, err = run("eval", folder / "any.xbar", *data, "--remap", "--chips", 2)
    assert err == ""
    assert "mapped for each" in out
    assert "worst" in out
    assert "5th percentile" in out
    for option in (("--steps", "pair"), ("--without-steps", "pair"), ("--replicas", 2)):
        assert "--remap" in refused("eval", folder / "any.xbar", *data, *option)
    ideal = ("--data", "digits", "--limit", 4, "--chips", 0)
    for flag in ("--remap", "--drop"):
        assert "must have chips" in refused("eval", folder / "any.xbar", *ideal, flag)


def test_eval_re_estimates_columns_of_each_chip(folder: Path) -> None:
    """Without a map: most of what failed devices take comes back, and what mapping gains stays the larger part."""
    eval_any = ("eval", folder / "any.xbar", "--data", "digits", "--limit", 60, "--chips", 2)
    typical = ("--reestimate", "digits", "--reestimate-split", "train")
    none, mapped = told(*eval_any), told(*eval_any, "--remap")
    some = told(*eval_any, *typical)
    assert none["reestimated"] is None
    assert 0 < mapped["mean"] - some["mean"] < (mapped["mean"] - none["mean"]) / 2
    assert all(after < before for before, after in some["reestimated"].values())
    few = told(*eval_any, *typical, "--reestimate-limit", 8)
    assert few["mean"] < some["mean"]
    assert told(*eval_any, "--remap", *typical)["reestimated"] is not None
    assert run(*eval_any, *typical)[0].count("re-estimated: error of the results") == len(some["reestimated"])
    for option in (("--reestimate-split", "train"), ("--reestimate-limit", 8)):
        assert f"{option[0]} must be given with --reestimate" in refused(*eval_any, *option)
    assert "must have chips" in refused("eval", folder / "any.xbar", "--data", "digits", "--chips", 0, *typical)


# -- the guide --------------------------------------------------------------------------------------------------------


def test_the_guide_names_what_there_is() -> None:
    """Every field and step is told of, and every command has options that its verb takes."""
    guide = (DIGITS.parents[2] / "docs" / "failures.md").read_text(encoding="utf-8")
    for field, _ in HardwareSpec.preset("ideal").fields():
        section, _, rest = field.partition(".")
        if section == "failures":
            state, _, name = rest.partition(".")
            told_of = f"| `{name}` |" if state.upper() in State.__members__ else f"`{field}`"
            assert told_of in guide, field
    for step, what in STEPS.items():
        assert f"| `{step}` |" in guide, what
    for one in State:
        assert one is State.OK or f"| `{one.name.lower()}` |" in guide
    commands = [line.partition("#")[0].split() for line in guide.splitlines() if line.startswith("xbarc ")]
    assert len(commands) > 12
    for words in commands:
        verb = words[1:3] if words[1] == "chip" else words[1:2]
        for option in (word for word in words if word.startswith("--")):
            assert option in run(*verb, "--help")[0], words
