"""Fine-tuning from a program to a tuned model: what comes of it, what it is told, and what it refuses."""

import csv
import json
import os
import subprocess
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tuning_cases as cases
from onnx import helper, numpy_helper
from small_programs import small_spec
from tuning_cases import blobs

import xbarc
from compiler.floatmodel import FloatModel
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.reference import Reference
from runtime.tuning import EPOCH_FIELDS
from xbarc.data.load import Dataset, load_data

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits-cnn" / "model.onnx"
OPTIONS = xbarc.TuneOptions(epochs=2, batch=16, learning_rate=0.02, average=0.5)


def chip_of(program: TileProgram, seed: int = 5) -> xbarc.Chip:
    return xbarc.Chip.sample(program.spec, program.arrays, seed)


def same(one: TileProgram, other: TileProgram) -> None:
    """Bit for bit the same numbers and tables."""
    assert {*one.tensors} == {*other.tensors}
    for name, values in one.tensors.items():
        assert values.dtype == other.tensors[name].dtype
        np.testing.assert_array_equal(values, other.tensors[name], err_msg=name)
    for name, values in one.weights.items():
        np.testing.assert_array_equal(values, other.weights[name], err_msg=name)
    assert one.tables == other.tables
    assert one.faults == other.faults


# -- what comes of it -----------------------------------------------------------------------------------------------

