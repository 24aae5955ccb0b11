"""Which rectangle of which site each tile may use: side by side on shelves, and the lines left over shared out."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from compiler.mapping import TileGrid
from compiler.rectangle_packing import Shape, pack_rectangles
from hwspec.array import Array
from hwspec.errors import DataError
from runtime.program import TileProgram
from runtime.tables import Mvm

Vector = tuple[int, int, int]
"""What drives a tile: copy and group of the matrix, and the first row."""
Share = Literal["none", "inputs", "layer", "all"]
"""Which tiles may share an array: none, those of a layer with the same inputs, those of one layer, or those of any."""


def chosen_share(value: object) -> Share:
    """Which tiles share arrays; True is those of a layer, False none.

    Raises
    ------
    DataError
        If there is no such choice.
    """
    if isinstance(value, bool):
        return "layer" if value else "none"
    choices: tuple[Share, ...] = get_args(Share)
    for choice in choices:
        if value == choice:
            return choice
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {close[0]!r}?" if close else ""
    raise DataError("sharing of arrays", f"must be one of {', '.join(choices)}", got=value, hint=hint)


def share_of(program: TileProgram) -> Share:
    """The choice that a program's tiles show: the narrowest one under which they share the arrays that they do."""
    vectors: dict[str, tuple[str, str]] = {}
    for loop in program.tables.loops:
        vectors |= {step.tile: (loop.layer, step.source) for step in loop.body if isinstance(step, Mvm)}
    on_array: dict[int, list[tuple[str, str]]] = {}
    for tile in program.tables.tiles:
        on_array.setdefault(tile.array, []).append(vectors[tile.name])
    if any(len({layer for layer, _ in found}) > 1 for found in on_array.values()):
        return "all"
    if any(len({*found}) > 1 for found in on_array.values()):
        return "layer"
    return "inputs" if any(len(found) > 1 for found in on_array.values()) else "none"


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


def pack_grids(
    grids: Mapping[str, TileGrid], array: Array, *, share: Share, spares: bool
) -> dict[str, tuple[Territory, ...]]:
    """The territories of all tiles of the layers' grids; as `pack_layers`."""
    shapes = {name: [block.shape for block in grid.blocks] for name, grid in grids.items()}
    vectors = {
        name: [(block.copy, block.group, block.rows.start) for block in grid.blocks] for name, grid in grids.items()
    }
    return pack_layers(shapes, array, share=share, spares=spares, vectors=vectors)


def pack_layers(
    shapes: Mapping[str, Sequence[Shape]],
    array: Array,
    *,
    share: Share,
    spares: bool,
    vectors: Mapping[str, Sequence[Vector]] | None = None,
) -> dict[str, tuple[Territory, ...]]:
    """The territory of each tile of every layer, sites counted from 0 over all layers.

    Parameters
    ----------
    shapes
        Rows and columns of each layer's tiles.
    array
        Its sites.
    share
        Which tiles may share a site. With ``"inputs"`` those that the same vector drives, side by side on the same word
        lines: an array reads them at once. With ``"all"`` tiles are packed as rectangles, unless that takes as many
        sites as ``"layer"``: tiles of different layers on one array cannot run at once, so layers share only where it
        saves arrays.
    spares
        Whether the lines that a site leaves over go to its tiles. Packed rectangles get none.
    vectors
        Which vector drives each tile; None where all tiles of a layer take the same. Copies never share a site but as
        rectangles: they are there to run at once.
    """
    found, start = {}, 0
    for name, of_layer in shapes.items():
        of_tiles = [(0, 0, 0)] * len(of_layer) if vectors is None else vectors[name]
        together: dict[object, list[int]] = {}
        for number, vector in enumerate(of_tiles):
            together.setdefault(vector if share == "inputs" else vector[0], []).append(number)
        places: dict[int, Territory] = {}
        for numbers in together.values():
            parts = pack(
                [of_layer[number] for number in numbers],
                array,
                share=share != "none",
                spares=spares,
                stack=share != "inputs",
            )
            places |= {
                number: replace(part, site=start + part.site) for number, part in zip(numbers, parts, strict=True)
            }
            start += parts[-1].site + 1
        found[name] = tuple(places[number] for number in range(len(of_layer)))
    if share != "all":
        return found
    every = list(itertools.chain.from_iterable(shapes.values()))
    spots = pack_rectangles(every, array.weight_rows, array.weight_cols)
    if max(spot.site for spot in spots) + 1 >= start:
        return found
    rectangles = (
        Territory(spot.site, slice(spot.row, spot.row + rows), slice(spot.col, spot.col + cols))
        for spot, (rows, cols) in zip(spots, every, strict=True)
    )
    return {name: tuple(itertools.islice(rectangles, len(of_layer))) for name, of_layer in shapes.items()}


def sites_of(territories: Mapping[str, Sequence[Territory]]) -> int:
    """Sites that tiles take."""
    return max(place.site for places in territories.values() for place in places) + 1


def pack(
    shapes: Sequence[Shape], array: Array, *, share: bool, spares: bool, stack: bool = True
) -> tuple[Territory, ...]:
    """The territory of each tile of one layer, sites counted from 0.

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
    stack
        Whether a site may have several shelves.
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
        if stack and sum(one.height for one in sites[-1]) + rows <= array.weight_rows:
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
