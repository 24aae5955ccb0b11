"""Batch normalisation fused into the operator that feeds it.

In inference ``BatchNormalization(x) = a*x + b`` for each channel, with ``a = scale / sqrt(var + epsilon)`` and
``b = bias - a*mean`` (Ioffe and Szegedy 2015, section 3.1, algorithm 2, line 11). A linear operator takes it up in its
weight and bias. Computed in float64.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.passes.edit import (
    add_initializer,
    attribute_float,
    attribute_int,
    constant,
    nodes,
    remove_node,
    replace_value,
)
from compiler.passes.fold import constant_values

FUSED_BATCHNORM = "xbarc.fused_batchnorm"
"""Key of a node's metadata that names the BatchNormalization it took up."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Affine:
    """``a*x + b`` for each channel: ``factor`` and ``offset (channels,) float64``."""

    factor: Array
    offset: Array


def fuse_batchnorms(root: ir.Graph) -> int:
    """Fuse every BatchNormalization whose input is the only use of a Conv, ConvTranspose, Gemm or MatMul result.

    The operator's weight and bias and the normalisation's parameters must be constant. A weight that other nodes share
    is left to them; the fused operator gets a new one. The fused operator keeps its name and produces the value that
    the normalisation produced. After a MatMul the offset becomes an Add that bears the normalisation's name.

    Returns
    -------
    int
        How many were fused.
    """
    fused = 0
    for node in nodes(root):
        if node.domain == "" and node.op_type == "BatchNormalization":
            producer, affine = _feeding(node), _affine(node)
            if producer is not None and affine is not None:
                fused += _fuse(root, producer, node, affine)
    return fused


def _feeding(norm: ir.Node) -> ir.Node | None:
    """The operator whose result only this normalisation reads."""
    value = norm.inputs[0]
    producer = None if value is None else value.producer()
    if value is None or producer is None or producer.domain != "" or producer.graph is not norm.graph:
        return None
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    return producer


def _affine(norm: ir.Node) -> _Affine | None:
    """What the normalisation computes in inference mode, if its parameters are constant."""
    extra = [output for output in norm.outputs[1:] if output.name]
    if extra or attribute_int(norm, "training_mode", 0) != 0 or attribute_int(norm, "spatial", 1) != 1:
        return None
    tensors = constant_values(norm.inputs[1:5])
    if tensors is None or len(tensors) != 4 or not all(tensor.dtype.is_floating_point() for tensor in tensors):
        return None
    scale, bias, mean, var = (_double(tensor) for tensor in tensors)
    epsilon = attribute_float(norm, "epsilon", 1e-5)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(var + epsilon)
        offset = bias - factor * mean
    if factor.ndim != 1 or not (np.isfinite(factor).all() and np.isfinite(offset).all()):
        return None
    return _Affine(factor, offset)


def _fuse(root: ir.Graph, node: ir.Node, norm: ir.Node, affine: _Affine) -> bool:
    if len(node.inputs) < 2 or constant(node.inputs[1]) is None:
        return False
    weight = _fused_weight(node, affine)
    bias = _fused_bias(node, affine)
    if weight is None or bias is None:
        return False
    new_weight, new_bias = _cast(weight, node.inputs[1]), _cast(bias, node.inputs[1])
    if new_weight is None or new_bias is None:
        return False
    weight_name = _value_name(node.inputs[1])
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias_name = _value_name(node.inputs[2]) if has_bias else f"{weight_name}_bias"
    node.replace_input_with(1, add_initializer(root, f"{weight_name}_fused", new_weight))
    bias_value = add_initializer(root, f"{bias_name}_fused", new_bias)
    node.metadata_props[FUSED_BATCHNORM] = norm.name or ""
    if node.op_type == "MatMul":
        _add_after(norm, node.outputs[0], bias_value)
        return True
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, bias_value)
    if "beta" in node.attributes:
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    result = norm.outputs[0]
    replace_value(result, node.outputs[0])
    remove_node(norm)
    name, result.name = result.name, f"{result.name}_unfused"
    node.outputs[0].name = name
    return True


def _add_after(norm: ir.Node, product: ir.Value, bias: ir.Value) -> None:
    """Put an Add of the offset in the normalisation's place."""
    graph, result = norm.graph, norm.outputs[0]
    if graph is None:
        raise ValueError(f"node {norm.name!r} is in no graph")
    add = ir.node("Add", [product, bias], name=norm.name)
    graph.insert_before(norm, add)
    add.outputs[0].type, add.outputs[0].shape = result.type, result.shape
    product.name = f"{product.name}_unfused"  # no longer the data that the original has under this name
    replace_value(result, add.outputs[0])
    remove_node(norm)
    name, result.name = result.name, f"{result.name}_unfused"
    add.outputs[0].name = name


def _value_name(value: ir.Value | None) -> str:
    return (None if value is None else value.name) or "value"


def _fused_weight(node: ir.Node, affine: _Affine) -> Array | None:
    """The weight times the factor of each output channel, ``None`` if its channels are not the normalisation's."""
    tensor = constant(node.inputs[1])
    if tensor is None:
        return None
    weight = _double(tensor)
    factor = affine.factor
    if node.op_type == "Conv":
        return weight * _on_axis(factor, weight.ndim, 0) if weight.ndim > 2 and weight.shape[0] == len(factor) else None
    if node.op_type == "ConvTranspose":
        group = attribute_int(node, "group", 1)
        if weight.ndim < 3 or group < 1 or weight.shape[0] % group or weight.shape[1] * group != len(factor):
            return None
        grouped = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        by_channel = factor.reshape(group, 1, -1, *[1] * (weight.ndim - 2))
        return np.asarray((grouped * by_channel).reshape(weight.shape), dtype=np.float64)
    if node.op_type == "Gemm":
        axis = 0 if attribute_int(node, "transB", 0) else 1
        return weight * _on_axis(factor, 2, axis) if weight.ndim == 2 and weight.shape[axis] == len(factor) else None
    if node.op_type == "MatMul":
        output = node.outputs[0].shape
        flat = output is not None and len(output) == 2 and weight.ndim == 2 and weight.shape[1] == len(factor)
        return weight * factor if flat else None
    return None


def _fused_bias(node: ir.Node, affine: _Affine) -> Array | None:
    """The bias after normalisation, a vector over output channels; ``None`` if it depends on more than that."""
    if node.op_type == "MatMul" or len(node.inputs) < 3 or node.inputs[2] is None:
        return affine.offset
    tensor = constant(node.inputs[2])
    if (
        tensor is None
        or tensor.size not in (1, len(affine.factor))
        or (len(tensor.shape) == 2 and tensor.shape[0] != 1)
    ):
        return None
    beta = attribute_float(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
    return affine.factor * beta * _double(tensor).reshape(-1) + affine.offset


def _double(tensor: ir.TensorProtocol) -> Array:
    with np.errstate(invalid="ignore"):  # a NaN stays one; what is not finite is not fused
        return np.asarray(tensor.numpy()).astype(np.float64)


def _on_axis(vector: Array, rank: int, axis: int) -> Array:
    return vector.reshape([-1 if index == axis else 1 for index in range(rank)])


def _cast(array: Array, like: ir.Value | None) -> ir.TensorProtocol | None:
    """The array in the type of a constant, ``None`` if it does not fit there."""
    tensor = constant(like)
    if tensor is None:
        return None
    with np.errstate(all="ignore"):
        cast = array.astype(tensor.dtype.numpy())
    return ir.tensor(cast, dtype=tensor.dtype) if np.isfinite(cast.astype(np.float64)).all() else None
