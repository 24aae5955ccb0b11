"""Verification of a program against the untouched model (``architecture.md`` section 6)."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from pydantic import BaseModel, ConfigDict, Field

from compiler.compile import CompileOptions, front_end, start_mapping
from compiler.floatmodel import FloatModel
from compiler.frontend import SourceModel, load_model
from compiler.mapping import Mapping as Compilation
from compiler.mapping import MatrixLayer
from compiler.passes.calibrate import random_batches
from compiler.pipeline import run_passes
from hwspec.effects import QUANTISATION, active_effects
from hwspec.errors import DataError
from runtime.check import check_program
from runtime.geometry import copy_windows, gather_vectors, scatter_vectors, window_shape
from runtime.inputs import bind_inputs
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.quantize import Float64, WeightCode, input_codes
from runtime.reference import Conversion, Reference
from xbarc.consistency import number_failures, structure_failures

BOUND = 1e-4
"""Largest error allowed in floating point, in units of an output's largest magnitude."""

_RANDOM_SAMPLES = 2


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OutputCheck(_Record):
    """One output of the model."""

    name: str
    structure_error: float = Field(description="of the program with float weights and ideal converters")
    structure_bound: float
    error: float = Field(description="end to end on an ideal chip, largest difference over largest magnitude")


class LayerCheck(_Record):
    """One mapped layer; errors are in units of what is allowed."""

    name: str
    weight_error: float = Field(description="of decoded weights against the model's: 1 is half a level step")
    output_error: float = Field(description="of the layer's outputs: 1 is the sum of half an lsb over conversions")
    conversions: int
    clipped: int = Field(description="conversions that the ADC clipped")


class VerifyReport(_Record):
    """Outcome of a verification.

    `max_error` is infinite where the program's structure is not the model's: nothing was run then. On a spec without
    quantisation or any other effect it is the end-to-end error in units of an output's largest magnitude. On any other
    it is the worst of the checks on weights, layers and structure, each in units of its own bound, which is 1.
    """

    passed: bool
    max_error: float
    bound: float
    per_output: tuple[OutputCheck, ...]
    layers: tuple[LayerCheck, ...]
    failures: tuple[str, ...] = Field(description="what does not hold, a sentence each")


