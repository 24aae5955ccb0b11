"""Cleaning never changes results, and leaves every weight as an initializer of the node that uses it."""

import importlib.util
import io
import logging
import resource
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.frontend import load_model
from compiler.passes.batchnorm import FUSED_BATCHNORM
from compiler.passes.clean import Clean
from hwspec.errors import DataError, ModelError

Feeds = dict[str, NDArray[Any]]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return rng(seed).normal(size=shape).astype(np.float32)


def value_info(
    name: str, shape: Sequence[int | str | None] | None, dtype: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def build(
    nodes: list[onnx.NodeProto],
    initializers: Mapping[str, NDArray[Any]],
    shape: Sequence[int | str | None] | None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, "g", [value_info("x", shape)], [value_info(o, None) for o in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(proto: onnx.ModelProto, feeds: Feeds) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Optimised, onnxruntime turns DequantizeLinear and MatMul into one operator that computes in fewer bits.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    outputs: list[NDArray[Any]] = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)
    return outputs


def clean(proto: onnx.ModelProto, feeds: Feeds, **options: Any) -> ir.Model:
    """The cleaned model, checked: same inputs, outputs and results, unique names, source untouched."""
    source = load_model(proto)
    before = source.proto.SerializeToString(deterministic=True)
    model = Clean(**options).clean(source.proto)
    assert source.proto.SerializeToString(deterministic=True) == before, "the source is not modified"
    frozen = {tensor.name for tensor in source.proto.graph.initializer}
    assert [v.name for v in model.graph.inputs] == [v.name for v in source.proto.graph.input if v.name not in frozen]
    assert [v.name for v in model.graph.outputs] == [v.name for v in source.proto.graph.output]
    nodes = list(model.graph.all_nodes())
    assert all(node.name for node in nodes)
    assert len({node.name for node in nodes}) == len(nodes)
    names = [output.name for node in nodes for output in node.outputs if output.name] + list(model.graph.initializers)
    assert len(set(names)) == len(names)
    assert not model.functions
    for name, wanted, got in zip(
        [v.name for v in model.graph.outputs], run(proto, feeds), run(ir.to_proto(model), feeds), strict=True
    ):
        assert wanted.shape == got.shape
        assert wanted.dtype == got.dtype
        scale = np.abs(wanted).max() if wanted.size else 0
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * scale, err_msg=str(name))
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def only(model: ir.Model, op: str) -> ir.Node:
    (node,) = [node for node in model.graph.all_nodes() if node.op_type == op]
    return node


def is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and not value.is_graph_input()


# -- weights that exporters hide ------------------------------------------------------------------------------------


def weight_paths() -> dict[str, tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]]:
    """Ways in which a (3, 4) weight reaches a MatMul."""
    w = floats(3, 4)
    codes = np.asarray(rng().integers(-127, 127, (3, 4)), np.int8)
    node = helper.make_node
    return {
        "initializer": ([], {"w": w}),
        "constant": ([node("Constant", [], ["w"], value=numpy_helper.from_array(w))], {}),
        "identity": ([node("Identity", ["v"], ["w"])], {"v": w}),
        "cast": ([node("Cast", ["v"], ["w"], to=TensorProto.FLOAT)], {"v": w.astype(np.float16)}),
        "transpose": ([node("Transpose", ["v"], ["w"], perm=[1, 0])], {"v": np.ascontiguousarray(w.T)}),
        "reshape": ([node("Reshape", ["v", "s"], ["w"])], {"v": w.reshape(2, 6), "s": np.array([3, -1])}),
        "scaled": (
            [node("Mul", ["v", "s"], ["u"]), node("Transpose", ["u"], ["w"], perm=[1, 0])],
            {"v": np.ascontiguousarray(w.T), "s": np.full((), 0.5, np.float32)},
        ),
        "dequantized": (
            [node("DequantizeLinear", ["c", "s", "z"], ["w"], axis=1)],
            {"c": codes, "s": np.abs(floats(4)) + 0.1, "z": np.zeros(4, np.int8)},
        ),
        "quantized and back": (
            [node("QuantizeLinear", ["v", "s", "z"], ["c"]), node("DequantizeLinear", ["c", "s", "z"], ["w"])],
            {"v": w, "s": np.full((), 0.02, np.float32), "z": np.zeros((), np.int8)},
        ),
        "shape arithmetic": (
            [
                node("Shape", ["v"], ["shape"]),
                node("Gather", ["shape", "one"], ["width"]),
                node("Concat", ["width", "rest"], ["target"], axis=0),
                node("Reshape", ["v", "target"], ["u"]),
                node("Transpose", ["u"], ["w"], perm=[1, 0]),
            ],
            {"v": w.reshape(3, 4), "one": np.array([1]), "rest": np.array([-1])},
        ),
    }


