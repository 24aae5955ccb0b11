"""Training of a classifier: seeded, on the CPU, the best epoch by a validation split kept."""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.augment import Augmentation, augment
from models.checkpoint import load_checkpoint, save_checkpoint
from xbarc.data.load import class_balanced


@dataclass(frozen=True)
class TrainingOptions:
    """How a recipe trains.

    Attributes
    ----------
    epochs : int
        Epochs of the learning-rate schedule.
    batch : int
        Images a step.
    learning_rate : float
        Peak of the one-cycle schedule.
    weight_decay : float
        Of the optimizer.
    patience : int
        Stop after this many epochs without a better validation result.
    validation : int
        Images held out of the training set, as many of each class as can be.
    average : float
        Decay a step of the moving average of the weights, which is what is validated and kept.
    augmentation : Augmentation
        Random changes of the training images.
    optimizer : str
        ``adamw``, or ``sgd`` with Nesterov momentum.
    half : bool
        Run the forward pass in bfloat16 (weights and their updates stay float32): three times as fast on CPUs that
        have its instructions.
    smoothing : float
        Share of each target that is spread evenly over all classes.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    patience: int
    validation: int
    average: float
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    half: bool = False
    smoothing: float = 0.0


@dataclass(frozen=True)
class Trained:
    """A trained network, in evaluation mode, and how it went."""

    network: nn.Module
    epochs: int
    best_epoch: int
    validation_accuracy: float


def train(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    options: TrainingOptions,
    seed: int,
    checkpoint: Path | None = None,
) -> Trained:
    """Train a classifier and keep the weights of its best epoch.

    Parameters
    ----------
    network
        Maps (n, channels, height, width) to (n, classes).
    images : (samples, channels, height, width) float32
        Training images; some are held out for validation.
    labels : (samples,) int64
        Their classes.
    options
        How to train.
    seed
        Of the held-out images, the order and the augmentation.
    checkpoint
        File that is written after every epoch; where it exists, the run goes on from it.
    """
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[class_balanced(labels, len(labels), options.validation, seed)] = True
    x, y = torch.from_numpy(images[~held_out]), torch.from_numpy(labels[~held_out])
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(y) / options.batch)
    if options.half:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(network, options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.epochs * steps)
    networks = {name: copy.deepcopy(network) for name in ("averaged", "best")} | {"network": network}
    averaged, best = networks["averaged"], networks["best"]
    progress: dict[str, float] = {"epoch": 0, "best_loss": math.inf, "best_epoch": 0, "best_accuracy": 0.0}
    if checkpoint is not None and checkpoint.exists():
        progress = load_checkpoint(checkpoint, networks, optimizer, generator)
        optimizer.step()  # without gradients it changes nothing; the schedule wants to see it before its own steps
        for _ in range(int(progress["epoch"]) * steps):
            schedule.step()
    while progress["epoch"] < options.epochs and progress["epoch"] - progress["best_epoch"] < options.patience:
        progress["epoch"] += 1
        network.train()
        order = torch.randperm(len(y), generator=generator)
        for start in range(0, len(y), options.batch):
            chosen = order[start : start + options.batch]
            batch = augment(x[chosen], options.augmentation, generator)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.half):
                scores = network(batch.contiguous(memory_format=torch.channels_last) if options.half else batch)
            loss = functional.cross_entropy(scores.float(), y[chosen], label_smoothing=options.smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            _average(averaged, network, options.average)
        accuracy, validation_loss = evaluate(averaged, images[held_out], labels[held_out])
        print(f"epoch {progress['epoch']}: validation accuracy {accuracy:.4f}, loss {validation_loss:.4f}", flush=True)
        if validation_loss < progress["best_loss"]:
            best.load_state_dict(averaged.state_dict())
            progress |= {"best_loss": validation_loss, "best_epoch": progress["epoch"], "best_accuracy": accuracy}
        if checkpoint is not None:
            save_checkpoint(checkpoint, networks, optimizer, generator, progress)
    best.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return Trained(best.eval(), int(progress["epoch"]), int(progress["best_epoch"]), progress["best_accuracy"])


def evaluate(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Compute accuracy and mean cross entropy of a classifier.

    Parameters
    ----------
    network
        Maps images to class scores.
    images : (samples, channels, height, width) float32
        What it is judged on.
    labels : (samples,) int64
        Their classes.
    """
    network.eval()
    with torch.no_grad():
        x = torch.from_numpy(images)
        scores = torch.cat([network(x[start : start + 1000]) for start in range(0, len(x), 1000)])
    y = torch.from_numpy(labels)
    accuracy = (scores.argmax(1) == y).double().mean()
    return float(accuracy), float(functional.cross_entropy(scores, y))


def _optimizer(network: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """Build the optimizer that the options name."""
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(), options.learning_rate, 0.9, weight_decay=options.weight_decay, nesterov=True
        )
    return torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=options.weight_decay)


def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the current ones; running statistics and counts are taken over."""
    with torch.no_grad():
        for mean, value in zip(averaged.parameters(), network.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for kept, current in zip(averaged.buffers(), network.buffers(), strict=True):
            kept.copy_(current)
