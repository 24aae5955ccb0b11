"""``xbarc eval``."""

from typing import Annotated

import typer

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
    Seed,
    Split,
    Time,
    Without,
    parse_names,
    parse_time,
)
from xbarc.cli.output import emit_json, note, progress_bar, say, table
from xbarc.cli.programming import print_trim
from xbarc.cli.reading import read_samples


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
    time: Time = "0 s",
    only: Only = None,
    without: Without = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure a program's accuracy beside that of its model; without labels, its relative error."""
    from xbarc.api import load
    from xbarc.evaluation import evaluate

    loaded = load(program)
    with progress_bar("evaluating", quiet=json) as advance:
        samples = read_samples(loaded, data, advance, split=split, normalize=normalize, limit=limit, seed=seed)
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
            progress=advance,
        )
    if json:
        emit_json(report.model_dump(mode="json"))
        return
    unit = report.metric.replace("_", " ")
    if by_layer:
        table(["on crossbars", unit], [[layer.layer, f"{layer.value:.2%}"] for layer in report.by_layer])
        say("")
    low, high = report.ci95
    say(f"float    {report.float_:.2%} {unit} ({report.samples} samples)")
    say(f"ideal    {report.ideal:.2%}: no spread, failures, offsets or noise")
    chip_word = "an ideal chip" if not chips else "1 chip" if chips == 1 else f"{chips} chips"
    spread = f", {report.std:.2%} from chip to chip" if chips > 1 else ""
    say(
        f"crossbar {report.mean:.2%} (95 % interval {low:.2%} to {high:.2%}{spread}) on {chip_word}, "
        f"spec {loaded.spec.name}"
    )
    say(f"effects  {', '.join(report.effects) or 'none'}")
    print_trim(report.trim)
    for warning in report.warnings:
        say(f"warning: {warning}")
    for segment, reason in report.onnxruntime_segments.items():
        note(f"digital segment {segment} ran in onnxruntime ({reason})")
