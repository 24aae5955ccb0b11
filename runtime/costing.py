"""Energy and area of a program, split by component; programming apart. Every constant is the spec's.

Actions are counted from the instructions that run (``physics.md`` section 7); energy is a count times the energy of an
action. The energy of a read is that of the programmed conductances on the calibration inputs, unless it is fixed.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hwspec.costs import adc_area, adc_energy
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.quantize import Float64, input_codes, input_digit
from runtime.tables import Loop, window_bands
from runtime.timing import (
    Schedule,
    Stage,
    channels,
    columns_per_adc,
    digital_operations,
    moved_bytes,
    read_time,
    schedule,
    tiles_of,
    vector_bytes,
)
from runtime.writing import Programming, Reloading, programming_of, reloading_of

COMPONENTS = ("array", "dac", "adc", "sample_hold", "shift_add", "buffer", "link", "digital", "static")
"""Of energy; `static` is what cores, tiles and the chip draw all the time."""
AREAS = ("array", "dac", "adc", "sample_hold", "shift_add", "core", "tile", "chip", "digital")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerCost(_Record):
    """What a layer takes for one sample."""

    name: str
    time: float = Field(description="seconds")
    start: float = Field(description="seconds after the start of the first sample")
    limit: str = Field(description="what sets the time: array, adc, transfer")
    vector_time: float = Field(description="seconds a window")
    reads: int = Field(description="reads of arrays")
    conversions: int
    energy: dict[str, float] = Field(description="joules by component, static power left out")
    adc_bits_needed: int | None = Field(description="to convert every sum exactly; None where sums are continuous")
    clipped: float = Field(description="share of the conversions that clip, predicted from calibration inputs")


class Throughput(_Record):
    """How fast one mode of running is, and at what energy; a multiply-accumulate is two operations."""

    interval: float = Field(description="seconds from one sample to the next")
    latency: float = Field(description="seconds from the start of a sample to its end")
    fill: float = Field(description="seconds until the first sample is done, beyond an interval")
    energy: float = Field(description="joules a sample, static power over an interval included")
    power: float = Field(description="watts, mean")
    tops: float = Field(description="tera-operations a second")
    tops_per_watt: float
    tops_per_mm2: float | None = Field(description="None where the spec gives no areas")


class CostReport(_Record):
    """Time, energy and area of a program."""

    model: str
    spec: str
    macs: int = Field(description="multiply-accumulates of one sample on arrays")
    adc_bits: int | None = Field(description="of the spec; None where the ADC is ideal")
    arrays: int
    cores: int
    tiles: int
    layers: tuple[LayerCost, ...]
    energy: dict[str, float] = Field(description="joules a sample by component, pipelined")
    area: dict[str, float] = Field(description="square metres by component")
    pipelined: Throughput
    layer_by_layer: Throughput
    bottleneck: str
    occupancy: dict[int, float] = Field(description="share of the time that each array is busy, pipelined")
    programming: Programming
    reloading: Reloading | None = Field(description="where segments are written one after another, for every batch")
    sources: dict[str, str] = Field(description="where constants come from, and the node of each")
    excluded: tuple[str, ...]

    @property
    def total_area(self) -> float:
        """Square metres."""
        return sum(self.area.values())


class Peak(_Record):
    """What all arrays of a chip do at once, on unsigned inputs."""

    arrays: int
    ops: float = Field(description="operations a second")
    tile_power: dict[str, float] = Field(description="watts of one tile by component")
    power: float
    area: float


def cost(program: TileProgram, batch: int = 1) -> CostReport:
    """Time, energy and area of a program.

    Parameters
    ----------
    program
        The program; its calibration inputs decide what arrays draw.
    batch
        Samples that share the writing of segments, where a program has several (`compile` with ``reload``).

    Raises
    ------
    DataError
        If the batch is not positive.
    """
    spec, tables = program.spec, program.tables
    piped, serial = (schedule(program, pipelined=pipelined, batch=batch) for pipelined in (True, False))
    draws = _line_conductances(program)
    layers = tuple(
        _layer(program, step, stage, start, draws)
        for step, stage, start in zip(tables.instructions, piped.stages, piped.starts, strict=True)
        if isinstance(step, Loop)  # a layer may have the name of a digital segment
    )
    dynamic = {name: math.fsum(layer.energy[name] for layer in layers) for name in COMPONENTS[:-1]}
    operations = digital_operations(program)
    dynamic["digital"] += math.fsum(operations.values()) * spec.costs.digital.energy
    elements = sum(node.elements or 0 for node in program.report.digital)
    for name, memory in (("buffer", spec.costs.buffer), ("link", spec.costs.link)):
        dynamic[name] += 2 * elements * vector_bytes(spec) * memory.energy
    programming, reloading = programming_of(program), reloading_of(program, batch)
    if reloading is not None:
        dynamic["write"] = reloading.energy / batch
    arrays = len(piped.occupancy)
    static, area = static_power(spec, arrays), chip_area(spec, arrays)
    macs = sum(layer.macs for layer in program.report.layers)
    total_area = sum(area.values())

    def rates(found: Schedule) -> Throughput:
        energy = math.fsum(dynamic.values()) + static * found.interval
        ops = 2 * macs / found.interval
        return Throughput(
            interval=found.interval,
            latency=found.latency,
            fill=found.fill,
            energy=energy,
            power=energy / found.interval,
            tops=ops / 1e12,
            tops_per_watt=ops / (energy / found.interval) / 1e12,
            tops_per_mm2=ops / 1e12 / (total_area * 1e6) if total_area else None,
        )

    return CostReport(
        model=tables.model_name,
        spec=spec.name,
        macs=macs,
        adc_bits=spec.periphery.adc_bits,
        arrays=arrays,
        cores=-(-arrays // spec.chip.arrays_per_core),
        tiles=tiles_of(spec, arrays),
        layers=layers,
        energy={**dynamic, "static": static * piped.interval},
        area=area,
        pipelined=rates(piped),
        layer_by_layer=rates(serial),
        bottleneck=piped.bottleneck,
        occupancy=piped.occupancy,
        programming=programming,
        reloading=reloading,
        sources=sources_of(spec),
        excluded=_excluded(program),
    )


def peak(spec: HardwareSpec) -> Peak:
    """What all arrays of a chip do at once: every cell holds a weight, inputs are unsigned.

    Parameters
    ----------
    spec
        With `chip.tiles`; energy of reads must be fixed, for there are no conductances and inputs to tell it.
    """
    costs, chip, array = spec.costs, spec.chip, spec.array
    arrays = chip.arrays or chip.cores_per_tile * chip.arrays_per_core
    per_tile = chip.cores_per_tile * chip.arrays_per_core
    weights = array.weight_rows * array.weight_cols / array.slices / array.arrays_per_site
    read = read_time(spec)
    bits = spec.periphery.adc_bits
    converted = channels(spec) / array.arrays_per_site
    actions = {
        "array": costs.array.energy or 0.0,
        "dac": array.rows * costs.dac.energy,
        "adc": 0.0 if bits is None else converted * adc_energy(costs.adc, bits, costs.node),
        "sample_hold": array.cols * costs.sample_hold.energy,
        "shift_add": 0.0 if bits is None else converted * costs.shift_add.energy,
    }
    power = {name: energy * per_tile / read for name, energy in actions.items()}
    power["buffer"] = costs.buffer.energy * costs.buffer.rate
    power["link"] = costs.link.energy * costs.link.rate
    power["static"] = chip.cores_per_tile * costs.core.power + costs.tile.power
    return Peak(
        arrays=arrays,
        ops=2 * weights * arrays / (spec.periphery.digits(signed=False) * read),
        tile_power=power,
        power=sum(power.values()) * (arrays / per_tile) + costs.chip.power,
        area=sum(chip_area(spec, arrays).values()),
    )


def static_power(spec: HardwareSpec, arrays: int) -> float:
    """Watts that the cores and tiles of so many arrays draw all the time, and the chip."""
    costs = spec.costs
    cores = -(-arrays // spec.chip.arrays_per_core)
    return cores * costs.core.power + tiles_of(spec, arrays) * costs.tile.power + costs.chip.power


def chip_area(spec: HardwareSpec, arrays: int) -> dict[str, float]:
    """Square metres of so many arrays with what surrounds them, by component."""
    costs, array, bits = spec.costs, spec.array, spec.periphery.adc_bits
    sites = arrays / array.arrays_per_site
    adcs = 0.0 if bits is None else sites * math.ceil(channels(spec) / columns_per_adc(spec))
    return {
        "array": arrays * array.rows * array.cols * costs.array.cell_area,
        "dac": arrays * array.rows * costs.dac.area,
        "adc": 0.0 if bits is None else adcs * adc_area(costs.adc, bits, costs.node),
        "sample_hold": arrays * array.cols * costs.sample_hold.area,
        "shift_add": adcs * costs.shift_add.area,
        "core": -(-arrays // spec.chip.arrays_per_core) * costs.core.area,
        "tile": tiles_of(spec, arrays) * costs.tile.area,
        "chip": costs.chip.area,
        "digital": costs.digital.area,
    }


def _line_conductances(program: TileProgram) -> dict[int, Float64]:
    """Conductance that each word line of each array drives, siemens, ``(rows,)``: that of all cells on it."""
    array = program.spec.array
    found: dict[int, Float64] = {}
    cells: dict[int, Float64] = {}
    for tile in program.tables.tiles:
        sides = zip(program.places(tile.name).values(), program.assumed_conductances(tile.name), strict=False)
        for (number, rows, cols), conductance in sides:
            found.setdefault(number, np.zeros(array.rows))[rows] += conductance.sum(1)
            cells.setdefault(number, np.zeros(array.rows))[rows] += len(cols)
    for number, used in cells.items():
        found[number] += (array.cols - used) * array.unused
    return found


def _duties(program: TileProgram, layer: str) -> Float64:
    """Mean drive of each element of a layer's vectors, all digits and phases together, in full reads."""
    spec, row = program.spec, program.layers[layer]
    periphery = spec.periphery
    code_max = periphery.input_code_max(row.signed)
    vectors = program.calibration[f"{layer}/vectors"].astype(np.float64)
    codes = input_codes(vectors, row.full_scale, code_max, row.signed)
    if code_max is None:
        shares = [np.abs(codes)]
    else:
        base = periphery.digit_base(row.signed)
        shares = [
            np.abs(input_digit(codes, base, number)) / (min(base - 1, code_max))
            for number in range(periphery.digits(row.signed))
        ]
    power = 2 if periphery.input_coding == "amplitude" else 1
    found: Float64 = sum((share**power).mean(0) for share in shares)
    return found


