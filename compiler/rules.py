"""Which operators go onto crossbars, and as what matrix. The docstring of a rule is its row in the documentation.

A rule reads one ONNX node and gives the matrix that it multiplies by, with how input vectors are gathered and results
written back; or it raises `StaysDigital` with the reason. A rule may surround the matrix with digital nodes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from runtime.tables import Gather, Scatter

Array = npt.NDArray[Any]
AutoPad = Literal["none", "same_upper", "same_lower"]


class StaysDigital(Exception):  # noqa: N818 - a decision, not an error
    """The node is not mapped; the message is the reason that the report prints."""


@dataclass(frozen=True)
class Graph:
    """What a rule may look at: constants and ranks by value name, and names not used yet."""

    constants: Mapping[str, onnx.TensorProto]
    ranks: Mapping[str, int]
    names: set[str]

    def constant(self, name: str) -> Array | None:
        """The constant of this name, or None when the value is computed at run time."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def fresh(self, stem: str) -> str:
        """A name that nothing in the graph has."""
        name, number = stem, 0
        while name in self.names:
            number += 1
            name = f"{stem}_{number}"
        self.names.add(name)
        return name


@dataclass(frozen=True)
class Lowered:
    """One weight-stationary node as a matrix.

    Attributes
    ----------
    source, target
        Values that the loop reads (of the graph, or of `before`) and writes (of the graph, or read by `after`).
    weight : (groups, K, N)
        In the model's own type.
    bias : (groups N,) or (channels,) float64
        Added digitally.
    before, after
        Digital nodes around the loop. What does not need the loop's result belongs to `before`: the float model runs
        it too, so every value that may cross into another segment has a known type.
    constants
        Initializers that those nodes need.
    """

    weight: Array
    initializer: str
    bias: Array
    gather: Gather
    scatter: Scatter
    source: str
    target: str
    before: tuple[onnx.NodeProto, ...] = ()
    after: tuple[onnx.NodeProto, ...] = ()
    constants: dict[str, Array] = field(default_factory=dict)


Rule = Callable[[onnx.NodeProto, Graph], Lowered]


def conv(node: onnx.NodeProto, graph: Graph) -> Lowered:
    """1-D, 2-D and 3-D; strides, dilations, groups, depthwise, asymmetric and automatic padding; constant weight."""
    weight = _weight(node, 1, graph)
    groups, rank = _attribute(node, "group", 1), weight.ndim - 2
    added = _bias(node, graph, len(weight), rank)
    kernel = weight.shape[2:]
    per_group = weight.reshape(groups, -1, *weight.shape[1:])
    matrix = np.moveaxis(per_group, (1, 2), (-1, -2)).reshape(groups, prod(kernel) * weight.shape[1], -1)
    strides, dilations, pads, auto_pad = _window_attributes(node, rank)
    channels = weight.shape[1] * groups
    return Lowered(
        weight=matrix,
        initializer=node.input[1],
        bias=added.row,
        gather=Gather(
            name=f"{node.name}.in",
            kind="patches",
            channels=channels,
            groups=groups,
            kernel=kernel,
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
        ),
        scatter=Scatter(name=f"{node.name}.out", kind="image", channels=len(weight)),
        source=node.input[0],
        target=added.target,
        before=added.before,
        after=added.after,
        constants=added.constants,
    )


def conv_transpose(node: onnx.NodeProto, graph: Graph) -> Lowered:
    """1-D to 3-D; strides, dilations, groups, output padding and shape, automatic padding; followed by a fold."""
    weight = _weight(node, 1, graph)
    groups, rank = _attribute(node, "group", 1), weight.ndim - 2
    channels = weight.shape[1] * groups
    added = _bias(node, graph, channels, rank)
    per_group = weight.reshape(groups, -1, *weight.shape[1:])
    matrix = np.moveaxis(per_group, 2, -1).reshape(groups, per_group.shape[1], -1)
    strides, dilations, pads, auto_pad = _window_attributes(node, rank)
    ones = (1,) * rank
    return Lowered(
        weight=matrix,
        initializer=node.input[1],
        bias=added.row,
        gather=Gather(
            name=f"{node.name}.in",
            kind="patches",
            channels=len(weight),
            kernel=ones,
            strides=ones,
            dilations=ones,
            pads=(0,) * (2 * rank),
        ),
        scatter=Scatter(
            name=f"{node.name}.out",
            kind="fold",
            channels=channels,
            groups=groups,
            kernel=weight.shape[2:],
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
            output_padding=tuple(_attribute(node, "output_padding", (0,) * rank)),
            output_shape=tuple(_attribute(node, "output_shape", ()))[-rank:],
        ),
        source=node.input[0],
        target=added.target,
        before=added.before,
        after=added.after,
        constants=added.constants,
    )


