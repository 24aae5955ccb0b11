"""Torch translations of digital operators: equal to onnxruntime forward, to finite differences backward."""

import importlib.util
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwspec.errors import DataError, ModelError
from runtime.host_torch import TorchSegment, supported_ops, untranslatable

Array = NDArray[Any]
_RNG = np.random.default_rng(20)
_CPU = ["CPUExecutionProvider"]


def _normal(*shape: int) -> Array:
    return np.asarray(_RNG.standard_normal(shape), np.float32)


def _positive(*shape: int) -> Array:
    return np.asarray(_RNG.uniform(0.2, 2.0, shape), np.float32)


def _unit(*shape: int) -> Array:
    return np.asarray(_RNG.uniform(-0.9, 0.9, shape), np.float32)


def _whole(low: int, high: int, *shape: int, dtype: type = np.int64) -> Array:
    return np.asarray(_RNG.integers(low, high, shape), dtype)


def _bools(*shape: int) -> Array:
    return np.asarray(_RNG.integers(0, 2, shape), bool)


def _list(*values: int) -> Array:
    return np.asarray(values, np.int64)


def _scalar(value: float, dtype: type = np.float32) -> Array:
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


def _case(op: str, *inputs: Array | None, opset: int = 17, outputs: int = 1, **attributes: Any) -> Case:
    return Case(op, inputs, attributes, opset, outputs)


def _model(case: Case, frozen: Sequence[int] = ()) -> onnx.ModelProto:
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


def _session(model: bytes | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=_CPU)


def _in_torch(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> list[Array]:
    segment = TorchSegment(model)
    with torch.no_grad():
        results = segment({name: torch.from_numpy(np.array(array)) for name, array in inputs.items()})
    return [value.numpy() for value in results.values()]


def _assert_equal(expected: Sequence[Array], got: Sequence[Array], rtol: float = 2e-5, share: float = 2e-6) -> None:
    """Same types and shapes; values within ``rtol`` of each or ``share`` of the largest."""
    for want, have in zip(expected, got, strict=True):
        assert want.dtype == have.dtype
        assert want.shape == have.shape
        largest = np.abs(want[np.isfinite(want)]).max(initial=0) if want.dtype.kind == "f" else 0
        np.testing.assert_allclose(have, want, rtol=rtol, atol=share * largest)


def _elementwise() -> Iterator[Case]:
    for op in ("Abs", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "HardSwish", "Neg", "Relu", "Round"):
        yield _case(op, 3 * _normal(3, 5))
    for op in ("Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh"):
        yield _case(op, 3 * _normal(2, 3, 2))
    for op in ("Log", "Sqrt", "Reciprocal"):
        yield _case(op, _positive(3, 5))
    yield _case("Acos", _unit(7))
    yield _case("Asin", _unit(7))
    yield _case("Mish", _normal(3, 5), opset=18)
    yield _case("Round", np.asarray([0.5, 1.5, 2.5, -0.5, -1.5], np.float32))
    yield _case("Softplus", np.asarray([-40, 0, 19, 21, 60], np.float32))
    for op in ("Abs", "Neg", "Sign"):
        yield _case(op, _whole(-5, 5, 4, 3, dtype=np.int32))
    yield _case("Not", _bools(5))
    special = np.asarray([1, np.nan, np.inf, -np.inf], np.float32)
    yield _case("IsNaN", special)
    yield _case("IsInf", special)
    yield _case("IsInf", special, detect_negative=0)
    yield _case("IsInf", special, detect_positive=0)
    for op, opset in itertools.product(("Add", "Sub", "Mul", "Div"), (7, 17)):
        yield _case(op, _normal(2, 1, 4), _positive(3, 1), opset=opset)
        yield _case(op, _whole(-9, 9, 3, 4), np.where(_bools(4), 3, -4), opset=opset)
    for op in ("And", "Or", "Xor"):
        yield _case(op, _bools(3, 4), _bools(4))
    for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        yield _case(op, _whole(0, 3, 3, 4), _whole(0, 3, 4))
        yield _case(op, _normal(3, 4), _normal(1))
    yield _case("Mod", _whole(-9, 9, 12), np.where(_bools(12), 4, -4))
    yield _case("Mod", _whole(-9, 9, 12), np.where(_bools(12), 4, -4), fmod=1)
    yield _case("Mod", 5 * _normal(12), _positive(12), fmod=1)
    yield _case("Pow", _positive(3, 4), _normal(4))
    yield _case("Pow", _normal(3, 4), _scalar(2, np.int64), opset=12)
    yield _case("Pow", _whole(-3, 4, 3, dtype=np.int32), _scalar(2.0), opset=15)
    yield _case("Pow", _positive(3, 4), _scalar(3.0), opset=7)
    yield _case("Pow", _normal(3, 4), _scalar(3, np.int32))
    for opset in (7, 10):
        yield _case("Clip", 3 * _normal(4, 3), opset=opset, min=-1.0, max=2.0)
        yield _case("Clip", 3 * _normal(4, 3), opset=opset, max=2.0)
    for low, high in ((_scalar(-1), _scalar(2)), (None, _scalar(0.5)), (_scalar(0), None), (None, None)):
        yield _case("Clip", 3 * _normal(4, 3), low, high, opset=11)
    yield _case("Clip", _normal(5), _scalar(1), _scalar(-1), opset=13)
    yield _case("Clip", _whole(-9, 9, 7), _scalar(-2, np.int64), _scalar(5, np.int64))
    for op in ("Max", "Min", "Sum", "Mean"):
        yield _case(op, _normal(3, 4), opset=8)
        yield _case(op, _normal(3, 4), _normal(4), _normal(2, 1, 1))
    yield _case("Max", _whole(-5, 5, 4), _whole(-5, 5, 3, 1))
    yield _case("Where", _bools(3, 1), _normal(4), _normal(2, 1, 1))
    for target in (TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL, TensorProto.DOUBLE):
        yield _case("Cast", 9 * _normal(3, 4), to=target)
    yield _case("Cast", _normal(3), to=TensorProto.FLOAT16)
    yield _case("Cast", _whole(0, 2, 5), to=TensorProto.FLOAT)
    yield _case("Cast", _bools(5), to=TensorProto.UINT8)
    yield _case("CastLike", 9 * _normal(5), _whole(0, 2, 1))
    for form in ("none", "tanh"):
        yield _case("Gelu", 2 * _normal(4, 3), opset=20, approximate=form)
    yield _case("HardSigmoid", 3 * _normal(4, 3))
    yield _case("HardSigmoid", 3 * _normal(4, 3), alpha=0.1666, beta=0.4)
    for op in ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "Selu"):
        yield _case(op, 2 * _normal(4, 3))
        yield _case(op, 2 * _normal(4, 3), alpha=0.3)
    yield _case("Selu", np.asarray([-100, 100], np.float32), gamma=2.0)
    yield _case("PRelu", _normal(2, 3, 4), _normal(3, 1))
    yield _case("PRelu", _normal(2, 3, 4), _normal(1), opset=7)
    yield _case("Shrink", 2 * _normal(4, 3), bias=0.2, lambd=0.7)


