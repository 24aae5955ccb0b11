"""Loops on the CPU, block by block: matrix products by torch, everything between them in compiled loops.

A block is some windows of some samples, so few that their codes and currents stay in the cache; samples are shared out
to threads. Results are those of the engine's own torch operations, which remain for gradients and other devices.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwspec.errors import DataError
from hwspec.spec import HardwareSpec
from runtime.batches_torch import Batch, digit_inputs
from runtime.convert_numba import convert
from runtime.geometry import conv_windows, window_shape
from runtime.geometry_torch import scatter_vectors
from runtime.loops_torch import CompiledLoop
from runtime.plans_torch import ROUND, Conversion, Plan
from runtime.tables import Phase
from runtime.windows_numba import gather_windows, write_codes

GROUP = 1 << 19
"""Codes of the samples that are worked on together."""

Array = npt.NDArray[Any]


class _Workspace:
    """Memory of one worker, kept between blocks."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Memory of this shape, with whatever was in it."""
        count = prod(shape)
        if name not in self._held or len(self._held[name]) < count:
            self._held[name] = torch.empty(count, dtype=self._dtype)
        return self._held[name][:count].view(shape)


class _Inputs:
    """What a block of codes ``(windows, length)`` drives, worked out once for all batches that need it."""

    def __init__(self, loop: CompiledLoop, spec: HardwareSpec, codes: Tensor) -> None:
        self._loop, self._spec, self._codes = loop, spec, codes
        self._digits: dict[Phase, list[Tensor]] = {}
        self._squares: dict[tuple[Phase, int], Tensor] = {}

    def digits(self, phase: Phase) -> list[Tensor]:
        """Inputs of each digit that a phase drives, in the unit that the matrices are for, ``(windows, length)``."""
        if phase not in self._digits:
            codes = self._codes
            part = codes if phase == "both" else (codes if phase == "+" else -codes).clamp(min=0)
            loop = self._loop
            self._digits[phase] = digit_inputs(part, loop.drive, self._spec, codes_suffice=loop.in_codes)[0]
        return self._digits[phase]

    def squares(self, phase: Phase, digit: int) -> Tensor:
        """Squares of the inputs of a digit."""
        key = phase, digit
        if key not in self._squares:
            self._squares[key] = self.digits(phase)[digit] ** 2
        return self._squares[key]


