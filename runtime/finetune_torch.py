"""Fine-tuning of a program on chips: the loop over samples, chips and steps.

Everything random follows from the seed and the number of the step, so a run that goes on from a checkpoint, whatever
killed it, ends with the same weights as one that was not.
"""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwspec.chip import Chip
from hwspec.effects import EFFECTS
from hwspec.errors import DataError, NotFiniteError
from runtime.augment_torch import augment
from runtime.gradient_paths import check_taught
from runtime.losses_torch import Loss, class_scores
from runtime.processes_torch import Processes
from runtime.program import TileProgram
from runtime.teacher_torch import TorchTeacher
from runtime.train import CrossbarModule
from runtime.tune_checkpoint_torch import Progress, fingerprint, load_best, load_checkpoint, save_checkpoint
from runtime.tuning import Epoch, Mode, Report, Samples, Teacher, TuneOptions

SAVE_SECONDS = 30.0
"""Time between checkpoints within an epoch, at least."""
_TRAINING, _VALIDATION, _ORDER, _AUGMENTATION = range(4)
"""What draws are for."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """Where fine-tuning ended: weights and biases a layer, and how each epoch went."""

    weights: dict[str, npt.NDArray[np.float32]]
    biases: dict[str, npt.NDArray[np.float32]]
    history: tuple[Epoch, ...]
    best_epoch: int


class Tuner:
    """One run of fine-tuning.

    Parameters
    ----------
    program
        What to tune.
    samples
        What it learns from.
    mode
        ``agnostic``: each step on a chip drawn anew; ``aware``: on the chip that the program was mapped around.
    options
        How.
    chip
        Of the mode ``aware``; None takes one that has the program's failed devices, and nothing else of its own.
    chips
        Gives the chip of a seed, in the mode ``agnostic``; None samples the program's spec.
    effects
        Names of the physical effects that are on.
    teacher
        Gives the outputs of the original model, where the loss asks for them.
    seed
        Of everything random.
    device
        Where it computes.
    checkpoint
        File that the run is kept in, and goes on from where it exists.
    marks
        What tells runs apart that the rest does not: which model teaches.
    start
        Checkpoint of a run on the same layers whose best weights this one begins with; None those of the program.

    Raises
    ------
    DataError
        If a file is no such checkpoint, or the loss asks for labels or a teacher that are not there.
    """

    def __init__(
        self,
        program: TileProgram,
        samples: Samples,
        mode: Mode,
        options: TuneOptions,
        *,
        chip: Chip | None = None,
        chips: Callable[[int], Chip] | None = None,
        effects: Collection[str] | None = None,
        teacher: Teacher | TorchTeacher | None = None,
        seed: int = 0,
        device: str = "cpu",
        checkpoint: Path | None = None,
        marks: str = "",
        start: Path | None = None,
    ) -> None:
        self._program, self._samples, self._mode, self._options = program, samples, mode, options
        self._chip = program.nominal_chip if chip is None else chip
        self._chips = chips
        self._seed, self._checkpoint = seed, checkpoint
        self._loss = Loss(options, labelled=samples.labels is not None)
        if self._loss.distill > 0 and teacher is None:
            raise DataError("distillation", "must have the original model", hint="give it with --model model.onnx")
        self._teacher = teacher if self._loss.distill > 0 else None
        self._processes = Processes()
        self._trained = _with_wires(program, options)
        self._module = CrossbarModule(self._trained, effects=effects, seed=seed, device=device)
        self._exact = self._checked = False
        self._device = torch.device(device)
        self._parameters = list(self._module.parameters())
        decay = options.weight_decay
        self._optimizer = torch.optim.AdamW(self._parameters, lr=options.learning_rate, weight_decay=decay)
        if start is not None:
            self._put(load_best(start, self._parameters))
            self._module.project()
        self._averaged = [one.detach().clone() for one in self._parameters]
        self._best = [one.detach().clone() for one in self._parameters]
        self._held = held_out(samples, options, seed)
        self._learnt = np.setdiff1d(np.arange(len(samples)), self._held)
        self._steps = -(-len(self._learnt) // options.batch)
        self._total = self._steps * options.epochs
        self._progress, self._history = Progress(), list[Epoch]()
        self._print = ""
        if checkpoint is not None:
            more: dict[str, Any] = {"mode": mode, "seed": seed, "chip": self._chip.sha256, "marks": marks}
            more["start"] = "" if start is None else hashlib.sha256(start.read_bytes()).hexdigest()
            more["effects"] = sorted(EFFECTS if effects is None else effects)
            self._print = fingerprint(program, samples, options, processes=self._processes.count, **more)
            if checkpoint.exists():
                self._load(checkpoint)

    def run(self, report: Report | None = None, each: Callable[[Sequence[Epoch]], None] | None = None) -> Tuned:
        """Train to the end.

        Parameters
        ----------
        report
            Told of every step.
        each
            Called with the history after every epoch, and with that of a checkpoint first.

        Raises
        ------
        DataError
            If the loss is no number any more, or a checkpoint cannot be written.
        """
        progress, options = self._progress, self._options
        saved = time.monotonic()
        if each and self._history:  # whoever was told of it may not have come to write it down
            each(tuple(self._history))
        while progress.epoch < options.epochs and progress.epoch - progress.best_epoch < options.patience:
            order = _draws(self._seed, _ORDER, progress.epoch).permutation(self._learnt)
            while progress.step < (progress.epoch + 1) * self._steps:
                began = time.perf_counter()
                at = progress.step - progress.epoch * self._steps
                self._step(order[at * options.batch : (at + 1) * options.batch])
                progress.step += 1
                progress.seconds += time.perf_counter() - began
                if report:
                    told = f"epoch {progress.epoch + 1} of {options.epochs}, loss {progress.loss / progress.seen:.4f}"
                    accuracy = self._history[-1].accuracy if self._history else None
                    told += "" if accuracy is None else f", accuracy {accuracy:.2%}"
                    report(told, progress.step, self._total)
                if self._checkpoint is not None and time.monotonic() - saved > SAVE_SECONDS:
                    self._save(self._checkpoint)
                    saved = time.monotonic()
            self._end_epoch()
            if self._checkpoint is not None:
                self._save(self._checkpoint)
                saved = time.monotonic()
            if each:
                each(tuple(self._history))
        return self._result()

    def _step(self, chosen: npt.NDArray[np.int64]) -> None:
        """One step of the optimizer on one chip."""
        options, step = self._options, self._progress.step
        mine, share = self._processes.share(chosen)
        part = self._samples.take(mine)
        inputs = self._tensors(part.inputs, step)
        labels = None if part.labels is None else torch.from_numpy(part.labels).to(self._device)
        taught = None if self._teacher is None else self._taught(inputs)
        for group in self._optimizer.param_groups:
            group["lr"] = options.learning_rate_at(step, self._total)
        self._optimizer.zero_grad()
        try:
            self._write(step)
            outputs = _listed(self._module(inputs))
        except NotFiniteError:
            self._fail(math.nan)
        if not self._checked:
            names = [self._program.tables.outputs[number].name for number in self._loss.teaches(outputs)]
            check_taught(self._program, names, self._module.gradient_ends)
            self._checked = True
        loss = self._loss(outputs, labels, taught) * share
        loss.backward()  # type: ignore[no-untyped-call]
        value = self._processes.sum(
            float(loss.detach()), [one.grad for one in self._parameters if one.grad is not None]
        )
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, options.limit)
        if not math.isfinite(value) or not bool(torch.isfinite(norm)):
            self._fail(value)
        self._optimizer.step()
        self._module.project()
        decay = min(options.average, (1 + step) / (10 + step)) if options.average else 0.0
        with torch.no_grad():
            for mean, one in zip(self._averaged, self._parameters, strict=True):
                mean.lerp_(one, 1 - decay)
        self._progress.loss += value * len(chosen)
        self._progress.seen += len(chosen)

    def _fail(self, value: float, what: str | None = None) -> NoReturn:
        kept = ""
        if self._checkpoint is not None and self._checkpoint.exists():
            kept = f"; the last good weights are in {self._checkpoint}: --start begins with them"
        hint = f"lower --lr (now {self._options.learning_rate:g}), raise --warmup, or look for extreme inputs{kept}"
        what = what or f"loss of step {self._progress.step + 1} in epoch {self._progress.epoch + 1}"
        raise DataError(what, "must be finite, with finite gradients", got=value, hint=hint)

    def _write(self, step: int) -> None:
        """The present weights onto the chip of a step."""
        options = self._options
        number = step // options.resample
        draws = _draws(self._seed, _TRAINING, number, self._processes.rank)
        seed, low, high = int(draws.integers(1 << 62)), *options.rates
        factor = float(draws.uniform(low, high)) * min(
            1.0, (step / self._steps) / options.ramp if options.ramp else 1.0
        )
        self._model_wires(exact=bool(options.refresh) and step % options.refresh == 0)
        chip = self._drawn(seed, factor)
        self._module.reseed(_number(self._seed, _TRAINING, step, self._processes.rank))
        self._module.write(chip, seed)

    def _model_wires(self, *, exact: bool) -> None:
        """Take the exact wires from now on, or those that the options name, where these are others."""
        if exact != self._exact and self._trained is not self._program:
            self._module.rebase(self._program if exact else self._trained)
            self._exact = exact

    def _drawn(self, seed: int, factor: float) -> Chip:
        """The chip of a seed, its rates of failures times this factor; the one chip there is, in the mode ``aware``."""
        if self._mode == "aware":
            return self._chip
        if self._chips is not None:
            return self._chips(seed)
        return Chip.sample(self._program.spec.with_failure_rates(factor), max(self._program.arrays, 1), seed)

    def _tensors(self, inputs: Mapping[str, npt.NDArray[Any]], step: int | None = None) -> dict[str, Tensor]:
        """Inputs on the device; those that are images changed at random, in training."""
        found = {name: torch.from_numpy(np.ascontiguousarray(one)).to(self._device) for name, one in inputs.items()}
        if step is None or not self._options.augmentation.on:
            return found
        generator = torch.Generator(self._device)
        generator.manual_seed(_number(self._seed, _AUGMENTATION, step, self._processes.rank))
        images = {name: one for name, one in found.items() if one.dim() == 4 and one.is_floating_point()}
        if not images:
            raise DataError("augmentation", "must have inputs that are images, (samples, channels, height, width)")
        for name, one in images.items():
            self._options.augmentation.check(name, one.shape)
        return found | {name: augment(one, self._options.augmentation, generator) for name, one in images.items()}

    def _taught(self, inputs: Mapping[str, Tensor]) -> Sequence[Tensor | npt.NDArray[Any]]:
        assert self._teacher is not None
        if isinstance(self._teacher, TorchTeacher):
            return self._teacher(inputs)
        return self._teacher({name: one.detach().cpu().numpy() for name, one in inputs.items()})

    def _end_epoch(self) -> None:
        progress = self._progress
        progress.epoch += 1
        try:
            loss, accuracy = self._validate()
        except NotFiniteError:
            loss, accuracy = math.nan, None
        if loss is not None and not math.isfinite(loss):
            self._fail(loss, f"loss of samples held out after epoch {progress.epoch}")
        row = Epoch(
            epoch=progress.epoch,
            steps=progress.step,
            learning_rate=self._options.learning_rate_at(progress.step - 1, self._total),
            loss=progress.loss / max(progress.seen, 1),
            validation_loss=loss,
            accuracy=accuracy,
            seconds=progress.seconds,
        )
        self._history.append(row)
        progress.loss, progress.seen, progress.seconds = 0.0, 0, 0.0
        if loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_epoch = math.inf if loss is None else loss, progress.epoch
            self._best = [one.clone() for one in self._kept()]

    def _kept(self) -> list[Tensor]:
        """The weights that are validated, and are the result."""
        return self._averaged if self._options.average else [one.detach() for one in self._parameters]

    @torch.no_grad()
    def _validate(self) -> tuple[float | None, float | None]:
        """Mean loss and accuracy on samples held out, over chips held out; None where there are no such samples."""
        if not len(self._held):
            return None, None
        current = [one.detach().clone() for one in self._parameters]
        self._put(self._kept())
        self._model_wires(exact=bool(self._options.refresh))
        lost = right = 0.0
        chips = self._options.validation_chips if self._mode == "agnostic" else 1
        for number in range(chips):
            seed = _number(self._seed, _VALIDATION, 1 + number)
            chip = self._drawn(seed, sum(self._options.rates) / 2)
            self._module.reseed(seed)
            self._module.write(chip, seed)
            for start in range(0, len(self._held), self._options.batch):
                part = self._samples.take(self._held[start : start + self._options.batch])
                inputs = self._tensors(part.inputs)
                labels = None if part.labels is None else torch.from_numpy(part.labels).to(self._device)
                outputs = _listed(self._module(inputs))
                taught = None if self._teacher is None else self._taught(inputs)
                lost += float(self._loss(outputs, labels, taught)) * len(part)
                if labels is not None:
                    right += float((class_scores(outputs[0]).argmax(1) == labels).sum())
        self._put(current)
        count = chips * len(self._held)
        return lost / count, None if self._samples.labels is None else right / count

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for one, value in zip(self._parameters, values, strict=True):
            one.copy_(value)

    def _result(self) -> Tuned:
        best = self._best if len(self._held) else self._kept()
        self._put(best)
        self._module.project()
        module = self._module
        weights, biases = (
            {name: one.detach().cpu().numpy().copy() for name, one in zip(module.layers, values, strict=True)}
            for values in (module.weights, module.biases)
        )
        return Tuned(weights, biases, tuple(self._history), self._progress.best_epoch or self._progress.epoch)

    def _save(self, path: Path) -> None:
        if self._processes.rank:
            return
        tensors = [
            {**self._state(one), "value": one, "averaged": averaged, "best": best}
            for one, averaged, best in zip(self._parameters, self._averaged, self._best, strict=True)
        ]
        save_checkpoint(path, self._print, tensors, self._progress, self._history)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What the optimizer keeps of a parameter; zeros of one that got no gradient yet."""
        zeros = {"step": torch.zeros(()), **dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.zeros_like(parameter))}
        return {**(self._optimizer.state.get(parameter) or zeros)}

    @torch.no_grad()
    def _load(self, path: Path) -> None:
        tensors, self._progress, self._history = load_checkpoint(path, self._print, self._parameters, self._steps)
        for number, (one, kept) in enumerate(zip(self._parameters, tensors, strict=True)):
            one.copy_(kept.pop("value"))
            self._averaged[number].copy_(kept.pop("averaged"))
            self._best[number] = kept.pop("best").to(self._device)
            self._optimizer.state[one] = {key: t if key == "step" else t.to(self._device) for key, t in kept.items()}


def held_out(samples: Samples, options: TuneOptions, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of the samples that are not learnt from; whole batches, of a model that takes no others."""
    held = options.held_out(len(samples)) // (samples.fixed_batch or 1) * (samples.fixed_batch or 1)
    return np.sort(_draws(seed, _VALIDATION, 0).permutation(len(samples))[:held])


def _with_wires(program: TileProgram, options: TuneOptions) -> TileProgram:
    """The program as it trains: with the model of wires that the options name."""
    if options.wires == "spec" or not program.spec.array.wired:
        return program
    return program.on(program.spec.with_fields({"array.wire_model": "closed_form"}))


def _draws(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0x7E57, purpose, *numbers)))


def _number(seed: int, purpose: int, *numbers: int) -> int:
    return int(_draws(seed, purpose, *numbers).integers(1 << 62))


def _listed(found: Any) -> list[Tensor]:
    return found if isinstance(found, list) else [found]