@pytest.mark.parametrize("path", weight_paths())
def test_a_weight_ends_up_as_an_initializer_of_its_matmul(path: str) -> None:
    nodes, initializers = weight_paths()[path]
    model = clean(
        build([*nodes, helper.make_node("MatMul", ["x", "w"], ["y"])], initializers, ["n", 3]), {"x": floats(5, 3)}
    )
    assert ops(model) == ["MatMul"]
    weight = model.graph.node(0).inputs[1]
    assert is_constant(weight)
    assert weight is not None
    assert weight.name in ("w", "v"), "a folded value keeps a name under which the original has the same data"
    assert len(model.graph.initializers) == 1


def test_a_weight_that_is_an_input_with_a_default_is_frozen() -> None:
    proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": floats(3, 4)}, ["n", 3])
    proto.graph.input.append(value_info("w", [3, 4]))
    proto.ir_version = 3
    model = clean(proto, {"x": floats(2, 3)})
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert is_constant(model.graph.node(0).inputs[1])


def test_quantisers_of_activations_stay() -> None:
    scale, zero = np.full((), 0.05, np.float32), np.zeros((), np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    model = clean(build(nodes, {"s": scale, "z": zero, "w": floats(3, 4)}, ["n", 3]), {"x": floats(2, 3)})
    assert ops(model) == ["QuantizeLinear", "DequantizeLinear", "MatMul"]


def test_random_operators_are_not_folded() -> None:
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], shape=[3], seed=1.0),
        helper.make_node("RandomUniformLike", ["c"], ["u"]),
        helper.make_node("Add", ["r", "u"], ["s"]),
        helper.make_node("Mul", ["s", "zero"], ["t"]),
        helper.make_node("Add", ["x", "t"], ["y"]),
    ]
    model = clean(build(nodes, {"c": floats(3), "zero": np.zeros(3, np.float32)}, ["n", 3]), {"x": floats(2, 3)})
    assert {"RandomNormal", "RandomUniformLike"} <= set(ops(model))


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Tile", "Range", "Resize"])
def test_a_hostile_generator_is_left_alone_at_once(operator: str) -> None:
    # What is generated would take 4 GiB; the model says so in a few bytes.
    size = 2**30
    one, many = np.ones(1, np.float32), np.array([size])
    generators: dict[str, dict[str, NDArray[Any]]] = {
        "ConstantOfShape": {"a": many},
        "Expand": {"a": one, "b": many},
        "Tile": {"a": one, "b": many},
        "Range": {
            "a": np.zeros((), np.float32),
            "b": np.full((), 2**24, np.float32),
            "c": np.full((), 2**-6, np.float32),
        },
        "Resize": {"a": one.reshape(1, 1), "roi": one[:0], "scales": np.array([1, 2.0**30], np.float32)},
    }
    initializers = generators[operator]
    nodes = [
        helper.make_node(operator, list(initializers), ["big"]),
        helper.make_node("ReduceMax", ["big"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    started = time.monotonic()
    model = Clean().clean(load_model(build(nodes, initializers, ["n", 3])).proto)
    assert time.monotonic() - started < 5
    assert operator in ops(model)


def test_a_long_vector_of_shapes_is_not_built_in_memory() -> None:
    # onnx's data propagation would take 140 bytes an element here.
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("Cast", ["zeros"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Concat", ["whole", "size"], ["c"], axis=0),
        helper.make_node("ReduceMax", ["c"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Clean().clean(load_model(build(nodes, {"size": np.array([2**27])}, ["n", 3])).proto)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18, "kilobytes"


def test_shapes_that_contain_the_batch_are_followed() -> None:
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "zero", "one"], ["batch"]),
        node("Concat", ["batch", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["r"]),
        node("ConstantOfShape", ["target"], ["zeros"]),
        node("Concat", ["r", "zeros"], ["wide"], axis=2),
        node("Expand", ["row", "target"], ["rows"]),
        node("Concat", ["wide", "rows"], ["y"], axis=2),
    ]
    arrays = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([3, 2]), "row": floats(1, 2)}
    model = clean(build(nodes, arrays, ["n", 6]), {"x": floats(4, 6)})
    reshape = only(model, "Reshape")
    assert is_constant(reshape.inputs[1])
    assert shapes(model, [*model.graph.outputs, reshape.outputs[0]]) == [["n", 3, 6], ["n", 3, 2]]


# -- what is left out -----------------------------------------------------------------------------------------------


def test_dropout_identity_and_dead_nodes_are_gone_but_training_stays() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a", "ratio", "no"], ["b"]),
        helper.make_node("Dropout", ["b"], ["c", "mask"]),
        helper.make_node("Slice", ["c", "zero", "end", "zero"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Exp", ["d"], ["unused"]),
        helper.make_node("Identity", ["e"], ["y"]),
    ]
    constants = {"ratio": np.float32(0.5), "no": np.array(False), "zero": np.array([0]), "end": np.array([2**63 - 1])}
    arrays = {name: np.asarray(array) for name, array in constants.items()}
    model = clean(build(nodes, arrays, ["n", 3]), {"x": floats(2, 3)})
    assert ops(model) == ["Relu"]
    assert not model.graph.initializers
    training = [helper.make_node("Dropout", ["x", "ratio", "yes"], ["y"])]
    proto = build(training, {"ratio": np.asarray(np.float32(0)), "yes": np.array(True)}, ["n", 3])
    assert ops(clean(proto, {"x": floats(2, 3)})) == ["Dropout"]


def test_outputs_that_are_inputs_initializers_or_folded_still_work() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Add", ["w", "w"], ["folded"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Identity", ["r"], ["one"]),
        helper.make_node("Identity", ["r"], ["two"]),
    ]
    outputs = ["x", "same", "w", "folded", "one", "two"]
    model = clean(build(nodes, {"w": floats(3)}, ["n", 3], outputs), {"x": floats(2, 3)})
    assert is_constant(model.graph.outputs[3])


def test_unnamed_and_doubly_named_nodes_get_unique_names() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"], name="mine"),
        helper.make_node("Abs", ["b"], ["c"], name="mine"),
        helper.make_node("Neg", ["c"], ["y"], name="Relu_0"),
    ]
    model = Clean().clean(
        load_model(build(nodes, {}, ["n", 3])).proto
    )  # onnxruntime runs no model with equal node names
    assert [node.name for node in model.graph] == ["Relu_0_1", "mine", "mine_1", "Relu_0"]


# -- If, functions, opsets ------------------------------------------------------------------------------------------


def branch(
    nodes: list[onnx.NodeProto], output: str, initializers: Mapping[str, NDArray[Any]] | None = None
) -> onnx.GraphProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()]
    return helper.make_graph(nodes, "branch", [], [value_info(output, None)], tensors)


@pytest.mark.parametrize("rank", [2, 3])
def test_nested_ifs_that_follow_from_shapes_are_inlined(rank: int) -> None:
    node = helper.make_node
    inner = node(
        "If",
        ["is_two"],
        ["picked"],
        then_branch=branch([node("MatMul", ["x", "w"], ["m"])], "m", {"w": floats(3, 4)}),
        else_branch=branch([node("Constant", [], ["v"], value_float=2.0), node("Mul", ["x", "v"], ["m"])], "m"),
    )
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "one"], ["width"]),
        node("Equal", ["width", "three"], ["is_three"]),
        node(
            "If",
            ["is_three"],
            ["y"],
            then_branch=branch(
                [
                    node("Shape", ["x"], ["s2"]),
                    node("Size", ["s2"], ["r"]),
                    node("Equal", ["r", "two"], ["is_two"]),
                    inner,
                ],
                "picked",
            ),
            else_branch=branch([node("Identity", ["x"], ["i"])], "i"),
        ),
    ]
    constants = {"one": np.array(1), "three": np.array(3), "two": np.array(2)}
    shape: list[int | str | None] = ["n", *[3] * (rank - 1)]
    model = clean(build(nodes, constants, shape), {"x": floats(2, *[3] * (rank - 1))})
    assert ops(model) == (["MatMul"] if rank == 2 else ["Mul"])
    assert is_constant(model.graph.node(0).inputs[1])


