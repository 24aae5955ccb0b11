"""What fine-tuning makes small: cross entropy against labels, distillation from the original model, or both."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hwspec.errors import DataError
from runtime.tuning import TuneOptions

_TINY = 1e-7
"""Probabilities are taken to be at least this."""


class Loss:
    """The loss of outputs, for the labels of their samples and what the original model gives for them.

    Labels are those of the first output. Distillation adds up all outputs that are numbers with a fraction: the
    divergence of softened class probabilities (Hinton et al., arXiv:1503.02531, section 2), or the squared error over
    the original's size (`TuneOptions.distance`).

    Parameters
    ----------
    options
        How to mix.
    labelled
        Whether there are labels.
    """

    def __init__(self, options: TuneOptions, *, labelled: bool) -> None:
        self.distill = (0.0 if labelled else 1.0) if options.distill is None else options.distill
        if self.distill < 1 and not labelled:
            hint = "--distill 1 learns from the original model alone"
            raise DataError("data", "must have labels where the loss asks for them", hint=hint)
        self._options = options

    def teaches(self, outputs: Sequence[Tensor]) -> list[int]:
        """Numbers of the outputs that the loss depends on."""
        fractions = {number for number, one in enumerate(outputs) if one.is_floating_point()}
        return sorted((fractions if self.distill else set()) | ({0} if self.distill < 1 else set()))

    def __call__(
        self, outputs: Sequence[Tensor], labels: Tensor | None, taught: Sequence[Tensor | npt.NDArray[Any]] | None
    ) -> Tensor:
        """Mean over samples.

        Parameters
        ----------
        outputs
            Of the program.
        labels : (samples,) int64
            None where there are none.
        taught
            Outputs of the original model; None where it does not teach.
        """
        terms = []
        if self.distill < 1:
            assert labels is not None
            scores = log_scores(class_scores(outputs[0]))
            check_labels(labels, scores)
            entropy = functional.cross_entropy(scores, labels, label_smoothing=self._options.smoothing)
            terms.append((1 - self.distill) * entropy)
        if self.distill > 0:
            assert taught is not None
            terms.append(self.distill * self._distillation(outputs, taught))
        return torch.stack(terms).sum()

    def _distillation(self, outputs: Sequence[Tensor], taught: Sequence[Tensor | npt.NDArray[Any]]) -> Tensor:
        terms = []
        for number, (output, one) in enumerate(zip(outputs, taught, strict=True)):
            truth = torch.as_tensor(one, device=output.device)
            if truth.shape != output.shape:
                requirement = f"must give output {number + 1} in the program's shape, {tuple(output.shape)}"
                raise DataError("teacher", requirement, got=tuple(truth.shape))
            if output.is_floating_point():
                terms.append(self._divergence(output, truth) if self._scores(truth) else _squared(output, truth))
        if not terms:
            raise DataError("outputs", "must be numbers with a fraction, or there is nothing to learn from them")
        return torch.stack(terms).sum()

    def _scores(self, truth: Tensor) -> bool:
        """Whether an output is compared as class scores."""
        row = truth.dim() == 2 and truth.shape[1] > 1
        if self._options.distance == "divergence" and not row:
            requirement = "must have a row of class scores a sample to be compared by their divergence"
            raise DataError("outputs", requirement, got=tuple(truth.shape), hint="--distance squared compares numbers")
        return row and self._options.distance != "squared"

    def _divergence(self, output: Tensor, truth: Tensor) -> Tensor:
        heat = self._options.temperature
        found, wanted = (functional.log_softmax(log_scores(one) / heat, 1) for one in (output, truth))
        return heat**2 * functional.kl_div(found, wanted, log_target=True, reduction="batchmean")


def _squared(output: Tensor, truth: Tensor) -> Tensor:
    output, truth = (one if one.dtype == torch.float64 else one.float() for one in (output, truth))
    return ((output - truth) ** 2).mean() / (truth**2).mean().clamp(min=_TINY)


def class_scores(output: Tensor) -> Tensor:
    """Scores ``(samples, classes)`` of an output with one row of them a sample."""
    if not output.is_floating_point() or output.dim() < 2:
        shape = tuple(output.shape)
        raise DataError(
            "labels", "must fit the first output of the model, (samples, classes)", got=f"an output {shape}"
        )
    return output.reshape(len(output), -1)


def check_labels(labels: Tensor, scores: Tensor) -> None:
    """Raise `DataError` unless every label is one of the classes."""
    if len(labels) != len(scores) or int(labels.max()) >= scores.shape[1] or int(labels.min()) < 0:
        got = f"labels from {int(labels.min())} to {int(labels.max())} for an output {tuple(scores.shape)}"
        raise DataError("labels", "must fit the first output of the model, (samples, classes)", got=got)


def log_scores(scores: Tensor) -> Tensor:
    """Scores as logarithms: of models that end with softmax, those of the probabilities."""
    with torch.no_grad():
        sums = scores.sum(1)
        is_share = bool((scores >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
    return scores.clamp(min=_TINY).log() if is_share else scores
