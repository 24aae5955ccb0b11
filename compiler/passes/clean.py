"""The first pass: from a model as exported to the plain graph that the other passes expect."""

from collections.abc import Mapping as Table
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx
import onnx_ir as ir

from compiler.mapping import Mapping
from compiler.passes.batchnorm import fuse_batchnorms
from compiler.passes.edit import (
    add_initializer,
    attribute_int,
    constant,
    graphs,
    nodes,
    remove_dead,
    remove_node,
    replace_value,
)
from compiler.passes.fold import MAX_FOLDED_BYTES, constant_bytes, fold_constants
from compiler.passes.infer import infer_shapes, skeleton
from compiler.passes.inline import inline_constant_ifs, inline_functions
from compiler.passes.input_shapes import fix_input_shapes
from compiler.passes.shape_arithmetic import fold_shapes
from hwspec.errors import ModelError, XbarcError

MIN_OPSET = 7
"""Older models are converted upwards to ``CONVERTED_OPSET``."""

CONVERTED_OPSET = 8
_MIN_IR_VERSION = 8
_UNBOUNDED = 2**31 - 1
"""No dimension is larger, so a slice that ends here or later ends with the dimension."""

_MAX_ROUNDS = 100
"""Rounds of folding; each nested If with a constant condition takes one."""


@dataclass(frozen=True)
class Clean:
    """Simplify a model without changing its results.

    The cleaned model has the inputs and outputs of the original, in order (less those inputs that had an initializer as
    their default, which are frozen to it); no model-local functions; no Constant nodes in the main graph; no If with a
    known condition; every computation on weights alone folded into initializers; and a unique name on every node and
    value. A value of the main graph that bears a name of the original has the same data in both.

    Parameters
    ----------
    input_shapes
        Shape of any of the graph's inputs, by name. An open leading dimension stays symbolic (the batch), and so does
        every dimension that carries its name; all others become static.
    fuse_batchnorm
        Whether to fuse batch normalisation into the operator that feeds it. It may then be off by rounding.
    """

    input_shapes: Table[str, tuple[int, ...]] | None = None
    fuse_batchnorm: bool = True
    name: ClassVar[str] = "clean"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `cleaned`."""
        cleaned = ir.to_proto(self.clean(mapping.source.proto))
        restore_map_types(cleaned, mapping.source.proto)
        return replace(mapping, cleaned=cleaned)

    def clean(self, proto: onnx.ModelProto) -> ir.Model:
        """Clean a model.

        Parameters
        ----------
        proto
            The model as loaded; it is not modified.

        Returns
        -------
        onnx_ir.Model
            The cleaned model, with the shapes that could be inferred. Its tensors may refer to those of ``proto``.

        Raises
        ------
        DataError
            A given input shape disagrees with the model.
        ModelError
            The model cannot be cleaned: its opset cannot be converted, or it is malformed.
        """
        try:
            return self._clean(proto)
        except XbarcError:
            raise
        except Exception as error:  # the libraries raise whatever they please on malformed models
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                "the model", f"could not be cleaned: {reason}", hint="is it a valid ONNX model?"
            ) from error

    def _clean(self, proto: onnx.ModelProto) -> ir.Model:
        refuse_sparse(proto)
        current = without_map_types(convert_opset(proto))
        model = inline_functions(current)
        root = model.graph
        restore_input_shapes(model, current)
        model.ir_version = max(model.ir_version, _MIN_IR_VERSION)
        protect_tensors(model)
        freeze_inputs(root)
        assign_names(root)
        lift_initializers(root)
        lift_constants(root)
        fix_input_shapes(model, self.input_shapes)
        simplify(model)
        if self.fuse_batchnorm and fuse_batchnorms(root):
            remove_dead(root)
        infer_shapes(model)
        assign_names(root)
        used = {node.domain for node in root.all_nodes()} | {""}
        for domain in [domain for domain in model.opset_imports if domain not in used]:
            del model.opset_imports[domain]
        skeleton(model)  # a model that cannot be written out again fails here, where it becomes a ModelError
        return model


def holds_map(kind: onnx.TypeProto) -> bool:
    """Whether a type is a map, or a sequence or option of one: what scikit-learn's classifiers give out."""
    which: str | None = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return holds_map(getattr(kind, which).elem_type)
    return which == "map_type"