def _reductions() -> Iterator[Case]:
    ops = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    for op in (f"Reduce{name}" for name in ops):
        x = _positive(2, 3, 4)
        yield _case(op, x, opset=11)
        yield _case(op, x, opset=12, axes=[1, -1], keepdims=0)
        yield _case(op, x, _list(-2), opset=18, keepdims=0)
        yield _case(op, x, _list(0, 2), opset=18)
        yield _case(op, x, opset=18)
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
        yield _case(op, _whole(-5, 5, 3, 4, dtype=np.int32), opset=18)
    yield _case("ReduceSum", _normal(2, 3), _list(1), opset=13)
    yield _case("ReduceSum", _normal(2, 3), opset=13, noop_with_empty_axes=1)
    yield _case("ReduceSum", _normal(2, 3), _list(), opset=13, keepdims=0)
    yield _case("ReduceSum", _scalar(2.0), opset=13)
    x = _whole(0, 3, 3, 5).astype(np.float32)
    for op, last, keep in itertools.product(("ArgMax", "ArgMin"), (0, 1), (0, 1)):
        yield _case(op, x, axis=1, select_last_index=last, keepdims=keep)
    yield _case("ArgMax", _normal(2, 3), axis=-1, opset=7)
    for largest in (0, 1):
        yield _case("TopK", x, _list(3), outputs=2, largest=largest)
    yield _case("TopK", _normal(4, 5), _list(2), outputs=2, axis=0, opset=10)
    yield _case("TopK", _normal(4, 5), outputs=2, opset=9, k=2)
    for exclusive, reverse in itertools.product((0, 1), (0, 1)):
        yield _case("CumSum", _normal(3, 4), _scalar(1, np.int64), exclusive=exclusive, reverse=reverse)
    yield _case("CumSum", _whole(0, 5, 3, 4, dtype=np.int32), _scalar(-2, np.int64))
    for op, opset in itertools.product(("Softmax", "LogSoftmax", "Hardmax"), (7, 11, 12, 13)):
        yield _case(op, _normal(2, 3, 4), opset=opset)
        yield _case(op, _normal(2, 3, 4), opset=opset, axis=2)
        yield _case(op, _normal(2, 3, 4), opset=opset, axis=0)
        if opset >= 11:
            yield _case(op, _normal(2, 3, 4), opset=opset, axis=-2)


