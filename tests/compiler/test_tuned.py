"""A program with other weights is an ONNX model again, and that model compiled like the program is the program."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ideal import assert_close, compile_ideal, run_onnxruntime, run_program
from onnx import TensorProto, helper, numpy_helper
from operator_cases import Case, convolutions, gemms, matmuls, transposed_convolutions
from small_programs import compile_small, mapped_specs, one_node, small_models, small_spec, two_matmuls

from compiler.compile import CompileOptions, finish, run_compile
from compiler.frontend import load_model
from compiler.like import compile_like
from compiler.rules.added_bias import BIAS
from compiler.tuned import tuned_model
from hwspec.errors import DataError, ModelError
from hwspec.spec import HardwareSpec
from runtime.check import check_program
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.quantize import WeightCode
from runtime.reference import Reference
from runtime.rewrite import rewrite

Array = npt.NDArray[Any]
Floats = dict[str, Array]

MODELS = Path(__file__).parents[2] / "models"

some = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def drawn(program: TileProgram, seed: int = 0) -> tuple[Floats, Floats]:
    """Random weights and biases of a program's layers, in the types of its model."""
    generator = np.random.default_rng(seed)
    weights = {name: generator.standard_normal(own.shape).astype(own.dtype) for name, own in program.weights.items()}
    biases = {
        name: generator.standard_normal(program.tensors[f"{name}/bias"].shape).astype(own.dtype)
        for name, own in weights.items()
    }
    return weights, biases


def assert_same(program: TileProgram, other: TileProgram) -> None:
    """The programs hold the same numbers, bit for bit."""
    for one, two in ((program.tensors, other.tensors), (program.weights, other.weights)):
        assert set(one) == set(two)
        for name in one:
            assert one[name].dtype == two[name].dtype
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def exactly(program: TileProgram, feeds: Mapping[str, Array]) -> list[Any]:
    """Outputs of a program with its float weights and ideal converters."""
    return Reference(program_chip(program, exact_layers=program.layers))(dict(feeds))


def assert_round_trip(
    program: TileProgram, weights: Floats, biases: Floats, feeds: Mapping[str, Array], tolerance: float = 1e-4
) -> onnx.ModelProto:
    """The tuned model computes what the rewritten program does, and is that program when compiled like it."""
    model = tuned_model(program, weights, biases)
    # onnx infers wrong shapes where a transposed convolution has an output shape.
    fixed = any(attribute.name == "output_shape" for node in model.graph.node for attribute in node.attribute)
    onnx.checker.check_model(model, full_check=not fixed)
    wanted = rewrite(program, weights, biases)
    outputs = run_onnxruntime(model, feeds)
    assert_close(exactly(wanted, feeds), outputs, tolerance)
    again = compile_like(load_model(model), program)
    check_program(again)
    assert_same(again, wanted)
    assert_close(exactly(again, feeds), outputs, tolerance)
    told = (program.tables.layers, program.tables.gathers, program.tables.scatters, program.tables.tiles)
    found = (again.tables.layers, again.tables.gathers, again.tables.scatters, again.tables.tiles)
    assert [replace_initializer(table) for table in found] == [replace_initializer(table) for table in told]
    once_more = compile_like(load_model(tuned_model(again, {}, {})), again)
    assert_same(once_more, wanted)
    assert once_more.tables.instructions == again.tables.instructions
    return model


def replace_initializer(rows: tuple[Any, ...]) -> list[Any]:
    """Rows of a table without where a layer's weight lies."""
    return [row.model_copy(update={"initializer": ""}) if hasattr(row, "initializer") else row for row in rows]


# -- every operator -----------------------------------------------------------------------------------------------


@some
@given(st.one_of(convolutions(), transposed_convolutions(), gemms(), matmuls()), st.integers(0, 9), st.booleans())
def test_every_form_of_operators(case: Case, seed: int, biased: bool) -> None:
    program = compile_ideal(case.model)
    weights, biases = drawn(program, seed)
    # onnxruntime infers a wrong shape for the result of a transposed convolution with an output shape, and then refuses
    # an Add after it; where its bias is computed at run time there is no other place for one more.
    fixed = any(attribute.name == "output_shape" for attribute in case.node.attribute)
    if not biased or (fixed and len(case.node.input) > 2 and case.node.input[2] not in case.constants):
        biases = {name: np.zeros_like(bias) for name, bias in biases.items()}
    model = assert_round_trip(program, weights, biases, case.feeds)
    (layer,) = program.tables.layers
    assert [node.op_type for node in model.graph.node if node.name == layer.name] == [layer.op]
    assert [(value.name, value.type) for value in model.graph.input] == [
        (value.name, value.type) for value in case.model.graph.input
    ]
    assert model.graph.output[0].name == "y"


