"""Copies of layers' matrices, which share out the windows of a sample: the slowest layers get the most."""

import difflib
import heapq
from collections.abc import Mapping as Table
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from compiler.mapping import Mapping, MatrixLayer
from compiler.packing import Share, Territory, pack_grids, sites_of
from hwspec.errors import DataError
from runtime.tables import MOST_COPIES, input_phases, window_bands

Copies = int | Literal["balance"] | Table[str, int]
"""Of every layer that has windows for them, as many as even out the pipeline, or of layers by name."""


@dataclass(frozen=True)
class Duplicate:
    """Give layers copies.

    To balance, the slowest layer gets as many more copies as make it faster, again and again, until the next ones would
    not fit (ISAAC, ISCA 2016, section V): no other layer's copies shorten the interval of the pipeline then.

    Parameters
    ----------
    copies
        Of each layer.
    budget
        Physical arrays to balance within; None takes those of the chip (`chip.tiles`).
    share
        Which tiles share arrays: those on one array wait for one another.
    """

    copies: Copies = 1
    budget: int | None = None
    share: Share = "layer"
    name: ClassVar[str] = "duplicate"
    requires: ClassVar[tuple[str, ...]] = ("quantize",)

    def run(self, mapping: Mapping) -> Mapping:
        """Fill in the copies of `grids`."""
        if self.copies == "balance":
            chosen = self._balanced(mapping)
        elif isinstance(self.copies, int):
            chosen = {layer.name: max(min(self.copies, layer.windows), 1) for layer in mapping.layers}
        else:
            chosen = named_copies(self.copies, mapping.layers)
        grids = {name: replace(grid, copies=chosen.get(name, 1)) for name, grid in mapping.grids.items()}
        return replace(mapping, grids=grids)

    def _balanced(self, mapping: Mapping) -> dict[str, int]:
        per_site = mapping.spec.array.arrays_per_site
        budget = mapping.spec.chip.arrays if self.budget is None else self.budget
        if budget is None:
            hint = "give a budget of arrays (--array-budget), or a chip with a number of tiles (chip.tiles)"
            raise DataError("copies", "can be balanced only within a number of arrays", hint=hint)
        sites = {layer.name: self._sites(mapping, layer) for layer in mapping.layers}
        chosen = dict.fromkeys(sites, 1)
        left = budget // per_site - sum(sites.values())
        steps = [self._steps(mapping, layer) for layer in mapping.layers]
        slowest = [(-layer.windows * steps[number], number) for number, layer in enumerate(mapping.layers)]
        heapq.heapify(slowest)
        while slowest:
            number = slowest[0][1]
            layer = mapping.layers[number]
            each = len(window_bands(layer.windows, chosen[layer.name])[0])
            if each <= 1:
                break
            more = -(-layer.windows // (each - 1))
            cost = (more - chosen[layer.name]) * sites[layer.name]
            if cost > left or more > MOST_COPIES:
                break
            chosen[layer.name], left = more, left - cost
            heapq.heapreplace(slowest, (-len(window_bands(layer.windows, more)[0]) * steps[number], number))
        return chosen

    def _sites(self, mapping: Mapping, layer: MatrixLayer) -> int:
        """Sites of one copy."""
        return sites_of(self._packed(mapping, layer))

    def _packed(self, mapping: Mapping, layer: MatrixLayer) -> dict[str, tuple[Territory, ...]]:
        share: Share = "layer" if self.share == "all" else self.share
        return pack_grids({layer.name: mapping.grids[layer.name]}, mapping.spec.array, share=share, spares=False)

    def _steps(self, mapping: Mapping, layer: MatrixLayer) -> int:
        """Reads of the busiest array for a window."""
        signed, (places,) = mapping.quantized[layer.name].signed, self._packed(mapping, layer).values()
        drives: dict[int, set[tuple[int, int, int]]] = {}
        for block, place in zip(mapping.grids[layer.name].blocks, places, strict=True):
            drives.setdefault(place.site, set()).add((block.group, block.rows.start, place.rows.start))
        digits = mapping.spec.periphery.digits(signed) * len(input_phases(mapping.spec, signed))
        return digits * max(len(found) for found in drives.values())


def named_copies(copies: Table[str, int], layers: tuple[MatrixLayer, ...]) -> dict[str, int]:
    """Copies of layers by name.

    Raises
    ------
    DataError
        If there is no such layer, or it has fewer windows.
    """
    windows = {layer.name: layer.windows for layer in layers}
    for name, count in copies.items():
        if name not in windows:
            close = difflib.get_close_matches(name, windows, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"layers: {', '.join(list(windows)[:8])}"
            raise DataError(f"copies of layer {name!r}", "must be of a layer of the model", hint=hint)
        if not 1 <= count <= min(windows[name] or 1, MOST_COPIES):
            most = min(windows[name] or 1, MOST_COPIES)
            raise DataError(f"copies of layer {name!r}", f"must be from 1 to {most}, a window each", got=count)
    return dict(copies)
