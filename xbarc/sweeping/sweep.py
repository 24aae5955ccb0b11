"""A sweep: many chips, specs and programs, and how a program does on them."""

import contextlib
import importlib.metadata
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from compiler.compile import options_of
from hwspec.effects import chosen_effects
from hwspec.errors import DataError
from runtime.physics.wires import cores
from runtime.program import TileProgram
from xbarc import __version__
from xbarc.api import Data, load
from xbarc.data.batches import run_batches
from xbarc.data.load import Dataset, load_data
from xbarc.evaluation import original_model, sample_metric
from xbarc.exploration_data import hash_of
from xbarc.spec_grid import Axis
from xbarc.sweeping.design import Design, Span
from xbarc.sweeping.plan import points_of
from xbarc.sweeping.pools import ClusterPool, LocalPool, Pool
from xbarc.sweeping.running import Chips, Progress, Runner
from xbarc.sweeping.statistics import SweepReport, statistics_of
from xbarc.sweeping.store import Store
from xbarc.sweeping.trials import write_job

ASK_BEYOND = 10_000
"""Trials that are not begun without being told that so many are meant."""

_LAST_SEED = 2**63 - 1


def sweep(
    programs: TileProgram | str | Path | Mapping[str, TileProgram] | Sequence[str | Path],
    data: Data,
    vary: Mapping[str, object] | Sequence[Axis | Span] = (),
    *,
    results: str | Path,
    chips: int = 10,
    until: float | None = None,
    most_chips: int = 1000,
    design: str = "grid",
    points: int | None = None,
    fixed: Mapping[str, JsonValue] | None = None,
    remap: bool = False,
    time: float = 0.0,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    loss: float = 0.01,
    limit: int | None = None,
    split: str | None = None,
    model: str | Path | bytes | None = None,
    seed: int = 0,
    batch: int = 64,
    processes: int | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    most_trials: int | None = None,
    progress: Progress | None = None,
) -> SweepReport:
    """Run programs on many chips of many specs, and keep every result.

    Where a field changes that only chips meet (failures, spread, noise, drift, wires, offsets), programs stay as they
    are; where one changes that they were made for (sizes, levels, converters) or an option of compiling does, they are
    mapped anew from their own weights and calibration. A trial is one chip of one point: `chips` of the seeds from
    `seed` on, each the same as `xbarc.evaluate` makes it. A point without anything random has one.

    Worker processes are started anew (*spawn*): a script that calls this must do so below
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    programs
        A program or its path, several paths, or programs by name.
    data
        Samples, as for `xbarc.compile`; with labels for accuracy, else the metric is the relative error of outputs.
    vary
        Values of each field that varies, by dotted name: lists, or text such as ``"0.001:0.1:log7"``. Besides fields
        of the spec: ``compile.predistort``, ``compile.replicas`` … (options of compiling) and ``time``.
    results
        SQLite file that every trial is kept in.
    chips
        For each point.
    until
        Width of the 95 % interval of a point's mean, in the metric's unit (0.002 is 0.2 points): `chips` more are run
        until it is that narrow.
    most_chips
        For each point, with `until`.
    design
        ``"grid"``, or ``"random"`` or ``"sobol"`` with a number of `points`.
    points
        Of a design that is drawn.
    fixed
        Fields at every point.
    remap
        Whether programs are mapped for each chip, around its failed devices.
    time
        Seconds between programming and the reads, unless ``time`` varies.
    only, without
        Names of effects to keep or to switch off.
    loss
        Within which of the original model's metric a chip counts for the yield, in the metric's unit.
    limit, split
        Of the data.
    model
        The ONNX model, where the first program carries none.
    seed
        Of the first chip, and of what is drawn, the samples of `limit` too.
    batch
        Samples a batch.
    processes
        On this machine, each with one thread; None takes one a core.
    scheduler
        Address of a Dask scheduler to run on instead.
    workers
        Workers of a Dask cluster to start on this machine instead.
    resume
        Whether to go on from `results`, if it is there: only what is missing is run.
    most_trials
        More are refused before anything runs; None is `ASK_BEYOND`.
    progress
        Called with what runs, trials done, and trials in all as far as known.

    Raises
    ------
    SpecError
        If a field does not exist or a value is out of range; before anything runs.
    DataError
        If anything else does not fit, the results file is another sweep's, or a scheduler does not answer.
    ProgramError
        If a program is not sound.
    """
    _check(chips, until, most_chips, seed, loss, processes, workers, scheduler)
    named = _programs(programs)
    plan = Design.of(vary, design, points, seed)
    found = points_of(
        named,
        plan,
        {name: options_of(program) for name, program in named.items()},
        fixed=fixed,
        seconds=time,
        remap=remap,
        effects=chosen_effects(only, without),
    )
    bound, most = most_trials or ASK_BEYOND, sum((most_chips if until else chips) if one.random else 1 for one in found)
    if most > bound:
        hint = "--yes (most_trials=) runs them"
        raise DataError("sweep", f"must be of at most {bound} trials unless told so", got=most, hint=hint)
    first = next(iter(named.values()))
    reading: dict[str, Any] = {"split": split, "limit": limit, "seed": seed}
    samples = data if isinstance(data, Dataset) else load_data(data, first.tables.inputs, **reading)
    accuracy, path = samples.labels is not None, Path(results)
    identity = {
        "model": first.tables.model_sha256,
        "data": hash_of(samples),
        "metric": "accuracy" if accuracy else "relative_error",
        "batch": str(batch),
        "xbarc": __version__,
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xbarc-sweep-")))
        pool = _pool(folder, processes, scheduler, workers)
        early = isinstance(pool, LocalPool) and not path.exists()
        if isinstance(pool, LocalPool) and early:  # workers get ready while the original model runs
            stack.enter_context(pool).warm()
        truth, original = _truth(first, samples, model, batch)
        facts = {"original": repr(original), "samples": str(len(samples)), "program": first.tables.model_name}
        store = stack.enter_context(Store(path, identity, facts, _versions(), resume=resume))
        store.add_points(found)
        runner = Runner(found, Chips(seed, chips, until, most_chips), store, progress)
        if runner.missing:
            by_hash = {program.sha256: program for program in named.values()}
            write_job(folder, by_hash, found, samples, {} if accuracy else truth, batch=batch)
            runner.run(pool if early else stack.enter_context(pool))
        rows = tuple(
            statistics_of(
                point.label,
                point.values,
                {chip: runner.done[at][chip] for chip in runner.seeds(at) if chip in runner.done[at]},
                len(runner.failed[at]),
                original=original,
                loss=loss,
                accuracy=accuracy,
            )
            for at, point in enumerate(found)
        )
    return SweepReport(
        model_sha256=identity["model"],
        metric=identity["metric"],
        original=original,
        samples=len(samples),
        loss=loss,
        axes=tuple(",".join(axis.fields) for axis in plan.axes),
        points=rows,
    )


def _check(
    chips: int,
    until: float | None,
    most_chips: int,
    seed: int,
    loss: float,
    processes: int | None,
    workers: int | None,
    scheduler: str | None,
) -> None:
    if chips < 1:
        raise DataError("chips", "must be at least 1", got=chips)
    if until is not None and not until > 0:
        raise DataError("until", "must be positive", got=until)
    if until is not None and (chips < 2 or most_chips < chips):
        raise DataError("chips", "must be at least 2, and at most most_chips, to narrow an interval", got=chips)
    if seed < 0:
        raise DataError("seed", "must not be negative", got=seed)
    if seed > _LAST_SEED - max(chips, most_chips if until is not None else 0):
        raise DataError("seed", "must leave room for those of all chips below 2**63", got=seed)
    if not 0 <= loss < float("inf"):
        raise DataError("loss", "must not be negative", got=loss)
    for name, value in (("processes", processes), ("workers", workers)):
        if value is not None and not 1 <= value <= 1024:
            raise DataError(name, "must be 1 to 1024", got=value)
    if sum(one is not None for one in (processes, workers, scheduler)) > 1:
        raise DataError("processes, workers, scheduler", "exclude each other", hint="choose one")


def _programs(
    programs: TileProgram | str | Path | Mapping[str, TileProgram] | Sequence[str | Path],
) -> dict[str, TileProgram]:
    """Programs by the name that tells them apart; all of one model."""
    if isinstance(programs, TileProgram):
        named = {programs.tables.model_name or "program": programs}
    elif isinstance(programs, Mapping):
        named = dict(programs)
    else:
        paths = [programs] if isinstance(programs, str | Path) else list(programs)
        named = {str(path): load(path) for path in paths}
        if len(named) < len(paths):
            raise DataError("programs", "must be given once each")
    if not named:
        raise DataError("programs", "must be at least one")
    first = next(iter(named.values()))
    for name, program in named.items():
        if program.tables.model_sha256 != first.tables.model_sha256 and not (
            program.tables.tuned or first.tables.tuned
        ):
            raise DataError(f"program {name}", "must be of the model of the others", got=program.tables.model_name)
        if [one.name for one in program.tables.inputs] != [one.name for one in first.tables.inputs]:
            raise DataError(f"program {name}", "must have the inputs of the others")
    return named


def _truth(
    program: TileProgram, data: Dataset, model: str | Path | bytes | None, batch: int
) -> tuple[dict[str, Any], float]:
    """Outputs of the original model, and its metric."""
    run = original_model(program, model)
    truth = run_batches(run, data, batch, program.tables.inputs, program.tables.outputs, None)
    return dict(truth), float(sample_metric(data, truth, truth).mean())


def _versions() -> str:
    packages = ("torch", "numpy", "onnxruntime")
    return ", ".join([f"xbarc {__version__}", *(f"{name} {importlib.metadata.version(name)}" for name in packages)])


def _pool(folder: Path, processes: int | None, scheduler: str | None, workers: int | None) -> Pool:
    if scheduler is not None or workers is not None:
        return ClusterPool(folder, scheduler, workers)
    return LocalPool(folder, processes or cores())
