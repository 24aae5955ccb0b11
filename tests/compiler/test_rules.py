"""Every mapped operator computes what onnxruntime computes, whatever its attributes, shapes and constants."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ideal import assert_agrees
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Draw = Callable[..., Any]

some = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])


def single(
    node: onnx.NodeProto,
    inputs: dict[str, list[int | str]],
    constants: dict[str, Array],
    opset: int,
    before: list[onnx.NodeProto] | None = None,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of one operator, and nodes before it."""
    infos = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    output = helper.make_tensor_value_info("y", dtype, None)
    graph = helper.make_graph([*(before or []), node], "g", infos, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def normal(generator: np.random.Generator, *shape: int) -> Array:
    return generator.standard_normal(shape).astype(np.float32)


class Case:
    """A model under construction: constants and inputs with random values, and what was drawn for them."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.opset = draw(st.integers(8, 21))
        self.constants: dict[str, Array] = {}
        self.inputs: dict[str, list[int | str]] = {}
        self.feeds: dict[str, Array] = {}
        self.before: list[onnx.NodeProto] = []

    def constant(self, name: str, *shape: int) -> str:
        self.constants[name] = normal(self.generator, *shape)
        return name

    def input(self, name: str, *shape: int, symbolic: bool = False) -> str:
        """An input; with `symbolic`, its leading dimension is open."""
        self.feeds[name] = normal(self.generator, *shape)
        self.inputs[name] = ["batch", *shape[1:]] if symbolic and shape else [*shape]
        return name

    def computed(self, name: str, *shape: int) -> str:
        """A value that a digital node computes from an input."""
        self.before.append(helper.make_node("Neg", [self.input(f"{name}_in", *shape)], [name], f"{name}_neg"))
        return name

    def value(self, kind: str, name: str, *shape: int) -> str:
        return {"constant": self.constant, "input": self.input, "computed": self.computed}[kind](name, *shape)

    def check(self, node: onnx.NodeProto) -> Any:
        program = assert_agrees(single(node, self.inputs, self.constants, self.opset, self.before), self.feeds)
        assert [layer.name for layer in program.tables.layers] == [node.name]
        return program


def sizes(draw: Draw, rank: int, low: int, high: int) -> list[int]:
    return [draw(st.integers(low, high)) for _ in range(rank)]


BIAS = st.sampled_from(["none", "constant", "input", "computed"])


# -- convolutions ---------------------------------------------------------------------------------------------------


@some
@given(st.data())
def test_conv(data: st.DataObject) -> None:
    draw = data.draw
    case = Case(draw)
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    per_group = draw(st.sampled_from([1, 1, 2, 3]))  # one channel a group with two results each: a depth multiplier
    channels, results = per_group * groups, groups * draw(st.integers(1, 3))
    kernel, strides = sizes(draw, rank, 1, 3), sizes(draw, rank, 1, 3)
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    # onnxruntime takes no dilation with SAME.
    dilations = sizes(draw, rank, 1, 1 if auto.startswith("SAME") else 3)
    pads = sizes(draw, 2 * rank, 0, 2)
    extents = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    space = [e + draw(st.integers(0, 4)) for e in extents]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": groups, "kernel_shape": kernel}
    attributes |= {"pads": pads} if auto == "NOTSET" else {"auto_pad": auto}
    for name in ("strides", "dilations", "kernel_shape"):  # may be left out
        if draw(st.booleans()) and (name == "kernel_shape" or set(attributes[name]) == {1}):
            del attributes[name]
    batch = draw(st.integers(1, 3))
    x = case.input("x", batch, channels, *space, symbolic=draw(st.booleans()))
    names = [x, case.constant("w", results, per_group, *kernel)]
    kind = draw(BIAS)
    if kind != "none":
        names.append(case.value(kind, "b", results))
    case.check(helper.make_node("Conv", names, ["y"], "layer", **attributes))


@some
@given(st.data())
def test_conv_transpose(data: st.DataObject) -> None:
    draw = data.draw
    case = Case(draw)
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    channels, per_group = groups * draw(st.integers(1, 2)), draw(st.integers(1, 3))
    kernel, strides, dilations = sizes(draw, rank, 1, 3), sizes(draw, rank, 1, 3), sizes(draw, rank, 1, 3)
    space = sizes(draw, rank, 1, 4)
    extents = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    padding = [draw(st.integers(0, s - 1)) for s in strides] if draw(st.booleans()) else [0] * rank
    natural = [s * (n - 1) + e + p for s, n, e, p in zip(strides, space, extents, padding, strict=True)]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": groups, "kernel_shape": kernel}
    if any(padding):
        attributes["output_padding"] = padding
    mode = draw(st.sampled_from(["pads", "pads", "auto", "shape", "shape"]))
    if mode == "pads":
        begins = [draw(st.integers(0, min(2, n - 1))) for n in natural]
        ends = [draw(st.integers(0, min(2, n - 1 - b))) for n, b in zip(natural, begins, strict=True)]
        attributes["pads"] = [*begins, *ends]
    if mode == "auto" or (mode == "shape" and draw(st.booleans())):
        attributes["auto_pad"] = draw(st.sampled_from(["VALID", "SAME_UPPER", "SAME_LOWER"]))
    if mode == "shape":
        attributes["output_shape"] = [
            max(n + draw(st.integers(-3, s - 1 - p)), 1) for n, s, p in zip(natural, strides, padding, strict=True)
        ]
    batch = draw(st.integers(1, 3))
    x = case.input("x", batch, channels, *space, symbolic=draw(st.booleans()))
    names = [x, case.constant("w", channels, per_group, *kernel)]
    kind = draw(BIAS)
    if kind != "none":
        names.append(case.value(kind, "b", groups * per_group))
    case.check(helper.make_node("ConvTranspose", names, ["y"], "layer", **attributes))


# -- products -------------------------------------------------------------------------------------------------------


@some
@given(st.data())
def test_gemm(data: st.DataObject) -> None:
    draw = data.draw
    case = Case(draw)
    rows, inner, cols = (draw(st.integers(1, 5)) for _ in "MKN")
    trans = [draw(st.booleans()), draw(st.booleans())]
    shapes = [(rows, inner), (inner, cols)]
    shapes = [shape[::-1] if flip else shape for shape, flip in zip(shapes, trans, strict=True)]
    constant_side = draw(st.integers(0, 1))
    names = [
        case.constant("w", *shape) if side == constant_side else case.value(draw(VARIABLE), "x", *shape)
        for side, shape in enumerate(shapes)
    ]
    attributes: dict[str, Any] = {f"trans{side}": int(flip) for side, flip in zip("AB", trans, strict=True)}
    for name in ("alpha", "beta"):
        if draw(st.booleans()):
            attributes[name] = draw(st.sampled_from([0.0, 1.0, 0.5, -2.0]))
    kind = draw(BIAS)
    if kind != "none":
        shape = draw(st.sampled_from([(), (1,), (cols,), (1, 1), (1, cols), (rows, 1), (rows, cols)]))
        names.append(case.value(kind, "c", *shape))
    elif case.opset < 11:  # C may be left out since opset 11
        case.opset = 11
    case.check(helper.make_node("Gemm", names, ["y"], "layer", **attributes))


VARIABLE = st.sampled_from(["input", "computed"])


@st.composite
def product_shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the factors of a MatMul: batch dimensions of either are missing or 1 or agree."""
    rows, inner, cols = (draw(st.integers(1, 4)) for _ in "MKN")
    batch = draw(st.lists(st.integers(1, 3), max_size=3))
    factors: list[tuple[int, ...]] = []
    for matrix, vector in (((rows, inner), (inner,)), ((inner, cols), (inner,))):
        if draw(st.integers(0, 4)) == 0:
            factors.append(vector)
            continue
        own = [draw(st.sampled_from([1, size, size])) for size in batch]
        factors.append((*own[draw(st.integers(0, len(own))) :], *matrix))
    return factors[0], factors[1]


@settings(some, max_examples=150)
@given(st.data())
def test_matmul(data: st.DataObject) -> None:
    draw = data.draw
    case = Case(draw)
    shapes = draw(product_shapes())
    constant_side = draw(st.integers(0, 1))
    names = []
    for side, shape in enumerate(shapes):
        if side == constant_side:
            names.append(case.constant("w", *shape))
        elif draw(st.booleans()):
            names.append(case.computed("x", *shape))
        else:
            symbolic = len(shape) > 2 and draw(st.booleans())
            names.append(case.input("x", *shape, symbolic=symbolic))
    case.check(helper.make_node("MatMul", names, ["y"], "layer"))
