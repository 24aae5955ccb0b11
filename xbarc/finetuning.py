"""Fine-tuning of a program, from its weights to a tuned ONNX model and the program that is compiled from it."""

import csv
import importlib.util
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from compiler.compile import CompileOptions, remap_program
from compiler.floatmodel import FloatModel
from compiler.frontend import SourceModel, load_model
from compiler.like import compile_like
from compiler.packing import share_of
from compiler.rescale import recalibrated, with_clip
from compiler.tuned import tuned_model
from hwspec.atomic import write_atomically
from hwspec.chip import Chip
from hwspec.effects import chosen_effects
from hwspec.errors import DataError, ProgramError, XbarcError
from runtime.inputs import cast_input
from runtime.program import TileProgram
from runtime.rewrite import rewrite
from runtime.tuning import EPOCH_FIELDS, MODES, Epoch, Mode, Report, Teacher, TuneOptions
from xbarc.api import Data, calibration_batches
from xbarc.data.load import Dataset, load_data

if TYPE_CHECKING:
    from runtime.teacher_torch import TorchTeacher
    from runtime.train import CrossbarModule

Shape = tuple[int | str, ...]
CALIBRATION_SAMPLES = 512
"""Samples that ranges are set anew with."""


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """What fine-tuning gives.

    Attributes
    ----------
    model
        The tuned model, with the weights that the devices hold.
    program
        Compiled from it, on the tiles, scales and ranges that it was trained with.
    history
        How each epoch went.
    best_epoch
        The one whose weights these are.
    notes
        What was changed of the program before training, a sentence each.
    """

    model: onnx.ModelProto
    program: TileProgram
    history: tuple[Epoch, ...]
    best_epoch: int
    notes: tuple[str, ...] = ()


def to_torch(
    program: TileProgram,
    chip: Chip | None = None,
    *,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    seed: int = 0,
    device: str = "cpu",
) -> "CrossbarModule":
    """A program as a differentiable torch module, for a training loop of your own.

    Its parameters are the weights and biases of the layers. Called with a tensor (or tensors by name), it runs the
    program on the chip as `simulate` does; weights that have changed are written onto the chip first. ``write(chip,
    seed)`` puts it onto another chip, ``project()`` puts weights where devices can hold them, and ``program`` is the
    program of the present weights.

    Parameters
    ----------
    program
        The program; its targets must not be pre-distorted.
    chip
        The chip; None is an ideal one.
    only, without
        Names of physical effects to keep, or to switch off; see `simulate`.
    seed
        Of programming pulses and the noise of reads.
    device
        Where it computes.

    Raises
    ------
    ProgramError
        If targets do not follow from the weights, or a layer cannot be trained under these effects.
    ChipError, DataError
        If the chip does not take the program; if an effect does not exist, a seed is none, or the device cannot be
        used.
    """
    from runtime.train import CrossbarModule

    if chip is not None:
        chip.check_fits(program.spec, program.arrays)
    _check_seed(seed)
    effects = chosen_effects(only, without)
    return CrossbarModule(program, chip=chip, effects=effects, seed=seed, device=device)


