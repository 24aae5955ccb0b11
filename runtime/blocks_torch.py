"""Loops on the CPU, block by block: matrix products by torch, everything between them in compiled loops.

A block is some windows of some samples, so few that their codes and currents stay in the cache; samples are shared out
to threads. Results are those of the engine's own torch operations, which remain for other devices.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwspec.spec import HardwareSpec
from runtime.batches_torch import Batch
from runtime.channels import NoiseKind
from runtime.codes_torch import Block, SampleCodes, to_numpy
from runtime.convert_numba import convert
from runtime.geometry import window_shape
from runtime.geometry_torch import scatter_vectors
from runtime.loops_torch import CompiledLoop
from runtime.plans_torch import Conversion, Plan
from runtime.tables import window_bands
from runtime.windows_numba import multiply_channels
from runtime.workers_torch import Workers, Workspace

GROUP = 1 << 19
"""Codes of the samples that are worked on together."""
_WORTH_THREADS = 1 << 19
"""Elements of gathered windows that each thread must have for samples to be shared out: handing over takes time."""

_NOBODY = torch.empty(0, 0, 0, dtype=torch.uint8)
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
    workers
        Threads to share samples out to.
    keys
        Gives two words of a seed for the noise of every call.
    show
        Called after every conversion.
    draw
        Gives noise that is not drawn here. With this or `show`, all windows are one block.
    """

    def __init__(
        self,
        loops: Mapping[str, CompiledLoop],
        specs: Mapping[str, HardwareSpec],
        workers: Workers,
        keys: Iterator[npt.NDArray[np.uint32]],
        show: Show | None = None,
        draw: Draw | None = None,
    ) -> None:
        self._specs, self._keys, self._show, self._draw = specs, keys, show, draw
        self.workers = workers
        self._plans: dict[str, Plan] = {}
        stream = 0
        for layer, loop in loops.items():
            self._plans[layer] = Plan.of(loop, stream)
            stream += sum(len(batch.drives) for store in loop.stores for batch in store.batches)

    def runs(self, layer: str) -> bool:
        """Whether a layer's loop is among those given."""
        return layer in self._plans

    def plan(self, layer: str) -> Plan:
        """A layer's loop and its batches."""
        return self._plans[layer]

    def spec(self, layer: str) -> HardwareSpec:
        """The hardware that a layer runs on."""
        return self._specs[layer]

    def run(self, layer: str, x: Tensor) -> list[Tensor]:
        """What each store of a loop writes, for the loop's input."""
        loop = self._plans[layer].loop
        shape = window_shape(loop.gather, x.shape)
        return [
            scatter_vectors(store.scatter, total, shape, loop.bias if store.scatter.kind == "fold" else None)
            for store, total in zip(loop.stores, self.results(layer, x), strict=True)
        ]

    def results(self, layer: str, x: Tensor, inside: Sequence[Sequence[Tensor]] | None = None) -> list[Tensor]:
        """What is added up for each store, ``(windows, length)``, with the bias unless results are folded.

        Parameters
        ----------
        layer, x
            The loop, and its input.
        inside
            For every store and batch a tensor of ones, ``(windows, drives, cols)`` uint8, as its `Conversion` has them:
            zero afterwards where the ADC clips.
        """
        plan = self._plans[layer]
        loop = plan.loop
        shape = window_shape(loop.gather, x.shape)
        totals = [loop.bias.new_empty(prod(shape), store.scatter.length) for store in loop.stores]
        whole = self._show is not None or self._draw is not None
        work = _Work(plan, self._specs[layer], next(self._keys), totals, inside)
        self.workers.each(sample_parts(plan, x.detach(), whole=whole), partial(self._run_part, work))
        return totals

    def _run_part(self, work: "_Work", part: "Part", space: Workspace) -> None:
        samples = SampleCodes(work.plan.loop, work.spec, part.x, space)
        for block in part.blocks(samples, space):
            self._run_block(work, block, part.first + block.start, space)

    def _run_block(self, work: "_Work", block: Block, first: int, space: Workspace) -> None:
        loop = work.plan.loop
        for number, (store, total) in enumerate(zip(loop.stores, work.totals, strict=True)):
            result = total[first : first + block.count]
            result[:] = 0 if store.scatter.kind == "fold" else loop.bias
            constant = store.constants[block.copy]
            if constant is not None:
                result += constant
            for at, conversion in enumerate(work.plan.conversions[number]):
                if conversion.batch.copy != block.copy:
                    continue
                inside = _NOBODY if work.inside is None else work.inside[number][at][first : first + block.count]
                self._convert(work, conversion, block, first, to_numpy(result), to_numpy(inside), space)
            if store.residue is not None:
                result[:] = store.residue.add_to(result, block.codes())

    def _convert(
        self,
        work: "_Work",
        conversion: Conversion,
        block: Block,
        first: int,
        result: Array,
        inside: Array,
        space: Workspace,
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
                inside,
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
        shape = like.shape if conversion.channels is None else (1, windows, len(batch.drives))
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
    key: npt.NDArray[np.uint32]
    totals: list[Tensor]
    inside: Sequence[Sequence[Tensor]] | None


@dataclass(frozen=True, eq=False)
class Part:
    """Samples that are worked on together.

    Attributes
    ----------
    x
        Inputs.
    start, first
        Numbers of the first sample and of the first window.
    rows
        Windows of a block at most; None for all.
    windows, copies
        Windows of a sample, and copies of the matrix that share them out.
    """

    x: Tensor
    start: int
    first: int
    rows: int | None
    windows: int
    copies: int

    def blocks(self, samples: SampleCodes, space: Workspace) -> Iterator[Block]:
        """Their windows, block by block, each for one copy."""
        step = self.rows or samples.count
        if self.copies == 1:
            for start in range(0, samples.count, step):
                yield Block(samples, start, min(start + step, samples.count), space)
            return
        bands = window_bands(self.windows, self.copies)
        start = 0
        while start < samples.count:
            at = (self.first + start) % self.windows
            copy = at // len(bands[0])
            stop = min(start + step, start + bands[copy].stop - at, samples.count)
            yield Block(samples, start, stop, space, copy)
            start = stop


def sample_parts(plan: Plan, x: Tensor, *, whole: bool = False) -> Iterator[Part]:
    """The input of a loop cut into parts, or as one part of one block."""
    gather = plan.loop.gather
    shape = window_shape(gather, x.shape)
    vectors = gather.kind == "vectors"
    if vectors:
        x = x.reshape(-1, gather.channels)
    samples = len(x)
    if not samples:
        return
    count = max(GROUP // max(x.numel() // samples, 1), plan.rows if vectors else 1)
    threads = torch.get_num_threads()
    if prod(shape) * plan.loop.length >= _WORTH_THREADS * threads:
        count = min(count, -(-samples // threads))
    count = samples if whole else count
    for start in range(0, samples, count):
        first = start * (1 if vectors else prod(shape[1:]))
        rows = None if whole else plan.rows
        yield Part(x[start : start + count], start, first, rows, prod(shape[1:]), plan.loop.copies)


def call_keys(seed: int) -> Iterator[npt.NDArray[np.uint32]]:
    """Two words of a seed for every call, from the seed of them all."""
    for call in itertools.count():
        yield np.random.SeedSequence((seed, call)).generate_state(2).astype(np.uint32)


def runs_here(loop: CompiledLoop, spec: HardwareSpec, *, at_once: bool = False) -> bool:
    """Whether a loop can run in blocks.

    Not with networks that are solved for every input, noise that its digits share, or more than three spatial axes; nor
    where all windows must be one block (`at_once`) and copies share them out.
    """
    if at_once and loop.copies > 1:
        return False
    batches = [batch for store in loop.stores for batch in store.batches]
    shared = spec.device.read_noise.correlation == "per_vector" and loop.drive.digits > 1
    solved = any(batch.amperes is not None for batch in batches)
    return (
        len(loop.gather.kernel) <= 3
        and not solved
        and not (shared and any(batch.variance is not None for batch in batches))
    )


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
