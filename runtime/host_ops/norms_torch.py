"""Normalisations, and the quantisers that stand between digital layers."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from runtime.host_ops.node_torch import (
    HostNode,
    go_straight,
    only_integer,
    only_outputs,
    refuse_any,
    straightened,
    translates,
)


def _by_channel(values: Tensor, x: Tensor, axis: int = 1) -> Tensor:
    """One value a channel, shaped to broadcast over x; a scalar stays one."""
    return values.reshape([-1 if place == axis % x.ndim else 1 for place in range(x.ndim)]) if values.ndim else values


def _standardised(x: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """x with mean 0 and variance 1 over the axes, the mean, and the inverse of the deviation."""
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    return centred * inverse, mean, inverse


@translates(
    "BatchNormalization",
    refuses=refuse_any(only_outputs(1), only_integer("training_mode", 0, 0), only_integer("spatial", 1, 1)),
)
def batch_normalisation(
    node: HostNode, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Inference only: the statistics are given."""
    factor = scale * torch.rsqrt(variance + node.real("epsilon", 1e-5))
    return (x - _by_channel(mean, x)) * _by_channel(factor, x) + _by_channel(bias, x)


@translates("InstanceNormalization")
def instance_normalisation(node: HostNode, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Over the spatial axes of each sample and channel."""
    y, _, _ = _standardised(x, tuple(range(2, x.ndim)), node.real("epsilon", 1e-5))
    return y * _by_channel(scale, x) + _by_channel(bias, x)


@translates("GroupNormalization", refuses=only_integer("stash_type", 1, 1))
def group_normalisation(node: HostNode, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scale and bias have one value a group in opset 18 to 20, one a channel since 21."""
    groups = node.integer("num_groups", 1)
    grouped = x.reshape(x.shape[0], groups, -1)
    y = _standardised(grouped, (2,), node.real("epsilon", 1e-5))[0]
    if node.opset < 21:
        return (y * scale[:, None] + bias[:, None]).reshape(x.shape)
    return y.reshape(x.shape) * _by_channel(scale, x) + _by_channel(bias, x)


@translates("LayerNormalization", refuses=only_integer("stash_type", 1, 1))
def layer_normalisation(
    node: HostNode, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Over all axes from ``axis`` on; mean and inverse deviation are optional outputs."""
    axes = tuple(range(node.integer("axis", -1) % x.ndim, x.ndim))
    y, mean, inverse = _standardised(x, axes, node.real("epsilon", 1e-5))
    y = y * scale
    return (y if bias is None else y + bias), mean, inverse


@translates("Scaler", domain="ai.onnx.ml")
def scaler(node: HostNode, x: Tensor) -> Tensor:
    """``(x - offset) scale`` with one value for all or one a feature; float32, also of integers."""
    offset = torch.tensor(node.reals("offset"), dtype=torch.float32, device=x.device)
    scale = torch.tensor(node.reals("scale"), dtype=torch.float32, device=x.device)
    return (x.float() - offset) * scale


@translates("LpNormalization")
def lp_normalisation(node: HostNode, x: Tensor) -> Tensor:
    """Divided by the 1- or 2-norm along one axis; a row of zeros stays zero."""
    norm = torch.linalg.vector_norm(x, node.integer("p", 2), node.integer("axis", -1), keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def _refuse_even(node: HostNode) -> str:
    return "" if node.integer("size", 1) % 2 else "an even window is not translated"


@translates("LRN", refuses=_refuse_even)
def local_response_normalisation(node: HostNode, x: Tensor) -> Tensor:
    """Over a window of channels centred on each; onnxruntime refuses an even one."""
    size = node.integer("size", 1)
    rows = functional.pad((x * x).flatten(2), (0, 0, (size - 1) // 2, size // 2))
    total = rows.unfold(1, size, 1).sum(-1).reshape(x.shape)
    return x / (node.real("bias", 1.0) + node.real("alpha", 1e-4) / size * total) ** node.real("beta", 0.75)


_QUANTISED = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
_UINT8, _INT8 = 2, 3  # onnx.TensorProto


def _refuse_quantiser(node: HostNode) -> str:
    if node.integer("block_size", 0):
        return "blocked quantisation is not translated"
    if node.op == "QuantizeLinear" and node.integer("output_dtype", 0) not in (0, _UINT8, _INT8):
        return "quantisation to other types than uint8 and int8 is not translated"
    if node.op == "DequantizeLinear" and node.integer("output_dtype", 0) not in (0, 1):
        return "dequantisation to other types than float is not translated"
    zero = node.constants.get(2)
    if node.op == "QuantizeLinear" and zero is not None and zero.dtype not in _QUANTISED:
        return "quantisation to other types than uint8 and int8 is not translated"
    return ""


class _StraightRound(torch.autograd.Function):
    """Rounds half to even; the gradient goes straight through."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        """The whole numbers."""
        return torch.round(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        """That of the whole numbers."""
        return gradients[0]


@translates("QuantizeLinear", refuses=refuse_any(_refuse_quantiser, only_integer("precision", 0, 0, 1)))
def quantise(node: HostNode, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Rounds half to even and saturates. Scale and zero point per tensor or per ``axis``.

    To a node that dequantises what it gives, the gradient goes straight through the rounding, and stops where it
    saturates (Bengio et al., arXiv:1308.3432).
    """
    declared = torch.int8 if node.integer("output_dtype", _UINT8) == _INT8 else torch.uint8
    target = declared if zero is None else zero.dtype
    if target not in _QUANTISED:
        raise node.error(f"quantises to {target}, where only uint8 and int8 are translated")
    axis = node.integer("axis", 1)
    steps: Tensor = _StraightRound.apply(x / _scale(scale, x, axis))  # type: ignore[no-untyped-call]
    offset = 0 if zero is None else _scale(zero, x, axis).to(x.dtype)
    real = torch.clamp(steps + offset, *_QUANTISED[target])
    return go_straight(real.detach().to(target), real)


@translates("DequantizeLinear", refuses=_refuse_quantiser)
def dequantise(node: HostNode, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """``(x - zero) scale``, per tensor or per ``axis``."""
    axis = node.integer("axis", 1)
    real = straightened(x)
    if real is not None:
        return (real if zero is None else real - _scale(zero, x, axis).to(real.dtype)) * _scale(scale, x, axis)
    steps = x if zero is None else x.int() - _scale(zero, x, axis).int()
    return steps.to(scale.dtype) * _scale(scale, x, axis)


def _scale(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Per tensor where there is a single value, else one a place of the axis."""
    return values.reshape(()) if values.numel() == 1 else _by_channel(values, x, axis)