@some
@given(small_models(), mapped_specs(), st.integers(0, 9))
def test_weights_on_the_levels_of_devices(model: Any, spec: HardwareSpec, seed: int) -> None:
    """Weights in float64 that lie exactly on levels are on the same levels once they were rounded to float32."""
    program = compile_small(model, spec)
    generator, code = np.random.default_rng(seed), WeightCode.of(spec)
    weights: Floats = {}
    for name, own in program.weights.items():
        scale = np.abs(own.astype(np.float64)).max(1, keepdims=True)
        weights[name] = code.round(generator.uniform(-1, 1, own.shape)) * np.where(scale == 0, 1, scale)
    _, biases = drawn(program, seed)
    again = compile_like(load_model(tuned_model(program, weights, biases)), program)
    rounded = {name: weight.astype(np.float32) for name, weight in weights.items()}
    assert_same(again, rewrite(program, rounded, biases))
    if spec.device.levels is not None:
        assert_same(again, rewrite(program, weights, biases))
        assert all(layer.weight_error < 1e-6 for layer in again.report.layers)


@pytest.mark.parametrize(
    ("element", "dtype", "tolerance"),
    [(TensorProto.DOUBLE, np.float64, 1e-12), (TensorProto.FLOAT16, np.float16, 5e-3)],
)
def test_other_precisions(element: int, dtype: Any, tolerance: float) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Gemm", ["b", "v"], ["y"], "second", alpha=0.5),
    ]
    generator = np.random.default_rng(0)
    constants = {name: generator.standard_normal((4, 4)).astype(dtype) for name in "wv"}
    program = compile_ideal(build(nodes, {"x": ["n", 4]}, ["y"], constants, element))
    feeds = {"x": generator.standard_normal((3, 4)).astype(dtype)}
    assert_round_trip(program, *drawn(program), feeds, tolerance)
    assert compile_like(load_model(tuned_model(program, *drawn(program))), program).weights["first"].dtype == dtype


# -- graphs -------------------------------------------------------------------------------------------------------


def build(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, list[int | str]],
    outputs: list[str],
    constants: Mapping[str, Array],
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, element, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_layers_that_share_constants_get_their_own() -> None:
    """Two layers share a weight with a digital node, a branch and an output of the model; and a bias."""

    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("Gemm", ["x", "w", "c"], ["a"], "first"),
        helper.make_node("Gemm", ["a", "w", "c"], ["b"], "second"),
        helper.make_node("Mul", ["b", "w"], ["d"], "digital"),
        helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], "greater"),
        helper.make_node(
            "If",
            ["positive"],
            ["y"],
            "choice",
            then_branch=branch("then", helper.make_node("Add", ["d", "w"], ["then"], "first.weight")),
            else_branch=branch("else", helper.make_node("Sub", ["d", "w"], ["else"], "inner")),
        ),
    ]
    constants = {"w": normal(4, 4), "c": normal(4, seed=1), "zero": np.zeros((), np.float32)}
    source = build(nodes, {"x": [4, 4]}, ["y", "w"], constants)
    program = compile_ideal(source)
    feeds = {"x": normal(4, 4, seed=2)}
    model = assert_round_trip(program, *drawn(program), feeds)
    weights = [node.input[1] for node in model.graph.node if node.op_type == "Gemm"]
    assert len({*weights, "w"}) == 3
    assert not {"first.weight"} & set(weights), "a name that a node inside a branch has"
    np.testing.assert_array_equal(run_onnxruntime(model, feeds)[1], constants["w"])
    assert_close(run_onnxruntime(tuned_model(program, {}, {}), feeds), run_onnxruntime(source, feeds), 1e-6)


def test_what_a_program_has_itself_is_its_model() -> None:
    """Without other weights the tuned model is the model; an initializer that one node reads keeps its name."""
    small = two_matmuls()
    program = compile_small(small)
    model = tuned_model(program, {}, {})
    feeds = {"x": small.inputs(0)}
    np.testing.assert_array_equal(run_onnxruntime(model, feeds)[0], run_onnxruntime(small.proto, feeds)[0])
    assert [tensor.name for tensor in model.graph.initializer] == ["w0", "w1"]
    only = tuned_model(program, {"second": normal(1, 6, 6)}, {})
    np.testing.assert_array_equal(numpy_helper.to_array(only.graph.initializer[0]), program.weights["first"][0])
    np.testing.assert_array_equal(numpy_helper.to_array(only.graph.initializer[1]), normal(6, 6))


