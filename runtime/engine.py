"""The engine: a program in torch, a whole loop as batched matrix products, on any device.

What a loop does for every window is compiled once, when the engine is built (`batches_torch`): the tiles that one
loaded vector drives become one matrix, row blocks and groups of equal shape one batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from hwspec.errors import DataError
from hwspec.spec import HardwareSpec
from runtime.batches_torch import Batch, BatchCompiler, Noise, effective_volts, in_codes, read_noise
from runtime.channels import NoiseSource
from runtime.geometry import window_shape
from runtime.geometry_torch import gather_vectors, scatter_vectors
from runtime.host import HostSegment
from runtime.host_torch import TorchSegment, untranslatable
from runtime.inputs import bind_inputs
from runtime.physics.converters import Drive
from runtime.programming import ProgrammedChip
from runtime.quantize import input_codes, input_digit
from runtime.residue_torch import ResidueMatrix, residue_matrix
from runtime.tables import Gather, Host, Load, Loop, Mvm, Phase, Scatter

Watcher = Callable[[str, str, Phase, int, Tensor], None]
"""Called with a layer, a tile, its phase, the conversion's number (channel, then digit) and its codes."""

_TORCH_SEEDS = 1 << 63
BLOCK_ELEMENTS = 1 << 25
"""Elements of gathered vectors in flight: larger inputs run a few samples at a time."""


