"""``xbarc compile``."""

from pathlib import Path
from typing import Annotated

import typer

from hwspec.errors import DataError
from xbarc.cli.arguments import (
    ArrayBudget,
    ChipSeed,
    CopiesOption,
    Json,
    Limit,
    MappedChip,
    Normalize,
    Predistort,
    Robust,
    Seed,
    ShareArrays,
    ShareWith,
    SpareArrays,
    Split,
    Steps,
    WithoutSteps,
    output_path,
    parse_fields,
    parse_normalize,
    parse_shapes,
)
from xbarc.cli.mapping import (
    arrays_needed,
    chip_to_map_for,
    note_whole_chip,
    parse_copies,
    parse_share,
    parse_steps,
)
from xbarc.cli.output import emit_json, note, progress_bar, say

_LIKE = "Put the model's weights onto this program's tiles, with its scales, ranges and placement."
_STAGES = "Write what each pass did into this folder: models as ONNX, decisions as JSON."
_WITH_LIKE = ("model", "output", "source", "like", "json")
"""Parameters that have an effect with ``--like``."""


def compile_(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="ONNX model.")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="Where to write; default MODEL.xbar.")] = None,
    spec: Annotated[str, typer.Option(help="Preset or spec file; `xbarc spec list` lists presets.")] = "rram-128",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: periphery.adc_bits=6.")] = None,
    calib: Annotated[str | None, typer.Option(help="Typical inputs: .npz, image folder or zip, or digits.")] = None,
    split: Split = None,
    normalize: Normalize = None,
    limit: Limit = 512,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="Shape of an open input: x=1,3,48,192. Repeat for more.")
    ] = None,
    digital: Annotated[list[str] | None, typer.Option(help="Keep this node digital. Repeat for more.")] = None,
    share: ShareWith = None,
    share_arrays: ShareArrays = None,
    predistort: Predistort = True,
    chip: MappedChip = None,
    chip_seed: ChipSeed = None,
    spare_arrays: SpareArrays = 0,
    steps: Steps = None,
    without_steps: WithoutSteps = None,
    replicas: Annotated[
        int, typer.Option(min=1, max=16, help="Tiles that hold each block of a matrix; their results are averaged.")
    ] = 1,
    copies: CopiesOption = None,
    array_budget: ArrayBudget = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Write layers that do not fit together in segments, one after another.")
    ] = False,
    robust: Robust = True,
    fuse_batchnorm: Annotated[bool, typer.Option(help="Fuse batch normalisation into layers.")] = True,
    source: Annotated[bool, typer.Option(help="Keep the model in the program; later verbs need it.")] = True,
    seed: Seed = 0,
    like: Annotated[str | None, typer.Option(metavar="PROGRAM", help=_LIKE)] = None,
    stop_after: Annotated[str | None, typer.Option(help="Last pass to run; no program is written.")] = None,
    save_stages: Annotated[str | None, typer.Option(help=_STAGES)] = None,
    json: Json = False,
) -> None:
    """Compile an ONNX model into a tile program, for any chip or around the failed devices of one."""
    if like is not None:
        _refuse_options_without_effect(context)
        _compile_like(model, like, output, source=source, json=json)
        return
    from compiler.compile import CompileOptions, finish, run_compile
    from compiler.frontend import load_model
    from compiler.mapping import Mapping
    from compiler.stages import make_stages_folder, write_stage
    from hwspec.spec import HardwareSpec
    from xbarc.api import calibration_batches
    from xbarc.cli.summary import print_summary, report_json

    shared = parse_share(share, share_arrays)
    hardware = HardwareSpec.resolve(spec).with_fields(parse_fields(set_ or []))
    options = CompileOptions(
        seed=seed,
        input_shapes=parse_shapes(input_shape or []),
        digital=tuple(digital or ()),
        share_arrays=shared,
        predistort=predistort,
        steps=parse_steps(steps, without_steps),
        robust=robust,
        replicas=replicas,
        copies=parse_copies(copies or []),
        array_budget=array_budget,
        reload=reload,
        fuse_batchnorm=fuse_batchnorm,
        keep_source=source,
    )
    reading = {"split": split, "normalize": parse_normalize(normalize), "limit": limit, "seed": seed}
    batches = calibration_batches(calib, **reading) if calib else None
    loaded = load_model(model)

    def needed() -> int:
        last = "partition" if options.copies == 1 else "duplicate"
        parted = run_compile(loaded, hardware, options, None if last == "partition" else batches, stop_after=last)
        return arrays_needed(parted.mapping, shared)

    written = output or str(Path(model).with_suffix(".xbar"))
    path = output_path(written, keep=model) if stop_after is None else None
    stages = Path(save_stages) if save_stages else None
    if stages is not None:
        make_stages_folder(stages)
    found = chip_to_map_for(chip, chip_seed, spare_arrays, hardware, needed)
    with progress_bar("compiling", quiet=json) as advance:

        def after_each(name: str, mapping: Mapping) -> None:
            advance(f"{name} done", len(mapping.passes), None)
            if stages is not None:
                write_stage(stages, len(mapping.passes), name, mapping)

        outcome = run_compile(
            loaded,
            hardware,
            options,
            batches,
            found,
            progress=lambda done: advance("calibrating", done, None),
            tell=advance,
            stop_after=stop_after,
            after_each=after_each,
        )
    if path is None:
        if json:
            emit_json({"program": None, "stopped_after": stop_after, "seconds": outcome.seconds})
        else:
            say(f"stopped after {stop_after}; passes run: {', '.join(outcome.mapping.passes)}")
        return
    program = finish(outcome, keep_source=options.keep_source)
    program.save(path)
    if json:
        emit_json(report_json(written, program))
        return
    print_summary(program)
    say(f"written to {written} ({sum(outcome.seconds.values()):.1f} s)")
    note_whole_chip(found, program)
    if program.report.warnings:
        note("calibrate with --calib for ranges that fit your data")


def _refuse_options_without_effect(context: typer.Context) -> None:
    """Raise `DataError`, naming the option, for one that was given although ``--like`` leaves it nothing to decide."""
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "")
        if parameter.name not in _WITH_LIKE and given is not None and given.name == "COMMANDLINE":
            hint = "leave it out: that program decides"
            raise DataError(f"{parameter.opts[0]} and --like", "must not be given together", hint=hint)


def _compile_like(model: str, like: str, output: str | None, *, source: bool, json: bool) -> None:
    from compiler.frontend import load_model
    from compiler.like import compile_like
    from xbarc.api import load
    from xbarc.cli.summary import print_summary, report_json

    written = output or str(Path(model).with_suffix(".xbar"))
    for kept in (model, like):
        path = output_path(written, keep=kept)
    program = compile_like(load_model(model), load(like), keep_source=source)
    program.save(path)
    if json:
        emit_json(report_json(written, program))
        return
    print_summary(program)
    say(f"written to {written}")