def test_an_if_that_depends_on_the_input_stays_and_its_weights_are_folded() -> None:
    node = helper.make_node
    nodes = [
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Greater", ["m", "zero"], ["c"]),
        node(
            "If",
            ["c"],
            ["y"],
            then_branch=branch([node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["o"])], "o"),
            else_branch=branch(
                [node("Transpose", ["v"], ["t"]), node("MatMul", ["x", "t"], ["o"])], "o", {"v": floats(4, 3)}
            ),
        ),
    ]
    for sign in (1, -1):
        feeds: Feeds = {"x": (sign * np.abs(floats(2, 3))).astype(np.float32)}
        model = clean(build(nodes, {"w": floats(4, 3, seed=1), "zero": np.zeros((), np.float32)}, ["n", 3]), feeds)
        inside = [inner for inner in model.graph.all_nodes() if inner.op_type == "MatMul"]
        assert len(inside) == 2
        assert all(is_constant(inner.inputs[1]) for inner in inside)
        assert "Transpose" not in [inner.op_type for inner in model.graph.all_nodes()]


def test_a_loop_body_keeps_its_results() -> None:
    node = helper.make_node
    body = helper.make_graph(
        [node("MatMul", ["state", "w"], ["u"]), node("Identity", ["u"], ["next"]), node("Identity", ["go"], ["again"])],
        "body",
        [value_info("i", [], TensorProto.INT64), value_info("go", [], TensorProto.BOOL), value_info("state", None)],
        [value_info("again", [], TensorProto.BOOL), value_info("next", None)],
    )
    nodes = [node("Loop", ["count", "true", "x"], ["y"], body=body)]
    arrays = {"count": np.array(3), "true": np.array(True), "w": floats(3, 3)}
    clean(build(nodes, arrays, ["n", 3]), {"x": floats(2, 3)})