def test_a_bias_without_room_is_an_add_that_its_layer_takes_up() -> None:
    small = two_matmuls()
    program = compile_small(small)
    weights, biases = drawn(program)
    model = tuned_model(program, weights, biases)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add", "MatMul", "Add"]
    compiled = finish(run_compile(load_model(model), program.spec, CompileOptions(), None))
    assert not compiled.report.digital
    for name, bias in biases.items():
        np.testing.assert_array_equal(compiled.tensors[f"{name}/bias"], bias)
    kept = CompileOptions(digital=("first",))
    assert [node.op for node in _digital(model, kept)] == ["MatMul", "Add"]


@pytest.mark.parametrize("change", ["no mark", "another shape", "another reader", "an output"])
def test_an_add_that_is_no_bias_stays_digital(change: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Add", ["a", "c"], ["y"], "add"),
    ]
    if change != "no mark":
        nodes[1].metadata_props.add(key=BIAS, value="first")
    if change == "another reader":
        nodes.append(helper.make_node("Relu", ["a"], ["z"], "relu"))
    outputs = {"another reader": ["y", "z"], "an output": ["y", "a"]}.get(change, ["y"])
    constants = {"w": normal(4, 4), "c": normal(1, 4) if change == "another shape" else normal(4)}
    model = build(nodes, {"x": ["n", 4]}, outputs, constants)
    program, feeds = compile_ideal(model), {"x": normal(3, 4, seed=1)}
    assert "add" in [node.node for node in program.report.digital]
    assert_close(run_program(program, feeds), run_onnxruntime(model, feeds))
    assert_round_trip(program, *drawn(program), feeds)


def _digital(model: onnx.ModelProto, options: CompileOptions) -> list[Any]:
    program = finish(run_compile(load_model(model), small_spec(), options, None))
    return list(program.report.digital)


