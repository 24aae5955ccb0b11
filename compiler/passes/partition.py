"""Cut each layer's matrices into tiles."""

from dataclasses import dataclass, replace
from typing import ClassVar

from compiler.mapping import Mapping, TileGrid


@dataclass(frozen=True)
class Partition:
    """Cut matrices into blocks of at most the array's rows and signed-weight columns.

    Parameters
    ----------
    replicas
        Tiles that hold each block; their results are averaged.
    """

    replicas: int = 1

    name: ClassVar[str] = "partition"
    requires: ClassVar[tuple[str, ...]] = ("lower",)

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `grids`."""
        array = mapping.spec.array
        grids = {layer.name: TileGrid.of(layer.weight, array, self.replicas) for layer in mapping.layers}
        return replace(mapping, grids=grids)
