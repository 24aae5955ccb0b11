"""What fine-tuning protects: files of the user's, what a program was compiled with, and every layer's gradient."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tuning_cases as cases
from command_line import run_xbarc
from onnx import TensorProto, helper, numpy_helper
from small_programs import small_spec
from tuning_cases import blobs

import xbarc
from compiler.compile import CompileOptions
from compiler.packing import share_of
from runtime.program import TileProgram
from xbarc.data.load import Dataset

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"
OPTIONS = xbarc.TuneOptions(epochs=2, batch=16, learning_rate=0.02, average=0.5)
SHORT = ("--epochs", 1, "--batch", 16, "--chips", 0)


# -- files of the user's --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A program beside its model, another model, and data."""
    cases.program().save(tmp_path / "p.xbar")
    onnx.save(cases.classifier(), tmp_path / "net.onnx")
    onnx.save(cases.classifier(softmax=True), tmp_path / "teacher.onnx")
    for number, name in enumerate(("data", "test")):
        cases.save(tmp_path / f"{name}.npz", blobs(40, number))
    return tmp_path


CLASHES: dict[str, tuple[tuple[object, ...], str]] = {
    "model beside the output": (("-o", "net.xbar"), "is the model that the program was compiled from"),
    "model": (("--onnx", "net.onnx"), "is the model that the program was compiled from"),
    "data as model": (("--onnx", "data.npz"), "must be another file than the input"),
    "data as program": (("-o", "data.npz"), "must be another file than the input"),
    "data as checkpoint": (("--checkpoint", "data.npz"), "must be another file than the input"),
    "test data": (("--test", "test.npz", "--metrics", "test.npz"), "must be another file than the input"),
    "teacher": (("--teacher", "teacher.onnx", "--distill", 1, "--onnx", "teacher.onnx"), "another file than the input"),
    "two outputs": (("--checkpoint", "m.csv", "--metrics", "m.csv"), "must be another file than that of --checkpoint"),
    "the program as metrics": (("-o", "m.csv", "--metrics", "m.csv"), "must be another file than that of -o"),
    "learnt data as test": (("--test", "./data.npz"), "--test must be other data than what is learnt from"),
    "split without test": (("--test-split", "train"), "--test-split must be given with --test"),
}


