"""How the matrices of a programmed chip follow the weights that its targets were made of."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.failures import State
from hwspec.fault_map import FaultMap
from runtime.channels import Channel
from runtime.program import TileProgram
from runtime.quantize import Float64, WeightCode
from runtime.rewrite import Shares, tile_shares

_ROUNDED = 1e-6
"""How far beyond full scale a weight may lie that was put there, in single precision."""


class Slopes:
    """How the channels of a layer's tiles follow its weights, of a program on a chip with these failed devices."""

    def __init__(self, program: TileProgram, faults: FaultMap | None, layer: str) -> None:
        self._program, self._faults = program, faults
        self._weights = program.weights[layer].astype(np.float64)
        self._shares: dict[str, Shares] = {}

    def shares(self, tile: str) -> Shares:
        """What a tile is to hold of the weights."""
        if tile not in self._shares:
            self._shares[tile] = tile_shares(self._program, self._program.tiles[tile], self._weights)
        return self._shares[tile]

    def of_channel(self, tile: str, channel: Channel) -> Float64:
        """Siemens of a channel's matrix over the weights, ``(rows, cols)`` as they lie.

        None where a weight is beyond full scale, or its device has failed. At 0 either device of a pair can take a
        change, so that each counts by half where it is converted on its own.
        """
        program, shares = self._program, self.shares(tile)
        if channel.exact:
            return np.zeros_like(channel.matrix)
        code = WeightCode.of(program.spec)
        held = code.differences(code.round(np.clip(shares.wanted, -1, 1)), program.tiles[tile].slice)
        # Mapped around failures, weights lie where their pairs reach: what is beyond full scale there is a failed pair.
        inside = (np.abs(shares.wanted) <= 1 + _ROUNDED) | (program.faults is not None)
        by_element = np.stack([held, np.where(inside, shares.slope, 0.0)])
        physical = np.empty_like(by_element)
        physical[:, program.tile_tensors[tile].row_map] = by_element
        held, slope = physical[0], physical[1]
        plus, minus = self._good(tile)
        if code.single:
            moves: npt.NDArray[Any] = plus
        else:
            # Which device takes a change: that of the weight's sign or, mapped around failures, the one that is good.
            of_plus = np.where(held > 0, 1.0, np.where(held < 0, 0.0, 0.5))
            if program.faults is not None:
                of_plus = np.where(plus & minus, of_plus, plus)
            by_plus, by_minus = plus * of_plus, minus * (1 - of_plus)
            if program.spec.periphery.subtract == "before":
                moves = np.where(held == 0, plus | minus, by_plus + by_minus)
            else:
                moves = by_plus if channel.sign > 0 else -by_minus
        found: Float64 = moves * slope * program.spec.weight_span
        return found

    def _good(self, tile: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which devices of a tile (plus, minus) have not failed, ``(rows, cols)`` as they lie."""
        row = self._program.tiles[tile]
        good = [np.ones((row.rows, row.cols), bool), np.ones((row.rows, row.cols), bool)]
        if self._faults is not None:
            for at, (number, rows, cols) in enumerate(self._program.places(tile).values()):
                good[at] = self._faults.states[number][np.ix_(rows, cols)] == State.OK
        return good[0], good[1]
