"""Operators that multiply and accumulate, where they stay digital: matrix products and convolutions."""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.host_ops.node_torch import HostNode, only_text, translates
from runtime.host_ops.windows_torch import AUTO_PADS, pad_spatial, spatial, window_pads


@translates("MatMul")
def matmul(_: HostNode, a: Tensor, b: Tensor) -> Tensor:
    """As numpy's: leading axes broadcast, vectors lose their extra axis."""
    return torch.matmul(a, b)


@translates("Gemm")
def gemm(node: HostNode, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """``alpha A' B' + beta C``; C broadcasts to the product."""
    left = a.T if node.integer("transA", 0) else a
    right = b.T if node.integer("transB", 0) else b
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    product = left @ right if alpha == 1.0 else alpha * (left @ right)
    if c is None:
        return product
    return product + (c if beta == 1.0 else beta * c)


@translates("Einsum")
def einsum(node: HostNode, *inputs: Tensor) -> Tensor:
    """Spaces in the equation mean nothing."""
    return torch.einsum(node.text("equation", "").replace(" ", ""), *inputs)


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@translates("Conv", refuses=only_text("auto_pad", *AUTO_PADS))
def convolution(node: HostNode, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Pads may differ between the two ends, and may follow from ``auto_pad``."""
    rank, kernel = x.ndim - 2, list(weight.shape[2:])
    strides, dilations = spatial(node, "strides", rank), spatial(node, "dilations", rank)
    begins, ends = window_pads(node, list(x.shape[2:]), kernel, strides, dilations)
    if begins != ends:
        x, begins = pad_spatial(x, begins, ends), [0] * rank
    return _CONVOLUTIONS[rank](x, weight, bias, strides, begins, dilations, node.integer("group", 1))


@translates("ConvTranspose", refuses=only_text("auto_pad", *AUTO_PADS))
def transposed_convolution(node: HostNode, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The whole fold is computed and then cropped, so pads and ``output_padding`` are free of torch's limits."""
    rank = x.ndim - 2
    strides, dilations = spatial(node, "strides", rank), spatial(node, "dilations", rank)
    full = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, node.integer("group", 1), dilations)
    extra = node.integers("output_padding") or [0] * rank
    lengths = [length + more for length, more in zip(full.shape[2:], extra, strict=True)]
    begins, ends = _fold_crops(node, list(x.shape[2:]), lengths, strides)
    y = pad_spatial(full, [-begin for begin in begins], [more - end for more, end in zip(extra, ends, strict=True)])
    return y if bias is None else y + bias.reshape([-1] + [1] * rank)


def _fold_crops(
    node: HostNode, inputs: list[int], lengths: list[int], strides: list[int]
) -> tuple[list[int], list[int]]:
    """How much is cut off the full fold at both ends.

    ``output_shape`` decides where it is given, adding zeros at the end where the fold is shorter; ``auto_pad`` alone
    adds none, as in onnxruntime.
    """
    rank, automatic = len(lengths), node.text("auto_pad", "NOTSET")
    wanted = node.integers("output_shape")[-rank:]
    if not wanted and not automatic.startswith("SAME"):
        pads = (node.integers("pads") if automatic == "NOTSET" else []) or [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    missing = [max(goal - length, 0) for length, goal in zip(lengths, wanted, strict=True)] if wanted else [0] * rank
    if not wanted:
        wanted = [length * stride for length, stride in zip(inputs, strides, strict=True)]
    totals = [max(length - goal, 0) for length, goal in zip(lengths, wanted, strict=True)]
    smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
    begins, ends = (smaller, larger) if automatic == "SAME_UPPER" else (larger, smaller)
    return begins, [end - more for end, more in zip(ends, missing, strict=True)]