def gemm(node: onnx.NodeProto, graph: Graph) -> Lowered:
    """One constant factor, on either side; alpha, beta, both transposes; a constant row in C is a digital bias."""
    swapped = node.input[1] not in graph.constants and node.input[0] in graph.constants
    weight = _weight(node, 0 if swapped else 1, graph)
    transpose = [bool(_attribute(node, name, 0)) for name in ("transA", "transB")]
    # With the constant on the left, y = A B is computed as y' = B' A'.
    matrix = weight.T if transpose[0 if swapped else 1] != swapped else weight
    matrix = (matrix * np.asarray(_attribute(node, "alpha", 1.0), weight.dtype))[None]
    source, before = node.input[1 if swapped else 0], []
    if transpose[1 if swapped else 0] != swapped:
        before.append(_transpose(source, graph.fresh(f"{node.name}.rows"), (1, 0)))
        source = before[-1].output[0]
    n = matrix.shape[2]
    result = graph.fresh(f"{node.name}.columns") if swapped else node.output[0]
    added = _addend(node, graph, n, weight.dtype, result, transposed=swapped)
    after = (*added.after, _transpose(result, node.output[0], (1, 0))) if swapped else added.after
    return Lowered(
        weight=matrix,
        initializer=node.input[0 if swapped else 1],
        bias=added.row,
        gather=Gather(name=f"{node.name}.in", kind="vectors", channels=matrix.shape[1]),
        scatter=Scatter(name=f"{node.name}.out", kind="vectors", channels=n),
        source=source,
        target=added.target,
        before=(*before, *added.before),
        after=after,
        constants=added.constants,
    )


def matmul(node: onnx.NodeProto, graph: Graph) -> Lowered:
    """One constant factor, on either side; vectors, matrices, and batches of matrices (a group each)."""
    swapped = node.input[1] not in graph.constants and node.input[0] in graph.constants
    weight = _weight(node, 0 if swapped else 1, graph)
    other = node.input[1 if swapped else 0]
    matrix = weight[:, None] if weight.ndim == 1 else np.swapaxes(weight, -1, -2) if swapped else weight
    if weight.ndim == 2 and not swapped:
        return _matmul_layer(node, graph, matrix, other, node.output[0], (), (), {})
    rank = graph.ranks.get(other)
    if rank is None:
        raise StaysDigital("the rank of its input cannot be told before it runs")
    return _arranged_matmul(node, graph, matrix, other, rank, swapped=swapped)


