"""``xbarc tune-spec``."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwspec.errors import DataError
from xbarc.cli.arguments import (
    ArrayBudget,
    BatchSize,
    CopiesOption,
    Device,
    Json,
    Normalize,
    Predistort,
    Seed,
    ShareWith,
    Split,
    Time,
    output_path,
    parse_fields,
    parse_normalize,
    parse_shapes,
    parse_time,
)
from xbarc.cli.guards import check_apart
from xbarc.cli.mapping import parse_copies, parse_share
from xbarc.cli.output import emit_json, note, progress_bar, say, table
from xbarc.quantities import engineering

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.tables import TensorInfo
    from xbarc.data.load import Dataset
    from xbarc.exploration_report import ExplorePoint, ExploreReport

_ASK_BEYOND = 200
_CALIBRATION = 512
_METRICS = {None: None, "accuracy": "accuracy", "error": "relative_error"}
_VARY = "FIELD[,FIELD]=VALUES that vary, together where there are several: 64,128 or 5:9 or 8:64:8. Repeat for more."


def tune_spec_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="ONNX model.")],
    vary: Annotated[list[str] | None, typer.Option(help=_VARY)] = None,
    spec: Annotated[str, typer.Option(help="Preset or spec file that the points start from.")] = "rram-128",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field at every point: periphery.dac_bits=6.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="What quality is measured on: .npz, image folder or zip, or digits.")
    ] = None,
    calib: Annotated[str | None, typer.Option(help="Typical inputs: .npz, image folder or zip, or digits.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="accuracy (default with labels), or error against the original model.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Samples of the data, at most, drawn at random.")] = None,
    split: Split = None,
    calib_split: Annotated[str | None, typer.Option(help="Split of the calibration data.")] = None,
    normalize: Normalize = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="Shape of an open input: x=1,3,48,192. Repeat for more.")
    ] = None,
    share: ShareWith = None,
    copies: CopiesOption = None,
    array_budget: ArrayBudget = None,
    predistort: Predistort = True,
    chips: Annotated[
        int, typer.Option(min=0, max=100_000, help="Chips sampled for each point, of the same seeds; 0: an ideal chip.")
    ] = 3,
    time: Time = "0 s",
    points: Annotated[int | None, typer.Option(min=1, help="Draw so many points of the grid at random.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help=f"Run more than {_ASK_BEYOND} points.")] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="List points that the spec refuses, and run the others.")
    ] = False,
    batch: BatchSize = 64,
    device: Device = "cpu",
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Where results are kept after each point (.json).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the file of -o, if it is there.")] = False,
    plot: Annotated[
        str | None, typer.Option(help="Figure of quality against energy and area: .png, .svg or .pdf.")
    ] = None,
    csv: Annotated[str | None, typer.Option(help="Table of all points (.csv), in SI units.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Explore hardware specs for a model: quality against energy, time and area, and which points nothing beats."""
    from compiler.compile import CompileOptions
    from hwspec.spec import HardwareSpec
    from xbarc.exploration import tune_spec
    from xbarc.exploration_plot import plot_exploration
    from xbarc.figure import check_plot
    from xbarc.spec_grid import Axis, SpecGrid

    if metric not in _METRICS:
        raise DataError("--metric", "must be accuracy or error", got=metric)
    axes = [Axis.parse(text) for text in vary or []]
    base, fixed = HardwareSpec.resolve(spec), parse_fields(set_ or [])
    grid = SpecGrid.of(base, axes, fixed)
    wanted = min(len(grid), points or len(grid))
    if wanted > _ASK_BEYOND and not yes:
        hint = "or --points N draws some of them at random"
        raise DataError("grid", f"must have at most {_ASK_BEYOND} points unless --yes is given", got=wanted, hint=hint)
    check_apart(
        {"-o": output, "--plot": plot, "--csv": csv}, (model, data, calib, spec if Path(spec).is_file() else None)
    )
    path, plot_path, csv_path = (None if text is None else output_path(text) for text in (output, plot, csv))
    if plot_path is not None:
        check_plot(plot_path)
    options = CompileOptions(
        input_shapes=parse_shapes(input_shape or []),
        share_arrays=parse_share(share, None),
        copies=parse_copies(copies or []),
        array_budget=array_budget,
        predistort=predistort,
    )
    scale = parse_normalize(normalize)
    with progress_bar("exploring", quiet=json) as advance:
        report = tune_spec(
            model,
            base,
            axes,
            data=None if data is None else functools.partial(_read, data, split, scale, images, seed, advance),
            calibration=None
            if calib is None
            else functools.partial(_read, calib, calib_split, scale, _CALIBRATION, seed, advance, learning=True),
            fixed=fixed,
            metric=_METRICS[metric],  # type: ignore[arg-type]  # checked there
            chips=chips,
            images=images,
            time=parse_time(time),
            points=points,
            skip_invalid=skip_invalid,
            seed=seed,
            batch=batch,
            device=device,
            options=options,
            output=path,
            resume=resume,
            progress=advance,
        )
    if csv_path is not None:
        report.save_csv(csv_path)
    if plot_path is not None and report.ranked:
        plot_exploration(report, plot_path)
    elif plot_path is not None:
        note("no figure is drawn: no point fits its chip")
        plot = None
    if json:
        emit_json(report.model_dump(mode="json"))
        return
    _print(report)
    for kept in (output, csv, plot):
        if kept is not None:
            say(f"written to {kept}")


