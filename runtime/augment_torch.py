"""Random changes of training images, drawn image by image from one generator."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from runtime.augmentation import Augmentation as Augmentation


def augment(images: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Change each image at random.

    Parameters
    ----------
    images : (n, channels, height, width)
        Training images.
    options
        The largest changes.
    generator
        Source of the draws; it may be on another device than the images.
    """
    if options.shift or options.rotate or options.zoom:
        images = _warp(images, options, generator)
    if options.crop:
        images = _crop(images, options.crop, generator)
    if options.flip:
        mirrored = _rand((len(images),), images, generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if options.erase:
        images = _erase(images, options.erase, generator)
    return images


def _warp(images: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Shift, rotate and zoom, with values between pixels interpolated."""
    draws = _rand((4, len(images)), images, generator) * 2 - 1
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
    down, right = _randint(2 * border + 1, (2, len(images)), images, generator)
    rows = (down[:, None] + torch.arange(height, device=images.device))[:, :, None]
    columns = (right[:, None] + torch.arange(width, device=images.device))[:, None, :]
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[each, :, rows, columns].movedim(3, 1)


def _erase(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Set a square to 0 whose centre is drawn from all pixels of the image."""
    height, width = images.shape[2:]
    down = _randint(height, (len(images), 1), images, generator) - side // 2
    right = _randint(width, (len(images), 1), images, generator) - side // 2
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    in_rows, in_columns = (rows >= down) & (rows < down + side), (columns >= right) & (columns < right + side)
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(inside, 0.0)


def _rand(shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from [0, 1) where the generator is, for use where the images are."""
    return torch.rand(shape, generator=generator, device=generator.device).to(images.device)


def _randint(end: int, shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw integers below ``end`` where the generator is, for use where the images are."""
    return torch.randint(0, end, shape, generator=generator, device=generator.device).to(images.device)
