"""Weights of few levels: training on what a few conductance levels can hold (quantisation-aware training).

A weight of a convolution or linear layer is a code of ``levels`` symmetric values, -1 to 1 in equal steps, times a
scale of its output channel. Training keeps latent weights of full precision, computes with the few-level ones, and
passes their gradient to the latent ones (the straight-through estimator of Bengio et al., arXiv:1308.3432).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TERNARY_SCALE = 1.4
"""Scale of three levels in mean magnitudes of the channel's weights: weights below half of it, 0.7 mean magnitudes,
become 0, which is near the best threshold of ternary weights (Li et al., arXiv:1605.04711, equation 6)."""

CLIP = 2.5
"""Scale of more levels in root mean squares of the channel's weights, unless the largest weight is smaller: with
Gaussian weights on 15 levels the mean squared error is least there (2.45 to 2.5)."""


@dataclass(frozen=True)
class Disturbance:
    """What happens to few-level weights in training, drawn anew at each use.

    Attributes
    ----------
    noise : float
        Spread of a device: standard deviation of its conductance as a share of it.
    rest : float
        Conductance of a device that stands for 0, as a share of the range from there to the highest.
    loss : float
        Probability with which a weight is 0, as that of a failed device.
    generator : torch.Generator
        Source of the draws, on the device of the weights.
    """

    noise: float
    rest: float
    loss: float
    generator: torch.Generator


class FewLevels(nn.Module):
    """A parametrization that gives a layer few-level weights.

    Parameters
    ----------
    levels
        Number of values that a channel's weights can have, odd and at least 3.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        if levels < 3 or levels % 2 == 0:
            raise ValueError(f"levels must be odd and at least 3, not {levels}")
        self.levels = levels
        self.disturbance: Disturbance | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Map latent weights (channels, ...) to few-level ones, disturbed in training only."""
        scale = channel_scale(weight, self.levels)
        quantised: Tensor = _StraightThrough.apply(weight, scale, self.levels)  # type: ignore[no-untyped-call]
        if self.disturbance is None or not self.training:
            return quantised
        return _disturb(quantised, scale, self.disturbance)


def channel_scale(weight: Tensor, levels: int) -> Tensor:
    """Compute the scale of each output channel, the value of its largest level.

    At least one weight of a channel rounds to it, so that a compiler that divides by the largest weight finds the
    codes again.

    Parameters
    ----------
    weight : (channels, ...)
        Latent weights.
    levels
        Number of values.

    Returns
    -------
    (channels, 1, ...)
        Without gradient; 0 for a channel whose weights are all 0.
    """
    magnitude = weight.detach().abs()
    inside = tuple(range(1, weight.dim()))
    if levels == 3:
        return TERNARY_SCALE * magnitude.mean(inside, keepdim=True)
    spread = magnitude.square().mean(inside, keepdim=True).sqrt()
    return torch.minimum(magnitude.amax(inside, keepdim=True), CLIP * spread)


def quantise(weight: Tensor, scale: Tensor, levels: int) -> Tensor:
    """Round weights to their nearest level.

    Parameters
    ----------
    weight : (channels, ...)
        Latent weights.
    scale : (channels, 1, ...)
        Of `channel_scale`.
    levels
        Number of values.
    """
    half = (levels - 1) // 2
    share = (weight / torch.where(scale > 0, scale, 1.0)).clamp(-1, 1)
    return torch.round(share * half) / half * scale


class _StraightThrough(torch.autograd.Function):
    """Round in the forward pass; the gradient passes as it is, but not to weights beyond the scale."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return quantise(weight, scale, levels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return gradient * (weight.abs() <= scale), None, None


def _disturb(weight: Tensor, scale: Tensor, disturbance: Disturbance) -> Tensor:
    """Add the spread of the two devices of each weight, then lose weights; a lost one gets no gradient."""
    generator, rest = disturbance.generator, disturbance.rest * scale
    if disturbance.noise:
        draws = torch.randn(weight.shape, generator=generator, device=generator.device)
        conductances = torch.hypot(weight.detach().abs() + rest, rest)  # of both devices, their squares added
        weight = weight + disturbance.noise * conductances * draws
    if disturbance.loss:
        draws = torch.rand(weight.shape, generator=generator, device=generator.device)
        weight = weight * (draws >= disturbance.loss)
    return weight


def add_few_levels(network: nn.Module, levels: int) -> None:
    """Give every convolution and linear layer few-level weights, the first and the last too.

    Parameters
    ----------
    network
        It is changed in place; its present weights become the latent ones.
    levels
        Number of values that a channel's weights can have, odd and at least 3.
    """
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parametrize.register_parametrization(layer, "weight", FewLevels(levels))


def few_levels_of(network: nn.Module) -> Iterator[FewLevels]:
    """Yield the parametrization of each layer that has few-level weights."""
    return (module for module in network.modules() if isinstance(module, FewLevels))


def leave_few_levels(network: nn.Module) -> None:
    """Put the few-level weights in place of the latent ones, for good and without disturbance.

    Parameters
    ----------
    network
        It is changed in place and left in evaluation mode.

    Raises
    ------
    RuntimeError
        A channel has no weight at its scale.
    """
    network.eval()
    for layer in list(network.modules()):
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not parametrize.is_parametrized(layer, "weight"):
            continue
        (few_levels,) = few_levels_of(layer)
        latent = layer.get_parameter("parametrizations.weight.original")
        scale = channel_scale(latent, few_levels.levels)
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        if not torch.equal(layer.weight.abs().amax(tuple(range(1, scale.dim())), keepdim=True), scale):
            raise RuntimeError(f"a channel of {layer} has no weight at its scale")


def reestimate_statistics(network: nn.Module, images: Tensor, batch: int = 256, most: int = 4096) -> None:
    """Measure what batch normalisation normalises by anew, on images spread evenly over those given.

    Parameters
    ----------
    network
        Its running means and variances are replaced by the means over batches.
    images : (samples, channels, height, width)
        Training images.
    batch, most
        Images a batch and in all, about.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # all batches count alike
    chosen = images[:: max(1, len(images) // most)]
    batches = -(-len(chosen) // batch)
    network.train()
    with torch.no_grad():
        for first in range(batches):  # each batch is spread over all, which may be sorted by class
            network(chosen[first::batches])
    network.eval()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