def _read(
    source: str,
    split: str | None,
    normalize: "tuple[tuple[float, ...], tuple[float, ...]] | None",
    limit: int | None,
    seed: int,
    advance: Callable[[str, int, int | None], None],
    inputs: "Sequence[TensorInfo]",
    *,
    learning: bool = False,
) -> "Dataset":
    from xbarc.data.load import load_data

    def told(done: int, total: int) -> None:
        advance("reading", done, total)

    chosen: dict[str, Any] = {"split": split, "normalize": normalize, "limit": limit, "seed": seed}
    return load_data(source, inputs, learning=learning, progress=told, **chosen)


def _print(report: "ExploreReport") -> None:
    unit = report.metric.replace("_", " ")
    on = f"{report.chips} chips each" if report.chips > 1 else "1 chip each" if report.chips else "ideal chips"
    original = "" if report.original is None or report.metric != "accuracy" else f", original {report.original:.2%}"
    drawn = "" if report.drawn == report.grid else f" of {report.grid:,}, drawn at random"
    say(
        f"model {report.model}, from spec {report.spec}: {report.drawn:,} points{drawn}; {unit} of {report.samples:,} "
        f"samples on {on}{original}"
    )
    fields = [axis.name for axis in report.axes]
    ranked = report.ranked
    if ranked:
        table(
            ("", "point", *fields, unit, "worst", "energy", "interval", "latency", "area, mm2", "arrays", "TOPS/W"),
            [_row(report, point) for point in ranked],
            dim={number for number, point in enumerate(ranked) if not point.on_front},
        )
        say(
            "* on the front: no other point is at least as good in quality, energy, interval and area and better in one"
        )
    unfit = report.of_state("does_not_fit")
    if unfit:
        say("")
        rows = [[*_shown(report, one), str(one.misfit.demand), str(one.misfit.bound)] for one in unfit if one.misfit]
        table(("point", *fields, "arrays needed", "of the chip"), rows, "does not fit")
    invalid = report.of_state("invalid")
    if invalid:
        say("")
        table(("point", *fields, "refused"), [[*_shown(report, one), one.reason or ""] for one in invalid], "no spec")
    for warning in report.warnings:
        note(f"warning: {warning}")


def _shown(report: "ExploreReport", point: "ExplorePoint") -> list[str]:
    """The number of a point, and the value of each axis."""
    values = (point.values[axis.fields[0]] for axis in report.axes)
    return [str(point.number), *("null" if value is None else str(value) for value in values)]


def _row(report: "ExploreReport", point: "ExplorePoint") -> list[str]:
    assert point.quality is not None
    assert point.cost is not None
    return [
        "*" if point.on_front else "",
        *_shown(report, point),
        f"{point.quality.mean:.2%}",
        f"{point.quality.worst:.2%}",
        engineering(point.cost.energy, "J"),
        engineering(point.cost.interval, "s"),
        engineering(point.cost.latency, "s"),
        f"{point.cost.area * 1e6:.4g}",
        f"{point.cost.arrays:,}",
        f"{point.cost.tops_per_watt:.3g}",
    ]
