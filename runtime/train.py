"""A compiled program as a torch module whose parameters are the weights of its layers.

A step writes the present weights onto a chip, by the code that programs every chip: levels, spread and failed devices
are those of inference. Gradients go straight through the rounding of weights, and stop at weights beyond full scale and
at failed devices.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hwspec.chip import Chip
from hwspec.effects import EFFECTS
from hwspec.errors import ProgramError
from hwspec.fault_map import FaultMap
from runtime.batches_torch import Batch
from runtime.channels import Channel
from runtime.engine import Engine, Trainable
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.quantize import Float64, WeightCode
from runtime.rewrite import Shares, check_rewritable, rewrite, tile_shares


class CrossbarModule(nn.Module):
    """A program that trains; call it with tensors by name, after `write` has put the weights onto a chip.

    Parameters
    ----------
    program
        The program. Its targets must be those of its weights: neither pre-distorted nor mapped for one chip.
    effects
        Names of the physical effects that are on; None is all.
    seed
        Of the noise of reads.

    Attributes
    ----------
    weights, biases
        Parameters of each layer, ``(groups, rows, cols)`` and ``(length,)``, in the order of `layers`.
    layers
        Their names.

    Raises
    ------
    ProgramError
        If the program's targets are not those of its weights.
    """

    def __init__(self, program: TileProgram, *, effects: Collection[str] | None = None, seed: int = 0) -> None:
        super().__init__()
        check_rewritable(program)
        self._program, self._seed = program, seed
        self._effects = frozenset(EFFECTS if effects is None else effects)
        self.layers = tuple(loop.layer for loop in program.tables.loops)
        self.weights = nn.ParameterList([_parameter(program.weights[name]) for name in self.layers])
        self.biases = nn.ParameterList([_parameter(program.bias(name)) for name in self.layers])
        self._engine: Engine | None = None
        self._indices: dict[tuple[str, int], Tensor] = {}

    def write(self, chip: Chip, seed: int = 0) -> None:
        """Write the present weights onto a chip; what is run then is that chip, until the next call.

        Parameters
        ----------
        chip
            The chip, of as many arrays as the program needs.
        seed
            Of programming pulses.
        """
        weights = {name: _array(one) for name, one in zip(self.layers, self.weights, strict=True)}
        biases = {name: _array(one) for name, one in zip(self.layers, self.biases, strict=True)}
        program = rewrite(self._program, weights, biases)
        programmed = program_chip(program, chip, effects=self._effects, seed=seed)
        if self._engine is None:
            self._engine = Engine(programmed, seed=self._seed)
        else:
            self._engine.put(programmed)
        faults = chip.faults if "failures" in self._effects else None
        for layer, weight, bias in zip(self.layers, self.weights, self.biases, strict=True):
            if not self._engine.trains(layer):
                hint = (
                    "it has arrays solved as networks, or noise that digits of a vector share: leave those effects out"
                )
                raise ProgramError(f"layer {layer!r}", "cannot be trained under these effects", hint=hint)
            slopes = _Slopes(program, faults, layer)
            batches = [batch for store in self._engine.loops[layer].stores for batch in store.batches]
            matrices = tuple(
                _straight_through(
                    weight,
                    batch.matrix,
                    self._index(layer, number, batch, slopes),
                    self._engine.compiler.batches.slopes(layer, batch, slopes.of_channel),
                )
                for number, batch in enumerate(batches)
            )
            self._engine.trainable[layer] = Trainable(bias, matrices)

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Outputs of the program, in the order of the model's, for its inputs by name.

        Raises
        ------
        ProgramError
            If the weights were not written onto a chip yet.
        """
        if self._engine is None:
            raise ProgramError("module", "must be written onto a chip first", hint="call write(chip)")
        buffers: dict[str, Any] = dict(inputs)
        self._engine.run(buffers)
        return [buffers[info.name] for info in self._program.tables.outputs]

    def _index(self, layer: str, number: int, batch: Batch, slopes: "_Slopes") -> Tensor:
        """Where each of a batch's matrix elements lies in the layer's weights; it never changes."""
        if (layer, number) not in self._indices:
            of_drives = [
                drive.side_by_side([slopes.shares(part.tile).index for part in drive.parts]) for drive in batch.drives
            ]
            self._indices[layer, number] = torch.from_numpy(np.ascontiguousarray(np.stack(of_drives))).to(
                batch.matrix.device
            )
        return self._indices[layer, number]


class _Slopes:
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
        by_element = np.stack([held, np.where(np.abs(shares.wanted) <= 1, shares.slope, 0.0)])
        physical = np.empty_like(by_element)
        physical[:, program.tile_tensors[tile].row_map] = by_element
        held, slope = physical[0], physical[1]
        plus, minus = self._good(tile)
        if code.single:
            moves: npt.NDArray[Any] = plus
        elif program.spec.periphery.subtract == "before":
            moves = np.where(held > 0, plus, np.where(held < 0, minus, plus | minus))
        elif channel.sign > 0:
            moves = plus * np.where(held > 0, 1.0, np.where(held < 0, 0.0, 0.5))
        else:
            moves = minus * np.where(held < 0, -1.0, np.where(held > 0, 0.0, -0.5))
        found: Float64 = moves * slope * program.spec.weight_span
        return found

    def _good(self, tile: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which devices of a tile (plus, minus) have not failed, ``(rows, cols)`` as they lie."""
        row = self._program.tiles[tile]
        good = [np.ones((row.rows, row.cols), bool), np.ones((row.rows, row.cols), bool)]
        if self._faults is not None:
            for at, (number, rows, cols) in enumerate(self._program.places(tile).values()):
                good[at] = np.isnan(self._faults.stuck(number)[np.ix_(rows, cols)])
        return good[0], good[1]


class _StraightThrough(torch.autograd.Function):
    """The matrix of a batch as it is, with the gradient of the weights that it was made of."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, matrix: Tensor, index: Tensor, slope: Tensor) -> Tensor:
        """The matrix."""
        ctx.shape = weight.shape
        ctx.save_for_backward(index, slope)
        return matrix.view_as(matrix)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the weights."""
        index, slope = ctx.saved_tensors
        found = slope.new_zeros(ctx.shape.numel())
        found.index_add_(0, index.view(-1), (gradients[0] * slope).view(-1))
        return found.view(ctx.shape), None, None, None


def _straight_through(weight: Tensor, matrix: Tensor, index: Tensor, slope: Tensor) -> Tensor:
    found: Tensor = _StraightThrough.apply(weight, matrix, index, slope)  # type: ignore[no-untyped-call]
    return found


def _parameter(values: npt.NDArray[Any]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float32))


def _array(values: Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = values.detach().cpu().numpy()
    return found
