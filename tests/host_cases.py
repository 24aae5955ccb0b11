"""One case or more of every operator that `runtime.host_torch` translates, for the tests of values and gradients."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
_RNG = np.random.default_rng(20)
_CPU = ["CPUExecutionProvider"]


def normal(*shape: int) -> Array:
    return np.asarray(_RNG.standard_normal(shape), np.float32)


def positive(*shape: int) -> Array:
    return np.asarray(_RNG.uniform(0.2, 2.0, shape), np.float32)


def unit(*shape: int) -> Array:
    return np.asarray(_RNG.uniform(-0.9, 0.9, shape), np.float32)


def whole(low: int, high: int, *shape: int, dtype: type = np.int64) -> Array:
    return np.asarray(_RNG.integers(low, high, shape), dtype)


def bools(*shape: int) -> Array:
    return np.asarray(_RNG.integers(0, 2, shape), bool)


def integers(*values: int) -> Array:
    return np.asarray(values, np.int64)


def floats(*values: float) -> Array:
    return np.asarray(values, np.float32)


def scalar(value: float, dtype: type = np.float32) -> Array:
    return np.asarray(value, dtype)


@dataclass(frozen=True)
class Case:
    """One node: its inputs (``None`` is left out), attributes, opset, and how many outputs are asked for."""

    op: str
    inputs: tuple[Array | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    domain: str = ""

    def __str__(self) -> str:
        shapes = "x".join("-" if array is None else "".join(map(str, array.shape)) or "s" for array in self.inputs)
        values = ",".join(f"{key}={value}" for key, value in self.attributes.items() if not hasattr(value, "name"))
        return f"{self.op}-{self.opset}({shapes};{values})"[:100]


def node_case(op: str, *inputs: Array | None, opset: int = 17, outputs: int = 1, **attributes: Any) -> Case:
    return Case(op, inputs, attributes, opset, outputs)


def model_of(case: Case, frozen: Sequence[int] = ()) -> onnx.ModelProto:
    """A model of this one node; the inputs at ``frozen`` places are initializers."""
    names = ["" if array is None else f"x{place}" for place, array in enumerate(case.inputs)]
    outputs = [f"y{place}" for place in range(case.outputs)]
    graph = helper.make_graph(
        [helper.make_node(case.op, names, outputs, name="node", domain=case.domain, **case.attributes)],
        "segment",
        [
            helper.make_tensor_value_info(names[place], helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for place, array in enumerate(case.inputs)
            if array is not None and place not in frozen
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [
            numpy_helper.from_array(array, names[place])
            for place, array in enumerate(case.inputs)
            if array is not None and place in frozen
        ],
    )
    opsets = [helper.make_opsetid("", case.opset)]
    if case.domain:
        opsets.append(helper.make_opsetid(case.domain, 3))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def session(model: bytes | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # not even that a type has no kernel
    return ort.InferenceSession(model, options, providers=_CPU)


def graph_model(nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, int], outputs: Sequence[str]) -> onnx.ModelProto:
    """A model of several nodes; ``inputs`` gives the element types."""
    graph = helper.make_graph(
        nodes,
        "segment",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conditional(deepest: str = "Mul") -> onnx.ModelProto:
    """An ``If`` whose branches read outer values, one of them inside another ``If``."""

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=nodes[-1].output[0])])

    value = numpy_helper.from_array(floats(2.0))
    deep = helper.make_node(
        "If",
        ["other"],
        ["deep"],
        then_branch=branch("deep_then", helper.make_node(deepest, ["shifted", "two"], ["deep_product"])),
        else_branch=branch("deep_else", helper.make_node("Sub", ["shifted", "x"], ["deep_difference"])),
    )
    then = branch("then", helper.make_node("Constant", [], ["two"], value=value), deep)
    other = branch("else", helper.make_node("Neg", ["shifted"], ["negative"]))
    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        helper.make_node("Relu", ["doubled"], ["shifted"]),
        helper.make_node("If", ["condition"], ["y"], then_branch=then, else_branch=other),
    ]
    kinds = {"x": TensorProto.FLOAT, "condition": TensorProto.BOOL, "other": TensorProto.BOOL}
    return graph_model(nodes, kinds, ["y"])


def _elementwise() -> Iterator[Case]:
    for op in ("Abs", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "HardSwish", "Neg", "Relu", "Round"):
        yield node_case(op, 3 * normal(3, 5))
    for op in ("Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tanh"):
        yield node_case(op, 3 * normal(2, 3, 2))
    for op in ("Log", "Sqrt", "Reciprocal"):
        yield node_case(op, positive(3, 5))
    yield node_case("Tan", np.float32(np.pi) + 1.4 * unit(2, 3, 2))
    yield node_case("Acos", unit(7))
    yield node_case("Asin", unit(7))
    yield node_case("Mish", normal(3, 5), opset=18)
    yield node_case("Round", np.asarray([0.5, 1.5, 2.5, -0.5, -1.5], np.float32))
    yield node_case("Softplus", np.asarray([-40, 0, 19, 21, 60], np.float32))
    for op in ("Abs", "Neg", "Sign"):
        yield node_case(op, whole(-5, 5, 4, 3, dtype=np.int32))
    yield node_case("Not", bools(5))
    special = np.asarray([1, np.nan, np.inf, -np.inf], np.float32)
    yield node_case("IsNaN", special)
    yield node_case("IsInf", special)
    yield node_case("IsInf", special, detect_negative=0)
    yield node_case("IsInf", special, detect_positive=0)
    for op, opset in itertools.product(("Add", "Sub", "Mul", "Div"), (7, 17)):
        yield node_case(op, normal(2, 1, 4), positive(3, 1), opset=opset)
        yield node_case(op, whole(-9, 9, 3, 4), np.where(bools(4), 3, -4), opset=opset)
    for op in ("And", "Or", "Xor"):
        yield node_case(op, bools(3, 4), bools(4))
    for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        yield node_case(op, whole(0, 3, 3, 4), whole(0, 3, 4))
        yield node_case(op, normal(3, 4), normal(1))
    yield node_case("Mod", whole(-9, 9, 12), np.where(bools(12), 4, -4))
    yield node_case("Mod", whole(-9, 9, 12), np.where(bools(12), 4, -4), fmod=1)
    yield node_case("Mod", 5 * normal(12), positive(12), fmod=1)
    yield node_case("Pow", positive(3, 4), normal(4))
    yield node_case("Pow", normal(3, 4), scalar(2, np.int64), opset=12)
    yield node_case("Pow", whole(-3, 4, 3, dtype=np.int32), scalar(2.0), opset=15)
    yield node_case("Pow", positive(3, 4), scalar(3.0), opset=7)
    yield node_case("Pow", normal(3, 4), scalar(3, np.int32))
    for opset in (7, 10):
        yield node_case("Clip", 3 * normal(4, 3), opset=opset, min=-1.0, max=2.0)
        yield node_case("Clip", 3 * normal(4, 3), opset=opset, max=2.0)
    for low, high in ((scalar(-1), scalar(2)), (None, scalar(0.5)), (scalar(0), None), (None, None)):
        yield node_case("Clip", 3 * normal(4, 3), low, high, opset=11)
    yield node_case("Clip", normal(5), scalar(1), scalar(-1), opset=13)
    yield node_case("Clip", whole(-9, 9, 7), scalar(-2, np.int64), scalar(5, np.int64))
    for op in ("Max", "Min", "Sum", "Mean"):
        yield node_case(op, normal(3, 4), opset=8)
        yield node_case(op, normal(3, 4), normal(4), normal(2, 1, 1))
    yield node_case("Max", whole(-5, 5, 4), whole(-5, 5, 3, 1))
    yield node_case("Where", bools(3, 1), normal(4), normal(2, 1, 1))
    for target in (TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL, TensorProto.DOUBLE):
        yield node_case("Cast", 9 * normal(3, 4), to=target)
    yield node_case("Cast", normal(3), to=TensorProto.FLOAT16)
    yield node_case("Cast", normal(3), to=TensorProto.FLOAT)
    yield node_case("Cast", whole(0, 2, 5), to=TensorProto.FLOAT)
    yield node_case("Cast", bools(5), to=TensorProto.UINT8)
    yield node_case("CastLike", 9 * normal(5), whole(0, 2, 1))
    yield node_case("CastLike", 9 * normal(5), normal(1))
    for form in ("none", "tanh"):
        yield node_case("Gelu", 2 * normal(4, 3), opset=20, approximate=form)
    yield node_case("HardSigmoid", 3 * normal(4, 3))
    yield node_case("HardSigmoid", 3 * normal(4, 3), alpha=0.1666, beta=0.4)
    for op in ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "Selu"):
        yield node_case(op, 2 * normal(4, 3))
        yield node_case(op, 2 * normal(4, 3), alpha=0.3)
    yield node_case("Selu", np.asarray([-100, 100], np.float32), gamma=2.0)
    yield node_case("PRelu", normal(2, 3, 4), normal(3, 1))
    yield node_case("PRelu", normal(2, 3, 4), normal(1), opset=7)
    yield node_case("Shrink", 2 * normal(4, 3), bias=0.2, lambd=0.7)


def _reductions() -> Iterator[Case]:
    ops = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    for op in (f"Reduce{name}" for name in ops):
        x = positive(2, 3, 4)
        yield node_case(op, x, opset=11)
        yield node_case(op, x, opset=12, axes=[1, -1], keepdims=0)
        yield node_case(op, x, integers(-2), opset=18, keepdims=0)
        yield node_case(op, x, integers(0, 2), opset=18)
        yield node_case(op, x, opset=18)
    for op in (
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceL1",
        "ReduceSumSquare",
    ):
        yield node_case(op, whole(-5, 5, 3, 4, dtype=np.int32), opset=18)
    yield node_case("ReduceSum", normal(2, 3), integers(1), opset=13)
    yield node_case("ReduceSum", normal(2, 3), opset=13, noop_with_empty_axes=1)
    yield node_case("ReduceSum", normal(2, 3), integers(), opset=13, keepdims=0)
    yield node_case("ReduceSum", scalar(2.0), opset=13)
    x = whole(0, 3, 3, 5).astype(np.float32)
    for op, last, keep in itertools.product(("ArgMax", "ArgMin"), (0, 1), (0, 1)):
        yield node_case(op, x, axis=1, select_last_index=last, keepdims=keep)
    yield node_case("ArgMax", normal(2, 3), axis=-1, opset=7)
    for largest in (0, 1):
        yield node_case("TopK", x, integers(3), outputs=2, largest=largest)
    yield node_case("TopK", normal(4, 5), integers(2), outputs=2, axis=0, opset=10)
    yield node_case("TopK", normal(4, 5), outputs=2, opset=9, k=2)
    for exclusive, reverse in itertools.product((0, 1), (0, 1)):
        yield node_case("CumSum", normal(3, 4), scalar(1, np.int64), exclusive=exclusive, reverse=reverse)
    yield node_case("CumSum", whole(0, 5, 3, 4, dtype=np.int32), scalar(-2, np.int64))
    for op, opset in itertools.product(("Softmax", "LogSoftmax", "Hardmax"), (7, 11, 12, 13)):
        yield node_case(op, normal(2, 3, 4), opset=opset)
        yield node_case(op, normal(2, 3, 4), opset=opset, axis=2)
        yield node_case(op, normal(2, 3, 4), opset=opset, axis=0)
        if opset >= 11:
            yield node_case(op, normal(2, 3, 4), opset=opset, axis=-2)


def _shapes() -> Iterator[Case]:
    x = normal(2, 3, 4)
    yield node_case("Shape", x)
    yield node_case("Shape", x, opset=15, start=-2)
    yield node_case("Shape", x, opset=15, start=1, end=-1)
    yield node_case("Shape", x, opset=15, start=-9, end=9)
    yield node_case("Size", x)
    for target in ((0, -1), (4, 3, 2), (1, 0, -1, 4)):
        yield node_case("Reshape", x, integers(*target))
    yield node_case("Reshape", normal(0, 3), integers(3, 0), opset=14, allowzero=1)
    for axis in (0, 1, 2, 3, -1):
        yield node_case("Flatten", x, opset=11, axis=axis)
    yield node_case("Squeeze", normal(1, 3, 1), opset=11)
    yield node_case("Squeeze", normal(1, 3, 1), opset=11, axes=[-1])
    yield node_case("Squeeze", normal(1, 3, 1), integers(0, 2), opset=13)
    yield node_case("Unsqueeze", x, opset=11, axes=[0, -1])
    yield node_case("Unsqueeze", x, integers(4, 1), opset=13)
    yield node_case("Unsqueeze", scalar(1.0), integers(0))
    yield node_case("Transpose", x)
    yield node_case("Transpose", x, perm=[1, 2, 0])
    yield node_case("Identity", x)
    yield node_case("Dropout", x, opset=11)
    yield node_case("Dropout", x, outputs=2, opset=13)
    yield node_case("Concat", x, normal(2, 1, 4), axis=1)
    yield node_case("Concat", integers(1), integers(2, 3), axis=-1)
    yield node_case("Split", normal(2, 6), outputs=3, axis=1, opset=11)
    yield node_case("Split", normal(2, 6), outputs=2, axis=-1, opset=11, split=[2, 4])
    yield node_case("Split", normal(2, 6), integers(1, 5), outputs=2, axis=1, opset=13)
    yield node_case("Split", normal(7, 2), outputs=3, opset=18, num_outputs=3)
    y = normal(5, 6, 4)
    yield node_case("Slice", y, opset=9, starts=[1, -3], ends=[4, 1000], axes=[0, 2])
    yield node_case("Slice", y, opset=9, starts=[1, 2], ends=[-1, 4])
    yield node_case("Slice", y, integers(1, 2), integers(4, 5))
    yield node_case("Slice", y, integers(-100, 5), integers(100, -7), integers(0, -2), integers(2, -2))
    yield node_case("Slice", y, integers(100), integers(-(2**63)), integers(1), integers(-1))
    yield node_case("Slice", y, integers(3), integers(2), integers(0))
    yield node_case("Slice", y, integers(-100), integers(-50), integers(1), integers(-1))
    yield node_case("Slice", y, integers(1), integers(4), integers(2), integers(-1))
    yield node_case("Slice", y, integers(1), integers(2**63 - 1), integers(1), opset=10)
    yield node_case("Expand", normal(3, 1), integers(2, 1, 4))
    yield node_case("Expand", normal(3, 1), integers(1))
    yield node_case("Tile", x, integers(2, 1, 3))
    for mode, value in (("constant", 1.5), ("reflect", 0.0), ("edge", 0.0)):
        yield node_case("Pad", y, opset=7, pads=[0, 1, 2, 1, 0, 3], mode=mode, value=value)
        yield node_case("Pad", y, integers(0, 1, 2, 1, 0, 3), opset=11, mode=mode)
        yield node_case("Pad", y, integers(2, 1), None, integers(-1), opset=18, mode=mode)
    yield node_case("Pad", y, integers(2, 1, 0, 1), None, integers(1, 0), opset=19, mode="wrap")
    yield node_case("Pad", y, integers(-1, 2, 0, 3, -2, 0), scalar(0.5), opset=11)
    yield node_case("Pad", whole(0, 9, 4), integers(1, 2), scalar(7, np.int64), opset=13)
    yield node_case("ConstantOfShape", integers(2, 3))
    filled = numpy_helper.from_array(np.asarray([7], np.int64))
    yield node_case("ConstantOfShape", integers(2), value=filled)
    yield node_case("ConstantOfShape", integers(), value=filled)
    for array in (normal(2, 3), whole(0, 9, 4), bools(2)):
        yield node_case("Constant", value=numpy_helper.from_array(array))
    yield node_case("Constant", value_float=1.5)
    yield node_case("Constant", value_floats=[1.5, 2.0])
    yield node_case("Constant", value_int=3)
    yield node_case("Constant", value_ints=[3, 4])
    for kind in (np.int64, np.int32, np.float32):
        yield node_case("Range", scalar(1, kind), scalar(12, kind), scalar(3, kind))
    yield node_case("Range", scalar(9, np.int64), scalar(2, np.int64), scalar(-2, np.int64))
    yield node_case("Range", scalar(3, np.int64), scalar(3, np.int64), scalar(1, np.int64))
    for upper in (0, 1):
        yield node_case("Trilu", normal(2, 4, 5), upper=upper)
        yield node_case("Trilu", normal(4, 5), scalar(-1, np.int64), upper=upper)
    for mode in ("DCR", "CRD"):
        yield node_case("DepthToSpace", normal(2, 12, 3, 2), blocksize=2, mode=mode, opset=11)
    yield node_case("SpaceToDepth", normal(2, 3, 4, 6), blocksize=2)


def _indexing() -> Iterator[Case]:
    x = normal(4, 5, 3)
    yield node_case("Gather", x, integers(3, -1, 0))
    yield node_case("Gather", x, whole(-5, 5, 2, 2, dtype=np.int32), axis=1)
    yield node_case("Gather", x, scalar(-1, np.int64), axis=-1)
    yield node_case("GatherElements", x, whole(-5, 5, 4, 2, 3), axis=1)
    yield node_case("GatherND", x, whole(-3, 3, 2, 6, 2), opset=12)
    yield node_case("GatherND", x, whole(-3, 3, 4, 1), opset=12, batch_dims=1)
    yield node_case("GatherND", x, whole(-3, 3, 4, 5, 1), opset=12, batch_dims=2)
    yield node_case("ScatterND", x, np.asarray([[0, 1], [-1, 4]]), normal(2, 3), opset=16)
    yield node_case("ScatterND", x, np.asarray([[2], [0]]), normal(2, 5, 3), opset=11)
    yield node_case("ScatterElements", x, np.asarray([[[0, 1, -1]], [[1, 0, -2]]]), normal(2, 1, 3), axis=1)
    for axis in (-1, 0, 1):
        indices, depth, values = whole(-7, 7, 2, 3), scalar(5, np.int64), np.asarray([-1, 2], np.float32)
        yield node_case("OneHot", indices, depth, values, axis=axis)
    yield node_case("OneHot", integers(1, 3), integers(4), whole(0, 9, 2))
    yield node_case("NonZero", bools(3, 4))
    yield Case("ArrayFeatureExtractor", (normal(3, 4), integers(2, 0)), domain="ai.onnx.ml")
    yield Case("ArrayFeatureExtractor", (whole(0, 9, 4), np.asarray([[2, 0, 1]])), domain="ai.onnx.ml")


def _products() -> Iterator[Case]:
    yield node_case("MatMul", normal(3, 4), normal(4, 2))
    yield node_case("MatMul", normal(2, 1, 3, 4), normal(5, 4, 2))
    yield node_case("MatMul", normal(4), normal(3, 4, 2))
    yield node_case("MatMul", whole(-5, 5, 3, 4), whole(-5, 5, 4, 2))
    yield node_case("Gemm", normal(3, 4), normal(4, 2), normal(2))
    yield node_case("Gemm", normal(4, 3), normal(2, 4), normal(3, 1), transA=1, transB=1, alpha=0.5, beta=2.0)
    yield node_case("Gemm", normal(3, 4), normal(4, 2), opset=11, alpha=2.0)
    yield node_case("Einsum", normal(2, 3, 4), normal(2, 5, 4), equation="bij, bkj -> bik")
    yield node_case("Einsum", normal(2, 3, 4), equation="...j->...")
    yield node_case("Conv", normal(2, 4, 7, 8), normal(6, 4, 3, 3), normal(6))
    yield node_case("Conv", normal(2, 4, 7, 8), normal(6, 2, 3, 2), group=2, pads=[1, 0, 2, 1], strides=[2, 1])
    yield node_case("Conv", normal(1, 2, 9), normal(3, 2, 3), normal(3), dilations=[2], pads=[2, 2])
    yield node_case("Conv", normal(1, 2, 4, 5, 6), normal(3, 2, 2, 3, 3), pads=[0, 1, 1, 0, 1, 1])
    for automatic in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        x, w = normal(1, 2, 7, 8), normal(3, 2, 4, 3)
        yield node_case("Conv", x, w, auto_pad=automatic, strides=[2, 1])
        yield node_case("ConvTranspose", x, normal(2, 3, 4, 3), auto_pad=automatic, strides=[2, 2])
    x, w = normal(1, 4, 3, 4), normal(4, 3, 3, 2)
    yield node_case("ConvTranspose", x, w, normal(3), strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2])
    yield node_case("ConvTranspose", x, w, group=2, dilations=[2, 1])
    yield node_case("ConvTranspose", normal(1, 2, 5), normal(2, 3, 3), normal(3), strides=[2], pads=[1, 1])
    yield node_case("ConvTranspose", normal(1, 2, 2, 3, 2), normal(2, 1, 2, 2, 2), strides=[2, 1, 2])
    for length, automatic in itertools.product((8, 6, 5), ("NOTSET", "SAME_UPPER", "SAME_LOWER")):
        x, w = normal(1, 2, 3), normal(2, 1, 3)
        yield node_case("ConvTranspose", x, w, strides=[2], output_shape=[length], auto_pad=automatic)


def _windows() -> Iterator[Case]:
    for op in ("MaxPool", "AveragePool"):
        x = normal(2, 3, 8, 7)
        yield node_case(op, x, kernel_shape=[2, 3])
        yield node_case(op, x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 2, 1])
        yield node_case(op, x, kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1)
        yield node_case(op, x, kernel_shape=[3, 3], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1)
        yield node_case(
            op, normal(1, 1, 4, 4), kernel_shape=[1, 1], strides=[2, 3], pads=[0] * 4, ceil_mode=1, opset=19
        )
        yield node_case(op, normal(2, 3, 9), kernel_shape=[4], strides=[3], pads=[1, 2])
        yield node_case(op, normal(1, 2, 4, 5, 6), kernel_shape=[2, 3, 2], strides=[2, 1, 2])
        yield node_case(op, x, kernel_shape=[2, 2], dilations=[2, 3], strides=[2, 1], opset=19)
        for automatic in ("SAME_UPPER", "SAME_LOWER", "VALID"):
            yield node_case(op, x, kernel_shape=[3, 2], strides=[2, 2], auto_pad=automatic)
    for ceil_mode, pads in itertools.product((0, 1), ([1, 1, 1, 1], [0, 1, 2, 0])):
        attributes: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": pads, "ceil_mode": ceil_mode}
        yield node_case("AveragePool", normal(1, 2, 8, 9), count_include_pad=1, opset=19, **attributes)
    yield node_case("MaxPool", whole(-99, 99, 1, 2, 5, 6, dtype=np.int8), kernel_shape=[3, 2], pads=[1, 1, 1, 1])
    yield node_case("GlobalAveragePool", normal(2, 3, 4, 5))
    yield node_case("GlobalMaxPool", normal(2, 3, 4))


def _norms() -> Iterator[Case]:
    x = normal(2, 4, 3, 5)
    for opset in (7, 9, 15):
        yield node_case("BatchNormalization", x, normal(4), normal(4), normal(4), positive(4), opset=opset)
    yield node_case("BatchNormalization", normal(3, 4), normal(4), normal(4), normal(4), positive(4), epsilon=0.1)
    yield node_case("InstanceNormalization", x, normal(4), normal(4), epsilon=1e-3)
    yield node_case("GroupNormalization", x, normal(4), normal(4), num_groups=2, opset=21)
    yield node_case("LayerNormalization", x, normal(5), normal(5))
    yield node_case("LayerNormalization", x, normal(3, 5), axis=2, epsilon=1e-2)
    yield node_case("LayerNormalization", x, normal(5), outputs=3)
    for p, axis in itertools.product((1, 2), (-1, 1)):
        yield node_case("LpNormalization", x, p=p, axis=axis)
    for rows in (normal(3, 4), whole(0, 9, 3, 4)):
        per_feature = {"offset": [0.5, -1.0, 2.0, 0.0], "scale": [2.0, 0.1, 1.0, 3.0]}
        yield Case("Scaler", (rows,), per_feature, domain="ai.onnx.ml")
        yield Case("Scaler", (rows,), {"offset": [0.5], "scale": [3.0]}, domain="ai.onnx.ml")
    for size in (1, 5):
        yield node_case("LRN", normal(2, 7, 3, 3), size=size, alpha=0.3, beta=0.6, bias=1.5)
    for dtype in (np.uint8, np.int8):
        zero = scalar(3, dtype)
        yield node_case("QuantizeLinear", 9 * normal(3, 5), scalar(0.1), zero)
        yield node_case(
            "QuantizeLinear", 4 * normal(3, 4, 2), positive(4), whole(0, 5, 4, dtype=dtype), axis=1, opset=13
        )
        codes = whole(0, 127, 3, 4, dtype=dtype)
        yield node_case("DequantizeLinear", codes, scalar(0.1), zero, opset=10)
        yield node_case("DequantizeLinear", codes, positive(3), whole(0, 9, 3, dtype=dtype), axis=0, opset=13)
    yield node_case("QuantizeLinear", np.asarray([0.25, 0.75, 1.25, -0.25], np.float32), scalar(0.5))
    yield node_case("QuantizeLinear", normal(4), scalar(0.02), opset=21, output_dtype=TensorProto.INT8)
    yield node_case("DequantizeLinear", whole(-999, 999, 4, dtype=np.int32), scalar(0.01))


def _resizes() -> Iterator[Case]:
    x, none = normal(1, 2, 5, 6), floats()
    modes = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    targets = (floats(1, 1, 2, 3), floats(1, 1, 0.6, 0.5), floats(1, 1, 1.7, 0.8))
    for coordinates, scales in itertools.product(modes, targets):
        shared: dict[str, Any] = {"coordinate_transformation_mode": coordinates}
        for kind in ("linear", "cubic"):
            yield node_case("Resize", x, none, scales, mode=kind, opset=11, **shared)
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
            yield node_case("Resize", x, none, scales, nearest_mode=rounding, opset=13, **shared)
    for coordinates, mode in itertools.product((*modes, "half_pixel_symmetric"), ("nearest", "linear")):
        if coordinates == "half_pixel_symmetric" and mode == "nearest":
            continue
        shared = {"coordinate_transformation_mode": coordinates, "mode": mode}
        yield node_case("Resize", x, None, None, integers(1, 2, 8, 4), opset=19, **shared)
        yield node_case(
            "Resize", x, None, None, integers(7, 9), opset=18, axes=[2, 3], keep_aspect_ratio_policy="stretch", **shared
        )
    yield node_case("Resize", x, None, floats(1, 1, 1.5, 1.5), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5)
    yield node_case("Resize", whole(0, 9, 1, 1, 3, 3, dtype=np.int32), None, floats(1, 1, 2, 2))
    for scales in targets[:2]:
        for mode in ("nearest", "linear"):
            yield node_case("Resize", x, scales, mode=mode, opset=10)
            yield node_case("Upsample", x, np.maximum(scales, 1), mode=mode, opset=9)
    yield node_case("Resize", x, none, floats(1, 1, 1.1, 1.1), mode="linear")  # the same lengths: nothing happens
    yield node_case("Upsample", x, mode="nearest", opset=7, scales=[1.0, 1.0, 2.0, 3.0])


def _recurrent() -> Iterator[Case]:
    time, batch, width, hidden = 4, 2, 3, 5
    x = normal(time, batch, width)
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction in ("forward", "reverse", "bidirectional"):
            ways = 2 if direction == "bidirectional" else 1
            w, r = normal(ways, gates * hidden, width), normal(ways, gates * hidden, hidden)
            b, state = normal(ways, 2 * gates * hidden), normal(ways, batch, hidden)
            shared: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
            states = (state, normal(ways, batch, hidden)) if op == "LSTM" else (state,)
            outputs = 1 + len(states)
            for reset in (0, 1) if op == "GRU" else (0,):
                if op == "GRU":
                    shared["linear_before_reset"] = reset
                yield node_case(op, x, w, r, b, None, *states, outputs=outputs, **shared)
                yield node_case(op, x, w, r, outputs=outputs, **shared)
        if op == "RNN":
            yield node_case(op, x, w, r, b, activations=["Relu", "Relu"], **shared)


CASES = [
    *_elementwise(),
    *_reductions(),
    *_shapes(),
    *_indexing(),
    *_products(),
    *_windows(),
    *_norms(),
    *_resizes(),
    *_recurrent(),
]
