"""Resize: every axis by itself, as a weighted sum of few shifted copies (taps)."""

from typing import NamedTuple

import torch
from torch import Tensor

from runtime.host_ops.node_torch import HostNode, only_integer, only_text, refuse_any, translates


class _Axis(NamedTuple):
    """One axis to be resized: which, from and to which length, and the scale that coordinates use."""

    place: int
    length: int
    target: int
    scale: float


_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)


def _refuse_ties(node: HostNode) -> str:
    """Symmetric half pixels put many places exactly between two, where the order of float operations decides."""
    symmetric = node.text("coordinate_transformation_mode", "") == "half_pixel_symmetric"
    nearest = symmetric and node.text("mode", "nearest") == "nearest"
    return (
        "coordinate_transformation_mode='half_pixel_symmetric' is not translated for mode='nearest'" if nearest else ""
    )


_REFUSALS = refuse_any(
    _refuse_ties,
    only_text("mode", "nearest", "nearest", "linear", "cubic"),
    only_text("coordinate_transformation_mode", "half_pixel", *_COORDINATES),
    only_text("nearest_mode", "round_prefer_floor", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    only_text("keep_aspect_ratio_policy", "stretch", "stretch"),
    only_integer("antialias", 0, 0),
)


@translates("Resize", host=(1, 2, 3), refuses=_REFUSALS)
def resize(
    node: HostNode,
    x: Tensor,
    region: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
) -> Tensor:
    """Opset 10 has the scales as second input and asymmetric coordinates, rounded up where it shrinks."""
    if node.opset < 11:
        scales = region
    mode = node.text("mode", "nearest")
    if mode != "nearest" and not x.is_floating_point():
        raise node.error(f"interpolates {x.dtype}, which is translated for floats only")
    axes = _axes(node, x, scales, sizes)
    if all(axis.length == axis.target for axis in axes):
        return x  # as onnxruntime: even where scales such as 1.1, cut down to the same lengths, would shift it
    for axis in axes:
        if axis.length != axis.target or axis.scale != 1.0:
            x = _resize_axis(node, x, axis, mode)
    return x


@translates("Upsample", host=(1,), refuses=only_text("mode", "nearest", "nearest", "linear"))
def upsample(node: HostNode, x: Tensor, scales: list[float] | None = None) -> Tensor:
    """Resize of opset 10 under an older name; scales are an attribute before opset 9."""
    return resize(node, x, scales if scales is not None else node.reals("scales"))


def _axes(node: HostNode, x: Tensor, scales: list[float] | None, sizes: list[int] | None) -> list[_Axis]:
    """The axes given. Lengths are cut down from length times scale; coordinates use the scale as given."""
    places = [axis % x.ndim for axis in node.integers("axes")] or list(range(x.ndim))
    if sizes:
        return [_Axis(p, x.shape[p], size, size / max(x.shape[p], 1)) for p, size in zip(places, sizes, strict=True)]
    return [_Axis(p, x.shape[p], int(x.shape[p] * s), s) for p, s in zip(places, scales or [], strict=True)]


def _resize_axis(node: HostNode, x: Tensor, axis: _Axis, mode: str) -> Tensor:
    at = _coordinates(node, axis)
    if mode == "nearest":
        return x.index_select(axis.place, _nearest(node, at, axis).to(x.device))
    indices, weights = _taps(node, at, axis, cubic=mode == "cubic")
    shape = [-1 if place == axis.place else 1 for place in range(x.ndim)]
    parts = [
        x.index_select(axis.place, index.to(x.device)) * weight.to(x).reshape(shape)
        for index, weight in zip(indices, weights, strict=True)
    ]
    return torch.stack(parts).sum(0)


def _coordinates(node: HostNode, axis: _Axis) -> Tensor:
    """Where each output place lies on the input axis, in float32 as onnxruntime has it: ties depend on it."""
    default = "half_pixel" if node.opset >= 11 else "asymmetric"
    mode = node.text("coordinate_transformation_mode", default)
    places = torch.arange(axis.target, dtype=torch.float32)
    scale = torch.tensor(axis.scale, dtype=torch.float32)
    if mode == "asymmetric":
        return places / scale
    if mode == "align_corners":
        return places * (axis.length - 1) / max(axis.target - 1, 1)
    if mode == "pytorch_half_pixel" and axis.target <= 1:
        return torch.zeros_like(places)
    half_pixel = (places + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return axis.length / 2 * (1 - axis.target / (scale * axis.length)) + half_pixel
    return half_pixel


def _nearest(node: HostNode, at: Tensor, axis: _Axis) -> Tensor:
    """The input place that each output place copies."""
    mode = node.text("nearest_mode", "round_prefer_floor")
    if node.opset < 11:
        mode = "ceil" if axis.scale < 1 else "floor"
    if mode.startswith("round"):
        chosen = torch.ceil(at - 0.5) if mode == "round_prefer_floor" else torch.floor(at + 0.5)
    else:
        chosen = torch.ceil(at) if mode == "ceil" else torch.floor(at)
    return chosen.long().clamp(0, axis.length - 1)


def _taps(node: HostNode, at: Tensor, axis: _Axis, *, cubic: bool) -> tuple[Tensor, Tensor]:
    """Input places ``(taps, targets)`` and their weights; places beyond the border repeat it."""
    base = at.floor()
    offsets = torch.arange(-1, 3) if cubic else torch.arange(2)
    distance = (at - base - offsets[:, None]).abs()
    weights = _cubic(distance, node.real("cubic_coeff_a", -0.75)) if cubic else 1 - distance
    indices = base.long() + offsets[:, None]
    inside = indices.clamp(0, axis.length - 1)
    if cubic and node.integer("exclude_outside", 0):
        weights = torch.where(indices == inside, weights, 0)
        weights = weights / weights.sum(0)
    return inside, weights


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel: Cubic Convolution Interpolation for Digital Image Processing (1981), equation 15."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0))
