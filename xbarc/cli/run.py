"""``xbarc run``."""

import time
from enum import StrEnum
from typing import Annotated

import typer

from xbarc.cli.arguments import (
    BatchSize,
    Device,
    Json,
    Limit,
    Normalize,
    ProgramPath,
    Seed,
    Split,
    output_path,
)
from xbarc.cli.output import emit_json, note, progress_bar, say
from xbarc.cli.reading import read_samples


class EngineName(StrEnum):
    """What runs the program."""

    torch = "torch"
    reference = "reference"


def run(
    program: ProgramPath,
    data: Annotated[str, typer.Option(help="Inputs: .npz with the model's input names, images, or digits.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Where to write the outputs (.npz).")],
    engine: Annotated[EngineName, typer.Option(help="torch, or the numpy reference.")] = EngineName.torch,
    split: Split = None,
    normalize: Normalize = None,
    limit: Limit = None,
    batch: BatchSize = 64,
    device: Device = "cpu",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run a program as the chip would, and write its outputs."""
    import numpy as np

    from runtime.archive import write_atomically
    from xbarc.api import load, simulate
    from xbarc.data.batches import run_batches

    loaded = load(program)
    path = output_path(output, keep=data)
    infos, outputs = loaded.tables.inputs, loaded.tables.outputs
    with progress_bar("running", quiet=json) as advance:
        samples = read_samples(loaded, data, advance, split=split, normalize=normalize, limit=limit, seed=seed)
        simulation = simulate(loaded, device=device, engine=engine.value, seed=seed)
        start = time.perf_counter()
        joined = run_batches(
            simulation, samples, batch, infos, outputs, lambda done, total: advance("running", done, total)
        )
        seconds = time.perf_counter() - start
    # onnxruntime gives texts as Python objects, which a file without pickle does not hold.
    arrays = {name: value.astype(str) if value.dtype == object else value for name, (value, _) in joined.items()}
    for info in outputs:
        if info.name not in arrays:
            note(f"output {info.name!r} is no tensor and is left out")
    write_atomically(path, lambda stream: np.savez(stream, allow_pickle=False, **arrays))
    if json:
        emit_json({"outputs": output, "seconds": seconds, "samples": len(samples), "engine": engine.value})
        return
    for name, values in arrays.items():
        say(f"{name}  {values.dtype} {'x'.join(map(str, values.shape))}")
    say(f"{len(samples)} samples in {seconds:.2f} s, written to {output}")
    for segment, reason in simulation.host_reasons.items():
        note(f"digital segment {segment} ran in onnxruntime ({reason})")
