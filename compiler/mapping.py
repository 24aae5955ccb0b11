"""The mapping: what the passes have decided so far, from matrices to conductances, and the invariants that hold."""

import itertools
from collections.abc import Mapping as Table
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from compiler.frontend import SourceModel
from compiler.step_errors import StepErrors
from hwspec.array import Array as CrossbarArray
from hwspec.errors import VerificationError
from hwspec.fault_map import FaultMap
from hwspec.spec import HardwareSpec
from runtime.quantize import Float64, off_target
from runtime.report import DigitalNode, FailureReport, WireReport
from runtime.tables import Buffer, Gather, Host, Scatter, TensorInfo, input_phases

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class MatrixLayer:
    """One weight-stationary node: ``y = x W + bias`` for each group, with `weight` ``(groups, K, N)``.

    `source` and `target` are the buffers that its loop reads and writes; `windows` and `macs` count one sample.
    """

    name: str
    op: str
    initializer: str
    weight: Array
    bias: Float64
    gather: Gather
    scatter: Scatter
    source: str
    target: str
    windows: int = 0
    macs: int = 0


@dataclass(frozen=True)
class Block:
    """A logical tile: rows and columns of one group's matrix, slice of the weights, replica (averaged), copy."""

    group: int
    rows: slice
    cols: slice
    slice: int = 0
    replica: int = 0
    copy: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start


