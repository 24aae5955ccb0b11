"""The same program with other weights: every target anew, everything that is no function of the weights as it was."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.errors import ProgramError
from hwspec.reach import isolation
from runtime.layout import Side
from runtime.pairs import PairRules, SitePairs, site_pairs
from runtime.pairs_numba import OFF, hulls, nearest_pairs
from runtime.program import TileProgram
from runtime.quantize import Float64, WeightCode, is_off, off_target
from runtime.tables import Tile

Floats = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Shares:
    """What a tile is to hold of its layer's weights, in the order of its loaded elements and its columns.

    Attributes
    ----------
    wanted : (rows, cols)
        Weights over those that the tile's full scale stands for, before they are clipped to [-1, 1] and rounded.
    index : (rows, cols)
        Where each lies in the layer's flattened ``(groups, rows, cols)``.
    slope : (cols,)
        Of `wanted` over the weights.
    """

    wanted: Float64
    index: npt.NDArray[np.int64]
    slope: Float64


def check_rewritable(program: TileProgram) -> None:
    """Raise `ProgramError` for a program whose targets do not follow from its weights alone."""
    subject = "program"
    if program.tables.predistorted:
        hint = "compile it without: predistort=False, or --no-predistort"
        raise ProgramError(subject, "must hold the weights' own targets, and holds pre-distorted ones", hint=hint)
    pairs = max((layer.replicas * layer.copies for layer in program.tables.layers), default=1)
    parts = program.spec.array.slices * pairs
    if program.faults is not None and parts > 1:
        hint = "train the program as it was before it was mapped, for any chip"
        requirement = "must hold each weight on one pair, mapped around the failed devices of a chip"
        raise ProgramError(subject, requirement, got=f"{parts} pairs a weight", hint=hint)


def tile_shares(program: TileProgram, tile: Tile, weights: Float64) -> Shares:
    """What a tile is to hold of its layer's weights ``(groups, rows, cols)``, digital residue left out."""
    tensors, layer = program.tile_tensors[tile.name], program.layers[tile.layer]
    group, start = divmod(program.tile_starts[tile.name], layer.rows)
    rows = group * layer.rows + start + np.arange(tile.rows)
    index = rows[:, None] * layer.cols + (tensors.col_map.astype(np.int64) - group * layer.cols)
    slope = tensors.col_sign * (program.part_weight(tile.name) / tensors.scale)
    flat = weights.reshape(-1)
    at, values = program.residue(tile.layer)
    if len(at):
        flat = flat.copy()
        flat[at] -= values
    return Shares(flat[index] * slope, index, slope)


def rewrite(program: TileProgram, weights: Floats, biases: Floats) -> TileProgram:
    """A program with these weights ``(groups, rows, cols)`` and biases of its layers, on the same tiles and scales.

    Where it is mapped around failed devices, their pairs hold what comes closest; nothing else makes up for them, and
    biases are taken as they are. Digital residue stays: the tiles hold what is left of those weights.

    Raises
    ------
    ProgramError
        If its targets are not those of its weights; see `check_rewritable`.
    """
    check_rewritable(program)
    code, failed = WeightCode.of(program.spec), FailedPairs(program)
    parts: dict[str, dict[Side, list[npt.NDArray[Any]]]] = {}
    doubles = {name: np.asarray(values, np.float64) for name, values in weights.items()}
    for tile in program.tables.tiles:
        of_layer = parts.setdefault(tile.layer, {"plus": [], "minus": []})
        shares = tile_shares(program, tile, doubles[tile.layer])
        wanted = np.empty_like(shares.wanted)
        wanted[program.tile_tensors[tile.name].row_map] = shares.wanted
        plus, minus = code.devices(code.round(np.clip(wanted, -1, 1)), tile.slice)
        failed.assign(tile, wanted, plus, minus)
        of_layer["plus"].append(plus.reshape(-1))
        of_layer["minus"].append(minus.reshape(-1))
    tensors = {key: value for key, value in program.tensors.items() if not key.endswith("/bias_shift")}
    for layer, of_sides in parts.items():
        for side, flat in of_sides.items():
            tensors[f"{layer}/{side}"] = np.concatenate(flat)
    for layer, bias in biases.items():
        tensors[f"{layer}/bias"] = np.asarray(bias, np.float64)
    kept = {name: values.astype(program.weights[name].dtype) for name, values in doubles.items()}
    tables = program.tables.model_copy(update={"tuned": True, "robust": False})
    return replace(program, tables=tables, tensors=tensors, weights={**program.weights, **kept})


