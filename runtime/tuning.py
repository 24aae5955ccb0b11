"""What fine-tuning is told: options, the samples that it learns from, and what it tells of each epoch."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from hwspec.spec import HardwareSpec
from runtime.augmentation import Augmentation

Mode = Literal["agnostic", "aware"]
MODES: tuple[Mode, ...] = ("agnostic", "aware")
SCHEDULES = ("cosine", "linear", "constant")
DISTANCES = ("auto", "divergence", "squared")
_LARGEST = 1e9
"""Factor on rates of failures, at most."""
Arrays = Mapping[str, npt.NDArray[Any]]
Teacher = Callable[[Arrays], list[npt.NDArray[Any]]]
"""Outputs of the original model for inputs by name."""


class Samples(Protocol):
    """Samples by number; `xbarc.data.load.Dataset` is one."""

    @property
    def inputs(self) -> Arrays:
        """All of each input, by name."""

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """Class of each sample."""

    @property
    def fixed_batch(self) -> int | None:
        """Samples of each batch of a model that takes no others."""

    def __len__(self) -> int:
        """How many there are."""

    def take(self, indices: npt.NDArray[np.int64]) -> "Samples":
        """Some of them."""


@dataclass(frozen=True)
class TuneOptions:
    """How to fine-tune.

    Attributes
    ----------
    epochs
        Times that all training samples are seen.
    batch
        Samples a step.
    learning_rate, weight_decay
        Of AdamW.
    schedule
        Of the learning rate after the warm-up: ``cosine`` or ``linear`` to zero, or ``constant``.
    warmup
        Share of all steps in which the learning rate rises from zero.
    average
        Decay a step of the moving average of the weights, which is what is validated and kept; 0 keeps the last ones.
    distill
        Share of the loss that is distillation from the original model; None takes 1 without labels, else 0.
    temperature
        Of distillation by divergence (Hinton et al., arXiv:1503.02531).
    distance
        What distillation makes small: the ``divergence`` of class probabilities, the ``squared`` error of numbers over
        their mean square, or ``auto``: the divergence of outputs with a row of numbers a sample, the error of others.
    smoothing
        Share of each label that is spread evenly over all classes.
    rates
        Every step multiplies the rates of the spec's failures by a number drawn evenly from this range (chip-agnostic).
    ramp
        Epochs over which the rates of failures rise to that from zero.
    resample
        Steps that share a chip (chip-agnostic), or one programming of the chip (chip-aware).
    clip
        Full scale of each column before training, in standard deviations of its weights, where that is less than its
        largest weight (Joshi et al. 2020: 2 to 2.5); None leaves the scales of the program.
    limit
        Largest norm of the gradient of all weights together; longer ones are shortened.
    wires
        Model of the wires in training, where the spec has them: as the spec says, or the closed form.
    refresh
        With ``closed_form``: every so many steps one is taken on exact wires; 0 for none.
    validation
        Samples that are not learnt from, for early stopping: a number, or a share below 1.
    validation_chips
        Chips, never trained on, that they run on.
    patience
        Epochs without a better validation loss after which training stops.
    augmentation
        Random changes of the inputs, where they are images.
    """

    epochs: int = 5
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    average: float = 0.99
    distill: float | None = None
    temperature: float = 2.0
    distance: Literal["auto", "divergence", "squared"] = "auto"
    smoothing: float = 0.0
    rates: tuple[float, float] = (1.0, 1.0)
    ramp: float = 0.0
    resample: int = 1
    clip: float | None = None
    limit: float = 5.0
    wires: Literal["spec", "closed_form"] = "spec"
    refresh: int = 0
    validation: float = 0.1
    validation_chips: int = 2
    patience: int = 1_000_000
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name in ("epochs", "batch", "resample", "validation_chips", "patience"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DataError(name, "must be a whole number from 1 up", got=value)
        for name, low, high in (
            ("learning_rate", 0.0, 10.0),
            ("weight_decay", 0.0, 10.0),
            ("warmup", 0.0, 1.0),
            ("average", 0.0, 1.0),
            ("temperature", 1e-3, 1e3),
            ("smoothing", 0.0, 1.0),
            ("ramp", 0.0, 1e9),
            ("validation", 0.0, 1e12),
            ("limit", 1e-9, 1e9),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise DataError(name, f"must be a number from {low:g} to {high:g}", got=value)
        if self.average == 1:
            raise DataError("average", "must be below 1, or nothing is learnt", got=self.average)
        if self.distill is not None and not 0 <= self.distill <= 1:
            raise DataError("distill", "must be a share from 0 to 1", got=self.distill)
        if self.clip is not None and not 0 < self.clip <= 100:
            raise DataError("clip", "must be a positive number of standard deviations", got=self.clip)
        if len(self.rates) != 2 or not 0 <= self.rates[0] <= self.rates[1] <= _LARGEST:
            raise DataError("rates", f"must be two factors up to {_LARGEST:g}, the lower first", got=self.rates)
        if not isinstance(self.refresh, int) or isinstance(self.refresh, bool) or self.refresh < 0:
            raise DataError("refresh", "must be a whole number from 0 up", got=self.refresh)
        choices = (("schedule", SCHEDULES), ("distance", DISTANCES), ("wires", ("spec", "closed_form")))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise DataError(name, f"must be one of {', '.join(known)}", got=getattr(self, name))

    def check_effect(
        self, mode: Mode, spec: HardwareSpec, effects: Collection[str], *, drawn: bool, distill: float, held: int
    ) -> None:
        """Refuse options that would have no effect.

        Parameters
        ----------
        mode, spec
            Of the run.
        effects
            Names of the physical effects that are on.
        drawn
            Whether chips come from elsewhere than the spec.
        distill
            Share of the loss that is distillation.
        held
            Number of samples held out.

        Raises
        ------
        DataError
            Naming the option, and why it has none.
        """
        why = {
            "refresh": "is of the wires closed_form" if self.wires == "spec" else None,
            "wires": _unmodelled(spec, effects),
            "smoothing": "must be of labels, and distillation alone has none" if distill == 1 else None,
            "temperature": "is of distillation by divergence" if not distill or self.distance == "squared" else None,
            "distance": None if distill else "is of distillation: give it a share of the loss",
            "patience": None if held else "must have samples held out that show progress",
            "validation_chips": None if held else "must have samples held out to run on them",
        }
        if mode == "aware":
            one = "must not be given in the mode aware, which has one chip"
            why |= dict.fromkeys(("rates", "ramp", "validation_chips"), one)
        elif drawn or not spec.failures.at_start or "failures" not in effects:
            absent = "the effect failures is off" if spec.failures.at_start else "the spec has no failures at the start"
            reason = "the chips are given" if drawn else absent
            why |= dict.fromkeys(("rates", "ramp"), f"must have rates of failures to multiply: {reason}")
        usual = {name: getattr(TuneOptions, name) for name in why} | {
            "patience": self.patience if self.patience >= self.epochs else None
        }
        for name, requirement in why.items():
            value = getattr(self, name)
            if requirement is not None and (tuple(value) if name == "rates" else value) != usual[name]:
                raise DataError(name, requirement, got=value)

    def learning_rate_at(self, step: int, total: int) -> float:
        """Learning rate of a step, counted from 0, of so many in all: it warms up, then falls by the schedule."""
        warm = max(self.warmup * total, 1.0)
        if step + 1 < warm:
            return self.learning_rate * (step + 1) / warm
        done = min((step - warm + 1) / max(total - warm, 1.0), 1.0)
        falls = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
        return self.learning_rate * falls[self.schedule]

    def held_out(self, samples: int) -> int:
        """Samples for validation, of so many."""
        count = round(self.validation * samples) if self.validation < 1 else int(self.validation)
        if count >= samples:
            raise DataError("validation", "must leave samples to learn from", got=f"{count} of {samples}")
        return count


def _unmodelled(spec: HardwareSpec, effects: Collection[str]) -> str | None:
    """Why another model of wires would change nothing; None if it would change something."""
    if not spec.array.wired:
        return "must have resistance in the spec for a model of them"
    if "wires" not in effects:
        return "must have the effect wires for a model of them"
    return "is what the spec has" if spec.array.wire_model == "closed_form" else None


@dataclass(frozen=True)
class Epoch:
    """How an epoch went; `validation_loss` is None where no samples were held out, `accuracy` also without labels."""

    epoch: int
    steps: int
    learning_rate: float
    loss: float
    validation_loss: float | None
    accuracy: float | None
    seconds: float


EPOCH_FIELDS = tuple(field.name for field in fields(Epoch))
Report = Callable[[str, int, int | None], None]
"""Told what is being done with loss and accuracy so far, steps done, and steps in all."""
