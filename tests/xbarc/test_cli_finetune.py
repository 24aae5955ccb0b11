"""``xbarc finetune``: every option reaches the training, what is printed is what was done, and errors end with 2."""

import csv
import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tuning_cases as cases
from command_line import Ended, run_xbarc
from tuning_cases import blobs

import xbarc
from compiler.floatmodel import FloatModel
from runtime.augmentation import Augmentation
from runtime.tuning import TuneOptions
from xbarc.cli.finetune import finetune_, parse_augmentation
from xbarc.data.load import Dataset
from xbarc.eval_report import EvalReport

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"
SHORT = ("--epochs", 2, "--batch", 16, "--lr", 0.02, "--average", 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program, the same mapped for a chip and without its model, the chip, its model, and data."""
    folder = tmp_path_factory.mktemp("finetune")
    cases.program().save(folder / "net.xbar")
    cases.mapped().save(folder / "mapped.xbar")
    onnx.save(cases.classifier(), folder / "net.onnx")
    xbarc.Chip.sample(cases.program().spec, cases.program().arrays, 5).save(folder / "chip.npz")
    for name, samples in (("data", 80), ("test", 40)):
        cases.save(folder / f"{name}.npz", blobs(samples, len(name)))
        cases.save(folder / f"{name}-bare.npz", Dataset(blobs(samples, len(name)).inputs))
    return folder


def run(folder: Path, *more: object, program: str = "net.xbar", data: str = "data.npz") -> Ended:
    return run_xbarc("finetune", folder / program, "--data", folder / data, *SHORT, *more)


def told(folder: Path, out: Path, *more: object, **names: str) -> dict[str, Any]:
    """The JSON that it prints."""
    ended = run(folder, "-o", out / "out.xbar", "--json", *more, **names)
    assert ended.code == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return found


def refused(folder: Path, out: Path, *more: object, code: int = 2, **names: str) -> str:
    """The one line of an error; nothing is written."""
    ended = run(folder, "-o", out / "out.xbar", *more, **names)
    assert ended.code == code, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert not (out / "out.xbar").exists()
    assert not (out / "out.onnx").exists()
    return ended.stderr


# -- what is printed and written ------------------------------------------------------------------------------------


def test_json(folder: Path, tmp_path: Path) -> None:
    found = told(folder, tmp_path, "--chips", 2, "--metrics", tmp_path / "m.json")
    assert {*found} == {
        "program", "model", "before", "after", "epochs", "seconds", "best_epoch", "history", "notes"
    }  # fmt: skip
    assert found["program"] == str(tmp_path / "out.xbar")
    assert found["model"] == str(tmp_path / "out.onnx")
    assert (found["epochs"], found["notes"]) == (2, [])
    assert found["best_epoch"] in (1, 2)
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in found["history"]))
    assert json.loads((tmp_path / "m.json").read_text()) == found["history"]
    for name in ("before", "after"):
        report = EvalReport.model_validate(found[name])
        assert (report.metric, report.samples, len(report.chips)) == ("accuracy", 8, 2)
    program = xbarc.load(found["program"])
    assert program.tables.tuned
    assert xbarc.verify(program, found["model"]).passed
    result = xbarc.finetune(
        cases.program(), folder / "data.npz", options=TuneOptions(epochs=2, batch=16, learning_rate=0.02, average=0.5)
    )
    for name, values in result.program.tensors.items():
        np.testing.assert_array_equal(program.tensors[name], values)
    x = blobs(10, 9).inputs
    outputs = [FloatModel(one).run(x, ["y"])["y"] for one in (result.model, onnx.load(found["model"]))]
    np.testing.assert_array_equal(*outputs)


def test_text(folder: Path, tmp_path: Path) -> None:
    ended = run(folder, "-o", tmp_path / "out.xbar", "--chips", 2)
    assert ended.code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["epoch 1", "epoch 2"]
    assert all("loss" in line and "held out" in line and "accuracy" in line for line in lines[:2])
    assert lines[2].startswith("before ")
    assert lines[3].startswith("after ")
    assert "95 % interval" in lines[3]
    assert lines[4].startswith("kept the weights of epoch ")
    assert f"written to {tmp_path / 'out.xbar'} and {tmp_path / 'out.onnx'}" in lines[4]


def test_where_results_go(folder: Path, tmp_path: Path) -> None:
    """Beside the program where nothing is said; elsewhere where it is."""
    (tmp_path / "net.xbar").write_bytes((folder / "net.xbar").read_bytes())
    data = ("--data", folder / "data.npz", *SHORT, "--chips", 0)
    assert run_xbarc("finetune", tmp_path / "net.xbar", *data).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net-tuned.onnx", "net-tuned.xbar", "net.xbar"]
    ended = run_xbarc("finetune", tmp_path / "net.xbar", *data, "--output", tmp_path / "a", "--onnx", tmp_path / "b")
    assert ended.code == 0, ended.stderr
    assert (tmp_path / "a").read_bytes()[:2] == b"PK"
    assert xbarc.load(tmp_path / "a").tables.tuned
    onnx.checker.check_model(onnx.load_model(str(tmp_path / "b")))


def test_nothing_is_held_out(folder: Path, tmp_path: Path) -> None:
    """No evaluation without other data; with it there is one."""
    found = told(folder, tmp_path, "--validation", 0)
    assert (found["before"], found["after"]) == (None, None)
    assert [row["validation_loss"] for row in found["history"]] == [None, None]
    found = told(folder, tmp_path, "--validation", 0, "--test", folder / "test.npz", "--chips", 1)
    assert found["before"]["samples"] == found["after"]["samples"] == 40
    ended = run(folder, "-o", tmp_path / "again.xbar", "--validation", 0)
    assert ended.code == 0
    assert "held out" not in ended.stdout
    assert "before" not in ended.stdout


# -- every option ---------------------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[tuple[object, ...], str, Any]] = {
    "epochs": (("--epochs", 3), "epochs", 3),
    "batch": (("--batch", 9), "batch", 9),
    "lr": (("--lr", 0.5), "learning_rate", 0.5),
    "weight_decay": (("--weight-decay", 0.1), "weight_decay", 0.1),
    "schedule": (("--schedule", "linear"), "schedule", "linear"),
    "warmup": (("--warmup", 0.3), "warmup", 0.3),
    "average": (("--average", 0.2), "average", 0.2),
    "distill": (("--distill", 0.7), "distill", 0.7),
    "temperature": (("--temperature", 3), "temperature", 3.0),
    "distance": (("--distance", "squared"), "distance", "squared"),
    "smoothing": (("--smoothing", 0.1), "smoothing", 0.1),
    "rates": (("--rates", "0.5,2"), "rates", (0.5, 2.0)),
    "ramp": (("--ramp", 1.5), "ramp", 1.5),
    "resample": (("--resample", 4), "resample", 4),
    "clip": (("--clip", 2.5), "clip", 2.5),
    "max_norm": (("--max-norm", 0.7), "limit", 0.7),
    "wires": (("--wires", "closed_form"), "wires", "closed_form"),
    "refresh": (("--refresh", 5), "refresh", 5),
    "validation": (("--validation", 12), "validation", 12.0),
    "validation_chips": (("--validation-chips", 3), "validation_chips", 3),
    "patience": (("--patience", 2), "patience", 2),
    "augment": (("--augment", "crop=2,flip"), "augmentation", Augmentation(crop=2, flip=True)),
}
"""Options of the command line, as they are given, and the field of `TuneOptions` that they set."""
PASSED: dict[str, tuple[tuple[object, ...], str, Any]] = {
    "mode": (("--mode", "aware"), "mode", "aware"),
    "teacher": (("--teacher", "t.onnx"), "teacher", "t.onnx"),
    "ranges": (("--ranges",), "ranges", True),
    "only": (("--only", "spread,failures"), "only", ["spread", "failures"]),
    "without": (("--without", "adc"), "without", ["adc"]),
    "model": (("--model", "m.onnx"), "model", "m.onnx"),
    "start": (("--start", "s.ckpt"), "start", "s.ckpt"),
    "checkpoint": (("--checkpoint", "c.ckpt"), "checkpoint", "c.ckpt"),
    "metrics": (("--metrics", "m.csv"), "metrics", "m.csv"),
    "tensorboard": (("--tensorboard", "logs"), "tensorboard", "logs"),
    "device": (("--device", "cuda"), "device", "cuda"),
    "seed": (("--seed", 9), "seed", 9),
}
"""Those that set arguments of `xbarc.finetune`."""
DONE = {"program", "data", "output", "onnx", "chips", "test", "json"}
"""Those whose effect tests above show."""
READ = {"chip", "chip_seed", "split", "normalize", "limit", "test_split"}
"""Those that tests below show."""


def test_no_option_is_forgotten() -> None:
    assert {*OPTIONS, *PASSED} | DONE | READ == {*inspect.signature(finetune_).parameters}
    assert {name for _, name, _ in OPTIONS.values()} == {field.name for field in fields(TuneOptions)}


class Stopped(xbarc.DataError):
    """What ends a run in a test."""


def given(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: object, **names: str) -> tuple[dict[str, Any], Any]:
    """What `xbarc.finetune` is called with, and the samples."""
    found: list[tuple[dict[str, Any], Any]] = []

    def stop(_program: Any, samples: Any, mode: str, **arguments: Any) -> None:
        found.append(({"mode": mode, **arguments}, samples))
        raise Stopped("test", "ends here")

    monkeypatch.setattr("xbarc.finetuning.finetune", stop)
    monkeypatch.chdir(folder)
    ended = run(folder, "-o", folder / "none.xbar", "--chips", 0, *more, **names)
    assert ended.stderr == "error: test ends here\n"
    return found[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_training(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, field, value = OPTIONS[name]
    found = given(folder, monkeypatch, *arguments)[0]["options"]
    own = {"epochs": 2, "batch": 16, "learning_rate": 0.02, "average": 0.5}
    assert found == TuneOptions(**{**own, field: value})


@pytest.mark.parametrize("name", PASSED)
def test_options_beside(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, argument, value = PASSED[name]
    without = given(folder, monkeypatch)[0]
    found = given(folder, monkeypatch, *arguments)[0]
    changed = {key for key in found if key != "progress" and found[key] != without[key]}
    assert changed == {argument}
    assert found[argument] == value


def test_which_chip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chip = xbarc.Chip.sample(cases.program().spec, cases.program().arrays, 5)
    by_file = given(folder, monkeypatch, "--mode", "aware", "--chip", folder / "chip.npz")[0]["chip"]
    by_seed = given(folder, monkeypatch, "--mode", "aware", "--chip-seed", 5)[0]["chip"]
    assert by_file.fault_map == by_seed.fault_map == chip.fault_map
    assert given(folder, monkeypatch, "--mode", "aware", program="mapped.xbar")[0]["chip"] is None


def test_which_samples(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert len(given(folder, monkeypatch)[1]) == 80
    assert len(given(folder, monkeypatch, "--limit", 30)[1]) == 30
    xbarc.compile(DIGITS, "ideal").save(tmp_path / "images.xbar")
    digits = ("finetune", tmp_path / "images.xbar", "--data", "digits", "--chips", 0, "-o", tmp_path / "o.xbar")
    assert "split" in run_xbarc(*digits, "--split", "third").stderr
    lengths, means = [], []

    def stop(_program: Any, samples: Any, *_arguments: Any, **_more: Any) -> None:
        lengths.append(len(samples))
        means.append(float(samples.inputs["image"].mean()))
        raise Stopped("test", "ends here")

    monkeypatch.setattr("xbarc.finetuning.finetune", stop)
    run_xbarc(*digits)
    run_xbarc(*digits, "--split", "train")
    run_xbarc(*digits, "--split", "test")
    run_xbarc(*digits, "--split", "test", "--normalize", "0.5,0.25")
    assert lengths == [1437, 1437, 360, 360]
    assert means[3] == pytest.approx((means[2] - 0.5) / 0.25, rel=1e-3)
    ended = run_xbarc(*digits, "--split", "train", "--test", "digits", "--test-split", "fourth")
    assert "'fourth'" in ended.stderr


# -- chips and models -----------------------------------------------------------------------------------------------


def test_for_one_chip(folder: Path, tmp_path: Path) -> None:
    """Of its map, or of its seed; evaluated on it, before and after."""
    more = ("--mode", "aware", "--test", folder / "test.npz", "--chips", 1)
    by_file = told(folder, tmp_path, *more, "--chip", folder / "chip.npz")
    program = xbarc.load(tmp_path / "out.xbar")
    assert by_file["notes"] == ["the program was mapped around the failed devices of the chip first"]
    assert program.faults == cases.mapped().faults
    by_seed = told(folder, tmp_path, *more, "--chip-seed", 5)
    mapped = told(folder, tmp_path, *more, program="mapped.xbar")
    assert mapped["notes"] == []
    for found in (by_file, by_seed, mapped):
        assert len(found["after"]["chips"]) == 1
        assert found["after"]["mean"] >= found["before"]["mean"]
    text = run(folder, "-o", tmp_path / "out.xbar", *more, "--chip-seed", 5)
    assert text.stderr == "the program was mapped around the failed devices of the chip first\n"


def test_without_labels_or_model(folder: Path, tmp_path: Path) -> None:
    found = told(folder, tmp_path, "--chips", 1, data="data-bare.npz")
    assert found["before"]["metric"] == "relative_error"
    assert found["history"][0]["accuracy"] is None
    ended = run(folder, "-o", tmp_path / "text.xbar", "--chips", 1, data="data-bare.npz")
    assert ended.code == 0
    bare = tmp_path / "bare.xbar"
    compiled = run_xbarc("compile", folder / "net.onnx", "--spec", "ideal", "--no-source", "-o", bare)
    assert compiled.code == 0, compiled.stderr
    data = ("--data", folder / "data.npz", *SHORT, "--chips", 1, "-o", tmp_path / "o.xbar")
    assert "--model" in run_xbarc("finetune", bare, *data).stderr
    ended = run_xbarc("finetune", bare, *data, "--model", folder / "net.onnx", "--teacher", folder / "net.onnx",
                      "--distill", 0.5)  # fmt: skip
    assert ended.code == 0, ended.stderr


def test_a_run_goes_on_from_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    """And writes its metrics again; a checkpoint of another run is refused, and stays."""
    kept = ("--checkpoint", tmp_path / "run.ckpt", "--chips", 0)
    first = told(folder, tmp_path, *kept)
    whole = (tmp_path / "run.ckpt").read_bytes()
    again = told(folder, tmp_path, *kept, "--metrics", tmp_path / "m.csv")
    assert again["history"] == first["history"]
    with (tmp_path / "m.csv").open(newline="") as stream:
        assert len(list(csv.reader(stream))) == 3
    for name in ("out.xbar", "out.onnx"):
        (tmp_path / name).unlink()
    for more in (("--seed", 1), ("--lr", 0.1), ("--only", "failures"), ("--distill", 0.1), ("--limit", 40)):
        assert "belongs to another run" in refused(folder, tmp_path, *kept, *more)
    other = ("--distill", 0.5)
    told(folder, tmp_path, *other, "--checkpoint", tmp_path / "taught.ckpt", "--chips", 0)
    teacher = cases.classifier(softmax=True)
    onnx.save(teacher, tmp_path / "teacher.onnx")
    for name in ("out.xbar", "out.onnx"):
        (tmp_path / name).unlink()
    message = refused(folder, tmp_path, *other, "--checkpoint", tmp_path / "taught.ckpt", "--teacher",
                      tmp_path / "teacher.onnx", "--chips", 0)  # fmt: skip
    assert "belongs to another run" in message
    assert (tmp_path / "run.ckpt").read_bytes() == whole
    (tmp_path / "run.ckpt").write_bytes(whole[:1000])
    assert "is not a checkpoint of fine-tuning, or is damaged; remove it" in refused(folder, tmp_path, *kept)


# -- errors ---------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "mode": (("--mode", "both"), "mode must be one of agnostic, aware"),
    "mode without a chip": (("--mode", "aware"), "chip must be known to the mode aware"),
    "chip without its mode": (("--chip-seed", 1), "chip must not be given to the mode agnostic"),
    "chips": (("--mode", "aware", "--chip", "chip.npz", "--chip-seed", 1), "must not be given together"),
    "learning rate": (("--lr", -1), "learning_rate must be a number from 0 to 10"),
    "schedule": (("--schedule", "step"), "schedule must be one of cosine, linear, constant"),
    "average": (("--average", 1), "average must be below 1"),
    "distill": (("--distill", 2), "distill must be a share from 0 to 1"),
    "rates": (("--rates", "2"), "--rates must be FROM,TO, not '2'"),
    "rates of words": (("--rates", "low,high"), "--rates must be FROM,TO"),
    "rates that fall": (("--rates", "2,1"), "rates must be two factors"),
    "rates without end": (("--rates", "0,inf"), "rates must be two factors"),
    "clip": (("--clip", 0), "clip must be a positive number"),
    "wires": (("--wires", "short"), "wires must be one of spec, closed_form"),
    "validation": (("--validation", 80), "validation must leave samples to learn from"),
    "augment": (("--augment", "blur=2"), "--augment must be made of shift, rotate, zoom, crop, flip, erase"),
    "augment by words": (("--augment", "crop=much"), "--augment must be given as crop=4"),
    "augment without a number": (("--augment", "crop"), "--augment must be given as crop=4"),
    "augment what is no image": (("--augment", "flip"), "augmentation must have inputs that are images"),
    "effects": (("--only", "luck"), "luck"),
    "device": (("--device", "cuda:99"), "device must be one that torch computes on here"),
    "teacher": (("--teacher", "net.onnx"), "teacher must be given with distillation"),
    "teacher file": (("--teacher", "nowhere.onnx", "--distill", 1), "nowhere.onnx"),
    "metrics": (("--metrics", "m.txt"), "must end with .csv or .json"),
    "metrics folder": (("--metrics", "nowhere/m.csv"), "must lie in an existing folder"),
    "checkpoint folder": (("--checkpoint", "nowhere/c"), "must lie in an existing folder"),
    "checkpoint": (("--checkpoint", "net.onnx"), "is not a checkpoint of fine-tuning"),
    "checkpoint that is the program": (("--checkpoint", "net.xbar"), "must be another file than the input"),
    "model that is the program": (("--onnx", "net.xbar"), "must be another file than the program"),
    "folder": (("--onnx", "nowhere/net.onnx"), "must lie in an existing folder"),
    "test data": (("--test", "nowhere.npz"), "nowhere.npz"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_one_line_and_end_with_2(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    arguments, message = WRONG[name]
    assert message in refused(folder, tmp_path, "--chips", 0, *arguments)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("option", "value"),
    [("--epochs", 0), ("--batch", 0), ("--resample", 0), ("--refresh", -1), ("--patience", 0), ("--chips", -1),
     ("--validation-chips", 0), ("--seed", -1), ("--limit", 0), ("--lr", "fast")],
)  # fmt: skip
def test_numbers_out_of_range(option: str, value: object, folder: Path, tmp_path: Path) -> None:
    ended = run(folder, "-o", tmp_path / "out.xbar", option, value)
    assert ended.code == 2
    assert f"Invalid value for '{option}'" in ended.stderr


def test_program_and_model_must_be_two_files(folder: Path, tmp_path: Path) -> None:
    ended = run(folder, "-o", tmp_path / "out.onnx")
    assert ended.code == 2
    assert "must be another file than the program; name it with --onnx" in ended.stderr
    ended = run_xbarc("finetune", folder / "net.xbar", "--data", folder / "data.npz", "-o", folder / "net.xbar")
    assert ended.code == 2
    assert "must be another file than the input" in ended.stderr


def test_labels_and_inputs_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    x = blobs(20).inputs["x"]
    np.savez(tmp_path / "labels.npz", x=x, labels=np.full(20, 7))
    np.savez(tmp_path / "nan.npz", x=np.where(np.arange(20)[:, None] == 3, np.nan, x))
    for name, message in (("labels", "labels must fit the first output"), ("nan", "must hold finite numbers")):
        given_data = ("--data", tmp_path / f"{name}.npz", "-o", tmp_path / "o.xbar", "--chips", 0)
        ended = run_xbarc("finetune", folder / "net.xbar", *given_data)
        assert ended.code == 2
        assert message in ended.stderr


def test_a_model_that_cannot_learn_ends_with_2_or_3(folder: Path, tmp_path: Path) -> None:
    """A program mapped around one chip is not tuned for all."""
    assert "must not be mapped around the failures of one chip" in refused(folder, tmp_path, program="mapped.xbar")


def test_augmentation() -> None:
    assert parse_augmentation(None) == parse_augmentation("") == Augmentation()
    found = parse_augmentation("shift=1.5, rotate=10,zoom=0.1,crop=4,flip,erase=8")
    assert found == Augmentation(shift=1.5, rotate=10.0, zoom=0.1, crop=4, flip=True, erase=8)
