"""Which physical array holds which tile, and where on it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from compiler.mapping import Block, Mapping, MatrixLayer, Placement
from hwspec.array import Array


@dataclass(frozen=True)
class Place:
    """Put tiles on arrays in order; small tiles of one layer share arrays. Rows and columns keep their order.

    A column of single devices against a reference whose weights are high on the whole is stored with the opposite sign
    (the flip code of ISAAC, ISCA 2016): its current is never above that of a column at half of the range.

    Parameters
    ----------
    share
        Whether tiles may share an array; otherwise each has one of its own.
    """

    share: bool = True
    name: ClassVar[str] = "place"
    requires: ClassVar[tuple[str, ...]] = ("quantize",)

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `placements`."""
        array = mapping.spec.array
        placements, site = {}, 0
        for layer in mapping.layers:
            blocks = mapping.grids[layer.name].blocks
            signs = _column_signs(mapping, layer)
            corners = list(shelves(blocks, array)) if self.share else [(n, 0, 0) for n in range(len(blocks))]
            placements[layer.name] = tuple(
                _placement((site + number) * array.arrays_per_site, row, col, block, signs[block.group, block.cols])
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
        if row + rows > array.weight_rows:
            site, row, col, height = site + 1, 0, 0, 0
        yield site, row, col
        col, height = col + cols, max(height, rows)


def _column_signs(mapping: Mapping, layer: MatrixLayer) -> npt.NDArray[np.int8]:
    """Sign that each column is stored with, ``(groups, N)``."""
    groups, _, cols = layer.weight.shape
    signs = np.ones((groups, cols), np.int8)
    # Listed levels need not lie evenly around the middle: the opposite of a weight would be another one.
    if mapping.spec.array.pairing == "reference" and not isinstance(mapping.spec.device.levels, tuple):
        signs[mapping.quantized[layer.name].normalized.sum(axis=1) > 0] = -1
    return signs


def _placement(array: int, row: int, col: int, block: Block, signs: npt.NDArray[np.int8]) -> Placement:
    rows, cols = block.shape
    return Placement(
        array=array,
        row=row,
        col=col,
        row_map=np.arange(rows, dtype=np.int32),
        col_order=np.arange(cols, dtype=np.int32),
        col_sign=signs,
    )