def _arranged_matmul(
    node: onnx.NodeProto, graph: Graph, matrix: Array, other: str, rank: int, *, swapped: bool
) -> Lowered:
    """``(..., b, M, K) x (b, K, N)`` as vectors ``(..., M, b K)``, with the transposes and reshapes that this needs."""
    vector_weight = len(graph.constants[node.input[0 if swapped else 1]].dims) == 1
    batch = matrix.shape[:-2]
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}

    def chain(nodes: list[onnx.NodeProto], op: str, source: str, value: object, stem: str) -> str:
        out = graph.fresh(f"{node.name}.{stem}")
        if op == "Transpose":
            assert isinstance(value, tuple)
            nodes.append(_transpose(source, out, value))
            return out
        operand = graph.fresh(f"{out}.shape")
        constants[operand] = np.asarray(value, np.int64)
        nodes.append(helper.make_node(op, [source, operand], [out], out))
        return out

    source = other
    vector_input = rank == 1
    lead = max(rank - 2, len(batch)) if not vector_input else len(batch)
    if vector_input:  # (K,) as (1, K)
        source, rank = chain(before, "Reshape", source, [1, -1], "row"), 2
    elif swapped:
        order = (*range(rank - 2), rank - 1, rank - 2)
        source = chain(before, "Transpose", source, order, "swapped")
    if rank - 2 < lead or any(size > 1 for size in batch):
        shape = (1,) * (lead - len(batch)) + batch + (1, 1)
        source = chain(before, "Expand", source, shape, "expanded")
    full = (1,) * (lead - len(batch)) + batch
    group_axes = tuple(axis for axis, size in enumerate(full) if size > 1)
    rest = tuple(axis for axis in range(lead) if axis not in group_axes)
    groups = prod(full)
    order = (*rest, lead, *group_axes, lead + 1)
    keep = [0] * (len(rest) + 1)
    if group_axes:
        source = chain(before, "Transpose", source, order, "grouped")
        source = chain(before, "Reshape", source, [*keep, groups * matrix.shape[-2]], "vectors")
    target = graph.fresh(f"{node.name}.result")
    result = target
    if group_axes:
        sizes = [full[axis] for axis in group_axes]
        result = chain(after, "Reshape", result, [*keep, *sizes, matrix.shape[-1]], "ungrouped")
        inverse = tuple(int(axis) for axis in np.argsort(order))
        result = chain(after, "Transpose", result, inverse, "restored")
    # What is left to undo: the rows of a vector input, the columns of a vector weight, and a swap.
    drop_rows, drop_cols = vector_input, vector_weight
    if swapped and not drop_rows and not drop_cols:
        result = chain(after, "Transpose", result, (*range(lead), lead + 1, lead), "unswapped")
    if drop_rows or drop_cols:
        kept = [0] * (lead if drop_rows else lead + 1) + ([] if drop_cols else [matrix.shape[-1]])
        result = chain(after, "Reshape", result, kept, "squeezed")
    if after:
        after[-1].output[0] = node.output[0]
    else:
        target = node.output[0]
    stacked = matrix.reshape(groups, *matrix.shape[-2:])
    return _matmul_layer(node, graph, stacked, source, target, tuple(before), tuple(after), constants)


def _matmul_layer(
    node: onnx.NodeProto,
    graph: Graph,
    matrix: Array,
    source: str,
    target: str,
    before: tuple[onnx.NodeProto, ...],
    after: tuple[onnx.NodeProto, ...],
    constants: dict[str, Array],
) -> Lowered:
    stacked = matrix if matrix.ndim == 3 else matrix[None]
    groups, rows, cols = stacked.shape
    return Lowered(
        weight=stacked,
        initializer=next(name for name in node.input if name in graph.constants),
        bias=np.zeros(groups * cols),
        gather=Gather(name=f"{node.name}.in", kind="vectors", channels=groups * rows, groups=groups),
        scatter=Scatter(name=f"{node.name}.out", kind="vectors", channels=groups * cols),
        source=source,
        target=target,
        before=before,
        after=after,
        constants=constants,
    )


RULES: dict[str, Rule] = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}
"""Operators of the default domain that are mapped, and their rules."""


def _weight(node: onnx.NodeProto, index: int, graph: Graph) -> Array:
    weight = graph.constant(node.input[index])
    if weight is None:
        if node.op_type in ("MatMul", "Gemm"):
            raise StaysDigital("it multiplies two activations")
        raise StaysDigital("its weight is computed at run time")
    if any(graph.constant(name) is not None for i, name in enumerate(node.input[:2]) if i != index):
        raise StaysDigital("both of its factors are constant")
    if weight.dtype not in (np.float16, np.float32, np.float64):
        raise StaysDigital(f"its weight is of type {weight.dtype}")
    if weight.size == 0:
        raise StaysDigital("its weight is empty")
    return weight


