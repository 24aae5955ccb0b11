"""Accuracy of a program beside that of the model it was compiled from."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from compiler.compile import CompileOptions, remap_program
from compiler.floatmodel import FloatModel
from compiler.frontend import load_model
from hwspec.chip import Chip
from hwspec.effects import OF_A_CHIP, active_effects, chosen_effects
from hwspec.errors import DataError
from hwspec.fault_statistics import count_states
from runtime.engine import Engine
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, ProgrammingReport, program_chip
from xbarc.api import reestimated_on
from xbarc.data.batches import run_batches
from xbarc.data.load import Dataset
from xbarc.eval_report import EvalReport, LayerEval

Array = npt.NDArray[Any]
_Outputs = dict[str, tuple[Array, int | None]]

BOOTSTRAP = 2000


def evaluate(
    program: TileProgram,
    data: Dataset,
    *,
    model: "str | bytes | onnx.ModelProto | None" = None,
    by_layer: bool = False,
    batch: int = 64,
    device: str = "cpu",
    seed: int = 0,
    chips: int = 1,
    time: float = 0.0,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    chip: Chip | None = None,
    remap: bool = False,
    options: CompileOptions | None = None,
    drop: bool = False,
    reestimate: Dataset | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> EvalReport:
    """Evaluate a program on data.

    Parameters
    ----------
    program
        The program.
    data
        Samples, with labels for accuracy; without, the metric is the relative error of the outputs, ``|y - y_float| /
        |y_float|`` over all outputs of a sample.
    model
        The model; None takes the one in the program.
    by_layer
        Whether to evaluate each layer alone on crossbars as well, the others in floating point.
    batch
        Samples a batch.
    device
        Where the engine computes.
    seed
        Of the first chip, of the reads and of the bootstrap.
    chips
        Chips to evaluate, of the seeds from `seed` on; 0 takes an ideal chip alone.
    time
        Seconds between programming and the reads.
    only, without
        Names of physical effects to keep, or to switch off; see `xbarc.simulate`.
    chip
        The chip to evaluate, in place of sampled ones.
    remap
        Whether to map the program for each chip, around its failed devices.
    options
        Of that mapping.
    drop
        Whether to run the same chips without failed devices too, with the program for any chip: the drop by failures
        is the difference, chip by chip and sample by sample.
    reestimate
        Inputs that the columns of every chip are re-estimated with before it is evaluated, chips without failed devices
        and layers alone too; see `xbarc.simulate`.
    progress
        Called with what runs, samples done, and samples in all.

    Raises
    ------
    DataError
        If there is no model, or labels do not fit the model's output.
    """
    float_run = original_model(program, model)

    def outputs(what: str, run: Callable[[dict[str, Array]], Sequence[Any]]) -> _Outputs:
        advance = (lambda done, total: progress(what, done, total)) if progress else None
        return run_batches(run, data, batch, program.tables.inputs, program.tables.outputs, advance)

    truth = outputs("float", float_run)
    effects = chosen_effects(only, without)
    options = options or CompileOptions()
    plain = remap_program(program, dataclasses.replace(options, robust=False, replicas=1)) if drop else program
    engine = Engine(
        program_chip(plain, Chip.ideal(plain.spec, plain.arrays) if drop else None, effects=effects), device
    )
    ideal = sample_metric(data, truth, outputs("ideal", engine))
    values, good, first, failed = [], [], ProgrammingReport(), []
    count = chips if chip is None else 1

    @functools.lru_cache(maxsize=2)
    def expected(one: TileProgram, exact: tuple[str, ...]) -> ProgrammedChip:
        return program_chip(one, exact_layers=exact, effects=effects)

    def programmed(
        one: TileProgram, at: Chip | None, one_seed: int, off: Collection[str] = (), exact: tuple[str, ...] = ()
    ) -> ProgrammedChip:
        """A program on a chip without the effects that are off, re-estimated where that is asked for."""
        found = program_chip(one, at, exact_layers=exact, effects=effects - {*off}, seed=one_seed, seconds=time)
        if reestimate is None or at is None:
            return found
        return reestimated_on(found, expected(one, exact), reestimate, device, one_seed)

    for number in range(count):
        mapped, at, one_seed = program, chip, seed + number
        arrays = program.arrays * (options.replicas if remap else 1)
        if at is None:
            at = Chip.sample(program.spec, max(arrays, program.arrays), one_seed)
        if remap:
            mapped = remap_program(program, options, at)
        made = programmed(mapped, at, one_seed)
        first = made.report if number == 0 else first
        label = f"chip {number + 1} of {count}"
        values.append(sample_metric(data, truth, outputs(label, Engine(made, device, seed=one_seed))))
        counted = count_states(at.fault_map, program.spec.array.pairing)
        failed.append((counted.failed_share, counted.failed_pair_share or 0.0))
        if drop:
            healthy = programmed(plain, at, one_seed, off=("failures", "retention"))
            good.append(sample_metric(data, truth, outputs(f"{label}, good", Engine(healthy, device, seed=one_seed))))
    layers = []
    if by_layer:
        for layer in program.layers:
            one_chip = (chip or Chip.sample(program.spec, program.arrays, seed)) if count else None
            alone = Engine(programmed(program, one_chip, seed, exact=_others(program, layer)), device, seed=seed)
            layers.append(LayerEval(layer=layer, value=float(sample_metric(data, truth, outputs(layer, alone)).mean())))
    of_chips = np.array(values or [ideal])
    accuracy = data.labels is not None
    of_good = np.array(good or [ideal])
    lost = (of_good - of_chips) if accuracy else (of_chips - of_good)
    worse = np.sort(of_chips.mean(1)) if accuracy else -np.sort(-of_chips.mean(1))
    return EvalReport(
        model=program.tables.model_name,
        program_sha256=program.sha256,
        metric="accuracy" if accuracy else "relative_error",
        float_=float(sample_metric(data, truth, truth).mean()),
        ideal=float(ideal.mean()),
        chips=tuple(float(value) for value in of_chips.mean(1)),
        mean=float(of_chips.mean()),
        std=float(of_chips.mean(1).std(ddof=1)) if len(of_chips) > 1 else 0.0,
        ci95=bootstrap(of_chips, seed),
        worst=float(worse[0]),
        percentile5=float(np.quantile(of_chips.mean(1), 0.05 if accuracy else 0.95)),
        good_chips=tuple(float(value) for value in of_good.mean(1)) if good else None,
        drop=float(lost.mean()) if good else None,
        drop_ci95=bootstrap(lost, seed) if good else None,
        failed_devices=float(np.mean([one for one, _ in failed])) if failed else 0.0,
        failed_pairs=float(np.mean([pair for _, pair in failed])) if failed else 0.0,
        remapped=remap,
        samples=len(data),
        seed=seed,
        seconds=time,
        effects=tuple(
            name for name in active_effects(program.spec) if name in effects and (count or name not in OF_A_CHIP)
        ),
        trim=None if first.trim is None else dict(first.trim),
        reestimated=None if first.reestimated is None else dict(first.reestimated),
        by_layer=tuple(layers),
        onnxruntime_segments=engine.host_reasons,
        warnings=(*program.report.warnings, *effect_warnings(program, effects)),
    )


def original_model(
    program: TileProgram, model: "str | Path | bytes | onnx.ModelProto | None" = None
) -> Callable[[dict[str, Array]], list[Any]]:
    """What runs a program's model in floating point: gives the program's outputs for inputs by name.

    Parameters
    ----------
    program
        The program.
    model
        The model; None takes the one in the program.

    Raises
    ------
    DataError
        If there is none.
    """
    given = model if model is not None else program.source
    if given is None:
        raise DataError("program", "carries no model to compare with", hint="give it with --model model.onnx")
    names = [info.name for info in program.tables.outputs]
    opened = FloatModel(load_model(given).proto, optimize=True)
    wanted = {info.name for info in opened.inputs}

    def run(feeds: dict[str, Array]) -> list[Any]:
        found = opened.run({name: value for name, value in feeds.items() if name in wanted}, names)
        return [found[name] for name in names]

    return run


def effect_warnings(program: TileProgram, effects: Collection[str]) -> list[str]:
    """What a choice of effects means for a program, where it is not what one may think; a sentence each."""
    if program.tables.predistorted and program.spec.array.wired and "wires" not in effects:
        return ["targets undo the wires, which are switched off: compile with --no-predistort to see the rest alone"]
    return []


def _others(program: TileProgram, layer: str) -> tuple[str, ...]:
    return tuple(name for name in program.layers if name != layer)


def sample_metric(data: Dataset, truth: _Outputs, outputs: _Outputs) -> npt.NDArray[np.float64]:
    """The metric of each sample."""
    samples = len(data)
    if data.labels is not None:
        scores, axis = next(iter(outputs.values()), (np.zeros(()), None))
        classes = scores.reshape(len(scores), -1).shape[1] if scores.ndim else 0
        if axis != 0 or scores.ndim < 2 or int(data.labels.max()) >= classes:
            raise DataError(
                "labels",
                "must fit the first output of the model, (samples, classes)",
                got=f"labels up to {int(data.labels.max())} for an output {tuple(scores.shape)}",
            )
        right: npt.NDArray[np.float64] = (scores.reshape(samples, -1).argmax(1) == data.labels).astype(np.float64)
        return right
    error, size = np.zeros(samples), np.zeros(samples)
    compared = 0
    for name, (wanted, axis) in truth.items():
        if wanted.dtype.kind != "f" or axis is None:
            continue
        if outputs[name][0].shape != wanted.shape:
            raise DataError(
                f"output {name!r}",
                f"must have the shape that it has in floating point, {wanted.shape}, to be compared",
                got=outputs[name][0].shape,
                hint="it depends on the data; evaluate with labels, or compare the outputs of `xbarc run` yourself",
            )
        compared += 1
        flat, got = (np.moveaxis(value, axis, 0).reshape(samples, -1) for value in (wanted, outputs[name][0]))
        error += ((got.astype(np.float64) - flat) ** 2).sum(1)
        size += (flat.astype(np.float64) ** 2).sum(1)
    if not compared:
        raise DataError("data", "must have labels: no output of the model is a float tensor with one row a sample")
    return np.sqrt(error / np.where(size, size, 1.0))


def bootstrap(values: npt.NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % interval of the mean over chips and samples, ``values (chips, samples)``: both are drawn anew."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    chips, samples = values.shape
    means = []
    for _ in range(BOOTSTRAP):
        # The mean over drawn chips and samples, from how often each was drawn.
        times = np.bincount(generator.integers(0, chips, chips), minlength=chips)
        counts = np.bincount(generator.integers(0, samples, samples), minlength=samples)
        means.append(float(times @ values @ counts) / (chips * samples))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
