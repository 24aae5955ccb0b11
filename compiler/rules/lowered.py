"""What a rule reads, and what it gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from runtime.tables import Gather, Scatter

Array = npt.NDArray[Any]


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

    def plus(self, row: Array, result: str) -> "Lowered":
        """The same with a row added to its bias, and its result under another name."""
        bias = self.bias + row
        if not self.after:
            return replace(self, bias=bias, target=result)
        self.after[-1].output[0] = result  # the rule's own node, which has its place among the digital ones already
        return replace(self, bias=bias)


@dataclass(frozen=True)
class Addend:
    """What is added to a product: a constant row, or a computed value that digital nodes add to `target`."""

    row: Array
    target: str
    before: tuple[onnx.NodeProto, ...] = ()
    after: tuple[onnx.NodeProto, ...] = ()
    constants: dict[str, Array] = field(default_factory=dict)


def weight_of(node: onnx.NodeProto, index: int, graph: Graph) -> Array:
    """The constant factor of a node, its input `index`; a node without one stays digital."""
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


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The attribute of this name, or its default."""
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def transpose_node(source: str, target: str, order: tuple[int, ...]) -> onnx.NodeProto:
    """A Transpose node."""
    return helper.make_node("Transpose", [source], [target], target, perm=order)