ROUND_TRIPS: dict[str, dict[str, Any]] = {
    "agnostic": {},
    "aware": {"mode": "aware"},
    "mapped first": {"mode": "aware", "chip": 5},
    "clip": {"options": replace(OPTIONS, clip=2.0)},
    "ranges": {"ranges": True},
    "clip and ranges": {"options": replace(OPTIONS, clip=1.5), "ranges": True},
    "distillation": {"options": replace(OPTIONS, distill=1.0)},
    "aware, clip and ranges": {"mode": "aware", "options": replace(OPTIONS, clip=2.0), "ranges": True},
    "continuous": {"fields": {"device.levels": None}, "mode": "aware", "chip": 5},
    "access": {"fields": {"device.r_access": 2e3, "failures.stuck_lrs.rate": 0.1}, "mode": "aware", "chip": 5},
    "residue": {"fields": {"periphery.residue": 0.05}, "mode": "aware", "chip": 5},
    "gates": {"fields": {"array.cell": "2T2R", "failures.isolation": "device"}, "mode": "aware", "chip": 5},
    "wires": {"fields": {"array.r_word": 1.0}},
    "slices": {"fields": {"array.slices": 2}},
    "reference": {"fields": {"array.pairing": "reference"}},
    "softmax": {"model": cases.classifier(softmax=True)},
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_the_tuned_model_is_that_of_the_tuned_program(name: str, tmp_path: Path) -> None:
    """It runs in onnxruntime, compiled like the program it is the program, and it verifies."""
    case = dict(ROUND_TRIPS[name])
    fields, model = case.pop("fields", None), case.pop("model", None)
    program = cases.program_of(fields, model) if fields or model else cases.program()
    chip = None
    if case.get("chip"):
        chip = case["chip"] = chip_of(program)
    elif case.get("mode") == "aware":
        program, chip = cases.mapped(), chip_of(cases.program())
    result = xbarc.finetune(program, blobs(64), **{"options": OPTIONS, **case})
    test = blobs(100, 3)
    onnx.checker.check_model(result.model, full_check=True)
    (floats,) = FloatModel(result.model).run(test.inputs, ["y"]).values()
    exact = program_chip(result.program, exact_layers=result.program.layers)
    (wanted,) = Reference(exact)(test.inputs)
    np.testing.assert_allclose(floats, wanted, rtol=0, atol=1e-4 * float(np.abs(wanted).max()))
    same(xbarc.compile(result.model, like=result.program), result.program)
    assert xbarc.verify(result.program, result.model).passed
    result.program.save(tmp_path / "tuned.xbar")
    same(xbarc.load(tmp_path / "tuned.xbar"), result.program)
    assert result.program.tables.tuned
    assert len(result.history) == 2
    if case.get("mode") == "aware":
        held = {layer: result.program.decoded_weights(layer) for layer in result.program.layers}
        for layer, weights in held.items():
            np.testing.assert_allclose(
                result.program.weights[layer], weights, rtol=0, atol=1e-6 * np.abs(weights).max()
            )
    sound = xbarc.simulate(result.program, chip)(test.inputs)[0]
    assert np.isfinite(sound).all()


def test_clip_and_ranges_change_scales_and_ranges() -> None:
    program, data = cases.program(), blobs(64)
    plain = xbarc.finetune(program, data, options=OPTIONS).program
    clipped = xbarc.finetune(program, data, options=replace(OPTIONS, clip=1.0)).program
    ranged = xbarc.finetune(program, data, options=OPTIONS, ranges=True).program
    for layer in program.layers:
        before, after = (one.tensors[f"{layer}/scale"] for one in (program, clipped))
        assert (after <= before * (1 + 1e-12)).all()
        assert (after < 0.9 * before).any()
        np.testing.assert_array_equal(plain.tensors[f"{layer}/scale"], before)
        np.testing.assert_array_equal(ranged.tensors[f"{layer}/scale"], before)
    assert [tile.adc_range for tile in plain.tables.tiles] == [tile.adc_range for tile in program.tables.tiles]
    assert [tile.adc_range for tile in ranged.tables.tiles] != [tile.adc_range for tile in program.tables.tiles]
    assert ranged.tables.calibration == "data"
    again = xbarc.finetune(program, data, options=OPTIONS, ranges=True).program
    same(ranged, again)


def test_an_altered_program_does_not_verify() -> None:
    result = xbarc.finetune(cases.mapped(), blobs(64), "aware", options=OPTIONS)
    tile = result.program.tables.tiles[0]
    plus = result.program.tensors[f"{tile.layer}/plus"].copy()
    plus[0] = (int(plus[0]) + 1) % 3
    altered = replace(result.program, tensors={**result.program.tensors, f"{tile.layer}/plus": plus})
    report = xbarc.verify(altered)
    assert not report.passed
    assert any("does not have the targets that its weights give" in told for told in report.failures)


def test_tuning_goes_on_from_a_tuned_program() -> None:
    """A second time, on the tuned program, with the model that it carries."""
    first = xbarc.finetune(cases.mapped(), blobs(64), "aware", options=OPTIONS)
    second = xbarc.finetune(first.program, blobs(64), "aware", options=OPTIONS, seed=1)
    assert second.history[0].loss < first.history[0].loss
    assert xbarc.verify(second.program).passed


def test_targets_that_undo_wires_are_given_up_first() -> None:
    program = cases.program_of({"array.r_word": 1.0})
    assert program.tables.predistorted
    result = xbarc.finetune(program, blobs(64), options=OPTIONS)
    assert result.notes == ("targets do not undo the wires any more: training takes them into account itself",)
    assert not result.program.tables.predistorted


def test_a_program_is_mapped_for_the_chip_first() -> None:
    chip = chip_of(cases.program())
    result = xbarc.finetune(cases.program(), blobs(64), "aware", chip=chip, options=OPTIONS)
    assert result.notes == ("the program was mapped around the failed devices of the chip first",)
    assert result.program.faults == cases.mapped().faults
    mapped = xbarc.finetune(cases.mapped(), blobs(64), "aware", chip=chip, options=OPTIONS)
    assert mapped.notes == ()
    same(mapped.program, result.program)


def test_chips_that_no_spec_describes() -> None:
    """The one chip given: training for it alone, without knowing where it failed."""
    program, chip = cases.program(), chip_of(cases.program(), 11)
    options = replace(OPTIONS, epochs=8, batch=32)
    result = xbarc.finetune(program, blobs(256), chips=lambda _seed: chip, options=options)
    test = blobs(300, 4)
    before, after = (cases.accuracy(one, test, [chip]) for one in (program, result.program))
    assert after > before + 0.05


def test_chips_never_seen_compute_better_after_tuning() -> None:
    """digits-cnn where a tenth of the devices fail: the mean over chips that no step saw."""
    few = load_data("digits", xbarc.compile(DIGITS, "ideal").tables.inputs, split="train", limit=600)
    program = xbarc.compile(DIGITS, "rram-128-faulty", calibration=few.take(np.arange(32)))
    test = load_data("digits", program.tables.inputs, split="test", limit=150)
    chips = [xbarc.Chip.sample(program.spec, program.arrays, seed) for seed in (1001, 1002, 1003)]
    options = xbarc.TuneOptions(epochs=2, batch=32, validation=0, learning_rate=2e-3)
    result = xbarc.finetune(program, few, options=options)
    before, after = (_digits_right(one, test, chips) for one in (program, result.program))
    assert after > before + 0.08


def _digits_right(program: TileProgram, data: Dataset, chips: list[xbarc.Chip]) -> float:
    assert data.labels is not None
    found = [(xbarc.simulate(program, chip)(data.inputs)[0].argmax(1) == data.labels).mean() for chip in chips]
    return float(np.mean(found))


def test_a_known_chip_computes_no_worse_after_tuning() -> None:
    chip = chip_of(cases.program())
    result = xbarc.finetune(cases.mapped(), blobs(256), "aware", options=replace(OPTIONS, epochs=6, batch=32))
    before, after = (cases.accuracy(one, blobs(400, 6), [chip]) for one in (cases.mapped(), result.program))
    assert after >= before


# -- teachers -------------------------------------------------------------------------------------------------------


def test_without_labels_the_original_model_teaches() -> None:
    """What is learnt from its outputs makes the program on failing chips more like it."""
    data = blobs(256)
    unlabelled = Dataset(data.inputs)
    options = replace(OPTIONS, epochs=6, batch=32)
    result = xbarc.finetune(cases.program(), unlabelled, options=options)
    assert result.history[0].accuracy is None
    assert result.history[-1].validation_loss is not None
    test, chips = blobs(300, 7), [chip_of(cases.program(), seed) for seed in range(50, 56)]
    (truth,) = FloatModel(cases.classifier()).run(test.inputs, ["y"]).values()
    alike = [
        np.mean([(xbarc.simulate(one, chip)(test.inputs)[0].argmax(1) == truth.argmax(1)).mean() for chip in chips])
        for one in (cases.program(), result.program)
    ]
    assert alike[1] > alike[0]


def test_regression_learns_from_the_original_model() -> None:
    program = cases.program_of(None, cases.regressor())
    options = replace(OPTIONS, epochs=10, batch=32, learning_rate=0.03)
    result = xbarc.finetune(program, Dataset(blobs(256).inputs), options=options)
    losses = [row.validation_loss for row in result.history]
    assert losses[0] is not None
    assert min(loss for loss in losses if loss is not None) < losses[0]
    with pytest.raises(xbarc.DataError, match="labels must fit the first output"):
        xbarc.finetune(program, blobs(64), options=OPTIONS)


def test_another_teacher() -> None:
    other = cases.classifier()
    weights = next(one for one in other.graph.initializer if one.name == "w1")
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), "w1"))
    options = replace(OPTIONS, distill=1.0)
    losses = [
        xbarc.finetune(cases.program(), blobs(64), options=options, teacher=teacher).history[0].loss
        for teacher in (None, cases.classifier(), other)
    ]
    assert losses[0] == losses[1]
    assert losses[2] > 2 * losses[0]
    with pytest.raises(xbarc.DataError, match=r"teacher must be given with distillation.*--distill"):
        xbarc.finetune(cases.program(), blobs(64), options=OPTIONS, teacher=other)
    strange = cases.classifier()
    strange.graph.output[0].name = strange.graph.node[-1].output[0] = "z"
    with pytest.raises(xbarc.DataError, match="teacher must have the program's outputs: y"):
        xbarc.finetune(cases.program(), blobs(64), options=options, teacher=strange)


