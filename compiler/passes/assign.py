"""The conductance of every device."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compiler.mapping import Array, Block, Mapping, Placement, QuantizedLayer, Targets
from hwspec.device import Device
from runtime.quantize import weight_codes


@dataclass(frozen=True)
class Assign:
    """Give each weight to one device of its pair; the other stays at ``g_min``."""

    name: ClassVar[str] = "assign"
    requires: ClassVar[tuple[str, ...]] = ("quantize", "place")

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `targets`."""
        device = mapping.spec.device
        targets = {}
        for layer in mapping.layers:
            quantized = mapping.quantized[layer.name]
            pairs = zip(mapping.grids[layer.name].blocks, mapping.placements[layer.name], strict=True)
            targets[layer.name] = tuple(_targets(quantized, block, placement, device) for block, placement in pairs)
        return replace(mapping, targets=targets)


def _targets(quantized: QuantizedLayer, block: Block, placement: Placement, device: Device) -> Targets:
    logical = quantized.normalized[block.group, block.rows, block.cols]
    physical = np.empty_like(logical)
    physical[placement.row_map] = logical[:, placement.col_order] * placement.col_sign
    return Targets(plus=_device(np.maximum(physical, 0), device), minus=_device(np.maximum(-physical, 0), device))


def _device(share: Array, device: Device) -> Array:
    """Level codes of devices that carry `share` of the span, or their conductances where levels are continuous."""
    if device.levels is None:
        return device.g_min + share * device.span
    return weight_codes(share, device.levels).astype(np.uint8 if device.levels <= 256 else np.uint16)