def test_batch_normalisation_after_a_product() -> None:
    """What is fused into a MatMul leaves an Add of its own, which is no bias of the layer."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("BatchNormalization", ["a", *"sbmv"], ["y"], "norm"),
    ]
    constants = {"w": normal(4, 4), **{name: np.abs(normal(4, seed=at)) for at, name in enumerate("sbmv")}}
    program = compile_ideal(build(nodes, {"x": ["n", 4]}, ["y"], constants))
    assert [node.op for node in program.report.digital] == ["Add"]
    assert_round_trip(program, *drawn(program), {"x": normal(3, 4, seed=1)})


def test_input_shapes_and_digital_nodes_are_those_of_the_program() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["h0"], "conv"),
        helper.make_node("BatchNormalization", ["h0", *"sbmv"], ["h1"], "norm"),
        helper.make_node("Shape", ["h1"], ["shape"], "shape"),
        helper.make_node("Reshape", ["h1", "shape"], ["h2"], "reshape"),
        helper.make_node("Conv", ["h2", "k2"], ["y"], "kept"),
    ]
    constants = {"k": normal(3, 2, 2, 2), "k2": normal(3, 3, 2, 2)}
    constants |= {name: np.abs(normal(3, seed=at)) for at, name in enumerate("sbmv")}
    source = build(nodes, {"x": ["n", 2, "h", "w"]}, ["y"], constants)
    options = CompileOptions(input_shapes={"x": (1, 2, 6, 5)}, digital=("kept",), fuse_batchnorm=False)
    program = finish(run_compile(load_model(source), HardwareSpec.preset("ideal"), options, None))
    model = assert_round_trip(program, *drawn(program), {"x": normal(2, 2, 6, 5, seed=1)})
    dims = [dim.dim_value or dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["n", 2, 6, 5], "what was folded for these shapes works for no others"
    assert "BatchNormalization" in [node.op_type for node in model.graph.node]


# -- trained networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"), [("digits-cnn", (1, 8, 8)), ("lenet5-mnist", (1, 28, 28)), ("resnet20-cifar10", (3, 32, 32))]
)
def test_trained_networks(name: str, shape: tuple[int, ...]) -> None:
    path = MODELS / name / "model.onnx"
    program = finish(run_compile(load_model(path), HardwareSpec.preset("rram-128"), CompileOptions(), None))
    (info,) = program.tables.inputs
    feeds = {info.name: np.random.default_rng(0).random((2, *shape), np.float32)}
    assert_close(run_onnxruntime(tuned_model(program, {}, {}), feeds), run_onnxruntime(path, feeds), 1e-4)
    changes, biases = drawn(program)
    weights = {
        layer: (own + 0.1 * np.abs(own).max() * changes[layer]).astype(own.dtype)
        for layer, own in program.weights.items()
    }
    model = assert_round_trip(program, weights, biases, feeds)
    assert model.graph.input[0] == onnx.load(path).graph.input[0]
    assert model.opset_import == onnx.load(path).opset_import


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> TileProgram:
    return compile_small(two_matmuls())


def test_a_program_without_its_model_needs_it(program: TileProgram) -> None:
    bare = replace(program, source=None)
    with pytest.raises(DataError, match=r"carries no model.*--model"):
        tuned_model(bare, {}, {})
    source = load_model(two_matmuls().proto)
    assert tuned_model(bare, {}, {}, source) == tuned_model(program, {}, {})
    other = load_model(one_node("MatMul", normal(6, 6), (6,)).proto)
    with pytest.raises(ModelError, match="compiled from, and its hash differs"):
        tuned_model(program, {}, {}, other)


@pytest.mark.parametrize(
    ("weights", "biases", "message"),
    [
        ({"third": np.zeros((1, 6, 6))}, {}, "weights must be those of layers .* not 'third'.*first, second"),
        ({"first": np.zeros((6, 6))}, {}, r"'first' must have shape \(1, 6, 6\), not \(6, 6\)"),
        ({}, {"first": np.zeros(5)}, r"biases of layer 'first' must have shape \(6,\)"),
        ({"first": np.full((1, 6, 6), np.nan)}, {}, "must be finite"),
        ({}, {"second": np.full(6, 1e39)}, "biases of layer 'second' must be finite numbers that float32 holds"),
    ],
)
def test_weights_of_no_layer(program: TileProgram, weights: Floats, biases: Floats, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tuned_model(program, weights, biases)


def changed_model(change: str) -> onnx.ModelProto:
    """The model of two products, with something about it changed."""
    weights = {"w0": normal(6, 6), "w1": normal(6, 5 if change == "shape" else 6)}
    names = ["first", "other" if change == "name" else "second"]
    kind = "Gemm" if change == "op" else "MatMul"
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], names[0]),
        helper.make_node(kind, ["h", "w1"], ["y"], names[1]),
    ]
    if change == "fewer":
        nodes[1] = helper.make_node("Relu", ["h"], ["y"], "relu")
    if change == "more":
        nodes[1].output[0] = "z"
        nodes.append(helper.make_node("MatMul", ["z", "w1"], ["y"], "third"))
    inputs: dict[str, list[int | str]] = {"u" if change == "input" else "x": ["batch", 6]}
    if change == "input":
        nodes[0].input[0] = "u"
    if change == "rank":
        inputs["x"] = ["batch", 2, 6]
    return build(nodes, inputs, ["y"], weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("name", "must have 'second' as layer 1, as the program, not 'other'"),
        ("fewer", "must have 'second' as layer 1, as the program, not None"),
        ("more", "must have None as layer 2, as the program, not 'third'"),
        ("op", "layer 'second' must have the operator of the program's, 'MatMul', not 'Gemm'"),
        ("shape", r"layer 'second' must have the matrices of the program's, \(1, 6, 6\), not \(1, 6, 5\)"),
        ("input", "must have the program's inputs"),
        ("rank", "must have the program's inputs"),
    ],
)
def test_a_model_with_other_layers(program: TileProgram, change: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        compile_like(load_model(changed_model(change)), program)


def test_a_convolution_with_another_stride() -> None:
    weight = normal(3, 2, 2, 2)
    program = compile_small(one_node("Conv", weight, (2, 6, 6)))
    strided = one_node("Conv", weight, (2, 6, 6), strides=[2, 2])
    with pytest.raises(ModelError, match="layer 'layer' must have the gather of the program's"):
        compile_like(load_model(strided.proto), program)


# -- the rest of the program ----------------------------------------------------------------------------------------


def test_what_is_told_of_a_program_like_another(program: TileProgram) -> None:
    source = load_model(changed_model("none"))
    found = compile_like(source, program)
    assert (found.tables.model_name, found.tables.model_sha256) == ("g", source.sha256)
    assert found.source == source.proto.SerializeToString(deterministic=True)
    assert compile_like(source, program, keep_source=False).source is None
    assert found.tables.inputs[0].shape == ("batch", 6), "names of open dimensions are the model's"
    assert found.report.model == "g"
    assert program.tables.model_name in found.report.warnings[-1]
    assert found.report.totals == program.report.totals
    itself = compile_like(load_model(two_matmuls().proto), program)
    assert_same(itself, program)
    assert itself.tables == rewrite(program, program.weights, {}).tables
    assert itself.report.layers == program.report.layers


def test_digital_constants_are_those_of_the_model() -> None:
    def model(slope: float) -> onnx.ModelProto:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
            helper.make_node("PRelu", ["a", "s"], ["y"], "prelu"),
        ]
        return build(nodes, {"x": ["n", 4]}, ["y"], {"w": normal(4, 4), "s": np.array([slope], np.float32)})

    program, feeds = compile_ideal(model(0.5)), {"x": normal(3, 4, seed=1)}
    again = compile_like(load_model(model(-2.0)), program)
    assert_close(run_program(again, feeds), run_onnxruntime(model(-2.0), feeds))
    assert again.report.digital == program.report.digital
