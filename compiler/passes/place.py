"""Which physical array holds which tile, and where on it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compiler.mapping import Block, Mapping, Placement
from hwspec.array import Array


@dataclass(frozen=True)
class Place:
    """Put tiles on arrays in order; small tiles of one layer share arrays. Rows and columns keep their order.

    Parameters
    ----------
    share
        Whether tiles may share an array; otherwise each has one of its own.
    """

    share: bool = True
    name: ClassVar[str] = "place"
    requires: ClassVar[tuple[str, ...]] = ("partition",)

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `placements`."""
        array = mapping.spec.array
        placements, site = {}, 0
        for layer in mapping.layers:
            blocks = mapping.grids[layer.name].blocks
            corners = list(shelves(blocks, array)) if self.share else [(n, 0, 0) for n in range(len(blocks))]
            placements[layer.name] = tuple(
                _placement((site + number) * array.arrays_per_site, row, col, block)
                for (number, row, col), block in zip(corners, blocks, strict=True)
            )
            site += corners[-1][0] + 1
        return replace(mapping, placements=placements)


def shelves(blocks: Iterable[Block], array: Array) -> Iterator[tuple[int, int, int]]:
    """Site, row and column of each block: side by side while they fit, then on the next shelf, then the next site."""
    site, row, col, height = 0, 0, 0, 0
    for block in blocks:
        rows, cols = block.shape
        if col + cols > array.weight_cols:
            row, col, height = row + height, 0, 0
        if row + rows > array.rows:
            site, row, col, height = site + 1, 0, 0, 0
        yield site, row, col
        col, height = col + cols, max(height, rows)


def _placement(array: int, row: int, col: int, block: Block) -> Placement:
    rows, cols = block.shape
    return Placement(
        array=array,
        row=row,
        col=col,
        row_map=np.arange(rows, dtype=np.int32),
        col_order=np.arange(cols, dtype=np.int32),
        col_sign=np.ones(cols, np.int8),
    )
