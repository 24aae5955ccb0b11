"""When each instruction of a program runs: one place for what is executed, reported and compared.

An array is driven with one vector at a time: tiles on it that take the same inputs on the same word lines are read at
once, others one after another; different arrays run side by side, and so do copies of a matrix, each on its band of the
windows. A step takes a read for each digit of the inputs,
with the conversions of the columns that share an ADC (``physics.md`` section 7). A loop is as long as its busiest
array, or as moving its vectors.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx

from hwspec.costs import conversion_time
from hwspec.errors import DataError
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.tables import Host, Loop, Mvm, window_bands
from runtime.writing import segments_of

DIGITAL = -1
"""The resource of digital segments, beside the numbers of arrays."""
_TRIES = 64
"""Intervals that are tried between the busiest resource and one stage after another."""
_SLACK = 1e-12


@dataclass(frozen=True)
class Stage:
    """An instruction of the program and what it occupies.

    Attributes
    ----------
    name
        Of the layer, or of the digital segment.
    time
        Seconds a sample.
    resources
        Seconds a sample that each array (by number; `DIGITAL` is the digital units) is busy.
    vector_time
        Seconds a window; 0 of a digital segment.
    limit
        What sets the time: ``array``, ``adc``, ``transfer`` or ``digital``.
    """

    name: str
    time: float
    resources: dict[int, float]
    vector_time: float
    limit: str


@dataclass(frozen=True, eq=False)
class Schedule:
    """When the stages of a program run.

    Attributes
    ----------
    stages
        In the order of the program.
    depends
        Numbers of the stages that each stage waits for.
    starts
        When each starts on the first sample, seconds; each later sample follows after `interval`.
    interval
        Seconds from one sample to the next.
    writes
        Start and duration of the writing of each segment, seconds, where segments are written one after another; that
        of the first comes before the first sample's start.
    span
        Seconds of a batch of samples from there to its end; None where all is written once.
    """

    stages: tuple[Stage, ...]
    depends: tuple[tuple[int, ...], ...]
    starts: tuple[float, ...]
    interval: float
    writes: tuple[tuple[float, float], ...] = ()
    span: float | None = None

    @property
    def latency(self) -> float:
        """Seconds from the start of a sample to its end; of a batch where segments are written for each."""
        if self.span is not None:
            return self.span
        return max((at + stage.time for at, stage in zip(self.starts, self.stages, strict=True)), default=0.0)

    @property
    def fill(self) -> float:
        """Seconds until the first sample is done, beyond the interval in which each later one is."""
        return self.latency - self.interval

    @property
    def serial(self) -> float:
        """Seconds of all stages one after another."""
        return sum(stage.time for stage in self.stages)

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest."""
        return max(self.stages, key=lambda stage: stage.time).name

    @cached_property
    def occupancy(self) -> dict[int, float]:
        """Share of the time that each array is busy once the pipeline is full."""
        busy: Counter[int] = Counter()
        for stage in self.stages:
            busy.update(stage.resources)
        return {array: value / self.interval for array, value in sorted(busy.items()) if array != DIGITAL}


def read_time(spec: HardwareSpec) -> float:
    """Seconds of one read of an array with the conversions of its columns."""
    costs = spec.costs
    converted = 0.0
    if spec.periphery.adc_bits is not None:
        converted = columns_per_adc(spec) * conversion_time(costs.adc, spec.periphery.adc_bits)
    return max(costs.t_read, converted) if costs.overlap else costs.t_read + converted


def channels(spec: HardwareSpec) -> int:
    """Columns of a site that are converted, those of both arrays where pairs are subtracted afterwards."""
    array = spec.array
    return array.weight_cols * (2 if array.pairing != "reference" and spec.periphery.subtract == "after" else 1)


