"""The ONNX model of a program with other weights: `compiler.like` compiles it onto the same tiles again."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from compiler.frontend import SourceModel, load_model
from compiler.like import check_same_layers, lower_like
from compiler.mapping import Array, MatrixLayer
from compiler.passes.lower import graph_view
from compiler.rules.added_bias import BIAS, added_row, bias_owner, bias_shape, has_room, weight_index
from compiler.rules.inverse import weight_from
from compiler.segments import reads
from hwspec.errors import DataError, ModelError
from runtime.program import TileProgram

Floats = Mapping[str, npt.NDArray[Any]]


def tuned_model(
    program: TileProgram, weights: Floats, biases: Floats, source: SourceModel | None = None
) -> onnx.ModelProto:
    """The model of a program with other weights and biases in its layers.

    It is the program's source, cleaned and with batch normalisation fused as the program has it; its inputs and outputs
    are those of the source (with the input shapes that the program was compiled for). Each layer has its weight and its
    bias to itself. A bias that an operator has no room for is an Add after it, which lowering takes up into the layer.

    Parameters
    ----------
    program
        The program.
    weights
        Matrices of its layers, ``(groups, rows, cols)``; a layer that is left out keeps its own.
    biases
        Biases of its layers, ``(length,)``; a layer that is left out keeps its own.
    source
        The model that the program was compiled from; None takes the one that it carries.

    Returns
    -------
    onnx.ModelProto
        Compiled again, its layers have exactly these weights and biases, rounded to the types of the model's own.

    Raises
    ------
    DataError
        If there is no source, or weights or biases are not those of the layers, or do not fit the model's types.
    ModelError
        If the source is not the model that the program was compiled from.
    """
    source = _source(program, source)
    mapping = lower_like(program, source)
    check_same_layers(program, mapping.lowered, source.name)
    model = mapping.cleaned
    assert model is not None
    weights = _checked("weights", weights, program.weights)
    biases = _checked("biases", biases, {name: program.tensors[f"{name}/bias"] for name in program.layers})
    edit = _Edit(model)
    for layer in mapping.layers:
        edit.put_layer(layer, weights[layer.name], biases[layer.name])
    edit.finish()
    declared = source.proto.graph
    if not program.tables.input_shapes:
        _restore(model.graph.input, declared.input)
    _restore(model.graph.output, declared.output)
    return model


def _source(program: TileProgram, source: SourceModel | None) -> SourceModel:
    if source is None and program.source is None:
        raise DataError("program", "carries no model to put weights into", hint="give it with --model model.onnx")
    found = source or load_model(program.source or b"")
    if found.sha256 != program.tables.model_sha256:
        raise ModelError(
            f"model {found.name!r}",
            "must be the one that the program was compiled from, and its hash differs",
            hint=f"the program was compiled from {program.tables.model_name!r}",
        )
    return found


def _checked(kind: str, given: Floats, own: Floats) -> Floats:
    """What is given, and the program's own where nothing is."""
    for name, values in given.items():
        if name not in own:
            hint = f"the layers are: {', '.join(own)}"[:400]
            raise DataError(kind, "must be those of layers of the program", got=name, hint=hint)
        if np.shape(values) != own[name].shape:
            raise DataError(f"{kind} of layer {name!r}", f"must have shape {own[name].shape}", got=np.shape(values))
    return {**own, **given}


def _restore(values: Iterable[onnx.ValueInfoProto], declared: Iterable[onnx.ValueInfoProto]) -> None:
    """Declare values as they were, but for a tensor without a shape, which ONNX does not allow."""
    known = {value.name: value for value in declared}
    for value in values:
        kind = known[value.name].type
        if not kind.HasField("tensor_type") or kind.tensor_type.HasField("shape"):
            value.CopyFrom(known[value.name])


