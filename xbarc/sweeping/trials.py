"""What a worker does: a few chips of one point, each a trial.

This room is what worker processes import first: torch and the engine come only when a trial runs, after the number of
threads is set.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.program import TileProgram
    from xbarc.data.load import Dataset
    from xbarc.sweeping.plan import Point

JOB = "job.json"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_PARENT_EVERY = 1.0


@dataclass(frozen=True)
class Unit:
    """Work for one call of a worker: chips of one point.

    Attributes
    ----------
    point
        Its place among the job's points.
    seeds
        Of the chips.
    """

    point: int
    seeds: tuple[int, ...]

    def alone(self) -> "list[Unit]":
        """The same trials, a unit each."""
        return [Unit(self.point, (seed,)) for seed in self.seeds]


@dataclass(frozen=True)
class Trial:
    """The result of one chip.

    Attributes
    ----------
    point
        Place among the job's points.
    seed
        Of the chip.
    value
        The metric, mean over the samples.
    failed_devices, failed_pairs
        Shares of the chip.
    seconds
        That it took.
    """

    point: int
    seed: int
    value: float
    failed_devices: float
    failed_pairs: float
    seconds: float


def write_job(
    folder: Path,
    programs: "Mapping[str, TileProgram]",
    points: "Sequence[Point]",
    data: "Dataset",
    truth: Mapping[str, Any],
    *,
    batch: int,
) -> None:
    """Put what all trials share into a folder, arrays as files that workers map into memory.

    Parameters
    ----------
    folder
        An empty one.
    programs
        By their hash.
    points
        Of the sweep.
    data
        Samples.
    truth
        Outputs of the original model, with the axis that counts samples, by name; empty where there are labels.
    batch
        Samples a batch.
    """
    for name, program in programs.items():
        program.save(folder / f"{name}.xbar")
    arrays = {f"input {name}": array for name, array in data.inputs.items()}
    arrays |= {f"truth {name}": array for name, (array, _) in truth.items()}
    if data.labels is not None:
        arrays["labels"] = data.labels
    files = {}
    for number, (name, array) in enumerate(arrays.items()):
        files[name] = f"{number}.npy"
        np.save(folder / files[name], array, allow_pickle=False)
    job = {
        "points": [point.to_json() for point in points],
        "files": files,
        "axes": dict(data.axes),
        "truth_axes": {name: axis for name, (_, axis) in truth.items()},
        "fixed_batch": data.fixed_batch,
        "batch": batch,
    }
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")


class Bench:
    """A job as one worker has it: programs and engines are kept from one chip of a point to the next."""

    def __init__(self, folder: Path) -> None:
        from xbarc.data.load import Dataset
        from xbarc.sweeping.plan import Point

        job = json.loads((folder / JOB).read_text(encoding="utf-8"))
        arrays = {
            name: np.load(folder / path, mmap_mode="r", allow_pickle=False) for name, path in job["files"].items()
        }

        def of_kind(kind: str) -> dict[str, Any]:
            return {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}

        self._folder = folder
        self._points = [Point.from_json(point) for point in job["points"]]
        self._data: Dataset = Dataset(
            of_kind("input "), arrays.get("labels"), axes=job["axes"], fixed_batch=job["fixed_batch"]
        )
        self._truth = {name: (array, job["truth_axes"][name]) for name, array in of_kind("truth ").items()}
        self._batch: int = job["batch"]
        self._loaded: tuple[str, TileProgram] | None = None
        self._mapped: tuple[int, TileProgram] | None = None
        self._engine: tuple[int, Engine] | None = None

    def run(self, unit: Unit) -> list[Trial]:
        """The trials of a unit, one chip after another."""
        return [self._trial(unit.point, seed) for seed in unit.seeds]

    def _trial(self, number: int, seed: int) -> Trial:
        from hwspec.chip import Chip
        from hwspec.fault_statistics import count_states
        from runtime.engine import Engine
        from runtime.programming import program_chip
        from xbarc.data.batches import run_batches
        from xbarc.evaluation import sample_metric

        began = time.perf_counter()
        point, program = self._points[number], self._program(number)
        chip = Chip.sample(program.spec, self._arrays(number), seed)
        if point.remap:
            from compiler.compile import options_of, remap_program
            from compiler.steps import ALL

            around = dataclasses.replace(options_of(program), steps=ALL)
            program = remap_program(program, point.compile_options(around), chip)
        programmed = program_chip(program, chip, effects=set(point.effects), seed=seed, seconds=point.seconds)
        if self._engine is None or self._engine[0] != number:
            self._engine = None  # two need not be in memory at once
            self._engine = number, Engine(programmed, seed=seed)
        else:
            self._engine[1].reseed(seed)
            self._engine[1].put(programmed)
        outputs = run_batches(
            self._engine[1], self._data, self._batch, program.tables.inputs, program.tables.outputs, None
        )
        found = sample_metric(self._data, self._truth, outputs)
        counted = count_states(chip.fault_map, program.spec.array.pairing)
        return Trial(
            point=number,
            seed=seed,
            value=float(found.mean()),
            failed_devices=counted.failed_share,
            failed_pairs=counted.failed_pair_share or 0.0,
            seconds=time.perf_counter() - began,
        )

    def _program(self, number: int) -> "TileProgram":
        """The program of a point, for any chip."""
        point = self._points[number]
        if self._mapped is not None and self._mapped[0] == number:
            return self._mapped[1]
        from compiler.compile import options_of, remap_program
        from xbarc.loading import load

        if self._loaded is None or self._loaded[0] != point.program:
            self._loaded = None
            self._loaded = point.program, load(self._folder / f"{point.program}.xbar")
        program = self._loaded[1]
        program = program.on(point.spec(program.spec))
        if point.anew():
            program = remap_program(program, point.compile_options(options_of(program)))
        self._mapped = number, program
        return program

    def _arrays(self, number: int) -> int:
        """Arrays of a point's chips: where the program is mapped for each, with replicas at most (`xbarc.evaluate`)."""
        point, program = self._points[number], self._program(number)
        if not point.remap or self._loaded is None:
            return program.arrays
        return max(program.arrays, self._loaded[1].arrays * int(str(point.options.get("replicas", 1))))


_benches: dict[str, Bench] = {}


def run_unit(folder: str, unit: Unit) -> list[Trial]:
    """Run a unit in this process; the job of a folder is read once."""
    from runtime.workers_torch import one_thread

    with one_thread():
        if folder not in _benches:
            _benches.clear()
            _benches[folder] = Bench(Path(folder))
        return _benches[folder].run(unit)


def warm() -> None:
    """Import what a trial needs, so that the first one does not wait for it."""
    importlib.import_module("runtime.engine")
    importlib.import_module("xbarc.evaluation")


def start_worker(parent: int, gib: float) -> None:
    """Prepare a worker process: one thread, bounded memory, and an end when its parent is gone.

    Parameters
    ----------
    parent
        Number of the process that waits for results.
    gib
        Memory that it may take, beyond which an allocation fails.
    """
    for name in THREADS:
        os.environ[name] = "1"
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), hard))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_EVERY)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
