"""A compiled program as a torch module whose parameters are the weights of its layers.

A step writes the present weights onto a chip, by the code that programs every chip: levels, spread and failed devices
are those of inference. Gradients go straight through the rounding of weights, and stop at weights beyond full scale and
at failed devices.
"""

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hwspec.chip import Chip
from hwspec.effects import EFFECTS
from hwspec.errors import DataError, NotFiniteError, ProgramError
from runtime.batches_torch import Batch
from runtime.engine import Engine, Trainable, find_device
from runtime.inputs import check_shape
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.rewrite import check_rewritable, reachable_weights, rewrite
from runtime.slopes import Slopes


class CrossbarModule(nn.Module):
    """A program that trains: call it with one tensor, or with tensors by name.

    Where the weights or the chip have changed since the last call, they are written onto the chip first.

    Parameters
    ----------
    program
        The program. Its targets must be those of its weights: not pre-distorted. One that was mapped for a chip starts
        from what its devices hold.
    chip
        The chip to run on until `write` names another; None is an ideal one, with the failed devices that the program
        was mapped around.
    effects
        Names of the physical effects that are on; None is all.
    seed
        Of programming pulses and of the noise of reads.
    device
        Where it computes.

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

    def __init__(
        self,
        program: TileProgram,
        *,
        chip: Chip | None = None,
        effects: Collection[str] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        check_rewritable(program)
        self._program, self._seed, self._pulses = program, seed, seed
        self._chip = program.nominal_chip if chip is None else chip
        self._effects = frozenset(EFFECTS if effects is None else effects)
        self._device = find_device(device)
        self.layers = tuple(loop.layer for loop in program.tables.loops)
        self.weights = nn.ParameterList([_parameter(_start(program, name), self._device) for name in self.layers])
        self.biases = nn.ParameterList([_parameter(program.bias(name), self._device) for name in self.layers])
        self._engine: Engine | None = None
        self._indices: dict[tuple[str, int], Tensor] = {}
        self._reach: list[tuple[Tensor, Tensor]] | None = None
        self._written: list[Tensor] | None = None
        self._links: dict[str, list[_Link]] = {}

    @property
    def program(self) -> TileProgram:
        """The program with the present weights, as the chip is programmed from it."""
        for layer, weight, bias in zip(self.layers, self.weights, self.biases, strict=True):
            if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
                hint = "take smaller steps, or shorten long gradients"
                raise NotFiniteError(f"weights of layer {layer!r}", "must be finite to be written", hint=hint)
        weights = {name: _array(one) for name, one in zip(self.layers, self.weights, strict=True)}
        biases = {name: _array(one) for name, one in zip(self.layers, self.biases, strict=True)}
        return rewrite(self._program, weights, biases)

    def rebase(self, program: TileProgram) -> None:
        """Take scales and ranges from another program of the same tiles from now on; weights stay as they are."""
        self._program, self._written, self._reach = program, None, None

    @torch.no_grad()
    def project(self) -> None:
        """Put every weight where its devices can hold it: within full scale, or the reach of a failed pair.

        Between the intervals that gates leave to a failed pair, the nearest is what is written.
        """
        if self._reach is None:
            found = [reachable_weights(self._program, name) for name in self.layers]
            self._reach = [tuple(_tensor(end, self._device) for end in ends) for ends in found]  # type: ignore[misc]
        for weight, (low, high) in zip(self.weights, self._reach, strict=True):
            weight.clamp_(low, high)

    @torch.inference_mode(mode=False)  # what is kept must serve training too
    def write(self, chip: Chip, seed: int = 0) -> None:
        """Write the present weights onto a chip; what is run then is that chip, until the next call.

        Parameters
        ----------
        chip
            The chip, of as many arrays as the program needs.
        seed
            Of programming pulses.
        """
        program = self.program
        self._chip, self._pulses = chip, seed
        self._written = [one.detach().clone() for one in self.parameters()]
        programmed = program_chip(program, chip, effects=self._effects, seed=seed)
        if self._engine is None:
            self._engine = Engine(programmed, self._device, seed=self._seed)
        else:
            self._engine.put(programmed)
        faults = program.met(chip.faults) if "failures" in self._effects else None
        for layer in self.layers:
            if not self._engine.trains(layer):
                hint = (
                    "it has arrays solved as networks, or noise that digits of a vector share: leave those effects out"
                )
                raise ProgramError(f"layer {layer!r}", "cannot be trained under these effects", hint=hint)
            slopes = Slopes(program, faults, layer)
            batches = [batch for store in self._engine.loops[layer].stores for batch in store.batches]
            self._links[layer] = [
                _Link(
                    batch.matrix,
                    self._index(layer, number, batch, slopes),
                    self._engine.compiler.batches.slopes(layer, batch, slopes.of_channel),
                )
                for number, batch in enumerate(batches)
            ]

    @property
    def gradient_ends(self) -> dict[str, dict[str, str]]:
        """Of each digital segment, the nodes at which gradients ended in what was run so far, with their operators."""
        return {} if self._engine is None else self._engine.gradient_ends

    def reseed(self, seed: int) -> None:
        """Let the noise of reads begin anew, as that of another seed."""
        self._seed = seed
        if self._engine is not None:
            self._engine.reseed(seed)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Any:
        """The output of the program, or a list of all in the order of the model's where there are several.

        Raises
        ------
        DataError
            If one tensor is given to a program of several inputs, or names, shapes or types are not those of its
            inputs; if weights are not finite.
        """
        tables = self._program.tables
        inputs = self._bound(inputs)
        if self._changed():
            self.write(self._chip, self._pulses)
        assert self._engine is not None
        for layer, weight, bias in zip(self.layers, self.weights, self.biases, strict=True):
            matrices = tuple(_straight_through(weight, link) for link in self._links[layer])
            self._engine.trainable[layer] = Trainable(bias, matrices)
        buffers: dict[str, Any] = {name: value.to(self._device) for name, value in inputs.items()}
        self._engine.run(buffers)
        found = [buffers[info.name] for info in tables.outputs]
        return found[0] if len(found) == 1 else found

    def __deepcopy__(self, memo: dict[int, Any]) -> "CrossbarModule":
        """A module of its own on the same program and chip, with a copy of everything else."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        same = {"_program": self._program, "_chip": self._chip}
        unwritten: dict[str, Any] = {"_engine": None, "_indices": {}, "_links": {}, "_written": None}
        for name, value in self.__dict__.items():
            copied.__dict__[name] = (
                {**same, **unwritten}[name] if name in {*same, *unwritten} else deepcopy(value, memo)
            )
        return copied

    def _bound(self, inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Inputs by name, each a tensor of the shape and type that the program wants."""
        infos = {info.name: info for info in self._program.tables.inputs}
        if not isinstance(inputs, Mapping):
            if len(infos) != 1:
                raise DataError("inputs", "must be given by name", hint=f"the program takes {', '.join(infos)}")
            inputs = dict.fromkeys(infos, inputs)
        if set(inputs) != set(infos):
            raise DataError("inputs", f"must be {', '.join(infos)}", got=", ".join(inputs))
        symbols: dict[str, int] = {}
        for name, value in inputs.items():
            if not isinstance(value, Tensor):
                hint = "torch.from_numpy makes one"
                raise DataError(f"input {name!r}", "must be a torch tensor", got=type(value).__name__, hint=hint)
            if value.is_floating_point() != (np.dtype(infos[name].dtype).kind == "f"):
                raise DataError(f"input {name!r}", f"must be of type {infos[name].dtype}", got=value.dtype)
            check_shape(infos[name], tuple(value.shape), symbols)
        return inputs

    def _changed(self) -> bool:
        """Whether a parameter was changed since it was written, in whatever way."""
        return self._written is None or not all(map(torch.equal, self._written, self.parameters()))

    def _index(self, layer: str, number: int, batch: Batch, slopes: "Slopes") -> Tensor:
        """Where each of a batch's matrix elements lies in the layer's weights; it never changes."""
        if (layer, number) not in self._indices:
            of_drives = [
                drive.side_by_side([slopes.shares(part.tile).index for part in drive.parts]) for drive in batch.drives
            ]
            self._indices[layer, number] = torch.from_numpy(np.ascontiguousarray(np.stack(of_drives))).to(
                batch.matrix.device
            )
        return self._indices[layer, number]


@dataclass(frozen=True, eq=False)
class _Link:
    """The matrix of a batch, where each of its elements lies in the layer's weights, and its slope over them."""

    matrix: Tensor
    index: Tensor
    slope: Tensor


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


def _straight_through(weight: Tensor, link: _Link) -> Tensor:
    found: Tensor = _StraightThrough.apply(weight, link.matrix, link.index, link.slope)  # type: ignore[no-untyped-call]
    return found


def _start(program: TileProgram, layer: str) -> npt.NDArray[Any]:
    """The weights that training starts from: the model's, or what devices hold that were mapped around failures."""
    return program.weights[layer] if program.faults is None else program.decoded_weights(layer)


def _parameter(values: npt.NDArray[Any], device: torch.device) -> nn.Parameter:
    return nn.Parameter(_tensor(values, device))


def _tensor(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _array(values: Tensor) -> npt.NDArray[Any]:
    there = values.detach().cpu()
    found: npt.NDArray[Any] = (there.float() if there.dtype == torch.bfloat16 else there).numpy()
    return found