def test_functions_are_inlined_even_when_they_hand_an_input_through() -> None:
    opset = helper.make_opsetid("", 17)
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("mine", "Twice", ["a"], ["b", "a"], body, [opset])
    nodes = [
        helper.make_node("Twice", ["x"], ["p", "q"], domain="mine"),
        helper.make_node("Twice", ["p"], ["r", "s"], domain="mine"),
        helper.make_node("Sum", ["q", "r", "s"], ["y"]),
    ]
    proto = build(nodes, {}, ["n", 3])
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.functions.append(function)
    model = Clean().clean(load_model(proto).proto)  # onnxruntime itself does not run such a function
    assert ops(model) == ["Add", "Add", "Sum"]
    x = floats(2, 3)
    np.testing.assert_allclose(run(ir.to_proto(model), {"x": x})[0], x + 4 * x + 2 * x, rtol=1e-6)


def test_functions_that_multiply_or_call_themselves_are_refused() -> None:
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    proto = build([helper.make_node("F0", ["x"], ["y"], domain="mine")], {}, ["n", 3])
    proto.opset_import.append(opset[1])
    for level in range(12):
        calls = [
            helper.make_node(f"F{level + 1}", ["a" if i == 0 else f"v{i}"], [f"v{i + 1}"], domain="mine")
            for i in range(10)
        ]
        proto.functions.append(helper.make_function("mine", f"F{level}", ["a"], ["v10"], calls, opset))
    proto.functions.append(
        helper.make_function("mine", "F12", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opset)
    )
    with pytest.raises(ModelError, match="nodes after inlining"):
        Clean().clean(proto)
    calls = [helper.make_node("F0", ["a"], ["b"], domain="mine")]
    proto.functions.append(helper.make_function("mine", "F12", ["a"], ["b"], calls, opset))
    del proto.functions[:-1]
    proto.functions[0].name = "F0"
    with pytest.raises(ModelError, match="call itself"):
        Clean().clean(proto)


def test_an_old_opset_is_converted() -> None:
    proto = build([helper.make_node("Relu", ["x"], ["y"])], {}, ["n", 3], opset=6)
    model = clean(proto, {"x": floats(2, 3)})
    assert model.opset_imports[""] == 8


