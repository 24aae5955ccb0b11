"""``xbarc eval``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwspec.errors import DataError
from xbarc.cli.arguments import (
    BatchSize,
    Chips,
    Device,
    Json,
    Limit,
    ModelPath,
    Normalize,
    Only,
    ProgramPath,
    RunChip,
    Seed,
    Split,
    Steps,
    Time,
    Without,
    WithoutSteps,
    parse_names,
    parse_time,
)
from xbarc.cli.mapping import chip_to_run_on, note_other_chip, parse_steps, replicas_of
from xbarc.cli.output import emit_json, note, progress_bar, say, table
from xbarc.cli.programming import REESTIMATED, TRIM, print_errors
from xbarc.cli.reading import read_samples

if TYPE_CHECKING:
    from xbarc.eval_report import EvalReport

REESTIMATION = 256
"""Samples that columns are re-estimated with."""


def eval_(
    program: ProgramPath,
    data: Annotated[str, typer.Option(help="Inputs with labels: .npz, image folder or zip, or digits.")],
    model: ModelPath = None,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Also put one layer at a time on crossbars.")] = False,
    split: Split = None,
    normalize: Normalize = None,
    limit: Limit = None,
    batch: BatchSize = 64,
    device: Device = "cpu",
    chips: Chips = 1,
    chip: RunChip = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Run the same chips without failed devices too, and report what these cost.")
    ] = False,
    remap: Annotated[
        bool, typer.Option("--remap", help="Map the program for each chip, around its own failed devices.")
    ] = False,
    steps: Steps = None,
    without_steps: WithoutSteps = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, max=16, help="With --remap: tiles that hold each block; by default as they are."),
    ] = None,
    reestimate: Annotated[
        str | None, typer.Option(help="Data that each chip's columns are re-estimated with, without labels or map.")
    ] = None,
    reestimate_split: Annotated[str | None, typer.Option(help="Split of that data.")] = None,
    reestimate_limit: Annotated[int | None, typer.Option(min=1, help="Samples of that data; by default 256.")] = None,
    time: Time = "0 s",
    only: Only = None,
    without: Without = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure a program's accuracy beside that of its model; without labels, its relative error."""
    from compiler.compile import CompileOptions
    from xbarc.api import load
    from xbarc.evaluation import evaluate

    for name, value in (("--steps", steps), ("--without-steps", without_steps), ("--replicas", replicas)):
        if value is not None and not remap:
            raise DataError(name, "must be given with --remap", hint="the program as it is has been mapped already")
    for name, value in (("--reestimate-split", reestimate_split), ("--reestimate-limit", reestimate_limit)):
        if value is not None and reestimate is None:
            raise DataError(name, "must be given with --reestimate")
    if not chips and (remap or drop or reestimate):
        option = "--remap" if remap else "--drop" if drop else "--reestimate"
        raise DataError(option, "must have chips that are sampled or given", hint="--chips 1 or more, or --chip MAP")
    chosen = parse_steps(steps, without_steps)
    loaded = load(program)
    given = chip_to_run_on(chip, chips, loaded.spec)
    if not remap:
        note_other_chip(loaded, given, chips, seed)
    options = CompileOptions(
        predistort=loaded.tables.predistorted, steps=chosen, replicas=replicas or replicas_of(loaded)
    )
    with progress_bar("evaluating", quiet=json) as advance:
        samples = read_samples(loaded, data, advance, split=split, normalize=normalize, limit=limit, seed=seed)
        reading: dict[str, Any] = {
            "split": reestimate_split,
            "normalize": normalize,
            "limit": reestimate_limit or REESTIMATION,
            "learning": True,
        }
        typical = None if reestimate is None else read_samples(loaded, reestimate, advance, seed=seed, **reading)
        report = evaluate(
            loaded,
            samples,
            model=model,
            by_layer=by_layer,
            batch=batch,
            device=device,
            seed=seed,
            chips=chips,
            time=parse_time(time),
            only=parse_names(only),
            without=parse_names(without) or [],
            chip=given,
            remap=remap,
            options=options,
            drop=drop,
            reestimate=typical,
            progress=advance,
        )
    if json:
        emit_json(report.model_dump(mode="json"))
        return
    if given is not None:
        where = "the chip given"
    else:
        where = "an ideal chip" if not chips else "1 chip" if chips == 1 else f"{chips} chips"
    _print(report, f"{where}, spec {loaded.spec.name}", own_failures=loaded.faults is not None and not drop)


def _print(report: "EvalReport", where: str, *, own_failures: bool) -> None:
    unit, several = report.metric.replace("_", " "), len(report.chips) > 1
    if report.by_layer:
        table(["on crossbars", unit], [[layer.layer, f"{layer.value:.2%}"] for layer in report.by_layer])
        say("")
    low, high = report.ci95
    without = "no spread, offsets or noise" if own_failures else "no spread, failures, offsets or noise"
    known = ", and the failures that it was mapped around" if own_failures else ""
    say(f"float    {report.float_:.2%} {unit} ({report.samples} samples)")
    say(f"ideal    {report.ideal:.2%}: {without}{known}")
    spread = f", {report.std:.2%} from chip to chip" if several else ""
    mapped = ", mapped for each" if report.remapped else ""
    say(f"crossbar {report.mean:.2%} (95 % interval {low:.2%} to {high:.2%}{spread}) on {where}{mapped}")
    if several:
        share = "5th" if report.metric == "accuracy" else "95th"
        say(f"chips    worst {report.worst:.2%}, {share} percentile {report.percentile5:.2%}")
    if report.failed_devices:
        say(f"failed   {report.failed_devices:.2%} of the devices, {report.failed_pairs:.2%} of the pairs")
    if report.drop is not None and report.drop_ci95 is not None and report.good_chips is not None:
        good = sum(report.good_chips) / len(report.good_chips)
        low, high = (100 * end for end in report.drop_ci95)
        say(
            f"drop     {100 * report.drop:.2f} points by failures (95 % interval {low:.2f} to {high:.2f}), "
            f"from {good:.2%} on the same chips without them"
        )
    say(f"effects  {', '.join(report.effects) or 'none'}")
    print_errors(TRIM, report.trim)
    print_errors(REESTIMATED, report.reestimated)
    for warning in report.warnings:
        say(f"warning: {warning}")
    for segment, reason in report.onnxruntime_segments.items():
        note(f"digital segment {segment} ran in onnxruntime ({reason})")