def columns_per_adc(spec: HardwareSpec) -> int:
    """Columns that an ADC converts one after another, no more than there are."""
    apart = 2 if spec.array.pairing == "two_arrays" and spec.periphery.subtract == "after" else 1
    return min(spec.periphery.columns_per_adc, channels(spec) // apart)


def vector_bytes(spec: HardwareSpec) -> float:
    """Bytes of an element of a vector: that of an input code, or four of an ideal DAC."""
    bits = spec.periphery.input_bits or spec.periphery.dac_bits
    return 4.0 if bits is None else bits / 8


def moved_bytes(program: TileProgram, loop: Loop) -> tuple[float, float]:
    """Bytes that one window of a loop loads, and that it stores."""
    layer, each = program.layers[loop.layer], vector_bytes(program.spec)
    loaded = sum(step.stop - step.start for step in loop.body if step.op == "load")
    return loaded * each, layer.groups * layer.cols * each


def loop_stage(program: TileProgram, loop: Loop) -> Stage:
    """The stage of a loop."""
    spec, layer = program.spec, program.layers[loop.layer]
    step_time = spec.periphery.digits(layer.signed) * read_time(spec)
    per_site = spec.array.arrays_per_site
    steps = [step for step in loop.body if step.op == "mvm"]
    of_copies = Counter(
        (copy, array) for copy, array, *_ in {(*_where(program, step), *_drive(program, step)) for step in steps}
    )
    bands = window_bands(loop.windows, layer.copies)
    busy: dict[int, float] = {}
    for (copy, array), count in of_copies.items():
        busy[array] = busy.get(array, 0.0) + count * len(bands[copy]) * step_time
    vector_time = max(of_copies.values()) * step_time
    tiles = tiles_of(spec, len(busy) * per_site)
    rate = min(spec.costs.buffer.rate, spec.costs.link.rate) * tiles
    computed, moved = max(busy.values()), loop.windows * sum(moved_bytes(program, loop)) / rate
    limit = "adc" if read_time(spec) > spec.costs.t_read else "array"
    return Stage(
        name=loop.layer,
        time=max(computed, moved),
        resources={
            program.tables.physical(array) + side: time for array, time in busy.items() for side in range(per_site)
        },
        vector_time=vector_time,
        limit="transfer" if moved > computed else limit,
    )


def _where(program: TileProgram, step: Mvm) -> tuple[int, int]:
    """Copy and first array of the tile of a step."""
    tile = program.tiles[step.tile]
    return tile.copy_number, tile.array


def _drive(program: TileProgram, step: Mvm) -> tuple[str, str, bytes, bytes]:
    """What drives an array in a step: steps with the same can be one."""
    tensors = program.tile_tensors[step.tile]
    return step.source, step.phase, tensors.word_lines.tobytes(), tensors.row_map.tobytes()


def tiles_of(spec: HardwareSpec, arrays: int) -> int:
    """Tiles of the chip that so many arrays take."""
    return -(-arrays // (spec.chip.arrays_per_core * spec.chip.cores_per_tile))


def digital_operations(program: TileProgram) -> dict[str, int]:
    """Operations of each digital segment on one sample: an element of a result is one, a multiply-accumulate two."""
    import onnx

    known = {node.node: (node.elements or 0) + 2 * (node.macs or 0) for node in program.report.digital}
    found = {}
    for name, segment in program.segments.items():
        nodes = {node.name for node in onnx.load_model_from_string(segment).graph.node}
        found[name] = sum(known.get(node, 0) for node in nodes)
    return found


def stages_of(program: TileProgram) -> tuple[Stage, ...]:
    """The stages of a program, in its order."""
    operations = digital_operations(program)
    found = []
    for step in program.tables.instructions:
        if isinstance(step, Host):
            time = operations[step.segment] / program.spec.costs.digital.rate
            found.append(Stage(step.segment, time, {DIGITAL: time}, 0.0, "digital"))
        else:
            found.append(loop_stage(program, step))
    return tuple(found)


def dependencies(program: TileProgram) -> tuple[tuple[int, ...], ...]:
    """Numbers of the instructions that each instruction reads the results of."""
    writer: dict[str, int] = {}
    found = []
    for number, step in enumerate(program.tables.instructions):
        if isinstance(step, Host):
            reads, writes = step.inputs, step.outputs
        else:
            reads = tuple(one.buffer for one in step.body if one.op == "load")
            writes = tuple(one.buffer for one in step.body if one.op == "store")
        found.append(tuple(sorted({writer[name] for name in reads if name in writer})))
        writer.update(dict.fromkeys(writes, number))
    return tuple(found)


def schedule(program: TileProgram, *, pipelined: bool = True, batch: int = 1) -> Schedule:
    """When the instructions of a program run.

    Parameters
    ----------
    program
        The program.
    pipelined
        Whether samples follow one another as soon as arrays are free, each stage with buffers of its own; otherwise
        one instruction runs at a time.
    batch
        Samples that each segment computes before the next one is written to the same arrays, where there are several.

    Raises
    ------
    DataError
        If the batch is not positive.
    """
    if batch < 1:
        raise DataError("batch", "must be at least 1", got=batch)
    stages, depends = stages_of(program), dependencies(program)
    if program.tables.reload is None:
        return plan(stages, depends, pipelined=pipelined)
    return _in_segments(program, stages, depends, pipelined=pipelined, batch=batch)


def _in_segments(
    program: TileProgram,
    stages: Sequence[Stage],
    depends: Sequence[tuple[int, ...]],
    *,
    pipelined: bool,
    batch: int,
) -> Schedule:
    """Each segment is written, then computes the whole batch; digital stages run with the layers before them."""
    of_layer = {tile.layer: program.tables.segment(tile.array) for tile in program.tables.tiles}
    parts: dict[int, list[int]] = {}
    segment = 0
    for number, step in enumerate(program.tables.instructions):
        segment = segment if isinstance(step, Host) else of_layer.get(step.layer, segment)
        parts.setdefault(segment, []).append(number)
    starts, writes, at = [0.0] * len(stages), [], 0.0
    for segment, written in enumerate(segments_of(program, again=True)):
        numbers = parts[segment]
        writes.append((at, written.write_time))
        at += written.write_time
        here = {number: place for place, number in enumerate(numbers)}
        waits = [[here[one] for one in depends[number] if one in here] for number in numbers]
        found = plan([stages[number] for number in numbers], waits, pipelined=pipelined)
        for number, start in zip(numbers, found.starts, strict=True):
            starts[number] = at + start
        at += found.latency + (batch - 1) * found.interval
    return Schedule(tuple(stages), tuple(depends), tuple(starts), at / batch, tuple(writes), at)


def plan(stages: Sequence[Stage], depends: Sequence[Iterable[int]], *, pipelined: bool) -> Schedule:
    """When stages run that depend on one another.

    In a pipeline the interval is that of the busiest resource where one can be kept to; stages that share arrays may
    force a longer one, found by modulo scheduling (Rau, MICRO 1994) over a few intervals.

    Parameters
    ----------
    stages
        In an order that heeds dependencies.
    depends
        Numbers of the earlier stages that each waits for.
    pipelined
        As for `schedule`.
    """
    waits = tuple(tuple(sorted(set(one))) for one in depends)
    serial = sum(stage.time for stage in stages)
    if not pipelined or serial == 0:
        starts, at = [], 0.0
        for stage in stages:
            starts.append(at)
            at += stage.time
        return Schedule(tuple(stages), waits, tuple(starts), serial)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(stages)))
    graph.add_edges_from((before, number) for number, found in enumerate(waits) for before in found)
    order = list(nx.lexicographical_topological_sort(graph))
    longest = max(stage.time for stage in stages)
    busy: Counter[int] = Counter()
    for stage in stages:
        busy.update(dict.fromkeys(stage.resources, stage.time))
    least = max([longest, *busy.values()])
    for attempt in range(_TRIES + 1):
        interval = least + (serial - least) * attempt / _TRIES
        starts_at = _modulo(stages, graph, order, interval)
        if starts_at is not None:
            return Schedule(tuple(stages), waits, tuple(starts_at[number] for number in range(len(stages))), interval)
    return plan(stages, depends, pipelined=False)


