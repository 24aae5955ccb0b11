"""The same program with other weights: every target anew, everything that is no function of the weights as it was."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.errors import ProgramError
from runtime.layout import Side
from runtime.program import TileProgram
from runtime.quantize import Float64, WeightCode
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
    if program.faults is not None:
        hint = "take the program as it was before it was mapped"
        raise ProgramError(subject, "must not be mapped around the failed devices of one chip", hint=hint)


def tile_shares(program: TileProgram, tile: Tile, weights: Float64) -> Shares:
    """What a tile is to hold of its layer's weights ``(groups, rows, cols)``."""
    tensors, layer = program.tile_tensors[tile.name], program.layers[tile.layer]
    group, start = divmod(program.tile_starts[tile.name], layer.rows)
    rows = group * layer.rows + start + np.arange(tile.rows)
    index = rows[:, None] * layer.cols + (tensors.col_map.astype(np.int64) - group * layer.cols)
    slope = tensors.col_sign * (program.part_weight(tile.name) / tensors.scale)
    return Shares(weights.reshape(-1)[index] * slope, index, slope)


def rewrite(program: TileProgram, weights: Floats, biases: Floats) -> TileProgram:
    """A program with these weights ``(groups, rows, cols)`` and biases of its layers, on the same tiles and scales.

    Raises
    ------
    ProgramError
        If its targets are not those of its weights; see `check_rewritable`.
    """
    check_rewritable(program)
    code = WeightCode.of(program.spec)
    parts: dict[str, dict[Side, list[npt.NDArray[Any]]]] = {}
    doubles = {name: np.asarray(values, np.float64) for name, values in weights.items()}
    for tile in program.tables.tiles:
        of_layer = parts.setdefault(tile.layer, {"plus": [], "minus": []})
        wanted = tile_shares(program, tile, doubles[tile.layer]).wanted
        row_map = program.tile_tensors[tile.name].row_map
        sides: tuple[Side, Side] = ("plus", "minus")
        for side, targets in zip(sides, code.devices(code.round(np.clip(wanted, -1, 1)), tile.slice), strict=True):
            physical = np.empty_like(targets)
            physical[row_map] = targets
            of_layer[side].append(physical.reshape(-1))
    tensors = dict(program.tensors)
    for layer, of_sides in parts.items():
        for side, flat in of_sides.items():
            tensors[f"{layer}/{side}"] = np.concatenate(flat)
    for layer, bias in biases.items():
        tensors[f"{layer}/bias"] = np.asarray(bias, np.float64)
    kept = {name: values.astype(program.weights[name].dtype) for name, values in doubles.items()}
    return replace(program, tensors=tensors, weights={**program.weights, **kept})