class FailedPairs:
    """The pairs with failed devices of a program that is mapped around them; none where it suits any chip."""

    def __init__(self, program: TileProgram) -> None:
        self._program, self._rules = program, PairRules.of(program.spec)
        self._by_line = isolation(program.spec.array, program.spec.failures) == "line"
        self._sites: dict[int, SitePairs] = {}

    def _pairs(self, tile: Tile) -> tuple[Float64, Float64, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Shares of a tile's failed devices, their gates, and which pairs have one, ``(rows, cols)`` as they lie."""
        assert self._program.faults is not None
        if tile.array not in self._sites:
            spec = self._program.spec
            self._sites[tile.array] = site_pairs(spec, self._program.faults, tile.array, self._gated(tile.array))
        site, tensors = self._sites[tile.array], self._program.tile_tensors[tile.name]
        at = np.ix_(tensors.word_lines, tensors.bit_lines)
        return site.plus[at], site.minus[at], site.gate[at], site.failed[at]

    def _gated(self, number: int) -> set[tuple[int, int]]:
        """Word lines of a site that the program gates off."""
        program, found = self._program, set()
        for tile in program.tables.tiles if self._by_line else ():
            if tile.array == number:
                sides = zip(program.places(tile.name).values(), program.gated(tile.name), strict=False)
                for (array, lines, _), off in sides:
                    found |= {(array, int(line)) for line in lines[off.all(1)]}
        return found

    def assign(self, tile: Tile, wanted: Float64, plus: npt.NDArray[Any], minus: npt.NDArray[Any]) -> None:
        """Put the devices that come closest to `wanted` in place of those of pairs with a failed one.

        All arrays are ``(rows, cols)`` as they lie; `wanted` is in units of the tile's full scale.
        """
        program, rules = self._program, self._rules
        if program.faults is None:
            return
        device = program.spec.device
        share_plus, share_minus, gate, failed = self._pairs(tile)
        numbers = np.empty((int(failed.sum()), 2))
        nearest_pairs(
            wanted[failed], share_plus[failed], share_minus[failed], gate[failed],
            rules.levels, rules.open_share, rules.unit, numbers,
        )  # fmt: skip
        single = program.spec.array.pairing == "reference"
        for side, targets in enumerate((plus,) if single else (plus, minus)):
            found = numbers[:, side]
            if device.levels is None:
                targets[failed] = np.where(found == OFF, 0.0, device.g_min + found * device.span)
            else:
                targets[failed] = np.where(found == OFF, off_target(device), found).astype(targets.dtype)
            if self._by_line:
                before = program.tile_tensors[tile.name].plus if side == 0 else program.tile_tensors[tile.name].minus
                targets[is_off(device, before).all(1)] = off_target(device)

    def reach(self, tile: Tile) -> tuple[Float64, Float64]:
        """Lowest and highest weight that a tile's pairs can hold, in units of its full scale, ``(rows, cols)``.

        As the pairs lie; where gates leave several intervals, from the lowest to the highest.
        """
        low, high = -np.ones((tile.rows, tile.cols)), np.ones((tile.rows, tile.cols))
        if self._program.faults is not None:
            plus, minus, gate, failed = self._pairs(tile)
            found = np.empty((int(failed.sum()), 2))
            hulls(plus[failed], minus[failed], gate[failed], self._rules.open_share, self._rules.unit, found)
            low[failed], high[failed] = found[:, 0], found[:, 1]
        return low, high


def reachable_weights(program: TileProgram, layer: str) -> tuple[Float64, Float64]:
    """Lowest and highest value of each weight of a layer that a program's pairs can hold, ``(groups, rows, cols)``."""
    table, failed = program.layers[layer], FailedPairs(program)
    shape = (table.groups, table.rows, table.cols)
    low, high = np.empty(shape), np.empty(shape)
    zeros = np.zeros(shape)
    for tile in program.tables.tiles:
        if tile.layer == layer:
            shares, row_map = tile_shares(program, tile, zeros), program.tile_tensors[tile.name].row_map
            ends = [(end[row_map] - shares.wanted) / shares.slope for end in failed.reach(tile)]
            low.reshape(-1)[shares.index] = np.minimum(*ends)
            high.reshape(-1)[shares.index] = np.maximum(*ends)
    return low, high