def finetune(
    program: TileProgram,
    data: Data,
    mode: Mode = "agnostic",
    *,
    chip: Chip | None = None,
    chips: Callable[[int], Chip] | None = None,
    model: "str | Path | bytes | onnx.ModelProto | None" = None,
    teacher: "str | Path | bytes | onnx.ModelProto | None" = None,
    options: TuneOptions | None = None,
    ranges: bool = False,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    seed: int = 0,
    device: str = "cpu",
    start: str | Path | None = None,
    checkpoint: str | Path | None = None,
    metrics: str | Path | None = None,
    tensorboard: str | Path | None = None,
    progress: Report | None = None,
) -> FinetuneResult:
    """Train the weights of a program on the chips that it runs on.

    Parameters
    ----------
    program
        The program. Pre-distorted targets are undone first: training takes the wires into account itself.
    data
        What to learn from: arrays by the names of the model's inputs and ``labels``, or anything that
        `xbarc.data.load.load_data` reads. Labels are classes of the first output; without them the original model
        teaches all outputs.
    mode
        ``agnostic``: for chips never seen, each step on one drawn anew. ``aware``: for one chip, whose failed devices
        are known; weights stay where its devices reach.
    chip
        Of the mode ``aware``; where the program is not mapped around its failures yet, it is.
    chips
        Gives the chip of a seed, for the mode ``agnostic``: failures that no spec describes. None samples the spec.
    model
        The original model; None takes the one in the program.
    teacher
        Model of the same inputs and outputs that distillation learns from; None takes the original one.
    options
        How to train.
    ranges
        Whether input and ADC ranges are set anew afterwards, by the tuned model on this data.
    only, without
        Names of physical effects to train with, or without; see `simulate`.
    seed
        Of everything random.
    device
        Where torch computes.
    start
        Checkpoint of an earlier run on the same layers, whose best weights this one begins with.
    checkpoint
        File that the run is kept in: a run that was killed goes on from it, to the same result.
    metrics
        Where to write a row an epoch: ``.csv`` or ``.json``.
    tensorboard
        Folder for TensorBoard, which must be installed.
    progress
        Told of every step.

    Raises
    ------
    DataError
        If data do not fit the model or the loss; if the loss is no number any more; if a file cannot be written.
    ProgramError
        If the program cannot be trained, with the layer or the operator that cannot.
    """
    from runtime.finetune_torch import Tuner

    options = options or TuneOptions()
    _check_seed(seed)
    for name, file in (("checkpoint", checkpoint), ("metrics", metrics)):
        if file is not None and not Path(file).parent.is_dir():
            raise DataError(f"{name} {file}", "must lie in an existing folder")
    if mode not in MODES:
        raise DataError("mode", f"must be one of {', '.join(MODES)}", got=mode)
    original = model if model is not None else program.source
    if original is None:
        raise DataError("program", "carries no model to tune", hint="give it with --model model.onnx")
    source = load_model(original)
    samples = data if isinstance(data, Dataset) else load_data(data, program.tables.inputs, learning=True)
    _check_samples(samples, options)
    tuned_model(program, {}, {}, source)  # whatever is wrong with the model comes to light before training
    given = source.proto.SerializeToString(deterministic=True)
    taught = options.distill if options.distill is not None else float(samples.labels is None)
    effects = chosen_effects(only, without)
    held = len(held_out(samples, options, seed))
    options.check_effect(mode, program.spec, effects, drawn=chips is not None, distill=taught, held=held)
    if mode == "aware" and chips is not None:
        raise DataError("chips", "must not be given to the mode aware, which has one chip", hint="give it as chip")
    program, notes = _prepared(replace(program, source=given), mode, chip, options)
    if teacher is not None and not taught:
        raise DataError("teacher", "must be given with distillation", hint="distill a share of the loss: --distill 0.5")
    taught_by = source if teacher is None else load_model(teacher)
    first, *others = [info.name for info in program.tables.outputs]
    if others and not taught:
        notes.append(f"labels teach the output {first!r} alone; a share of distillation teaches all")
    writers = _Writers(metrics, tensorboard)
    tuner = Tuner(
        program,
        samples,
        mode,
        options,
        chip=chip,
        chips=chips,
        effects=effects,
        teacher=_teacher(program, taught_by, device) if taught else None,
        seed=seed,
        device=device,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        marks=taught_by.sha256 if taught else "",
        start=None if start is None else Path(start),
    )
    tuned = tuner.run(progress, writers.write)
    written = rewrite(program, tuned.weights, tuned.biases)
    weights = {name: written.decoded_weights(name) for name in written.layers}
    proto = tuned_model(program, weights, {name: written.bias(name) for name in written.layers})
    final = compile_like(load_model(proto), program)
    if ranges:
        few = samples.take(np.arange(min(len(samples), CALIBRATION_SAMPLES)))
        final = recalibrated(final, calibration_batches(few))
    return FinetuneResult(proto, final, tuned.history, tuned.best_epoch, tuple(notes))