def _shapes() -> Iterator[Case]:
    x = _normal(2, 3, 4)
    yield _case("Shape", x)
    yield _case("Shape", x, opset=15, start=-2)
    yield _case("Shape", x, opset=15, start=1, end=-1)
    yield _case("Shape", x, opset=15, start=-9, end=9)
    yield _case("Size", x)
    for target in ((0, -1), (4, 3, 2), (1, 0, -1, 4)):
        yield _case("Reshape", x, _list(*target))
    yield _case("Reshape", _normal(0, 3), _list(3, 0), opset=14, allowzero=1)
    for axis in (0, 1, 2, 3, -1):
        yield _case("Flatten", x, opset=11, axis=axis)
    yield _case("Squeeze", _normal(1, 3, 1), opset=11)
    yield _case("Squeeze", _normal(1, 3, 1), opset=11, axes=[-1])
    yield _case("Squeeze", _normal(1, 3, 1), _list(0, 2), opset=13)
    yield _case("Unsqueeze", x, opset=11, axes=[0, -1])
    yield _case("Unsqueeze", x, _list(4, 1), opset=13)
    yield _case("Unsqueeze", _scalar(1.0), _list(0))
    yield _case("Transpose", x)
    yield _case("Transpose", x, perm=[1, 2, 0])
    yield _case("Identity", x)
    yield _case("Dropout", x, opset=11)
    yield _case("Dropout", x, outputs=2, opset=13)
    yield _case("Concat", x, _normal(2, 1, 4), axis=1)
    yield _case("Concat", _list(1), _list(2, 3), axis=-1)
    yield _case("Split", _normal(2, 6), outputs=3, axis=1, opset=11)
    yield _case("Split", _normal(2, 6), outputs=2, axis=-1, opset=11, split=[2, 4])
    yield _case("Split", _normal(2, 6), _list(1, 5), outputs=2, axis=1, opset=13)
    yield _case("Split", _normal(7, 2), outputs=3, opset=18, num_outputs=3)
    y = _normal(5, 6, 4)
    yield _case("Slice", y, opset=9, starts=[1, -3], ends=[4, 1000], axes=[0, 2])
    yield _case("Slice", y, opset=9, starts=[1, 2], ends=[-1, 4])
    yield _case("Slice", y, _list(1, 2), _list(4, 5))
    yield _case("Slice", y, _list(-100, 5), _list(100, -7), _list(0, -2), _list(2, -2))
    yield _case("Slice", y, _list(100), _list(-(2**63)), _list(1), _list(-1))
    yield _case("Slice", y, _list(3), _list(2), _list(0))
    yield _case("Slice", y, _list(-100), _list(-50), _list(1), _list(-1))
    yield _case("Slice", y, _list(1), _list(4), _list(2), _list(-1))
    yield _case("Slice", y, _list(1), _list(2**63 - 1), _list(1), opset=10)
    yield _case("Expand", _normal(3, 1), _list(2, 1, 4))
    yield _case("Expand", _normal(3, 1), _list(1))
    yield _case("Tile", x, _list(2, 1, 3))
    for mode, value in (("constant", 1.5), ("reflect", 0.0), ("edge", 0.0)):
        yield _case("Pad", y, opset=7, pads=[0, 1, 2, 1, 0, 3], mode=mode, value=value)
        yield _case("Pad", y, _list(0, 1, 2, 1, 0, 3), opset=11, mode=mode)
        yield _case("Pad", y, _list(2, 1), None, _list(-1), opset=18, mode=mode)
    yield _case("Pad", y, _list(2, 1, 0, 1), None, _list(1, 0), opset=19, mode="wrap")
    yield _case("Pad", y, _list(-1, 2, 0, 3, -2, 0), _scalar(0.5), opset=11)
    yield _case("Pad", _whole(0, 9, 4), _list(1, 2), _scalar(7, np.int64), opset=13)
    yield _case("ConstantOfShape", _list(2, 3))
    filled = numpy_helper.from_array(np.asarray([7], np.int64))
    yield _case("ConstantOfShape", _list(2), value=filled)
    yield _case("ConstantOfShape", _list(), value=filled)
    for array in (_normal(2, 3), _whole(0, 9, 4), _bools(2)):
        yield _case("Constant", value=numpy_helper.from_array(array))
    yield _case("Constant", value_float=1.5)
    yield _case("Constant", value_floats=[1.5, 2.0])
    yield _case("Constant", value_int=3)
    yield _case("Constant", value_ints=[3, 4])
    for kind in (np.int64, np.int32, np.float32):
        yield _case("Range", _scalar(1, kind), _scalar(12, kind), _scalar(3, kind))
    yield _case("Range", _scalar(9, np.int64), _scalar(2, np.int64), _scalar(-2, np.int64))
    yield _case("Range", _scalar(3, np.int64), _scalar(3, np.int64), _scalar(1, np.int64))
    for upper in (0, 1):
        yield _case("Trilu", _normal(2, 4, 5), upper=upper)
        yield _case("Trilu", _normal(4, 5), _scalar(-1, np.int64), upper=upper)
    for mode in ("DCR", "CRD"):
        yield _case("DepthToSpace", _normal(2, 12, 3, 2), blocksize=2, mode=mode, opset=11)
    yield _case("SpaceToDepth", _normal(2, 3, 4, 6), blocksize=2)


