"""A model compiled like a program: other weights on its tiles, and all that is no function of the weights as it was."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from compiler.compile import CompileOptions, front_end, options_of, start_mapping
from compiler.frontend import SourceModel
from compiler.mapping import LoweredGraph, MatrixLayer
from compiler.mapping import Mapping as Compilation
from compiler.pipeline import Outcome, run_passes
from hwspec.errors import DataError, ModelError, shown
from runtime.program import TileProgram
from runtime.quantize import WeightCode
from runtime.report import CompileReport
from runtime.rewrite import rewrite
from runtime.tables import Instruction, Loop, Step, TensorInfo

_TOLD_BEFORE = "clipping, and errors by wires and failed devices, are those told of"


def compile_like(source: SourceModel, like: TileProgram, *, keep_source: bool = True) -> TileProgram:
    """The program of a model whose layers are those of another program, on that program's tiles.

    Weights, biases and digital segments are the model's. Grid, placement, orders, signs, scales, input and ADC ranges,
    failed devices, residue and calibration are those of `like`: a weight beyond its column's scale is clipped.

    Parameters
    ----------
    source
        The model; `compiler.tuned.tuned_model` makes one of trained weights.
    like
        The program.
    keep_source
        Whether the program carries the model.

    Raises
    ------
    ModelError
        If the model's layers or inputs are not those of the program.
    ProgramError
        If the program's targets are not those of its weights; see `runtime.rewrite`.
    """
    outcome = _front_end(like, source)
    fresh = outcome.mapping.lowered
    check_same_layers(like, fresh, source.name)
    layers = {layer.name: layer for layer in fresh.layers}
    loops = {loop.layer: loop for loop in like.tables.loops}
    instructions: tuple[Instruction, ...] = tuple(
        _loop(loops[step], layers[step]) if isinstance(step, str) else step for step in fresh.steps
    )
    rewritten = rewrite(
        like,
        {name: layer.weight for name, layer in layers.items()},
        {name: layer.bias for name, layer in layers.items()},
    )
    tables = rewritten.tables.model_copy(
        update={
            "model_name": source.name,
            "model_sha256": source.sha256,
            "inputs": fresh.inputs,
            "outputs": fresh.outputs,
            "buffers": fresh.buffers,
            "layers": tuple(
                row.model_copy(update={"initializer": layers[row.name].initializer}) for row in like.tables.layers
            ),
            "instructions": instructions,
        }
    )
    return dataclasses.replace(
        rewritten,
        tables=tables,
        segments=fresh.segments,
        report=_report(rewritten, fresh, source.name, outcome.seconds),
        source=source.proto.SerializeToString(deterministic=True) if keep_source else None,
    )


def check_options(options: CompileOptions, like: TileProgram) -> None:
    """Refuse options that have no effect on what is compiled like a program, unless they are those of the program.

    Raises
    ------
    DataError
        Naming the option.
    """
    recorded, default = options_of(like), CompileOptions()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name != "keep_source" and value not in (getattr(default, field.name), getattr(recorded, field.name)):
            hint = "leave it out: with like it is the program's"
            raise DataError(f"option {field.name}", "must be that of the program given as like", got=value, hint=hint)


def lower_like(program: TileProgram, source: SourceModel) -> Compilation:
    """The mapping of a model up to the pass `lower`, by the options that a program records."""
    return _front_end(program, source).mapping


def _front_end(program: TileProgram, source: SourceModel) -> Outcome:
    options = options_of(program)
    return run_passes(start_mapping(source, program.spec, options), front_end(options))


def check_same_layers(program: TileProgram, fresh: LoweredGraph, model: str) -> None:
    """Raise `ModelError`, naming the first difference, unless a lowered model has a program's layers and inputs."""
    subject, hint = f"model {model!r}", "compile it without like"
    names, wanted = ([layer.name for layer in layers] for layers in (fresh.layers, program.tables.layers))
    if names != wanted:
        number = next(i for i in range(len(names) + 1) if names[i : i + 1] != wanted[i : i + 1])
        ought, has = (found[number] if number < len(found) else None for found in (wanted, names))
        raise ModelError(subject, f"must have {shown(ought)} as layer {number}, as the program", got=has, hint=hint)
    for layer in fresh.layers:
        for what, one, other in _told(program, layer):
            if one != other:
                requirement = f"must have {what} of the program's, {shown(other)}"
                raise ModelError(f"{subject}: layer {layer.name!r}", requirement, got=one, hint=hint)
    inputs, own = _shapes(fresh.inputs), _shapes(program.tables.inputs)
    if inputs != own:
        raise ModelError(subject, f"must have the program's inputs {shown(own)}", got=inputs, hint=hint)


