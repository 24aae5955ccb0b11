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
    (tmp_path / "link.npz").hardlink_to(tmp_path / "data.npz")
    onnx.save(
        cases.classifier(),
        tmp_path / "beside.onnx",
        save_as_external_data=True,
        location="beside.bin",
        size_threshold=0,
    )
    return tmp_path


CLASHES: dict[str, tuple[tuple[object, ...], str]] = {
    "model beside the output": (("-o", "net.xbar"), "is the model that the program was compiled from"),
    "model": (("--onnx", "net.onnx"), "is the model that the program was compiled from"),
    "model as program": (("-o", "net.onnx", "--onnx", "o.onnx"), "is the model that the program was compiled from"),
    "weights of the model": (
        ("--model", "beside.onnx", "--onnx", "beside.bin"),
        "output beside.bin must be another file than the input",
    ),
    "an image that is learnt": (
        ("--data", "images", "-o", "images/0/0.png"),
        "must be another file than those of images",
    ),
    "data as model": (("--onnx", "data.npz"), "must be another file than the input"),
    "data as program": (("-o", "data.npz"), "must be another file than the input"),
    "data as checkpoint": (("--checkpoint", "data.npz"), "must be another file than the input"),
    "test data": (("--test", "test.npz", "--metrics", "test.npz"), "must be another file than the input"),
    "teacher": (("--teacher", "teacher.onnx", "--distill", 1, "--onnx", "teacher.onnx"), "another file than the input"),
    "two outputs": (("--checkpoint", "m.csv", "--metrics", "m.csv"), "must be another file than that of --checkpoint"),
    "the program as metrics": (("-o", "m.csv", "--metrics", "m.csv"), "must be another file than that of -o"),
    "learnt data as test": (("--test", "./data.npz"), "--test must be other data than what is learnt from"),
    "learnt data under another name": (("--test", "link.npz"), "--test must be other data than what is learnt from"),
    "split without test": (("--test-split", "train"), "--test-split must be given with --test"),
}


@pytest.mark.parametrize("name", CLASHES)
def test_nothing_of_the_users_is_overwritten(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "images" / "0").mkdir(parents=True)
    (folder / "images" / "0" / "0.png").write_bytes(b"image")
    before = contents(folder)
    arguments, message = CLASHES[name]
    ended = run_xbarc("finetune", "p.xbar", "--data", "data.npz", *SHORT, *arguments)
    assert ended.code == 2
    assert message in ended.stderr
    assert contents(folder) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_exploration_does_not_overwrite_what_it_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    given = ("tune-spec", "net.onnx", "--vary", "array.rows=32,64", "--data", "data.npz", "--calib", "test.npz")
    for outputs in (
        ("--csv", "data.npz"),
        ("--csv", "test.npz"),
        ("-o", "net.onnx"),
        ("-o", "a.csv", "--csv", "a.csv"),
    ):
        ended = run_xbarc(*given, *outputs)
        assert ended.code == 2
        assert "must be another file than" in ended.stderr
    assert contents(folder) == before


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

WIRED = {**cases.FAULTY, "array.r_word": 1.0, "array.r_bit": 1.0}
IDLE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rates of one chip": ({"mode": "aware"}, {"rates": (0.0, 2.0)}, "rates must not be given in the mode aware"),
    "ramp of one chip": ({"mode": "aware"}, {"ramp": 1.0}, "ramp must not be given in the mode aware"),
    "chips of one chip": ({"mode": "aware"}, {"validation_chips": 5}, "validation_chips must not be given in the mode"),
    "drawn chips": ({"mode": "aware", "chips": lambda _seed: None}, {}, "chips must not be given to the mode aware"),
    "rates without failures": ({"without": ["failures"]}, {"rates": (0.0, 2.0)}, "the effect failures is off"),
    "rates of given chips": ({"chips": lambda _seed: None}, {"rates": (0.0, 2.0)}, "multiply: the chips are given"),
    "rates of none": ({"fields": cases.SOUND}, {"rates": (0.0, 2.0)}, "multiply: the spec has no failures"),
    "ramp of none": ({"fields": cases.SOUND}, {"ramp": 2.0}, "multiply: the spec has no failures"),
    "refresh": ({}, {"refresh": 2}, "refresh is of the wires closed_form"),
    "wires": ({}, {"wires": "closed_form"}, "wires must have resistance in the spec"),
    "wires that are off": (
        {"fields": WIRED, "without": ["wires"]},
        {"wires": "closed_form"},
        "must have the effect wires",
    ),
    "wires as they are": (
        {"fields": {**WIRED, "array.wire_model": "closed_form"}},
        {"wires": "closed_form", "refresh": 2},
        "wires is what the spec has",
    ),
    "temperature of an error": (
        {},
        {"distill": 0.5, "distance": "squared", "temperature": 5.0},
        "is of distillation by",
    ),
    "chips for nothing": ({}, {"validation_chips": 7, "validation": 0}, "validation_chips must have samples held out"),
    "temperature": ({}, {"temperature": 5.0}, "temperature is of distillation"),
    "distance": ({}, {"distance": "squared"}, "distance is of distillation"),
    "smoothing": ({}, {"distill": 1.0, "smoothing": 0.1}, "smoothing must be of labels"),
    "patience": ({}, {"patience": 1, "validation": 0}, "patience must have samples held out"),
}


