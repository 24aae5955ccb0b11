"""Checkpoints of fine-tuning: however often a run is killed it ends with the same weights, and wrong files are told."""

import contextlib
import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tuning_cases as cases
from safetensors.torch import load, load_file, save
from tuning_cases import blobs

import xbarc
from hwspec.errors import DataError
from runtime import finetune_torch
from runtime.finetune_torch import Tuned, Tuner
from runtime.losses_torch import Loss
from runtime.program import TileProgram
from runtime.tune_checkpoint_torch import _digest as checkpoint_digest
from runtime.tuning import Mode, TuneOptions
from xbarc.data.load import Dataset

ROOT = Path(__file__).parents[2]
SHORT = TuneOptions(epochs=1, batch=16, distill=1.0)
OPTIONS = TuneOptions(epochs=3, batch=16, learning_rate=0.02, average=0.6, resample=2)
WIRED: dict[str, object] = {"array.r_word": 2.0}


class Killed(BaseException):
    """What ends a run in a test."""


def tuner(
    path: Path | None,
    options: TuneOptions = OPTIONS,
    mode: Mode = "agnostic",
    *,
    program: TileProgram | None = None,
    data: Dataset | None = None,
    **more: Any,
) -> Tuner:
    own = cases.program() if mode == "agnostic" else cases.mapped()
    return Tuner(program or own, data or blobs(64), mode, options, checkpoint=path, **more)


def killed(path: Path, after: int, **more: Any) -> None:
    """A run that ends after so many steps."""

    def report(what: str, done: int, total: int | None) -> None:
        del what, total
        if done >= after:
            raise Killed

    with pytest.raises(Killed):
        tuner(path, **more).run(report)


def assert_same(one: Tuned, other: Tuned) -> None:
    """Everything but the time that it took."""
    for kind in ("weights", "biases"):
        for name, values in getattr(one, kind).items():
            np.testing.assert_array_equal(values, getattr(other, kind)[name])
    assert [replace(row, seconds=0) for row in one.history] == [replace(row, seconds=0) for row in other.history]
    assert one.best_epoch == other.best_epoch


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(finetune_torch, "SAVE_SECONDS", -1.0)


CASES: dict[str, dict[str, Any]] = {
    "agnostic": {},
    "aware": {"mode": "aware"},
    "no average": {"options": replace(OPTIONS, average=0.0, validation=0)},
    "patience": {"options": replace(OPTIONS, epochs=6, patience=1, learning_rate=0.2)},
    "wires": {"options": replace(OPTIONS, wires="closed_form", refresh=3)},
}


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_goes_on_to_the_same_end(name: str, tmp_path: Path) -> None:
    """After the first step, in the middle, at the end of an epoch, and once it is done."""
    more = CASES[name]
    if name == "wires":
        more = more | {"program": xbarc.remap(cases.program_of(WIRED), predistort=False)}
    wanted = tuner(None, **more).run()
    path = tmp_path / "run.ckpt"
    for after in (2, 5, 8):
        killed(path, after, **more)
    found = tuner(path, **more).run()
    assert_same(found, wanted)
    assert_same(tuner(path, **more).run(), wanted)


@pytest.mark.usefixtures("often")
def test_what_was_told_of_epochs_is_told_again(tmp_path: Path) -> None:
    """Whoever writes the history down may have been killed before."""
    path, told = tmp_path / "run.ckpt", []
    tuner(path).run(each=lambda history: told.append(len(history)))
    assert told == [1, 2, 3]
    tuner(path).run(each=lambda history: told.append(len(history)))
    assert told == [1, 2, 3, 3]


