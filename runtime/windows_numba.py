"""DAC codes of images and their windows in compiled loops, from and into channels-last memory.

Images of one to three spatial axes come as three, the missing ones of size 1 in front.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.physics.compiled_numba import compiled

Ints = npt.NDArray[np.int64]


@compiled("contract", "nsz")
def write_codes(x: Any, step: Any, low: Any, high: Any, magic: Any, begins: Ints, out: Any) -> bool:
    """Codes of images into the inside of a buffer of zeros; False if an input was not finite.

    Parameters
    ----------
    x : (samples, depth, height, width, channels)
        Inputs.
    step
        Input of one code.
    low, high
        Smallest and largest code.
    magic
        ``1.5 * 2^(bits of the fraction)``, to which a number is rounded when it is added; 0 for an ideal DAC, which
        neither rounds nor clips.
    begins : (3,)
        Where the image begins in the buffer.
    out : (samples, depth, height, width, channels)
        The buffer, with its margins.
    """
    samples, depth, height, width, channels = x.shape
    rows = x.reshape(samples, depth, height, width * channels)
    wide = out.reshape(samples, out.shape[1], out.shape[2], out.shape[3] * channels)
    zero = step - step
    wrong = 0
    for s in range(samples):
        for d in range(depth):
            for h in range(height):
                row = rows[s, d, h]
                start = begins[2] * channels
                to = wide[s, begins[0] + d, begins[1] + h, start : start + width * channels]
                if magic == zero:
                    for i in range(row.shape[0]):
                        value = row[i]
                        wrong |= value - value != zero
                        to[i] = value / step
                else:
                    for i in range(row.shape[0]):
                        value = row[i]
                        wrong |= value - value != zero
                        to[i] = (min(max(value / step, low), high) + magic) - magic
    return wrong == 0


@compiled()
def place_of(number: int, shape: Ints) -> tuple[int, int, int, int]:
    """Sample, plane, row and column of a window, of those that a sample has in each direction."""
    rest, column = divmod(number, shape[2])
    rest, row = divmod(rest, shape[1])
    sample, plane = divmod(rest, shape[0])
    return sample, plane, row, column


@compiled()
def gather_windows(image: Any, first: int, axes: Ints, groups: int, out: Any) -> None:
    """Windows ``first, first + 1, ...`` of buffers ``(samples, depth, height, width, channels)``.

    Parameters
    ----------
    image
        The buffers, with their margins.
    first
        Number of the first window; they count through the samples, then through depth, height and width.
    axes : (4, 3)
        Windows of a sample; kernel, strides and dilations of the convolution.
    groups
        Of channels.
    out : (windows, groups * taps * channels of a group)
        Filled, elements in order ``(group, *kernel, channel)``.
    """
    shape, kernel, strides, dilations = axes[0], axes[1], axes[2], axes[3]
    channels = image.shape[4]
    each = channels // groups
    dense = groups == 1 and dilations[2] == 1
    run = kernel[2] * channels if dense else each
    taps = 1 if dense else kernel[2]
    lines = image.reshape(image.shape[0], image.shape[1], image.shape[2], image.shape[3] * channels)
    for i in range(out.shape[0]):
        sample, plane, row, column = place_of(first + i, shape)
        window = out[i]
        at = 0
        for group in range(groups):
            for u in range(kernel[0]):
                for v in range(kernel[1]):
                    line = lines[sample, plane * strides[0] + u * dilations[0], row * strides[1] + v * dilations[1]]
                    for w in range(taps):
                        start = (column * strides[2] + w * dilations[2]) * channels + group * each
                        source, target = line[start : start + run], window[at : at + run]
                        for k in range(run):
                            target[k] = source[k]
                        at += run


@compiled("contract", "nsz")
def multiply_channels(
    image: Any, first: int, axes: Ints, channel: int, matrix: Any, variance: Any, current: Any, power: Any
) -> None:
    """Products of the windows of each channel with its own column, without gathering them.

    Parameters
    ----------
    image, first, axes
        As for `gather_windows`.
    channel
        The first channel.
    matrix, variance : (taps, channels)
        What a channel's taps are multiplied with, and their squares; the latter of size 0 for none.
    current, power : (1, windows, channels)
        Filled; the latter of size 0 for none.
    """
    shape, kernel, strides, dilations = axes[0], axes[1], axes[2], axes[3]
    count = matrix.shape[1]
    noisy = variance.size > 0
    for i in range(current.shape[1]):
        sample, plane, row, column = place_of(first + i, shape)
        sums = current[0, i]
        sums[:] = 0
        if noisy:
            power[0, i, :] = 0
        tap = 0
        for u in range(kernel[0]):
            for v in range(kernel[1]):
                for w in range(kernel[2]):
                    depth, height = plane * strides[0] + u * dilations[0], row * strides[1] + v * dilations[1]
                    pixel = image[sample, depth, height, column * strides[2] + w * dilations[2]]
                    codes, weights = pixel[channel : channel + count], matrix[tap]
                    for k in range(count):
                        sums[k] += codes[k] * weights[k]
                    if noisy:
                        powers, squares = power[0, i], variance[tap]
                        for k in range(count):
                            powers[k] += codes[k] * codes[k] * squares[k]
                    tap += 1
