"""The conductance of every device."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compiler.mapping import Block, Mapping, Placement, QuantizedLayer, Targets
from runtime.quantize import WeightCode


@dataclass(frozen=True)
class Assign:
    """Give each weight to one device of its pair, slice by slice; the other stays at ``g_min``."""

    name: ClassVar[str] = "assign"
    requires: ClassVar[tuple[str, ...]] = ("quantize", "place")

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `targets`."""
        code = WeightCode.of(mapping.spec)
        targets = {}
        for layer in mapping.layers:
            quantized = mapping.quantized[layer.name]
            pairs = zip(mapping.grids[layer.name].blocks, mapping.placements[layer.name], strict=True)
            targets[layer.name] = tuple(_targets(quantized, block, placement, code) for block, placement in pairs)
        return replace(mapping, targets=targets)


def _targets(quantized: QuantizedLayer, block: Block, placement: Placement, code: WeightCode) -> Targets:
    logical = quantized.normalized[block.group, block.rows, block.cols]
    physical = np.empty_like(logical)
    physical[placement.row_map] = logical[:, placement.col_order] * placement.col_sign
    plus, minus = code.devices(physical, block.slice)
    return Targets(plus=plus, minus=minus, gain=np.ones(block.shape[1]))