def test_a_program_without_its_model_is_given_it() -> None:
    bare = replace(cases.program(), source=None)
    result = xbarc.finetune(bare, blobs(64), options=OPTIONS, model=cases.classifier())
    same(result.program, xbarc.finetune(cases.program(), blobs(64), options=OPTIONS).program)
    with pytest.raises(xbarc.DataError, match=r"carries no model to tune; give it with --model"):
        xbarc.finetune(bare, blobs(64), options=OPTIONS)
    with pytest.raises(xbarc.ModelError, match="the one that the program was compiled from, and its hash differs"):
        xbarc.finetune(bare, blobs(64), options=OPTIONS, model=cases.classifier(softmax=True))


# -- what is refused ------------------------------------------------------------------------------------------------


def changed(name: str, values: npt.NDArray[Any]) -> Dataset:
    data = blobs(64)
    return Dataset({"x": values}, data.labels) if name == "x" else Dataset(data.inputs, values)


def test_data_that_cannot_be_learnt_from() -> None:
    x = blobs(64).inputs["x"]
    holes = x.copy()
    holes[3, 2] = np.nan
    endless = x.copy()
    endless[3, 2] = np.inf
    cases_of: list[tuple[Any, dict[str, Any], str]] = [
        (changed("x", holes), {}, "input 'x' must be finite, and has NaN or infinite values"),
        (changed("x", endless), {}, "input 'x' must be finite, and has NaN or infinite values"),
        (blobs(0), {}, "data must have samples to learn from"),
        (blobs(1), {"validation": 1}, "validation must leave samples to learn from"),
        (changed("labels", np.full(64, cases.CLASSES)), {}, "labels must fit the first output of the model"),
        (changed("labels", np.full(64, -1)), {}, "labels must fit the first output of the model"),
        (Dataset(blobs(64).inputs), {"distill": 0.5}, "data must have labels where the loss asks for them"),
        ({"x": x[:, :5]}, {}, "x"),
        ({"z": x}, {}, "z|x"),
        ({"x": x.astype(str)}, {}, "x"),
        ({"x": x, "labels": np.zeros(3, np.int64)}, {}, "labels"),
    ]
    for data, options, message in cases_of:
        with pytest.raises(xbarc.DataError, match=message):
            xbarc.finetune(cases.program(), data, options=replace(OPTIONS, **options))


