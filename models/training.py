"""Training of a classifier: seeded, on the CPU, the best epoch by a validation split kept."""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

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
        Peak of the one-cycle schedule of AdamW.
    weight_decay : float
        Of AdamW.
    patience : int
        Stop after this many epochs without a better validation result.
    validation : int
        Images held out of the training set, as many of each class as can be.
    shift, rotate, zoom : float
        Largest random shift in pixels, rotation in degrees, and relative change of size of a training image.
    average : float
        Decay a step of the moving average of the weights, which is what is validated and kept.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    patience: int
    validation: int
    shift: float
    rotate: float
    zoom: float
    average: float


@dataclass(frozen=True)
class Trained:
    """A trained network, in evaluation mode, and how it went."""

    network: nn.Module
    epochs: int
    best_epoch: int
    validation_accuracy: float


def train(network: nn.Module, images: np.ndarray, labels: np.ndarray, options: TrainingOptions, seed: int) -> Trained:
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
    """
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[class_balanced(labels, len(labels), options.validation, seed)] = True
    x, y = torch.from_numpy(images[~held_out]), torch.from_numpy(labels[~held_out])
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(y) / options.batch)
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.epochs * steps)
    averaged = copy.deepcopy(network)
    best, best_loss, best_epoch, best_accuracy = copy.deepcopy(network), math.inf, 0, 0.0
    epoch = 0
    for epoch in range(1, options.epochs + 1):
        network.train()
        order = torch.randperm(len(y), generator=generator)
        for start in range(0, len(y), options.batch):
            chosen = order[start : start + options.batch]
            loss = functional.cross_entropy(network(augment(x[chosen], options, generator)), y[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            _average(averaged, network, options.average)
        accuracy, validation_loss = evaluate(averaged, images[held_out], labels[held_out])
        print(f"epoch {epoch}: validation accuracy {accuracy:.4f}, loss {validation_loss:.4f}", flush=True)
        if validation_loss < best_loss:
            best, best_loss, best_epoch, best_accuracy = copy.deepcopy(averaged), validation_loss, epoch, accuracy
        elif epoch - best_epoch >= options.patience:
            break
    return Trained(best.eval(), epoch, best_epoch, best_accuracy)


def augment(images: Tensor, options: TrainingOptions, generator: torch.Generator) -> Tensor:
    """Shift, rotate and zoom each image at random; what comes from outside is 0.

    Parameters
    ----------
    images : (n, channels, height, width)
        Training images.
    options
        The largest changes.
    generator
        Source of the draws.
    """
    draws = torch.rand((4, len(images)), generator=generator) * 2 - 1
    angle = draws[0] * math.radians(options.rotate)
    size = 1 + draws[1] * options.zoom
    cosine, sine = torch.cos(angle) / size, torch.sin(angle) / size
    right = draws[2] * options.shift * 2 / images.shape[3]
    down = draws[3] * options.shift * 2 / images.shape[2]
    affine = torch.stack((torch.stack((cosine, -sine, right), 1), torch.stack((sine, cosine, down), 1)), 1)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


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


def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the current ones; running statistics and counts are taken over."""
    with torch.no_grad():
        for mean, value in zip(averaged.parameters(), network.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for kept, current in zip(averaged.buffers(), network.buffers(), strict=True):
            kept.copy_(current)
