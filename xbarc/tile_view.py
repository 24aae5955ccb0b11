"""One tile of a program: where it lies, what its pairs should hold, what has failed there, and what that leaves."""

import difflib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from hwspec.failures import State
from runtime.layout import Place
from runtime.program import TileProgram
from runtime.quantize import Float64
from runtime.tables import Tile

Bools = npt.NDArray[np.bool_]
States = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TileView:
    """A tile as it lies on its array: rows are its word lines from the first, columns its bit lines.

    Attributes
    ----------
    tile
        Its row in the table of tiles.
    group, rows, cols
        Of the layer's matrix: the group, the rows ``(start, stop)`` and the columns, in the order in which they lie.
    places
        Array, word lines and bit lines of each side of the pairs; one side with a reference.
    sign : (cols,)
        -1 where a column is stored with the opposite sign.
    target : (rows, cols)
        Differences of the pairs' target conductances, in units of the range of a device (of half of it with a
        reference).
    held : (rows, cols)
        The same of what the pairs hold when the program's failed devices are what its fault map says.
    states : (rows, cols), one a side
        Codes of `hwspec.failures.State`.
    gated : (rows, cols), one a side
        Devices that are gated off.
    residual : (rows, cols)
        What the layer holds here, all slices, replicas and its digital residue together, less its float weights, in
        units of each column's largest weight.
    """

    tile: Tile
    group: int
    rows: tuple[int, int]
    cols: tuple[int, ...]
    places: tuple[Place, ...]
    sign: npt.NDArray[np.int8]
    target: Float64
    held: Float64
    states: tuple[States, ...]
    gated: tuple[Bools, ...]
    residual: Float64

    @property
    def failed_pairs(self) -> int:
        """Pairs with a failed device (devices, with a reference)."""
        return int(np.any([states != State.OK for states in self.states], axis=0).sum())

    def counts(self) -> list[dict[str, int]]:
        """Failed devices of each side by the name of their state."""
        return [
            {state.name.lower(): int((states == state).sum()) for state in State if state != State.OK}
            for states in self.states
        ]


def view_tile(program: TileProgram, name: str) -> TileView:
    """Look at one tile of a program.

    Raises
    ------
    DataError
        If the program has no such tile, or does not drive it.
    """
    if name not in program.tiles:
        close = difflib.get_close_matches(name, program.tiles, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {_few(list(program.tiles))}"
        raise DataError(f"tile {name!r}", "is not in the program", hint=hint)
    if name not in program.tile_starts:
        raise DataError(f"tile {name!r}", "must be driven by the program")
    tile, tensors = program.tiles[name], program.tile_tensors[name]
    layer = program.layers[tile.layer]
    group, start = divmod(program.tile_starts[name], layer.rows)
    columns = tensors.col_map - group * layer.cols
    weights = program.weights[tile.layer].astype(np.float64)
    error = (program.decoded_weights(tile.layer, copy=tile.copy_number) - weights)[
        group, start : start + tile.rows, columns
    ].T
    full = np.abs(weights[group][:, columns]).max(0)
    residual = np.empty((tile.rows, tile.cols))
    residual[tensors.row_map] = error * tensors.col_sign / np.where(full > 0, full, 1.0)
    target, held = (
        (plus - minus) / program.spec.weight_span
        for plus, minus in (program.target_conductances(name), program.assumed_conductances(name))
    )
    sides = len(program.places(name))
    return TileView(
        tile=tile,
        group=group,
        rows=(start, start + tile.rows),
        cols=tuple(columns.tolist()),
        places=tuple(program.places(name).values()),
        sign=tensors.col_sign,
        target=target,
        held=held,
        states=tuple(states.astype(np.uint8) for states in program.failed_states(name)[:sides]),
        gated=program.gated(name)[:sides],
        residual=residual,
    )


def worst_tiles(program: TileProgram) -> dict[str, tuple[str, float]]:
    """The tile of each layer with the largest root-mean-square residual, and that residual (as in `TileView`)."""
    tiles: dict[str, list[Tile]] = {}
    for name in program.tile_starts:
        tiles.setdefault(program.tiles[name].layer, []).append(program.tiles[name])
    found: dict[str, tuple[str, float]] = {}
    for layer, own in tiles.items():
        weights, shape = program.weights[layer].astype(np.float64), program.layers[layer]
        full = np.abs(weights).max(1, keepdims=True)
        squares = ((program.decoded_weights(layer) - weights) / np.where(full > 0, full, 1.0)) ** 2
        for tile in own:
            group, start = divmod(program.tile_starts[tile.name], shape.rows)
            columns = program.tile_tensors[tile.name].col_map - group * shape.cols
            rms = float(np.sqrt(squares[group, start : start + tile.rows].mean(0)[columns].mean()))
            if layer not in found or rms > found[layer][1]:
                found[layer] = tile.name, rms
    return found


def _few(names: list[str]) -> str:
    return f"{names[0]} to {names[-1]}" if len(names) > 8 else ", ".join(names)
