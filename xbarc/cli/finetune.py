"""``xbarc finetune``."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwspec.errors import DataError
from xbarc.cli.arguments import (
    ChipSeed,
    Device,
    Json,
    Limit,
    MappedChip,
    ModelPath,
    Normalize,
    Only,
    ProgramPath,
    Seed,
    Split,
    Without,
    output_path,
    parse_names,
)
from xbarc.cli.guards import check_apart, same_samples
from xbarc.cli.mapping import chip_to_map_for
from xbarc.cli.output import emit_json, note, progress_bar, say
from xbarc.cli.reading import read_samples

if TYPE_CHECKING:
    from runtime.augmentation import Augmentation
    from xbarc.eval_report import EvalReport

_Text = str | None
_EVALUATED = 5


def finetune_(
    program: ProgramPath,
    data: Annotated[str, typer.Option(help="What to learn from: .npz, image folder or zip, or digits.")],
    output: Annotated[_Text, typer.Option("-o", "--output", help="Tuned program; default PROGRAM-tuned.xbar.")] = None,
    onnx: Annotated[_Text, typer.Option(help="Tuned ONNX model; default beside the program, .onnx.")] = None,
    mode: Annotated[str, typer.Option(help="agnostic: for chips never seen; aware: for one chip.")] = "agnostic",
    chip: MappedChip = None,
    chip_seed: ChipSeed = None,
    split: Split = None,
    normalize: Normalize = None,
    limit: Limit = None,
    test: Annotated[_Text, typer.Option(help="Data to evaluate on; default: samples held out.")] = None,
    test_split: Annotated[_Text, typer.Option(help="Split of the data to evaluate on.")] = None,
    chips: Annotated[int, typer.Option(min=0, help="Chips to evaluate on, before and after; 0 leaves it out.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Times that all samples are seen.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    schedule: Annotated[str, typer.Option(help="Of the learning rate: cosine, linear or constant.")] = "cosine",
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the learning rate rises.")] = 0.05,
    average: Annotated[float, typer.Option(help="Decay a step of the moving average that is kept; 0: none.")] = 0.99,
    distill: Annotated[
        float | None, typer.Option(help="Share of the loss that the teacher gives; default: 1 without labels, else 0.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of distillation.")] = 2.0,
    teacher: Annotated[_Text, typer.Option(help="ONNX model to distil from; default: the program's own.")] = None,
    distance: Annotated[
        str,
        typer.Option(help="Distillation compares by: auto, divergence (of classes), squared (error)."),
    ] = "auto",
    smoothing: Annotated[float, typer.Option(help="Share of each label spread over all classes.")] = 0.0,
    rates: Annotated[
        str, typer.Option(help="FROM,TO: each step multiplies the rates of failures by a number drawn from these.")
    ] = "1,1",
    ramp: Annotated[float, typer.Option(help="Epochs over which the rates rise to that.")] = 0.0,
    resample: Annotated[int, typer.Option(min=1, help="Steps that share a chip.")] = 1,
    clip: Annotated[
        float | None, typer.Option(help="Full scale of columns, in standard deviations of their weights, at most.")
    ] = None,
    max_norm: Annotated[float, typer.Option(help="Longest gradient.")] = 5.0,
    wires: Annotated[str, typer.Option(help="Wires in training: spec (as it says) or closed_form (fast).")] = "spec",
    refresh: Annotated[int, typer.Option(min=0, help="With closed_form: one step in so many on exact wires.")] = 0,
    validation: Annotated[float, typer.Option(help="Samples held out: a number, or a share below 1.")] = 0.1,
    validation_chips: Annotated[int, typer.Option(min=1, help="Chips held out.")] = 2,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without progress before it stops.")] = 1_000_000,
    augment: Annotated[_Text, typer.Option(help="Random changes of images: crop=4,flip,erase=8,shift=2.")] = None,
    ranges: Annotated[bool, typer.Option("--ranges", help="Set converter ranges anew by the tuned model.")] = False,
    only: Only = None,
    without: Without = None,
    model: ModelPath = None,
    start: Annotated[
        _Text, typer.Option(help="Checkpoint of an earlier run, whose best weights this one begins with.")
    ] = None,
    checkpoint: Annotated[_Text, typer.Option(help="File that a killed run goes on from.")] = None,
    metrics: Annotated[_Text, typer.Option(help="A row an epoch: .csv or .json.")] = None,
    tensorboard: Annotated[_Text, typer.Option(help="Folder of logs for TensorBoard.")] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a program's weights on the chips that it runs on, and compile the tuned model onto the same tiles."""
    from runtime.processes_torch import is_first
    from runtime.tuning import TuneOptions
    from xbarc.api import load
    from xbarc.data.load import BUILT_IN
    from xbarc.evaluation import evaluate
    from xbarc.finetuning import finetune, held_out, is_model_of

    written = output or str(Path(program).with_name(f"{Path(program).stem}-tuned.xbar"))
    onnx_written = onnx or str(Path(written).with_suffix(".onnx"))
    path, onnx_path = output_path(written, keep=program), output_path(onnx_written, keep=model)
    if onnx_path.resolve() in (path.resolve(), Path(program).resolve()):
        raise DataError(f"output {onnx_path}", "must be another file than the program", hint="name it with --onnx")
    outputs = {"-o": written, "--onnx": onnx_written, "--checkpoint": checkpoint, "--metrics": metrics}
    check_apart(outputs, (program, data, test, model, teacher, chip, start))
    if test_split is not None and test is None:
        raise DataError("--test-split", "must be given with --test")
    if test is not None and same_samples(data, split, test, test_split, BUILT_IN):
        hint = "leave it out to evaluate on samples held out"
        raise DataError("--test", "must be other data than what is learnt from", got=test, hint=hint)
    options = TuneOptions(
        epochs=epochs,
        batch=batch,
        learning_rate=lr,
        weight_decay=weight_decay,
        schedule=schedule,  # type: ignore[arg-type]  # checked there
        warmup=warmup,
        average=average,
        distill=distill,
        temperature=temperature,
        distance=distance,  # type: ignore[arg-type]
        smoothing=smoothing,
        rates=_pair(rates),
        ramp=ramp,
        resample=resample,
        clip=clip,
        limit=max_norm,
        wires=wires,  # type: ignore[arg-type]
        refresh=refresh,
        validation=validation,
        validation_chips=validation_chips,
        patience=patience,
        augmentation=parse_augmentation(augment),
    )
    loaded = load(program)
    for option, written_to in outputs.items():
        if written_to is not None and option != "--checkpoint" and is_model_of(loaded, Path(written_to)):
            hint = f"name another file with {option}"
            raise DataError(f"output {written_to}", "is the model that the program was compiled from", hint=hint)
    given = chip_to_map_for(chip, chip_seed, 0, loaded.spec, lambda: loaded.arrays)
    at = given or (loaded.nominal_chip if mode == "aware" and loaded.faults is not None else None)
    effects: dict[str, Any] = {"only": parse_names(only), "without": parse_names(without) or []}
    with progress_bar("fine-tuning", quiet=json) as advance:
        reading: dict[str, Any] = {"normalize": normalize, "seed": seed}
        samples = read_samples(loaded, data, advance, split=split, limit=limit, learning=True, **reading)
        judged = samples.take(held_out(samples, options, seed))
        if test is not None:
            judged = read_samples(loaded, test, advance, split=test_split, limit=None, **reading)

        def measured(what: str, one: Any) -> "EvalReport | None":
            if not chips or not len(judged):
                return None

            def told(name: str, done: int, total: int) -> None:
                advance(f"{what}: {name}", done, total)

            place: dict[str, Any] = {"device": device, "seed": seed, "chips": chips, "chip": at}
            return evaluate(one, judged, model=model, progress=told, **place, **effects)

        before = measured("before", loaded)
        result = finetune(
            loaded,
            samples,
            mode,  # type: ignore[arg-type]
            chip=given,
            model=model,
            teacher=teacher,
            options=options,
            ranges=ranges,
            seed=seed,
            device=device,
            start=start,
            checkpoint=checkpoint,
            metrics=metrics,
            tensorboard=tensorboard,
            progress=advance,
            **effects,
        )
        after = measured("after", result.program)
    if test is not None and not chips:
        note("--chips 0 leaves out the evaluation that --test is for")
    if chips and not len(judged):
        note("no samples are held out, so the program is evaluated neither before nor after: give --test")
    if not is_first():  # of several processes that hold the same
        return
    result.program.save(path, {onnx_path: result.model.SerializeToString(deterministic=True)})
    seconds = sum(row.seconds for row in result.history)
    if json:
        reports = {"before": before, "after": after}
        emit_json(
            {
                "program": written,
                "model": str(onnx_path),
                **{name: one and one.model_dump(mode="json") for name, one in reports.items()},
                "epochs": len(result.history),
                "seconds": seconds,
                "best_epoch": result.best_epoch,
                "history": [dataclasses.asdict(row) for row in result.history],
                "notes": result.notes,
            }
        )
        return
    for told in result.notes:
        note(told)
    for row in result.history:
        accuracy = "" if row.accuracy is None else f", accuracy {row.accuracy:.2%}"
        held = "" if row.validation_loss is None else f", held out {row.validation_loss:.4f}"
        say(f"epoch {row.epoch}: loss {row.loss:.4f}{held}{accuracy} ({row.seconds:.0f} s)")
    for name, report in (("before", before), ("after", after)):
        if report is not None:
            low, high = report.ci95
            unit = report.metric.replace("_", " ")
            say(f"{name:6} {report.mean:.2%} {unit} (95 % interval {low:.2%} to {high:.2%}), ideal {report.ideal:.2%}")
    say(f"kept the weights of epoch {result.best_epoch}; written to {written} and {onnx_path} ({seconds:.1f} s)")


def _pair(text: str) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in text.split(","))
    except ValueError:
        raise DataError("--rates", "must be FROM,TO", got=text) from None
    return low, high


def parse_augmentation(text: str | None) -> "Augmentation":
    """Read ``crop=4,flip,erase=8``."""
    from runtime.augmentation import Augmentation

    known: dict[str, Any] = {name: type(value) for name, value in dataclasses.asdict(Augmentation()).items()}
    values: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        name, separator, value = part.strip().partition("=")
        if name not in known:
            raise DataError("--augment", f"must be made of {', '.join(known)}", got=part.strip())
        flag = known[name] is bool
        try:
            if flag == bool(separator):
                raise ValueError
            values[name] = flag or known[name](value)
        except ValueError:
            raise DataError(
                "--augment", f"must be given as {name if flag else f'{name}=4'}", got=part.strip()
            ) from None
    return Augmentation(**values)
