"""Models of one mapped operator, whatever its attributes, shapes and constants, with inputs to run them on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Draw = Callable[..., Any]


def normal(generator: np.random.Generator, *shape: int) -> Array:
    return generator.standard_normal(shape).astype(np.float32)


class Case:
    """A model of one operator, under construction: constants and inputs with random values, and what was drawn."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.opset = draw(st.integers(8, 21))
        self.constants: dict[str, Array] = {}
        self.inputs: dict[str, list[int | str]] = {}
        self.feeds: dict[str, Array] = {}
        self.before: list[onnx.NodeProto] = []
        self.node = onnx.NodeProto()

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

    def of(self, op: str, names: list[str], **attributes: Any) -> "Case":
        """The case of this operator on these values."""
        self.node = helper.make_node(op, names, ["y"], "layer", **attributes)
        return self

    @property
    def model(self) -> onnx.ModelProto:
        """A model of the operator, called ``layer``, and the nodes before it."""
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.inputs.items()]
        tensors = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([*self.before, self.node], "g", infos, [output], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def sizes(draw: Draw, rank: int, low: int, high: int) -> list[int]:
    return [draw(st.integers(low, high)) for _ in range(rank)]


BIAS = st.sampled_from(["none", "constant", "input", "computed"])


# -- convolutions ---------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """Convolutions of every attribute, and of every kind of bias."""
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
    return case.of("Conv", names, **attributes)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> Case:
    """Transposed convolutions of every attribute, and of every kind of bias."""
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
    return case.of("ConvTranspose", names, **attributes)


# -- products -------------------------------------------------------------------------------------------------------


@st.composite
def gemms(draw: st.DrawFn) -> Case:
    """Gemm with the constant on either side, every attribute, and every kind of addend."""
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
    return case.of("Gemm", names, **attributes)


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


@st.composite
def matmuls(draw: st.DrawFn) -> Case:
    """MatMul with the constant on either side: vectors, matrices and batches."""
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
    return case.of("MatMul", names)
