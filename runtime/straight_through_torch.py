"""Rounding that gradients go straight through, for loops of plain torch operations.

Forward everything is as in `runtime.quantize`. Backward a rounded number counts as the one before it, and what is
clipped gets no gradient: the rules of `runtime.backward_torch`, which has them compiled.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _As(torch.autograd.Function):
    """One tensor's values with the gradient of another."""

    @staticmethod
    def forward(_ctx: Any, value: Tensor, _follows: Tensor) -> Tensor:
        """The values."""
        return value.view_as(value)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        """Everything goes to what is followed."""
        return None, gradients[0]


def follow(value: Tensor, follows: Tensor) -> Tensor:
    """`value`, with gradients as if it were `follows`, of the same shape."""
    if not (torch.is_grad_enabled() and follows.requires_grad):
        return value
    found: Tensor = _As.apply(value.detach(), follows)  # type: ignore[no-untyped-call]
    return found


def follow_inputs(codes: Tensor, vectors: Tensor, full_scale: float, top: float, *, signed: bool) -> Tensor:
    """Input codes that count as the vectors in units of a code, where the DAC does not clip them: by half a code."""
    if not (torch.is_grad_enabled() and vectors.requires_grad):
        return codes
    return follow(codes, within(vectors * (top / full_scale), -top if signed else 0.0, top))


def within(values: Tensor, low: float, high: float) -> Tensor:
    """Values whose gradient stops where they lie more than half a code beyond the codes from `low` to `high`."""
    return values.clamp(low - 0.5, high + 0.5)


def with_gradient_unless(total: Tensor, clipped: Sequence[Tensor]) -> Tensor:
    """What digits add up to; it gets no gradient where any of them clipped, for they count together."""
    if not total.requires_grad:
        return total
    return torch.where(torch.stack(tuple(clipped)).any(0), total.detach(), total)


def phase_of(codes: Tensor, phase: str) -> Tensor:
    """The part of codes that a phase drives; at 0 either phase takes half of the gradient."""
    if phase == "both":
        return codes
    part = (codes if phase == "+" else -codes).clamp(min=0)
    return follow(part, 0.5 * (codes.abs() + (codes if phase == "+" else -codes)))


def follow_digits(digits: Sequence[Tensor], weights: Sequence[float], codes: Tensor) -> list[Tensor]:
    """Digits of codes that count together as the codes: each as its share, over the weight that it is added with."""
    return [follow(digit, codes * (1 / (weight * len(digits)))) for digit, weight in zip(digits, weights, strict=True)]
