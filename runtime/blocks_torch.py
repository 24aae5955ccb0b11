"""Loops on the CPU, block by block: matrix products by torch, everything between them in compiled loops.

A block is some windows of some samples, so few that their codes and currents stay in the cache; samples are shared out
to threads. Results are those of the engine's own torch operations, which remain for gradients and other devices.
"""

from collections.abc import Callable, Iterator, Mapping
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

from hwspec.spec import HardwareSpec
from runtime.batches_torch import Batch
from runtime.channels import NoiseKind
from runtime.codes_torch import Block, SampleCodes, Workspace, to_numpy
from runtime.convert_numba import convert
from runtime.geometry import window_shape
from runtime.geometry_torch import scatter_vectors
from runtime.loops_torch import CompiledLoop
from runtime.plans_torch import Conversion, Plan
from runtime.windows_numba import multiply_channels

GROUP = 1 << 19
"""Codes of the samples that are worked on together."""

Array = npt.NDArray[Any]
Show = Callable[[str, Batch, int, int, Tensor], None]
"""Called after every conversion with the layer, the batch, the digit, their number, and the codes."""
Draw = Callable[[Batch, NoiseKind, int, Tensor], list[Tensor]]
"""Gives normal numbers for a batch: of a kind, for each of so many digits, in the shape of a tensor."""


