"""Windows of images: where they lie, how vectors are gathered from them and results written back (numpy).

The formulas are those of the ONNX operators Conv and ConvTranspose; `runtime.geometry_torch` is the torch twin.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from runtime.tables import Gather, Scatter, window_bands

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Windows:
    """Where the windows of an image lie: `pads` is (begin, end) of each spatial axis, `out` the size of the output."""

    pads: tuple[tuple[int, int], ...]
    out: tuple[int, ...]


def conv_windows(gather: Gather, space: tuple[int, ...]) -> Windows:
    """Windows of a convolution over an image of spatial shape `space`.

    Raises
    ------
    DataError
        If the image is smaller than the kernel.
    """
    pads, out = [], []
    rank = len(gather.kernel)
    for axis, size in enumerate(space):
        stride = gather.strides[axis]
        extent = gather.dilations[axis] * (gather.kernel[axis] - 1) + 1
        if gather.auto_pad == "none":
            begin, end = gather.pads[axis], gather.pads[rank + axis]
        else:
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            begin = total // 2 if gather.auto_pad == "same_upper" else total - total // 2
            end = total - begin
        count = (size + begin + end - extent) // stride + 1
        if count < 1:
            raise DataError(f"input of {gather.name}", f"must span at least {extent} with its padding", got=size)
        pads.append((begin, end))
        out.append(count)
    return Windows(tuple(pads), tuple(out))


def fold_windows(scatter: Scatter, space: tuple[int, ...]) -> Windows:
    """Output of a transposed convolution over an image of spatial shape `space`: margins to crop, final shape.

    The end margin is negative where the model fixes an output larger than the windows reach.
    """
    pads, out = [], []
    rank = len(scatter.kernel)
    for axis, size in enumerate(space):
        extent = scatter.dilations[axis] * (scatter.kernel[axis] - 1) + 1
        full = scatter.strides[axis] * (size - 1) + scatter.output_padding[axis] + extent
        if scatter.output_shape or scatter.auto_pad != "none":
            target = scatter.output_shape[axis] if scatter.output_shape else size * scatter.strides[axis]
            total = max(full - target, 0)
            # An odd cell is cropped at the end for SAME_UPPER, else at the beginning.
            begin = total // 2 if scatter.auto_pad == "same_upper" else total - total // 2
            if not scatter.output_shape:
                target = full - total
            end = full - target - begin
        else:
            begin, end = scatter.pads[axis], scatter.pads[rank + axis]
            target = full - begin - end
        if target < 1:
            raise DataError(f"input of {scatter.name}", "is too small for the padding that is cropped", got=size)
        pads.append((begin, end))
        out.append(target)
    return Windows(tuple(pads), tuple(out))


def fold_canvas(scatter: Scatter, space: tuple[int, ...], windows: Windows) -> list[int]:
    """Spatial shape that holds every patch of a fold, and everything that is cropped out of it."""
    return [
        max(s * (n - 1) + d * (k - 1) + 1, begin + out)
        for s, n, d, k, (begin, _), out in zip(
            scatter.strides, space, scatter.dilations, scatter.kernel, windows.pads, windows.out, strict=True
        )
    ]


def copy_windows(shape: Sequence[int], copies: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Numbers of the windows that each copy of a layer's matrix takes, of all samples of windows of this shape."""
    each = prod(shape[1:])
    samples = np.arange(shape[0] if shape else 1, dtype=np.int64)[:, None] * each
    return tuple((samples + np.arange(band.start, band.stop)).ravel() for band in window_bands(each, copies))


def window_shape(gather: Gather, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the windows that an input of this shape has: (batch, *output space), or the leading axes of vectors.

    Raises
    ------
    DataError
        If the channels or the rank of the input are wrong.
    """
    image = gather.kind == "patches"
    rank = len(gather.kernel) + 2 if image else 1
    fits = len(shape) == rank if image else len(shape) >= rank
    if not fits or shape[1 if image else -1] != gather.channels:
        raise DataError(f"input of {gather.name}", f"must have {gather.channels} channels", got=tuple(shape))
    if not image:
        return tuple(shape[:-1])
    return (shape[0], *conv_windows(gather, tuple(shape[2:])).out)


def gather_vectors(gather: Gather, x: Array, select: npt.NDArray[np.int64] | None = None) -> Array:
    """Input vectors of a layer, ``(windows, length)``, elements in order ``(group, *kernel, channel)``.

    Parameters
    ----------
    gather
        Where the vectors lie.
    x
        ``(..., channels)`` for vectors, ``(batch, channels, *space)`` for patches.
    select
        Flat numbers of the windows wanted; None gathers all.
    """
    shape = window_shape(gather, x.shape)
    if gather.kind == "vectors":
        flat = x.reshape(-1, gather.channels)
        return flat if select is None else flat[select]
    rank = len(gather.kernel)
    pads = conv_windows(gather, x.shape[2:]).pads
    padded = np.pad(x, ((0, 0), (0, 0), *pads)) if any(map(any, pads)) else x
    extents = tuple(d * (k - 1) + 1 for d, k in zip(gather.dilations, gather.kernel, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in gather.strides)
    taps = tuple(slice(None, None, d) for d in gather.dilations)
    view = view[(slice(None), slice(None), *steps, *taps)]  # (batch, channels, *out, *kernel)
    view = np.moveaxis(view, 1, 1 + rank)  # (batch, *out, channels, *kernel)
    if select is None:
        patches = view.reshape(prod(shape), gather.channels, *gather.kernel)
    else:
        patches = view[np.unravel_index(select, shape)]
    grouped = patches.reshape(len(patches), gather.groups, -1, *gather.kernel)
    return np.moveaxis(grouped, 2, -1).reshape(len(patches), gather.length)


def scatter_vectors(scatter: Scatter, y: Array, shape: tuple[int, ...], bias: Array) -> Array:
    """Write result vectors ``(windows, length)`` back, bias added.

    Parameters
    ----------
    scatter
        Where the results go.
    y
        Results, windows in the order of `gather_vectors`.
    shape
        Shape of the windows, from `window_shape`.
    bias
        ``(length,)``, or ``(channels,)`` where results are folded.
    """
    if scatter.kind == "vectors":
        return (y + bias).reshape(*shape, scatter.channels)
    if scatter.kind == "image":
        return np.ascontiguousarray(np.moveaxis((y + bias).reshape(*shape, scatter.channels), -1, 1))
    batch, space = shape[0], shape[1:]
    windows = fold_windows(scatter, space)
    canvas_shape = fold_canvas(scatter, space, windows)
    per_group = scatter.channels // scatter.groups
    patches = y.reshape(batch, *space, scatter.groups, *scatter.kernel, per_group)
    canvas = np.zeros((batch, *canvas_shape, scatter.groups, per_group), dtype=y.dtype)
    for tap in itertools.product(*map(range, scatter.kernel)):
        where = tuple(
            slice(d * t, d * t + s * (n - 1) + 1, s)
            for d, t, s, n in zip(scatter.dilations, tap, scatter.strides, space, strict=True)
        )
        one_tap: tuple[Any, ...] = (..., *tap, slice(None))
        canvas[(slice(None), *where)] += patches[one_tap]
    crop = tuple(slice(begin, begin + out) for (begin, _), out in zip(windows.pads, windows.out, strict=True))
    image = canvas[(slice(None), *crop)].reshape(batch, *windows.out, scatter.channels) + bias
    return np.ascontiguousarray(np.moveaxis(image, -1, 1))
