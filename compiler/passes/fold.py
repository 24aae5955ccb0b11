"""Constant folding: everything that depends on weights and static shapes alone becomes an initializer.

Nodes whose inputs are all constant are run in onnxruntime, the library that defines what the model computes. A node
is only run when the size of its result is known beforehand and bounded.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from compiler.passes.edit import (
    constant,
    nodes,
    replace_by_constant,
    static_shape,
)
from compiler.passes.inline import holds_graphs

MAX_RESULT_ELEMENTS = 2**28
"""No folded tensor has more elements than this."""

MAX_GENERATED_ELEMENTS = 2**24
"""A result beyond this must not be over four times larger than what it is made from (a hostile ConstantOfShape)."""

MAX_FOLDED_BYTES = 2**30
"""What folding may produce in all, on top of four times the model's own constants."""

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_DATA_DEPENDENT = frozenset({"NonZero", "Compress", "Unique"})
_MAX_DATA_DEPENDENT_ELEMENTS = 2**16
_PLAIN = frozenset(
    ir.DataType[name]
    for name in (
        *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
        *("FLOAT16", "FLOAT", "DOUBLE"),
    )
)

Array = NDArray[Any]


def fold_constants(model: ir.Model, budget: int) -> int | None:
    """Run every node whose inputs are all constant in onnxruntime and keep the results as initializers.

    Left alone: random operators, nodes that hold graphs, results that are not numeric tensors of a static shape, and
    results larger than the module's bounds or the budget.

    Parameters
    ----------
    model
        The model, changed in place; shapes must have been inferred.
    budget
        Bytes that folded nodes may still produce.

    Returns
    -------
    int or None
        The bytes produced, or ``None`` if nothing was folded.
    """
    chosen: dict[ir.Node, None] = {}
    produced = 0
    for node in nodes(model.graph):
        size = _foldable_bytes(node, chosen, model.graph)
        if size is not None and produced + size <= budget:
            chosen[node] = None
            produced += size
    results = _evaluate(list(chosen), model)
    for value, array in results.items():
        replace_by_constant(model.graph, value, ir.tensor(array))
    return produced if results else None


def constant_bytes(model: ir.Model) -> int:
    """Bytes of all initializers of numeric type."""
    tensors = (constant(value) for value in model.graph.initializers.values())
    return sum(t.nbytes for t in tensors if t is not None and t.dtype != ir.DataType.STRING)


def _foldable_bytes(node: ir.Node, chosen: dict[ir.Node, None], main: ir.Graph) -> int | None:
    """Bytes that a node's results take if it may be folded, else ``None``."""
    standard = node.domain == "" or (node.domain == "com.microsoft" and node.op_type in _QUANTIZERS)
    if not standard or node.op_type in _RANDOM or node.op_type == "Dropout" or holds_graphs(node):
        return None
    available = 0
    for value in node.inputs:
        if value is None:
            continue
        if constant(value) is None and value.producer() not in chosen:
            return None
        if value.dtype == ir.DataType.STRING:
            return None
        available += math.prod(static_shape(value) or ())
    total = 0
    for output in node.outputs:
        if not output.name:
            continue
        if output.is_graph_output() and node.graph is not main:
            return None  # a branch must produce its outputs itself
        shape, dtype = _result(node, output)
        if dtype is None or not _is_plain(dtype):
            return None
        if shape is None:
            if node.op_type not in _DATA_DEPENDENT or available > _MAX_DATA_DEPENDENT_ELEMENTS:
                return None
            shape = (8 * available,)
        elements = math.prod(shape)
        if elements > MAX_RESULT_ELEMENTS or elements > max(MAX_GENERATED_ELEMENTS, 4 * available):
            return None
        total += elements * dtype.numpy().itemsize
    return total


def _result(node: ir.Node, output: ir.Value) -> tuple[tuple[int, ...] | None, ir.DataType | None]:
    """Shape and type of a result; contrib quantisers have no shape inference, but are like their input."""
    shape, dtype = static_shape(output), output.dtype
    if node.domain == "com.microsoft" and node.inputs[0] is not None and shape is None:
        shape = static_shape(node.inputs[0])
        scale = node.inputs[1]
        if dtype is None and scale is not None and node.op_type == "DequantizeLinear":
            dtype = scale.dtype
    return shape, dtype


def _is_plain(dtype: ir.DataType) -> bool:
    """Whether onnxruntime hands a tensor of this type to numpy unharmed."""
    return dtype in _PLAIN


def _evaluate(chosen: list[ir.Node], model: ir.Model) -> dict[ir.Value, Array]:
    """Results of the chosen nodes that anything else reads. If they do not run together, those that run alone."""
    if not chosen:
        return {}
    try:
        return _run(chosen, model)
    except Exception:  # one node without a kernel for its type must not keep the others from being folded
        results: dict[ir.Value, Array] = {}
        for node in chosen:
            if all(value is None or constant(value) is not None for value in node.inputs):
                try:
                    results |= _run([node], model)
                except Exception:  # onnxruntime has exception types of its own; the node simply stays
                    continue
        return results


def _run(chosen: list[ir.Node], model: ir.Model) -> dict[ir.Value, Array]:
    inside = frozenset(chosen)
    constants = {value: None for node in chosen for value in node.inputs if constant(value) is not None}
    wanted = [
        output
        for node in chosen
        for output in node.outputs
        if output.is_graph_output() or any(user not in inside for user, _ in output.uses())
    ]
    if not wanted:
        return {}
    graph = onnx.GraphProto(name="constants", node=[ir.to_proto(node) for node in chosen])
    graph.initializer.extend(_named(value) for value in constants if value is not None)
    graph.output.extend(_output_info(value) for value in wanted)
    opsets = [onnx.OperatorSetIdProto(domain=d, version=v) for d, v in model.opset_imports.items()]
    proto = onnx.ModelProto(ir_version=model.ir_version, opset_import=opsets, graph=graph)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = session.run(None, {})
    return {value: np.asarray(array) for value, array in zip(wanted, arrays, strict=True)}


def _named(value: ir.Value) -> onnx.TensorProto:
    proto = onnx.TensorProto()
    tensor = constant(value)
    if tensor is None:
        raise ValueError(f"{value.name!r} is not constant")
    ir.serde.serialize_tensor_into(proto, tensor)
    proto.name = value.name or ""
    return proto


def _output_info(value: ir.Value) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=value.name)
    if value.dtype is not None:
        info.type.tensor_type.elem_type = value.dtype.value
    return info


def constant_values(values: Iterable[ir.Value | None]) -> list[ir.TensorProtocol] | None:
    """The tensors of several values if all of them are constant."""
    tensors = [constant(value) for value in values]
    found = [tensor for tensor in tensors if tensor is not None]
    return found if len(found) == len(tensors) else None
