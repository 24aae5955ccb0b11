"""The gradient of a loop in compiled blocks, straight through what rounds and masked where something clips.

Forward a loop runs as in inference, with every effect. Backward a conversion counts as the line that it rounds: its
gradient goes to the matrix and to the codes, unless the ADC clipped; digits of a code count together, and what bends
counts with its slope at zero. Codes are gathered again from the inputs, so that only those are kept, and one byte a
conversion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwspec.spec import HardwareSpec
from runtime.backward_numba import fold_windows, to_currents, to_inputs
from runtime.blocks_torch import BlockRunner, Part, sample_parts
from runtime.codes_torch import Block, SampleCodes, to_numpy
from runtime.geometry import window_shape
from runtime.plans_torch import Conversion, Plan
from runtime.workers_torch import Workspace


class LoopFunction(torch.autograd.Function):
    """``(runner, layer, x, bias, *matrices)`` to the results of each store.

    Bias and matrices (of the batches, store by store) have the values that the runner holds: they are only what
    gradients are for. The bias gets none where results are folded, and it is not in them.
    """

    @staticmethod
    def forward(
        ctx: Any, runner: BlockRunner, layer: str, x: Tensor, _bias: Tensor, *matrices: Tensor
    ) -> tuple[Tensor, ...]:
        """The loop's results, ``(windows, length)`` of each store, with the bias unless they are folded."""
        plan = runner.plan(layer)
        windows = prod(window_shape(plan.loop.gather, x.shape))
        inside = [[conversion.mask(windows) for conversion in of_store] for of_store in plan.conversions]
        ctx.runner, ctx.layer, ctx.inside = runner, layer, inside
        ctx.save_for_backward(x, *matrices)
        return tuple(runner.results(layer, x, inside))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Gradients of the input and of the matrices."""
        x, *matrices = ctx.saved_tensors
        plan = ctx.runner.plan(ctx.layer)
        dense = [gradient.contiguous() for gradient in gradients]
        steps = [
            _Step(conversion, matrices.pop(0), gradient, mask)
            for of_store, gradient, masks in zip(plan.conversions, dense, ctx.inside, strict=True)
            for conversion, mask in zip(of_store, masks, strict=True)
        ]
        back = _Backward(plan, ctx.runner.spec(ctx.layer), steps, dense, x, of_input=ctx.needs_input_grad[2])
        found = ctx.runner.workers.each(sample_parts(plan, x), back.part)
        of_matrices = [sum(rest, start=first) for first, *rest in zip(*found, strict=True)]
        of_bias = None
        if ctx.needs_input_grad[3] and plan.loop.stores[0].scatter.kind != "fold":
            of_bias = torch.stack([gradient.sum(0) for gradient in gradients]).sum(0)
        return (None, None, back.of_x, of_bias, *of_matrices)


def loop_results(
    runner: BlockRunner, layer: str, x: Tensor, bias: Tensor, matrices: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """As `LoopFunction` gives them."""
    found: tuple[Tensor, ...] = LoopFunction.apply(runner, layer, x, bias, *matrices)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True, eq=False)
class _Step:
    """A batch on the way back: its matrix, the gradient of the results that it adds to, and where the ADC clipped."""

    conversion: Conversion
    matrix: Tensor
    gradient: Tensor
    inside: Tensor


class _Backward:
    """The way back through one loop for one input; `of_x` is the gradient of the input, None unless it is wanted."""

    def __init__(
        self,
        plan: Plan,
        spec: HardwareSpec,
        steps: Sequence[_Step],
        gradients: Sequence[Tensor],
        x: Tensor,
        *,
        of_input: bool,
    ) -> None:
        self._plan, self._spec, self._steps, self._gradients = plan, spec, steps, gradients
        self.of_x: Tensor | None = None
        if of_input:
            image = plan.loop.gather.kind != "vectors"
            self._last = x.new_empty(x.movedim(1, -1).shape if image else x.shape)
            self.of_x = self._last.movedim(-1, 1) if image else self._last
            self._rows = self._last if image else self._last.view(-1, x.shape[-1])

    def part(self, part: Part, space: Workspace) -> list[Tensor]:
        """Gradients of the matrices from some samples; that of their inputs is filled."""
        samples = SampleCodes(self._plan.loop, self._spec, part.x, space)
        pixels = None
        if self.of_x is not None:
            pixels = space.take("pixels", *samples.codes.shape).zero_()
        found = [torch.zeros_like(step.matrix) for step in self._steps]
        for block in part.blocks(samples, space):
            for step, of_matrix in zip(self._steps, found, strict=True):
                if step.conversion.batch.copy != block.copy:
                    continue
                self._step(step, block, part.first + block.start, of_matrix, pixels, space)
            if pixels is not None:
                self._residues(block, part.first + block.start, pixels)
        if pixels is not None:
            out = self._rows[part.start : part.start + len(part.x)].view(samples.images.shape)
            arguments = samples.step, *samples.limits(np.inf), samples.begins, to_numpy(out)
            to_inputs(to_numpy(pixels), to_numpy(samples.images), *arguments)
        return found

    def _residues(self, block: Block, first: int, pixels: Tensor) -> None:
        """Add what goes through the weights in digital memory."""
        for store, gradient in zip(self._plan.loop.stores, self._gradients, strict=True):
            if store.residue is not None:
                rows = gradient.new_zeros(1, block.count, self._plan.loop.length)
                of_store = gradient[first : first + block.count]
                rows[0][:, store.residue.rows] = of_store[:, store.residue.columns] @ store.residue.matrix.T
                self._fold(rows, np.zeros(1, np.int64), block, pixels)

    def _fold(self, rows: Tensor, starts: npt.NDArray[np.int64], block: Block, pixels: Tensor) -> None:
        samples = block.samples
        fold_windows(to_numpy(rows), starts, block.start, samples.axes, samples.loop.gather.groups, to_numpy(pixels))

    def _step(
        self, step: _Step, block: Block, first: int, of_matrix: Tensor, pixels: Tensor | None, space: Workspace
    ) -> None:
        conversion = step.conversion
        batch, windows = conversion.batch, slice(first, first + block.count)
        drives, cols = conversion.slope.shape
        current = space.take("current", drives, block.count, cols)
        inside = step.inside[windows] if step.inside.numel() else step.inside
        arguments = conversion.slope, conversion.segments, to_numpy(inside), to_numpy(current)
        to_currents(to_numpy(step.gradient[windows]), *arguments)
        by_drive = conversion.by_drive(current)
        phase = batch.drives[0].phase
        inputs = batch.rows_of(block.part(phase))
        of_matrix.baddbmm_(inputs.transpose(1, 2), by_drive)
        if pixels is None:
            return
        rows = space.take("rows", *inputs.shape)
        torch.bmm(by_drive, step.matrix.transpose(1, 2), out=rows)
        if phase != "both":  # at 0 either phase can take a change: each counts by half
            signs = batch.rows_of(block.codes()).sign()
            rows *= 0.5 * (1 + signs if phase == "+" else signs - 1)
        self._fold(rows, np.array([drive.start for drive in batch.drives]), block, pixels)