def _layer(program: TileProgram, loop: Loop, stage: Stage, start: float, draws: Mapping[int, Float64]) -> LayerCost:
    spec, row = program.spec, program.layers[loop.layer]
    costs, periphery, array = spec.costs, spec.periphery, spec.array
    digits = periphery.digits(row.signed)
    steps = [step for step in loop.body if step.op == "mvm"]
    sides = array.devices_per_weight
    lines = 2 if array.pairing in ("two_arrays", "neighbouring_rows") else 1
    columns = 2 if array.pairing in ("two_arrays", "neighbouring_columns") else 1
    converted = 2 if sides == 2 and periphery.subtract == "after" else 1
    tiles = [program.tiles[step.tile] for step in steps]
    shares = [len(band) for band in window_bands(loop.windows, row.copies)]  # each window runs on one copy
    rows, cols = (
        sum(shares[tile.copy_number] * size for tile, size in zip(tiles, sizes, strict=True))
        for sizes in ([tile.rows for tile in tiles], [tile.cols for tile in tiles])
    )
    reads = digits * sum(shares[tile.copy_number] for tile in tiles)
    conversions = 0 if periphery.adc_bits is None else digits * cols * converted
    read_energy = reads * array.arrays_per_site * (costs.array.energy or 0.0)
    if costs.array.model == "conductances":
        read_energy = periphery.v_read**2 * costs.t_read * _drawn(program, loop, shares, draws)
    moved = loop.windows * sum(moved_bytes(program, loop))
    a_conversion = 0.0 if periphery.adc_bits is None else adc_energy(costs.adc, periphery.adc_bits, costs.node)
    report = next(layer for layer in program.report.layers if layer.name == loop.layer)
    return LayerCost(
        name=loop.layer,
        time=stage.time,
        start=start,
        limit=stage.limit,
        vector_time=stage.vector_time,
        reads=reads,
        conversions=conversions,
        energy={
            "array": read_energy,
            "dac": digits * rows * lines * costs.dac.energy,
            "adc": conversions * a_conversion,
            "sample_hold": digits * cols * columns * costs.sample_hold.energy,
            "shift_add": conversions * costs.shift_add.energy,
            "buffer": moved * costs.buffer.energy,
            "link": moved * costs.link.energy,
            "digital": 0.0,
        },
        adc_bits_needed=adc_bits_needed(spec, max(tile.rows for tile in tiles), signed=row.signed),
        clipped=report.calibration_clipped,
    )


