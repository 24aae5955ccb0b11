"""From a layer's matrices back to the weight of the operator that they came from: each rule the other way round."""

from collections.abc import Callable

import numpy as np
import onnx

from compiler.rules.lowered import Array, attribute


def weight_from(node: onnx.NodeProto, index: int, matrices: Array, shape: tuple[int, ...]) -> Array:
    """The weight of an operator, its input `index`, of this shape; matrices ``(groups, K, N)``.

    Of a Gemm it is the weight that goes with ``alpha`` 1.
    """
    return _INVERSES[node.op_type](node, index, matrices, shape)


def _conv(node: onnx.NodeProto, index: int, matrices: Array, shape: tuple[int, ...]) -> Array:
    del node, index
    images = matrices.reshape(len(matrices), *shape[2:], shape[1], -1)
    return np.moveaxis(images, (-1, -2), (1, 2)).reshape(shape)


def _conv_transpose(node: onnx.NodeProto, index: int, matrices: Array, shape: tuple[int, ...]) -> Array:
    del node, index
    images = matrices.reshape(*matrices.shape[:2], *shape[2:], shape[1])
    return np.moveaxis(images, -1, 2).reshape(shape)


def _gemm(node: onnx.NodeProto, index: int, matrices: Array, shape: tuple[int, ...]) -> Array:
    transposed = bool(attribute(node, "transB" if index else "transA", 0))
    matrix: Array = matrices[0].T if transposed == (index == 1) else matrices[0]
    return matrix.reshape(shape)


def _matmul(node: onnx.NodeProto, index: int, matrices: Array, shape: tuple[int, ...]) -> Array:
    del node
    return (matrices if index else np.swapaxes(matrices, -1, -2)).reshape(shape)


_INVERSES: dict[str, Callable[[onnx.NodeProto, int, Array, tuple[int, ...]], Array]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