class _Edit:
    """A cleaned model whose constants are replaced, in place; what several nodes read is left to the others.

    Parameters
    ----------
    model
        The model, changed in place.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        view = graph_view(model)
        self._graph = replace(view, constants=self._tensors, names=view.names | set(_names(model.graph)))
        self._nodes = {node.name: node for node in model.graph.node}
        self._marked = [node for node in model.graph.node if bias_owner(node)]
        self._new: dict[str, onnx.NodeProto] = {}
        self._readers = Counter(output.name for output in model.graph.output)
        for node in model.graph.node:
            self._readers.update(node.input)
            self._readers.update(reads(node) - set(node.input))

    def put_layer(self, layer: MatrixLayer, weight: Array, bias: Array) -> None:
        """Give the operator of a layer a weight, from ``(groups, K, N)``, and a bias, from ``(length,)``."""
        node, own = self._nodes[layer.name], self._tensors[layer.initializer]
        dtype, index = helper.tensor_dtype_to_np_dtype(own.data_type), weight_index(node, self._graph)
        matrices, row = (
            _cast(values, dtype, f"{kind} of layer {layer.name!r}")
            for kind, values in (("weights", weight), ("biases", bias))
        )
        room, added = has_room(node, self._graph), self._added(node)
        self._put(node, index, weight_from(node, index, matrices, tuple(own.dims)), f"{layer.name}.weight")
        self._drop(node, "alpha")
        shape = bias_shape(node, self._graph)
        if room and (row.any() or (len(node.input) > 2 and node.input[2] in self._tensors)):
            self._put(node, 2, row.reshape(shape if node.op_type == "Gemm" else -1), f"{layer.name}.bias")
            self._drop(node, "beta")
        elif not room and added is not None:
            self._put(added, 1, row.reshape(shape), f"{layer.name}.bias")
        elif not room and row.any():
            result, node.output[0] = node.output[0], self._graph.fresh(f"{layer.name}.product")
            added = helper.make_node("Add", [node.output[0], ""], [result], self._graph.fresh(f"{layer.name}.add"))
            added.metadata_props.add(key=BIAS, value=layer.name)
            self._put(added, 1, row.reshape(shape), f"{layer.name}.bias")
            self._new[layer.name] = added

    def _added(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The Add whose constant the layer of a node takes up, if there is one."""
        marked = (add for add in self._marked if bias_owner(add) == node.name)
        return next((add for add in marked if added_row(add, node, self._model, self._graph) is not None), None)

    def finish(self) -> None:
        """Put new nodes in their places, and forget the shapes that constants had."""
        graph, changed = self._model.graph, onnx.GraphProto()
        changed.node.extend(one for node in graph.node for one in (node, self._new.get(node.name)) if one is not None)
        changed.value_info.extend(value for value in graph.value_info if value.name not in self._tensors)
        for field in ("node", "value_info"):
            graph.ClearField(field)
            getattr(graph, field).extend(getattr(changed, field))

    def _put(self, node: onnx.NodeProto, index: int, values: Array, stem: str) -> None:
        """Let an input of a node be a constant, under the name that it has if no one else reads that."""
        node.input.extend([""] * (index + 1 - len(node.input)))
        name = node.input[index]
        if name not in self._tensors or self._readers[name] > 1:
            self._readers[name] -= 1
            name = node.input[index] = self._graph.fresh(stem)
            self._readers[name] = 1
            self._tensors[name] = self._model.graph.initializer.add()
        self._tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(values, order="C"), name))

    @staticmethod
    def _drop(node: onnx.NodeProto, attribute: str) -> None:
        kept = [one for one in node.attribute if one.name != attribute]
        if len(kept) < len(node.attribute):
            copies = onnx.NodeProto()
            copies.attribute.extend(kept)
            del node.attribute[:]
            node.attribute.extend(copies.attribute)


def _cast(values: Array, dtype: np.dtype[Any], subject: str) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.asarray(values).astype(dtype)
    if not np.isfinite(found).all():
        raise DataError(subject, f"must be finite numbers that {dtype} holds")
    return found


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name in a graph and in those inside it."""
    yield from (value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names(inner)