def _indexing() -> Iterator[Case]:
    x = _normal(4, 5, 3)
    yield _case("Gather", x, _list(3, -1, 0))
    yield _case("Gather", x, _whole(-5, 5, 2, 2, dtype=np.int32), axis=1)
    yield _case("Gather", x, _scalar(-1, np.int64), axis=-1)
    yield _case("GatherElements", x, _whole(-5, 5, 4, 2, 3), axis=1)
    yield _case("GatherND", x, _whole(-3, 3, 2, 6, 2), opset=12)
    yield _case("GatherND", x, _whole(-3, 3, 4, 1), opset=12, batch_dims=1)
    yield _case("GatherND", x, _whole(-3, 3, 4, 5, 1), opset=12, batch_dims=2)
    yield _case("ScatterND", x, np.asarray([[0, 1], [-1, 4]]), _normal(2, 3), opset=16)
    yield _case("ScatterND", x, np.asarray([[2], [0]]), _normal(2, 5, 3), opset=11)
    yield _case("ScatterElements", x, np.asarray([[[0, 1, -1]], [[1, 0, -2]]]), _normal(2, 1, 3), axis=1)
    for axis in (-1, 0, 1):
        indices, depth, values = _whole(-7, 7, 2, 3), _scalar(5, np.int64), np.asarray([-1, 2], np.float32)
        yield _case("OneHot", indices, depth, values, axis=axis)
    yield _case("OneHot", _list(1, 3), _list(4), _whole(0, 9, 2))
    yield _case("NonZero", _bools(3, 4))
    yield Case("ArrayFeatureExtractor", (_normal(3, 4), _list(2, 0)), domain="ai.onnx.ml")
    yield Case("ArrayFeatureExtractor", (_whole(0, 9, 4), np.asarray([[2, 0, 1]])), domain="ai.onnx.ml")


def _products() -> Iterator[Case]:
    yield _case("MatMul", _normal(3, 4), _normal(4, 2))
    yield _case("MatMul", _normal(2, 1, 3, 4), _normal(5, 4, 2))
    yield _case("MatMul", _normal(4), _normal(3, 4, 2))
    yield _case("MatMul", _whole(-5, 5, 3, 4), _whole(-5, 5, 4, 2))
    yield _case("Gemm", _normal(3, 4), _normal(4, 2), _normal(2))
    yield _case("Gemm", _normal(4, 3), _normal(2, 4), _normal(3, 1), transA=1, transB=1, alpha=0.5, beta=2.0)
    yield _case("Gemm", _normal(3, 4), _normal(4, 2), opset=11, alpha=2.0)
    yield _case("Einsum", _normal(2, 3, 4), _normal(2, 5, 4), equation="bij, bkj -> bik")
    yield _case("Einsum", _normal(2, 3, 4), equation="...j->...")
    yield _case("Conv", _normal(2, 4, 7, 8), _normal(6, 4, 3, 3), _normal(6))
    yield _case("Conv", _normal(2, 4, 7, 8), _normal(6, 2, 3, 2), group=2, pads=[1, 0, 2, 1], strides=[2, 1])
    yield _case("Conv", _normal(1, 2, 9), _normal(3, 2, 3), _normal(3), dilations=[2], pads=[2, 2])
    yield _case("Conv", _normal(1, 2, 4, 5, 6), _normal(3, 2, 2, 3, 3), pads=[0, 1, 1, 0, 1, 1])
    for automatic in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        x, w = _normal(1, 2, 7, 8), _normal(3, 2, 4, 3)
        yield _case("Conv", x, w, auto_pad=automatic, strides=[2, 1])
        yield _case("ConvTranspose", x, _normal(2, 3, 4, 3), auto_pad=automatic, strides=[2, 2])
    x, w = _normal(1, 4, 3, 4), _normal(4, 3, 3, 2)
    yield _case("ConvTranspose", x, w, _normal(3), strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2])
    yield _case("ConvTranspose", x, w, group=2, dilations=[2, 1])
    yield _case("ConvTranspose", _normal(1, 2, 5), _normal(2, 3, 3), _normal(3), strides=[2], pads=[1, 1])
    yield _case("ConvTranspose", _normal(1, 2, 2, 3, 2), _normal(2, 1, 2, 2, 2), strides=[2, 1, 2])
    for length, automatic in itertools.product((8, 6, 5), ("NOTSET", "SAME_UPPER", "SAME_LOWER")):
        x, w = _normal(1, 2, 3), _normal(2, 1, 3)
        yield _case("ConvTranspose", x, w, strides=[2], output_shape=[length], auto_pad=automatic)


def _windows() -> Iterator[Case]:
    for op in ("MaxPool", "AveragePool"):
        x = _normal(2, 3, 8, 7)
        yield _case(op, x, kernel_shape=[2, 3])
        yield _case(op, x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 2, 1])
        yield _case(op, x, kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1)
        yield _case(op, x, kernel_shape=[3, 3], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1)
        yield _case(op, _normal(1, 1, 4, 4), kernel_shape=[1, 1], strides=[2, 3], pads=[0] * 4, ceil_mode=1, opset=19)
        yield _case(op, _normal(2, 3, 9), kernel_shape=[4], strides=[3], pads=[1, 2])
        yield _case(op, _normal(1, 2, 4, 5, 6), kernel_shape=[2, 3, 2], strides=[2, 1, 2])
        yield _case(op, x, kernel_shape=[2, 2], dilations=[2, 3], strides=[2, 1], opset=19)
        for automatic in ("SAME_UPPER", "SAME_LOWER", "VALID"):
            yield _case(op, x, kernel_shape=[3, 2], strides=[2, 2], auto_pad=automatic)
    for ceil_mode, pads in itertools.product((0, 1), ([1, 1, 1, 1], [0, 1, 2, 0])):
        attributes: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": pads, "ceil_mode": ceil_mode}
        yield _case("AveragePool", _normal(1, 2, 8, 9), count_include_pad=1, opset=19, **attributes)
    yield _case("MaxPool", _whole(-99, 99, 1, 2, 5, 6, dtype=np.int8), kernel_shape=[3, 2], pads=[1, 1, 1, 1])
    yield _case("GlobalAveragePool", _normal(2, 3, 4, 5))
    yield _case("GlobalMaxPool", _normal(2, 3, 4))


