"""Rectangles on equal sites, none of them turned: a packing by maximal rectangles, and how few sites there can be."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Shape = tuple[int, int]
"""Rows and columns."""
Rectangle = tuple[int, int, int, int]
"""First row, first column, rows, columns."""
Int64 = npt.NDArray[np.int64]
Rule = Callable[[int, int, int], Shape]
"""Cost of a fit, for the rows, columns and area that a free rectangle has left over."""

_MOST_FUNCTIONS = 512
"""Of each family in `least_sites`: bounds time where tiles have very many sizes."""

_ORDERS: tuple[Callable[[Shape], Shape], ...] = (
    lambda shape: (shape[0] * shape[1], max(shape)),
    lambda shape: (max(shape), min(shape)),
    lambda shape: (min(shape), max(shape)),
    lambda shape: shape,
    lambda shape: (shape[1], shape[0]),
    lambda shape: (shape[0] + shape[1], max(shape)),
)
"""By area, longer side, shorter side, rows, columns and perimeter; the largest come first."""
_RULES: tuple[Rule, ...] = (
    lambda rows, cols, _: (min(rows, cols), max(rows, cols)),
    lambda rows, cols, area: (area, min(rows, cols)),
    lambda rows, cols, _: (max(rows, cols), min(rows, cols)),
)
"""Best short side, best area and best long side fit."""


@dataclass(frozen=True)
class Spot:
    """Where a rectangle lies: its site, and its first row and column there."""

    site: int
    row: int
    col: int


@dataclass
class _Alike:
    """Sites that hold the same so far, and their maximal free rectangles."""

    sites: list[int]
    free: list[Rectangle]


@dataclass(frozen=True)
class _Grid:
    """Copies of a shape, so many below and beside each other, at the same place of some sites."""

    sites: list[int]
    row: int
    col: int
    down: int
    across: int


@dataclass(frozen=True)
class _Packing:
    """How many sites are taken, and where the copies of each shape lie."""

    sites: int
    grids: dict[Shape, list[_Grid]]


def pack_rectangles(shapes: Sequence[Shape], rows: int, cols: int) -> tuple[Spot, ...]:
    """Where each rectangle lies, on few sites of ``rows`` x ``cols``.

    MaxRects of J. Jylänki, "A thousand ways to pack the bin" (2010), with all sites open: a rectangle goes into the
    maximal free rectangle that it fits best. It is run for several orders and rules of fit, until one takes as few
    sites as `least_sites` allows; the best is kept. Copies of a shape are placed together, as grids, and on all sites
    that are alike at once, so that time grows with the number of different shapes and not with that of rectangles.

    Copies are interchangeable: those that come first lie on the sites that come first.

    Parameters
    ----------
    shapes
        Rows and columns of each rectangle, of one at least; none is larger than a site.
    rows, cols
        Of a site.
    """
    counts = Counter(shapes)
    bound, best = least_sites(shapes, rows, cols), None
    for order, rule in itertools.product(_ORDERS, _RULES):
        ordered = sorted(((order(shape), shape) for shape in counts), reverse=True)
        found = _maximal_rectangles([(shape, counts[shape]) for _, shape in ordered], (rows, cols), rule)
        if best is None or found.sites < best.sites:
            best = found
        if best.sites == bound:
            break
    assert best is not None
    spots = {shape: iter(sorted(_spots(grids, shape))) for shape, grids in best.grids.items()}
    places = [next(spots[shape]) for shape in shapes]
    number: dict[int, int] = {}
    return tuple(Spot(number.setdefault(site, len(number)), row, col) for site, row, col in places)


def _spots(grids: Sequence[_Grid], shape: Shape) -> Iterator[tuple[int, int, int]]:
    """Site, row and column of every copy of a shape."""
    for grid in grids:
        for site, down, across in itertools.product(grid.sites, range(grid.down), range(grid.across)):
            yield site, grid.row + down * shape[0], grid.col + across * shape[1]


def _maximal_rectangles(shapes: Sequence[tuple[Shape, int]], site: Shape, rule: Rule) -> _Packing:
    """Shapes, each so many times, in this order."""
    opened: list[_Alike] = []
    grids: dict[Shape, list[_Grid]] = {}
    count = 0
    for at, (shape, left) in enumerate(shapes):
        smallest = min(rows for (rows, _), _ in shapes[at:]), min(cols for (_, cols), _ in shapes[at:])
        for alike in opened:
            alike.free = [one for one in alike.free if one[2] >= smallest[0] and one[3] >= smallest[1]]
        opened = [alike for alike in opened if alike.free]
        found = grids[shape] = []
        while left:
            fitting = _best_fit(opened, shape, left, rule)
            if fitting is None:
                down, across = _copies(site, shape, left)
                number = max(left // (down * across), 1)
                opened.append(_Alike(list(range(count, count + number)), [(0, 0, *site)]))
                count += number
                fitting = opened[-1], opened[-1].free[0], down, across
            alike, (row, col, _, _), down, across = fitting
            number = min(len(alike.sites), max(left // (down * across), 1))
            if number < len(alike.sites):
                opened.append(_Alike(alike.sites[number:], alike.free))
                alike.sites = alike.sites[:number]
            alike.free = _without(alike.free, (row, col, down * shape[0], across * shape[1]))
            found.append(_Grid(alike.sites, row, col, down, across))
            left -= number * down * across
    return _Packing(count, grids)


def _best_fit(
    opened: Sequence[_Alike], shape: Shape, left: int, rule: Rule
) -> tuple[_Alike, Rectangle, int, int] | None:
    """The free rectangle that copies of a shape fit best, and how many go there; None where not one fits."""
    best, least = None, (0, 0)
    for alike in opened:
        for free in alike.free:
            _, _, rows, cols = free
            if rows < shape[0] or cols < shape[1]:
                continue
            down, across = _copies((rows, cols), shape, left)
            taken = down * shape[0], across * shape[1]
            cost = rule(rows - taken[0], cols - taken[1], rows * cols - taken[0] * taken[1])
            if best is None or cost < least:
                best, least = (alike, free, down, across), cost
    return best


def _copies(space: Shape, shape: Shape, left: int) -> tuple[int, int]:
    """How many copies go below and beside each other: all that fit, or full columns or rows of them, or one line."""
    down, across = space[0] // shape[0], space[1] // shape[1]
    if down * across <= left:
        return down, across
    grids = [(min(down, left), max(left // down, 1)), (max(left // across, 1), min(across, left))]

    def cost(grid: Shape) -> Shape:
        over = space[0] - grid[0] * shape[0], space[1] - grid[1] * shape[1]
        return -grid[0] * grid[1], min(over)

    return min(grids, key=cost)


def _without(free: Sequence[Rectangle], taken: Rectangle) -> list[Rectangle]:
    """The maximal free rectangles once a rectangle is taken."""
    row, col, rows, cols = taken
    kept: list[Rectangle] = []
    cut: set[Rectangle] = set()
    for one in free:
        top, left, height, width = one
        if row >= top + height or top >= row + rows or col >= left + width or left >= col + cols:
            kept.append(one)
            continue
        if row > top:
            cut.add((top, left, row - top, width))
        if row + rows < top + height:
            cut.add((row + rows, left, top + height - row - rows, width))
        if col > left:
            cut.add((top, left, height, col - left))
        if col + cols < left + width:
            cut.add((top, col + cols, height, left + width - col - cols))
    found = kept + sorted(cut)
    return [one for one in found if not any(other != one and _holds(other, one) for other in found)]


def _holds(outer: Rectangle, inner: Rectangle) -> bool:
    return (
        outer[0] <= inner[0]
        and outer[1] <= inner[1]
        and inner[0] + inner[2] <= outer[0] + outer[2]
        and inner[1] + inner[3] <= outer[1] + outer[3]
    )


def least_sites(shapes: Sequence[Shape], rows: int, cols: int) -> int:
    """A lower bound of the sites of ``rows`` x ``cols`` that rectangles take, however they are packed.

    The total area after dual feasible functions changed the sizes, the best over pairs of them for rows and columns
    (Fekete and Schepers, Mathematics of Operations Research 29, 2004). The identity gives the bound of areas. The other
    two families are ``f_0``, where large sizes count as the whole side and small ones as nothing (the bound L2 of
    Martello and Toth, in either direction), and ``f_2`` of Boschetti and Mingozzi (4OR 1, 2003), both as Carlier,
    Clautiaux and Moukrim write them (Computers & Operations Research 34, 2007).

    Parameters
    ----------
    shapes
        Rows and columns of each rectangle.
    rows, cols
        Of a site.
    """
    counts = Counter(shapes)
    sizes, times = np.array(list(counts), np.int64).reshape(-1, 2), np.array(list(counts.values()), np.int64)
    by_rows, whole_rows = dual_feasible(sizes[:, 0], rows)
    by_cols, whole_cols = dual_feasible(sizes[:, 1], cols)
    area = (by_rows * times) @ by_cols.T
    return int(np.max(-(-area // np.multiply.outer(whole_rows, whole_cols))))


def dual_feasible(sizes: Int64, whole: int) -> tuple[Int64, Int64]:
    """Sizes and the whole under dual feasible functions: sizes that fit into the whole together still do so.

    Parameters
    ----------
    sizes : (S,)
        From 1 to `whole`.
    whole
        Side of a site.

    Returns
    -------
    changed : (functions, S)
        The sizes.
    wholes : (functions,)
        The whole.
    """
    steps = np.unique(np.concatenate([[1], sizes, whole - sizes, whole - sizes + 1]))
    steps = steps[(steps >= 1) & (2 * steps <= whole)]
    steps = steps[:: max(-(-len(steps) // _MOST_FUNCTIONS), 1)]
    k, x = steps[:, None], sizes[None, :]
    trimmed = np.where(x > whole - k, whole, np.where(x < k, 0, x))
    stepped = np.where(2 * x > whole, 2 * (whole // k - (whole - x) // k), 2 * (x // k))
    stepped = np.where(2 * x == whole, whole // k, stepped)
    wholes = np.concatenate([[whole], np.full(len(steps), whole), 2 * (whole // steps)])
    return np.concatenate([x, trimmed, stepped]), wholes
