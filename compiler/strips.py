"""The tiles that the same inputs drive, and the orders of their lines."""

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from compiler.assignment import Held, closed_form, plain
from compiler.mapping import Block, Mapping, MatrixLayer, Placement, QuantizedLayer
from compiler.moments import Moments, moments_of
from compiler.orders import Order, TileTask, choose_orders
from compiler.packing import Territory
from compiler.step_errors import FIRST, Errors
from runtime.pairs import PairRules, SitePairs
from runtime.quantize import Float64, WeightCode

Pairs = Callable[[int], SitePairs]
"""The pairs of the site whose first array has this number."""


@dataclass(frozen=True, eq=False)
class Strip:
    """A row block of one group: the tiles of one copy, of all columns, slices and replicas.

    Attributes
    ----------
    layer, numbers
        Name of the layer, and the tiles' numbers in its grid.
    blocks, territories, arrays, orders
        Of each tile.
    weight : (groups, K, N)
        Of the layer.
    quantized
        Of the layer.
    weighting : (rows, rows)
        How errors of the block's weights are weighed.
    code, replicas
        Of the devices.
    """

    layer: str
    numbers: tuple[int, ...]
    blocks: tuple[Block, ...]
    territories: tuple[Territory, ...]
    arrays: tuple[int, ...]
    orders: tuple[Order, ...]
    weight: npt.NDArray[np.floating]
    quantized: QuantizedLayer
    weighting: Float64
    code: WeightCode
    replicas: int

    def placements(self, orders: Sequence[Order] | None = None) -> tuple[Placement, ...]:
        """Where the tiles lie, with these orders or their own."""
        chosen = self.orders if orders is None else orders
        parts = zip(self.arrays, self.territories, chosen, strict=True)
        return tuple(placement_of(array, place, order) for array, place, order in parts)

    def columns(self) -> list[list[int]]:
        """Tiles of each column block, their most significant slices first (as in `PairRules`)."""
        found: dict[int, list[int]] = {}
        for at, block in enumerate(self.blocks):
            found.setdefault(block.cols.start, []).append(at)
        return [
            sorted(tiles, key=lambda at: (-self.blocks[at].slice, self.blocks[at].replica)) for tiles in found.values()
        ]

    def held(self, pairs: Pairs, rules: PairRules, orders: Sequence[Order] | None = None) -> list[Held]:
        """What each column block holds when failures are not heeded."""
        places = self.placements(orders)
        return [
            plain(
                self.quantized,
                self.weight,
                [self.blocks[at] for at in tiles],
                [places[at] for at in tiles],
                {self.arrays[at]: pairs(self.arrays[at]) for at in tiles},
                rules,
                self.code,
            )
            for tiles in self.columns()
        ]

    def scales(self) -> list[Float64]:
        """Column scales of each column block."""
        return [
            self.quantized.scale[self.blocks[tiles[0]].group, self.blocks[tiles[0]].cols] for tiles in self.columns()
        ]

    def tasks(self, pairs: Pairs) -> list[TileTask]:
        """The tiles as those that look for lines."""
        found = []
        for block, place, array in zip(self.blocks, self.territories, self.arrays, strict=True):
            scale = self.quantized.scale[block.group, block.cols]
            weights = self.weight[block.group, block.rows, block.cols].astype(np.float64) / scale
            if self.code.slices > 1:
                rounded = self.quantized.normalized[block.group, block.rows, block.cols]
                weights = self.code.differences(rounded, block.slice)
            found.append(
                TileTask.of(
                    np.clip(weights, -1, 1),
                    np.diagonal(self.weighting).copy(),
                    (scale * self.code.slice_weight(block.slice) / self.replicas) ** 2,
                    pairs(array),
                    place.rows,
                    place.cols,
                )
            )
        return found


def placement_of(array: int, place: Territory, order: Order) -> Placement:
    """The placement of a tile that lies on these lines of its territory."""
    word, bit = np.argsort(order.row_line), np.argsort(order.col_line)
    row_map = np.empty(len(word), np.int32)
    row_map[word] = np.arange(len(word))
    return Placement(
        array=array,
        word_lines=(place.rows.start + order.row_line[word]).astype(np.int32),
        bit_lines=(place.cols.start + order.col_line[bit]).astype(np.int32),
        row_map=row_map,
        col_order=bit.astype(np.int32),
        col_sign=order.sign[bit],
    )


