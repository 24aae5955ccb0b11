"""Scales of weights and inputs."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compiler.mapping import LayerStatistics, Mapping, MatrixLayer, QuantizedLayer
from runtime.quantize import WeightCode

OFF_TIES = 1 + 1e-3 * (5**0.5 - 1) / 2
"""Ranges are wider than the largest value by this irrational ratio.

Pixels, level steps and the values that ranges stem from are multiples of few numbers. A range commensurate with them
puts many values exactly halfway between two codes, where the last bit of the arithmetic decides.
"""


@dataclass(frozen=True)
class Quantize:
    """Scale each column by its largest weight (all row blocks alike), round to the device's levels, and set the DAC."""

    name: ClassVar[str] = "quantize"
    requires: ClassVar[tuple[str, ...]] = ("calibrate",)

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `quantized`."""
        code = WeightCode.of(mapping.spec)
        quantized = {
            layer.name: quantize_layer(layer, mapping.statistics[layer.name], code) for layer in mapping.layers
        }
        return replace(mapping, quantized=quantized)


def quantize_layer(layer: MatrixLayer, statistics: LayerStatistics, code: WeightCode) -> QuantizedLayer:
    """Scales and normalised weights of one layer.

    The DAC is unsigned when calibration saw no negative input; its full scale is the largest magnitude seen. A column
    of zeros has scale 1.
    """
    weight = layer.weight.astype(np.float64)
    scale = np.abs(weight).max(axis=1)
    scale[scale == 0] = 1.0
    normalized = code.round(np.clip(weight / scale[:, None, :], -1, 1))
    full_scale = max(abs(statistics.low), abs(statistics.high)) * OFF_TIES or 1.0
    return QuantizedLayer(scale=scale, normalized=normalized, full_scale=full_scale, signed=statistics.low < 0)
