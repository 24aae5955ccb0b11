"""The way back through a loop in compiled passes: from results to currents, from windows to pixels, to the inputs."""

from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.physics.compiled_numba import compiled
from runtime.windows_numba import place_of

Ints = npt.NDArray[np.int64]


@compiled("contract", "nsz")
def to_currents(total: Any, factor: Any, segments: Ints, inside: npt.NDArray[np.uint8], current: Any) -> None:
    """Gradients of currents from those of the results; none passes a conversion that clipped.

    Parameters
    ----------
    total : (windows, length)
        Gradients of the results.
    factor : (drives, cols)
        What a unit of current adds to its result.
    segments : (number, 4)
        Drive, first column, first element of the result, and length of every run of columns.
    inside : (windows, drives, cols)
        Zero where the ADC clipped; of size 0 where none can.
    current : (drives, windows, cols)
        Filled.
    """
    for s in range(segments.shape[0]):
        drive, start, to, count = segments[s, 0], segments[s, 1], segments[s, 2], segments[s, 3]
        weight = factor[drive, start : start + count]
        for i in range(total.shape[0]):
            sums, found = total[i, to : to + count], current[drive, i, start : start + count]
            if inside.size > 0:
                passes = inside[i, drive, start : start + count]
                for j in range(count):
                    found[j] = sums[j] * weight[j] * passes[j]
            else:
                for j in range(count):
                    found[j] = sums[j] * weight[j]


@compiled("contract", "nsz")
def fold_windows(rows: Any, starts: Ints, first: int, axes: Ints, groups: int, image: Any) -> None:
    """Add gradients of windows to those of the pixels that they were gathered from.

    Parameters
    ----------
    rows : (drives, windows, rows)
        Gradients of the elements that each drive takes.
    starts : (drives,)
        Its first element.
    first, axes, groups
        As for `runtime.windows_numba.gather_windows`.
    image : (samples, depth, height, width, channels)
        Added to.
    """
    shape, kernel, strides, dilations = axes[0], axes[1], axes[2], axes[3]
    channels = image.shape[4]
    each = channels // groups
    dense = groups == 1 and dilations[2] == 1
    run = kernel[2] * channels if dense else each
    taps = 1 if dense else kernel[2]
    lines = image.reshape(image.shape[0], image.shape[1], image.shape[2], image.shape[3] * channels)
    for drive in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            sample, plane, row, column = place_of(first + i, shape)
            found = rows[drive, i]
            at = 0
            while at < found.shape[0]:
                number, skip = divmod(starts[drive] + at, run)
                rest, w = divmod(number, taps)
                rest, v = divmod(rest, kernel[1])
                group, u = divmod(rest, kernel[0])
                line = lines[sample, plane * strides[0] + u * dilations[0], row * strides[1] + v * dilations[1]]
                start = (column * strides[2] + w * dilations[2]) * channels + group * each + skip
                count = min(run - skip, found.shape[0] - at)
                source, target = found[at : at + count], line[start : start + count]
                for k in range(count):
                    target[k] += source[k]
                at += count


@compiled("contract", "nsz")
def to_inputs(image: Any, x: Any, step: Any, low: Any, high: Any, begins: Ints, out: Any) -> None:
    """Gradients of inputs from those of their codes; none passes where the DAC clips.

    Parameters
    ----------
    image : (samples, depth, height, width, channels)
        Gradients of the codes, with margins.
    x, out : (samples, depth, height, width, channels)
        Inputs, and their gradients.
    step, low, high
        Input of one code; smallest and largest code (infinite for an ideal DAC).
    begins : (3,)
        Where the images begin.
    """
    samples, depth, height, width, channels = x.shape
    wide = image.reshape(samples, image.shape[1], image.shape[2], image.shape[3] * channels)
    values, found = (
        x.reshape(samples, depth, height, width * channels),
        out.reshape(samples, depth, height, width * channels),
    )
    start = begins[2] * channels
    for s in range(samples):
        for d in range(depth):
            for h in range(height):
                source = wide[s, begins[0] + d, begins[1] + h, start : start + width * channels]
                value, target = values[s, d, h], found[s, d, h]
                for i in range(target.shape[0]):
                    code = value[i] / step
                    passes = (code >= low - 0.5) & (code <= high + 0.5)
                    target[i] = source[i] / step if passes else low * 0
