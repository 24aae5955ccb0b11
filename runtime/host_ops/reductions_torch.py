"""Operators that reduce, search or accumulate along axes, and the softmax family."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from runtime.host_ops.node_torch import HostNode, translates

Axes = tuple[int, ...]


def _sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Integers are divided towards zero."""
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return torch.div(_sum(x, axes, keep), math.prod(x.shape[axis] for axis in axes), rounding_mode="trunc")


def _product(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _norm1(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _norm2(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The gradient at zero is zero, where that of ``sqrt(sum(x * x))`` is not a number."""
    norm: Tensor = torch.linalg.vector_norm(x if x.is_floating_point() else x.double(), dim=axes, keepdim=keep)
    return norm.to(x.dtype)


_REDUCTIONS: dict[str, Callable[[Tensor, Axes, bool], Tensor]] = {
    "ReduceL1": _norm1,
    "ReduceL2": _norm2,
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": _mean,
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
}


def _refuse_reduction(node: HostNode) -> str:
    """Without axes and told to do nothing, some still work on each element; versions differ in which."""
    if node.integer("noop_with_empty_axes", 0) and node.op != "ReduceSum":
        return "noop_with_empty_axes=1 is not translated"
    return ""


@translates(*_REDUCTIONS, host=(1,), refuses=_refuse_reduction)
def reduction(node: HostNode, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Axes are an attribute before opset 18 (ReduceSum: 13), an input since; none means all."""
    chosen = axes if axes is not None else node.integers("axes")
    if not chosen and node.integer("noop_with_empty_axes", 0):
        return x
    places = tuple(axis % max(x.ndim, 1) for axis in chosen) or tuple(range(x.ndim))
    keep = bool(node.integer("keepdims", 1))
    if not x.is_floating_point() and node.op.startswith("ReduceLog"):
        raise node.error(f"takes the logarithm of {x.dtype}, which is translated for floats only")
    return _REDUCTIONS[node.op](x, places, keep)


@translates("ArgMax", "ArgMin")
def arg_extremum(node: HostNode, x: Tensor) -> Tensor:
    """The first of equals, or the last if ``select_last_index``."""
    axis, keep = node.integer("axis", 0), bool(node.integer("keepdims", 1))
    search = torch.argmax if node.op == "ArgMax" else torch.argmin
    if node.integer("select_last_index", 0):
        return x.shape[axis] - 1 - search(x.flip(axis), dim=axis, keepdim=keep)
    return search(x, dim=axis, keepdim=keep)


@translates("TopK", host=(1,))
def top_k(node: HostNode, x: Tensor, k: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Sorted always; of equals the lower index comes first. ``k`` is an attribute before opset 10."""
    axis, count = node.integer("axis", -1), k[0] if k is not None else node.integer("k", 1)
    values, indices = torch.sort(x, dim=axis, descending=bool(node.integer("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


@translates("CumSum", host=(1,))
def cumulative_sum(node: HostNode, x: Tensor, axes: list[int]) -> Tensor:
    """``exclusive`` leaves the element itself out; ``reverse`` sums from the end."""
    along = axes[0]
    flipped = x.flip(along) if node.integer("reverse", 0) else x
    total = torch.cumsum(flipped, along, dtype=x.dtype)
    if node.integer("exclusive", 0):
        total = torch.cat(
            (torch.zeros_like(total.narrow(along, 0, 1)), total.narrow(along, 0, x.shape[along] - 1)), along
        )
    return total.flip(along) if node.integer("reverse", 0) else total


def _along_axis(node: HostNode, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Since opset 13 along one axis; before, over all axes from ``axis`` (1) on, taken as one."""
    if node.opset >= 13:
        return function(x, node.integer("axis", -1))
    axis = node.integer("axis", 1)
    axis += x.ndim if axis < 0 else 0
    matrix = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    return function(matrix, 1).reshape(x.shape)


@translates("Softmax")
def softmax(node: HostNode, x: Tensor) -> Tensor:
    """Along the last axis; before opset 13 over all axes from the second on."""
    return _along_axis(node, x, torch.softmax)


@translates("LogSoftmax")
def log_softmax(node: HostNode, x: Tensor) -> Tensor:
    """Along the last axis; before opset 13 over all axes from the second on."""
    return _along_axis(node, x, torch.log_softmax)


@translates("Hardmax")
def hardmax(node: HostNode, x: Tensor) -> Tensor:
    """One at the first maximum; before opset 13 over all axes from the second on."""

    def first_maximum(values: Tensor, axis: int) -> Tensor:
        return torch.zeros_like(values).scatter(axis, values.argmax(axis, keepdim=True), 1.0)

    return _along_axis(node, x, first_maximum)
