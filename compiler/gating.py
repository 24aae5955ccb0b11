"""Which word lines are gated off as a whole, where the spec's isolation is by line."""

import numpy as np

from compiler.mapping import Mapping
from hwspec.reach import isolation
from runtime.layout import device_places
from runtime.pairs import Line, site_pairs, word_lines_of
from runtime.quantize import Float64


def gate_lines(mapping: Mapping) -> frozenset[Line]:
    """The word lines that are better gated off, with all the devices on them.

    A line counts with all tiles on it: gated, each of its pairs is left with its other device; as it is, its failed
    devices push weights out of range. A line stays where a device that a tile uses on it has lost its gate.
    """
    spec, faults = mapping.spec, mapping.faults
    if faults is None or isolation(spec.array, spec.failures) != "line":
        return frozenset()
    open_share, unit = -spec.device.g_min / spec.device.span, 2.0 if spec.array.pairing == "reference" else 1.0
    stubborn = [state for state, section in spec.failures.states() if not section.isolatable]
    changes: dict[Line, float] = {}
    kept_on: set[Line] = set()
    for layer in mapping.layers:
        quantized, grid = mapping.quantized[layer.name], mapping.grids[layer.name]
        for block, placement in zip(grid.blocks, mapping.placements[layer.name], strict=True):
            for number, rows, cols in device_places(
                placement.array, placement.word_lines, placement.bit_lines, spec.array
            ).values():
                cannot = np.isin(faults.states[number][np.ix_(rows, cols)], stubborn).any(1)
                kept_on |= {(number, line) for line in rows[cannot].tolist()}
            if block.slice != spec.array.slices - 1:
                continue
            weight = quantized.normalized[block.group, block.rows, block.cols]
            physical = np.empty_like(weight)
            physical[placement.row_map] = weight[:, placement.col_order] * placement.col_sign
            scale = quantized.scale[block.group, block.cols][placement.col_order] ** 2
            pairs = site_pairs(spec, faults, placement.array)
            for at, row in enumerate(placement.word_lines.tolist()):
                lines = word_lines_of(spec.array, placement.array, row)
                held = pairs.plus[row, placement.bit_lines], pairs.minus[row, placement.bit_lines]
                kept = _lost(physical[at], *held, unit)
                for line in set(lines.values()):
                    off = [side for side, one in lines.items() if one == line]
                    sides = {"plus": held[0], "minus": held[1]} | dict.fromkeys(off, np.full(len(scale), open_share))
                    change = float(scale @ (_lost(physical[at], sides["plus"], sides["minus"], unit) - kept))
                    changes[line] = changes.get(line, 0.0) + change
    return frozenset(line for line, change in changes.items() if change < 0 and line not in kept_on)


def _lost(weight: Float64, plus: Float64, minus: Float64, unit: float) -> Float64:
    """Squared distance of weights to what their pairs can hold."""
    low = np.where(np.isnan(plus), 0.0, plus) - np.where(np.isnan(minus), 1.0, minus)
    high = np.where(np.isnan(plus), 1.0, plus) - np.where(np.isnan(minus), 0.0, minus)
    found: Float64 = np.maximum(np.maximum(weight - unit * high, unit * low - weight), 0.0) ** 2
    return found
