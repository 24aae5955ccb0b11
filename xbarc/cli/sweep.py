"""``xbarc sweep``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwspec.errors import DataError
from xbarc.cli.arguments import (
    Json,
    ModelPath,
    Normalize,
    Only,
    Split,
    Without,
    output_path,
    parse_fields,
    parse_names,
    parse_time,
)
from xbarc.cli.output import emit_json, note, progress_bar, say, table
from xbarc.cli.reading import read_samples

if TYPE_CHECKING:
    from xbarc.sweeping.statistics import PointStatistics, SweepReport

_VARY = (
    "FIELD[,FIELD]=VALUES that vary: 0,0.5,1 or 5:9 or 0.001:0.1:log7 or 0:5:lin6; fields of the spec, time, or "
    "options of compiling such as compile.predistort=true,false. Repeat for more."
)
_DEFAULTS: dict[str, Any] = {
    "chips": 10,
    "max_chips": 1000,
    "design": "grid",
    "time": "0 s",
    "loss": 1.0,
    "seed": 0,
    "batch": 64,
    "remap": False,
    "resume": False,
    "yes": False,
}


def sweep_(
    programs: Annotated[
        list[str] | None, typer.Argument(metavar="PROGRAM...", help="Tile programs (.xbar) of one model.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Inputs, with labels for accuracy: .npz, image folder or zip, or digits.")
    ] = None,
    vary: Annotated[list[str] | None, typer.Option(metavar="FIELD=VALUES", help=_VARY)] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field at every point.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file of these options, and programs; what is given here goes before it.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="SQLite file that every trial is kept in (default: sweep.db).")
    ] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume", help="Go on from the file of -o: only what is missing is run.")
    ] = None,
    chips: Annotated[int | None, typer.Option(min=1, max=100_000, help="Chips for each point (default 10).")] = None,
    until_ci: Annotated[
        float | None,
        typer.Option(help="Add chips until the 95 % interval of each point's mean is this narrow, in points."),
    ] = None,
    max_chips: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Chips for a point at most, with --until-ci (default 1000).")
    ] = None,
    design: Annotated[
        str | None, typer.Option(help="grid (default), or random or sobol with --points, over LOW:HIGH:log or :lin.")
    ] = None,
    points: Annotated[int | None, typer.Option(min=1, help="Points of a design that is drawn.")] = None,
    remap: Annotated[
        bool | None, typer.Option("--remap", help="Map the program for each chip, around its own failed devices.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Time between programming and the reads: 1h, 1d, 90 s.")] = None,
    only: Only = None,
    without: Without = None,
    loss: Annotated[
        float | None,
        typer.Option(help="Points below the original model within which a chip counts for the yield (default 1)."),
    ] = None,
    split: Split = None,
    normalize: Normalize = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many samples, drawn at random.")] = None,
    model: ModelPath = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Of the first chip (default 0).")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples a batch (default 64).")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine, one thread each (default: one a core).")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler: tcp://host:8786.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Run on so many Dask workers that are started here.")
    ] = None,
    yes: Annotated[bool | None, typer.Option("--yes", help="Run more than 10,000 trials.")] = None,
    csv: Annotated[str | None, typer.Option(help="All trials as a table (.csv).")] = None,
    parquet: Annotated[str | None, typer.Option(help="All trials as a table (.parquet).")] = None,
    plot: Annotated[str | None, typer.Option(help="Figure of metric and yield: .png, .svg or .pdf.")] = None,
    json: Json = False,
) -> None:
    """Run programs on many chips over many specs, and keep every trial: accuracy, its interval, and yield."""
    from xbarc.sweeping.config import KEYS, read_config
    from xbarc.sweeping.design import parse_axis

    values = locals()
    given = {name: values[name] for name in KEYS if name in values and values[name] not in (None, [])}
    given |= {"vary": [parse_axis(text) for text in vary]} if vary else {}
    given |= {"set": parse_fields(set_)} if set_ else {}
    read = {} if config is None else {**read_config(Path(config)), "config": config}
    chosen = {**_DEFAULTS, **read, **given}
    _run(chosen, quiet=json)


def _outputs(chosen: dict[str, Any], inputs: list[str]) -> dict[str, Path]:
    """Where results, tables and the figure go: no two of them to one file, and none onto an input."""
    kinds = ("output", "csv", "parquet", "plot")
    texts: dict[str, str] = {"output": "sweep.db"} | {name: chosen[name] for name in kinds if name in chosen}
    found = {name: output_path(text, keep=kept) for name, text in texts.items() for kept in inputs}
    if len({path.resolve() for path in found.values()}) < len(found):
        raise DataError("outputs", "must be different files", got=", ".join(texts.values()))
    return found


def _run(chosen: dict[str, Any], *, quiet: bool) -> None:
    from xbarc.api import load
    from xbarc.figure import check_plot
    from xbarc.sweeping.plot import plot_sweep
    from xbarc.sweeping.store import read_rows, save_csv, save_parquet
    from xbarc.sweeping.sweep import sweep

    paths = chosen.get("programs")
    if not paths:
        raise DataError("programs", "must be given", hint="xbarc sweep model.xbar --data DATA --vary FIELD=VALUES")
    paths = [paths] if isinstance(paths, str) else [str(path) for path in paths]
    if "data" not in chosen:
        raise DataError("--data", "must be given", hint="with labels for accuracy")
    others = [chosen[name] for name in ("data", "config", "model") if name in chosen]
    written = _outputs(chosen, [*paths, *others])
    results = written.pop("output")
    if "plot" in written:
        check_plot(written["plot"])
    named = {path: load(path) for path in dict.fromkeys(paths)}
    first = next(iter(named.values()))
    until = chosen.get("until_ci")
    with progress_bar("sweeping", quiet=quiet) as advance:
        samples = read_samples(
            first,
            chosen["data"],
            advance,
            split=chosen.get("split"),
            normalize=chosen.get("normalize"),
            limit=chosen.get("limit"),
            seed=chosen["seed"],
        )
        report = sweep(
            named,
            samples,
            chosen.get("vary", {}),
            results=results,
            chips=chosen["chips"],
            until=None if until is None else until / 100,
            most_chips=chosen["max_chips"],
            design=chosen["design"],
            points=chosen.get("points"),
            fixed=chosen.get("set"),
            remap=chosen["remap"],
            time=parse_time(chosen["time"]),
            only=parse_names(chosen.get("only")),
            without=parse_names(chosen.get("without")) or [],
            loss=chosen["loss"] / 100,
            model=chosen.get("model"),
            seed=chosen["seed"],
            batch=chosen["batch"],
            processes=chosen.get("processes"),
            scheduler=chosen.get("scheduler"),
            workers=chosen.get("workers"),
            resume=chosen["resume"],
            most_trials=2**62 if chosen["yes"] else None,
            progress=advance,
        )
    if "csv" in written:
        save_csv(read_rows(results), written["csv"])
    if "parquet" in written:
        save_parquet(read_rows(results), written["parquet"])
    if "plot" in written:
        plot_sweep(report, written["plot"])
    if quiet:
        emit_json({**report.model_dump(mode="json"), "results": str(results)})
        return
    _print(report)
    for path in (results, *written.values()):
        say(f"written to {path}")


def _print(report: "SweepReport") -> None:
    unit = report.metric.replace("_", " ")
    trials = sum(point.chips for point in report.points)
    say(
        f"{trials:,} trials, {unit} of {report.samples:,} samples, original {report.original:.2%}; a chip is good "
        f"within {report.told_loss} of it"
    )
    head = [*(["program"] if report.several_programs else []), *report.axes]
    table(
        [*head, "chips", unit, "95 % interval", "worst", "yield"],
        [_row(report, point) for point in report.points],
    )
    failed = sum(point.failed for point in report.points)
    if failed:
        note(
            f"warning: {failed} trials could not be run; the column `reason` of the results tells why, --resume retries"
        )


def _row(report: "SweepReport", point: "PointStatistics") -> list[str]:
    values = [*([point.program] if report.several_programs else [])]
    for axis in report.axes:
        value = point.values.get(axis.split(",")[0])
        values.append(f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value))
    if point.mean is None:
        return [*values, "0", "-", "-", "-", "-"]
    interval = "-" if point.ci95 is None else f"{point.ci95[0]:.2%} to {point.ci95[1]:.2%}"
    return [*values, str(point.chips), f"{point.mean:.2%}", interval, f"{point.worst:.2%}", f"{point.chip_yield:.1%}"]