def _drawn(program: TileProgram, loop: Loop, windows: Sequence[int], draws: Mapping[int, Float64]) -> float:
    """Conductance times drive of a loop over all its windows (so many of each copy), siemens times full reads."""
    duties = _duties(program, loop.layer)
    total, seen = 0.0, set[str]()
    for step in loop.body:
        if step.op != "mvm" or step.tile in seen:  # both phases of a tile share its drive
            continue
        seen.add(step.tile)
        tensors, start = program.tile_tensors[step.tile], program.tile_starts[step.tile]
        duty = np.empty(len(tensors.row_map))
        duty[tensors.row_map] = duties[start : start + len(duty)]
        lines: dict[int, list[np.ndarray]] = {}
        for number, rows, _ in program.places(step.tile).values():
            lines.setdefault(number, []).append(rows)
        for number, found in lines.items():
            distinct = found[:1] if program.spec.array.pairing == "neighbouring_columns" else found
            of_copy = windows[program.tiles[step.tile].copy_number]
            total += of_copy * sum(float(draws[number][rows] @ duty) for rows in distinct)
    return total


def adc_bits_needed(spec: HardwareSpec, rows: int, *, signed: bool) -> int | None:
    """Bits, sign included, that tell apart every sum of so many rows; None where sums are continuous.

    Parameters
    ----------
    spec
        The hardware.
    rows
        Word lines that are driven at once.
    signed
        Whether inputs are.
    """
    device, periphery = spec.device, spec.periphery
    if not isinstance(device.levels, int) or periphery.dac_bits is None:
        return None
    code_max = periphery.input_code_max(signed)
    assert code_max is not None
    digit = min(periphery.digit_base(signed) - 1, code_max)
    largest = rows * digit * (device.levels - 1)
    return 1 + math.ceil(math.log2(largest + 1))


def sources_of(spec: HardwareSpec) -> dict[str, str]:
    """Where the constants of costs come from: by section of the spec."""
    node = f"{spec.costs.node * 1e9:g} nm"
    found = {path: source for path, source in spec.sources.items() if path.split(".")[0] in ("costs", "chip")}
    default = (
        f"default: ISAAC (Shafiee et al., ISCA 2016), 32 nm; ADC by survey at {node}; digital and write our choice"
    )
    return found or {"costs": default}


def _excluded(program: TileProgram) -> tuple[str, ...]:
    spec = program.spec
    unknown = [node.node for node in program.report.digital if node.elements is None]
    found = [
        "reuse of inputs between windows: each window loads all of its vector",
        "reference columns of single devices" if spec.array.pairing == "reference" else "",
        "conversions, for the ADC is ideal" if spec.periphery.adc_bits is None else "",
        f"{len(unknown)} digital operators of unknown size" if unknown else "",
        "memory for what a batch passes from one segment to the next" if program.tables.reload else "",
        "control, clocks and power supply beside the static power of the spec",
        "weights held in digital memory (residue)"
        if any(step.op == "residue" for loop in program.tables.loops for step in loop.body)
        else "",
    ]
    return tuple(one for one in found if one)