@dataclass(frozen=True)
class TileGrid:
    """How a layer's matrices are cut: blocks of at most ``tile_rows`` x ``tile_cols``. All counts derive from it."""

    groups: int
    rows: int
    cols: int
    tile_rows: int
    tile_cols: int
    slices: int = 1
    replicas: int = 1
    copies: int = 1

    @classmethod
    def of(cls, weight: Array, array: CrossbarArray, replicas: int = 1, copies: int = 1) -> "TileGrid":
        """The grid of matrices ``(groups, K, N)`` on arrays of this geometry."""
        groups, rows, cols = weight.shape
        return cls(groups, rows, cols, array.weight_rows, array.weight_cols, array.slices, replicas, copies)

    @cached_property
    def row_blocks(self) -> tuple[slice, ...]:
        """Rows of each block row."""
        return _cuts(self.rows, self.tile_rows)

    @cached_property
    def col_blocks(self) -> tuple[slice, ...]:
        """Columns of each block column."""
        return _cuts(self.cols, self.tile_cols)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every logical tile: by group, then row block, column block, slice, replica and copy."""
        inner = range(self.slices), range(self.replicas), range(self.copies)
        return tuple(
            Block(*part) for part in itertools.product(range(self.groups), self.row_blocks, self.col_blocks, *inner)
        )

    @property
    def partial_sums(self) -> int:
        """Additions of partial sums for one input vector, which one of the copies takes."""
        return self.groups * self.cols * (len(self.row_blocks) * self.slices * self.replicas - 1)


def _cuts(size: int, step: int) -> tuple[slice, ...]:
    return tuple(slice(start, min(start + step, size)) for start in range(0, size, step))


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What calibration saw of a layer's input vectors.

    Attributes
    ----------
    low, high
        Smallest and largest input.
    mean : (groups K,)
    covariance : (groups, K, K) or (groups row blocks, r, r)
        Of the inputs of each group, or of each row block of each group where that would be too large; zero beyond a
        block's rows.
    vectors : (samples, groups K)
        Input vectors drawn at random from the calibration data.
    """

    low: float
    high: float
    mean: Array
    covariance: Array
    vectors: Array


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """Scales of a layer, and the weights that the mapping aims at.

    Attributes
    ----------
    scale : (groups, N)
        Weight that a conductance difference of ``g_max - g_min`` stands for.
    normalized : (groups, K, N)
        Weights in units of the scale, in [-1, 1]; on the levels' grid where the device has levels.
    full_scale, signed
        Of the DAC.
    """

    scale: Float64
    normalized: Float64
    full_scale: float
    signed: bool


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a logical tile lies: its rows and columns of weights on a site, and the orders within it.

    ``word_lines`` and ``bit_lines`` rise. ``row_map[i]`` is the physical row (an index of `word_lines`) of logical row
    ``i``; ``col_order[j]`` the logical column on physical column ``j``, whose pair is swapped where ``col_sign[j]`` is
    -1.
    """

    array: int
    word_lines: npt.NDArray[np.int32]
    bit_lines: npt.NDArray[np.int32]
    row_map: npt.NDArray[np.int32]
    col_order: npt.NDArray[np.int32]
    col_sign: npt.NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Targets:
    """What each device of a tile is programmed to: level codes, or siemens; in physical order, ``(rows, cols)``.

    `gain` is the digital gain of each column that pre-distorted targets need, else 1.
    """

    plus: Array
    minus: Array
    gain: Float64


@dataclass(frozen=True, eq=False)
class LoweredGraph:
    """The model as layers and digital segments; `steps` run in order (a text names a layer)."""

    layers: tuple[MatrixLayer, ...]
    segments: Table[str, bytes]
    steps: tuple[Host | str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    buffers: tuple[Buffer, ...]
    digital: tuple[DigitalNode, ...]
    nodes: int


@dataclass(frozen=True, eq=False)
class Mapping:
    """The state of a compilation. A pass fills its part with `dataclasses.replace`; what is undecided is empty."""

    source: SourceModel
    spec: HardwareSpec
    seed: int = 0
    input_shapes: Table[str, tuple[int, ...]] = field(default_factory=dict)
    digital_nodes: tuple[str, ...] = ()
    fuse_batchnorm: bool = True
    passes: tuple[str, ...] = ()
    cleaned: onnx.ModelProto | None = None
    float_model: onnx.ModelProto | None = None
    """The cleaned model with the nodes that `lower` put before layers, in floating point."""
    graph: LoweredGraph | None = None
    calibration: Literal["data", "none"] = "none"
    grids: Table[str, TileGrid] = field(default_factory=dict)
    statistics: Table[str, LayerStatistics] = field(default_factory=dict)
    quantized: Table[str, QuantizedLayer] = field(default_factory=dict)
    placements: Table[str, tuple[Placement, ...]] = field(default_factory=dict)
    targets: Table[str, tuple[Targets, ...]] = field(default_factory=dict)
    adc_ranges: Table[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    clipped: Table[str, float] = field(default_factory=dict)
    """Share of calibration conversions that each layer's ADCs clip."""
    faults: FaultMap | None = None
    """Failed devices of the chip that is mapped for, as its test saw them; None where it is not known."""
    mapped_for: str | None = None
    """Hash of that chip."""
    replicas: int = 1
    """Tiles that hold each block, whose results are averaged."""
    steps: tuple[str, ...] = ()
    """Of mapping around failures that are taken."""
    robust: bool = True
    """Whether pairs are raised where only the rates of failures are known."""
    gated: frozenset[tuple[int, int]] = frozenset()
    """Word lines that are gated off: array and line."""
    step_errors: Table[str, StepErrors] = field(default_factory=dict)
    failures: Table[str, FailureReport] = field(default_factory=dict)
    bias_shifts: Table[str, Float64] = field(default_factory=dict)
    """What each layer's digital bias takes up of its weights' errors, ``(copies, groups, N)``."""
    residues: Table[str, tuple[npt.NDArray[np.int64], Float64]] = field(default_factory=dict)
    """What digital memory holds of each layer's errors: where, in the flattened ``(groups, K, N)``, and how much."""
    reload: int | None = None
    """Arrays that segments of layers are written to one after another; None where all are written once."""
    tuned: bool = False
    """Whether scales and ranges were set before the weights were tuned."""
    predistorted: bool = False
    """Whether targets undo the wires, so that they are no longer the weights' own."""
    wires: Table[str, WireReport] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def faults_used(self) -> FaultMap | None:
        """The failed devices of the arrays that tiles lie on, and of those before them; None where there are none."""
        if self.faults is None:
            return None
        last = max(placement.array for found in self.placements.values() for placement in found)
        used = self.faults.first(last + self.spec.array.arrays_per_site)
        return used if used.failed else None

    @property
    def layers(self) -> tuple[MatrixLayer, ...]:
        """The layers, once the model is lowered."""
        return self.lowered.layers

    @property
    def lowered(self) -> LoweredGraph:
        """The lowered graph; `lower` must have run."""
        if self.graph is None:
            raise VerificationError("mapping", "must be lowered before later passes run")
        return self.graph


