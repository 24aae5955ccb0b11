"""Shape and type inference by onnx, on a model stripped of its large tensors."""

from collections.abc import Iterator, Mapping

import onnx
import onnx.shape_inference
import onnx_ir as ir

from compiler.passes.edit import CONTROL_FLOW, constant, graphs, nodes

_MAX_DATA_BYTES = 1024
"""Constants up to this size are shown to inference with their data: shapes, axes, pads."""

_MAX_REPEATS = 16


def infer_shapes(model: ir.Model) -> None:
    """Infer shapes and types where possible, in place.

    A symbolic dimension in the result is always one of the graph's inputs; any other that is not static is unknown.
    Names of values must be unique across the graph and its control-flow bodies. Inference is advisory: a model that it
    cannot digest keeps the shapes that it has.
    """
    for _ in range(_MAX_REPEATS):
        if not _infer_once(model) or not _carry_symbols(model):
            return


def _infer_once(model: ir.Model) -> bool:
    # Without onnx's own data propagation: it builds every vector of a known length in memory, whatever that length is.
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton(model), strict_mode=False, data_prop=False)
    except Exception:  # onnx raises its own types and RuntimeError; onnxruntime has the last word on a model
        return False
    symbols = input_symbols(model.graph)
    found = {info.name: info.type for graph in _proto_graphs(inferred.graph) for info in _value_infos(graph)}
    for graph in graphs(model.graph):
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs), *graph.outputs):
            if value.name in found and not value.is_initializer() and value not in model.graph.inputs:
                _adopt(value, found[value.name], symbols)
    return True


def input_symbols(root: ir.Graph) -> frozenset[str]:
    """Names of the symbolic dimensions of a graph's inputs."""
    dims = [dim for value in root.inputs if value.shape is not None for dim in value.shape.dims]
    return frozenset(dim.value for dim in dims if isinstance(dim, ir.SymbolicDim) and dim.value is not None)


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """The model with large initializers as inputs, and small ones repeated in every body that captures them.

    Inference looks up the data of a constant only in the graph that uses it.
    """
    graph = onnx.GraphProto(name="skeleton")
    small: dict[str, onnx.TensorProto] = {}
    for value in model.graph.inputs:
        graph.input.append(ir.to_proto(value))
    for name, value in model.graph.initializers.items():
        tensor = constant(value)
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes > _MAX_DATA_BYTES:
            graph.input.append(ir.to_proto(value))
        else:
            small[name] = onnx.TensorProto()
            ir.serde.serialize_tensor_into(small[name], tensor)
            small[name].name = name
    graph.initializer.extend(small.values())
    for node in model.graph:
        graph.node.append(ir.to_proto(node))
        named = [output for output in node.outputs if output.name and output.type and not output.is_graph_output()]
        graph.value_info.extend(ir.to_proto(output) for output in named)
    graph.output.extend(ir.to_proto(value) for value in model.graph.outputs)
    for body in _proto_graphs(graph):
        if body is not graph:
            _repeat_captured(body, small)
    opsets = [onnx.OperatorSetIdProto(domain=d, version=v) for d, v in model.opset_imports.items()]
    return onnx.ModelProto(ir_version=model.ir_version, opset_import=opsets, graph=graph)


def _repeat_captured(body: onnx.GraphProto, small: Mapping[str, onnx.TensorProto]) -> None:
    own = {tensor.name for tensor in body.initializer}
    captured = dict.fromkeys(name for node in body.node for name in node.input if name in small and name not in own)
    body.initializer.extend(small[name] for name in captured)


def _proto_graphs(root: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield root
    for node in root.node:
        if node.domain == "" and node.op_type in CONTROL_FLOW:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from _proto_graphs(attribute.g)


def _value_infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _adopt(value: ir.Value, inferred: onnx.TypeProto, symbols: frozenset[str]) -> None:
    """Give a value the inferred type and shape, where something was inferred."""
    if not inferred.HasField("tensor_type"):
        return
    tensor = inferred.tensor_type
    if tensor.elem_type and (value.type is None or isinstance(value.type, ir.TensorType)):
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if tensor.HasField("shape"):
        named = [d.dim_param if d.dim_param in symbols else None for d in tensor.shape.dim]
        static = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        value.shape = ir.Shape([n if s is None else s for n, s in zip(named, static, strict=True)])


def _carry_symbols(model: ir.Model) -> bool:
    """Carry symbolic dimensions through Pad and Resize along axes that those leave alone, where onnx gives up."""
    changed = False
    for node in nodes(model.graph):
        if node.domain != "" or not node.inputs or node.inputs[0] is None or not node.outputs:
            continue
        source, result = node.inputs[0].shape, node.outputs[0].shape
        kept = _untouched_axes(node)
        if source is None or result is None or len(source) != len(result) or len(kept) != len(source):
            continue
        for axis, keeps in enumerate(kept):
            dim = result[axis]
            if keeps and isinstance(dim, ir.SymbolicDim) and dim.value is None and source[axis] != dim:
                result[axis] = source[axis]
                changed = True
    return changed


def _untouched_axes(node: ir.Node) -> list[bool]:
    """For each axis of a Pad, Upsample or Resize whether its size stays; empty where that is not known."""
    if node.op_type == "Pad":
        pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else _numbers(node, 1)
        half = len(pads) // 2
        plain = len(node.inputs) < 4 or node.inputs[3] is None
        return [before == 0 == after for before, after in zip(pads[:half], pads[half:], strict=True)] if plain else []
    if node.op_type in ("Resize", "Upsample"):
        mode = node.attributes.get("coordinate_transformation_mode")
        if "axes" in node.attributes or (mode is not None and mode.as_string() == "tf_crop_and_resize"):
            return []
        return [scale == 1 for scale in _numbers(node, 2 if len(node.inputs) > 2 else 1)]
    return []


def _numbers(node: ir.Node, index: int) -> list[float]:
    tensor = constant(node.inputs[index]) if index < len(node.inputs) else None
    return [] if tensor is None else [float(number) for number in tensor.numpy().reshape(-1)]
