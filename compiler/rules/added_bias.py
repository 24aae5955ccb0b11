"""A bias that an operator has no room for: an Add of a constant after it, marked as its layer's.

A MatMul has no bias, and the place of one that is computed at run time is taken. The layer of such an operator can have
a bias all the same, once it was trained: `compiler.tuned` writes it as a marked Add, and lowering takes it up again.
"""

import numpy as np
import onnx

from compiler.rules.lowered import Array, Graph, attribute
from compiler.segments import reads

BIAS = "xbarc.bias"
"""Key of an Add's metadata that names the operator whose layer takes up its constant."""


def bias_owner(node: onnx.NodeProto) -> str:
    """Name of the operator whose bias a node adds, empty for every other node."""
    return next((entry.value for entry in node.metadata_props if entry.key == BIAS), "")


def added_row(add: onnx.NodeProto, node: onnx.NodeProto, model: onnx.ModelProto, graph: Graph) -> Array | None:
    """The constant that an Add puts on the result of a mapped operator, as a row of its layer's bias.

    Parameters
    ----------
    add
        A node that is marked as the operator's bias.
    node
        The operator.
    model
        Where both are.
    graph
        Its constants and ranks.

    Returns
    -------
    (length,) float64, or None where the Add is not what `compiler.tuned` writes: it then stays digital.
    """
    product, constant = node.output[0], graph.constants.get(add.input[1]) if len(add.input) == 2 else None
    if constant is None or (add.domain, add.op_type, add.input[0]) != ("", "Add", product) or has_room(node, graph):
        return None
    shown = any(output.name == product for output in model.graph.output)
    if shown or [other.name for other in model.graph.node if product in reads(other)] != [add.name]:
        return None
    weight = graph.constants[node.input[weight_index(node, graph)]]
    if constant.data_type != weight.data_type or tuple(constant.dims) != bias_shape(node, graph):
        return None
    row = onnx.numpy_helper.to_array(constant).astype(np.float64).reshape(-1)
    return row if np.isfinite(row).all() else None


def weight_index(node: onnx.NodeProto, graph: Graph) -> int:
    """Which input of a mapped operator is its weight."""
    return 0 if node.op_type in ("Gemm", "MatMul") and node.input[1] not in graph.constants else 1


def has_room(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a mapped operator has a bias that is a constant row, or could be given one."""
    if node.op_type == "MatMul":
        return False
    name = node.input[2] if len(node.input) > 2 and attribute(node, "beta", 1.0) != 0.0 else ""
    if not name or name not in graph.constants:
        return not name
    rows, cols = (1, 1, *graph.constants[name].dims)[-2:]
    return node.op_type != "Gemm" or (rows if weight_index(node, graph) == 1 else cols) == 1


def bias_shape(node: onnx.NodeProto, graph: Graph) -> tuple[int, ...]:
    """The shape in which the bias of a mapped operator's layer is added to the operator's result."""
    index = weight_index(node, graph)
    shape = tuple(graph.constants[node.input[index]].dims)
    if node.op_type == "Conv":
        return shape[0], *(1,) * (len(shape) - 2)
    if node.op_type == "ConvTranspose":
        return shape[1] * attribute(node, "group", 1), *(1,) * (len(shape) - 2)
    if node.op_type == "Gemm":
        transposed = bool(attribute(node, "transB" if index else "transA", 0))
        return (shape[0 if transposed else 1],) if index else (shape[1 if transposed else 0], 1)
    if len(shape) == 1:
        return ()
    *batch, inner, cols = shape
    if graph.ranks.get(node.input[1 - index]) == 1 or (index and not batch):
        return *batch, cols if index else inner
    return (*batch, 1, cols) if index else (*batch, inner, 1)