@pytest.mark.parametrize("name", IDLE)
def test_options_without_effect_are_refused(name: str) -> None:
    given, options, message = IDLE[name]
    more = {**given}
    fields, mode = more.pop("fields", None), more.get("mode")
    program = cases.mapped() if mode == "aware" else cases.program_of(fields) if fields else cases.program()
    with pytest.raises(xbarc.DataError, match=message):
        xbarc.finetune(program, blobs(64), options=replace(OPTIONS, **options), **more)


def test_usual_options_may_be_given() -> None:
    """As a list too, which an options file would give."""
    options = replace(OPTIONS, rates=[1.0, 1.0], epochs=1)  # type: ignore[arg-type]
    assert xbarc.finetune(cases.mapped(), blobs(64), "aware", options=options).history


def arrays(samples: int) -> dict[str, npt.NDArray[Any]]:
    data = blobs(samples)
    assert data.labels is not None
    return {**data.inputs, "labels": data.labels}


def test_patience_counts_the_batches_that_are_held_out() -> None:
    """A model of a fixed batch holds out whole batches, and none of a tenth of 64 samples here."""
    model = cases.classifier()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    program = xbarc.compile(model, small_spec(cases.FAULTY), calibration=blobs(64, 98))
    with pytest.raises(xbarc.DataError, match="patience must have samples held out"):
        xbarc.finetune(program, arrays(64), options=replace(OPTIONS, patience=1, batch=16))


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(xbarc.DataError, match="seed must be a whole number"):
        xbarc.finetune(cases.program(), blobs(64), options=OPTIONS, seed=seed)
    with pytest.raises(xbarc.DataError, match="seed must be a whole number"):
        xbarc.to_torch(cases.program(), seed=seed)


def test_folders_are_looked_for_before_training(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a.csv"
    with pytest.raises(xbarc.DataError, match=r"checkpoint .* must lie in an existing folder"):
        xbarc.finetune(cases.program(), blobs(64), options=OPTIONS, checkpoint=path)
    with pytest.raises(xbarc.DataError, match=r"metrics .* must lie in an existing folder"):
        xbarc.finetune(cases.program(), blobs(64), options=OPTIONS, metrics=path)


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


def test_branches_are_looked_into() -> None:
    """A layer that is read inside the branches of an If alone, with an end in each or in none."""

    def branch(op: str, name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16])
        return helper.make_graph([helper.make_node(op, ["a"], [name], f"{op} {name}")], name, [], [output])

    def program(op: str) -> TileProgram:
        middle = [
            helper.make_node("ReduceMax", ["x"], ["largest"], "largest", keepdims=0),
            helper.make_node("Less", ["largest", "bound"], ["small"], "small"),
            helper.make_node("If", ["small"], ["e"], "if", then_branch=branch(op, "t"), else_branch=branch(op, "f")),
        ]
        model = network(middle, {"bound": np.array(1e9, np.float32)})
        return xbarc.compile(model, "ideal", calibration=Dataset(blobs(64).inputs))

    with pytest.raises(xbarc.ProgramError, match=r"layer 'first' gets no gradient.*\(Round\)"):
        xbarc.finetune(program("Round"), blobs(64), options=OPTIONS)
    before = program("Tanh")
    after = xbarc.finetune(before, blobs(64), options=OPTIONS).program
    assert not np.array_equal(after.weights["first"], before.weights["first"])


def test_outputs_that_no_layer_gives_teach_nothing() -> None:
    model = network([helper.make_node("Relu", ["a"], ["e"], "relu")], {})
    model.graph.node.append(helper.make_node("Softmax", ["x"], ["p"], "softmax"))
    model.graph.output.insert(0, helper.make_tensor_value_info("p", TensorProto.FLOAT, None))
    program = xbarc.compile(model, "ideal", calibration=Dataset(blobs(64).inputs))
    with pytest.raises(xbarc.ProgramError, match="outputs 'p' depend on no layer"):
        xbarc.finetune(program, blobs(64), options=OPTIONS)


def test_a_run_goes_on_where_a_layer_gets_no_gradient(tmp_path: Path) -> None:
    """As that of an output that labels do not teach."""
    model = network([helper.make_node("Relu", ["a"], ["e"], "relu")], {}, heads=2)
    program = xbarc.compile(model, "ideal", calibration=Dataset(blobs(64).inputs))
    path = tmp_path / "run.ckpt"
    whole = xbarc.finetune(program, blobs(64), options=OPTIONS, checkpoint=path)
    again = xbarc.finetune(program, blobs(64), options=OPTIONS, checkpoint=path)
    assert again.program.sha256 == whole.program.sha256
    assert not np.array_equal(whole.program.weights["second"], program.weights["second"])


def test_validation_that_is_no_number_stops() -> None:
    """A sample held out overflows, and no epoch would be the best."""
    from xbarc.finetuning import held_out

    data = blobs(64)
    options = replace(OPTIONS, distill=1.0, distance="squared")
    x = data.inputs["x"].copy()
    x[held_out(data, options, 0)[0]] *= 1e25
    program = xbarc.compile(cases.regressor(), small_spec(cases.FAULTY), calibration=Dataset(blobs(64, 98).inputs))
    with pytest.raises(xbarc.DataError, match="loss of samples held out after epoch 1 must be finite"):
        xbarc.finetune(program, Dataset({"x": x}), options=options)


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
