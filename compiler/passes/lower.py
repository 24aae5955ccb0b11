"""Lowering: every weight-stationary node becomes a matrix, the rest of the graph becomes digital segments."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.checker import ValidationError, check_node
from onnx.onnx_cpp2py_export.checker import CheckerContext

from compiler.floatmodel import FloatModel
from compiler.mapping import LoweredGraph, Mapping, MatrixLayer
from compiler.rules import RULES, Graph, Lowered, StaysDigital
from compiler.rules.added_bias import added_row, bias_owner
from compiler.segments import Cut, cut_segments, reads
from hwspec.errors import DataError, ModelFileError, VerificationError, XbarcError
from runtime.report import DigitalNode
from runtime.tables import Buffer

MAC_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "RNN", "LSTM", "GRU")
"""Operators whose multiply-accumulates are counted."""

_REASONS = {
    "Einsum": "Einsum has no mapping rule",
    **dict.fromkeys(("RNN", "LSTM", "GRU"), "it is recurrent: its weights are used inside its own time loop"),
    **dict.fromkeys(
        ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger"),
        "it computes on integers; give the model with DequantizeLinear before its weights",
    ),
}


@dataclass(frozen=True)
class Lower:
    """Turn weight-stationary nodes into layers, and the rest into digital segments."""

    name: ClassVar[str] = "lower"
    requires: ClassVar[tuple[str, ...]] = ("clean",)

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `graph` and `float_model`.

        Raises
        ------
        ModelFileError
            If a weight to be mapped is NaN or infinite.
        ModelError
            If onnxruntime does not run the model.
        DataError
            If a node to be kept digital does not exist.
        """
        model = mapping.cleaned
        if model is None:
            raise VerificationError("model", "must be cleaned before it is lowered")
        graph, context = graph_view(model), _checker_context(model)
        by_name = {node.name: node for node in model.graph.node}
        _check_digital_names(model, mapping.digital_nodes)
        lowered: dict[str, Lowered] = {}
        digital: list[DigitalNode] = []
        nodes: list[onnx.NodeProto] = []
        floats: list[onnx.NodeProto] = []
        for node in model.graph.node:
            owner = bias_owner(node)
            row = added_row(node, by_name[owner], model, graph) if owner in lowered else None
            if row is not None:
                lowered[owner] = lowered[owner].plus(row, node.output[0])
                floats.append(node)
                continue
            try:
                found = _lower(node, graph, context, kept=node.name in mapping.digital_nodes)
            except StaysDigital as reason:
                digital.append(_digital(node, str(reason), graph.constants))
                digital.extend(_inner_digital(node, node, set(graph.constants)))
                nodes.append(node)
                floats.append(node)
                continue
            lowered[node.name] = found
            nodes += [*found.before, *found.after]
            floats += [*found.before, node]
        constants = {name: value for found in lowered.values() for name, value in found.constants.items()}
        added = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()]
        givers, copies = _constant_outputs(model)
        nodes = [*givers, *nodes]
        ends = {name: (found.source, found.target) for name, found in lowered.items()}
        tensors = {tensor.name: tensor for tensor in (*model.graph.initializer, *added, *copies.values())}
        for name in copies:
            del tensors[name]
        outputs = [output.name for output in model.graph.output]
        cuts, steps = cut_segments(nodes, ends, tensors, outputs)
        crossing = {name for cut in cuts for name in (*cut.inputs, *cut.outputs)}
        crossing |= {name for pair in ends.values() for name in pair}
        float_model = _with_nodes(model, floats, added)
        opened = FloatModel(float_model, expose=crossing & {name for node in floats for name in node.output})
        kinds = {info.name: info.dtype for info in (*opened.inputs, *opened.outputs.values())}
        for found in lowered.values():
            made = (found.target, *(name for node in found.after for name in node.output))
            kinds = dict.fromkeys(made, str(found.weight.dtype)) | kinds
        segments = {cut.name: _segment(cut, model, tensors, kinds) for cut in cuts}
        written = sorted(crossing - {info.name for info in opened.inputs})
        return replace(
            mapping,
            float_model=float_model,
            graph=LoweredGraph(
                layers=tuple(_layer(node, lowered) for node in model.graph.node if node.name in lowered),
                segments=segments,
                steps=steps,
                inputs=opened.inputs,
                outputs=tuple(opened.outputs[name] for name in outputs),
                buffers=tuple(Buffer(name=name, dtype=kinds[name]) for name in written),
                digital=tuple(digital),
                nodes=len(model.graph.node),
            ),
        )


def graph_view(model: onnx.ModelProto) -> Graph:
    """What a rule may look at of a model."""
    graph = model.graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    names = {node.name for node in graph.node} | {name for node in graph.node for name in (*node.input, *node.output)}
    return Graph({tensor.name: tensor for tensor in graph.initializer}, ranks, names)


