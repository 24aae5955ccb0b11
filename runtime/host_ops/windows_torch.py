"""Sliding windows: the pads that convolution and pooling share, and pooling itself."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from runtime.host_ops.node_torch import HostNode, only_outputs, only_text, refuse_any, translates

AUTO_PADS = ("NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
"""The default of ``auto_pad`` and its values, as `only_text` takes them."""


def spatial(node: HostNode, name: str, rank: int) -> list[int]:
    """An attribute with one integer a spatial axis, one by default."""
    return node.integers(name) or [1] * rank


def pad_spatial(x: Tensor, begins: list[int], ends: list[int], value: float = 0.0) -> Tensor:
    """Pad (or, where negative, crop) the last axes of x."""
    if not any(begins) and not any(ends):
        return x
    widths = [width for pair in zip(reversed(begins), reversed(ends), strict=True) for width in pair]
    return functional.pad(x, widths, value=value)


def window_pads(
    node: HostNode, lengths: list[int], kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]]:
    """Pads before and after each spatial axis, from ``pads`` or ``auto_pad``."""
    rank, automatic = len(lengths), node.text("auto_pad", "NOTSET")
    if not automatic.startswith("SAME"):
        pads = (node.integers("pads") if automatic == "NOTSET" else []) or [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    totals = [
        max((-(-length // stride) - 1) * stride + (size - 1) * dilation + 1 - length, 0)
        for length, size, stride, dilation in zip(lengths, kernel, strides, dilations, strict=True)
    ]
    smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (smaller, larger) if automatic == "SAME_UPPER" else (larger, smaller)


class _Pooling:
    """The geometry of one pooling on one input shape."""

    def __init__(self, node: HostNode, x: Tensor) -> None:
        lengths = list(x.shape[2:])
        self.rank = len(lengths)
        self.kernel = node.integers("kernel_shape")
        self.strides = spatial(node, "strides", self.rank)
        self.dilations = spatial(node, "dilations", self.rank)
        self.begins, self.ends = window_pads(node, lengths, self.kernel, self.strides, self.dilations)
        spans = [(size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]
        roomy = bool(node.integer("ceil_mode", 0)) and not node.text("auto_pad", "NOTSET").startswith("SAME")
        self.last_ends = [
            self._last_end(*axis, roomy)
            for axis in zip(lengths, spans, self.strides, self.begins, self.ends, strict=True)
        ]

    @staticmethod
    def _last_end(length: int, span: int, stride: int, begin: int, end: int, roomy: bool) -> int:
        """What must be padded at the end for the last window to fit; a window that starts in it is left out."""
        room = length + begin + end - span
        count = (-(-room // stride) if roomy else room // stride) + 1
        if roomy and (count - 1) * stride >= length + begin:
            count -= 1
        return (count - 1) * stride + span - length - begin

    def windows(self, padded: Tensor) -> Tensor:
        """``padded (..., *axes)`` to ``(..., *outputs, window)``, without a copy for a single axis."""
        for size, stride, dilation in zip(self.kernel, self.strides, self.dilations, strict=True):
            place = padded.ndim - self.rank  # each step appends an axis
            padded = padded.unfold(place, (size - 1) * dilation + 1, stride)[..., ::dilation]
        return padded.flatten(-self.rank)


_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def _refuse_same(node: HostNode) -> str:
    """Where windows leave gaps, onnxruntime's own SAME is not that of the ONNX specification."""
    if not node.text("auto_pad", "NOTSET").startswith("SAME"):
        return ""
    kernel = node.integers("kernel_shape")
    strides, dilations = spatial(node, "strides", len(kernel)), spatial(node, "dilations", len(kernel))
    gaps = any(stride > size or dilation > 1 for size, stride, dilation in zip(kernel, strides, dilations, strict=True))
    return (
        f"auto_pad={node.text('auto_pad', '')} with dilations or strides beyond the kernel is not translated"
        if gaps
        else ""
    )


_REFUSE_AUTO_PAD = refuse_any(only_text("auto_pad", *AUTO_PADS), _refuse_same)


@translates("MaxPool", refuses=refuse_any(only_outputs(1), _REFUSE_AUTO_PAD))
def max_pool(node: HostNode, x: Tensor) -> Tensor:
    """Padding never wins."""
    shape = _Pooling(node, x)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = pad_spatial(x, shape.begins, shape.last_ends, lowest)
    if not x.is_floating_point():
        return shape.windows(padded).amax(-1)
    return _MAX_POOLS[shape.rank](padded, shape.kernel, shape.strides, 0, shape.dilations)


@translates("AveragePool", refuses=_REFUSE_AUTO_PAD)
def average_pool(node: HostNode, x: Tensor) -> Tensor:
    """Pads count only if ``count_include_pad``; what ``ceil_mode`` adds beyond them never does."""
    shape = _Pooling(node, x)
    total = _window_sums(shape, pad_spatial(x, shape.begins, shape.last_ends))
    ones = x.new_ones((1, 1, *x.shape[2:]))
    if node.integer("count_include_pad", 0):
        ones = pad_spatial(ones, shape.begins, shape.ends, 1.0)
        beyond = [last - end for last, end in zip(shape.last_ends, shape.ends, strict=True)]
        return total / _window_sums(shape, pad_spatial(ones, [0] * shape.rank, beyond))
    return total / _window_sums(shape, pad_spatial(ones, shape.begins, shape.last_ends))


def _window_sums(shape: _Pooling, padded: Tensor) -> Tensor:
    """Sums of windows; torch's own average pooling is the fast way where there is no dilation."""
    if set(shape.dilations) == {1} and shape.rank == 2:
        return functional.avg_pool2d(padded, shape.kernel, shape.strides, divisor_override=1)
    return shape.windows(padded).sum(-1)


@translates("GlobalAveragePool")
def global_average_pool(_: HostNode, x: Tensor) -> Tensor:
    """Over all axes but the first two, which stay as ones."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@translates("GlobalMaxPool")
def global_max_pool(_: HostNode, x: Tensor) -> Tensor:
    """Over all axes but the first two, which stay as ones."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)
