"""Operators that move data without computing on it: shapes, joins, cuts, padding, constants."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from runtime.host_ops.node_torch import HostNode, only_text, refuse_any, translates


@translates("Shape")
def shape(node: HostNode, x: Tensor) -> Tensor:
    """Kept on the CPU, where shapes are read. ``start`` and ``end`` are python's slice."""
    end = node.integer("end", x.ndim)
    return torch.tensor(list(x.shape)[node.integer("start", 0) : end], dtype=torch.int64)


@translates("Size")
def size(_: HostNode, x: Tensor) -> Tensor:
    """The number of elements, kept on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@translates("Reshape", host=(1,))
def reshape(node: HostNode, x: Tensor, target: list[int]) -> Tensor:
    """0 copies the input's size there (unless ``allowzero``), -1 takes what is left."""
    if not node.integer("allowzero", 0):
        target = [x.shape[place] if length == 0 else length for place, length in enumerate(target)]
    return x.reshape(target)


@translates("Flatten")
def flatten(node: HostNode, x: Tensor) -> Tensor:
    """Always a matrix; ``axis`` is where the second axis begins."""
    axis = node.integer("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@translates("Squeeze", host=(1,))
def squeeze(node: HostNode, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Axes are an attribute before opset 13; none means every axis of length one."""
    chosen = axes if axes is not None else node.integers("axes")
    if not chosen:
        return x.squeeze()
    if any(x.shape[axis] != 1 for axis in chosen):
        raise node.error(f"squeezes axes {chosen} of shape {tuple(x.shape)}, which are not all of length one")
    return x.squeeze(tuple(chosen))


@translates("Unsqueeze", host=(1,))
def unsqueeze(node: HostNode, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Axes are an attribute before opset 13, and count in the output's rank."""
    chosen = axes if axes is not None else node.integers("axes")
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@translates("Transpose")
def transpose(node: HostNode, x: Tensor) -> Tensor:
    """Axes are reversed without ``perm``."""
    return x.permute(node.integers("perm") or list(range(x.ndim))[::-1])


@translates("Identity")
def identity(_: HostNode, x: Tensor) -> Tensor:
    """The input itself, not a copy."""
    return x


def _refuse_training(node: HostNode) -> str:
    if not node.has_input(2):
        return ""
    known = node.constants.get(2)
    return "" if known is not None and not known.any() else "training mode is not translated"


@translates("Dropout", refuses=_refuse_training)
def dropout(_: HostNode, x: Tensor, *_ratio_and_mode: Tensor | None) -> tuple[Tensor, Tensor]:
    """Does nothing at inference; the mask is all true."""
    return x, torch.ones_like(x, dtype=torch.bool)


@translates("Concat")
def concat(node: HostNode, *inputs: Tensor) -> Tensor:
    """Along an axis that has no default since opset 4."""
    return torch.cat(inputs, node.integer("axis", 1))


@translates("Split", host=(1,))
def split(node: HostNode, x: Tensor, lengths: list[int] | None = None) -> tuple[Tensor, ...]:
    """Lengths are an attribute before opset 13; without them equal parts, the last one possibly shorter."""
    axis = node.integer("axis", 0)
    chosen = lengths if lengths is not None else node.integers("split")
    if chosen:
        return torch.split(x, chosen, axis)
    count, length = len(node.outputs), x.shape[axis]
    part = -(-length // count)
    return torch.split(x, [min(part, length - place * part) for place in range(count)], axis)


@translates("Slice", host=(1, 2, 3, 4))
def slice_axes(
    node: HostNode,
    x: Tensor,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> Tensor:
    """Attributes before opset 10. As python's slice, but a backward one that starts before the first keeps it."""
    if starts is None or ends is None:
        starts, ends, axes = node.integers("starts"), node.integers("ends"), node.integers("axes") or None
    axes = axes if axes is not None else list(range(len(starts)))
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        length = x.shape[axis]
        first, last, stride = slice(start, end, step).indices(length)
        if stride < 0:  # torch has no negative step: count from the other end
            x, first = x.flip(axis), max(first, 0)
            first, last, stride = length - 1 - first, length - 1 - last, -stride
        x = x[(slice(None),) * (axis % x.ndim) + (slice(first, max(first, last), stride),)]
    return x


@translates("Expand", host=(1,))
def expand(_: HostNode, x: Tensor, target: list[int]) -> Tensor:
    """Broadcasts both ways: a target of 1 keeps the input's size."""
    return x.expand(np.broadcast_shapes(x.shape, tuple(target)))


@translates("Tile", host=(1,))
def tile(_: HostNode, x: Tensor, repeats: list[int]) -> Tensor:
    """One repeat count an axis."""
    return x.repeat(repeats)


def _refuse_pad(node: HostNode) -> str:
    known = node.constants.get(1)
    pads = node.integers("pads") if known is None else known.flatten().tolist()
    if node.text("mode", "constant") != "constant" and any(pad < 0 for pad in pads):
        return "negative pads are translated in constant mode only"
    return ""


@translates(
    "Pad",
    host=(1, 2, 3),
    refuses=refuse_any(only_text("mode", "constant", "constant", "reflect", "edge", "wrap"), _refuse_pad),
)
def pad(
    node: HostNode,
    x: Tensor,
    pads: list[int] | None = None,
    value: list[float] | None = None,
    axes: list[int] | None = None,
) -> Tensor:
    """Attributes before opset 11; ``axes`` since 18. Negative pads crop."""
    if pads is None:
        pads, value = node.integers("pads"), [node.real("value", 0.0)]
    places = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    begins, ends = pads[: len(places)], pads[len(places) :]
    mode = node.text("mode", "constant")
    if mode == "constant":
        widths = [0] * (2 * x.ndim)
        for place, begin, end in zip(places, begins, ends, strict=True):
            widths[2 * (x.ndim - 1 - place)], widths[2 * (x.ndim - 1 - place) + 1] = begin, end
        return functional.pad(x, widths, value=value[0] if value else 0)
    if any(width < 0 for width in pads):
        raise node.error("pads negatively, which is translated in constant mode only")
    for place, begin, end in zip(places, begins, ends, strict=True):
        if begin or end:
            x = x.index_select(place, _padded_indices(mode, x.shape[place], begin, end).to(x.device))
    return x


def _padded_indices(mode: str, length: int, begin: int, end: int) -> Tensor:
    """Which element stands at each place of a padded axis."""
    places = torch.arange(-begin, length + end)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    folded = places % max(2 * (length - 1), 1)
    return torch.where(folded < length, folded, 2 * (length - 1) - folded)


@translates("ConstantOfShape", host=(0,))
def constant_of_shape(node: HostNode, target: list[int]) -> Tensor:
    """Zeros of type float by default."""
    value = node.attributes.get("value")
    fill = value.flatten()[0] if isinstance(value, Tensor) else torch.zeros(())
    return fill.expand(target)


@translates("Range")
def arange(_: HostNode, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """The type is that of the inputs, which are scalars."""
    first, last, step = start.item(), limit.item(), delta.item()
    return start + delta * torch.arange(
        max(math.ceil((last - first) / step), 0), dtype=start.dtype, device=start.device
    )


@translates("Trilu", host=(1,))
def trilu(node: HostNode, x: Tensor, diagonal: list[int] | None = None) -> Tensor:
    """The upper triangle by default."""
    k = diagonal[0] if diagonal else 0
    return torch.triu(x, k) if node.integer("upper", 1) else torch.tril(x, k)


@translates("DepthToSpace", refuses=only_text("mode", "DCR", "DCR", "CRD"))
def depth_to_space(node: HostNode, x: Tensor) -> Tensor:
    """DCR: the block is the outer part of the channels; CRD: the inner part, as torch's pixel_shuffle."""
    block = node.integer("blocksize", 1)
    batch, depth, height, width = x.shape
    if node.text("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    blocks = x.reshape(batch, block, block, depth // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, depth // block**2, height * block, width * block)


@translates("SpaceToDepth")
def space_to_depth(node: HostNode, x: Tensor) -> Tensor:
    """The block becomes the outer part of the channels."""
    block = node.integer("blocksize", 1)
    batch, depth, height, width = x.shape
    blocks = x.reshape(batch, depth, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, depth * block**2, height // block, width // block)