class BlockRunner:
    """Runs loops on the CPU.

    Parameters
    ----------
    loops, specs
        The loops by layer, and the hardware that each runs on.
    engine
        Called as ``show(layer, batch, digit, digits, codes)`` after every conversion, and as
        ``draw(batch, kind, digits, like)`` for noise that is not drawn here; either may be None. With either, all
        windows are one block.
    seed
        Of the noise of reads.
    """

    def __init__(
        self,
        loops: dict[str, CompiledLoop],
        specs: dict[str, HardwareSpec],
        seed: int,
        show: Any = None,
        draw: Any = None,
    ) -> None:
        self._specs, self._seed, self._show, self._draw = specs, seed, show, draw
        self._plans: dict[str, Plan] = {}
        stream = 0
        for layer, loop in loops.items():
            self._plans[layer] = Plan.of(loop, stream)
            stream += sum(len(batch.drives) for store in loop.stores for batch in store.batches)
        self._spaces: SimpleQueue[_Workspace] = SimpleQueue()
        self._calls = 0

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))

    def runs(self, layer: str) -> bool:
        """Whether a layer's loop is among those given."""
        return layer in self._plans

    def run(self, layer: str, x: Tensor) -> list[Tensor]:
        """What each store of a loop writes, for the loop's input."""
        plan = self._plans[layer]
        loop = plan.loop
        shape = window_shape(loop.gather, x.shape)
        totals = []
        for store in loop.stores:
            total = loop.bias.new_empty(prod(shape), store.scatter.length)
            totals.append(total)
        key = np.random.SeedSequence((self._seed, self._calls)).generate_state(2).astype(np.uint32)
        self._calls += 1
        whole = self._show is not None or self._draw is not None
        work = _Work(plan, self._specs[layer], shape, key, totals, whole)
        parts = list(work.parts(x))
        threads = torch.get_num_threads()
        if threads == 1 or len(parts) == 1:
            for part in parts:
                self._part(work, *part)
        else:
            try:
                list(self._pool.map(lambda part: self._part(work, *part), parts))
            finally:
                torch.set_num_threads(threads)  # a worker's own number is MKL's for all
        return [
            scatter_vectors(store.scatter, total, shape, None if store.scatter.kind != "fold" else loop.bias)
            for store, total in zip(loop.stores, totals, strict=True)
        ]

    def _part(self, work: "_Work", x: Tensor, first: int) -> None:
        loop = work.plan.loop
        try:
            space = self._spaces.get_nowait()
        except Empty:
            space = _Workspace(loop.bias.dtype)
        with torch.no_grad():
            for start, codes in work.blocks(x, space):
                self._block(work, codes, first + start, space)
        self._spaces.put(space)

    def _block(self, work: "_Work", codes: Tensor, first: int, space: _Workspace) -> None:
        loop = work.plan.loop
        inputs = _Inputs(loop, work.spec, codes)
        for store, conversions, total in zip(loop.stores, work.plan.conversions, work.totals, strict=True):
            result = total[first : first + len(codes)]
            result[:] = 0 if store.scatter.kind == "fold" else loop.bias
            if store.constant is not None:
                result += store.constant
            for conversion in conversions:
                self._convert(work, conversion, inputs, first, _numpy(result), space)
            if store.residue is not None:
                result[:] = store.residue.add_to(result, codes)

    def _convert(
        self, work: "_Work", conversion: Conversion, inputs: _Inputs, first: int, result: Array, space: _Workspace
    ) -> None:
        batch = conversion.batch
        phase = batch.drives[0].phase
        drives, _, cols = batch.matrix.shape
        windows = len(result)
        digits = inputs.digits(phase)
        none = np.empty((0, 0, 0, 0), result.dtype)
        normals = self._drawn(batch, len(digits), windows)
        for digit, one in enumerate(digits):
            current = space.take("current", drives, windows, cols)
            _multiply(batch.rows_of(one), batch.matrix, current)
            variance = none[0:0].reshape(0, 0, 0)
            if batch.variance is not None:
                power = space.take("variance", drives, windows, cols)
                _multiply(batch.rows_of(inputs.squares(phase, digit)), batch.variance, power)
                variance = _numpy(power)
            convert(
                _numpy(current),
                variance,
                conversion.shift,
                conversion.curves,
                conversion.bend,
                conversion.own,
                none if normals is None else normals[digit],
                work.key,
                np.array([first, conversion.stream, digit]),
                conversion.limits,
                conversion.thresholds,
                conversion.factors[digit],
                conversion.segments,
                result,
            )
            if self._show is not None:
                self._show(work.plan.loop.layer, batch, digit, len(digits), current.clone())

    def _drawn(self, batch: Batch, digits: int, windows: int) -> Array | None:
        """Numbers ``(digits, 2, drives, windows, cols)`` of the read and the readout; None to draw them by counter."""
        if self._draw is None:
            return None
        like = batch.matrix.new_empty(len(batch.drives), windows, batch.matrix.shape[2])
        found = np.zeros((digits, 2, *like.shape), _numpy(like).dtype)
        own = batch.own_noise is not None or (batch.bends is not None and batch.bends.noise is not None)
        for at, (kind, wanted) in enumerate((("read", batch.variance is not None), ("readout", own))):
            if wanted:
                found[:, at] = np.stack([_numpy(drawn) for drawn in self._draw(batch, kind, digits, like)])
        return found


