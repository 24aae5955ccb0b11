"""What fine-tuning makes small, against torch's own formulas; and what has no loss is refused by name."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hwspec.errors import DataError
from runtime.losses_torch import Loss, class_scores, log_scores
from runtime.tuning import TuneOptions

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(6, 4, generator=GENERATOR)
TAUGHT = torch.randn(6, 4, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def loss_of(options: TuneOptions, *, labelled: bool = True, scores: torch.Tensor = SCORES) -> float:
    taught = None if (options.distill or 0.0) == 0 and labelled else [TAUGHT.numpy()]
    return float(Loss(options, labelled=labelled)([scores], LABELS if labelled else None, taught))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_labels(smoothing: float) -> None:
    wanted = functional.cross_entropy(SCORES, LABELS, label_smoothing=smoothing)
    assert loss_of(TuneOptions(smoothing=smoothing)) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_of_softened_probabilities(temperature: float) -> None:
    """Sum of p log(p / q) over classes, mean over samples, times the temperature's square."""
    p, q = (functional.softmax(one.double() / temperature, 1) for one in (TAUGHT, SCORES))
    wanted = temperature**2 * (p * (p / q).log()).sum(1).mean()
    options = TuneOptions(distill=1.0, temperature=temperature)
    assert loss_of(options) == pytest.approx(float(wanted), rel=1e-5)
    assert loss_of(options, scores=TAUGHT) == pytest.approx(0, abs=1e-6)
    assert loss_of(TuneOptions(temperature=temperature), labelled=False) == pytest.approx(float(wanted), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.floats(0.5, 8))
def test_mixtures_lie_between_both(share: float, temperature: float) -> None:
    ends = [loss_of(TuneOptions(distill=one, temperature=temperature)) for one in (0.0, 1.0)]
    found = loss_of(TuneOptions(distill=share, temperature=temperature))
    assert found == pytest.approx((1 - share) * ends[0] + share * ends[1], rel=1e-5, abs=1e-6)


def test_models_that_end_with_softmax_are_taken_as_such() -> None:
    """Their loss, and its gradient, are those of the scores before."""
    scores = SCORES.clone().requires_grad_()
    for options in (TuneOptions(), TuneOptions(distill=1.0), TuneOptions(distill=0.4, smoothing=0.1)):
        found = []
        for ends in (lambda x: x, lambda x: functional.softmax(x, 1)):
            value = Loss(options, labelled=True)([ends(scores)], LABELS, [ends(TAUGHT).numpy()])
            (gradient,) = torch.autograd.grad(value, scores)
            found.append((value.detach(), gradient))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_probability_of_zero_has_a_finite_loss_and_gradient() -> None:
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = Loss(TuneOptions(), labelled=True)([shares], torch.tensor([1, 0]), None)
    value.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(float(value.detach()))
    assert shares.grad is not None
    assert torch.isfinite(shares.grad).all()


def test_all_outputs_are_taught() -> None:
    """Rows of class scores by divergence, others by their squares; or all one way, where that is asked for."""
    outs = [torch.randn(6, one, generator=GENERATOR) for one in (4, 3, 1)]
    truths = [torch.randn(6, one, generator=GENERATOR) for one in (4, 3, 1)]
    squares = [float(((a - b) ** 2).mean() / (b**2).mean()) for a, b in zip(outs, truths, strict=True)]
    shares = []
    for out, truth in zip(outs, truths, strict=True):
        found, wanted = (functional.log_softmax(one / 2, 1) for one in (out, truth))
        shares.append(4 * float(functional.kl_div(found, wanted, log_target=True, reduction="batchmean")))
    sums = {"auto": [*shares[:2], squares[2]], "squared": squares}
    for distance, terms in sums.items():
        loss = Loss(TuneOptions(distill=1.0, distance=distance), labelled=False)  # type: ignore[arg-type]
        assert float(loss(outs, None, truths)) == pytest.approx(sum(terms), rel=1e-5)
        assert loss.teaches(outs) == [0, 1, 2]
    loss = Loss(TuneOptions(distance="divergence"), labelled=False)
    assert float(loss(outs[:2], None, truths[:2])) == pytest.approx(sum(shares[:2]), rel=1e-5)
    with pytest.raises(DataError, match=r"outputs must have a row of class scores .* not \(6, 1\); --distance squared"):
        loss(outs, None, truths)
    assert Loss(TuneOptions(), labelled=True).teaches(outs) == [0]


