"""Multiply-accumulates of ONNX operators, from the shapes that a run of the model had."""

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx
from onnx import helper

Shape = tuple[int, ...]


def mac_values(model: onnx.ModelProto) -> tuple[str, ...]:
    """Values whose shapes are needed to count the operators of the main graph, constants left out."""
    constant = {tensor.name for tensor in model.graph.initializer}
    values: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type in _COUNTS:
            values |= dict.fromkeys(name for name in (*node.input, *node.output) if name and name not in constant)
    return tuple(values)


def count_macs(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Multiply-accumulates of one run, by node name.

    Parameters
    ----------
    model
        The model that ran.
    shapes
        Shape of each of `mac_values`.
    """
    known = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer} | dict(shapes)
    counts = {}
    for node in model.graph.node:
        if node.op_type in _COUNTS:
            counts[node.name] = _COUNTS[node.op_type](
                node,
                [known.get(name, ()) for name in node.input],
                [known.get(name, ()) for name in node.output],
            )
    return counts


def _conv(node: onnx.NodeProto, inputs: list[Shape], outputs: list[Shape]) -> int:
    del node
    return prod(outputs[0]) * prod(inputs[1][1:])


def _conv_transpose(node: onnx.NodeProto, inputs: list[Shape], outputs: list[Shape]) -> int:
    del node, outputs
    return prod(inputs[0]) * prod(inputs[1][1:])


def _matmul(node: onnx.NodeProto, inputs: list[Shape], outputs: list[Shape]) -> int:
    del node
    return prod(outputs[0]) * inputs[0][-1]


def _gemm(node: onnx.NodeProto, inputs: list[Shape], outputs: list[Shape]) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(outputs[0]) * inputs[0][0 if transposed else 1]


def _einsum(node: onnx.NodeProto, inputs: list[Shape], outputs: list[Shape]) -> int:
    """Every pair of factors is multiplied once for each value of all labels: exact for two operands."""
    if len(inputs) < 2:
        return 0
    equation = next(helper.get_attribute_value(a).decode() for a in node.attribute if a.name == "equation")
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    broadcast: Shape = ()
    for term, shape in zip(terms, inputs, strict=True):
        before, _, after = term.partition("...")
        inner = shape[len(before) : len(shape) - len(after)]
        labels = zip(before + after, shape[: len(before)] + shape[len(before) + len(inner) :], strict=True)
        for label, size in labels:  # a size of 1 is broadcast
            sizes[label] = max(size, sizes.get(label, 1))
        broadcast = np.broadcast_shapes(broadcast, inner)
    del outputs
    return prod(sizes.values()) * prod(broadcast) * (len(inputs) - 1)


def _recurrent(node: onnx.NodeProto, inputs: list[Shape], outputs: list[Shape]) -> int:
    """Gates of every step: ``W (directions, gates hidden, input)`` and ``R (directions, gates hidden, hidden)``."""
    del node, outputs
    steps = prod(inputs[0][:2])
    return steps * (prod(inputs[1]) + prod(inputs[2]))


_COUNTS = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "RNN": _recurrent,
    "LSTM": _recurrent,
    "GRU": _recurrent,
}