def _modulo(
    stages: Sequence[Stage], graph: "nx.DiGraph[int]", order: Sequence[int], interval: float
) -> dict[int, float] | None:
    """Starts with which no resource is used twice at once, each sample an interval after the last; None if none."""
    taken: dict[int, list[tuple[float, float]]] = {}
    starts: dict[int, float] = {}
    for number in order:
        stage = stages[number]
        ready = max((starts[before] + stages[before].time for before in graph.predecessors(number)), default=0.0)
        held = [part for resource in stage.resources for part in taken.get(resource, ())]
        # Shifts that end a conflict: a start right where another stage's part ends, modulo the interval.
        shifts = sorted({0.0, *((stop - ready) % interval for _, stop in held)})
        fits = (shift for shift in shifts if _free(ready + shift, stage.time, held, interval))
        shift = next(fits, None)
        if shift is None:
            return None
        starts[number] = ready + shift
        at = starts[number] % interval
        for resource in stage.resources:
            taken.setdefault(resource, []).append((at, at + stage.time))
    return starts


def _free(start: float, time: float, held: Iterable[tuple[float, float]], interval: float) -> bool:
    """Whether a part of this time from this start meets none of those held, modulo the interval."""
    at, slack = start % interval, _SLACK * interval
    return time <= interval + slack and all(
        at + time <= begin + move + slack or end + move <= at + slack
        for begin, end in held
        for move in (-interval, 0.0, interval)
    )
