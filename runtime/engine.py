"""The engine: a program in torch, a whole loop as batched matrix products, on any device.

What a loop does for every window is compiled once, when the engine is built (`batches_torch`): the tiles that one
loaded vector drives become one matrix, row blocks and groups of equal shape one batch.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from hwspec.errors import DataError, NotFiniteError, ProgramError
from hwspec.spec import HardwareSpec
from runtime.backward_torch import loop_results
from runtime.batches_torch import Batch, digit_inputs
from runtime.blocks_torch import BlockRunner, call_keys, runs_here
from runtime.channels import NoiseSource
from runtime.geometry import copy_windows, window_shape
from runtime.geometry_torch import gather_vectors, scatter_vectors
from runtime.host import HostSegment
from runtime.host_torch import TorchSegment, untranslatable
from runtime.inputs import bind_inputs
from runtime.loops_torch import CompiledLoop, CompiledStore, LoopCompiler
from runtime.programming import ProgrammedChip
from runtime.quantize import input_codes
from runtime.read_noise_torch import Noise, read_noise
from runtime.straight_through_torch import follow_inputs, phase_of, with_gradient_unless
from runtime.tables import Host, Phase
from runtime.workers_torch import Workers

Watcher = Callable[[str, str, Phase, int, Tensor], None]
"""Called with a layer, a tile, its phase, the conversion's number (channel, then digit) and its codes."""

_TORCH_SEEDS = 1 << 63
BLOCK_ELEMENTS = 1 << 25
"""Elements of gathered vectors in flight: larger inputs run a few samples at a time."""


@dataclass(frozen=True, eq=False)
class Trainable:
    """What takes the gradients of a loop: its bias, and the matrices of its batches, store by store."""

    bias: Tensor
    matrices: tuple[Tensor, ...]