def _told(program: TileProgram, layer: MatrixLayer) -> Iterator[tuple[str, object, object]]:
    """What a layer must share with that of a program: the name of each part, as it is, and as the program has it."""
    row, weight = program.layers[layer.name], program.weights[layer.name]
    yield "the operator", layer.op, row.op
    yield "the matrices", layer.weight.shape, weight.shape
    yield "the type", str(layer.weight.dtype), str(weight.dtype)
    yield "the gather", layer.gather, program.gathers.get(layer.gather.name)
    yield "the scatter", layer.scatter, program.scatters.get(layer.scatter.name)


def _shapes(inputs: tuple[TensorInfo, ...]) -> list[tuple[object, ...]]:
    """Inputs without the names of open dimensions."""
    return [
        (info.name, info.dtype, tuple(size if isinstance(size, int) else "?" for size in info.shape)) for info in inputs
    ]


def _loop(loop: Loop, layer: MatrixLayer) -> Loop:
    """A loop that reads and writes the buffers of a layer."""

    def moved(step: Step) -> Step:
        buffer = {"load": layer.source, "store": layer.target}.get(step.op)
        return step if buffer is None else step.model_copy(update={"buffer": buffer})

    return loop.model_copy(update={"body": tuple(moved(step) for step in loop.body)})


def _report(program: TileProgram, fresh: LoweredGraph, model: str, seconds: Mapping[str, float]) -> CompileReport:
    """The report of a rewritten program: weights, digital nodes and their counts anew."""
    report = program.report
    counted = {node.node: node for node in report.digital}
    digital = tuple(
        node.model_copy(
            update={
                "macs": counted[node.node].macs if node.macs is None else node.macs,
                "elements": counted[node.node].elements,
            }
        )
        if node.node in counted
        else node
        for node in fresh.digital
    )
    mapped = report.totals.mapped_macs
    totals = {
        "nodes": fresh.nodes,
        "macs": mapped + sum(node.macs or 0 for node in digital),
        "constant_weight_macs": mapped + sum(node.macs or 0 for node in digital if node.constant_weight),
    }
    warnings = [text for text in report.warnings if not text.startswith(_TOLD_BEFORE)]
    return report.model_copy(
        update={
            "model": model,
            "layers": tuple(
                layer.model_copy(update={"weight_error": _weight_error(program, layer.name)}) for layer in report.layers
            ),
            "digital": digital,
            "totals": report.totals.model_copy(update=totals),
            "segments": len(fresh.segments),
            "warnings": (*warnings, f"{_TOLD_BEFORE} {report.model!r}"),
            "seconds": dict(seconds),
        }
    )


def _weight_error(program: TileProgram, layer: str) -> float:
    """Relative root-mean-square error of a layer's weights on the levels of its devices."""
    weight, code = program.weights[layer].astype(np.float64), WeightCode.of(program.spec)
    groups, _, cols = weight.shape
    scale = np.ones(groups * cols)
    for tile in program.tables.tiles:
        if tile.layer == layer:
            tensors = program.tile_tensors[tile.name]
            scale[tensors.col_map] = tensors.scale / program.part_weight(tile.name)
    columns = scale.reshape(groups, 1, cols)
    error = np.linalg.norm(code.round(np.clip(weight / columns, -1, 1)) * columns - weight)
    return float(error / (np.linalg.norm(weight) or 1.0))
