"""Few-level weights: what is exported lies on the grid, and training with them repeats and goes on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from models.checkpoint import save_checkpoint
from models.export import export_onnx
from models.few_levels import (
    Disturbance,
    FewLevels,
    add_few_levels,
    channel_scale,
    few_levels_of,
    leave_few_levels,
    reestimate_statistics,
)
from models.networks import digits_cnn
from models.recipes import image_input, with_epochs
from models.training import Trained, TrainingOptions, train
from runtime.augment_torch import Augmentation
from xbarc.data.load import load_data

SHORT = TrainingOptions(
    epochs=4,
    batch=64,
    learning_rate=5e-3,
    weight_decay=0.01,
    patience=4,
    validation=200,
    average=0.8,
    augmentation=Augmentation(crop=1),
    levels=3,
)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    pytest.importorskip("sklearn.datasets", reason="the set comes with scikit-learn")
    data = load_data("digits", [image_input(8)], split="train")
    assert data.labels is not None
    return data.inputs["image"], data.labels


def trained_on(digits: tuple[np.ndarray, np.ndarray], options: TrainingOptions, path: Path | None = None) -> Trained:
    torch.manual_seed(1)
    return train(digits_cnn(), *digits, options, 1, path)


def assert_on_grid(weight: torch.Tensor, levels: int) -> None:
    """Each channel holds multiples of its largest weight divided by (levels - 1) / 2, exactly."""
    half = (levels - 1) // 2
    flat = weight.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    codes = torch.round(flat / largest * half)
    assert torch.equal(codes / half * largest, flat)
    assert all(len(channel.unique()) <= levels for channel in flat)


def weights_of(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in network.state_dict().values()])


# torch's exporter warns about its own use of deprecated functions.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("levels", "lowest"), [(3, 0.85), (15, 0.9)])
def test_exported_weights_lie_on_the_grid(
    levels: int, lowest: float, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    options = replace(SHORT, levels=levels, weight_noise=0.1, weight_rest=0.2, weight_loss=0.01)
    trained = trained_on(digits, options)
    assert trained.validation_accuracy > lowest
    layers = [layer for layer in trained.network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 5
    for layer in layers:
        assert not parametrize.is_parametrized(layer)
        assert_on_grid(layer.weight.detach(), levels)
    export_onnx(trained.network, torch.from_numpy(digits[0][:2]), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    exported = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) in (2, 4)]
    assert len(exported) == 5
    found = sorted(float(np.square(weight).sum()) for weight in exported)
    assert found == pytest.approx(sorted(float(layer.weight.detach().square().sum()) for layer in layers), rel=1e-5)
    for weight in exported:
        assert_on_grid(torch.tensor(weight), levels)


def test_validation_measures_what_is_exported(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Statistics of the averaged network fit its few-level weights: the training images are classified alike."""
    trained = trained_on(digits, SHORT)
    with torch.no_grad():
        found = trained.network(torch.from_numpy(digits[0])).argmax(1)
    assert (found == torch.from_numpy(digits[1])).double().mean() == pytest.approx(
        trained.validation_accuracy, abs=0.05
    )


@given(st.sampled_from([3, 5, 15]), st.integers(1, 40), st.integers(0, 10**6))
def test_every_channel_has_a_weight_at_its_scale(levels: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(rows, 4)
    latent = torch.randn(4, rows, generator=generator) ** 3 * torch.tensor([[1e-6], [1.0], [1e4], [0.0]])
    layer.weight = nn.Parameter(latent)
    network = nn.Sequential(layer)
    add_few_levels(network, levels)
    leave_few_levels(network)
    scale = channel_scale(latent, levels)
    assert torch.equal(layer.weight.abs().amax(1, keepdim=True), scale)
    assert_on_grid(layer.weight.detach()[:3], levels)
    assert not layer.weight[3].any()
    inside = latent.abs() <= scale
    step = 2 * scale.expand_as(latent)[inside] / (levels - 1)
    assert ((layer.weight - latent)[inside].abs() <= step * (0.5 + 1e-5)).all()


def test_ternary_threshold_is_seven_tenths_of_the_mean_magnitude() -> None:
    weight = torch.linspace(-1, 1, 2001)[None]
    found = FewLevels(3)(weight)[0]
    assert weight[0][found != 0].abs().min() == pytest.approx(0.35, abs=2e-3)


def test_gradient_passes_straight_to_weights_within_the_scale() -> None:
    weight = torch.tensor([[0.1, -0.3, 0.5, 3.0]], requires_grad=True)
    few_levels = FewLevels(3)
    slope = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    (gradient,) = torch.autograd.grad((few_levels(weight) * slope).sum(), weight)
    assert torch.equal(gradient, torch.tensor([[1.0, 2.0, 3.0, 0.0]]))


def test_disturbance_is_drawn_anew_in_training_and_off_in_evaluation() -> None:
    weight = torch.randn(8, 5000, generator=torch.Generator().manual_seed(1))
    few_levels = FewLevels(3)
    still = few_levels(weight)
    few_levels.disturbance = Disturbance(0.2, 0.25, 0.05, torch.Generator().manual_seed(2))
    first, second = few_levels(weight), few_levels(weight)
    assert not torch.equal(first, second)
    lost = (first == 0).double().mean()
    assert lost == pytest.approx(0.05, abs=0.005)
    relative = (first - still) / channel_scale(weight, 3)
    pairs = {0: (0.25, 0.25), 1: (1.25, 0.25)}  # what the two devices of a weight conduct, in scales
    for code, (one, other) in pairs.items():
        chosen = (first != 0) & ((still != 0) == bool(code))
        assert relative[chosen].std() == pytest.approx(0.2 * (one**2 + other**2) ** 0.5, rel=0.02)
    few_levels.eval()
    assert torch.equal(few_levels(weight), still)


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_killed_run_goes_on_to_the_same_weights(
    killed_after: int, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(path: Path, *rest: Any) -> None:
        save_checkpoint(path, *rest)
        if rest[-1]["epoch"] == killed_after:
            raise KilledError

    options = replace(SHORT, weight_noise=0.1, weight_loss=0.01, epochs=3)
    whole = trained_on(digits, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.training.save_checkpoint", kill)
        with pytest.raises(KilledError):
            trained_on(digits, options, tmp_path / "run.safetensors")
    resumed = trained_on(digits, options, tmp_path / "run.safetensors")
    assert torch.equal(weights_of(resumed.network), weights_of(whole.network))
    assert resumed.best_epoch == whole.best_epoch


def test_statistics_are_those_of_the_images() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1))
    images = torch.arange(4096.0)[:, None, None, None].expand(-1, -1, 2, 2)
    reestimate_statistics(network, images)
    (layer,) = network
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean == pytest.approx(2047.5)
    assert layer.running_var == pytest.approx(float(images.var()), rel=1e-3)
    assert layer.momentum == 0.1
    assert not layer.training


def test_options_that_do_not_fit_are_refused() -> None:
    for name in ("weight_noise", "weight_rest", "weight_loss"):
        wrong: dict[str, Any] = {name: 0.1}
        with pytest.raises(ValueError, match=name):
            replace(SHORT, levels=None, **wrong)
    for levels in (1, 2, 4):
        with pytest.raises(ValueError, match="odd"):
            add_few_levels(digits_cnn(), levels)
    assert not list(few_levels_of(digits_cnn()))


def test_other_epochs_keep_the_proportions() -> None:
    options = with_epochs(replace(SHORT, epochs=90, patience=60), 30)
    assert (options.epochs, options.patience) == (30, 20)
    assert with_epochs(options, 1).patience == 1