def held_out(samples: Dataset, options: TuneOptions, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of the samples that `finetune` does not learn from, for these options and this seed."""
    from runtime.finetune_torch import held_out as of_samples

    return of_samples(samples, options, seed)


def is_model_of(program: TileProgram, path: Path) -> bool:
    """Whether a file is the model that a program was compiled from."""
    try:
        return path.exists() and load_model(path).sha256 == program.tables.model_sha256
    except XbarcError:
        return False


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise DataError("seed", "must be a whole number from 0 up", got=seed)


def _check_samples(samples: Dataset, options: TuneOptions) -> None:
    if not len(samples):
        raise DataError("data", "must have samples to learn from")
    if samples.fixed_batch not in (None, options.batch):
        requirement = f"must be {samples.fixed_batch}, the fixed batch of the model"
        raise DataError("batch", requirement, got=options.batch, hint="or export the model with an open batch")
    for name, values in samples.inputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise DataError(f"input {name!r}", "must be finite, and has NaN or infinite values")


def _prepared(
    program: TileProgram, mode: Mode, chip: Chip | None, options: TuneOptions
) -> tuple[TileProgram, list[str]]:
    """The program as it is trained, and what was changed of it."""
    notes = []
    if mode == "agnostic" and chip is not None:
        raise DataError("chip", "must not be given to the mode agnostic, which draws its own", hint="mode aware")
    if mode == "agnostic" and program.faults is not None:
        hint = "tune the program as it was before, or in the mode aware"
        raise ProgramError(
            "program", "must not be mapped around the failures of one chip to be tuned for all", hint=hint
        )
    replicas = max(layer.replicas for layer in program.tables.layers)
    again = CompileOptions(predistort=False, robust=False, replicas=replicas, share_arrays=share_of(program))
    if mode == "aware" and program.faults is None:
        if chip is None:
            hint = "give it with --chip, or tune a program that was mapped"
            raise DataError("chip", "must be known to the mode aware", hint=hint)
        chip.check_fits(program.spec, program.arrays)
        program = remap_program(program, again, chip)
        notes.append("the program was mapped around the failed devices of the chip first")
    elif program.tables.predistorted:
        known = None if program.faults is None else chip or program.nominal_chip
        program = remap_program(program, again, known)
        notes.append("targets do not undo the wires any more: training takes them into account itself")
    if chip is not None:
        chip.check_fits(program.spec, program.arrays)
    return (program if options.clip is None else with_clip(program, options.clip)), notes


def _teacher(program: TileProgram, model: SourceModel, device: str) -> "Teacher | TorchTeacher":
    """The outputs of a model as the program has them: in onnxruntime, and on other devices than the CPU in torch."""
    names = [info.name for info in program.tables.outputs]
    opened = FloatModel(model.proto, optimize=True)
    inputs = {info.name: info for info in opened.inputs}
    for kind, wanted, found in (
        ("outputs", {*names}, opened.outputs.keys()),
        ("inputs", {info.name for info in program.tables.inputs}, inputs.keys()),
    ):
        if not wanted <= {*found}:
            raise DataError("teacher", f"must have the program's {kind}: {', '.join(sorted(wanted))}", got=[*found])
    own = {info.name: info.shape for info in (*program.tables.inputs, *program.tables.outputs)}
    for info in (*opened.inputs, *(opened.outputs[name] for name in names)):
        if info.name in own and not _alike(info.shape, own[info.name]):
            shapes = f"{info.name!r} in a shape that the program has, ({', '.join(map(str, own[info.name]))})"
            raise DataError("teacher", f"must have {shapes}", got=f"({', '.join(map(str, info.shape))})")

    if not device.startswith("cpu"):
        from runtime.host_torch import untranslatable
        from runtime.teacher_torch import TorchTeacher

        if not untranslatable(model.proto):
            return TorchTeacher(model.proto, names, device)

    def outputs(feeds: Any) -> list[npt.NDArray[Any]]:
        given = {name: cast_input(value, inputs[name]) for name, value in feeds.items() if name in inputs}
        found = opened.run(given, names)
        return [found[name] for name in names]

    return outputs


def _alike(shape: Shape, wanted: Shape) -> bool:
    """Whether a shape may be a program's; one with a fixed batch is not that of a program with an open one."""
    return len(shape) == len(wanted) and all(
        one == other or isinstance(one, str) or (isinstance(other, str) and axis > 0)
        for axis, (one, other) in enumerate(zip(shape, wanted, strict=True))
    )


class _Writers:
    """Where the history goes after each epoch."""

    def __init__(self, metrics: str | Path | None, tensorboard: str | Path | None) -> None:
        from runtime.processes_torch import is_first

        self._first = is_first()
        self._path = None if metrics is None else Path(metrics)
        if self._path is not None and self._path.suffix not in (".csv", ".json"):
            raise DataError(f"metrics {self._path}", "must end with .csv or .json")
        self._board: Any = None
        if tensorboard is not None and self._first:
            if importlib.util.find_spec("tensorboard") is None:
                raise DataError("TensorBoard", "must be installed to be written to", hint="pip install tensorboard")
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
            self._board = writer(str(tensorboard))

    def write(self, history: Sequence[Epoch]) -> None:
        """Everything so far; a file is replaced whole. Of several processes only the first one writes."""
        if not self._first:
            return
        if self._path is not None:
            text = _csv(history) if self._path.suffix == ".csv" else json.dumps([asdict(row) for row in history])
            try:
                write_atomically(self._path, lambda stream: _put(stream.write, text))
            except OSError as error:
                raise DataError(f"metrics {self._path}", f"cannot be written ({error.strerror})") from None
        if self._board is not None:
            for name, value in asdict(history[-1]).items():
                if name not in ("epoch", "steps") and value is not None:
                    self._board.add_scalar(name, value, history[-1].epoch)
            self._board.flush()


def _put(write: Callable[[bytes], Any], text: str) -> None:
    write(text.encode())


def _csv(history: Sequence[Epoch]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(EPOCH_FIELDS)
    writer.writerows(_rows(history))
    return stream.getvalue()


def _rows(history: Sequence[Epoch]) -> Iterator[list[Any]]:
    for row in history:
        yield ["" if value is None else value for value in asdict(row).values()]