def _norms() -> Iterator[Case]:
    x = _normal(2, 4, 3, 5)
    for opset in (7, 9, 15):
        yield _case("BatchNormalization", x, _normal(4), _normal(4), _normal(4), _positive(4), opset=opset)
    yield _case("BatchNormalization", _normal(3, 4), _normal(4), _normal(4), _normal(4), _positive(4), epsilon=0.1)
    yield _case("InstanceNormalization", x, _normal(4), _normal(4), epsilon=1e-3)
    yield _case("GroupNormalization", x, _normal(4), _normal(4), num_groups=2, opset=21)
    yield _case("LayerNormalization", x, _normal(5), _normal(5))
    yield _case("LayerNormalization", x, _normal(3, 5), axis=2, epsilon=1e-2)
    yield _case("LayerNormalization", x, _normal(5), outputs=3)
    for p, axis in itertools.product((1, 2), (-1, 1)):
        yield _case("LpNormalization", x, p=p, axis=axis)
    for rows in (_normal(3, 4), _whole(0, 9, 3, 4)):
        per_feature = {"offset": [0.5, -1.0, 2.0, 0.0], "scale": [2.0, 0.1, 1.0, 3.0]}
        yield Case("Scaler", (rows,), per_feature, domain="ai.onnx.ml")
        yield Case("Scaler", (rows,), {"offset": [0.5], "scale": [3.0]}, domain="ai.onnx.ml")
    for size in (1, 5):
        yield _case("LRN", _normal(2, 7, 3, 3), size=size, alpha=0.3, beta=0.6, bias=1.5)
    for dtype in (np.uint8, np.int8):
        zero = _scalar(3, dtype)
        yield _case("QuantizeLinear", 9 * _normal(3, 5), _scalar(0.1), zero)
        yield _case(
            "QuantizeLinear", 4 * _normal(3, 4, 2), _positive(4), _whole(0, 5, 4, dtype=dtype), axis=1, opset=13
        )
        codes = _whole(0, 127, 3, 4, dtype=dtype)
        yield _case("DequantizeLinear", codes, _scalar(0.1), zero, opset=10)
        yield _case("DequantizeLinear", codes, _positive(3), _whole(0, 9, 3, dtype=dtype), axis=0, opset=13)
    yield _case("QuantizeLinear", np.asarray([0.25, 0.75, 1.25, -0.25], np.float32), _scalar(0.5))
    yield _case("QuantizeLinear", _normal(4), _scalar(0.02), opset=21, output_dtype=TensorProto.INT8)
    yield _case("DequantizeLinear", _whole(-999, 999, 4, dtype=np.int32), _scalar(0.01))


def _floats(*values: float) -> Array:
    return np.asarray(values, np.float32)


def _resizes() -> Iterator[Case]:
    x, none = _normal(1, 2, 5, 6), _floats()
    modes = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    targets = (_floats(1, 1, 2, 3), _floats(1, 1, 0.6, 0.5), _floats(1, 1, 1.7, 0.8))
    for coordinates, scales in itertools.product(modes, targets):
        shared: dict[str, Any] = {"coordinate_transformation_mode": coordinates}
        for kind in ("linear", "cubic"):
            yield _case("Resize", x, none, scales, mode=kind, opset=11, **shared)
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
            yield _case("Resize", x, none, scales, nearest_mode=rounding, opset=13, **shared)
    for coordinates, mode in itertools.product((*modes, "half_pixel_symmetric"), ("nearest", "linear")):
        if coordinates == "half_pixel_symmetric" and mode == "nearest":
            continue
        shared = {"coordinate_transformation_mode": coordinates, "mode": mode}
        yield _case("Resize", x, None, None, _list(1, 2, 8, 4), opset=19, **shared)
        yield _case(
            "Resize", x, None, None, _list(7, 9), opset=18, axes=[2, 3], keep_aspect_ratio_policy="stretch", **shared
        )
    yield _case("Resize", x, None, _floats(1, 1, 1.5, 1.5), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5)
    yield _case("Resize", _whole(0, 9, 1, 1, 3, 3, dtype=np.int32), None, _floats(1, 1, 2, 2))
    for scales in targets[:2]:
        for mode in ("nearest", "linear"):
            yield _case("Resize", x, scales, mode=mode, opset=10)
            yield _case("Upsample", x, np.maximum(scales, 1), mode=mode, opset=9)
    yield _case("Resize", x, none, _floats(1, 1, 1.1, 1.1), mode="linear")  # the same lengths: nothing happens
    yield _case("Upsample", x, mode="nearest", opset=7, scales=[1.0, 1.0, 2.0, 3.0])