def without_map_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or a copy whose values of map types are left untyped: the graph library knows no maps."""
    graph = proto.graph
    if not any(holds_map(value.type) for value in (*graph.output, *graph.value_info)):
        return proto
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    for value in (*plain.graph.output, *plain.graph.value_info):
        if holds_map(value.type):
            value.ClearField("type")
    return plain


def restore_map_types(cleaned: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    """Give the outputs of a cleaned model the map types that they had."""
    types = {value.name: value.type for value in proto.graph.output if holds_map(value.type)}
    for value in cleaned.graph.output:
        if value.name in types:
            value.type.CopyFrom(types[value.name])


def convert_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or a copy of it at ``CONVERTED_OPSET`` if its opset is below ``MIN_OPSET``."""
    versions = [imported.version for imported in proto.opset_import if imported.domain in ("", "ai.onnx")]
    version = max(versions, default=1 if not proto.opset_import else MIN_OPSET)
    if version >= MIN_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, CONVERTED_OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            "the model",
            f"has ONNX opset {version} and could not be converted to opset {CONVERTED_OPSET}: {reason}",
            hint=f"export it again with opset {MIN_OPSET} or higher",
        ) from error


def refuse_sparse(proto: onnx.ModelProto) -> None:
    """Refuse sparse initializers, which onnx_ir would drop in silence."""
    pending = [proto.graph]
    while pending:
        graph = pending.pop()
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise ModelError(f"sparse initializer {name!r}", "is not supported", hint="store it as a dense tensor")
        for attribute in (a for node in graph.node for a in node.attribute):
            pending += [attribute.g] if attribute.HasField("g") else []
            pending += attribute.graphs


def restore_input_shapes(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Give the inputs their declared shapes: of an input that is also an output, onnx_ir keeps those of the output."""
    for value, info in zip(model.graph.inputs, proto.graph.input, strict=True):
        declared = ir.serde.deserialize_value_info_proto(info, None)
        value.type, value.shape = declared.type, declared.shape


def protect_tensors(model: ir.Model) -> None:
    """Put initializers behind tensors with a name of their own, so that renaming them leaves the source untouched."""
    for graph in graphs(model.graph):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _view(value.const_value, value.name)
                value.type = ir.TensorType(value.const_value.dtype)
                value.shape = ir.Shape([int(dim) for dim in value.const_value.shape.numpy()])


def _view(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    """A tensor with the same data that can be renamed."""
    dims = ir.Shape([int(dim) for dim in tensor.shape.numpy()])
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(list(tensor.numpy().reshape(-1)), shape=dims, name=name)
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=dims, name=name)


def freeze_inputs(root: ir.Graph) -> None:
    """Make constants of the inputs that have an initializer: a crossbar holds its weights, no caller overrides them."""
    kept = [value for value in root.inputs if not value.is_initializer()]
    root.inputs.clear()
    root.inputs.extend(kept)


def lift_initializers(root: ir.Graph) -> None:
    """Move the initializers of branches and loop bodies to the main graph; names are unique by now."""
    for graph in graphs(root):
        if graph is root:
            continue
        for name, value in list(graph.initializers.items()):
            if not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
                root.register_initializer(value)


def lift_constants(root: ir.Graph) -> None:
    """Turn Constant nodes into initializers, except those that are the output of a branch or a loop body."""
    for node in nodes(root):
        if node.op_type != "Constant" or node.domain != "" or len(node.attributes) != 1:
            continue
        output = node.outputs[0]
        tensor = _constant_tensor(next(iter(node.attributes.values())))
        if tensor is None or (output.is_graph_output() and node.graph is not root):
            continue
        name, output.name = output.name or "constant", f"{output.name}_lifted"
        replace_value(output, add_initializer(root, name, tensor))
        remove_node(node)


def _constant_tensor(attribute: ir.Attr) -> ir.TensorProtocol | None:
    """The tensor that a Constant node's attribute holds; sparse ones stay."""
    if attribute.is_ref():
        return None
    if attribute.name == "value":
        return _view(attribute.as_tensor(), None)
    if attribute.name == "value_float":
        return ir.tensor(attribute.as_float(), dtype=ir.DataType.FLOAT)
    if attribute.name == "value_floats":
        return ir.tensor(list(attribute.as_floats()), dtype=ir.DataType.FLOAT)
    if attribute.name == "value_int":
        return ir.tensor(attribute.as_int(), dtype=ir.DataType.INT64)
    if attribute.name == "value_ints":
        return ir.tensor(list(attribute.as_ints()), dtype=ir.DataType.INT64)
    if attribute.name == "value_string":
        return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape([]))
    if attribute.name == "value_strings":
        strings = [text.encode() for text in attribute.as_strings()]
        return ir.StringTensor(strings, shape=ir.Shape([len(strings)]))
    return None


