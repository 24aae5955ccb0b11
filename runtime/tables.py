"""The typed tables and instructions of a tile program. Everything that runs is written here and nowhere else."""

from collections.abc import Iterator
from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from hwspec.spec import HardwareSpec

Name = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Count = Annotated[int, Field(ge=1, le=2**40)]
Index = Annotated[int, Field(ge=0, le=2**40)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Extents = tuple[Annotated[int, Field(ge=1, le=2**24)], ...]
Margins = tuple[Annotated[int, Field(ge=0, le=2**24)], ...]
MOST_COPIES = 4096
"""Of a layer's matrix."""
Phase = Literal["both", "+", "-"]
"""Input phase of an MVM: both signs at once (bipolar or unsigned inputs), or one part of a two-phase input."""


def input_phases(spec: HardwareSpec, signed: bool) -> tuple[Phase, ...]:
    """Phases in which an input vector is driven: two for signed inputs on two-phase drivers, else one."""
    return ("+", "-") if signed and spec.periphery.signed == "two_phase" else ("both",)


class Row(BaseModel):
    """A row of a table."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorInfo(Row):
    """An input or output of the model: `dtype` is numpy's name, a text in `shape` is a symbolic dimension."""

    name: Name
    dtype: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    shape: tuple[Index | str, ...]


class Buffer(Row):
    """A tensor between instructions."""

    name: Name
    dtype: str = Field(pattern=r"^[a-z][a-z0-9_]*$")


class Layer(Row):
    """What a loop computes: the matrix of one ONNX node (of the same name), `groups` times `(rows, cols)`.

    With replicas every block of the matrix lies on so many tiles, whose results are averaged: the scale of each is that
    of its weights, divided by `replicas`. With copies the matrix lies on the chip so many times, and each copy takes a
    band of a sample's windows (`window_bands`).
    """

    name: Name
    op: Name
    initializer: Name = Field(description="where the weight lies in the lowered model")
    groups: Count
    rows: Count
    cols: Count
    full_scale: Positive = Field(description="input of the largest DAC code (of v_read where the DAC is ideal)")
    signed: bool = Field(description="whether the DAC takes negative inputs")
    replicas: Annotated[int, Field(ge=1, le=16)] = 1
    copies: Annotated[int, Field(ge=1, le=MOST_COPIES)] = 1


def window_bands(windows: int, copies: int) -> tuple[range, ...]:
    """The windows of one sample that each copy takes, in order; the last ones may have fewer, or none."""
    each = -(-windows // copies)
    return tuple(range(min(one * each, windows), min((one + 1) * each, windows)) for one in range(copies))


class Gather(Row):
    """How input vectors are fetched from a buffer.

    ``vectors``: the last axis of the buffer, of length `channels`.
    ``patches``: the windows of an image ``(batch, channels, *space)``, elements in order ``(group, *kernel, channel)``.
    """

    name: Name
    kind: Literal["vectors", "patches"]
    channels: Count
    groups: Count = 1
    kernel: Extents = ()
    strides: Extents = ()
    dilations: Extents = ()
    pads: Margins = Field(default=(), description="begin of each spatial axis, then end of each")
    auto_pad: Literal["none", "same_upper", "same_lower"] = "none"

    @property
    def length(self) -> int:
        """Elements of one input vector, all groups together."""
        return self.channels * prod(self.kernel)


class Scatter(Row):
    """How a loop's result vectors are written to a buffer, after the bias is added.

    ``vectors``: as the last axis, of length `channels`. ``image``: as ``(batch, channels, *space)``.
    ``fold``: each result is a patch in order ``(group, *kernel, channel)``, added into ``(batch, channels, *space)``
    at its window's place (transposed convolution).
    """

    name: Name
    kind: Literal["vectors", "image", "fold"]
    channels: Count
    groups: Count = 1
    kernel: Extents = ()
    strides: Extents = ()
    dilations: Extents = ()
    pads: Margins = ()
    auto_pad: Literal["none", "same_upper", "same_lower"] = "none"
    output_padding: Margins = ()
    output_shape: Extents = Field(default=(), description="spatial shape when the model fixes it, else empty")

    @property
    def length(self) -> int:
        """Elements of one result vector."""
        return self.channels * prod(self.kernel)


class Tile(Row):
    """`rows` x `cols` signed weights where some lines of one site cross; which lines, its tensors say.

    A site is one physical array, or two with pairs on two arrays; `array` is the number of the first. On neighbouring
    columns weight column ``c`` lies on bit lines ``2c`` and ``2c + 1``, on neighbouring rows weight row ``r`` on word
    lines ``2r`` and ``2r + 1``. A tile holds one slice (digit) of its weights, 0 the least significant.
    """

    name: Name
    layer: Name
    array: Index
    rows: Count
    cols: Count
    slice: Annotated[int, Field(ge=0, lt=16)] = 0
    replica: Annotated[int, Field(ge=0, lt=16)] = 0
    copy_number: Annotated[int, Field(ge=0, lt=MOST_COPIES)] = 0
    adc_range: tuple[Positive, ...] = Field(
        default=(), max_length=2, description="largest converted current of each phase, amperes; empty when not needed"
    )


class Load(Row):
    """Fetch elements ``start:stop`` of the gathered vectors into register `into`, through the DAC."""

    op: Literal["load"] = "load"
    into: Name
    buffer: Name
    gather: Name
    start: Index
    stop: Count


class Mvm(Row):
    """Drive a tile with the codes of `source`: array, readout, ADC; the codes go to register `into`.

    A tile of a copy is driven in that copy's windows only; registers hold these.
    """

    op: Literal["mvm"] = "mvm"
    into: Name
    tile: Name
    source: Name
    phase: Phase


class Acc(Row):
    """Scale the codes of `source` through the columns of `tile`, and add them to register `into`."""

    op: Literal["acc"] = "acc"
    into: Name
    source: Name
    tile: Name


class Residue(Row):
    """Add to register `into` the products of the codes of `source`, in units of the inputs, with the layer's residue.

    The residue are weights in digital memory, ``<layer>/residue``; those of the rows that `source` loaded take part.
    """

    op: Literal["residue"] = "residue"
    into: Name
    source: Name


class Store(Row):
    """Add the bias to register `source` and write it to `buffer`."""

    op: Literal["store"] = "store"
    buffer: Name
    source: Name
    scatter: Name


Step = Annotated[Load | Mvm | Acc | Residue | Store, Field(discriminator="op")]


class Host(Row):
    """Run a digital ONNX segment on buffers."""

    op: Literal["host"] = "host"
    segment: Name
    inputs: tuple[Name, ...]
    outputs: tuple[Name, ...]


class Loop(Row):
    """Run `body` for every window; `windows` counts those of one sample (0 where it is unknown)."""

    op: Literal["loop"] = "loop"
    layer: Name
    windows: Index
    body: tuple[Step, ...]


Instruction = Annotated[Host | Loop, Field(discriminator="op")]


class Tables(Row):
    """The whole program but its tensors, its digital segments, and what later verbs need (weights, calibration)."""

    format_version: Literal[1] = 1
    model_name: Name
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    spec: HardwareSpec
    spec_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    calibration: Literal["data", "none"] = Field(description="none: ranges stem from random inputs")
    seed: int
    input_shapes: dict[Name, tuple[Index, ...]] = Field(description="as the user gave them")
    digital_nodes: tuple[Name, ...] = Field(description="nodes that the user kept digital")
    fuse_batchnorm: bool
    predistorted: bool = Field(description="whether targets undo the wires, and are not the weights' own")
    mapped_for: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="hash of the chip whose failed devices the program was mapped around; null where it suits any chip",
    )
    faults_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="hash of the failed devices that the program holds"
    )
    mapping_steps: tuple[Name, ...] = Field(default=(), description="of mapping around failures that were taken")
    robust: bool = Field(default=False, description="whether pairs were raised where only failure rates are known")
    tuned: bool = Field(
        default=False,
        description="whether the weights were changed after scales and ranges had been set, which stayed as they were",
    )
    reload: Count | None = Field(
        default=None,
        description="arrays that segments of layers are written to one after another; the arrays of tiles are counted "
        "on from one segment to the next",
    )
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    buffers: tuple[Buffer, ...]
    layers: tuple[Layer, ...]
    gathers: tuple[Gather, ...]
    scatters: tuple[Scatter, ...]
    tiles: tuple[Tile, ...]
    instructions: tuple[Instruction, ...]

    @property
    def written(self) -> int:
        """Arrays that tiles lie on, those of every segment counted."""
        per_site = self.spec.array.arrays_per_site
        return max((tile.array + per_site for tile in self.tiles), default=0)

    @property
    def arrays(self) -> int:
        """Physical arrays that the program addresses."""
        return self.written if self.reload is None else min(self.written, self.reload)

    def physical(self, array: int) -> int:
        """The physical array that an array of a tile is."""
        return array if self.reload is None else array % self.reload

    def segment(self, array: int) -> int:
        """The segment whose layers lie on an array, counted from 0."""
        return 0 if self.reload is None else array // self.reload

    @property
    def loops(self) -> Iterator[Loop]:
        """The loops, in order."""
        return (step for step in self.instructions if isinstance(step, Loop))
