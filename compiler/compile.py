"""From a model to a tile program: the passes of a compilation, and the remapping of a program."""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Mapping as Table
from dataclasses import dataclass, field

import numpy as np
import onnx

from compiler.frontend import SourceModel
from compiler.mapping import LayerStatistics, LoweredGraph, Mapping, MatrixLayer, Placement, QuantizedLayer, TileGrid
from compiler.packing import Share, chosen_share
from compiler.passes.assign import Assign
from compiler.passes.calibrate import Batches, Calibrate
from compiler.passes.clean import Clean
from compiler.passes.duplicate import Copies, Duplicate
from compiler.passes.emit import CALIBRATION, emit
from compiler.passes.lower import Lower
from compiler.passes.partition import Partition
from compiler.passes.place import Place
from compiler.passes.predistort import Predistort
from compiler.passes.quantize import Quantize, quantize_layer
from compiler.passes.ranges import Ranges
from compiler.pipeline import Outcome, Pass, run_passes
from compiler.report import build_report
from compiler.steps import ALL, STEPS, chosen_steps
from hwspec.chip import Chip
from hwspec.errors import DataError, ModelError
from hwspec.reach import isolation
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.quantize import WeightCode, is_off
from runtime.tables import MOST_COPIES, Layer, Loop

MOST_REPLICAS = 16


@dataclass(frozen=True)
class CompileOptions:
    """Options of a compilation.

    Attributes
    ----------
    seed
        For random calibration inputs and the choice of calibration vectors.
    input_shapes
        Shapes of inputs that the model leaves open.
    digital
        Nodes to keep digital.
    share_arrays
        Which small tiles share arrays: ``"none"``, those of a layer with the same ``"inputs"``, those of one
        ``"layer"``, or those of ``"all"`` layers. True and False stand for ``"layer"`` and ``"none"``.
    predistort
        Whether targets undo the resistance of wires.
    steps
        Of mapping around the failed devices of a chip (`compiler.steps.STEPS`).
    robust
        Whether pairs are raised together where only the rates of failures are known.
    replicas
        Tiles that hold each block of a matrix; their results are averaged.
    copies
        Of matrices, which share out the windows of a sample: of every layer that has windows for them, of layers by
        name, or ``"balance"`` for as many as make the pipeline fastest within a budget.
    array_budget
        Physical arrays for that, or for `reload`; None takes the chip's (`chip.tiles`).
    reload
        Whether layers that do not fit together are written one segment after another.
    fuse_batchnorm
        Whether batch normalisation is fused into the layer before it.
    keep_source
        Whether the program carries the model as given.
    """

    seed: int = 0
    input_shapes: Table[str, tuple[int, ...]] = field(default_factory=dict)
    digital: tuple[str, ...] = ()
    share_arrays: Share | bool = "layer"
    predistort: bool = True
    steps: frozenset[str] = ALL
    robust: bool = True
    replicas: int = 1
    copies: Copies = 1
    array_budget: int | None = None
    reload: bool = False
    fuse_batchnorm: bool = True
    keep_source: bool = True

    def __post_init__(self) -> None:
        """Refuse a seed that no generator takes, and choices that do not exist."""
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise DataError("seed", "must be an integer from 0 up", got=self.seed)
        if not isinstance(self.replicas, int) or not 1 <= self.replicas <= MOST_REPLICAS:
            raise DataError("replicas", f"must be a whole number from 1 to {MOST_REPLICAS}", got=self.replicas)
        if isinstance(self.copies, int) and not (1 <= self.copies <= MOST_COPIES and self.copies is not True):
            raise DataError("copies", f"must be a whole number from 1 to {MOST_COPIES}", got=self.copies)
        if isinstance(self.copies, str) and self.copies != "balance":
            raise DataError("copies", "must be numbers, or 'balance'", got=self.copies)
        if self.array_budget is not None and (not (self.copies == "balance" or self.reload) or self.array_budget < 1):
            hint = "give copies='balance' (--copies balance) or reload (--reload), and a budget from 1 up"
            requirement = "is what copies are balanced within, or segments are written to"
            raise DataError("array budget", requirement, got=self.array_budget, hint=hint)
        if self.reload and self.copies == "balance":
            hint = "give numbers of copies (--copies 2), or leave reload out"
            raise DataError("copies", "cannot be balanced where segments are written one after another", hint=hint)
        object.__setattr__(self, "share_arrays", chosen_share(self.share_arrays))
        object.__setattr__(self, "steps", chosen_steps(self.steps))


def options_of(program: TileProgram) -> CompileOptions:
    """The options that a program records; of the others the defaults."""
    tables = program.tables
    return CompileOptions(
        seed=tables.seed,
        input_shapes=tables.input_shapes,
        digital=tables.digital_nodes,
        predistort=tables.predistorted,
        steps=frozenset(tables.mapping_steps),
        robust=tables.robust,
        replicas=max(layer.replicas for layer in tables.layers),
        copies={layer.name: layer.copies for layer in tables.layers if layer.copies > 1} or 1,
        array_budget=tables.reload,
        reload=tables.reload is not None,
        fuse_batchnorm=tables.fuse_batchnorm,
        keep_source=program.source is not None,
    )


