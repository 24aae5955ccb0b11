"""The range of every ADC, found by running the assigned tiles on the calibration vectors."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compiler.mapping import Mapping, MatrixLayer, Placement, Targets
from compiler.passes.quantize import OFF_TIES
from hwspec.spec import HardwareSpec
from runtime.physics.converters import drive_voltages, phase_part
from runtime.quantize import Float64, input_codes, level_conductances
from runtime.tables import input_phases


@dataclass(frozen=True)
class Ranges:
    """Give each tile and phase the range that clips at most ``periphery.adc_clip_share`` of its conversions."""

    name: ClassVar[str] = "ranges"
    requires: ClassVar[tuple[str, ...]] = ("assign",)

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `adc_ranges` and `clipped`; an ideal ADC has no range."""
        if mapping.spec.periphery.output_code_max is None:
            return replace(mapping, adc_ranges={layer.name: () for layer in mapping.layers}, clipped={})
        ranges, clipped = {}, {}
        for layer in mapping.layers:
            ranges[layer.name], clipped[layer.name] = _layer_ranges(mapping, layer)
        return replace(mapping, adc_ranges=ranges, clipped=clipped)


def _layer_ranges(mapping: Mapping, layer: MatrixLayer) -> tuple[tuple[tuple[float, ...], ...], float]:
    spec, quantized = mapping.spec, mapping.quantized[layer.name]
    vectors = mapping.statistics[layer.name].vectors.astype(np.float64)
    code_max = spec.periphery.input_code_max(quantized.signed)
    codes = input_codes(vectors, quantized.full_scale, code_max, quantized.signed)
    volts = [
        drive_voltages(phase_part(codes, phase), code_max, spec.periphery.v_read)
        for phase in input_phases(spec, quantized.signed)
    ]
    found, over, total = [], 0, 0
    tiles = zip(
        mapping.grids[layer.name].blocks, mapping.placements[layer.name], mapping.targets[layer.name], strict=True
    )
    for block, placement, targets in tiles:
        difference = _difference(targets, placement, spec)
        start = block.group * layer.weight.shape[1]
        tile = []
        for volt in volts:
            current = np.abs(volt[:, start + block.rows.start : start + block.rows.stop] @ difference)
            tile.append(adc_range(current, spec))
            over += int((current > tile[-1]).sum())
            total += current.size
        found.append(tuple(tile))
    return tuple(found), over / max(total, 1)


def _difference(targets: Targets, placement: Placement, spec: HardwareSpec) -> Float64:
    """Conductance difference of a tile's pairs, siemens, rows in logical order."""
    device = spec.device
    plus, minus = targets.plus, targets.minus
    if device.levels is not None:
        table = level_conductances(device.g_min, device.g_max, device.levels)
        plus, minus = table[plus], table[minus]
    difference: Float64 = (plus - minus)[placement.row_map]
    return difference


def adc_range(current: Float64, spec: HardwareSpec) -> float:
    """The smallest range that clips at most the share allowed; one full cell where no current flows."""
    share = spec.periphery.adc_clip_share
    found = float(np.quantile(current, 1 - share, method="higher")) if current.size else 0.0
    return (found or spec.device.span * spec.periphery.v_read) * OFF_TIES