@pytest.mark.parametrize("name", CLASHES)
def test_nothing_of_the_users_is_overwritten(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments, message = CLASHES[name]
    ended = run_xbarc("finetune", "p.xbar", "--data", "data.npz", *SHORT, *arguments)
    assert ended.code == 2
    assert message in ended.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_program_and_model_are_replaced_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or neither of them: the model is not left beside a program that it is not the model of."""
    monkeypatch.chdir(folder)
    arguments = ("finetune", "p.xbar", "--data", "data.npz", *SHORT)
    assert run_xbarc(*arguments).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls = []

    def full(_descriptor: int) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    ended = run_xbarc(*arguments, "--seed", 1)
    assert ended.code == 2
    assert "cannot be written (No space left on device)" in ended.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_too_few_samples_to_evaluate_on_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    cases.save(folder / "one.npz", blobs(1))
    ended = run_xbarc("finetune", "p.xbar", "--data", "one.npz", "--epochs", 1)
    assert ended.code == 0
    assert "no samples are held out, so the program is evaluated neither before nor after" in ended.stderr
    ended = run_xbarc("finetune", "p.xbar", "--data", "data.npz", *SHORT, "--test", "test.npz")
    assert ended.code == 0
    assert "--chips 0 leaves out the evaluation that --test is for" in ended.stderr


# -- options without effect -----------------------------------------------------------------------------------------

IDLE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rates of one chip": ({"mode": "aware"}, {"rates": (0.0, 2.0)}, "rates must not be given in the mode aware"),
    "ramp of one chip": ({"mode": "aware"}, {"ramp": 1.0}, "ramp must not be given in the mode aware"),
    "chips of one chip": ({"mode": "aware"}, {"validation_chips": 5}, "validation_chips must not be given in the mode"),
    "drawn chips": ({"mode": "aware", "chips": lambda _seed: None}, {}, "chips must not be given to the mode aware"),
    "rates of given chips": ({"chips": lambda _seed: None}, {"rates": (0.0, 2.0)}, "multiply: the chips are given"),
    "rates of none": ({"fields": cases.SOUND}, {"rates": (0.0, 2.0)}, "multiply: the spec has no failures"),
    "ramp of none": ({"fields": cases.SOUND}, {"ramp": 2.0}, "multiply: the spec has no failures"),
    "refresh": ({}, {"refresh": 2}, "refresh is of the wires closed_form"),
    "wires": ({}, {"wires": "closed_form"}, "wires must have resistance in the spec"),
    "temperature": ({}, {"temperature": 5.0}, "temperature is of distillation"),
    "distance": ({}, {"distance": "squared"}, "distance is of distillation"),
    "smoothing": ({}, {"distill": 1.0, "smoothing": 0.1}, "smoothing must be of labels"),
    "patience": ({}, {"patience": 1, "validation": 0}, "patience must have samples held out"),
}


@pytest.mark.parametrize("name", IDLE)
def test_options_without_effect_are_refused(name: str) -> None:
    more, options, message = IDLE[name]
    fields, mode = more.pop("fields", None) if "fields" in more else None, more.get("mode")
    program = cases.mapped() if mode == "aware" else cases.program_of(fields) if fields else cases.program()
    with pytest.raises(xbarc.DataError, match=message):
        xbarc.finetune(program, blobs(64), options=replace(OPTIONS, **options), **more)


# -- what the program was compiled with -----------------------------------------------------------------------------


def tiles(program: TileProgram) -> list[tuple[str, int, int]]:
    return [(tile.layer, tile.array, tile.replica) for tile in program.tables.tiles]


@pytest.mark.parametrize("share", ["none", "inputs", "layer", "all"])
@pytest.mark.parametrize("mode", ["aware", "wires"])
def test_tiles_keep_their_arrays(share: Any, mode: str) -> None:
    """Where the program is mapped for the chip first, and where its targets undo the wires no more."""
    fields = {**cases.FAULTY, **({"array.r_word": 1.0} if mode == "wires" else {})}
    spec = small_spec({**fields, "array.rows": 24, "array.cols": 32})
    options = CompileOptions(share_arrays=share, robust=False)
    program = xbarc.compile(cases.classifier(), spec, calibration=blobs(64, 98), options=options)
    chip = xbarc.Chip.sample(spec, program.arrays, 5) if mode == "aware" else None
    result = xbarc.finetune(program, blobs(64), "agnostic" if chip is None else "aware", chip=chip, options=OPTIONS)
    assert result.notes
    assert result.program.arrays == program.arrays
    assert tiles(result.program) == tiles(program)
    assert share_of(result.program) == share_of(program)


def test_replicas_stay() -> None:
    """Each block of a matrix on two tiles; for one chip they are refused, as the guide says."""
    options = CompileOptions(replicas=2, robust=False)
    spec = small_spec({**cases.FAULTY, "array.r_word": 1.0})
    program = xbarc.compile(cases.classifier(), spec, calibration=blobs(64, 98), options=options)
    result = xbarc.finetune(program, blobs(64), options=OPTIONS)
    assert tiles(result.program) == tiles(program)
    chip = xbarc.Chip.sample(spec, program.arrays, 5)
    with pytest.raises(xbarc.ProgramError, match="2 pairs a weight"):
        xbarc.finetune(program, blobs(64), "aware", chip=chip, options=OPTIONS)


# -- every layer's gradient -----------------------------------------------------------------------------------------


def network(middle: list[onnx.NodeProto], more: dict[str, npt.NDArray[Any]], heads: int = 1) -> onnx.ModelProto:
    """Two layers with nodes from ``a`` to ``e`` between them, and a second head on ``a``."""
    generator = np.random.default_rng(0)
    sizes = {"w1": (cases.FEATURES, 16), "w2": (16, cases.CLASSES), "w3": (16, 5)}
    constants = {name: (generator.standard_normal(size) / 2).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "first"),
        *middle,
        helper.make_node("MatMul", ["e", "w2"], ["y"], "second"),
        *([helper.make_node("MatMul", ["a", "w3"], ["z"], "head")] if heads > 1 else []),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")[:heads]]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", cases.FEATURES])]
    used = {name for node in nodes for name in node.input}
    held = [numpy_helper.from_array(value, name) for name, value in {**constants, **more}.items() if name in used]
    graph = helper.make_graph(nodes, "network", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def quantiser(zero: int, dtype: Any) -> tuple[list[onnx.NodeProto], dict[str, npt.NDArray[Any]]]:
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "s", "zero"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["e"], "dequantise"),
    ]
    return nodes, {"s": np.array(0.02, np.float32), "zero": np.array(zero, dtype)}


@pytest.mark.parametrize(("zero", "dtype"), [(0, np.int8), (100, np.uint8)])
def test_layers_before_a_quantiser_are_trained(zero: int, dtype: Any) -> None:
    """Straight through its rounding, and not where it saturates; what comes out is what onnxruntime gives."""
    import torch

    nodes, more = quantiser(zero, dtype)
    program = xbarc.compile(network(nodes, more), "ideal", calibration=Dataset(blobs(64).inputs))
    x = blobs(64).inputs["x"]
    module = xbarc.to_torch(program)
    found = module(torch.from_numpy(x))
    (wanted,) = xbarc.simulate(program)({"x": x})
    np.testing.assert_array_equal(found.detach().numpy(), wanted)
    found.sum().backward()
    w1, w2 = (program.weights[name][0].astype(np.float64) for name in ("first", "second"))
    steps = np.round(x @ w1 / 0.02) + zero
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    inside = (steps >= low) & (steps <= high)
    assert 0.05 < inside.mean() < 0.95
    gradient = module.weights[0].grad
    assert gradient is not None
    truth = x.T @ (inside * w2.sum(1))
    np.testing.assert_allclose(gradient[0].numpy(), truth, rtol=0, atol=0.05 * np.abs(truth).max())
    result = xbarc.finetune(program, blobs(64), options=OPTIONS)
    assert all(not np.array_equal(result.program.weights[name], program.weights[name]) for name in program.layers)


ENDS = {
    "Hardmax": [helper.make_node("Hardmax", ["a"], ["e"], "end", axis=1)],
    "Round": [helper.make_node("Round", ["a"], ["e"], "end")],
    "Sign": [helper.make_node("Sign", ["a"], ["e"], "end")],
    "Cast": [
        helper.make_node("Cast", ["a"], ["i"], "end", to=TensorProto.INT64),
        helper.make_node("Cast", ["i"], ["e"], "back", to=TensorProto.FLOAT),
    ],
}


@pytest.mark.parametrize("op", ENDS)
def test_a_layer_without_a_gradient_stops_training(op: str) -> None:
    program = xbarc.compile(network(ENDS[op], {}), "ideal", calibration=Dataset(blobs(64).inputs))
    with pytest.raises(xbarc.ProgramError, match=rf"layer 'first' gets no gradient.*'end' \({op}\)"):
        xbarc.finetune(program, blobs(64), options=OPTIONS)


def test_an_end_beside_the_way_stops_nothing() -> None:
    """What also goes past it is trained."""
    middle = [
        helper.make_node("Round", ["a"], ["r"], "end"),
        helper.make_node("Add", ["a", "r"], ["e"], "sum"),
    ]
    program = xbarc.compile(network(middle, {}), "ideal", calibration=Dataset(blobs(64).inputs))
    result = xbarc.finetune(program, blobs(64), options=OPTIONS)
    assert not np.array_equal(result.program.weights["first"], program.weights["first"])


def test_all_heads_learn_from_the_original_and_labels_are_of_the_first() -> None:
    middle = [helper.make_node("Relu", ["a"], ["e"], "relu")]
    program = xbarc.compile(network(middle, {}, 2), "ideal", calibration=Dataset(blobs(64).inputs))
    taught = xbarc.finetune(program, blobs(64), options=replace(OPTIONS, distill=1.0))
    labelled = xbarc.finetune(program, blobs(64), options=OPTIONS)
    assert not np.array_equal(taught.program.weights["head"], program.weights["head"])
    assert taught.notes == ()
    assert np.array_equal(labelled.model.graph.output[0].name, "y")
    assert labelled.notes == ("labels teach the output 'y' alone; a share of distillation teaches all",)


# -- teachers and divergence ----------------------------------------------------------------------------------------


def test_teachers_of_other_shapes_are_refused() -> None:
    for classes in (1, 9):
        other = cases.classifier()
        for one in other.graph.initializer:
            if one.name in ("w1", "b1"):
                values = numpy_helper.to_array(one)
                one.CopyFrom(numpy_helper.from_array(np.resize(values, (*values.shape[:-1], classes)), one.name))
        options = replace(OPTIONS, distill=0.5)
        with pytest.raises(xbarc.DataError, match=r"teacher must have 'y' in a shape that the program has"):
            xbarc.finetune(cases.program(), blobs(64), options=options, teacher=other)
    fixed = cases.classifier()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    with pytest.raises(xbarc.DataError, match=r"teacher must have 'x' in a shape that the program has, \(N, 8\)"):
        xbarc.finetune(cases.program(), blobs(64), options=replace(OPTIONS, distill=0.5), teacher=fixed)


def test_a_run_that_diverges_says_what_to_change_and_its_weights_can_be_taken(folder: Path) -> None:
    """In a network of several layers it is a layer's input that is no number any more, before the loss is."""
    kept = folder / "run.ckpt"
    wild = ("--lr", 10, "--max-norm", 1e9, "--schedule", "constant", "--weight-decay", 10, "--warmup", 0)
    run = ("finetune", folder / "digits.xbar", "--data", "digits", "--limit", 65, "--batch", 8, "--chips", 0)
    xbarc.compile(DIGITS, "ideal").save(folder / "digits.xbar")
    assert run_xbarc(*run, "--epochs", 1, "--checkpoint", kept).code == 0
    ended = run_xbarc(*run, "--epochs", 20, *wild, "--start", kept, "--checkpoint", folder / "wild.ckpt")
    assert ended.code == 2
    assert "must be finite, with finite gradients" in ended.stderr
    assert "lower --lr (now 10)" in ended.stderr
    ended = run_xbarc(*run, "--epochs", 1, "--lr", 1e-4, "--start", kept, "-o", folder / "good.xbar", "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["history"][0]["loss"] < 1
