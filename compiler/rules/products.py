"""Matrix products."""

from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper

from compiler.rules.lowered import Addend, Array, Graph, Lowered, StaysDigital, attribute, transpose_node, weight_of
from runtime.tables import Gather, Scatter


def gemm(node: onnx.NodeProto, graph: Graph) -> Lowered:
    """One constant factor, on either side; alpha, beta, both transposes; a constant row in C is a digital bias."""
    swapped = node.input[1] not in graph.constants and node.input[0] in graph.constants
    weight = weight_of(node, 0 if swapped else 1, graph)
    transpose = [bool(attribute(node, name, 0)) for name in ("transA", "transB")]
    # With the constant on the left, y = A B is computed as y' = B' A'.
    matrix = weight.T if transpose[0 if swapped else 1] != swapped else weight
    matrix = (matrix * np.asarray(attribute(node, "alpha", 1.0), weight.dtype))[None]
    source, before = node.input[1 if swapped else 0], []
    if transpose[1 if swapped else 0] != swapped:
        before.append(transpose_node(source, graph.fresh(f"{node.name}.rows"), (1, 0)))
        source = before[-1].output[0]
    n = matrix.shape[2]
    result = graph.fresh(f"{node.name}.columns") if swapped else node.output[0]
    added = _addend(node, graph, n, weight.dtype, result, transposed=swapped)
    after = (*added.after, transpose_node(result, node.output[0], (1, 0))) if swapped else added.after
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
    weight = weight_of(node, 0 if swapped else 1, graph)
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
            nodes.append(transpose_node(source, out, value))
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


def _addend(
    node: onnx.NodeProto, graph: Graph, n: int, dtype: np.dtype[Any], result: str, *, transposed: bool
) -> Addend:
    """``beta C`` of a Gemm, or its transpose, added to ``(rows, n)`` to give `result`.

    Where C is constant and the same in every row it is a bias; else digital nodes scale and transpose it before the
    loop, and add it after.
    """
    beta = attribute(node, "beta", 1.0)
    name = node.input[2] if len(node.input) > 2 and beta != 0.0 else ""
    constant = graph.constant(name) if name else np.zeros(1)
    before, constants, stem = [], {}, f"{node.name}.addend"
    if constant is not None:
        matrix = np.atleast_2d(constant).astype(np.float64) * beta
        matrix = matrix.T if transposed else matrix
        if matrix.shape in ((1, 1), (1, n)):
            return Addend(np.broadcast_to(matrix[0], (n,)).copy(), result)
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
            before.append(transpose_node(source, name, (1, 0)))
        elif transposed and rank == 1:
            shape, source, name = graph.fresh(f"{stem}.shape"), name, graph.fresh(stem)
            constants[shape] = np.asarray([-1, 1], np.int64)
            before.append(helper.make_node("Reshape", [source, shape], [name], name))
    target = graph.fresh(f"{node.name}.product")
    add = helper.make_node("Add", [target, name], [result], f"{node.name}.add")
    return Addend(np.zeros(n), target, tuple(before), (add,), constants)