def find_device(device: str | torch.device) -> torch.device:
    """The torch device of this name; raises `DataError` unless torch can compute on it here."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0]
        hint = f"on this machine: {', '.join(names)}" if len(reason) > 80 else f"{reason}; here: {', '.join(names)}"
        raise DataError("device", "must be one that torch computes on here", got=str(device), hint=hint) from None
    return found


class Engine:
    """Runs a programmed chip in torch.

    Parameters
    ----------
    chip
        The programmed chip.
    device
        Where it computes.
    dtype
        Type that loops compute in; buffers keep the model's own types.
    watch
        Called after every conversion.
    seed
        Of the noise of reads.
    noise
        Gives standard normal numbers for every tile, in place of those of the seed.
    blocks
        Whether loops run in compiled blocks (`runtime.blocks_torch`) where they can, which is on the CPU. Either way
        gradients go straight through what rounds.
    """

    def __init__(
        self,
        chip: ProgrammedChip,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        watch: Watcher | None = None,
        *,
        seed: int = 0,
        noise: NoiseSource | None = None,
        blocks: bool = True,
    ) -> None:
        self._watch, self._dtype = watch, dtype
        self._device = find_device(device)
        self._noise = Noise(torch.Generator(self._device).manual_seed(seed % _TORCH_SEEDS), noise)
        self._draw = None if noise is None else self._noise.draw
        self._in_blocks = blocks and self._device.type == "cpu" and dtype in (torch.float32, torch.float64)
        self._workers, self._keys = Workers(dtype), call_keys(seed)
        self.put(chip)
        program = chip.program
        self._segments: dict[str, TorchSegment | HostSegment] = {}
        self.host_reasons: dict[str, str] = {}
        """Segments that run in onnxruntime, with the operator that has no torch translation."""
        for name, content in program.segments.items():
            model = onnx.load_model_from_string(content)
            missing = untranslatable(model)
            if missing:
                self._segments[name] = HostSegment(name, content)
                self.host_reasons[name] = "; ".join(f"{node}: {reason}" for node, reason in missing.items())
            else:
                self._segments[name] = TorchSegment(model, self._device)

    def put(self, chip: ProgrammedChip) -> None:
        """Run another chip from now on, which holds the same program or one of the same digital segments.

        The noise of reads goes on where it was.
        """
        self._chip = chip
        self.compiler = LoopCompiler(chip, self._tensor)
        """What made the loops."""
        self.loops = {loop.layer: self.compiler.compile(loop) for loop in chip.program.tables.loops}
        """The loops by layer."""
        self._spent = self._find_spent()
        self.trainable: dict[str, Trainable] = {}
        """Layers whose bias and matrices take gradients, where these are enabled."""
        self._blocks: BlockRunner | None = None
        if self._in_blocks:
            specs = {layer: chip.layer_spec(layer) for layer in self.loops}
            show = self._show if self._watch else None
            at_once = show is not None or self._draw is not None
            here = {layer: loop for layer, loop in self.loops.items() if runs_here(loop, specs[layer], at_once=at_once)}
            self._blocks = BlockRunner(here, specs, self._workers, self._keys, show, self._draw)

    def reseed(self, seed: int) -> None:
        """Let the noise of reads begin anew with another seed; chips that are put from now on read with it."""
        self._noise.reseed(seed % _TORCH_SEEDS)
        self._keys = call_keys(seed)

    def trains(self, layer: str) -> bool:
        """Whether gradients reach a layer's matrices."""
        if self._blocks is not None:
            return self._blocks.runs(layer)
        loop = self.loops[layer]
        networks = any(batch.amperes is not None for store in loop.stores for batch in store.batches)
        return not networks and (loop.in_codes or loop.drive.digits == 1)

    def __call__(self, inputs: Mapping[str, Any] | Any) -> list[Any]:
        """Outputs of the program as numpy arrays, in the order of the model's, as onnxruntime's ``run`` gives them."""
        tables = self._chip.program.tables
        buffers = self.bind(inputs)
        with torch.no_grad():
            self.run(buffers)
        return [_to_numpy(buffers[info.name]) for info in tables.outputs]

    def bind(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        """The buffers that a run begins with: the inputs, as tensors of the model's own types."""
        bound = bind_inputs(self._chip.program.tables.inputs, inputs)
        return {name: _to_tensor(value, self._device) for name, value in bound.items()}

    def run(self, buffers: dict[str, Any]) -> None:
        """Run all instructions on tensors; `buffers` holds the inputs, and afterwards every buffer still needed."""
        if torch.is_inference_mode_enabled():  # space that is used again must serve training too
            with torch.inference_mode(mode=False), torch.no_grad():
                self.run(buffers)
            return
        for number in range(len(self._chip.program.tables.instructions)):
            self.step(number, buffers)

    def step(self, number: int, buffers: dict[str, Any]) -> None:
        """Run the instruction of this number, and drop the buffers that none after it reads."""
        step = self._chip.program.tables.instructions[number]
        if isinstance(step, Host):
            self._host(step, buffers)
        else:
            self.loop(step.layer, buffers)
        for name in self._spent[number]:
            del buffers[name]

    def _find_spent(self) -> list[list[str]]:
        """Buffers that each instruction is the last one to read, but for the outputs."""
        tables = self._chip.program.tables
        keep = {info.name for info in tables.outputs}
        last: dict[str, int] = {}
        for number, step in enumerate(tables.instructions):
            last |= dict.fromkeys(step.inputs if isinstance(step, Host) else [self.loops[step.layer].source], number)
        spent: list[list[str]] = [[] for _ in tables.instructions]
        for name, number in last.items():
            if name not in keep:
                spent[number].append(name)
        return spent

    def _host(self, step: Host, buffers: dict[str, Any]) -> None:
        segment = self._segments[step.segment]
        if isinstance(segment, TorchSegment):
            buffers.update(segment({name: buffers[name] for name in step.inputs}))
            return
        if torch.is_grad_enabled() and any(
            isinstance(buffers[name], Tensor) and buffers[name].requires_grad for name in step.inputs
        ):
            requirement = (
                f"takes no gradient, and has one to pass on: it runs in onnxruntime ({self.host_reasons[step.segment]})"
            )
            hint = "nothing before it can be trained; cut the model there"
            raise ProgramError(f"segment {step.segment!r}", requirement, hint=hint)
        results = segment([_to_numpy(buffers[name]) for name in step.inputs])
        buffers.update(
            (name, _to_tensor(value, self._device)) for name, value in zip(step.outputs, results, strict=True)
        )

    @property
    def gradient_ends(self) -> dict[str, dict[str, str]]:
        """Of each digital segment, the nodes at which gradients ended in what was run so far, with their operators."""
        segments = self._segments.items()
        return {name: one.gradient_ends for name, one in segments if isinstance(one, TorchSegment)}

    def loop(self, layer: str, buffers: dict[str, Any]) -> None:
        """Run one loop on `buffers`."""
        loop = self.loops[layer]
        x: Tensor = buffers[loop.source]
        if self._blocks is not None and self._blocks.runs(layer):
            follows = torch.is_grad_enabled() and (x.requires_grad or layer in self.trainable)
            written = self._with_gradient(self._blocks, loop, x) if follows else self._blocks.run(layer, x)
            for store, values in zip(loop.stores, written, strict=True):
                buffers[store.buffer] = values.to(store.dtype)
            return
        shape = window_shape(loop.gather, x.shape)
        per_sample = prod(shape[1:]) * loop.length
        step = max(BLOCK_ELEMENTS // max(per_sample, 1), 1) if shape else 1
        parts = [x] if not shape or shape[0] <= step else list(torch.split(x, step))
        blocks = [self._run_block(loop, part) for part in parts]
        for number, store in enumerate(loop.stores):
            pieces = [block[number] for block in blocks]
            buffers[store.buffer] = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).to(store.dtype)

    def _with_gradient(self, blocks: BlockRunner, loop: CompiledLoop, x: Tensor) -> list[Tensor]:
        matrices = tuple(batch.matrix for store in loop.stores for batch in store.batches)
        trained = self.trainable.get(loop.layer, Trainable(loop.bias, matrices))
        results = loop_results(blocks, loop.layer, x.to(self._dtype), trained.bias, trained.matrices)
        shape = window_shape(loop.gather, x.shape)
        return [
            scatter_vectors(store.scatter, result, shape, trained.bias if store.scatter.kind == "fold" else None)
            for store, result in zip(loop.stores, results, strict=True)
        ]

    def _run_block(self, loop: CompiledLoop, x: Tensor) -> list[Tensor]:
        shape = window_shape(loop.gather, x.shape)
        vectors = gather_vectors(loop.gather, x.to(self._dtype))
        # A finite sum means finite terms, and is quick to find; one that is not may just have overflowed.
        if not torch.isfinite(vectors.detach().sum()) and not torch.isfinite(vectors).all():
            raise NotFiniteError(f"input of layer {loop.layer!r}", "must be finite, and has NaN or infinite values")
        codes = input_codes(vectors, loop.full_scale, loop.drive.code_max, loop.signed)
        if loop.drive.code_max is not None:
            codes = follow_inputs(codes, vectors, loop.full_scale, loop.drive.code_max, signed=loop.signed)
        trained = self.trainable.get(loop.layer)
        matrices = iter(trained.matrices if trained else [b.matrix for store in loop.stores for b in store.batches])
        bias = trained.bias if trained else loop.bias
        return [
            scatter_vectors(store.scatter, self._store(loop, store, matrices, codes, shape), shape, bias)
            for store in loop.stores
        ]

    def _store(
        self,
        loop: CompiledLoop,
        store: CompiledStore,
        matrices: Iterator[Tensor],
        codes: Tensor,
        shape: tuple[int, ...],
    ) -> Tensor:
        """What is added up for one store in all windows, ``(windows, length)``: each copy takes its own."""
        batches = list(zip(store.batches, itertools.islice(matrices, len(store.batches)), strict=True))
        if loop.copies == 1:
            total = self._accumulate(loop, store, 0, batches, codes)
        else:
            windows = [torch.from_numpy(one).to(codes.device) for one in copy_windows(shape, loop.copies)]
            parts = [
                self._accumulate(loop, store, number, batches, codes[of_copy]) for number, of_copy in enumerate(windows)
            ]
            total = torch.cat(parts)[torch.argsort(torch.cat(windows))]
        return total if store.residue is None else store.residue.add_to(total, codes)

    def _accumulate(
        self,
        loop: CompiledLoop,
        store: CompiledStore,
        copy: int,
        batches: list[tuple[Batch, Tensor]],
        codes: Tensor,
    ) -> Tensor:
        total: Tensor | None = None
        for batch, matrix in batches:
            if batch.copy != copy:
                continue
            scaled = self._convert(loop, batch, matrix, codes) * batch.factor
            placed = scaled.sum(0) if batch.summed else scaled.transpose(0, 1).reshape(len(codes), -1)
            if batch.whole:
                total = placed if total is None else total + placed
            else:
                if total is None:
                    total = codes.new_zeros(len(codes), store.scatter.length)
                total = total.index_add(1, batch.columns, placed)
        assert total is not None
        constant = store.constants[copy]
        return total if constant is None else total + constant

    def _convert(self, loop: CompiledLoop, batch: Batch, matrix: Tensor, codes: Tensor) -> Tensor:
        """Codes of all conversions of a batch, digits shifted and added, ``(batch, windows, cols)``."""
        drive, spec = loop.drive, self._chip.layer_spec(loop.layer)
        rows = batch.rows_of(phase_of(codes, batch.drives[0].phase))
        inputs, shares = digit_inputs(rows, drive, spec, codes_suffice=loop.in_codes)
        noise = own = None
        if batch.variance is not None:
            per_vector = spec.device.read_noise.correlation == "per_vector"
            noise = read_noise(batch, [one.detach() for one in inputs], self._noise, per_vector=per_vector)
        total: Tensor | None = None
        clipped: list[Tensor] | None = [] if drive.digits > 1 and torch.is_grad_enabled() else None
        for number, one in enumerate(inputs):
            found = torch.bmm(one, matrix)
            if batch.amperes is not None:
                found = found + self._network(batch, shares[number], spec)
            if noise is not None:
                found = found + noise[number]
            if batch.own_noise is not None:
                own = self._noise.draw(batch, "readout", drive.digits, found) if own is None else own
            found = batch.convert(found, None if own is None else own[number], clipped)
            if self._watch:
                self._show(loop.layer, batch, number, drive.digits, found)
            if drive.digits > 1:
                found = found * drive.digit_weight(number)
            total = found if total is None else total + found
        assert total is not None
        return with_gradient_unless(total, clipped) if clipped else total

    def _network(self, batch: Batch, shares: Tensor, spec: HardwareSpec) -> Tensor:
        """Currents of arrays that no matrix describes, in the unit of the batch's matrix; no gradient flows back."""
        assert batch.amperes is not None
        found = []
        for drive, driven in zip(batch.drives, shares.detach().cpu().double().numpy(), strict=True):
            columns = []
            for part in drive.parts:
                physical = np.empty_like(driven)
                physical[:, part.rows] = driven
                columns.append(part.channel.network_current(physical, spec))
            found.append(drive.side_by_side(columns))
        return self._tensor(np.stack(found)) * batch.amperes

    def _show(self, layer: str, batch: Batch, digit: int, digits: int, codes: Tensor) -> None:
        assert self._watch is not None
        for drive, of_drive in zip(batch.drives, codes, strict=True):
            for tile, found in drive.apart(of_drive):
                self._watch(layer, tile, drive.phase, drive.number * digits + digit, found)

    def _tensor(self, value: npt.NDArray[np.float64]) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(value), dtype=self._dtype, device=self._device)


def _to_tensor(value: Any, device: torch.device) -> Any:
    """A tensor of an array; strings and sequences stay as they are."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return value
    return torch.from_numpy(np.array(value)).to(device)


def _to_numpy(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