@dataclass(frozen=True, eq=False)
class _Store:
    """What one `store` writes: batches to add up, and where."""

    batches: tuple[Batch, ...]
    constant: Tensor | None
    residue: ResidueMatrix | None
    scatter: Scatter
    buffer: str
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class _CompiledLoop:
    """A loop, ready to run."""

    layer: str
    source: str
    gather: Gather
    full_scale: float
    drive: Drive
    in_codes: bool
    signed: bool
    length: int
    bias: Tensor
    stores: tuple[_Store, ...]


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
    ) -> None:
        self._chip, self._watch, self._dtype = chip, watch, dtype
        self._device = find_device(device)
        self._noise = Noise(torch.Generator(self._device).manual_seed(seed % _TORCH_SEEDS), noise)
        self._compiler = BatchCompiler(chip, self._tensor)
        program = chip.program
        self._loops = {loop.layer: self._compile(loop) for loop in program.tables.loops}
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

    def __call__(self, inputs: Mapping[str, Any] | Any) -> list[Any]:
        """Outputs of the program as numpy arrays, in the order of the model's, as onnxruntime's ``run`` gives them."""
        tables = self._chip.program.tables
        bound = bind_inputs(tables.inputs, inputs)
        buffers: dict[str, Any] = {name: _to_tensor(value, self._device) for name, value in bound.items()}
        with torch.no_grad():
            self.run(buffers)
        return [_to_numpy(buffers[info.name]) for info in tables.outputs]

    def run(self, buffers: dict[str, Any]) -> None:
        """Run all instructions on tensors; `buffers` holds the inputs, and afterwards every buffer still needed."""
        tables = self._chip.program.tables
        keep = {info.name for info in tables.outputs}
        last: dict[str, int] = {}
        for number, step in enumerate(tables.instructions):
            last |= dict.fromkeys(step.inputs if isinstance(step, Host) else [self._loops[step.layer].source], number)
        for number, step in enumerate(tables.instructions):
            if isinstance(step, Host):
                self._host(step, buffers)
            else:
                self.loop(step.layer, buffers)
            for name, end in last.items():
                if end == number and name not in keep:
                    del buffers[name]

    def _host(self, step: Host, buffers: dict[str, Any]) -> None:
        segment = self._segments[step.segment]
        if isinstance(segment, TorchSegment):
            buffers.update(segment({name: buffers[name] for name in step.inputs}))
            return
        results = segment([_to_numpy(buffers[name]) for name in step.inputs])
        buffers.update(
            (name, _to_tensor(value, self._device)) for name, value in zip(step.outputs, results, strict=True)
        )

    def loop(self, layer: str, buffers: dict[str, Any]) -> None:
        """Run one loop on `buffers`."""
        loop = self._loops[layer]
        x: Tensor = buffers[loop.source]
        shape = window_shape(loop.gather, x.shape)
        per_sample = prod(shape[1:]) * loop.length
        step = max(BLOCK_ELEMENTS // max(per_sample, 1), 1) if shape else 1
        parts = [x] if not shape or shape[0] <= step else list(torch.split(x, step))
        written = [self._run_block(loop, part) for part in parts]
        for number, store in enumerate(loop.stores):
            pieces = [block[number] for block in written]
            buffers[store.buffer] = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).to(store.dtype)

    def _run_block(self, loop: _CompiledLoop, x: Tensor) -> list[Tensor]:
        shape = window_shape(loop.gather, x.shape)
        vectors = gather_vectors(loop.gather, x.to(self._dtype))
        # A finite sum means finite terms, and is quick to find; one that is not may just have overflowed.
        if not torch.isfinite(vectors.detach().sum()) and not torch.isfinite(vectors).all():
            raise DataError(f"input of layer {loop.layer!r}", "must be finite, and has NaN or infinite values")
        codes = input_codes(vectors, loop.full_scale, loop.drive.code_max, loop.signed)
        return [
            scatter_vectors(store.scatter, self._accumulate(loop, store, codes), shape, loop.bias)
            for store in loop.stores
        ]

    def _accumulate(self, loop: _CompiledLoop, store: _Store, codes: Tensor) -> Tensor:
        total: Tensor | None = None
        for batch in store.batches:
            scaled = self._convert(loop, batch, codes) * batch.factor
            placed = scaled.sum(0) if batch.summed else scaled.transpose(0, 1).reshape(len(codes), -1)
            if batch.whole:
                total = placed if total is None else total + placed
            else:
                if total is None:
                    total = codes.new_zeros(len(codes), store.scatter.length)
                total = total.index_add(1, batch.columns, placed)
        assert total is not None
        if store.residue is not None:
            total = store.residue.add_to(total, codes)
        return total if store.constant is None else total + store.constant

    def _convert(self, loop: _CompiledLoop, batch: Batch, codes: Tensor) -> Tensor:
        """Codes of all conversions of a batch, digits shifted and added, ``(batch, windows, cols)``."""
        drive, spec = loop.drive, self._chip.layer_spec(loop.layer)
        part = self._inputs(batch, codes)
        shares = [] if loop.in_codes else [drive.shares(part, number) for number in range(drive.digits)]
        if loop.in_codes:
            whole = drive.digits == 1
            inputs = [part if whole else input_digit(part, drive.base, number) for number in range(drive.digits)]
        else:
            inputs = [effective_volts(share, spec) for share in shares]
        noise = own = None
        if batch.variance is not None:
            per_vector = spec.device.read_noise.correlation == "per_vector"
            noise = read_noise(batch, inputs, self._noise, per_vector=per_vector)
        total: Tensor | None = None
        for number, one in enumerate(inputs):
            found = batch.read(one, self._network(batch, shares[number], spec) if batch.amperes is not None else None)
            if noise is not None:
                found = found + noise[number]
            if batch.own_noise is not None:
                own = self._noise.draw(batch, "readout", drive.digits, found) if own is None else own
            found = batch.convert(found, None if own is None else own[number])
            if self._watch:
                self._show(loop.layer, batch, number, drive.digits, found)
            if drive.digits > 1:
                found = found * drive.digit_weight(number)
            total = found if total is None else total + found
        assert total is not None
        return total

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
            found.append(np.concatenate(columns, axis=1))
        return self._tensor(np.stack(found)) * batch.amperes

    def _inputs(self, batch: Batch, codes: Tensor) -> Tensor:
        """Codes of each drive, ``(batch, windows, rows)``; a view where the drives' vectors follow one another."""
        first, rows, count = batch.drives[0], batch.matrix.shape[1], len(batch.drives)
        if first.phase != "both":
            codes = (codes if first.phase == "+" else -codes).clamp(min=0)
        starts = [drive.start for drive in batch.drives]
        if starts == list(range(starts[0], starts[0] + count * rows, rows)):
            return codes[:, starts[0] : starts[0] + count * rows].reshape(len(codes), count, rows).transpose(0, 1)
        return torch.stack([codes[:, start : start + rows] for start in starts])

    def _show(self, layer: str, batch: Batch, digit: int, digits: int, codes: Tensor) -> None:
        assert self._watch is not None
        for drive, of_drive in zip(batch.drives, codes, strict=True):
            at = 0
            for part in drive.parts:
                cols = len(part.columns)
                number = drive.number * digits + digit
                self._watch(layer, part.tile, drive.phase, number, of_drive[:, at : at + cols])
                at += cols

    def _compile(self, loop: Loop) -> _CompiledLoop:
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
                batches = self._compiler.batches(loop.layer, terms, length)
                constant = self._compiler.constant(loop.layer, terms, length)
                residue = residue_matrix(self._chip, loop.layer, residues.get(step.source, []), self._tensor)
                dtype: torch.dtype = getattr(torch, program.dtypes[step.buffer])
                stores.append(_Store(batches, constant, residue, program.scatters[step.scatter], step.buffer, dtype))
        load = next(iter(loads.values()))
        return _CompiledLoop(
            layer=loop.layer,
            source=load.buffer,
            gather=program.gathers[load.gather],
            full_scale=layer.full_scale,
            drive=drive,
            in_codes=in_codes(self._chip, loop.layer, drive),
            signed=layer.signed,
            length=program.gathers[load.gather].length,
            bias=self._tensor(self._chip.bias(loop.layer)),
            stores=tuple(stores),
        )

    def _tensor(self, value: npt.NDArray[np.float64]) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(value), dtype=self._dtype, device=self._device)


def _to_tensor(value: Any, device: torch.device) -> Any:
    """A tensor of an array; strings and sequences stay as they are."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return value
    return torch.from_numpy(np.array(value)).to(device)


def _to_numpy(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