def test_what_cannot_be_cleaned_is_a_model_error() -> None:
    proto = build([helper.make_node("Constant", [], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])], {}, ["n", 3])
    proto.graph.node[0].attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    with pytest.raises(ModelError, match="could not be cleaned"):
        Clean().clean(proto)
    sparse = build([helper.make_node("Relu", ["x"], ["y"])], {}, ["n", 3])
    sparse.graph.sparse_initializer.add().values.name = "s"
    with pytest.raises(ModelError, match="sparse"):
        Clean().clean(sparse)


# -- batch normalisation --------------------------------------------------------------------------------------------


def norm(
    inputs: str, output: str, channels: int, name: str = "bn", **attributes: Any
) -> tuple[onnx.NodeProto, dict[str, Any]]:
    parameters = {
        f"{name}_scale": floats(channels, seed=1) + 1,
        f"{name}_bias": floats(channels, seed=2),
        f"{name}_mean": floats(channels, seed=3),
        f"{name}_var": np.abs(floats(channels, seed=4)) + 0.1,
    }
    return helper.make_node("BatchNormalization", [inputs, *parameters], [output], name=name, **attributes), parameters


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_batchnorm_is_fused_into_a_convolution(operator: str, group: int, bias: bool) -> None:
    after, parameters = norm("c", "y", 6)
    shape = (6, 4 // group, 3, 3) if operator == "Conv" else (4, 6 // group, 3, 3)
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    first = helper.make_node(operator, inputs, ["c"], name="conv", group=group)
    arrays = {"w": floats(*shape), **({"b": floats(6)} if bias else {}), **parameters}
    proto = build([first, after], arrays, ["n", 4, 8, 8])
    feeds: Feeds = {"x": floats(2, 4, 8, 8)}
    model = clean(proto, feeds)
    assert [(node.op_type, node.name) for node in model.graph] == [(operator, "conv")]
    assert model.graph.node(0).metadata_props[FUSED_BATCHNORM] == "bn"
    assert sorted(model.graph.initializers) == ["b_fused" if bias else "w_bias_fused", "w_fused"]
    assert ops(clean(proto, feeds, fuse_batchnorm=False)) == [operator, "BatchNormalization"]


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transA": 1, "transB": 1}])
@pytest.mark.parametrize("bias", [None, (), (1,), (4,), (1, 4)])
def test_batchnorm_is_fused_into_gemm(attributes: dict[str, Any], bias: tuple[int, ...] | None) -> None:
    after, parameters = norm("c", "y", 4)
    weight = floats(4, 3) if "transB" in attributes else floats(3, 4)
    arrays = {"w": weight, **parameters, **({} if bias is None else {"b": np.asarray(floats(*bias), np.float32)})}
    first = helper.make_node("Gemm", ["x", "w"] if bias is None else ["x", "w", "b"], ["c"], **attributes)
    turned = "transA" in attributes
    proto = build([first, after], arrays, [3, "n"] if turned else ["n", 3])
    assert ops(clean(proto, {"x": floats(3, 5) if turned else floats(5, 3)})) == ["Gemm"]


def test_batchnorm_after_a_matmul_becomes_a_bias_only_where_channels_are_columns() -> None:
    after, parameters = norm("c", "y", 4)
    product = helper.make_node("MatMul", ["x", "w"], ["c"])
    model = clean(build([product, after], {"w": floats(3, 4), **parameters}, ["n", 3]), {"x": floats(2, 3)})
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]
    assert model.graph.node(1).name == "bn"
    assert "c" not in {value.name for node in model.graph for value in node.outputs}, "c is no longer the original's c"
    model = clean(build([product, after], {"w": floats(3, 4), **parameters}, ["n", 4, 3]), {"x": floats(2, 4, 3)})
    assert ops(model) == ["MatMul", "BatchNormalization"]


def test_a_shared_weight_keeps_its_values_for_the_nodes_without_batchnorm() -> None:
    after, parameters = norm("a", "p", 4)
    conv: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], **conv),
        after,
        helper.make_node("Conv", ["x", "w", "b"], ["q"], **conv),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    arrays = {"w": floats(4, 4, 3, 3), "b": floats(4), **parameters}
    model = clean(build(nodes, arrays, ["n", 4, 6, 6]), {"x": floats(2, 4, 6, 6)})
    assert ops(model) == ["Conv", "Conv", "Add"]
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), arrays["w"])  # type: ignore[union-attr]