def test_a_teacher_of_other_shapes_is_refused() -> None:
    loss = Loss(TuneOptions(distill=0.5), labelled=True)
    for classes in (1, 3, 8):
        with pytest.raises(DataError, match=r"teacher must give output 1 in the program's shape, \(6, 4\), not \(6, "):
            loss([SCORES], LABELS, [torch.zeros(6, classes)])


def test_other_outputs_are_compared_by_their_squares() -> None:
    """Summed over the outputs, each over the size of the original's; numbers without a fraction are left out."""
    outs = [torch.randn(5, 2, 3, generator=GENERATOR), torch.arange(5), torch.randn(5, 1, generator=GENERATOR)]
    truths = [torch.randn(5, 2, 3, generator=GENERATOR), torch.arange(5), torch.randn(5, 1, generator=GENERATOR)]
    wanted = sum(float(((outs[at] - truths[at]) ** 2).sum() / (truths[at] ** 2).sum()) for at in (0, 2))
    loss = Loss(TuneOptions(), labelled=False)
    assert float(loss(outs, None, [one.numpy() for one in truths])) == pytest.approx(wanted, rel=1e-5)
    zeros = loss([torch.ones(3, 1)], None, [np.zeros((3, 1), np.float32)])
    assert math.isfinite(float(zeros))
    with pytest.raises(DataError, match="nothing to learn"):
        loss([torch.arange(5)], None, [np.arange(5)])


def test_one_score_a_sample_is_no_row_of_classes() -> None:
    """A regression with one output: squares, not a divergence that would always be 0."""
    loss = Loss(TuneOptions(), labelled=False)
    assert float(loss([torch.ones(4, 1)], None, [2 * np.ones((4, 1), np.float32)])) == pytest.approx(0.25)


def test_scores_of_several_axes_are_classes_side_by_side() -> None:
    scores = SCORES.reshape(6, 4, 1, 1)
    assert loss_of(TuneOptions(), scores=scores) == pytest.approx(loss_of(TuneOptions()))
    assert log_scores(class_scores(scores)).shape == (6, 4)


@pytest.mark.parametrize(
    ("labels", "output"),
    [
        ([0, 1, 4], torch.zeros(3, 4)),
        ([0, -1, 2], torch.zeros(3, 4)),
        ([0, 1], torch.zeros(3, 4)),
        ([0, 1, 2], torch.zeros(3)),
        ([0, 1, 2], torch.zeros(3, 4, dtype=torch.int64)),
    ],
    ids=["beyond", "negative", "too few", "no classes", "whole numbers"],
)
def test_labels_that_do_not_fit(labels: list[int], output: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"labels must fit the first output of the model, \(samples, classes\)"):
        Loss(TuneOptions(), labelled=True)([output], torch.tensor(labels), None)


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_no_labels_to_learn_from(share: float) -> None:
    with pytest.raises(DataError, match=r"data must have labels where the loss asks for them; --distill 1"):
        Loss(TuneOptions(distill=share), labelled=False)


def test_the_error_of_half_precision_does_not_overflow() -> None:
    """Squares of 300 do, in float16."""
    loss = Loss(TuneOptions(distill=1.0, distance="squared"), labelled=False)
    output = torch.full((4, 3), 330.0, dtype=torch.float16)
    assert float(loss([output], None, [torch.full_like(output, 300.0)])) == pytest.approx(0.01)