def layer_strips(
    mapping: Mapping,
    layer: MatrixLayer,
    territories: Sequence[Territory],
    arrays: Sequence[int],
    signs: npt.NDArray[np.int8],
    *,
    centred: bool,
) -> list[Strip]:
    """The strips of a layer, every tile in order on its territory."""
    grid = mapping.grids[layer.name]
    groups: dict[tuple[int, int, int], list[int]] = {}
    for number, block in enumerate(grid.blocks):
        groups.setdefault((block.group, block.rows.start, block.copy), []).append(number)
    found, centred = [], centred and takes_bias(layer)
    weightings: dict[tuple[int, int], tuple[Moments, Float64]] = {}

    @functools.cache
    def of_group(group: int) -> tuple[Moments, ...]:
        return Moments.of_group(mapping.statistics[layer.name], grid, group)

    for numbers in groups.values():
        blocks = [grid.blocks[number] for number in numbers]
        group, rows = blocks[0].group, blocks[0].rows
        moments = moments_of(of_group(group), rows)
        key = group, moments.rows.start
        if key not in weightings:
            weightings[key] = moments, moments.weighting(centred=centred)
        within = moments.within(rows)
        found.append(
            Strip(
                layer=layer.name,
                numbers=tuple(numbers),
                blocks=tuple(blocks),
                territories=tuple(territories[number] for number in numbers),
                arrays=tuple(arrays[number] for number in numbers),
                orders=tuple(Order.identity(*block.shape, signs[block.group, block.cols]) for block in blocks),
                weight=layer.weight,
                quantized=mapping.quantized[layer.name],
                weighting=np.ascontiguousarray(weightings[key][1][within, within]),
                code=WeightCode.of(mapping.spec),
                replicas=mapping.replicas,
            )
        )
    return found


def takes_bias(layer: MatrixLayer) -> bool:
    """Whether a digital bias can take up the mean of each column: results that are folded share theirs."""
    return layer.scatter.kind != "fold"


def errors_of(strip: Strip, held: Iterable[Held]) -> Errors:
    """Errors of the weights of a strip's column blocks, ``(cols, rows)`` in the layer's units."""
    return [
        ((one.value - one.target) * scale[:, None]).astype(np.float32)
        for one, scale in zip(held, strip.scales(), strict=True)
    ]


def costs_of(strip: Strip, held: Iterable[Held]) -> Float64:
    """``e' H e`` of each column block of a strip, alone."""
    return np.array([scale**2 @ one.error(strip.weighting) for one, scale in zip(held, strip.scales(), strict=True)])


def start_strip(strip: Strip, pairs: Pairs, rules: PairRules, steps: Collection[str]) -> dict[str, Errors]:
    """The errors of a strip in order."""
    held = strip.held(pairs, rules)
    found = {FIRST: errors_of(strip, held)}
    if "pair" in steps:
        found["pair"] = errors_of(strip, [closed_form(one, strip.weighting, rules) for one in held])
    return found


def order_strip(
    strip: Strip, pairs: Pairs, rules: PairRules, steps: Collection[str], *, turn: bool, router: bool
) -> tuple[Strip, dict[str, Errors]]:
    """Orders of a strip's tiles, and the errors after each step.

    A step is taken back where it leaves any tile worse than in order, or all of them together worse than before.

    Parameters
    ----------
    strip
        In order, on its arrays.
    pairs, rules
        Of the chip.
    steps
        To take.
    turn
        Whether columns can be stored with the opposite sign.
    router
        Whether each tile can take its inputs in an order of its own.
    """

    def fitted(orders: Sequence[Order] | None = None) -> list[Held]:
        held = strip.held(pairs, rules, orders)
        return [closed_form(one, strip.weighting, rules) for one in held] if "pair" in steps else held

    found: dict[str, Errors] = {}
    limit = costs_of(strip, strip.held(pairs, rules))
    held = fitted()
    best, errors, chosen = costs_of(strip, held), errors_of(strip, held), strip.orders
    if "arrays" in steps:
        found["arrays"] = errors
    for step, orders in choose_orders(
        strip.tasks(pairs), strip.orders, rules, steps, signs=turn, router=router
    ).items():
        held = fitted(orders)
        tried = costs_of(strip, held)
        if tried.sum() < best.sum() and (tried <= limit).all():
            best, errors, chosen = tried, errors_of(strip, held), orders
        found[step] = errors
    return replace(strip, orders=chosen), found
