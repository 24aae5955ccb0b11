"""Random changes of training images, drawn image by image from one generator."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """The largest changes of a training image; what comes from outside is 0.

    Attributes
    ----------
    shift, rotate, zoom : float
        Largest shift in pixels (fractions are interpolated), rotation in degrees, and relative change of size.
    crop : int
        Largest shift by whole pixels, which keeps the image sharp.
    flip : bool
        Mirror half of the images, left for right.
    erase : int
        Side in pixels of a square at a random place that is set to 0 (DeVries and Taylor, arXiv:1708.04552); what
        of it lies outside the image is lost.
    """

    shift: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    crop: int = 0
    flip: bool = False
    erase: int = 0


def augment(images: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Change each image at random.

    Parameters
    ----------
    images : (n, channels, height, width)
        Training images.
    options
        The largest changes.
    generator
        Source of the draws.
    """
    if options.shift or options.rotate or options.zoom:
        images = _warp(images, options, generator)
    if options.crop:
        images = _crop(images, options.crop, generator)
    if options.flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if options.erase:
        images = _erase(images, options.erase, generator)
    return images


def _warp(images: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Shift, rotate and zoom, with values between pixels interpolated."""
    draws = torch.rand((4, len(images)), generator=generator) * 2 - 1
    angle = draws[0] * math.radians(options.rotate)
    size = 1 + draws[1] * options.zoom
    cosine, sine = torch.cos(angle) / size, torch.sin(angle) / size
    right = draws[2] * options.shift * 2 / images.shape[3]
    down = draws[3] * options.shift * 2 / images.shape[2]
    affine = torch.stack((torch.stack((cosine, -sine, right), 1), torch.stack((sine, cosine, down), 1)), 1)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _crop(images: Tensor, border: int, generator: torch.Generator) -> Tensor:
    """Pad by a border of zeros and cut each image out again at a random place."""
    height, width = images.shape[2:]
    padded = functional.pad(images, (border,) * 4)
    down, right = torch.randint(0, 2 * border + 1, (2, len(images)), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, :]
    each = torch.arange(len(images))[:, None, None]
    return padded[each, :, rows, columns].movedim(3, 1)


def _erase(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Set a square to 0 whose centre is drawn from all pixels of the image."""
    height, width = images.shape[2:]
    down = torch.randint(0, height, (len(images), 1), generator=generator) - side // 2
    right = torch.randint(0, width, (len(images), 1), generator=generator) - side // 2
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows, in_columns = (rows >= down) & (rows < down + side), (columns >= right) & (columns < right + side)
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(inside, 0.0)