def front_end(options: CompileOptions) -> list[Pass]:
    """The passes that turn a model into layers; they do not depend on hardware or data."""
    clean = Clean(input_shapes=dict(options.input_shapes) or None, fuse_batchnorm=options.fuse_batchnorm)
    return [clean, Lower()]


Told = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and how much there is."""


def back_end(options: CompileOptions, tell: Told | None = None) -> list[Pass]:
    """The passes that a remapping runs again."""
    placing, making_up, undoing = (
        None if tell is None else functools.partial(tell, what)
        for what in ("mapping around failures", "making up for failures", "pre-distorting tiles")
    )
    return [
        Place(chosen_share(options.share_arrays), options.steps, options.reload, options.array_budget, placing),
        Assign(options.steps, options.robust, making_up),
        Predistort(options.predistort, undoing),
        Ranges(),
    ]


def start_mapping(
    source: SourceModel, spec: HardwareSpec, options: CompileOptions, chip: Chip | None = None
) -> Mapping:
    """A mapping in which nothing is decided yet, for a chip as its test sees it."""
    mapping = Mapping(
        source=source,
        spec=spec,
        seed=options.seed,
        input_shapes=dict(options.input_shapes),
        digital_nodes=options.digital,
        fuse_batchnorm=options.fuse_batchnorm,
        replicas=options.replicas,
    )
    return for_chip(mapping, chip, options)


def for_chip(mapping: Mapping, chip: Chip | None, options: CompileOptions) -> Mapping:
    """The mapping with what is known of the chip that it is for; None is any chip."""
    if chip is None:
        return dataclasses.replace(
            mapping, faults=None, mapped_for=None, steps=(), robust=options.robust and mapping.spec.failures.at_start
        )
    chip.check_size(mapping.spec)
    faults = chip.as_tested(mapping.spec).faults
    return dataclasses.replace(
        mapping,
        faults=faults,
        mapped_for=None if faults is None else chip.sha256,
        steps=() if faults is None else tuple(step for step in STEPS if step in options.steps),
        robust=False,
    )


def run_compile(
    source: SourceModel,
    spec: HardwareSpec,
    options: CompileOptions,
    batches: Batches | None,
    chip: Chip | None = None,
    *,
    progress: Callable[[int], None] | None = None,
    tell: Told | None = None,
    stop_after: str | None = None,
    after_each: Callable[[str, Mapping], None] | None = None,
) -> Outcome:
    """Run the passes of a compilation; see `compile_model`."""
    passes = [
        *front_end(options),
        Partition(options.replicas),
        Calibrate(batches, progress),
        Quantize(),
        Duplicate(options.copies, options.array_budget, chosen_share(options.share_arrays)),
        *back_end(options, tell),
    ]
    return run_passes(
        start_mapping(source, spec, options, chip), passes, stop_after=stop_after, after_each=_checked(after_each)
    )


def finish(outcome: Outcome, *, keep_source: bool = True) -> TileProgram:
    """The program of a pipeline that ran to its end."""
    return emit(outcome.mapping, build_report(outcome.mapping, outcome.seconds), keep_source=keep_source)


def _checked(after_each: Callable[[str, Mapping], None] | None) -> Callable[[str, Mapping], None]:
    """A model without a single layer ends once it is lowered, with the reasons."""

    def check(name: str, mapping: Mapping) -> None:
        if name == "lower" and not mapping.layers:
            reasons = {f"{node.op}: {node.reason}" for node in mapping.lowered.digital if node.macs is None}
            told = "; ".join(sorted(reasons)) or "it has no Conv, ConvTranspose, Gemm or MatMul with constant weights"
            raise ModelError(f"model {mapping.source.name!r}", f"has nothing to map onto crossbars ({told})")
        if after_each:
            after_each(name, mapping)

    return check


def remap_program(
    program: TileProgram,
    options: CompileOptions,
    chip: Chip | None = None,
    tell: Told | None = None,
) -> TileProgram:
    """Place, assign and set ranges again, for a chip or for any; everything before is read from the program."""
    reload = program.tables.reload
    if reload is not None and not options.reload:  # it was made for so many arrays
        options = dataclasses.replace(options, reload=True, array_budget=reload)
    mapping = for_chip(mapping_of(program, options.replicas), chip, options)
    outcome = run_passes(mapping, back_end(options, tell))
    seconds = {**program.report.seconds, **outcome.seconds}
    remapped = emit(outcome.mapping, build_report(outcome.mapping, seconds), keep_source=False)
    return dataclasses.replace(remapped, source=program.source)


def mapping_of(program: TileProgram, replicas: int | None = None) -> Mapping:
    """The mapping that a program was emitted from, up to the pass `quantize`; `replicas` None takes the program's."""
    tables, spec = program.tables, program.spec
    gathers = {row.name: row for row in tables.gathers}
    scatters = {row.name: row for row in tables.scatters}
    loops = {loop.layer: loop for loop in tables.loops}
    reports = {layer.name: layer for layer in program.report.layers}
    layers, quantized, statistics, code = [], {}, {}, WeightCode.of(spec)
    for table in tables.layers:
        load, store = _ends(loops[table.name])
        layers.append(
            MatrixLayer(
                name=table.name,
                op=table.op,
                initializer=table.initializer,
                weight=program.weights[table.name],
                bias=program.tensors[f"{table.name}/bias"],
                gather=gathers[load[1]],
                scatter=scatters[store[1]],
                source=load[0],
                target=store[0],
                windows=loops[table.name].windows,
                macs=reports[table.name].macs,
            )
        )
        low, high = program.calibration[f"{table.name}/range"].tolist()
        parts = {key: program.calibration[f"{table.name}/{key}"] for key in CALIBRATION}
        statistics[table.name] = LayerStatistics(low=low, high=high, **parts)
        quantized[table.name] = quantize_layer(layers[-1], statistics[table.name], code)
        if tables.tuned:
            quantized[table.name] = _as_tuned(program, layers[-1], table, code)
    if replicas is None:
        replicas = max(table.replicas for table in tables.layers)
    return Mapping(
        source=SourceModel(name=tables.model_name, proto=onnx.ModelProto(), sha256=tables.model_sha256),
        spec=spec,
        seed=tables.seed,
        input_shapes=tables.input_shapes,
        digital_nodes=tables.digital_nodes,
        fuse_batchnorm=tables.fuse_batchnorm,
        passes=("clean", "lower", "partition", "calibrate", "quantize", "duplicate"),
        graph=LoweredGraph(
            layers=tuple(layers),
            segments=program.segments,
            steps=tuple(step.layer if isinstance(step, Loop) else step for step in tables.instructions),
            inputs=tables.inputs,
            outputs=tables.outputs,
            buffers=tables.buffers,
            digital=program.report.digital,
            nodes=program.report.totals.nodes,
        ),
        calibration=tables.calibration,
        grids={
            layer.name: TileGrid.of(layer.weight, spec.array, replicas, table.copies)
            for layer, table in zip(layers, tables.layers, strict=True)
        },
        replicas=replicas,
        statistics=statistics,
        quantized=quantized,
        tuned=tables.tuned,
        warnings=program.report.warnings,
    )


