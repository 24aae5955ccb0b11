"""Train, export and measure a model: ``python -m models.recipes NAME``."""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from models.augment import Augmentation
from models.export import export_onnx
from models.networks import digits_cnn, lenet5, resnet20, vgg5
from models.training import TrainingOptions, train
from runtime.tables import TensorInfo
from xbarc.data.load import Dataset, load_data

HERE = Path(__file__).parent


def image_input(size: int, channels: int = 1) -> TensorInfo:
    """The input of a recipe's model: square images, grey or of three colours."""
    return TensorInfo(name="image", dtype="float32", shape=("batch", channels, size, size))


@dataclass(frozen=True)
class Recipe:
    """How one model is made.

    Attributes
    ----------
    name : str
        Folder under ``models/`` that the result goes to.
    what : str
        The model and its data in a few words.
    network : callable
        Builds the network, its weights drawn from torch's seed.
    size : int
        Height and width of the images.
    options : TrainingOptions
        How to train.
    data : str
        The built-in set, or in capitals one that the caller names with ``--data``.
    channels : int
        Colours of the images.
    """

    name: str
    what: str
    network: Callable[[], nn.Module]
    size: int
    options: TrainingOptions
    data: str
    channels: int = 1


RECIPES = (
    Recipe(
        name="digits-cnn",
        what="CNN (3 convolutions, 2 linear layers, batch normalisation) on scikit-learn's 8x8 digits",
        network=digits_cnn,
        size=8,
        options=TrainingOptions(
            epochs=120,
            batch=64,
            learning_rate=3e-3,
            weight_decay=0.02,
            patience=40,
            validation=200,
            average=0.98,
            augmentation=Augmentation(shift=0.8, rotate=10.0, zoom=0.1),
        ),
        data="digits",
    ),
    Recipe(
        name="lenet5-mnist",
        what="LeNet-5 with ReLU and max pooling on MNIST",
        network=lenet5,
        size=28,
        options=TrainingOptions(
            epochs=30,
            batch=128,
            learning_rate=4e-3,
            weight_decay=0.01,
            patience=8,
            validation=5000,
            average=0.998,
            augmentation=Augmentation(shift=2.0, rotate=10.0, zoom=0.1),
        ),
        data="MNIST",
    ),
    Recipe(
        name="resnet20-cifar10",
        what="ResNet-20 with 1x1 convolutions as shortcuts on CIFAR-10",
        network=resnet20,
        size=32,
        channels=3,
        options=TrainingOptions(
            epochs=100,
            batch=128,
            learning_rate=0.2,
            weight_decay=5e-4,
            patience=100,
            validation=5000,
            average=0.998,
            augmentation=Augmentation(crop=4, flip=True, erase=8),
            optimizer="sgd",
            half=True,
            smoothing=0.05,
        ),
        data="CIFAR10",
    ),
    Recipe(
        name="vgg5-cifar10",
        what="VGG of 5 layers (convolutions 64, 128, 256, 256, one linear layer) on CIFAR-10",
        network=vgg5,
        size=32,
        channels=3,
        options=TrainingOptions(
            epochs=30,
            batch=128,
            learning_rate=0.1,
            weight_decay=5e-4,
            patience=30,
            validation=5000,
            average=0.998,
            augmentation=Augmentation(crop=4, flip=True),
            optimizer="sgd",
            half=True,
        ),
        data="CIFAR10",
    ),
)


def run(recipe: Recipe, data: str, seed: int, folder: Path, checkpoint: Path | None = None) -> dict[str, object]:
    """Train a model, write ``model.onnx`` and ``result.json`` to a folder, and return the result.

    Parameters
    ----------
    recipe
        What to make.
    data
        Data source with the splits ``train`` and ``test``, as for `xbarc.data.load.load_data`.
    seed
        Of the weights, the validation split, the order of the images and their augmentation.
    folder
        Where the files go; made if it is missing.
    checkpoint
        File that a killed run goes on from.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # sums keep their order, so that the same seed gives the same weights
    image = image_input(recipe.size, recipe.channels)
    train_set = load_data(data, [image], split="train")
    if train_set.labels is None:
        raise ValueError(f"data {data} must have labels")
    trained = train(recipe.network(), train_set.inputs[image.name], train_set.labels, recipe.options, seed, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    export_onnx(trained.network, torch.from_numpy(train_set.inputs[image.name][:2]), path)
    test_set = load_data(data, [image], split="test")  # read once, after everything is decided
    result: dict[str, object] = {
        "command": f"python -m models.recipes {recipe.name}"
        + ("" if recipe.data == "digits" else f" --data {recipe.data}"),
        "what": recipe.what,
        "seed": seed,
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        "options": asdict(recipe.options),
        "train_images": len(train_set) - recipe.options.validation,
        "validation_accuracy": round(trained.validation_accuracy, 5),
        "test_images": len(test_set),
        "test_accuracy": round(accuracy(path, test_set), 5),
        "torch": torch.__version__,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def accuracy(model: Path, data: Dataset) -> float:
    """Compute the accuracy of an exported classifier in onnxruntime.

    Parameters
    ----------
    model
        The ONNX file.
    data
        Samples with labels.
    """
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores = np.concatenate([session.run(None, batch)[0] for batch in data.batches(500)])
    return float((scores.argmax(axis=1) == data.labels).mean())


def main() -> None:
    """Run one recipe from the command line."""
    recipes = {recipe.name: recipe for recipe in RECIPES}
    parser = argparse.ArgumentParser(prog="python -m models.recipes", description=__doc__)
    parser.add_argument("recipe", choices=recipes)
    parser.add_argument("--data", help="image folder with the splits train and test, or a folder of their zip files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the result (default: models/RECIPE)")
    parser.add_argument(
        "--checkpoint", type=Path, help="file written after every epoch, from which a killed run goes on"
    )
    options = parser.parse_args()
    recipe = recipes[options.recipe]
    if options.data is None and recipe.data != "digits":
        parser.error(f"{recipe.name} needs --data {recipe.data}")
    data = options.data or recipe.data
    result = run(recipe, data, options.seed, options.out or HERE / recipe.name, options.checkpoint)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