def test_a_model_of_a_fixed_batch(tmp_path: Path) -> None:
    model = cases.classifier()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    program = cases.program_of(None, model)
    cases.save(tmp_path / "d.npz", blobs(70))
    data = load_data(tmp_path / "d.npz", program.tables.inputs)
    result = xbarc.finetune(program, data, options=OPTIONS)
    assert result.history[-1].steps == 2 * 4
    with pytest.raises(xbarc.DataError, match="batch must be 16, the fixed batch of the model, not 64; or export"):
        xbarc.finetune(program, data)


def test_programs_and_chips_that_do_not_fit_the_mode() -> None:
    program, mapped, data = cases.program(), cases.mapped(), blobs(64)
    chip = chip_of(program)
    other = xbarc.Chip.sample(small_spec({"array.rows": 16}), program.arrays, 1)
    for one, mode, given, error, message in (
        (program, "both", None, xbarc.DataError, "mode must be one of agnostic, aware, not 'both'"),
        (program, "agnostic", chip, xbarc.DataError, "chip must not be given to the mode agnostic"),
        (mapped, "agnostic", None, xbarc.ProgramError, "must not be mapped around the failures of one chip"),
        (program, "aware", None, xbarc.DataError, "chip must be known to the mode aware; give it with --chip"),
        (program, "aware", other, xbarc.ChipError, "array"),
        (mapped, "aware", other, xbarc.ChipError, "array"),
    ):
        with pytest.raises(error, match=message):
            xbarc.finetune(one, data, mode, chip=given, options=OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(xbarc.DataError, match="effect"):
        xbarc.finetune(program, data, options=OPTIONS, only=["luck"])
    with pytest.raises(xbarc.DataError, match="device must be one that torch computes on here"):
        xbarc.finetune(program, data, options=OPTIONS, device="cuda:99")


def test_an_operator_without_gradient_is_told_before_a_step_is_done() -> None:
    model = cases.classifier()
    first, relu, second = model.graph.node
    odd = [
        helper.make_node("Reshape", ["h", "square"], ["q"], "square"),
        helper.make_node("Det", ["q"], ["d"], "odd"),
        helper.make_node("ReduceSum", ["d", "last"], ["e"], "summed"),
        helper.make_node("Add", ["h", "e"], ["g"], "added"),
    ]
    relu.input[0] = "g"
    nodes = [first, *odd, relu, second]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for name, values in {"square": [-1, 3, 2, 2], "last": [1]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    program = cases.program_of(None, model)
    with pytest.raises(xbarc.ProgramError, match=r"runs in onnxruntime \(odd: operator Det has no translation\)"):
        xbarc.finetune(program, blobs(64), options=OPTIONS)


# -- metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validation", [0.1, 0.0])
def test_metrics_are_the_history(validation: float, tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=3, validation=validation)
    for suffix in ("csv", "json"):
        path = tmp_path / f"metrics.{suffix}"
        history = xbarc.finetune(cases.program(), blobs(64), options=options, metrics=path).history
        if suffix == "json":
            rows = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
            assert rows == [asdict(row) for row in history]
            continue
        with path.open(newline="") as stream:
            found = list(csv.DictReader(stream))
        assert list(found[0]) == list(EPOCH_FIELDS)
        wanted = [{key: "" if value is None else str(value) for key, value in asdict(row).items()} for row in history]
        assert found == wanted
        assert [row["epoch"] for row in found] == ["1", "2", "3"]


def test_metrics_are_written_after_every_epoch(tmp_path: Path) -> None:
    path, lines = tmp_path / "metrics.csv", []

    def report(what: str, done: int, total: int | None) -> None:
        assert what.startswith(f"epoch {(done - 1) // 4 + 1} of 3, loss ")
        assert total == 12
        lines.append(len(path.read_text().splitlines()) if path.exists() else 0)

    xbarc.finetune(cases.program(), blobs(64), options=replace(OPTIONS, epochs=3), metrics=path, progress=report)
    assert lines == [0] * 4 + [2] * 4 + [3] * 4


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(xbarc.DataError, match=r"metrics .*table.txt must end with .csv or .json"):
        xbarc.finetune(cases.program(), blobs(64), options=OPTIONS, metrics=tmp_path / "table.txt")
    (tmp_path / "m.csv").mkdir()
    with pytest.raises(xbarc.DataError, match=r"metrics .* cannot be written \(Is a directory"):
        xbarc.finetune(cases.program(), blobs(64), options=OPTIONS, metrics=tmp_path / "m.csv")


def test_tensorboard_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(xbarc.DataError, match="TensorBoard must be installed to be written to; pip install"):
        xbarc.finetune(cases.program(), blobs(64), options=OPTIONS, tensorboard=tmp_path)


def test_tensorboard_is_told_of_every_epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a stand-in for its writer."""
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            written.append(("flush", 0, 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    history = xbarc.finetune(cases.program(), blobs(64), options=OPTIONS, tensorboard=tmp_path).history
    names = ("learning_rate", "loss", "validation_loss", "accuracy", "seconds")
    wanted = [(name, getattr(row, name), row.epoch) for row in history for name in names]
    assert [one for one in written if one[0] != "flush"] == wanted


# -- several processes ----------------------------------------------------------------------------------------------

TWO = """
import os, sys
from pathlib import Path

import numpy as np
import torch

from runtime.finetune_torch import Tuner
from xbarc.cli import main

torch.set_num_threads(1)
folder, rank, result, replaced = sys.argv[1], os.environ["RANK"], Tuner._result, Path.replace


def told(tuner):
    found = result(tuner)
    np.savez(f"{folder}/weights-{rank}.npz", **found.weights, **{f"b{k}": v for k, v in found.biases.items()})
    return found


def noted(path, target):
    with open(f"{folder}/written-{rank}.txt", "a") as stream:
        print(os.path.basename(target), file=stream)
    return replaced(path, target)


Tuner._result, Path.replace = told, noted
sys.argv = ["xbarc", "finetune", f"{folder}/p.xbar", "--data", f"{folder}/d.npz", "--epochs", "2", "--batch", "15",
            "--validation", "9", "--lr", "0.02", "--checkpoint", f"{folder}/run.ckpt", "--metrics", f"{folder}/m.csv",
            "--chips", "0", "--only", "dac,adc"]
main()
"""


def test_two_processes_end_with_the_same_weights_and_write_once(tmp_path: Path) -> None:
    """Started by torchrun; each takes half of a batch, and the last one has one sample.

    Without effects that differ from chip to chip all is as in one process, but for the order of additions.
    """
    cases.program().save(tmp_path / "p.xbar")
    cases.save(tmp_path / "d.npz", blobs(40))
    (tmp_path / "two.py").write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [*launcher, str(tmp_path / "two.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    one, other = (np.load(tmp_path / f"weights-{rank}.npz") for rank in (0, 1))
    assert {*one} == {"first", "second", "bfirst", "bsecond"}
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert not (tmp_path / "written-1.txt").exists()
    written = (tmp_path / "written-0.txt").read_text().split()
    assert sorted(written) == ["m.csv", "m.csv", "p-tuned.onnx", "p-tuned.xbar", "run.ckpt", "run.ckpt"]
    assert done.stdout.count("kept the weights of epoch") == 1
    assert xbarc.verify(xbarc.load(tmp_path / "p-tuned.xbar")).passed
    options = xbarc.TuneOptions(epochs=2, batch=15, validation=9, learning_rate=0.02)
    alone = xbarc.finetune(cases.program(), blobs(40), options=options, only=["dac", "adc"])
    with (tmp_path / "m.csv").open(newline="") as stream:
        found = [float(row[name]) for row in csv.DictReader(stream) for name in ("loss", "validation_loss")]
    assert found == pytest.approx([value for row in alone.history for value in (row.loss, row.validation_loss)], 1e-3)