def verify(mapping: Mapping) -> None:
    """Check the invariants of what has been decided so far.

    Raises
    ------
    VerificationError
        Naming the layer and the invariant that does not hold.
    """
    if mapping.graph is None:
        return
    _verify_steps(mapping.graph)
    for layer in mapping.layers:
        grid = mapping.grids.get(layer.name)
        if grid is not None:
            _verify_grid(layer, grid)
        if layer.name in mapping.quantized:
            _verify_quantized(mapping, layer)
        if layer.name in mapping.targets:
            _verify_targets(mapping, layer)
        if layer.name in mapping.adc_ranges:
            _verify_ranges(mapping, layer)
    if mapping.placements:
        _verify_placements(mapping)


def _fail(layer: str, invariant: str, got: object) -> VerificationError:
    return VerificationError(f"layer {layer!r}", invariant, got=got)


def _verify_steps(graph: LoweredGraph) -> None:
    targets = {layer.name: layer for layer in graph.layers}
    known = {info.name for info in graph.inputs}
    for step in graph.steps:
        reads = step.inputs if isinstance(step, Host) else (targets[step].source,)
        missing = [name for name in reads if name not in known]
        if missing:
            raise VerificationError("schedule", "must write a buffer before it is read", got=missing[0])
        known.update(step.outputs if isinstance(step, Host) else (targets[step].target,))
    ran = [step for step in graph.steps if not isinstance(step, Host)]
    if sorted(ran) != sorted(targets):
        raise VerificationError("schedule", "must run every layer once", got=sorted(set(ran) ^ set(targets)))


def _verify_grid(layer: MatrixLayer, grid: TileGrid) -> None:
    shape = (grid.groups, grid.rows, grid.cols)
    if shape != layer.weight.shape:
        raise _fail(layer.name, f"must have a grid of its matrix {layer.weight.shape}", shape)
    times = np.zeros((grid.slices, grid.replicas, grid.copies, *shape), np.int8)
    for block in grid.blocks:
        times[block.slice, block.replica, block.copy, block.group, block.rows, block.cols] += 1
    if not (times == 1).all():
        raise _fail(layer.name, "must map every weight exactly once", sorted(set(times.ravel().tolist())))


def _verify_quantized(mapping: Mapping, layer: MatrixLayer) -> None:
    quantized, (groups, _, cols) = mapping.quantized[layer.name], layer.weight.shape
    if quantized.normalized.shape != layer.weight.shape or quantized.scale.shape != (groups, cols):
        raise _fail(layer.name, "must have a scale for each column", quantized.scale.shape)
    if not (np.isfinite(quantized.scale).all() and (quantized.scale > 0).all()):
        raise _fail(layer.name, "must have positive finite scales", float(quantized.scale.min()))
    if not np.abs(quantized.normalized).max(initial=0) <= 1:
        raise _fail(layer.name, "must have weights in [-1, 1]", float(np.abs(quantized.normalized).max()))
    if not 0 < quantized.full_scale < np.inf:
        raise _fail(layer.name, "must have a positive finite full scale", quantized.full_scale)


