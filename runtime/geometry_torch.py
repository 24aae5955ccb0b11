"""The torch twin of `runtime.geometry`: the same windows, on any device, differentiable."""

import itertools
from math import prod

from torch import Tensor
from torch.nn import functional

from runtime.geometry import conv_windows, fold_canvas, fold_windows
from runtime.tables import Gather, Scatter


def gather_vectors(gather: Gather, x: Tensor) -> Tensor:
    """Input vectors of a layer, ``(windows, length)``, elements in order ``(group, *kernel, channel)``.

    Images are copied once into a padded channels-last buffer, from which a patch is a few long runs.
    """
    if gather.kind == "vectors":
        return x.reshape(-1, gather.channels)
    rank = len(gather.kernel)
    windows = conv_windows(gather, tuple(x.shape[2:]))
    image = x.movedim(1, -1)
    if any(map(any, windows.pads)):
        margins = [margin for begin, end in reversed(windows.pads) for margin in (begin, end)]
        image = functional.pad(image, (0, 0, *margins))
    if all(k == 1 for k in gather.kernel):
        steps = tuple(slice(None, None, stride) for stride in gather.strides)
        return image[(slice(None), *steps)].reshape(-1, gather.channels)
    image = image.contiguous()
    per_group = gather.channels // gather.groups
    grouped = image.reshape(*image.shape[:-1], gather.groups, per_group)
    batch, *space = grouped.stride()[: rank + 1]
    view = grouped.as_strided(
        (len(x), *windows.out, gather.groups, *gather.kernel, per_group),
        (
            batch,
            *(s * step for s, step in zip(space, gather.strides, strict=True)),
            per_group,
            *(s * step for s, step in zip(space, gather.dilations, strict=True)),
            1,
        ),
    )
    return view.reshape(-1, gather.length)


def scatter_vectors(scatter: Scatter, y: Tensor, shape: tuple[int, ...], bias: Tensor | None) -> Tensor:
    """Write result vectors ``(windows, length)`` back, bias added; see `runtime.geometry.scatter_vectors`."""
    if bias is not None and scatter.kind != "fold":
        y = y + bias
    if scatter.kind == "vectors":
        return y.reshape(*shape, scatter.channels)
    if scatter.kind == "image":
        return y.reshape(*shape, scatter.channels).movedim(-1, 1)
    batch, space = shape[0], shape[1:]
    windows = fold_windows(scatter, space)
    canvas_shape = fold_canvas(scatter, space, windows)
    per_group = scatter.channels // scatter.groups
    patches = y.reshape(batch, *space, scatter.groups, prod(scatter.kernel), per_group)
    canvas = y.new_zeros(batch, *canvas_shape, scatter.groups, per_group)
    for number, tap in enumerate(itertools.product(*map(range, scatter.kernel))):
        where = tuple(
            slice(d * t, d * t + s * (n - 1) + 1, s)
            for d, t, s, n in zip(scatter.dilations, tap, scatter.strides, space, strict=True)
        )
        canvas[(slice(None), *where)] += patches[..., number, :]
    crop = tuple(slice(begin, begin + out) for (begin, _), out in zip(windows.pads, windows.out, strict=True))
    image = canvas[(slice(None), *crop)].reshape(batch, *windows.out, scatter.channels)
    return (image if bias is None else image + bias).movedim(-1, 1)
