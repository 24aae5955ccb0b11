"""From currents to results in one compiled pass: readout, ADC, scale and sum, a row of columns at a time.

The formulas are those of `runtime.batches_torch.Batch.convert`, step by step; arrays of size 0 switch a step off.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.physics.compiled_numba import compiled
from runtime.physics.normals_numba import fill_normals

READ, READOUT = 0, 1
"""Which normal numbers of a conversion: of its devices' read noise, or of its readout."""
_AT_ONCE = 1 << 14
"""Normal numbers that are drawn at once: few enough to stay in the cache."""


@compiled("contract", "nsz")
def _add_noise(row: Any, variance: Any, draws: Any) -> None:
    """Normal numbers of these variances on top."""
    for j in range(row.shape[0]):
        row[j] += np.sqrt(variance[j]) * draws[j]


@compiled("contract", "nsz")
def _bend(row: Any, curve: Any, cubic: Any, turn: Any, saturation: Any) -> None:
    """What bends before the readout's own noise; `curve` is compliance, gain, offset, ..., each for every column."""
    for j in range(row.shape[0]):
        value = min(max(row[j], -curve[0, j]), curve[0, j])
        value = value * curve[1, j] + curve[2, j]
        value = min(max(value, -turn), turn)
        value = value + cubic * (value * value * value)
        row[j] = value / (1 + saturation * abs(value))


@compiled()
def _clipped(row: Any, low: Any, high: Any, inside: npt.NDArray[np.uint8]) -> None:
    """Zero where a current lies more than half a step beyond the codes."""
    for j in range(row.shape[0]):
        inside[j] &= (row[j] >= low - 0.5) & (row[j] <= high + 0.5)


@compiled()
def _count(row: Any, thresholds: Any, low: Any) -> None:
    """Codes by each column's own thresholds: a guess half-way between codes, and steps to where it truly lies."""
    count = thresholds.shape[1]
    for j in range(row.shape[0]):
        value, steps = row[j], thresholds[j]
        k = np.int64(min(max(np.rint(value - low), 0), count))
        while k > 0 and steps[k - 1] >= value:
            k -= 1
        while k < count and steps[k] < value:
            k += 1
        row[j] = low + k


@compiled("contract", "nsz")
def convert(
    current: Any,
    variance: Any,
    shift: Any,
    curves: Any,
    bend: Any,
    own: Any,
    normals: Any,
    key: npt.NDArray[np.uint32],
    counter: npt.NDArray[np.int64],
    limits: Any,
    thresholds: Any,
    factor: Any,
    segments: npt.NDArray[np.int64],
    total: Any,
    inside: npt.NDArray[np.uint8],
) -> None:
    """Convert currents and add what they stand for to `total`; `current` holds the codes afterwards.

    Parameters
    ----------
    current, variance : (drives, windows, cols)
        Currents, and the variance of their read noise, in the matrix's unit.
    shift, own : (drives, cols)
        Added to the currents; standard deviation of the readout's own noise.
    curves : (drives, 5, cols)
        Compliance, gain, offset, factor to the lsb and offset of the ADC, of a readout that bends.
    bend : (3,)
        Cubic term, its turning point (infinite for none) and saturation.
    normals : (2, drives, windows, cols)
        Standard normal numbers of the read and of the readout; none to draw them from `key` and `counter`.
    key, counter
        Two words of the seed; number of the first window, stream of the first drive, and of the digit.
    limits : (3,)
        Smallest and largest code, and what rounds a number when it is added (see `write_codes`); none for an ideal ADC.
    thresholds : (drives, cols, codes - 1)
        Of converters that do not step half-way between codes.
    factor : (drives, cols)
        What a code stands for.
    segments : (number, 4)
        Drive, first column, first element of the result, and length of every run of columns.
    total : (windows, length)
        The results.
    inside : (windows, drives, cols)
        Where the ADC clips this becomes 0; of size 0 if nobody asks.
    """
    drives, windows, cols = current.shape
    noisy, wobbly, drawn = variance.size > 0, own.size > 0, normals.size > 0
    step = max(_AT_ONCE // cols, 1)
    z = np.empty((2, step * cols if not drawn and (noisy or wobbly) else 0), current.dtype)
    run = 0
    for d in range(drives):
        last = run
        while last < segments.shape[0] and segments[last, 0] == d:
            last += 1
        for i in range(windows):
            at = i % step
            if at == 0 and not drawn:
                count = min(step, windows - i) * cols
                first, stream, purpose = (counter[0] + i) * cols, counter[1] + d, 2 * counter[2]
                if noisy:
                    fill_normals(key, first, stream, purpose + READ, z[0, :count])
                if wobbly:
                    fill_normals(key, first, stream, purpose + READOUT, z[1, :count])
            row, result = current[d, i], total[i]
            if noisy:
                _add_noise(row, variance[d, i], normals[0, d, i] if drawn else z[0, at * cols : (at + 1) * cols])
            if shift.size > 0:
                for j in range(cols):
                    row[j] += shift[d, j]
            if curves.size > 0:
                _bend(row, curves[d], bend[0], bend[1], bend[2])
            if wobbly:
                draws = normals[1, d, i] if drawn else z[1, at * cols : (at + 1) * cols]
                for j in range(cols):
                    row[j] += own[d, j] * draws[j]
            if curves.size > 0:
                for j in range(cols):
                    row[j] = row[j] * curves[d, 3, j] + curves[d, 4, j]
            if inside.size > 0 and limits.size > 0:
                _clipped(row, limits[0], limits[1], inside[i, d])
            if thresholds.size > 0:
                _count(row, thresholds[d], limits[0])
            elif limits.size > 0:
                low, high, magic = limits[0], limits[1], limits[2]
                for j in range(cols):
                    row[j] = (min(max(row[j], low), high) + magic) - magic
            for s in range(run, last):
                start, to, count = segments[s, 1], segments[s, 2], segments[s, 3]
                codes, weight, sums = (
                    row[start : start + count],
                    factor[d, start : start + count],
                    result[to : to + count],
                )
                for j in range(count):
                    sums[j] += codes[j] * weight[j]
        run = last