def _verify_targets(mapping: Mapping, layer: MatrixLayer) -> None:
    device, blocks = mapping.spec.device, mapping.grids[layer.name].blocks
    if len(mapping.targets[layer.name]) != len(blocks):
        raise _fail(layer.name, f"must assign its {len(blocks)} tiles", len(mapping.targets[layer.name]))
    low, high = (device.g_min, device.g_max) if device.levels is None else (0, (device.level_count or 0) - 1)
    single, off = mapping.spec.array.pairing == "reference", off_target(device)
    for number, (block, targets) in enumerate(zip(blocks, mapping.targets[layer.name], strict=True)):
        for side in (targets.plus,) if single else (targets.plus, targets.minus):
            if side.shape != block.shape:
                raise _fail(layer.name, f"must assign all of tile {number}'s {block.shape} cells", side.shape)
            on = side[side != off]
            if on.size and not (on.min() >= low and on.max() <= high):
                raise _fail(layer.name, f"must keep tile {number} on the device's levels", float(on.max()))
        if targets.gain.shape != block.shape[1:] or not (np.isfinite(targets.gain) & (targets.gain > 0)).all():
            raise _fail(layer.name, f"must give tile {number} a positive finite gain a column", targets.gain.shape)


def _verify_ranges(mapping: Mapping, layer: MatrixLayer) -> None:
    phases = len(input_phases(mapping.spec, mapping.quantized[layer.name].signed))
    ranges = mapping.adc_ranges[layer.name]
    if not mapping.spec.periphery.needs_range:
        return
    if len(ranges) != len(mapping.grids[layer.name].blocks):
        raise _fail(layer.name, "must have ADC ranges for each tile", len(ranges))
    for number, found in enumerate(ranges):
        if len(found) != phases or not all(0 < value < np.inf for value in found):
            raise _fail(layer.name, f"must have {phases} positive finite ADC ranges on tile {number}", found)


def _verify_placements(mapping: Mapping) -> None:
    array = mapping.spec.array
    used: dict[int, npt.NDArray[np.bool_]] = {}
    for layer in mapping.layers:
        blocks, placements = mapping.grids[layer.name].blocks, mapping.placements[layer.name]
        if len(blocks) != len(placements):
            raise _fail(layer.name, f"must place its {len(blocks)} tiles", len(placements))
        order_of: dict[tuple[int, int, int], list[int]] = {}
        for block, placement in zip(blocks, placements, strict=True):
            rows, cols = block.shape
            for lines, count, most in (
                (placement.word_lines, rows, array.weight_rows),
                (placement.bit_lines, cols, array.weight_cols),
            ):
                if len(lines) != count or not (np.diff(lines) > 0).all() or lines[0] < 0 or lines[-1] >= most:
                    raise _fail(layer.name, "must keep its tiles on rising lines inside their arrays", lines.tolist())
            if placement.array < 0 or placement.array % array.arrays_per_site:
                raise _fail(layer.name, "must start its tiles' sites at their first array", placement.array)
            if not np.array_equal(np.sort(placement.row_map), np.arange(rows)):
                raise _fail(layer.name, "must order each tile's rows by a permutation", placement.row_map.tolist())
            if not np.array_equal(np.sort(placement.col_order), np.arange(cols)):
                raise _fail(layer.name, "must order each tile's columns by a permutation", placement.col_order.tolist())
            if placement.col_sign.shape != (cols,) or not (np.abs(placement.col_sign) == 1).all():
                raise _fail(layer.name, "must give each column a sign of +1 or -1", placement.col_sign.tolist())
            lines_of_rows = placement.word_lines[placement.row_map]
            order = (lines_of_rows - placement.word_lines[0]).tolist()
            key = block.group, block.rows.start, block.copy
            if not array.router and order_of.setdefault(key, order) != order:
                raise _fail(layer.name, "must order the rows of tiles with the same inputs alike", order)
            cells = used.setdefault(placement.array, np.zeros((array.weight_rows, array.weight_cols), bool))
            at = np.ix_(placement.word_lines, placement.bit_lines)
            if cells[at].any():
                raise _fail(layer.name, f"must not overlap another tile on array {placement.array}", order)
            cells[at] = True
