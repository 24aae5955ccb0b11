"""Exploring hardware specs for one model: quality and cost of every point of a grid."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from compiler.compile import CompileOptions, finish, run_compile
from compiler.frontend import SourceModel, load_model
from hwspec.effects import OF_A_CHIP, active_effects
from hwspec.errors import DataError, SpecError
from hwspec.spec import HardwareSpec
from runtime.costing import CostReport, cost
from runtime.program import TileProgram
from xbarc import __version__
from xbarc.api import Data, calibration_batches
from xbarc.data.load import Dataset
from xbarc.evaluation import evaluate
from xbarc.exploration_data import Reader, hash_of, judged_samples, read_samples
from xbarc.exploration_report import (
    ExplorePoint,
    ExploreReport,
    Metric,
    Misfit,
    PointCost,
    Quality,
    differences,
)
from xbarc.spec_grid import Axis, SpecGrid

if TYPE_CHECKING:
    import onnx

Progress = Callable[[str, int, int | None], None]

_RANDOM_RANGES = "ranges stem from random inputs; calibrate for ranges that fit your data"
_COST_SECTIONS = ("chip", "costs")
"""Of a spec: what a program computes does not depend on them."""


def tune_spec(
    model: "str | Path | bytes | onnx.ModelProto",
    spec: HardwareSpec | str | Path = "rram-128",
    vary: Mapping[str, Iterable[object]] | Sequence[Axis] = (),
    *,
    data: Data | Reader | None = None,
    calibration: Data | Reader | None = None,
    fixed: Mapping[str, object] | None = None,
    metric: Metric | None = None,
    chips: int = 3,
    images: int | None = None,
    time: float = 0.0,
    points: int | None = None,
    skip_invalid: bool = False,
    seed: int = 0,
    batch: int = 64,
    device: str = "cpu",
    options: CompileOptions | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> ExploreReport:
    """Explore hardware specs for a model: compile, evaluate and cost each point of a grid.

    A point is what `xbarc.compile` and `xbarc.evaluate` make of its spec with the same seed; all points run on chips
    of the same seeds. Points that differ in the sections ``chip`` and ``costs`` alone are evaluated once.

    Parameters
    ----------
    model
        As for `xbarc.compile`.
    spec
        What the points start from.
    vary
        Values of each field that varies, by dotted name; fields that move together are one name, separated by commas:
        ``{"array.rows,array.cols": [64, 128], "periphery.adc_bits": range(5, 10)}``.
    data
        What quality is measured on: accuracy where it has labels, else the relative error of the outputs against the
        original model. None is the calibration data, for the error. As for `xbarc.compile`, or a function that gets
        the inputs of the model and reads.
    calibration
        Typical inputs that ranges are set by, as for `xbarc.compile`.
    fixed
        Fields that are set at every point.
    metric
        ``"accuracy"`` or ``"relative_error"``, where data do not decide.
    chips
        Sampled for each point; a spec in which nothing is random runs on its ideal chip.
    images
        Samples of the data that are used, at most.
    time
        Seconds between programming and the reads.
    points
        Points of the grid that are drawn at random; None is the whole grid.
    skip_invalid
        Whether points that the spec refuses are listed, and not an error.
    seed
        Of the first chip, and of everything else that is drawn.
    batch
        Samples a batch.
    device
        Where the engine computes.
    options
        Of compiling; `seed` takes the place of theirs.
    output
        File that the report is kept in after each point.
    resume
        Whether to go on from that file, if it is there: points that are done are not run again.
    progress
        Called with what is being done, points done, and points in all.

    Raises
    ------
    SpecError
        If a field does not exist, or a point is no spec; before anything runs.
    DataError
        If nothing varies, data do not fit, or the file is there or another run's.
    ModelFileError, ModelError
        If the model cannot be read, or is not supported.
    """
    if chips < 0:
        raise DataError("chips", "must not be negative", got=chips)
    grid = SpecGrid.of(HardwareSpec.resolve(spec), vary, fixed)
    numbers = grid.numbers(points, seed)
    specs, refused = _checked(grid, numbers, skip_invalid)
    path = None if output is None else Path(output)
    earlier = _earlier(path, resume)
    source = load_model(model)
    options = dataclasses.replace(options or CompileOptions(), seed=seed, keep_source=False)
    lowered = run_compile(source, next(iter(specs.values())), options, None, stop_after="lower").mapping.lowered
    calibrated = read_samples(calibration, lowered.inputs, None, seed)
    chosen, samples = judged_samples(read_samples(data, lowered.inputs, images, seed), calibrated, metric, images, seed)
    settings = {"chips": chips, "seed": seed, "time": float(time), "metric": chosen, "options": _plain_options(options)}
    planned = [[number, specs[number].sha256 if number in specs else None] for number in numbers]
    report = ExploreReport(
        model=source.name,
        spec=grid.base.name,
        identity={
            "model": source.sha256,
            "data": hash_of(samples),
            "calibration": "" if calibrated is None else hash_of(calibrated),
            "grid": _hash([[axis.model_dump(mode="json") for axis in grid.axes], dict(grid.fixed), planned]),
            "settings": _hash(settings),
            "version": __version__,
        },
        axes=grid.axes,
        fixed=dict(grid.fixed),
        grid=len(grid),
        drawn=len(numbers),
        metric=chosen,
        original=None,
        samples=len(samples),
        chips=chips,
        seed=seed,
        seconds=time,
        warnings=(_RANDOM_RANGES,) if calibrated is None else (),
        points=(),
    )
    done = refused if earlier is None else {**refused, **_done(earlier, report, specs, path)}
    report = report.with_points(done, original=None if earlier is None else earlier.original)
    bench = _Bench(source, options, calibrated, samples, chips, seed, time, batch, device)
    return _explore(report, specs, grid, bench, path, skip_invalid, progress)


def _explore(
    report: ExploreReport,
    specs: Mapping[int, HardwareSpec],
    grid: SpecGrid,
    bench: "_Bench",
    path: Path | None,
    skip_invalid: bool,
    progress: Progress | None,
) -> ExploreReport:
    """Run the points that are not done yet, those that compute alike one after another."""
    done = {point.number: point for point in report.points}
    alike = {number: bench.key(spec) for number, spec in specs.items()}
    for number, point in done.items():
        if point.quality is not None:
            bench.measured[alike[number]] = point.quality
    bench.original = report.original
    first: dict[str, int] = {}
    for number in specs:
        first.setdefault(alike[number], number)
    left = sorted((number for number in specs if number not in done), key=lambda number: (first[alike[number]], number))
    for number in left:
        told = functools.partial(_told, progress, len(done), report.drawn)
        told("compiling")
        try:
            done[number] = bench.run(number, grid.values(number), specs[number], alike[number], told)
        except SpecError as error:
            if not skip_invalid:
                raise
            done[number] = _refused(grid, number, str(error))
        if path is not None:
            report.with_points(done, original=bench.original).save(path)
    return report.with_points(done, original=bench.original)


def _told(progress: Progress | None, done: int, points: int, what: str, *_: int) -> None:
    if progress is not None:
        progress(f"point {done + 1} of {points}: {what}", done, points)


def numbers_key(spec: HardwareSpec, arrays: int | None = None) -> str:
    """Hash of what a program's numbers depend on: programs of specs with equal keys compute the same.

    `arrays` are those that copies of matrices are balanced within, if they are.
    """
    return _hash([spec.model_dump(mode="json", exclude={"name", "sources", *_COST_SECTIONS}), arrays])


def cost_on(program: TileProgram, spec: HardwareSpec) -> CostReport:
    """What a program takes on hardware that differs from its own in name and in the sections `chip` and `costs`."""
    return cost(program.on(spec))


@dataclasses.dataclass
class _Bench:
    """Compiles and measures points; the last program is kept, and every quality."""

    source: SourceModel
    options: CompileOptions
    calibration: Dataset | None
    samples: Dataset
    chips: int
    seed: int
    time: float
    batch: int
    device: str
    original: float | None = None
    measured: dict[str, Quality] = dataclasses.field(default_factory=dict)
    held: tuple[str, TileProgram] | None = None

    def budget(self, spec: HardwareSpec) -> int | None:
        """Arrays that copies of matrices are balanced within; None where they are not."""
        if self.options.copies != "balance":
            return None
        return self.options.array_budget or spec.chip.arrays

    def key(self, spec: HardwareSpec) -> str:
        """Alike for specs whose programs compute the same."""
        return numbers_key(spec, self.budget(spec))

    def run(
        self, number: int, values: dict[str, JsonValue], spec: HardwareSpec, key: str, told: Callable[..., None]
    ) -> ExplorePoint:
        """A point with its quality and cost, or with what it lacks to fit its chip."""
        program = self._compiled(spec, key)
        bound = spec.chip.arrays
        if bound is not None and program.arrays > bound:
            misfit = Misfit(demand=program.arrays, bound=bound, unit="arrays")
            return ExplorePoint(number=number, values=values, state="does_not_fit", misfit=misfit)
        if key not in self.measured:
            self.measured[key] = self._quality(program, spec, told)
        costs = cost_on(program, spec)
        piped = costs.pipelined
        found = PointCost(
            energy=piped.energy,
            interval=piped.interval,
            latency=piped.latency,
            area=costs.total_area,
            arrays=costs.arrays,
            tops=piped.tops,
            tops_per_watt=piped.tops_per_watt,
        )
        return ExplorePoint(number=number, values=values, state="done", quality=self.measured[key], cost=found)

    def _compiled(self, spec: HardwareSpec, key: str) -> TileProgram:
        """The program of all specs with this key, for a chip of any number of arrays."""
        if self.held is None or self.held[0] != key:
            self.held = None  # two programs need not be in memory at once
            batches = None if self.calibration is None else calibration_batches(self.calibration)
            unbounded = spec.with_fields({"chip.tiles": None})
            options = dataclasses.replace(self.options, array_budget=self.budget(spec))
            outcome = run_compile(self.source, unbounded, options, batches)
            self.held = key, finish(outcome, keep_source=False)
        return self.held[1]

    def _quality(self, program: TileProgram, spec: HardwareSpec, told: Callable[..., None]) -> Quality:
        random = OF_A_CHIP.intersection(active_effects(spec))
        found = evaluate(
            program,
            self.samples,
            model=self.source.proto,
            batch=self.batch,
            device=self.device,
            seed=self.seed,
            chips=self.chips if random else 0,
            time=self.time,
            progress=told,
        )
        self.original = found.float_
        return Quality(
            mean=found.mean, worst=found.worst, std=found.std, ci95=found.ci95, ideal=found.ideal, chips=found.chips
        )


def _refused(grid: SpecGrid, number: int, reason: str) -> ExplorePoint:
    return ExplorePoint(number=number, values=grid.values(number), state="invalid", reason=reason)


def _checked(
    grid: SpecGrid, numbers: Sequence[int], skip_invalid: bool
) -> tuple[dict[int, HardwareSpec], dict[int, ExplorePoint]]:
    """Specs of the points, and the points that are none."""
    specs, refused = {}, {}
    for number in numbers:
        try:
            specs[number] = grid.spec(number)
        except SpecError as error:
            if not skip_invalid:
                hint = error.hint or "--skip-invalid leaves such points out"
                raise SpecError(error.subject, error.requirement, hint=hint) from None
            refused[number] = _refused(grid, number, error.requirement)
    if not specs:
        reason = next(iter(refused.values())).reason
        raise SpecError("vary", f"must leave a point that is a valid spec; of the first: {reason}")
    return specs, refused


def _earlier(path: Path | None, resume: bool) -> ExploreReport | None:
    """What an earlier run left, to go on from."""
    if path is None:
        if resume:
            raise DataError("resume", "must have an output to go on from", hint="-o results.json")
        return None
    if not path.exists():
        return None
    if not resume:
        raise DataError(f"output {path}", "must not be there yet", hint="--resume goes on from it")
    return ExploreReport.load(path)


def _done(
    earlier: ExploreReport, report: ExploreReport, specs: Mapping[int, HardwareSpec], path: Path | None
) -> dict[int, ExplorePoint]:
    """The points of an earlier run that need not run again; raises `DataError` where that was another one."""
    differ = differences(report.identity, earlier.identity)
    if differ:
        raise DataError(
            f"results {path}",
            f"must be of this model, data, grid and settings to go on from, and differ in {', '.join(differ)}",
            hint="give another -o to start anew",
        )
    complete = {"done": ("quality", "cost"), "does_not_fit": ("misfit",), "invalid": ("reason",)}
    return {
        point.number: point
        for point in earlier.points
        if point.number in specs and all(getattr(point, part) is not None for part in complete[point.state])
    }


def _plain_options(options: CompileOptions) -> dict[str, object]:
    """Options as JSON has them, but for the seed and what does not change numbers."""
    plain = dataclasses.asdict(options)
    del plain["seed"], plain["keep_source"]
    return {**plain, "steps": sorted(options.steps)}


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