def _recurrent() -> Iterator[Case]:
    time, batch, width, hidden = 4, 2, 3, 5
    x = _normal(time, batch, width)
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction in ("forward", "reverse", "bidirectional"):
            ways = 2 if direction == "bidirectional" else 1
            w, r = _normal(ways, gates * hidden, width), _normal(ways, gates * hidden, hidden)
            b, state = _normal(ways, 2 * gates * hidden), _normal(ways, batch, hidden)
            shared: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
            states = (state, _normal(ways, batch, hidden)) if op == "LSTM" else (state,)
            outputs = 1 + len(states)
            for reset in (0, 1) if op == "GRU" else (0,):
                if op == "GRU":
                    shared["linear_before_reset"] = reset
                yield _case(op, x, w, r, b, None, *states, outputs=outputs, **shared)
                yield _case(op, x, w, r, outputs=outputs, **shared)
        if op == "RNN":
            yield _case(op, x, w, r, b, activations=["Relu", "Relu"], **shared)


_CASES = [
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


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_operator_equals_onnxruntime(case: Case) -> None:
    """Values, shapes and types agree, whether the later inputs arrive at run time or are constants."""
    given = {f"x{place}": array for place, array in enumerate(case.inputs) if array is not None}
    later = range(1, len(case.inputs))
    expected = _session(_model(case).SerializeToString()).run(None, given)
    for frozen in [(), *([later] if later else [])]:
        model = _model(case, frozen)
        assert untranslatable(model) == {}
        inputs = {value.name: given[value.name] for value in model.graph.input}
        _assert_equal(expected, _in_torch(model, inputs))


def test_every_supported_operator_has_a_case() -> None:
    covered = {f"{case.domain}.{case.op}" if case.domain else case.op for case in _CASES}
    assert covered | {"If"} == set(supported_ops())  # If has its own test


_NOT_DIFFERENTIABLE = {
    *("And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not"),
    *(
        "Cast",
        "CastLike",
        "Constant",
        "ConstantOfShape",
        "DequantizeLinear",
        "NonZero",
        "OneHot",
        "Or",
        "Shape",
        "Size",
    ),
    *("QuantizeLinear", "Range", "Scaler", "Xor"),
}


def _differentiable() -> list[Case]:
    """Small cases with a float input and a float output; constants of a shape or index keep their type."""
    chosen = []
    for case in _CASES:
        x = case.inputs[0] if case.inputs else None
        if case.op not in _NOT_DIFFERENTIABLE and x is not None and x.dtype == np.float32 and 0 < x.size <= 500:
            chosen.append(case)
    return chosen


_LISTS = {"Resize": (1, 2, 3), "Upsample": (1,), "Pad": (1, 2, 3)}
"""Float inputs that are read as numbers, not differentiated."""


@pytest.mark.parametrize("case", _differentiable(), ids=str)
def test_gradient_equals_finite_differences(case: Case) -> None:
    """Every float input, in double precision."""
    fixed = [
        place
        for place, array in enumerate(case.inputs)
        if array is not None and (array.dtype != np.float32 or place in _LISTS.get(case.op, ()))
    ]
    widened = tuple(
        array if array is None or place in fixed else array.astype(np.float64)
        for place, array in enumerate(case.inputs)
    )
    model = _model(Case(case.op, widened, case.attributes, case.opset, case.outputs, case.domain), fixed)
    segment = TorchSegment(model)
    names = list(segment.inputs)
    generator = torch.Generator().manual_seed(3)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = segment(dict(zip(names, tensors, strict=True))).values()
        return tuple(value for value in results if value.is_floating_point())

    points = []
    for name in names:
        array = widened[int(name[1:])]
        assert array is not None
        jitter = torch.rand(array.shape, generator=generator, dtype=torch.float64)  # away from kinks and ties
        points.append((torch.from_numpy(array) + 1e-3 * jitter).requires_grad_())
    assert torch.autograd.gradcheck(run, tuple(points), fast_mode=True, check_undefined_grad=False)


_BACKEND_EXCEPTIONS = {
    "test_attention_4d_causal_fp16_expanded",  # float16 rounds otherwise
    "test_resize_downsample_scales_linear_align_corners",  # onnxruntime takes the whole output length, as we do
    "test_resize_downsample_scales_cubic_align_corners",
    "test_reduce_max_empty_set",  # refused by torch with an error
    "test_reduce_max_empty_set_bool",
    "test_reduce_min_empty_set",
}


def test_onnx_backend_cases() -> None:
    """ONNX's own single-node tests, as far as all their operators are translated, give ONNX's own results."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    checked = 0
    for case in cases:
        model, data = case.model, case.data_sets
        assert model is not None
        assert data is not None
        if case.name in _BACKEND_EXCEPTIONS or not _lower_opset(model) or untranslatable(model):
            continue
        for inputs, outputs in data:
            segment = TorchSegment(model)
            arrays = [np.asarray(value) for value in (*inputs, *outputs)]
            if any(array.dtype.kind not in "fiub" for array in arrays):
                continue
            tensors = {
                name: torch.from_numpy(array.copy()) for name, array in zip(segment.inputs, arrays, strict=False)
            }
            for want, have in zip(arrays[len(inputs) :], segment(tensors).values(), strict=True):
                assert want.dtype == have.numpy().dtype, case.name
                rtol, atol = case.rtol or 1e-3, case.atol or 1e-7
                np.testing.assert_allclose(have.numpy(), want, rtol, atol, err_msg=case.name)
                checked += 1
    assert checked > 1000


def _lower_opset(model: onnx.ModelProto) -> bool:
    """Declare opset 26, the newest translated, where none of the operators is newer; false where one is."""
    for entry in model.opset_import:
        if entry.domain == "" and entry.version > 26:
            ops = {node.op_type for node in model.graph.node if node.domain == ""}
            if any(onnx.defs.has(op) and onnx.defs.get_schema(op, entry.version).since_version > 26 for op in ops):
                return False
            entry.version = 26
    return True


def _graph_model(nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, int], outputs: Sequence[str]) -> onnx.ModelProto:
    """A model of several nodes; ``inputs`` gives the element types."""
    graph = helper.make_graph(
        nodes,
        "segment",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _conditional(deepest: str = "Mul") -> onnx.ModelProto:
    """An ``If`` whose branches read outer values, one of them inside another ``If``."""

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=nodes[-1].output[0])])

    value = numpy_helper.from_array(_floats(2.0))
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
    return _graph_model(nodes, kinds, ["y"])


@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_if_runs_the_branch_that_the_data_choose(condition: bool, other: bool) -> None:
    model = _conditional()
    inputs = {"x": _normal(3), "condition": np.asarray(condition), "other": np.asarray([other])}
    expected = _session(model.SerializeToString()).run(None, inputs)
    assert untranslatable(model) == {}
    _assert_equal(expected, _in_torch(model, inputs))


def test_an_operator_inside_a_branch_counts() -> None:
    assert list(untranslatable(_conditional("BitShift"))) == ["deep_product"]


_REFUSED = [
    _case("Det", _normal(2, 2)),
    _case("Cast", _normal(2), to=TensorProto.FLOAT8E4M3FN, opset=19),
    _case("Cast", _normal(2), to=TensorProto.STRING),
    _case("BatchNormalization", _normal(2, 3), *[_positive(3)] * 4, training_mode=1),
    _case("Dropout", _normal(2), _scalar(0.5), np.asarray(True)),
    _case("MaxPool", _normal(1, 1, 4, 4), kernel_shape=[2, 2], outputs=2),
    _case("AveragePool", _normal(1, 1, 9), kernel_shape=[2], strides=[3], auto_pad="SAME_UPPER"),
    _case("Pad", _normal(4), _list(-1, 2), mode="reflect"),
    _case("Resize", _normal(1, 1, 4, 4), None, _floats(1, 1, 0.5, 0.5), mode="linear", antialias=1, opset=18),
    _case(
        "Resize", _normal(1, 1, 4, 4), None, _floats(1, 1, 2, 2), coordinate_transformation_mode="tf_crop_and_resize"
    ),
    _case("ScatterND", _normal(3), np.asarray([[0]]), _normal(1), reduction="add", opset=16),
    _case("ScatterElements", _normal(3), _list(0), _normal(1), reduction="max"),
    _case("QuantizeLinear", _normal(4, 4), _positive(2, 4), opset=21, axis=0, block_size=2),
    _case("LSTM", _normal(1, 1, 2), _normal(1, 8, 2), _normal(1, 8, 2), hidden_size=2, clip=1.0),
    _case("LSTM", _normal(1, 1, 2), _normal(1, 8, 2), _normal(1, 8, 2), None, np.asarray([1], np.int32), hidden_size=2),
    _case("LSTM", _normal(1, 1, 2), _normal(1, 8, 2), _normal(1, 8, 2), hidden_size=2, activations=["Relu"] * 3),
    _case("GRU", _normal(1, 1, 2), _normal(1, 6, 2), _normal(1, 6, 2), hidden_size=2, layout=1),
    _case("ReduceL1", _normal(3), opset=18, noop_with_empty_axes=1),
    _case("LRN", _normal(1, 4, 2, 2), size=2),
    _case("Relu", _normal(2), opset=6),
    _case("Relu", _normal(2), opset=27),
    Case("Gelu", (_normal(2),), domain="com.microsoft"),
]


@pytest.mark.parametrize("case", _REFUSED, ids=str)
def test_what_is_not_covered_is_refused_by_name(case: Case) -> None:
    """In advance, and never computed some other way."""
    model = _model(case, range(1, len(case.inputs)))
    assert list(untranslatable(model)) == ["node"]
    with pytest.raises(ModelError, match="'node'"):
        TorchSegment(model)


def test_types_that_torch_lacks_are_refused() -> None:
    text = _graph_model([helper.make_node("Identity", ["x"], ["y"])], {"x": TensorProto.STRING}, ["y"])
    assert "STRING" in untranslatable(text)["x"]
    held = _model(_case("Add", _normal(2), _normal(2)), [1])
    held.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.asarray([1, 2], np.uint16), "x1"))
    assert "UINT16" in untranslatable(held)["x1"]


def test_inputs_are_checked() -> None:
    segment = TorchSegment(_model(_case("Add", _normal(2), _normal(2))))
    with pytest.raises(DataError, match="'x1' is missing"):
        segment({"x0": torch.zeros(2)})
    with pytest.raises(DataError, match="must be of type"):
        segment({"x0": torch.zeros(2), "x1": torch.zeros(2, dtype=torch.float64)})
    with pytest.raises(ModelError, match=r"node 'node' \(Add\)"):
        segment({"x0": torch.zeros(2), "x1": torch.zeros(3)})


def test_constants_can_be_trained() -> None:
    """A constant replaced by a tensor with a gradient receives one."""
    x, w = _normal(3, 4), _normal(4, 2)
    segment = TorchSegment(_model(_case("MatMul", x, w), [1]))
    segment.constants["x1"] = torch.from_numpy(w).requires_grad_()
    total = segment({"x0": torch.from_numpy(x)})["y0"].sum()
    (gradient,) = torch.autograd.grad(total, [segment.constants["x1"]])
    np.testing.assert_allclose(gradient.numpy(), np.repeat(x.sum(0)[:, None], 2, 1), rtol=1e-6)


def test_inputs_are_left_alone() -> None:
    """No translation writes into its inputs or into a constant."""
    for case in _CASES[:: max(len(_CASES) // 100, 1)]:
        model = _model(case, range(1, len(case.inputs)))
        segment = TorchSegment(model)
        given = {name: torch.from_numpy(np.array(case.inputs[int(name[1:])])) for name in segment.inputs}
        before = {name: value.clone() for name, value in {**given, **segment.constants}.items()}
        segment(given)
        for name, value in {**given, **segment.constants}.items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def _published(package: str, pattern: str) -> Path:
    """A model file of an installed package, found without importing the package."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return next(Path(found.submodule_search_locations[0]).rglob(pattern))


def _page(height: int, width: int) -> Array:
    """Dark text on a light page, as the text detector expects it: ``(1, 3, height, width)`` in -1 ... 1."""
    from PIL import Image, ImageDraw

    page = Image.new("L", (width, height), 230)
    ImageDraw.Draw(page).text((8, height // 2 - 6), "resistive crossbar", fill=20)
    grey = np.asarray(page, np.float32) / 127.5 - 1
    return np.ascontiguousarray(np.broadcast_to(grey, (1, 3, height, width)))


_RATE = {16: np.asarray(16000), 8: np.asarray(8000)}
_PUBLISHED: list[tuple[str, str, dict[str, Array]]] = [
    ("rapidocr_onnxruntime", "*cls_infer.onnx", {"x": np.concatenate([_page(48, 192)] * 2)}),
    ("rapidocr_onnxruntime", "*det_infer.onnx", {"x": _page(64, 160)}),
    ("rapidocr_onnxruntime", "*rec_infer.onnx", {"x": _page(48, 128)}),
    (
        "silero_vad",
        "silero_vad_16k_op15.onnx",
        {"input": 0.1 * _normal(2, 576), "state": _normal(2, 2, 128), "sr": _RATE[16]},
    ),
    ("silero_vad", "silero_vad.onnx", {"input": 0.1 * _normal(1, 288), "state": _normal(2, 1, 128), "sr": _RATE[8]}),
    (
        "silero_vad",
        "silero_vad_op18_ifless.onnx",
        {"input": 0.1 * _normal(2, 576), "state": _normal(2, 2, 128), "sr": _RATE[16]},
    ),
]


@pytest.mark.parametrize(
    ("package", "pattern", "inputs"), _PUBLISHED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_published_networks_equal_onnxruntime(package: str, pattern: str, inputs: dict[str, Array]) -> None:
    """Whole networks, control flow and shape arithmetic included, to 1e-4 of an output's largest magnitude."""
    path = _published(package, pattern)
    expected = _session(str(path)).run(None, inputs)
    model = onnx.load(path)
    assert untranslatable(model) == {}
    for want, have in zip(expected, _in_torch(model, inputs), strict=True):
        assert want.shape == have.shape
        assert np.abs(want - have).max() <= 1e-4 * np.abs(want).max()


def test_shapes_are_computed_beside_the_device() -> None:
    """On a device that holds no data at all, shape arithmetic still runs: it never leaves the CPU."""
    model = onnx.load(_published("rapidocr_onnxruntime", "*rec_infer.onnx"))
    result = TorchSegment(model, device="meta")({"x": torch.zeros(2, 3, 48, 64)})
    (output,) = result.values()
    assert output.device.type == "meta"
    assert output.shape == (2, 8, 6625)
