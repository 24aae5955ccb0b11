"""Small edits of an onnx_ir graph that the cleaning passes share."""

from collections.abc import Iterator

import onnx_ir as ir

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""Operators whose bodies are part of the model's own graph."""


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs held by a node's attributes."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def graphs(root: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and, after it, the bodies of its If, Loop and Scan nodes, at any depth.

    Graphs inside other operators belong to those operators, which may forbid captured values or want names of their
    own: they are left alone.
    """
    yield root
    for node in list(root):
        if node.domain == "" and node.op_type in CONTROL_FLOW:
            for graph in subgraphs(node):
                yield from graphs(graph)


def nodes(root: ir.Graph) -> Iterator[ir.Node]:
    """Every node of a graph and of its control-flow bodies; the graph may be edited meanwhile."""
    for graph in graphs(root):
        yield from (node for node in list(graph) if node.graph is graph)


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer that no caller can override, else ``None``."""
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of a value when it is known entirely."""
    if value.shape is None:
        return None
    dims = tuple(dim for dim in value.shape.dims if isinstance(dim, int))
    return dims if len(dims) == len(value.shape) else None


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor in a graph under a name that starts with ``name`` and is free there."""
    free, attempt = name, 0
    while free in graph.initializers:
        attempt += 1
        free = f"{name}_{attempt}"
    dims = [int(dim) for dim in tensor.shape.numpy()]
    value = ir.Value(name=free, shape=ir.Shape(dims), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of ``old``, graph outputs included, read ``new``."""
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def remove_node(node: ir.Node) -> None:
    """Remove a node whose outputs nobody reads, and let everything inside it go of the values that it reads."""
    graph = node.graph
    if graph is None:
        raise ValueError(f"node {node.name!r} is in no graph")
    for body in subgraphs(node):
        for inner in body.all_nodes():
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
    graph.remove(node, safe=True)


def replace_by_constant(root: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Let an initializer of the same name take the place of a node's output; the node itself stays."""
    name = value.name or "constant"
    new = add_initializer(root, name, tensor)
    replace_value(value, new)
    if value.name == new.name:
        value.name = f"{name}_replaced"


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def attribute_float(node: ir.Node, name: str, default: float) -> float:
    """A float attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_float()


def remove_dead(root: ir.Graph) -> None:
    """Remove the nodes and initializers that no graph output depends on."""
    _remove_dead_nodes(root)
    for graph in graphs(root):
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]


def _remove_dead_nodes(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            remove_node(node)
        else:
            for body in subgraphs(node):
                _remove_dead_nodes(body)