@dataclass(frozen=True, eq=False)
class _Work:
    """One loop on one input."""

    plan: Plan
    spec: HardwareSpec
    shape: tuple[int, ...]
    key: npt.NDArray[np.uint32]
    totals: list[Tensor]
    whole: bool
    """Whether all windows are one block."""

    def parts(self, x: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Inputs of the samples that are worked on together, and the number of their first window."""
        gather = self.plan.loop.gather
        if gather.kind == "vectors":
            x = x.reshape(-1, gather.channels)
        each = max(x.numel() // len(x), 1) if len(x) else 1
        windows = prod(self.shape[1:]) if gather.kind != "vectors" else 1
        count = max(GROUP // each, 1, self.plan.rows if gather.kind == "vectors" else 1)
        count = max(min(count, -(-len(x) // torch.get_num_threads())), 1)
        if self.whole:
            count = max(len(x), 1)
        for start in range(0, len(x), count):
            yield x[start : start + count], start * windows

    def blocks(self, x: Tensor, space: _Workspace) -> Iterator[tuple[int, Tensor]]:
        """Codes of some windows, ``(windows, length)``, and the number of the first of them."""
        gather = self.plan.loop.gather
        if gather.kind == "vectors":
            codes = space.take("codes", *x.shape)
            self._write(x.detach().reshape(len(x), 1, 1, 1, -1), codes.view(len(x), 1, 1, 1, -1), (0, 0, 0))
            direct = True
        else:
            rank = len(gather.kernel)
            windows = conv_windows(gather, tuple(x.shape[2:]))
            ones = (1,) * (3 - rank)
            images = x.detach().movedim(1, -1).reshape(len(x), *ones, *x.shape[2:], x.shape[1])
            pads = ((0, 0),) * (3 - rank) + windows.pads
            sizes = [size + begin + end for size, (begin, end) in zip(images.shape[1:4], pads, strict=True)]
            buffer = space.take("codes", len(x), *sizes, x.shape[1])
            if any(map(any, pads)):
                buffer.zero_()
            self._write(images, buffer, tuple(begin for begin, _ in pads))
            codes = buffer.view(-1, x.shape[1])
            direct = all(k == 1 for k in gather.kernel) and all(s == 1 for s in gather.strides)
        count = len(x) * prod(self.shape[1:]) if gather.kind != "vectors" else len(x)
        step = max(count, 1) if self.whole else self.plan.rows
        if not direct:
            of_axes = (windows.out, gather.kernel, gather.strides, gather.dilations)
            axes = np.array([(1,) * (3 - rank) + tuple(values) for values in of_axes])
        for start in range(0, count, step):
            stop = min(start + step, count)
            if direct:
                yield start, codes[start:stop]
                continue
            found = space.take("windows", stop - start, gather.length)
            gather_windows(_numpy(buffer), start, axes, gather.groups, _numpy(found))
            yield start, found

    def _write(self, images: Tensor, buffer: Tensor, begins: tuple[int, ...]) -> None:
        loop = self.plan.loop
        kind = _numpy(buffer).dtype.type
        top = loop.drive.code_max
        step = kind(loop.full_scale if top is None else loop.full_scale / top)
        low, high = kind(-(top or 0) if loop.signed else 0), kind(top or 0)
        magic = kind(0 if top is None else ROUND[buffer.dtype])
        values = _numpy(images.to(buffer.dtype).contiguous())
        if not write_codes(values, step, low, high, magic, np.array(begins), _numpy(buffer)):
            raise DataError(f"input of layer {loop.layer!r}", "must be finite, and has NaN or infinite values")


def runs_here(loop: CompiledLoop, spec: HardwareSpec) -> bool:
    """Whether a loop can run in blocks: not with networks solved for every input, or noise that its digits share."""
    batches = [batch for store in loop.stores for batch in store.batches]
    shared = spec.device.read_noise.correlation == "per_vector" and loop.drive.digits > 1
    solved = any(batch.amperes is not None for batch in batches)
    return not solved and not (shared and any(batch.variance is not None for batch in batches))


def _numpy(value: Tensor) -> Array:
    found: Array = value.numpy()
    return found


def _multiply(inputs: Tensor, matrix: Tensor, out: Tensor) -> None:
    if len(matrix) == 1:
        torch.mm(inputs[0], matrix[0], out=out[0])
    else:
        torch.bmm(inputs, matrix, out=out)
