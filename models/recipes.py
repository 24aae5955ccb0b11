"""Train, export and measure a model: ``python -m models.recipes NAME``."""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

from models.export import export_onnx
from models.networks import digits_cnn, lenet5, resnet20, vgg5
from models.training import TrainingOptions, train
from runtime.augment_torch import Augmentation
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


VGG5_OPTIONS = TrainingOptions(
    epochs=60,
    batch=128,
    learning_rate=0.1,
    weight_decay=5e-4,
    patience=60,
    validation=5000,
    average=0.998,
    augmentation=Augmentation(crop=4, flip=True, erase=8),
    optimizer="sgd",
    half=True,
    smoothing=0.05,
)
VGG5_TERNARY_OPTIONS = replace(
    VGG5_OPTIONS,
    epochs=25,
    patience=25,
    learning_rate=0.05,
    augmentation=Augmentation(crop=4, flip=True),
    smoothing=0.0,
    levels=3,
    start="vgg5-cifar10",
    distill=0.7,
)

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
        options=VGG5_OPTIONS,
        data="CIFAR10",
    ),
    Recipe(
        name="vgg5-ternary-distilled-cifar10",
        what="VGG of 5 layers, weights of three levels learnt from vgg5-cifar10, on CIFAR-10",
        network=vgg5,
        size=32,
        channels=3,
        options=VGG5_TERNARY_OPTIONS,
        data="CIFAR10",
    ),
    Recipe(
        name="vgg5-ternary-noisy-cifar10",
        what="VGG of 5 layers, weights of three levels learnt on devices with a spread of 15 % of which 1 % fail",
        network=vgg5,
        size=32,
        channels=3,
        options=replace(
            VGG5_TERNARY_OPTIONS, epochs=30, patience=30, weight_noise=0.15, weight_rest=0.2, weight_loss=0.01
        ),
        data="CIFAR10",
    ),
)


def with_epochs(options: TrainingOptions, epochs: int) -> TrainingOptions:
    """Shorten or lengthen a training, and its patience in proportion.

    Parameters
    ----------
    options
        How a recipe trains.
    epochs
        How long to train instead.
    """
    share = epochs / options.epochs
    return replace(options, epochs=epochs, patience=max(1, round(share * options.patience)))


def run(
    recipe: Recipe,
    data: str,
    seed: int,
    folder: Path,
    checkpoint: Path | None = None,
    device: str = "cpu",
    command: str | None = None,
) -> dict[str, object]:
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
    device
        Where to train; the exported file is measured on the CPU.
    command
        What the result notes as its command line (default: that of the recipe as it is).
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # sums keep their order, so that the same seed gives the same weights
    image = image_input(recipe.size, recipe.channels)
    train_set = load_data(data, [image], split="train")
    if train_set.labels is None:
        raise ValueError(f"data {data} must have labels")
    images, labels = train_set.inputs[image.name], train_set.labels
    network = recipe.network()
    if recipe.options.start is not None:
        load_weights(network, HERE / recipe.options.start / "model.onnx")
    trained = train(network, images, labels, recipe.options, seed, checkpoint, device)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    export_onnx(trained.network, torch.from_numpy(images[:2]), path)
    test_set = load_data(data, [image], split="test")  # read once, after everything is decided
    result: dict[str, object] = {
        "command": command or command_line(recipe),
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
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def load_weights(network: nn.Module, path: Path) -> None:
    """Give a network the weights and statistics of an exported model of the same network.

    Parameters
    ----------
    network
        It is changed in place.
    path
        An ONNX file of `models.export`, whose initializers have the names of the network's state.

    Raises
    ------
    ValueError
        If one is missing.
    """
    model = onnx.load(path)
    found = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in model.graph.initializer}
    state = network.state_dict()
    wanted = [name for name in state if not name.endswith("num_batches_tracked")]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{path} must hold {', '.join(missing)}")
    network.load_state_dict(state | {name: found[name] for name in wanted})


def command_line(recipe: Recipe, epochs: int | None = None, device: str = "cpu") -> str:
    """Write the command that makes a model, with the data's name in place of its path."""
    words = ["python -m models.recipes", recipe.name]
    words += [] if recipe.data == "digits" else ["--data", recipe.data]
    words += [] if epochs is None else ["--epochs", str(epochs)]
    words += [] if device == "cpu" else ["--device", device]
    return " ".join(words)


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
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--epochs", type=int, help="train for so many epochs instead of the recipe's own")
    options = parser.parse_args()
    recipe = recipes[options.recipe]
    if options.epochs is not None:
        if options.epochs < 1:
            parser.error("--epochs must be positive")
        recipe = replace(recipe, options=with_epochs(recipe.options, options.epochs))
    if options.data is None and recipe.data != "digits":
        parser.error(f"{recipe.name} needs --data {recipe.data}")
    data = options.data or recipe.data
    command = command_line(recipe, options.epochs, options.device)
    folder = options.out or HERE / recipe.name
    result = run(recipe, data, options.seed, folder, options.checkpoint, options.device, command)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
