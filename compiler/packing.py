"""Which rectangle of which site each tile may use: side by side on shelves, and the lines left over shared out."""

from collections.abc import Sequence
from dataclasses import dataclass

from hwspec.array import Array


@dataclass(frozen=True)
class Territory:
    """A rectangle of a site: its lines are one tile's, used or spare."""

    site: int
    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start


@dataclass
class _Shelf:
    """Tiles side by side, by their numbers, and their widths."""

    height: int
    tiles: list[int]
    widths: list[int]


def pack(shapes: Sequence[tuple[int, int]], array: Array, *, share: bool, spares: bool) -> tuple[Territory, ...]:
    """The territory of each tile, sites counted from 0.

    Parameters
    ----------
    shapes
        Rows and columns of each tile.
    array
        Its sites.
    share
        Whether tiles may share a site: side by side while they fit, then on the next shelf, then on the next site.
    spares
        Whether the lines that a site leaves over go to its tiles, in proportion to their sizes.
    """
    sites: list[list[_Shelf]] = []
    for number, (rows, cols) in enumerate(shapes):
        if not sites or not share:
            sites.append([_Shelf(rows, [number], [cols])])
            continue
        shelf = sites[-1][-1]
        if sum(shelf.widths) + cols <= array.weight_cols:
            used = sum(one.height for one in sites[-1][:-1])
            if used + max(shelf.height, rows) <= array.weight_rows:
                shelf.tiles.append(number)
                shelf.widths.append(cols)
                shelf.height = max(shelf.height, rows)
                continue
        if sum(one.height for one in sites[-1]) + rows <= array.weight_rows:
            sites[-1].append(_Shelf(rows, [number], [cols]))
        else:
            sites.append([_Shelf(rows, [number], [cols])])
    found: dict[int, Territory] = {}
    for site, shelves in enumerate(sites):
        heights = [shelf.height for shelf in shelves]
        row = 0
        for shelf, height in zip(shelves, _shared(heights, array.weight_rows) if spares else heights, strict=True):
            col = 0
            for number, width in zip(
                shelf.tiles, _shared(shelf.widths, array.weight_cols) if spares else shelf.widths, strict=True
            ):
                rows = height if spares else shapes[number][0]
                found[number] = Territory(site, slice(row, row + rows), slice(col, col + width))
                col += width
            row += height
    return tuple(found[number] for number in range(len(shapes)))


def _shared(sizes: Sequence[int], whole: int) -> list[int]:
    """Sizes that add up to the whole: what is left over is shared out in proportion, the rest goes to the first."""
    left, total = whole - sum(sizes), sum(sizes)
    grown = [size + left * size // total for size in sizes]
    grown[0] += whole - sum(grown)
    return grown
