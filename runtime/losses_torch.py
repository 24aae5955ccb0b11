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

    Distillation is the divergence of softened class probabilities where the first output has a row of scores a sample
    (Hinton et al., arXiv:1503.02531, section 2), else the squared error of all outputs over the originals' size.

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
        truths = [torch.as_tensor(one, device=out.device) for one, out in zip(taught, outputs, strict=True)]
        first = truths[0]
        if first.is_floating_point() and first.dim() == 2 and first.shape[1] > 1:
            heat = self._options.temperature
            found = functional.log_softmax(log_scores(outputs[0]) / heat, 1)
            wanted = functional.log_softmax(log_scores(first) / heat, 1)
            return heat**2 * functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
        pairs = [(out, truth) for out, truth in zip(outputs, truths, strict=True) if truth.is_floating_point()]
        if not pairs:
            raise DataError("outputs", "must be numbers with a fraction, or there is nothing to learn from them")
        return torch.stack(
            [((out - truth) ** 2).mean() / (truth**2).mean().clamp(min=_TINY) for out, truth in pairs]
        ).sum()


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
