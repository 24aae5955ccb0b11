"""Whatever the graph around the layers looks like, the program gives what the model gives."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from ideal import assert_agrees, assert_close, compile_ideal, run_onnxruntime, run_program
from onnx import TensorProto, helper, numpy_helper

from runtime.program import TileProgram

Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, Array],
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        infos,
        [helper.make_tensor_value_info(name, element, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def matmul(source: str, weight: str, target: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [source, weight], [target], target)


def layers(program: TileProgram) -> list[str]:
    return [layer.name for layer in program.tables.layers]


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 257])
@pytest.mark.parametrize("cols", [1, 127, 128, 129])
def test_matrices_at_the_edges_of_a_tile(rows: int, cols: int) -> None:
    model = build([matmul("x", "w", "y")], {"x": ["n", rows]}, ["y"], {"w": normal(rows, cols)})
    program = assert_agrees(model, {"x": normal(3, rows, seed=1)}, tolerance=1e-6)
    tiles = -(-rows // 128) * -(-cols // 128)
    assert len(program.tables.tiles) == tiles == program.report.layers[0].tiles


def test_a_deep_convolution_across_row_blocks() -> None:
    weight = normal(130, 17, 3, 3)  # 153 rows
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "y", pads=[1, 0, 0, 1])
    model = build([node], {"x": ["n", 17, 6, 5]}, ["y"], {"w": weight, "b": normal(130, seed=2)})
    assert_agrees(model, {"x": normal(2, 17, 6, 5, seed=1)}, tolerance=1e-6)


@pytest.mark.parametrize("zeros", [slice(2, 3), slice(None)])
def test_columns_of_zeros(zeros: slice) -> None:
    weight = normal(5, 4)
    weight[:, zeros] = 0
    model = build([matmul("x", "w", "y")], {"x": ["n", 5]}, ["y"], {"w": weight})
    program = assert_agrees(model, {"x": normal(3, 5, seed=1)})
    assert program.report.layers[0].weight_error < 1e-12


def test_one_weight_of_two_nodes_is_two_layers() -> None:
    nodes = [matmul("x", "w", "a"), helper.make_node("Relu", ["a"], ["b"], "relu"), matmul("b", "w", "y")]
    program = assert_agrees(build(nodes, {"x": ["n", 4]}, ["y"], {"w": normal(4, 4)}), {"x": normal(3, 4, seed=1)})
    assert layers(program) == ["a", "y"]
    assert {layer.initializer for layer in program.tables.layers} == {"w"}


def test_a_weight_that_digital_nodes_read_too() -> None:
    nodes = [matmul("x", "w", "a"), helper.make_node("Add", ["a", "w"], ["y"], "add")]
    assert_agrees(build(nodes, {"x": [4, 4]}, ["y"], {"w": normal(4, 4)}), {"x": normal(4, 4, seed=1)})


def test_layers_that_read_one_value_and_meet_again() -> None:
    nodes = [
        matmul("x", "w", "a"),
        matmul("x", "v", "b"),
        helper.make_node("Sigmoid", ["b"], ["c"], "gate"),
        helper.make_node("Mul", ["a", "c"], ["d"], "mul"),
        matmul("d", "w", "e"),
        helper.make_node("Add", ["e", "x"], ["y"], "skip"),
    ]
    constants = {"w": normal(4, 4), "v": normal(4, 4, seed=2)}
    program = assert_agrees(build(nodes, {"x": ["n", 4]}, ["y"], constants), {"x": normal(3, 4, seed=1)})
    assert layers(program) == ["a", "b", "e"]


def test_outputs_that_are_inputs_constants_and_values_in_between() -> None:
    nodes = [
        matmul("x", "w", "a"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        matmul("b", "w", "y"),
        helper.make_node("Identity", ["y"], ["z"], "identity"),
    ]
    model = build(nodes, {"x": ["n", 4]}, ["x", "w", "a", "b", "y", "z"], {"w": normal(4, 4)})
    assert_agrees(model, {"x": normal(3, 4, seed=1)})


def test_an_input_that_nothing_reads_and_outputs_in_another_order() -> None:
    nodes = [matmul("b", "w", "y"), matmul("a", "w", "z"), helper.make_node("Sub", ["y", "z"], ["d"], "sub")]
    model = build(nodes, {"a": ["n", 4], "unused": ["m", 2], "b": ["n", 4]}, ["d", "z", "y"], {"w": normal(4, 3)})
    feeds = {"a": normal(2, 4, seed=1), "unused": normal(1, 2), "b": normal(2, 4, seed=2)}
    program = assert_agrees(model, feeds)
    assert [info.name for info in program.tables.inputs] == ["a", "unused", "b"]


def test_an_optional_output_that_is_left_out() -> None:
    nodes = [
        matmul("x", "w", "a"),
        helper.make_node("LayerNormalization", ["a", "s", "b"], ["n", "", "inverse"], "norm"),
        matmul("n", "w", "y"),
    ]
    constants = {"w": normal(4, 4), "s": normal(4, seed=3), "b": normal(4, seed=4)}
    assert_agrees(build(nodes, {"x": ["n", 4]}, ["y", "inverse"], constants), {"x": normal(3, 4, seed=1)})


@pytest.mark.parametrize("sign", [-1, 1])
def test_branches_that_take_values_of_layers_from_outside(sign: int) -> None:
    """Each branch reads the result of a layer and gives the input of another; one holds a product of its own."""

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    nodes = [
        matmul("x", "w", "a"),
        matmul("x", "v", "b"),
        helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], "greater"),
        helper.make_node(
            "If",
            ["positive"],
            ["c"],
            "choice",
            then_branch=branch("then", helper.make_node("Add", ["a", "x"], ["then"], "inner_add")),
            else_branch=branch("else", helper.make_node("MatMul", ["b", "v"], ["else"], "inner_product")),
        ),
        matmul("c", "w", "y"),
    ]
    constants = {"w": normal(4, 4), "v": normal(4, 4, seed=2), "zero": np.zeros((), np.float32)}
    model = build(nodes, {"x": ["n", 4]}, ["y"], constants)
    program = assert_agrees(model, {"x": sign * np.abs(normal(3, 4, seed=1))})
    assert layers(program) == ["a", "b", "y"]
    (inner,) = [node for node in program.report.digital if node.op == "MatMul"]
    assert inner.macs is None
    assert "'choice'" in inner.reason


def test_a_node_kept_digital_by_its_kind_says_why() -> None:
    nodes = [
        matmul("x", "w", "a"),
        helper.make_node("MatMul", ["a", "x"], ["b"], "two_activations"),
        helper.make_node("Gemm", ["b", "a"], ["y"], "gemm_of_activations"),
    ]
    program = assert_agrees(build(nodes, {"x": [4, 4]}, ["y"], {"w": normal(4, 4)}), {"x": normal(4, 4, seed=1)})
    assert layers(program) == ["a"]
    assert {node.node: node.reason for node in program.report.digital} == dict.fromkeys(
        ["two_activations", "gemm_of_activations"], "it multiplies two activations"
    )


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_program_runs_any_batch(batch: int) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], "conv"),
        helper.make_node("Flatten", ["a"], ["b"], "flatten"),
        helper.make_node("Gemm", ["b", "w", "c"], ["y"], "gemm", transB=1),
    ]
    constants = {"k": normal(3, 2, 2, 2), "w": normal(5, 27), "c": normal(5, seed=3)}
    model = build(nodes, {"x": ["batch", 2, 4, 4]}, ["y"], constants)
    program = compile_ideal(model)
    feeds = {"x": normal(batch, 2, 4, 4, seed=1)}
    assert_close(run_program(program, feeds), run_onnxruntime(model, feeds))


@pytest.mark.parametrize(
    ("element", "dtype", "tolerance"),
    [(TensorProto.DOUBLE, np.float64, 1e-12), (TensorProto.FLOAT16, np.float16, 2e-3)],
)
def test_models_in_other_precisions(element: int, dtype: npt.DTypeLike, tolerance: float) -> None:
    nodes = [
        matmul("x", "w", "a"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Gemm", ["b", "v", "c"], ["y"], "gemm", alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["v", "b", "y"], ["z"], "swapped", beta=0.5),
    ]
    constants = {name: normal(4, 4, seed=seed, dtype=dtype) for seed, name in enumerate("wv")}
    constants["c"] = normal(1, 4, seed=3, dtype=dtype)
    model = build(nodes, {"x": [4, 4]}, ["y", "z", "a"], constants, element)
    program = assert_agrees(model, {"x": normal(4, 4, seed=1, dtype=dtype)}, tolerance=tolerance)
    assert layers(program) == ["a", "gemm", "swapped"]


def test_convolutions_in_half_precision() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("ConvTranspose", ["r", "v"], ["y"], "up", strides=[2, 2]),
    ]
    constants = {
        "w": normal(3, 2, 3, 3, dtype=np.float16),
        "b": normal(3, seed=2, dtype=np.float16),
        "v": normal(3, 2, 2, 2, seed=3, dtype=np.float16),
    }
    model = build(nodes, {"x": ["n", 2, 5, 5]}, ["y"], constants, TensorProto.FLOAT16)
    assert_agrees(model, {"x": normal(2, 2, 5, 5, seed=1, dtype=np.float16)}, tolerance=5e-3)


@pytest.mark.parametrize("shape", [[4, 4], [1, 4], [4, 1], [4], [1], []])
@pytest.mark.parametrize("swapped", [False, True])
def test_an_addend_that_is_computed_after_the_product(shape: list[int], swapped: bool) -> None:
    """What is added comes from two layers behind the product's own, so digital nodes of several depths surround it."""
    factors = ["w", "x"] if swapped else ["x", "w"]
    nodes = [
        matmul("x", "w", "a"),
        matmul("a", "w", "b"),
        matmul("b", "w", "c"),
        helper.make_node("Slice", ["c", "begin", "end"], ["d"], "slice"),
        helper.make_node("Reshape", ["d", "shape"], ["e"], "reshape"),
        helper.make_node("Gemm", [*factors, "e"], ["y"], "gemm", alpha=0.5, beta=-2.0),
    ]
    ends = [1, 1] if not shape else [1, shape[0]] if len(shape) == 1 else shape
    constants = {
        "w": normal(4, 4),
        "begin": np.zeros(2, np.int64),
        "end": np.asarray(ends, np.int64),
        "shape": np.asarray(shape, np.int64),
    }
    program = assert_agrees(build(nodes, {"x": [4, 4]}, ["y"], constants), {"x": normal(4, 4, seed=1)})
    assert layers(program) == ["a", "b", "c", "gemm"]


def test_a_bias_that_is_computed_after_the_convolution() -> None:
    nodes = [
        matmul("b", "w", "c"),
        matmul("c", "w", "d"),
        helper.make_node("Conv", ["x", "k", "d"], ["y"], "conv"),
        helper.make_node("ConvTranspose", ["x", "k", "d"], ["z"], "up"),
    ]
    model = build(nodes, {"x": ["n", 4, 5], "b": [4]}, ["y", "z"], {"w": normal(4, 4), "k": normal(4, 4, 2)})
    assert_agrees(model, {"x": normal(2, 4, 5, seed=1), "b": normal(4, seed=2)})