@dataclass(frozen=True)
class _Addend:
    """What is added to a product: a constant row, or a computed value that digital nodes add to `target`."""

    row: Array
    target: str
    before: tuple[onnx.NodeProto, ...] = ()
    after: tuple[onnx.NodeProto, ...] = ()
    constants: dict[str, Array] = field(default_factory=dict)


def _bias(node: onnx.NodeProto, graph: Graph, channels: int, rank: int) -> _Addend:
    """Bias of a convolution: constant, absent, or computed at run time and then added by a digital node."""
    name = node.input[2] if len(node.input) > 2 else ""
    constant = graph.constant(name) if name else np.zeros(channels)
    if constant is not None:
        return _Addend(constant.astype(np.float64), node.output[0])
    target, column, shape = (graph.fresh(f"{node.name}.{stem}") for stem in ("product", "column", "column.shape"))
    return _Addend(
        row=np.zeros(channels),
        target=target,
        before=(helper.make_node("Reshape", [name, shape], [column], column),),
        after=(helper.make_node("Add", [target, column], [node.output[0]], f"{node.name}.add"),),
        constants={shape: np.asarray([-1, *(1,) * rank], np.int64)},
    )


def _addend(
    node: onnx.NodeProto, graph: Graph, n: int, dtype: np.dtype[Any], result: str, *, transposed: bool
) -> _Addend:
    """``beta C`` of a Gemm, or its transpose, added to ``(rows, n)`` to give `result`.

    Where C is constant and the same in every row it is a bias; else digital nodes scale and transpose it before the
    loop, and add it after.
    """
    beta = _attribute(node, "beta", 1.0)
    name = node.input[2] if len(node.input) > 2 and beta != 0.0 else ""
    constant = graph.constant(name) if name else np.zeros(1)
    before, constants, stem = [], {}, f"{node.name}.addend"
    if constant is not None:
        matrix = np.atleast_2d(constant).astype(np.float64) * beta
        matrix = matrix.T if transposed else matrix
        if matrix.shape in ((1, 1), (1, n)):
            return _Addend(np.broadcast_to(matrix[0], (n,)).copy(), result)
        name = graph.fresh(stem)
        constants[name] = matrix.astype(dtype)
    else:
        rank = graph.ranks.get(name)
        if rank is None and transposed:
            raise StaysDigital("the rank of its addend cannot be told before it runs")
        if beta != 1.0:
            factor, source, name = graph.fresh(f"{node.name}.beta"), name, graph.fresh(stem)
            constants[factor] = np.asarray(beta, dtype)
            before.append(helper.make_node("Mul", [source, factor], [name], name))
        if transposed and rank == 2:
            source, name = name, graph.fresh(stem)
            before.append(_transpose(source, name, (1, 0)))
        elif transposed and rank == 1:
            shape, source, name = graph.fresh(f"{stem}.shape"), name, graph.fresh(stem)
            constants[shape] = np.asarray([-1, 1], np.int64)
            before.append(helper.make_node("Reshape", [source, shape], [name], name))
    target = graph.fresh(f"{node.name}.product")
    add = helper.make_node("Add", [target, name], [result], f"{node.name}.add")
    return _Addend(np.zeros(n), target, tuple(before), (add,), constants)


def _window_attributes(
    node: onnx.NodeProto, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], AutoPad]:
    strides = tuple(_attribute(node, "strides", (1,) * rank))
    dilations = tuple(_attribute(node, "dilations", (1,) * rank))
    pads = tuple(_attribute(node, "pads", (0,) * (2 * rank)))
    if any(pad < 0 for pad in pads):
        raise StaysDigital(f"its padding {list(pads)} is negative")
    auto = _attribute(node, "auto_pad", b"NOTSET").decode()
    if auto == "VALID":
        return strides, dilations, (0,) * (2 * rank), "none"
    if auto == "SAME_UPPER":
        return strides, dilations, (), "same_upper"
    if auto == "SAME_LOWER":
        return strides, dilations, (), "same_lower"
    return strides, dilations, pads, "none"


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _transpose(source: str, target: str, order: tuple[int, ...]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [target], target, perm=order)