def test_batchnorm_stays_where_fusing_would_change_something() -> None:
    after, parameters = norm("c", "y", 4)
    conv = helper.make_node("Conv", ["x", "w"], ["c"])
    arrays = {"w": floats(4, 4, 1, 1), **parameters}
    feeds: Feeds = {"x": floats(2, 4, 3, 3)}
    shape: list[int | str | None] = ["n", 4, 3, 3]
    assert "BatchNormalization" in ops(clean(build([conv, after], arrays, shape, ["y", "c"]), feeds)), "c is an output"
    twice = [conv, after, helper.make_node("Relu", ["c"], ["z"])]
    assert "BatchNormalization" in ops(clean(build(twice, arrays, shape, ["y", "z"]), feeds)), "c has another reader"
    alone = helper.make_node("BatchNormalization", ["x", *parameters], ["y"])
    assert ops(clean(build([alone], parameters, shape), feeds)) == ["BatchNormalization"]
    dynamic = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["v"], axes=[0, 2, 3], keepdims=0),
    ]
    parameters_from_data = helper.make_node("BatchNormalization", ["c", "bn_scale", "bn_bias", "bn_mean", "v"], ["y"])
    assert "BatchNormalization" in ops(clean(build([*dynamic, conv, parameters_from_data], arrays, shape), feeds))


# -- input shapes ---------------------------------------------------------------------------------------------------


