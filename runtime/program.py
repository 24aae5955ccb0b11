"""The tile program: what the compiler emits and everything else runs, verifies and reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.spec import HardwareSpec
from runtime.listing import print_listing
from runtime.quantize import Float64, WeightCode, level_conductances
from runtime.report import CompileReport
from runtime.tables import Gather, Layer, Scatter, Tables, Tile

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TileTensors:
    """The arrays of one tile, in the physical order of its rectangle.

    Attributes
    ----------
    plus, minus : (rows, cols)
        Target of each device of the pairs: level codes, or siemens where levels are continuous. A single device
        against a reference is `plus`; `minus` is zero then.
    row_map : (rows,) int32
        Physical row (in the rectangle) that element ``i`` of the loaded vector drives.
    col_map : (cols,) int32
        Element of the layer's result that physical column ``j`` contributes to.
    col_sign : (cols,) int8
        +1, or -1 where the pair is swapped and undone digitally.
    scale : (cols,) float64
        Weight that a conductance difference of `weight_span` stands for.
    gain : (cols,) float64
        Digital gain that makes up for what wires and the headroom of pre-distorted targets leave; else 1.
    """

    plus: npt.NDArray[Any]
    minus: npt.NDArray[Any]
    row_map: npt.NDArray[np.int32]
    col_map: npt.NDArray[np.int32]
    col_sign: npt.NDArray[np.int8]
    scale: Float64
    gain: Float64


TILE_TENSORS = tuple(TileTensors.__dataclass_fields__)


@dataclass(frozen=True, eq=False)
class TileProgram:
    """A compiled model.

    `tensors` holds, for each layer, its tiles' arrays end to end (``<layer>/plus`` …) and its bias. `weights` are the
    float weights a layer, ``(groups, rows, cols)``. `calibration` holds ``<layer>/range``, ``mean``, ``covariance`` and
    ``vectors``. `source` is the model as given, or None when it was left out.
    """

    tables: Tables
    tensors: Tensors
    segments: Mapping[str, bytes]
    weights: Tensors
    calibration: Tensors
    report: CompileReport
    source: bytes | None

    @property
    def spec(self) -> HardwareSpec:
        """The hardware that the program was compiled for."""
        return self.tables.spec

    @property
    def arrays(self) -> int:
        """Physical arrays that the program addresses."""
        return self.tables.arrays

    def listing(self) -> str:
        """The program as text; `runtime.listing.parse_listing` reads it back."""
        return print_listing(self.tables)

    def save(self, path: str | Path) -> None:
        """Write the program to one file, atomically; `xbarc.load` reads it back."""
        from runtime.archive import save_program

        save_program(self, Path(path))

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers by name."""
        return {layer.name: layer for layer in self.tables.layers}

    @cached_property
    def gathers(self) -> dict[str, Gather]:
        """The gathers by name."""
        return {gather.name: gather for gather in self.tables.gathers}

    @cached_property
    def scatters(self) -> dict[str, Scatter]:
        """The scatters by name."""
        return {scatter.name: scatter for scatter in self.tables.scatters}

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Types of the program's inputs and buffers by name."""
        inputs = {info.name: info.dtype for info in self.tables.inputs}
        return inputs | {buffer.name: buffer.dtype for buffer in self.tables.buffers}

    @cached_property
    def tiles(self) -> dict[str, Tile]:
        """The tiles by name."""
        return {tile.name: tile for tile in self.tables.tiles}

    @cached_property
    def tile_tensors(self) -> dict[str, TileTensors]:
        """The arrays of each tile by its name."""
        return split_tile_tensors(self.tables.tiles, self.tensors)

    def bias(self, layer: str) -> Float64:
        """Digital bias of a layer, one for each element of its result (of its channels where results are folded)."""
        bias: Float64 = self.tensors[f"{layer}/bias"]
        return bias

    @cached_property
    def tile_starts(self) -> dict[str, int]:
        """First element of the layer's vectors that drives each tile, where a tile is driven for the first time."""
        starts: dict[str, int] = {}
        for loop in self.tables.loops:
            loads: dict[str, int] = {}
            for step in loop.body:
                if step.op == "load":
                    loads[step.into] = step.start
                elif step.op == "mvm":
                    starts.setdefault(step.tile, loads[step.source])
        return starts

    def target_conductances(self, tile: str) -> tuple[Float64, Float64]:
        """Target conductances (plus, minus) of a tile, siemens, each ``(rows, cols)``; minus may be the reference."""
        tensors, table = self.tile_tensors[tile], level_conductances(self.spec.device)
        plus = tensors.plus if table is None else table[tensors.plus]
        if self.spec.array.pairing == "reference":
            return plus, np.full_like(plus, self.spec.reference_conductance)
        return plus, tensors.minus if table is None else table[tensors.minus]

    def intended(self, tile: str, *, exact: bool = False) -> Float64:
        """What a tile's conductance differences should be, in units of `weight_span`, ``(rows, cols)`` as they lie.

        Parameters
        ----------
        tile
            Name of the tile.
        exact
            Whether to give what makes the layer's result that of its float weights (the most significant slice holds
            all of a weight then), instead of weights on the devices' levels.
        """
        row, tensors = self.tiles[tile], self.tile_tensors[tile]
        layer, code = self.layers[row.layer], WeightCode.of(self.spec)
        group, start = divmod(self.tile_starts[tile], layer.rows)
        weights = self.weights[row.layer].astype(np.float64)
        block = weights[group, start : start + row.rows, tensors.col_map - group * layer.cols].T * tensors.col_sign
        if exact:
            share = block / (tensors.scale * tensors.gain) * (row.slice == self.spec.array.slices - 1)
        else:
            normalized = np.clip(block * (code.slice_weight(row.slice) / tensors.scale), -1, 1)
            share = code.differences(code.round(normalized), row.slice)
        physical = np.empty_like(share)
        physical[tensors.row_map] = share
        return physical

    def decoded_weights(self, layer: str) -> Float64:
        """The weights that a layer's tiles stand for, ``(groups, rows, cols)`` float64.

        Read from the instructions: what is loaded, driven and accumulated decides where a weight belongs.
        """
        table = self.layers[layer]
        decoded = np.zeros((table.groups, table.rows, table.cols))
        loop = next(loop for loop in self.tables.loops if loop.layer == layer)
        starts: dict[str, int] = {}
        seen: set[tuple[str, int]] = set()
        for step in loop.body:
            if step.op == "load":
                starts[step.into] = step.start
            if step.op != "mvm" or (step.tile, starts[step.source]) in seen:
                continue
            start = starts[step.source]
            seen.add((step.tile, start))
            group, row = divmod(start, table.rows)
            tensors = self.tile_tensors[step.tile]
            plus, minus = self.target_conductances(step.tile)
            factor = tensors.col_sign * tensors.scale * tensors.gain / self.spec.weight_span
            block = (plus - minus)[tensors.row_map] * factor
            decoded[group, row : row + len(block), tensors.col_map - group * table.cols] += block.T
        return decoded


def split_tile_tensors(tiles: tuple[Tile, ...], tensors: Tensors) -> dict[str, TileTensors]:
    """Cut the layers' flat tensors into tiles, in the order of the table."""
    at: dict[str, dict[str, int]] = {}
    result: dict[str, TileTensors] = {}
    for tile in tiles:
        position = at.setdefault(tile.layer, dict.fromkeys(TILE_TENSORS, 0))
        parts: dict[str, npt.NDArray[Any]] = {}
        for key in TILE_TENSORS:
            size = tile_tensor_size(key, tile)
            flat = tensors[f"{tile.layer}/{key}"]
            parts[key] = flat[position[key] : position[key] + size]
            position[key] += size
        for key in ("plus", "minus"):
            parts[key] = parts[key].reshape(tile.rows, tile.cols)
        result[tile.name] = TileTensors(**parts)
    return result


def tile_tensor_size(key: str, tile: Tile) -> int:
    """Elements that a tile has in its layer's flat tensor `key`."""
    if key in ("plus", "minus"):
        return tile.rows * tile.cols
    return tile.rows if key == "row_map" else tile.cols
