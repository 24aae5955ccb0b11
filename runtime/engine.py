"""The engine: a program in torch, a whole loop as batched matrix products, on any device.

What a loop does for every window is compiled once, when the engine is built: the tiles that one loaded vector drives
become one matrix, row blocks and groups of equal shape one batch. Everything linear (the voltage of a code, the
conductances, the lsb of a converter) is folded into the matrix, so that rounding its product gives ADC codes.
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
from runtime.geometry import window_shape
from runtime.geometry_torch import gather_vectors, scatter_vectors
from runtime.host import HostSegment
from runtime.host_torch import TorchSegment, untranslatable
from runtime.inputs import bind_inputs
from runtime.physics.converters import drive_voltages
from runtime.programming import ProgrammedChip
from runtime.quantize import input_codes, output_codes
from runtime.tables import Gather, Host, Load, Loop, Mvm, Phase, Scatter

Watcher = Callable[[str, str, Phase, Tensor], None]
"""Called with a layer, a tile, its phase, and the codes of its columns ``(windows, cols)``."""

BLOCK_ELEMENTS = 1 << 25
"""Elements of gathered vectors in flight: larger inputs run a few samples at a time."""


@dataclass(frozen=True, eq=False)
class _Drive:
    """One loaded vector and all the tiles that it drives in one phase, side by side."""

    phase: Phase
    start: int
    tiles: tuple[str, ...]
    matrix: npt.NDArray[np.float64]
    factor: npt.NDArray[np.float64]
    columns: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Batch:
    """Drives of equal shape: ``codes (batch, windows, rows) @ matrix (batch, rows, cols)`` is in lsb.

    `factor` ``(batch, 1, cols)`` turns codes into results, which go to `columns`; `summed` when all drives share them.
    """

    drives: tuple[_Drive, ...]
    matrix: Tensor
    factor: Tensor
    columns: Tensor
    summed: bool
    whole: bool


@dataclass(frozen=True, eq=False)
class _Store:
    """What one `store` writes: batches to add up, and where."""

    batches: tuple[_Batch, ...]
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
    input_max: int | None
    output_max: int | None
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
    """

    def __init__(
        self,
        chip: ProgrammedChip,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        watch: Watcher | None = None,
    ) -> None:
        self._chip, self._watch, self._dtype = chip, watch, dtype
        self._device = find_device(device)
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
        codes = input_codes(vectors, loop.full_scale, loop.input_max, loop.signed)
        return [
            scatter_vectors(store.scatter, self._accumulate(loop, store, codes), shape, loop.bias)
            for store in loop.stores
        ]

    def _accumulate(self, loop: _CompiledLoop, store: _Store, codes: Tensor) -> Tensor:
        total: Tensor | None = None
        for batch in store.batches:
            driven = torch.bmm(self._inputs(batch, codes), batch.matrix)
            if loop.output_max is not None:
                driven = output_codes(driven, loop.output_max)
            if self._watch:
                self._show(loop.layer, batch, driven)
            scaled = driven * batch.factor
            placed = scaled.sum(0) if batch.summed else scaled.transpose(0, 1).reshape(len(codes), -1)
            if batch.whole:
                total = placed if total is None else total + placed
            else:
                if total is None:
                    total = codes.new_zeros(len(codes), store.scatter.length)
                total = total.index_add(1, batch.columns, placed)
        assert total is not None
        return total

    def _inputs(self, batch: _Batch, codes: Tensor) -> Tensor:
        """Codes of each drive, ``(batch, windows, rows)``; a view where the drives' vectors follow one another."""
        first, rows, count = batch.drives[0], batch.matrix.shape[1], len(batch.drives)
        if first.phase != "both":
            codes = (codes if first.phase == "+" else -codes).clamp(min=0)
        starts = [drive.start for drive in batch.drives]
        if starts == list(range(starts[0], starts[0] + count * rows, rows)):
            return codes[:, starts[0] : starts[0] + count * rows].reshape(len(codes), count, rows).transpose(0, 1)
        return torch.stack([codes[:, start : start + rows] for start in starts])

    def _show(self, layer: str, batch: _Batch, codes: Tensor) -> None:
        assert self._watch is not None
        for drive, of_drive in zip(batch.drives, codes, strict=True):
            at = 0
            for tile in drive.tiles:
                cols = self._chip.program.tiles[tile].cols
                self._watch(layer, tile, drive.phase, of_drive[:, at : at + cols])
                at += cols

    def _compile(self, loop: Loop) -> _CompiledLoop:
        program = self._chip.program
        layer, periphery = program.layers[loop.layer], self._chip.periphery(loop.layer)
        loads: dict[str, Load] = {}
        mvms: dict[str, tuple[Mvm, Load]] = {}
        sums: dict[str, list[tuple[Mvm, Load]]] = {}
        stores = []
        for step in loop.body:
            if step.op == "load":
                loads[step.into] = step
            elif step.op == "mvm":
                mvms[step.into] = (step, loads[step.source])
            elif step.op == "acc":
                sums.setdefault(step.into, []).append(mvms[step.source])
            else:
                batches = self._batches(loop.layer, sums[step.source], program.scatters[step.scatter].length)
                dtype: torch.dtype = getattr(torch, program.dtypes[step.buffer])
                stores.append(_Store(batches, program.scatters[step.scatter], step.buffer, dtype))
        load = next(iter(loads.values()))
        return _CompiledLoop(
            layer=loop.layer,
            source=load.buffer,
            gather=program.gathers[load.gather],
            full_scale=layer.full_scale,
            input_max=periphery.input_code_max(layer.signed),
            output_max=periphery.output_code_max,
            signed=layer.signed,
            length=program.gathers[load.gather].length,
            bias=self._tensor(program.bias(loop.layer)),
            stores=tuple(stores),
        )

    def _batches(self, layer: str, terms: list[tuple[Mvm, Load]], length: int) -> tuple[_Batch, ...]:
        """Group MVMs: those that share a vector side by side, then those of equal shape on top of one another."""
        by_vector: dict[tuple[Phase, int, int], list[Mvm]] = {}
        for mvm, load in terms:
            by_vector.setdefault((mvm.phase, load.start, load.stop), []).append(mvm)
        by_shape: dict[tuple[Phase, int, int], list[_Drive]] = {}
        for (phase, start, stop), group in by_vector.items():
            drive = self._drive(layer, phase, start, group)
            by_shape.setdefault((phase, stop - start, drive.matrix.shape[1]), []).append(drive)
        return tuple(self._batch(drives, length) for drives in by_shape.values())

    def _drive(self, layer: str, phase: Phase, start: int, mvms: list[Mvm]) -> _Drive:
        program, periphery = self._chip.program, self._chip.periphery(layer)
        table, span = program.layers[layer], program.spec.device.span
        one = np.ones((1, 1))
        volt = drive_voltages(one, periphery.input_code_max(table.signed), periphery.v_read).item()
        unit = table.full_scale / (span * periphery.v_read) * (-1 if phase == "-" else 1)
        matrices, factors, columns = [], [], []
        for mvm in mvms:
            tensors, ranges = program.tile_tensors[mvm.tile], program.tiles[mvm.tile].adc_range
            code_max = periphery.output_code_max
            lsb = 1.0 if code_max is None else ranges[1 if phase == "-" else 0] / code_max
            difference = (self._chip.plus[mvm.tile] - self._chip.minus[mvm.tile])[tensors.row_map]
            matrices.append(difference * (volt / lsb))
            factors.append(tensors.col_sign * tensors.scale * (unit * lsb))
            columns.append(tensors.col_map.astype(np.int64))
        tiles = tuple(mvm.tile for mvm in mvms)
        return _Drive(
            phase, start, tiles, np.concatenate(matrices, axis=1), np.concatenate(factors), np.concatenate(columns)
        )

    def _batch(self, drives: list[_Drive], length: int) -> _Batch:
        columns = [drive.columns for drive in drives]
        summed = all(np.array_equal(other, columns[0]) for other in columns)
        flat = columns[0] if summed else np.concatenate(columns)
        return _Batch(
            drives=tuple(drives),
            matrix=self._tensor(np.stack([drive.matrix for drive in drives])),
            factor=self._tensor(np.stack([drive.factor for drive in drives])[:, None]),
            columns=torch.from_numpy(flat).to(self._device),
            summed=summed,
            whole=np.array_equal(flat, np.arange(length)),
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
