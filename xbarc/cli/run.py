"""``xbarc run``."""

import dataclasses
import functools
import time as clock
from enum import StrEnum
from typing import Annotated

import typer

from xbarc.cli.arguments import (
    BatchSize,
    Chips,
    Device,
    Json,
    Limit,
    Normalize,
    Only,
    ProgramPath,
    RunChip,
    Seed,
    Split,
    Time,
    Without,
    output_path,
    parse_names,
    parse_time,
)
from xbarc.cli.mapping import chip_to_run_on, note_other_chip
from xbarc.cli.output import emit_json, note, progress_bar, say
from xbarc.cli.programming import print_programming
from xbarc.cli.reading import read_samples
from xbarc.quantities import engineering


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
    chips: Chips = 1,
    chip: RunChip = None,
    time: Time = "0 s",
    only: Only = None,
    without: Without = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run a program as a chip would, and write its outputs; of several chips along a leading axis."""
    import numpy as np

    from hwspec.atomic import write_atomically
    from hwspec.chip import Chip
    from hwspec.effects import chosen_effects
    from runtime.timing import schedule
    from xbarc.api import load, simulate
    from xbarc.data.batches import run_batches
    from xbarc.evaluation import effect_warnings

    seconds_after, kept, off = parse_time(time), parse_names(only), parse_names(without) or []
    loaded = load(program)
    given = chip_to_run_on(chip, chips, loaded.spec)
    note_other_chip(loaded, given, chips, seed)
    path = output_path(output, keep=data)
    infos, outputs = loaded.tables.inputs, loaded.tables.outputs
    with progress_bar("running", quiet=json) as advance:
        samples = read_samples(loaded, data, advance, split=split, normalize=normalize, limit=limit, seed=seed)
        joined: list[dict[str, tuple[np.ndarray, int | None]]] = []
        seconds = programming = 0.0
        for number in range(max(chips, 1)):
            start = clock.perf_counter()
            on = given if given is not None or not chips else Chip.sample(loaded.spec, loaded.arrays, seed + number)
            simulation = simulate(
                loaded,
                on,
                device=device,
                engine=engine.value,
                seed=seed + number,
                time=seconds_after,
                only=kept,
                without=off,
            )
            middle = clock.perf_counter()
            label = "running" if chips <= 1 else f"chip {number + 1} of {chips}"
            joined.append(run_batches(simulation, samples, batch, infos, outputs, functools.partial(advance, label)))
            programming += middle - start
            seconds += clock.perf_counter() - middle
    # onnxruntime gives texts as Python objects, which a file without pickle does not hold.
    arrays = {
        name: np.stack([found[name][0] for found in joined]) if chips > 1 else value
        for name, (value, _) in joined[0].items()
    }
    arrays = {name: value.astype(str) if value.dtype == object else value for name, value in arrays.items()}
    report, planned = simulation.chip.report, schedule(simulation.chip.program)
    for info in outputs:
        if info.name not in arrays:
            note(f"output {info.name!r} is no tensor and is left out")
    write_atomically(path, lambda stream: np.savez(stream, allow_pickle=False, **arrays))
    if json:
        emit_json(
            {
                "outputs": output,
                "seconds": seconds,
                "programming_seconds": programming,
                "samples": len(samples),
                "engine": engine.value,
                "chips": chips,
                "chip": chip,
                "seed": seed,
                "time": seconds_after,
                "hardware": {"latency": planned.latency, "interval": planned.interval},
                "programming": dataclasses.asdict(report),
            }
        )
        return
    for name, values in arrays.items():
        say(f"{name}  {values.dtype} {'x'.join(map(str, values.shape))}")
    print_programming(report)
    say(
        f"hardware    {engineering(planned.latency, 's')} a sample, a new one every "
        f"{engineering(planned.interval, 's')} (xbarc report)"
    )
    say(f"{len(samples)} samples in {seconds:.2f} s, written to {output}")
    for warning in effect_warnings(loaded, chosen_effects(kept, off)):
        note(f"warning: {warning}")
    for segment, reason in simulation.host_reasons.items():
        note(f"digital segment {segment} ran in onnxruntime ({reason})")