def two_inputs(first: Sequence[Any] | None, second: Sequence[Any] | None) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["left"], ["y"]), helper.make_node("Relu", ["right"], ["z"])],
        "g",
        [value_info("left", first), value_info("right", second)],
        [value_info("y", None), value_info("z", ["stale", 77])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def shapes(model: ir.Model, values: Sequence[ir.Value]) -> list[list[int | str | None]]:
    del model
    return [
        [d if isinstance(d, int) else d.value for d in value.shape.dims] for value in values if value.shape is not None
    ]


def fixed(
    first: Sequence[Any] | None, second: Sequence[Any] | None, **given: tuple[int, ...]
) -> list[list[int | str | None]]:
    model = Clean(input_shapes=given).clean(two_inputs(first, second))
    assert shapes(model, model.graph.outputs) == shapes(model, model.graph.inputs)
    return shapes(model, model.graph.inputs)


def test_the_batch_stays_symbolic_wherever_its_name_appears_and_the_rest_becomes_static() -> None:
    assert fixed(["batch", "time"], [2, "batch", 128], left=(1, 576), right=(2, 1, 128)) == [
        ["batch", 576],
        [2, "batch", 128],
    ]
    assert fixed(["batch", "time"], ["other", "time"], left=(1, 576)) == [["batch", 576], ["other", 576]]
    assert fixed(["batch", 3], [4, 5]) == [["batch", 3], [4, 5]]


@pytest.mark.parametrize("unknown", [-1, 0, "?", "", None])
def test_unknown_dimensions_are_anonymous(unknown: Any) -> None:
    given = fixed([unknown, 3, unknown, unknown], [unknown, unknown], left=(1, 3, 5, 7))
    assert given == [["left_batch", 3, 5, 7], ["right_batch", None]]


def test_an_input_without_rank_takes_the_given_one() -> None:
    assert fixed(None, ["n", 3], left=(1, 4, 5))[0] == ["left_batch", 4, 5]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"letf": (1, 2)}, "did you mean 'left'"),
        ({"left": (1, 2, 3)}, "must have 2 dimensions"),
        ({"right": (3, 1, 128)}, "must have 2 in dimension 0"),
        ({"left": (1, 0)}, "positive integers"),
        ({"left": (1, 5), "right": (2, 4, 128)}, "must have 1 in dimension 1"),
    ],
)
def test_shapes_that_disagree_are_refused(given: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Clean(input_shapes=given).clean(two_inputs(["batch", "time"], [2, "batch", 128]))


# -- real models ----------------------------------------------------------------------------------------------------


def packaged(package: str, path: str) -> Path:
    """A model file inside an installed package, which is not imported: what it imports need not be there."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    file = Path(spec.origin).parent / path
    if not file.exists():
        pytest.skip(f"{package} does not contain {path}")
    return file


def picture(*shape: int) -> NDArray[np.float32]:
    """Bright bars on a dark ground, in the range that the networks were trained on."""
    image = np.full(shape, -1.0, np.float32)
    image[..., 8:24, 8:16] = 1
    image[..., 8:24, 32:40] = 1
    image[..., 20:24, 8:40] = 1
    return image + rng().normal(size=shape).astype(np.float32) * np.float32(0.1)


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "shape"),
    [
        ("ch_PP-OCRv4_det_infer.onnx", (1, 3, 64, 96)),
        ("ch_PP-OCRv4_rec_infer.onnx", (1, 3, 48, 128)),
        ("ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192)),
    ],
)
def test_rapidocr(file: str, shape: tuple[int, ...]) -> None:
    path = packaged("rapidocr_onnxruntime", f"models/{file}")
    model = clean(load_model(path).proto, {"x": picture(2, *shape[1:])}, input_shapes={"x": shape})
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            assert is_constant(node.inputs[1]), node.name
        assert node.op_type not in ("Constant", "Shape", "Identity")
    products = [node for node in model.graph if node.op_type == "MatMul"]
    attention = [node for node in products if not is_constant(node.inputs[1])]
    assert len(attention) == (4 if "rec" in file else 0), "only products of two activations have no constant weight"
    assert [node.name for node in model.graph if node.op_type == "BatchNormalization"] == (
        ["p2o.BatchNormalization.2"] if "det" in file else []
    ), "an Add stands between ConvTranspose and this one"
    batch = model.graph.inputs[0].shape
    assert batch is not None
    for node in model.graph:
        for output in node.outputs:
            assert output.shape is not None
            dynamic = [dim for dim in output.shape.dims if not isinstance(dim, int)]
            assert dynamic == [batch[0]], f"{node.name}: the batch stays symbolic, all else is static"


@pytest.mark.real
def test_silero_vad() -> None:
    path = packaged("silero_vad", "data/silero_vad_16k_op15.onnx")
    feeds: Feeds = {"input": floats(3, 576) / 10, "state": floats(2, 3, 128), "sr": np.array(16000)}
    model = clean(load_model(path).proto, feeds, input_shapes={"input": (1, 576), "state": (2, 1, 128)})
    assert "If" not in [node.op_type for node in model.graph.all_nodes()]
    lstm = only(model, "LSTM")
    assert all(is_constant(value) for value in lstm.inputs[1:4])
    assert all(is_constant(node.inputs[1]) for node in model.graph if node.op_type == "Conv")
    assert shapes(model, model.graph.outputs) == [["batch", 1], [2, "batch", 128]]


@pytest.mark.real
@pytest.mark.parametrize("dynamo", [False, True])
def test_torch_exports(dynamo: bool) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = torch.nn
    network = layers.Sequential(
        layers.Conv2d(3, 8, 3, padding=1),
        layers.BatchNorm2d(8),
        layers.ReLU(),
        layers.ConvTranspose2d(8, 4, 2, stride=2, bias=False),
        layers.BatchNorm2d(4),
        layers.Dropout(0.3),
        layers.Flatten(),
        layers.Linear(4 * 16 * 16, 5),
        layers.BatchNorm1d(5),
    )
    for layer in network:
        if isinstance(layer, layers.BatchNorm2d | layers.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    network.eval()
    example = torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            batch = {0: torch.export.Dim("batch")}
            program = torch.onnx.export(
                network, (example,), dynamo=True, dynamic_shapes=(batch,), verbose=False, optimize=False
            )
            proto = program.model_proto
        else:
            buffer = io.BytesIO()
            torch.onnx.export(
                network,
                (example,),
                buffer,
                dynamo=False,
                dynamic_axes={"x": {0: "batch"}},
                input_names=["x"],
                training=torch.onnx.TrainingMode.EVAL,
                do_constant_folding=False,
            )
            proto = onnx.load_from_string(buffer.getvalue())
    model = clean(proto, {proto.graph.input[0].name: example.repeat(2, 1, 1, 1).numpy()})
    kinds = ops(model)
    assert "BatchNormalization" not in kinds
    assert "Dropout" not in kinds
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            assert is_constant(node.inputs[1]), node.name