def verify_program(
    program: TileProgram,
    model: str | Path | bytes | onnx.ModelProto | None = None,
    inputs: Mapping[str, Any] | npt.NDArray[Any] | None = None,
    *,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> VerifyReport:
    """Compare a program with the untouched model.

    Checked are: everything that is not a number (layers, geometry, order, digital segments) against a fresh lowering;
    biases, scales and converter ranges against the weights and the calibration record; decoded weights within half a
    level step (or, where they undo wires or make up for failed devices, targets, biases and residue equal to what those
    passes give); each layer, fed the model's own
    inputs, against the exact product of quantised inputs and decoded weights, within half an lsb for every conversion
    (and by how much a current exceeds its ADC's range); the program with float weights and ideal converters against
    onnxruntime end to end. Devices, wires and readouts are ideal: what they do is no error of the program.

    Parameters
    ----------
    program
        The program.
    model
        The model as given to the compiler; None takes the one in the program.
    inputs
        Inputs to run; None makes up random ones.
    seed
        Of random inputs; None takes the program's own.
    progress
        Called with what runs, layers done, and layers in all.

    Raises
    ------
    ProgramError
        If the program is unsound.
    DataError
        If the program carries no model and none is given, or the inputs do not fit.
    """
    check_program(program)
    source = _source(program, model)
    tables = program.tables
    options = CompileOptions(
        seed=tables.seed,
        input_shapes=tables.input_shapes,
        digital=tables.digital_nodes,
        fuse_batchnorm=tables.fuse_batchnorm,
    )
    fresh = run_passes(start_mapping(source, program.spec, options), front_end(options)).mapping
    failures = structure_failures(program, source, fresh.lowered)
    if failures:  # running such a program says nothing, and need not even be possible
        return VerifyReport(
            passed=False, max_error=float("inf"), bound=BOUND, per_output=(), layers=(), failures=tuple(failures)
        )
    failures += number_failures(program, fresh.lowered)
    batches = [inputs] if inputs is not None else _random_inputs(program, tables.seed if seed is None else seed)
    feeds = [bind_inputs(tables.inputs, batch) for batch in batches]
    layers = tuple(_check_layers(program, fresh, feeds, progress))
    mapped = program.faults is not None
    moved = mapped or tables.predistorted  # then targets are not the weights' own, and were compared one by one
    ideal = program.spec.device.levels is None and not active_effects(program.spec) and not mapped
    outputs = tuple(_check_outputs(program, source, feeds, ideal=ideal))
    for layer in layers:
        if not layer.weight_error <= 1 and not moved:
            failures.append(f"layer {layer.name!r} does not hold the model's weights ({layer.weight_error:.3g} bounds)")
        if not layer.output_error <= 1:
            failures.append(f"layer {layer.name!r} does not compute its product ({layer.output_error:.3g} bounds)")
    for output in outputs:
        error = output.error if ideal else output.structure_error
        if not error <= output.structure_bound:
            failures.append(f"output {output.name!r} differs by {error:.3g} of its largest magnitude")
    if ideal:
        worst = max((output.error for output in outputs), default=0.0)
        bound = max((output.structure_bound for output in outputs), default=BOUND)
    else:
        ratios = [layer.output_error for layer in layers]
        if not moved:
            ratios += [layer.weight_error for layer in layers]
        worst, bound = max([*ratios, *(o.structure_error / o.structure_bound for o in outputs)], default=0.0), 1.0
    return VerifyReport(
        passed=not failures,
        max_error=worst,
        bound=bound,
        per_output=outputs,
        layers=layers,
        failures=tuple(failures),
    )


def _random_inputs(program: TileProgram, seed: int) -> list[Mapping[str, Any]]:
    try:
        return [feeds for feeds, _ in islice(random_batches(program.tables.inputs, seed), _RANDOM_SAMPLES)]
    except DataError as error:
        raise DataError(error.subject, error.requirement, hint="give inputs to verify with (--data)") from None


def _source(program: TileProgram, model: str | Path | bytes | onnx.ModelProto | None) -> SourceModel:
    if model is not None:
        return load_model(model)
    if program.source is None:
        raise DataError("program", "carries no model to verify against", hint="give it with --model model.onnx")
    return load_model(program.source)


def _check_layers(
    program: TileProgram,
    fresh: Compilation,
    feeds: list[dict[str, Any]],
    progress: Callable[[str, int, int], None] | None,
) -> list[LayerCheck]:
    assert fresh.float_model is not None
    sources = {layer.source for layer in fresh.layers}
    opened = FloatModel(fresh.float_model, sources)
    values = [opened.run(batch, sources - set(batch)) | batch for batch in feeds]
    chip = program_chip(program, effects=QUANTISATION | {"failures"})
    loops = {loop.layer: loop for loop in program.tables.loops}
    checks = []
    for layer in fresh.layers:
        # The chip has no effects but these.
        decoded = [
            program.decoded_weights(layer.name, r_access=0.0, copy=number)
            for number in range(program.layers[layer.name].copies)
        ]
        worst, conversions, clipped = 0.0, 0, 0
        for batch in values:
            watch = _Watch(program, prod(window_shape(layer.gather, batch[layer.source].shape)))
            buffers = {layer.source: batch[layer.source]}
            Reference(chip, watch).loop(loops[layer.name], buffers)
            ratio = _layer_error(program, layer, decoded, batch[layer.source], buffers[layer.target], watch)
            worst, conversions, clipped = max(worst, ratio), conversions + watch.conversions, clipped + watch.clipped
        checks.append(
            LayerCheck(
                name=layer.name,
                weight_error=max(_weight_error(program, layer, one) for one in decoded),
                output_error=worst,
                conversions=conversions,
                clipped=clipped,
            )
        )
        if progress:
            progress("verifying", len(checks), len(fresh.layers))
    return checks


def _weight_error(program: TileProgram, layer: MatrixLayer, decoded: Float64) -> float:
    """Largest error of a decoded weight in units of half a level step of its column (of rounding, without levels)."""
    weight = layer.weight.astype(np.float64)
    scale, code = np.zeros(program.layers[layer.name].groups * weight.shape[2]), WeightCode.of(program.spec)
    for tile in program.tables.tiles:
        if tile.layer == layer.name:
            tensors = program.tile_tensors[tile.name]
            scale[tensors.col_map] = tensors.scale / program.part_weight(tile.name)
    columns = scale.reshape(weight.shape[0], 1, weight.shape[2])
    # Without levels what remains is the rounding of siemens near g_min.
    step = np.maximum(code.half_gap(np.clip(weight / columns, -1, 1)), 1e-9)
    return float((np.abs(decoded - weight) / (columns * step * (1 + 1e-9))).max())


class _Watch:
    """Adds up what each conversion of a loop may be wrong by, in units of the result."""

    def __init__(self, program: TileProgram, windows: int) -> None:
        self._program, self._windows = program, windows
        self.allowed: Float64 = np.zeros((1, 1))
        self.conversions = self.clipped = 0

    def __call__(self, conversion: Conversion) -> None:
        program = self._program
        layer, tile = program.layers[conversion.layer], program.tiles[conversion.tile]
        tensors = program.tile_tensors[tile.name]
        if self.allowed.shape == (1, 1):
            self.allowed = np.zeros((self._windows, layer.groups * layer.cols))
        if conversion.adc is None:
            return
        adc, lsbs = conversion.adc, conversion.current / conversion.adc.lsb
        self.conversions += lsbs.size
        excess = np.maximum(lsbs - adc.high, adc.low - lsbs)
        self.clipped += int((excess > 0.5).sum())
        unit = layer.full_scale / (program.spec.weight_span * program.spec.periphery.v_read) * abs(conversion.weight)
        at, unit = np.ix_(conversion.windows, tensors.col_map), adc.lsb * unit
        self.allowed[at] += np.maximum(0.5, excess) * (unit * tensors.scale * tensors.gain)


def _layer_error(
    program: TileProgram,
    layer: MatrixLayer,
    decoded: list[Float64],
    x: npt.NDArray[Any],
    got: npt.NDArray[Any],
    watch: _Watch,
) -> float:
    """Largest error of a layer's outputs, in units of what its conversions allow."""
    table = program.layers[layer.name]
    vectors = gather_vectors(layer.gather, x).astype(np.float64)
    code_max = program.spec.periphery.input_code_max(table.signed)
    codes = input_codes(vectors, table.full_scale, code_max, table.signed) * (table.full_scale / (code_max or 1))
    grouped = codes.reshape(len(codes), table.groups, table.rows)
    shape = window_shape(layer.gather, x.shape)
    exact, size = np.zeros((2, len(codes), table.groups * table.cols))
    for number, (windows, held) in enumerate(zip(copy_windows(shape, table.copies), decoded, strict=True)):
        vectors_of, shift = grouped[windows], program.copy_shift(layer.name, number)
        product = np.einsum("wgk,gkn->wgn", vectors_of, held, optimize=True).reshape(len(windows), -1)
        exact[windows] = product if shift is None else product + shift
        size[windows] = np.einsum("wgk,gkn->wgn", np.abs(vectors_of), np.abs(held), optimize=True).reshape(
            len(windows), -1
        )
    none = np.zeros_like(layer.bias)
    with np.errstate(over="ignore"):  # what the buffer's type does not hold is infinite there, and is meant to be
        expected = (
            scatter_vectors(layer.scatter, exact, shape, program.bias(layer.name)).astype(got.dtype).astype(np.float64)
        )
    allowed = scatter_vectors(layer.scatter, watch.allowed + 1e-9 * size, shape, none)
    # Writing a result into its buffer rounds it to the buffer's type.
    allowed = allowed + np.finfo(got.dtype).eps * (np.abs(expected) + allowed) + np.finfo(got.dtype).tiny
    with np.errstate(invalid="ignore"):
        error = np.where(got == expected, 0.0, np.abs(got - expected))
        return float((error / allowed).max())


def _check_outputs(
    program: TileProgram, source: SourceModel, feeds: list[dict[str, Any]], *, ideal: bool
) -> Iterator[OutputCheck]:
    """Each output on the batch of inputs where it comes closest to its bound, or lies furthest beyond it."""
    kept = [(number, info.name) for number, info in enumerate(program.tables.outputs) if info.dtype != "other"]
    names = [name for _, name in kept]
    exact = Reference(program_chip(program, exact_layers=program.layers))
    real = Reference(program_chip(program))
    plain, fused = FloatModel(source.proto), FloatModel(source.proto, optimize=True)
    inputs = {argument.name for argument in source.proto.graph.input}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for batch in feeds:
        given = {name: value for name, value in batch.items() if name in inputs}
        truth, other = plain.run(given, names), fused.run(given, names)
        results = exact(batch), real(batch)
        for number, name in kept:
            size = _largest(truth[name])
            structure, error = (_difference(result[number], truth[name]) / size for result in results)
            # Where onnxruntime's own rounding moves an output further than the bound, no program can be held to it.
            bound = max(BOUND, 2 * _difference(other[name], truth[name]) / size)
            found[name].append((structure, bound, error))
    for name, checks in found.items():
        structure, bound, error = max(checks, key=lambda check: _rank(check[2] if ideal else check[0], check[1]))
        errors = [check[2] for check in checks]
        worst = error if ideal else max(errors, key=lambda one: _rank(one, 1.0))
        yield OutputCheck(name=name, structure_error=structure, structure_bound=bound, error=worst)


def _rank(error: float, bound: float) -> float:
    """Order of errors in units of their bounds; what is no number is worse than all."""
    ratio = error / bound
    return float("inf") if ratio != ratio else ratio


def _largest(value: npt.NDArray[Any]) -> float:
    """Largest finite magnitude of an output; 1 where it has none."""
    if value.dtype.kind not in "fiub":
        return 1.0
    magnitudes = np.abs(value.astype(np.float64))
    return float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0)) or 1.0


def _difference(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(got, wanted) else float("inf")
    with np.errstate(invalid="ignore"):  # equal infinities are told below
        difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    equal = (got == wanted) | (np.isnan(difference) & (np.isnan(got) == np.isnan(wanted)))
    return float(np.where(equal, 0.0, difference).max(initial=0.0))