def simplify(model: ir.Model) -> None:
    """Fold, inline and drop until nothing is left to do."""
    root = model.graph
    budget = MAX_FOLDED_BYTES + 4 * constant_bytes(model)
    for _ in range(_MAX_ROUNDS):
        changed = drop_passthroughs(root)
        remove_dead(root)
        infer_shapes(model)
        changed |= fold_shapes(model)
        folded = fold_constants(model, budget)
        if folded is not None:
            budget -= folded
            changed = True
        remove_dead(root)
        changed |= inline_constant_ifs(root)
        if not changed:
            return


def drop_passthroughs(root: ir.Graph) -> bool:
    """Remove Identity, Slices of everything, and Dropout outside training, unless a graph output depends on them alone.

    Returns
    -------
    bool
        Whether any was removed.
    """
    changed = False
    for node in nodes(root):
        if node.domain != "" or not _passes_through(node):
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or node.graph is None:
            continue
        if result.is_graph_output():
            producer = source.producer()
            if producer is None or producer.graph is not node.graph or source.is_graph_output():
                continue
            replace_value(result, source)
            name, result.name = result.name, f"{result.name}_dropped"
            source.name = name
        else:
            replace_value(result, source)
        remove_node(node)
        changed = True
    return changed


def _passes_through(node: ir.Node) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type == "Slice":
        return _takes_everything(node)
    if node.op_type != "Dropout":
        return False
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return attribute_int(node, "is_test", 1) == 1
    training = constant(node.inputs[2])
    return training is not None and not training.numpy().any()


def _takes_everything(node: ir.Node) -> bool:
    """Whether a Slice goes from 0 to the largest integer in steps of 1, as exporters write ``x[:]``."""
    bounds = [constant(value) for value in node.inputs[1:3]]
    steps = constant(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None or (steps is None and len(node.inputs) > 4):
        return False
    whole = not bounds[0].numpy().any() and bool((bounds[1].numpy() >= _UNBOUNDED).all())
    return whole and (steps is None or bool((steps.numpy() == 1).all()))


def assign_names(root: ir.Graph) -> None:
    """Give every node and value a unique name, keeping those that there are.

    A node without a name is called ``<operator>_<position in its graph>``. The main graph comes first, so that its
    names stay; within a branch or loop body a name that is taken gets a number.
    """
    node_names: set[str] = set()
    value_names: set[str] = set()
    taken = {node.name for node in nodes(root) if node.name}
    for graph in graphs(root):
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)):
            if not value.name and value.producer() is not None and not value.uses() and not value.is_graph_output():
                continue  # an optional output that is left out
            name = _unique(value.name or "value", value_names)
            if name != value.name:
                value.name = name
        for index, node in enumerate(graph):
            wanted = node.name or _unique(f"{node.op_type}_{index}", taken)
            node.name = _unique(wanted, node_names)


def _unique(name: str, taken: set[str]) -> str:
    free, attempt = name, 0
    while free in taken:
        attempt += 1
        free = f"{name}_{attempt}"
    taken.add(free)
    return free
