"""The committed models: they are the files that their results describe, and training and export do what they say."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from models.checkpoint import save_checkpoint
from models.export import export_onnx
from models.networks import digits_cnn, resnet20
from models.recipes import HERE, RECIPES, Recipe, accuracy, command_line, image_input, with_epochs
from models.training import TrainingOptions, train
from runtime.augment_torch import Augmentation
from xbarc.data.load import load_data

STILL = TrainingOptions(
    epochs=3,
    batch=32,
    learning_rate=3e-3,
    weight_decay=0.0,
    patience=3,
    validation=40,
    average=0.5,
)
README = (HERE / "README.md").read_text(encoding="utf-8")
LARGEST = 5 * 2**20
"""Bytes of a model file, at most: they lie in the repository."""


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    chosen = request.param
    assert isinstance(chosen, Recipe)
    return chosen


def test_result_describes_the_file(recipe: Recipe) -> None:
    content = (HERE / recipe.name / "model.onnx").read_bytes()
    result = json.loads((HERE / recipe.name / "result.json").read_text(encoding="utf-8"))
    assert result["sha256"] == hashlib.sha256(content).hexdigest()
    assert result["bytes"] == len(content) < LARGEST
    (row,) = (line for line in README.splitlines() if line.startswith(f"| [`{recipe.name}`]"))
    size = f"{len(content) / 1e6:.1f} MB" if len(content) >= 1e6 else f"{len(content) / 1e3:.0f} kB"
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == [
        f"{100 * result['test_accuracy']:.2f} %",
        str(result["test_images"]),
        size,
        f"`{result['command']}`",
    ]


def test_result_is_that_of_the_recipe(recipe: Recipe) -> None:
    """Its command means the recipe's own, which options that were added or removed since leave as it was."""
    result = json.loads((HERE / recipe.name / "result.json").read_text(encoding="utf-8"))
    device = "cuda" if "NVIDIA" in result.get("device", "cpu") else "cpu"
    epochs = recipe.options.epochs
    assert result["command"] in {command_line(recipe, None, device), command_line(recipe, epochs, device)}
    assert with_epochs(recipe.options, epochs) == recipe.options
    assert result["what"] == recipe.what
    assert f"{epochs} epochs, which is also the recipe's own length" in README or device == "cpu"
    neutral = flat(asdict(replace(STILL, augmentation=Augmentation())))
    recorded, options = flat(result["options"]), flat(asdict(recipe.options))
    assert not any(recorded[name] for name in recorded.keys() - options.keys())
    for name, value in options.items():
        assert recorded.get(name, neutral[name]) == value, name


def flat(options: dict[str, Any]) -> dict[str, Any]:
    """Put the augmentation's fields among the others, as the first results have them."""
    augmentation: dict[str, Any] = options.get("augmentation", {})
    return {name: value for name, value in options.items() if name != "augmentation"} | augmentation


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES if recipe.options.levels == 3])
def test_ternary_models_hold_three_values_a_channel(name: str) -> None:
    graph = onnx.load(HERE / name / "model.onnx").graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in {"Conv", "Gemm"}]
    assert [node.op_type for node in layers] == ["Conv"] * 4 + ["Gemm"]
    assert [item.i for item in layers[-1].attribute if item.name == "transB"] == [1]  # rows are output channels
    for node in layers:
        for channel in tensors[node.input[1]]:
            scale = np.abs(channel).max()
            assert scale > 0
            np.testing.assert_array_equal(np.unique(channel), [-scale, 0, scale])


def test_model_is_plain(recipe: Recipe) -> None:
    model = onnx.load(HERE / recipe.name / "model.onnx")
    assert {node.op_type for node in model.graph.node} <= {
        "Conv",
        "BatchNormalization",
        "Relu",
        "MaxPool",
        "Reshape",
        "Gemm",
        "Add",
        "ReduceMean",
        "GlobalAveragePool",
        "AveragePool",
        "Flatten",
    }
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not model.metadata_props
    first = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in first] == ["batch", recipe.channels, recipe.size, recipe.size]


def test_digits_cnn_has_batch_normalisation_and_layers_past_128() -> None:
    model = onnx.load(HERE / "digits-cnn" / "model.onnx")
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 2
    rows = [int(np.prod(tensor.dims[1:])) for tensor in model.graph.initializer if len(tensor.dims) in (2, 4)]
    assert sum(count > 128 for count in rows) >= 3


def test_digits_cnn_has_its_accuracy() -> None:
    pytest.importorskip("sklearn.datasets", reason="the set comes with scikit-learn")
    result = json.loads((HERE / "digits-cnn" / "result.json").read_text(encoding="utf-8"))
    data = load_data("digits", [image_input(8)], split="test")
    measured = accuracy(HERE / "digits-cnn" / "model.onnx", data)
    assert measured >= 0.985
    assert measured == pytest.approx(result["test_accuracy"], abs=1e-5)


# torch's exporter warns about its own use of deprecated functions.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_exported_file_computes_what_the_network_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = digits_cnn()
    images = torch.rand(64, 1, 8, 8)
    network(images)  # running statistics that differ from the initial ones
    network.eval()
    export_onnx(network, images[:2], tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5, 64):
        expected = network(images[:batch]).detach().numpy()
        (scores,) = session.run(None, {"image": images[:batch].numpy()})
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def toy_images() -> tuple[np.ndarray, np.ndarray]:
    """Ten classes of noisy copies of one image each, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 40)
    return (rng.random((10, 1, 8, 8))[labels] + 0.1 * rng.random((400, 1, 8, 8))).astype(np.float32), labels


def weights_of(network: torch.nn.Module) -> torch.Tensor:
    """All weights end to end."""
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def test_training_learns_and_repeats_with_its_seed() -> None:
    images, labels = toy_images()
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        trained = train(digits_cnn(), images, labels, STILL, seed=1)
        assert trained.validation_accuracy > 0.9
        weights.append(weights_of(trained.network))
    assert torch.equal(*weights)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_run_goes_on_to_the_same_weights(optimizer: Literal["adamw", "sgd"], tmp_path: Path) -> None:
    images, labels = toy_images()
    options = replace(STILL, optimizer=optimizer, augmentation=Augmentation(crop=1, flip=True))

    def run(checkpoint: Path | None) -> torch.Tensor:
        torch.manual_seed(1)
        return weights_of(train(digits_cnn(), images, labels, options, 1, checkpoint).network)

    class KilledError(Exception):
        pass

    def kill(path: Path, *rest: Any) -> None:
        save_checkpoint(path, *rest)
        if rest[-1]["epoch"] == 1:
            raise KilledError

    whole = run(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.training.save_checkpoint", kill)
        with pytest.raises(KilledError):
            run(tmp_path / "run.safetensors")
    assert torch.equal(run(tmp_path / "run.safetensors"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_smoothed_labels_keep_the_scores_apart_less() -> None:
    images, labels = toy_images()
    margins = []
    for smoothing in (0.0, 0.3):
        torch.manual_seed(1)
        trained = train(digits_cnn(), images, labels, replace(STILL, smoothing=smoothing), seed=1)
        with torch.no_grad():
            scores = trained.network(torch.from_numpy(images)).topk(2).values
        margins.append(float((scores[:, 0] - scores[:, 1]).mean()))
    assert margins[1] < 0.8 * margins[0]


def test_resnet20_has_its_published_size() -> None:
    """0.27 million parameters (He et al., table 6), and the two 1×1 shortcuts."""
    count = sum(weight.numel() for name, weight in resnet20().named_parameters() if "shortcut" not in name)
    assert count == 269_722
