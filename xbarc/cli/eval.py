"""``xbarc eval``."""

from typing import Annotated

import typer

from xbarc.cli.arguments import (
    BatchSize,
    Device,
    Json,
    Limit,
    ModelPath,
    Normalize,
    ProgramPath,
    Seed,
    Split,
)
from xbarc.cli.output import emit_json, note, progress_bar, say, table
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
    say(f"crossbar {report.mean:.2%} (95 % interval {low:.2%} to {high:.2%} over samples), spec {loaded.spec.name}")
    for warning in report.warnings:
        say(f"warning: {warning}")
    for segment, reason in report.onnxruntime_segments.items():
        note(f"digital segment {segment} ran in onnxruntime ({reason})")
