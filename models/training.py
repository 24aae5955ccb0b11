"""Training of a classifier: seeded, on any device, the best epoch by a validation split kept."""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.checkpoint import load_checkpoint, save_checkpoint
from models.few_levels import Disturbance, add_few_levels, few_levels_of, leave_few_levels, reestimate_statistics
from runtime.augment_torch import Augmentation, augment
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
    levels : int or None
        Number of values that the weights of a channel can have (`models.few_levels`); ``None`` for any.
    weight_noise, weight_rest : float
        With levels, spread of the devices that hold the weights in training, as a share of their conductance; and what
        those conduct that stand for 0, as a share of the range.
    weight_loss : float
        With levels, share of the weights that each step of training sets to 0.
    start : str or None
        Model of another recipe, of the same network, whose weights training starts from.
    distill : float
        Share of the loss that is distillation from the model that it started from (Hinton et al., arXiv:1503.02531).
    temperature : float
        Of distillation.

    Raises
    ------
    ValueError
        What is for few levels is given without levels, no epoch would have few levels, or nothing could teach.
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
    levels: int | None = None
    weight_noise: float = 0.0
    weight_rest: float = 0.0
    weight_loss: float = 0.0
    start: str | None = None
    distill: float = 0.0
    temperature: float = 3.0

    def __post_init__(self) -> None:
        """Refuse options that do not go together."""
        if self.levels is None and (self.weight_noise or self.weight_rest or self.weight_loss):
            raise ValueError("weight_noise, weight_rest and weight_loss need levels")
        if self.distill and self.start is None:
            raise ValueError("distill needs a model to start from")


@dataclass(frozen=True)
class Trained:
    """A trained network, on the CPU in evaluation mode, and how it went."""

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
    device: str | torch.device = "cpu",
) -> Trained:
    """Train a classifier and keep the weights of its best epoch.

    Parameters
    ----------
    network
        Maps (n, channels, height, width) to (n, classes); it is changed in place and moved to the device.
    images : (samples, channels, height, width) float32
        Training images; some are held out for validation.
    labels : (samples,) int64
        Their classes.
    options
        How to train.
    seed
        Of the held-out images, the order, the augmentation and the disturbance of the weights.
    checkpoint
        File that is written after every epoch; where it exists, the run goes on from it.
    device
        Where to train, on which all images lie meanwhile. Each kind of device draws its own numbers; on the CPU the
        same seed gives the same weights.
    """
    device = torch.device(device)
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[class_balanced(labels, len(labels), options.validation, seed)] = True
    x, y = (torch.from_numpy(array[~held_out]).to(device) for array in (images, labels))
    x_held_out, y_held_out = (torch.from_numpy(array[held_out]).to(device) for array in (images, labels))
    generator = torch.Generator(device).manual_seed(seed)
    steps = math.ceil(len(y) / options.batch)
    teacher = copy.deepcopy(network).eval().to(device)  # what training starts from
    if options.levels is not None:
        add_few_levels(network, options.levels)
    network.to(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    channels_last = options.half or device.type == "cuda"
    if channels_last:
        for one in (network, teacher):
            one.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(network, options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.epochs * steps)
    networks = {name: copy.deepcopy(network) for name in ("averaged", "best")} | {"network": network}
    averaged, best = networks["averaged"], networks["best"]
    for few_levels in few_levels_of(network):
        few_levels.disturbance = Disturbance(options.weight_noise, options.weight_rest, options.weight_loss, generator)
    progress: dict[str, float] = {"epoch": 0, "best_loss": math.inf, "best_epoch": 0, "best_accuracy": 0.0}
    if checkpoint is not None and checkpoint.exists():
        progress = load_checkpoint(checkpoint, networks, optimizer, generator)
        optimizer.step()  # without gradients it changes nothing; the schedule wants to see it before its own steps
        for _ in range(int(progress["epoch"]) * steps):
            schedule.step()
    while progress["epoch"] < options.epochs and progress["epoch"] - progress["best_epoch"] < options.patience:
        progress["epoch"] += 1
        network.train()
        order = torch.randperm(len(y), generator=generator, device=device)
        for start in range(0, len(y), options.batch):
            chosen = order[start : start + options.batch]
            batch = augment(x[chosen], options.augmentation, generator)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.half):
                batch = batch.contiguous(memory_format=torch.channels_last) if channels_last else batch
                scores = network(batch)
                with torch.no_grad():
                    taught = teacher(batch) if options.distill else None
            loss = functional.cross_entropy(scores.float(), y[chosen], label_smoothing=options.smoothing)
            if taught is not None:
                loss = torch.lerp(
                    loss, _distillation(scores.float(), taught.float(), options.temperature), options.distill
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            _average(averaged, network, options.average)
        if options.levels is not None:
            reestimate_statistics(averaged, x)  # those of the current network do not fit other few-level weights
        accuracy, validation_loss = evaluate(averaged, x_held_out, y_held_out)
        print(f"epoch {progress['epoch']}: validation accuracy {accuracy:.4f}, loss {validation_loss:.4f}", flush=True)
        if validation_loss < progress["best_loss"]:
            best.load_state_dict(averaged.state_dict())
            progress |= {"best_loss": validation_loss, "best_epoch": progress["epoch"], "best_accuracy": accuracy}
        if checkpoint is not None:
            save_checkpoint(checkpoint, networks, optimizer, generator, progress)
    leave_few_levels(best)
    best.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return Trained(best.eval(), int(progress["epoch"]), int(progress["best_epoch"]), progress["best_accuracy"])


def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Compute accuracy and mean cross entropy of a classifier.

    Parameters
    ----------
    network
        Maps images to class scores.
    images : (samples, channels, height, width) float32
        What it is judged on, on the network's device.
    labels : (samples,) int64
        Their classes, likewise.
    """
    network.eval()
    with torch.no_grad():
        scores = torch.cat([network(images[start : start + 1000]) for start in range(0, len(images), 1000)])
    accuracy = (scores.argmax(1) == labels).double().mean()
    return float(accuracy), float(functional.cross_entropy(scores, labels))


def _distillation(scores: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Divergence of softened class probabilities from the teacher's, times the square of the temperature."""
    found, wanted = (functional.log_softmax(one / temperature, 1) for one in (scores, taught))
    return temperature**2 * functional.kl_div(found, wanted, log_target=True, reduction="batchmean")


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
