"""``xbarc verify``."""

from typing import Annotated

import typer

from xbarc.cli.arguments import Json, Limit, ModelPath, Normalize, ProgramPath, Seed, Split
from xbarc.cli.output import emit_json, progress_bar, say, table
from xbarc.cli.reading import read_samples


def verify(
    program: ProgramPath,
    model: ModelPath = None,
    data: Annotated[str | None, typer.Option(help="Inputs to run; default: random ones.")] = None,
    split: Split = None,
    normalize: Normalize = None,
    limit: Limit = 4,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare a program with the untouched ONNX model; exits with 1 when it does not hold."""
    from xbarc.api import load
    from xbarc.verification import verify_program

    loaded = load(program)
    inputs = None
    with progress_bar("verifying", quiet=json) as advance:
        if data is not None:
            samples = read_samples(loaded, data, advance, split=split, normalize=normalize, limit=limit, seed=seed)
            inputs = next(samples.batches(max(len(samples), 1)))
        report = verify_program(loaded, model, inputs, seed=seed, progress=advance)
    if json:
        dumped = report.model_dump(mode="json")
        emit_json({"outputs": dumped.pop("per_output"), **dumped})
    else:
        rows = [
            [
                layer.name,
                f"{layer.weight_error:.3f}",
                f"{layer.output_error:.3f}",
                f"{layer.conversions:,}",
                f"{layer.clipped:,}",
            ]
            for layer in report.layers
        ]
        table(["layer", "weights (of half a step)", "outputs (of half an lsb)", "conversions", "clipped"], rows)
        say("")
        for output in report.per_output:
            say(
                f"output {output.name}: {output.structure_error:.1e} with float weights "
                f"(bound {output.structure_bound:.0e}), {output.error:.1e} on {loaded.spec.name}, "
                "in units of its largest magnitude"
            )
        for failure in report.failures:
            say(f"FAILED: {failure}")
        say("verified" if report.passed else "verification failed")
    if not report.passed:
        raise typer.Exit(1)