class BlockRunner:
    """Runs loops on the CPU.

    Parameters
    ----------
    loops, specs
        The loops by layer, and the hardware that each runs on.
    seed
        Of the noise of reads.
    show
        Called after every conversion.
    draw
        Gives noise that is not drawn here. With this or `show`, all windows are one block.
    """

    def __init__(
        self,
        loops: Mapping[str, CompiledLoop],
        specs: Mapping[str, HardwareSpec],
        seed: int,
        show: Show | None = None,
        draw: Draw | None = None,
    ) -> None:
        self._specs, self._seed, self._show, self._draw = specs, seed, show, draw
        self._plans: dict[str, Plan] = {}
        stream = 0
        for layer, loop in loops.items():
            self._plans[layer] = Plan.of(loop, stream)
            stream += sum(len(batch.drives) for store in loop.stores for batch in store.batches)
        self._spaces: SimpleQueue[Workspace] = SimpleQueue()
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
        totals = [loop.bias.new_empty(prod(shape), store.scatter.length) for store in loop.stores]
        key = np.random.SeedSequence((self._seed, self._calls)).generate_state(2).astype(np.uint32)
        self._calls += 1
        whole = self._show is not None or self._draw is not None
        work = _Work(plan, self._specs[layer], shape, key, totals, whole)
        parts = list(work.parts(x.detach()))
        threads = torch.get_num_threads()
        if threads == 1 or len(parts) == 1:
            for part in parts:
                self._run_part(work, *part)
        else:
            try:
                list(self._pool.map(lambda part: self._run_part(work, *part), parts))
            finally:
                torch.set_num_threads(threads)  # a worker's own number is MKL's for all
        return [
            scatter_vectors(store.scatter, total, shape, loop.bias if store.scatter.kind == "fold" else None)
            for store, total in zip(loop.stores, totals, strict=True)
        ]

    def _run_part(self, work: "_Work", x: Tensor, first: int) -> None:
        try:
            space = self._spaces.get_nowait()
        except Empty:
            space = Workspace(work.plan.loop.bias.dtype)
        with torch.no_grad():
            samples = SampleCodes(work.plan.loop, work.spec, x, space)
            step = samples.count if work.whole else work.plan.rows
            for start in range(0, samples.count, step):
                block = Block(samples, start, min(start + step, samples.count), space)
                self._run_block(work, block, first + start, space)
        self._spaces.put(space)

    def _run_block(self, work: "_Work", block: Block, first: int, space: Workspace) -> None:
        loop = work.plan.loop
        for store, conversions, total in zip(loop.stores, work.plan.conversions, work.totals, strict=True):
            result = total[first : first + block.count]
            result[:] = 0 if store.scatter.kind == "fold" else loop.bias
            if store.constant is not None:
                result += store.constant
            for conversion in conversions:
                self._convert(work, conversion, block, first, to_numpy(result), space)
            if store.residue is not None:
                result[:] = store.residue.add_to(result, block.codes())

    def _convert(
        self, work: "_Work", conversion: Conversion, block: Block, first: int, result: Array, space: Workspace
    ) -> None:
        digits = work.plan.loop.drive.digits
        normals = self._drawn(conversion, digits, block.count)
        for digit in range(digits):
            current, variance = _currents(conversion, block, digit, space)
            convert(
                to_numpy(current),
                to_numpy(variance),
                conversion.shift,
                conversion.curves,
                conversion.bend,
                conversion.own,
                np.empty((0, 0, 0, 0), result.dtype) if normals is None else normals[digit],
                work.key,
                np.array([first, conversion.stream, digit]),
                conversion.limits,
                conversion.thresholds,
                conversion.factors[digit],
                conversion.segments,
                result,
            )
            if self._show is not None:
                codes = conversion.by_drive(current).clone()
                self._show(work.plan.loop.layer, conversion.batch, digit, digits, codes)

    def _drawn(self, conversion: Conversion, digits: int, windows: int) -> Array | None:
        """Numbers ``(digits, 2, drives, windows, cols)`` of the read and the readout; None to draw them by counter."""
        if self._draw is None:
            return None
        batch = conversion.batch
        like = batch.matrix.new_empty(len(batch.drives), windows, batch.matrix.shape[2])
        shape = conversion.by_drive(like).shape if conversion.channels is None else (1, windows, len(batch.drives))
        found = batch.matrix.new_zeros(digits, 2, *shape)
        wanted: tuple[tuple[NoiseKind, bool], ...] = (
            ("read", batch.variance is not None),
            ("readout", conversion.own.size > 0),
        )
        for at, (kind, is_on) in enumerate(wanted):
            if is_on:
                for digit, drawn in enumerate(self._draw(batch, kind, digits, like)):
                    conversion.by_drive(found[digit, at])[:] = drawn
        return to_numpy(found)


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
        vectors = gather.kind == "vectors"
        if vectors:
            x = x.reshape(-1, gather.channels)
        samples = len(x)
        if not samples:
            return
        count = max(GROUP // max(x.numel() // samples, 1), self.plan.rows if vectors else 1)
        count = samples if self.whole else min(count, -(-samples // torch.get_num_threads()))
        for start in range(0, samples, count):
            yield x[start : start + count], start * (1 if vectors else prod(self.shape[1:]))


def runs_here(loop: CompiledLoop, spec: HardwareSpec) -> bool:
    """Whether a loop can run in blocks: not with networks solved for every input, or noise that its digits share."""
    batches = [batch for store in loop.stores for batch in store.batches]
    shared = spec.device.read_noise.correlation == "per_vector" and loop.drive.digits > 1
    solved = any(batch.amperes is not None for batch in batches)
    return not solved and not (shared and any(batch.variance is not None for batch in batches))


def _currents(conversion: Conversion, block: Block, digit: int, space: Workspace) -> tuple[Tensor, Tensor]:
    """Currents of a digit, and the variance of their noise (of size 0 for none), ``(drives, windows, cols)``."""
    batch, phase = conversion.batch, conversion.batch.drives[0].phase
    if conversion.channels is not None:
        samples, channels = block.samples, conversion.channels
        current = space.take("current", 1, block.count, channels.matrix.shape[1])
        variance = space.take("variance", *(current.shape if channels.variance.size else (0, 0, 0)))
        pixels = to_numpy(samples.driven(phase)[digit])
        arguments = pixels, block.start, samples.axes, channels.first, channels.matrix, channels.variance
        multiply_channels(*arguments, to_numpy(current), to_numpy(variance))
        return current, variance
    shape = len(batch.drives), block.count, batch.matrix.shape[2]
    current = space.take("current", *shape)
    _multiply(batch.rows_of(block.inputs(phase, digit)), batch.matrix, current)
    if batch.variance is None:
        return current, space.take("variance", 0, 0, 0)
    variance = space.take("variance", *shape)
    _multiply(batch.rows_of(block.squares(phase, digit)), batch.variance, variance)
    return current, variance


def _multiply(inputs: Tensor, matrix: Tensor, out: Tensor) -> None:
    if len(matrix) == 1:
        torch.mm(inputs[0], matrix[0], out=out[0])
    else:
        torch.bmm(inputs, matrix, out=out)