def test_checkpoints_are_written_at_the_end_of_epochs(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    killed(path, 4)
    assert not path.exists()
    killed(path, 7)
    progress = json.loads(_metadata(path)["notes"])["progress"]
    assert (progress["step"], progress["epoch"]) == (4, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.ckpt"]


def _metadata(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


# -- another run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint after one epoch."""
    path = tmp_path_factory.mktemp("checkpoint") / "run.ckpt"
    killed(path, 6)
    return path.read_bytes()


def other(what: str) -> Dataset:
    """The data with one number changed, of the last sample."""
    data = blobs(64)
    assert data.labels is not None
    x, labels = data.inputs["x"].copy(), data.labels.copy()
    if what == "x":
        x[-1, -1] += 1e-3
    else:
        labels[-1] = (labels[-1] + 1) % cases.CLASSES
    return Dataset({"x": x}, labels)


OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "seed": lambda: {"seed": 1},
    "options": lambda: {"options": replace(OPTIONS, learning_rate=0.01)},
    "mode and program": lambda: {"mode": "aware"},
    "spec": lambda: {"program": cases.program_of({"failures.stuck_hrs.rate": 0.14})},
    "data": lambda: {"data": other("x")},
    "labels": lambda: {"data": other("labels")},
    "effects": lambda: {"effects": {"failures"}},
    "no effects": lambda: {"effects": frozenset()},
    "teacher": lambda: {"marks": "another model"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_run_is_refused(what: str, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    path.write_bytes(whole)
    tuner(path)
    message = r"belongs to another run .*; go on with the same program, data and options, or remove the file"
    with pytest.raises(DataError, match=message):
        tuner(path, **OTHERS[what]())
    assert path.read_bytes() == whole


# -- damaged files --------------------------------------------------------------------------------------------------


def edited(data: bytes, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> bytes:
    """A checkpoint with other tensors or notes, and the fingerprint that it has."""
    (length,) = struct.unpack("<Q", data[:8])
    notes = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["notes"])
    tensors = load(data)
    change(tensors, notes)
    text = json.dumps(notes)
    return save(tensors, {"notes": text, "sha256": checkpoint_digest(text, tensors)})


Tensors = dict[str, torch.Tensor]
EDITS: dict[str, Callable[[Tensors, dict[str, Any]], object]] = {
    "no tensors": lambda tensors, _notes: tensors.clear(),
    "another shape": lambda tensors, _notes: tensors.update({"0.value": torch.zeros(3)}),
    "another type": lambda tensors, _notes: tensors.update({"0.best": tensors["0.best"].double()}),
    "no step": lambda tensors, _notes: tensors.pop("1.step"),
    "unknown progress": lambda _tensors, notes: notes["progress"].update({"code": 1}),
    "progress of text": lambda _tensors, notes: notes["progress"].update({"step": "4"}),
    "no history": lambda _tensors, notes: notes.pop("history"),
    "another history": lambda _tensors, notes: notes.update({"history": []}),
    "history of text": lambda _tensors, notes: notes.update({"history": "x"}),
    "an accuracy of text": lambda _tensors, notes: notes["history"][0].update({"accuracy": "x"}),
    "no loss": lambda _tensors, notes: notes["history"][0].update({"loss": None}),
    "a best epoch to come": lambda _tensors, notes: notes["progress"].update({"best_epoch": 99}),
    "steps of no epoch": lambda _tensors, notes: notes["progress"].update({"step": 10**9}),
    "no step yet": lambda _tensors, notes: notes["progress"].update({"step": 0}),
}
"""Of a checkpoint that keeps its fingerprint."""
DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _whole: b"",
    "truncated header": lambda whole: whole[:100],
    "truncated tensors": lambda whole: whole[:-100],
    "text": lambda _whole: b"hello" * 100,
    "huge header": lambda whole: struct.pack("<Q", 1 << 62) + whole[8:],
    "deep header": lambda _whole: struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no notes": lambda _whole: save({"x": torch.zeros(1)}),
    **{name: partial(edited, change=change) for name, change in EDITS.items()},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_told(damage: str, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    path.write_bytes(DAMAGED[damage](whole))
    with pytest.raises(DataError, match="is not a checkpoint of fine-tuning, or is damaged; remove it"):
        tuner(path)


def test_notes_of_another_kind_are_no_run_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    path.write_bytes(save({"x": torch.zeros(1)}, {"notes": "[1, 2]"}))
    with pytest.raises(DataError, match="is not a checkpoint of fine-tuning"):
        tuner(path)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_changed_numbers_are_told(share: float, whole: bytes, tmp_path: Path) -> None:
    """Wherever they are: what would be the result may not be what was trained."""
    path, data = tmp_path / "run.ckpt", bytearray(whole)
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)
    for own, start in ((path, None), (None, path)):
        with pytest.raises(DataError, match="is not a checkpoint of fine-tuning, or is damaged"):
            tuner(own, start=start)


@pytest.mark.parametrize("at", range(0, 100, 9))
def test_no_byte_of_a_checkpoint_can_be_changed_to_end_in_an_internal_error(
    at: int, whole: bytes, tmp_path: Path
) -> None:
    path, data = tmp_path / "run.ckpt", bytearray(whole)
    generator = np.random.default_rng(at)
    for place in generator.integers(0, min(len(data), 4000), 5):
        data[place] = generator.integers(256)
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        tuner(path)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        tuner(tmp_path)


# -- another run's weights ------------------------------------------------------------------------------------------


def test_a_run_begins_with_the_best_weights_of_another(tmp_path: Path) -> None:
    """Whatever its options were; and its own checkpoint knows where it began."""
    path, own = tmp_path / "run.ckpt", tmp_path / "own.ckpt"
    first = tuner(path).run()
    still = replace(OPTIONS, learning_rate=0.0, average=0.0, epochs=1)
    found = tuner(own, still, start=path).run()
    for kind in ("weights", "biases"):
        for name, values in getattr(first, kind).items():
            np.testing.assert_array_equal(getattr(found, kind)[name], values)
    assert_same(tuner(own, still, start=path).run(), found)
    with pytest.raises(DataError, match="belongs to another run"):
        tuner(own, still)


def test_a_run_that_ends_in_its_first_epoch_is_a_start_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are the best yet; it is the present ones that were kept last."""
    path = tmp_path / "run.ckpt"
    monkeypatch.setattr("runtime.finetune_torch.SAVE_SECONDS", 0.0)

    class StoppedError(Exception):
        pass

    def stop(_told: str, done: int, _total: int | None) -> None:
        if done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        tuner(path).run(stop)
    still = replace(OPTIONS, learning_rate=0.0, epochs=1)
    found, untrained = tuner(None, still, start=path).run(), tuner(None, still).run()
    assert any(not np.array_equal(found.weights[name], untrained.weights[name]) for name in found.weights)


def test_weights_of_other_layers_are_no_start(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    tuner(path, program=cases.program_of(None, cases.regressor()), data=Dataset(blobs(64).inputs), options=SHORT,
          teacher=lambda feeds: [feeds["x"][:, :1]]).run()  # fmt: skip
    with pytest.raises(DataError, match="must hold weights of the layers that the program has"):
        tuner(None, start=path)
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        tuner(None, start=tmp_path / "nowhere")


# -- no space left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["write", "rename"])
def test_no_space_left_leaves_the_checkpoint_before(
    where: str, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.ckpt"
    path.write_bytes(whole)

    def full(*_arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "write":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"run.ckpt cannot be written \(No space left on device\); free some space"):
        tuner(path).run()
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.ckpt"]
    assert_same(tuner(path).run(), tuner(None).run())


# -- no number any more ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_a_loss_that_is_no_number_stops_the_run(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hint; the checkpoint is that of the last good epoch."""
    path = tmp_path / "run.ckpt"
    loss = Loss.__call__
    calls = []

    def broken(*arguments: Any) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return loss(*arguments) * (torch.nan if sum(calls) == (6 if kept else 2) else 1)

    monkeypatch.setattr(Loss, "__call__", broken)
    step, epoch = (6, 2) if kept else (2, 1)
    message = rf"loss of step {step} in epoch {epoch} must be finite, with finite gradients, not nan; lower --lr \(now"
    with pytest.raises(DataError, match=message) as caught:
        tuner(path).run()
    assert path.exists() == kept
    assert ("the last good weights are in" in str(caught.value)) == kept
    monkeypatch.undo()
    if kept:
        tensors = load_file(path)
        assert all(torch.isfinite(value).all() for value in tensors.values())
    assert_same(tuner(path).run(), tuner(None).run())


def test_a_learning_rate_beyond_reason_ends_clearly_or_with_numbers() -> None:
    """Weights stay within full scale, so that only the biases run away."""
    options = replace(OPTIONS, learning_rate=10.0, epochs=2)
    tuned = tuner(None, options).run()
    for values in (*tuned.weights.values(), *tuned.biases.values()):
        assert np.isfinite(values).all()


# -- killed for good ------------------------------------------------------------------------------------------------

SERVER = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
import tuning_cases, xbarc, xbarc.finetuning, compiler.like, runtime.train, torch.optim, onnxruntime, xbarc.evaluation
import torch._dynamo
from runtime import finetune_torch
from xbarc.cli import main

folder = sys.argv[1]
finetune_torch.SAVE_SECONDS = -1.0
xbarc.simulate(tuning_cases.program())(tuning_cases.blobs(9).inputs)  # what is compiled is loaded once
times = random.Random(0)


def start(name, *more):
    child = os.fork()
    if child:
        return child
    sys.argv = ["xbarc", "finetune", f"{folder}/p.xbar", "--data", f"{folder}/d.npz", "-o", f"{folder}/{name}.xbar"]
    sys.argv += ["--epochs", "6", "--batch", "16", "--lr", "0.02", "--chips", "0", "--json", *more]
    os.dup2(os.open(f"{folder}/{name}.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    try:
        main()
    except SystemExit as stop:
        os._exit(stop.code)
    os._exit(99)


def version():
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


assert os.waitstatus_to_exitcode(os.waitpid(start("whole"), 0)[1]) == 0
path = f"{folder}/run.ckpt"
again = ("--checkpoint", path, "--metrics", f"{folder}/run.csv")
kills = 0
while kills < 10:
    child, seen, left = start("killed", *again), version(), times.randint(1, 4)
    ended = 0
    while left and not ended:
        time.sleep(0.001)
        ended = os.waitpid(child, os.WNOHANG)[0]
        if version() != seen:
            seen, left = version(), left - 1
    time.sleep(times.uniform(0, 0.03))
    if not ended:
        os.kill(child, signal.SIGKILL)
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
    if os.path.exists(f"{folder}/killed.xbar"):  # it came to its end before: from the start again
        os.unlink(f"{folder}/killed.xbar")
        os.unlink(path)
assert os.waitstatus_to_exitcode(os.waitpid(start("killed", *again), 0)[1]) == 0
print(kills)
"""


def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """The command line ends with the same model and program as one that nobody killed.

    Each time after a few more checkpoints, somewhere in a step or in the writing of a file.
    """
    cases.program().save(tmp_path / "p.xbar")
    cases.save(tmp_path / "d.npz", blobs(192))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "10\n"
    assert (tmp_path / "killed.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    killed_program, whole_program = (xbarc.load(tmp_path / f"{name}.xbar") for name in ("killed", "whole"))
    for name, values in whole_program.tensors.items():
        np.testing.assert_array_equal(killed_program.tensors[name], values)
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 7
    leftover = [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]
    assert len(leftover) <= 10, "temporary files of writes that were killed"
