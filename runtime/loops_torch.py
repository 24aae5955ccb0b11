"""A loop of a program, compiled for torch: what is gathered, the batches to multiply and convert, where it goes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.batches_torch import Batch, BatchCompiler, ToTensor, in_codes
from runtime.physics.converters import Drive
from runtime.programming import ProgrammedChip
from runtime.residue_torch import ResidueMatrix, residue_matrix
from runtime.tables import Gather, Load, Loop, Mvm, Scatter


@dataclass(frozen=True, eq=False)
class CompiledStore:
    """What one `store` writes: batches to add up, and where."""

    batches: tuple[Batch, ...]
    constants: tuple[Tensor | None, ...]
    """Of each copy of the layer's matrix."""
    residue: ResidueMatrix | None
    scatter: Scatter
    buffer: str
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class CompiledLoop:
    """A loop, ready to run."""

    layer: str
    source: str
    gather: Gather
    full_scale: float
    drive: Drive
    in_codes: bool
    signed: bool
    length: int
    copies: int
    bias: Tensor
    stores: tuple[CompiledStore, ...]


class LoopCompiler:
    """Compiles the loops of a programmed chip.

    Parameters
    ----------
    chip
        The programmed chip.
    to_tensor
        Puts an array where the engine computes.
    """

    def __init__(self, chip: ProgrammedChip, to_tensor: ToTensor) -> None:
        self._chip, self._tensor = chip, to_tensor
        self.batches = BatchCompiler(chip, to_tensor)
        """Compiles their batches."""

    def compile(self, loop: Loop) -> CompiledLoop:
        """Everything that does not depend on the inputs."""
        program = self._chip.program
        layer, drive = program.layers[loop.layer], self._chip.drive(loop.layer)
        loads: dict[str, Load] = {}
        mvms: dict[str, tuple[Mvm, Load]] = {}
        sums: dict[str, list[tuple[Mvm, Load]]] = {}
        residues: dict[str, list[Load]] = {}
        stores = []
        for step in loop.body:
            if step.op == "load":
                loads[step.into] = step
            elif step.op == "mvm":
                mvms[step.into] = (step, loads[step.source])
            elif step.op == "acc":
                sums.setdefault(step.into, []).append(mvms[step.source])
            elif step.op == "residue":
                residues.setdefault(step.into, []).append(loads[step.source])
            else:
                length, terms = program.scatters[step.scatter].length, sums[step.source]
                batches = self.batches.batches(loop.layer, terms, length)
                constants = self.batches.constants(loop.layer, terms, length)
                residue = residue_matrix(self._chip, loop.layer, residues.get(step.source, []), self._tensor)
                dtype: torch.dtype = getattr(torch, program.dtypes[step.buffer])
                stores.append(
                    CompiledStore(batches, constants, residue, program.scatters[step.scatter], step.buffer, dtype)
                )
        load = next(iter(loads.values()))
        return CompiledLoop(
            layer=loop.layer,
            source=load.buffer,
            gather=program.gathers[load.gather],
            full_scale=layer.full_scale,
            drive=drive,
            in_codes=in_codes(self._chip, loop.layer, drive),
            signed=layer.signed,
            length=program.gathers[load.gather].length,
            copies=layer.copies,
            bias=self._tensor(self._chip.bias(loop.layer)),
            stores=tuple(stores),
        )