def _check_digital_names(model: onnx.ModelProto, names: Sequence[str]) -> None:
    known = [node.name for node in model.graph.node]
    for name in names:
        if name not in known:
            examples = ", ".join(node.name for node in model.graph.node if node.op_type in RULES)
            raise DataError(f"node {name!r}", "is not in the model", hint=f"nodes that can be mapped: {examples[:400]}")


def _checker_context(model: onnx.ModelProto) -> CheckerContext:
    context = CheckerContext()
    context.ir_version = min(model.ir_version, onnx.IR_VERSION)
    context.opset_imports = {entry.domain: entry.version for entry in model.opset_import}
    return context


def _lower(node: onnx.NodeProto, graph: Graph, context: CheckerContext, *, kept: bool) -> Lowered:
    if node.domain not in ("", "ai.onnx") or node.op_type not in RULES:
        raise StaysDigital(_REASONS.get(node.op_type, "it is not a weight-stationary operator"))
    if kept:
        raise StaysDigital("kept digital by request")
    subject = f"node {node.name!r} ({node.op_type})"
    try:
        check_node(node, context)
        found = RULES[node.op_type](node, graph)
    except (ValidationError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, XbarcError):
            raise
        reason = " ".join(str(error).split()[:40])
        raise ModelFileError(subject, f"is malformed ({reason})", hint="check the model with onnx.checker") from error
    if not (np.isfinite(found.weight).all() and np.isfinite(found.bias).all()):
        raise ModelFileError(
            subject,
            "must have finite weights, and has NaN or infinite ones",
            hint="train or export the model again",
        )
    return found


def _digital(node: onnx.NodeProto, reason: str, constants: Container[str]) -> DigitalNode:
    counted = node.domain in ("", "ai.onnx") and node.op_type in MAC_OPS
    constant = counted and any(name in constants for name in factors(node))
    return DigitalNode(
        node=node.name, op=node.op_type, reason=reason, macs=None if counted else 0, constant_weight=constant
    )


def factors(node: onnx.NodeProto) -> Sequence[str]:
    """The inputs of an operator of `MAC_OPS` that can be its weight."""
    if node.op_type == "Einsum":
        return tuple(node.input)
    return tuple(node.input[:2] if node.op_type in ("Gemm", "MatMul") else node.input[1:2])


def _inner_digital(node: onnx.NodeProto, outer: onnx.NodeProto, constants: set[str]) -> Iterator[DigitalNode]:
    """Operators with multiply-accumulates inside the graphs of a node."""
    reason = f"inside {outer.op_type} {outer.name!r}, which is decided while the model runs"
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
        for graph in graphs:
            inner = constants | {tensor.name for tensor in graph.initializer}
            inner |= {name for child in graph.node if child.op_type == "Constant" for name in child.output}
            for child in graph.node:
                found = _digital(child, reason, inner)
                if found.macs is None:
                    yield found
                yield from _inner_digital(child, outer, inner)


def _constant_outputs(model: onnx.ModelProto) -> tuple[list[onnx.NodeProto], dict[str, onnx.TensorProto]]:
    """Outputs that are initializers come from an Identity of a copy."""
    outputs = {output.name for output in model.graph.output}
    nodes, copies = [], {}
    for tensor in model.graph.initializer:
        if tensor.name in outputs:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = f"{tensor.name}.value"
            nodes.append(helper.make_node("Identity", [copy.name], [tensor.name], copy.name))
            copies[tensor.name] = copy
    return nodes, copies


def _with_nodes(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], added: Sequence[onnx.TensorProto]
) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(added)
    return changed


def _segment(cut: Cut, model: onnx.ModelProto, tensors: dict[str, onnx.TensorProto], kinds: dict[str, str]) -> bytes:
    declared: dict[str, onnx.ValueInfoProto] = {
        value.name: value for value in (*model.graph.input, *model.graph.output)
    }

    def argument(name: str) -> onnx.ValueInfoProto:
        kind = kinds[name]
        if kind == "other":
            return declared[name]
        element = helper.np_dtype_to_tensor_dtype(np.dtype("O" if kind == "str" else kind))
        return helper.make_tensor_value_info(name, element, None)

    used = sorted({name for node in cut.nodes for name in reads(node)} & set(tensors))
    graph = helper.make_graph(
        cut.nodes,
        cut.name,
        [argument(name) for name in cut.inputs],
        [argument(name) for name in cut.outputs],
        [tensors[name] for name in used],
    )
    segment = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return bytes(segment.SerializeToString(deterministic=True))


def _layer(node: onnx.NodeProto, lowered: dict[str, Lowered]) -> MatrixLayer:
    found = lowered[node.name]
    return MatrixLayer(
        name=node.name,
        op=node.op_type,
        initializer=found.initializer,
        weight=np.ascontiguousarray(found.weight),
        bias=found.bias.astype(np.float64),
        gather=found.gather,
        scatter=found.scatter,
        source=found.source,
        target=found.target,
    )