def _as_tuned(program: TileProgram, layer: MatrixLayer, table: Layer, code: WeightCode) -> QuantizedLayer:
    """Scales and input range of a layer as a tuned program has them."""
    scale = np.ones(layer.weight.shape[0] * layer.weight.shape[2])
    for tile in program.tables.tiles:
        if tile.layer == layer.name:
            tensors = program.tile_tensors[tile.name]
            scale[tensors.col_map] = tensors.scale / program.part_weight(tile.name)
    by_group = scale.reshape(len(layer.weight), -1)
    shares = np.clip(layer.weight.astype(np.float64) / by_group[:, None, :], -1, 1)
    return QuantizedLayer(by_group, code.round(shares), table.full_scale, table.signed)


def placed_mapping_of(program: TileProgram) -> Mapping:
    """The mapping that a program was emitted from, up to the pass `place`: its tiles lie where they lie."""
    mapping = mapping_of(program)
    placements: dict[str, list[Placement]] = {layer.name: [] for layer in mapping.layers}
    gated: set[tuple[int, int]] = set()
    by_line = isolation(program.spec.array, program.spec.failures) == "line"
    for tile in program.tables.tiles:
        tensors, found = program.tile_tensors[tile.name], placements[tile.layer]
        block = mapping.grids[tile.layer].blocks[len(found)]
        start = block.group * program.layers[tile.layer].cols + block.cols.start
        order = (tensors.col_map - start).astype(np.int32)
        found.append(
            Placement(tile.array, tensors.word_lines, tensors.bit_lines, tensors.row_map, order, tensors.col_sign)
        )
        if by_line:
            for (array, lines, _), side in zip(
                program.places(tile.name).values(), (tensors.plus, tensors.minus), strict=False
            ):
                off = is_off(program.spec.device, side).all(1)
                gated |= {(array, int(line)) for line in lines[off]}
    return dataclasses.replace(
        mapping,
        placements={name: tuple(found) for name, found in placements.items()},
        faults=program.faults,
        mapped_for=program.tables.mapped_for,
        steps=program.tables.mapping_steps,
        robust=program.tables.robust,
        gated=frozenset(gated),
        passes=(*mapping.passes, "place"),
    )


def _ends(loop: Loop) -> tuple[tuple[str, str], tuple[str, str]]:
    """What a loop reads (buffer, gather) and writes (buffer, scatter)."""
    load = next(step for step in loop.body if step.op == "load")
    store = next(step for step in loop.body if step.op == "store")
    return (load.buffer, load.gather), (store.buffer, store.scatter)
