"""Validation of instructions: every register and buffer is written before it is read, and has the right size."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil

import numpy as np

from hwspec.errors import ProgramError
from runtime.program import TileProgram
from runtime.requirement import require
from runtime.tables import Acc, Host, Layer, Load, Loop, Mvm, Residue, Row, Scatter, Store, input_phases

_FLOATS = ("float16", "float32", "float64")


def check_instructions(program: TileProgram) -> None:
    """Raise `ProgramError` unless every instruction can run; layers and tiles were checked."""
    tables = program.tables
    known = {info.name for info in tables.inputs}
    for instruction in tables.instructions:
        if isinstance(instruction, Host):
            _check_segment(program, instruction)
            _all_known(f"segment {instruction.segment!r}", instruction.inputs, known)
            known.update(instruction.outputs)
        else:
            _check_loop(program, instruction, known)
    _all_known("program outputs", (info.name for info in tables.outputs), known)


def _check_segment(program: TileProgram, host: Host) -> None:
    import onnx

    subject = f"segment {host.segment!r}"
    require(host.segment in program.segments, subject, "must be in the program", host.segment)
    try:
        model = onnx.load_model_from_string(program.segments[host.segment])
    except Exception:  # protobuf's own exception types differ from one of its implementations to the next
        raise ProgramError(subject, "must be an ONNX model") from None
    graph = model.graph
    for kind, names, values in (("read", host.inputs, graph.input), ("write", host.outputs, graph.output)):
        wanted = tuple(value.name for value in values)
        require(names == wanted, subject, f"must {kind} {wanted}", names)
        for value in values:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.shape.SetInParent()  # the checker wants one, segments go without
    model.ir_version = min(model.ir_version, onnx.IR_VERSION)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, and ValueError beyond protobuf's limits
        raise ProgramError(subject, f"must be a valid ONNX model ({str(error).strip().splitlines()[0]})") from None


def _all_known(subject: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ProgramError(subject, "must read buffers that earlier instructions wrote", got=name)


def _check_loop(program: TileProgram, loop: Loop, known: set[str]) -> None:
    subject = f"loop {loop.layer!r}"
    require(loop.layer in program.layers, subject, "must compute a layer of the program", loop.layer)
    layer, dtypes = program.layers[loop.layer], program.dtypes
    loads: dict[str, Load] = {}
    mvms: dict[str, Mvm] = {}
    sums: set[str] = set()
    stored: set[str] = set()
    held: dict[str, str] = {}
    residues: dict[str, list[Load]] = {}
    sources = {(step.buffer, step.gather) for step in loop.body if isinstance(step, Load)}
    require(len(sources) == 1, subject, "must load from one buffer through one gather", sorted(sources))

    def resolve(found: Row | None, requirement: str, got: str) -> None:
        if found is None:
            raise ProgramError(subject, requirement, got=got)

    for step in loop.body:
        if not isinstance(step, Store):
            kind = "acc" if isinstance(step, Residue) else step.op
            good = held.setdefault(step.into, kind) == kind
            require(good, subject, "must use a register for one kind of step", step.into)
        if isinstance(step, Load):
            _all_known(subject, [step.buffer], known)
            require(dtypes.get(step.buffer) in _FLOATS, subject, "must load from a buffer of floats", step.buffer)
            gather = program.gathers.get(step.gather)
            resolve(gather, "must load through a gather of the program", step.gather)
            assert gather is not None
            good = step.start < step.stop <= gather.length == layer.groups * layer.rows
            good = good and step.start // layer.rows == (step.stop - 1) // layer.rows
            require(good, subject, "must load rows of one group within the vector", (step.start, step.stop))
            loads[step.into] = step
        elif isinstance(step, Mvm):
            tile, load = program.tiles.get(step.tile), loads.get(step.source)
            resolve(tile, "must drive a tile of the program", step.tile)
            resolve(load, "must drive a register that was loaded", step.source)
            assert tile is not None
            assert load is not None
            require(tile.layer == loop.layer, subject, "must drive its own tiles", tile.name)
            rows = load.stop - load.start
            require(tile.rows == rows, f"tile {tile.name!r}", f"must have the {rows} rows loaded", tile.rows)
            group = int(program.tile_tensors[tile.name].col_map[0]) // layer.cols
            require(load.start // layer.rows == group, f"tile {tile.name!r}", "must see rows of its own group", group)
            phases = input_phases(program.spec, layer.signed)
            require(step.phase in phases, subject, f"must use the phases {phases}", step.phase)
            if program.spec.periphery.needs_range:
                good = len(tile.adc_range) == len(phases)
                require(good, f"tile {tile.name!r}", f"must have {len(phases)} ADC ranges", tile.adc_range)
            mvms[step.into] = step
        elif isinstance(step, Acc):
            mvm = mvms.get(step.source)
            resolve(mvm, "must accumulate a register that an mvm wrote", step.source)
            assert mvm is not None
            require(mvm.tile == step.tile, subject, f"must accumulate {mvm.tile!r} through its own map", step.tile)
            sums.add(step.into)
        elif isinstance(step, Residue):
            load = loads.get(step.source)
            resolve(load, "must take the residue of a register that was loaded", step.source)
            assert load is not None
            require(step.into in sums, subject, "must add its residue to a register that was accumulated", step.into)
            residues.setdefault(step.into, []).append(load)
        else:
            _check_store(program, layer, step, program.scatters.get(step.scatter), sums)
            gather, scatter = program.gathers[next(iter(sources))[1]], program.scatters[step.scatter]
            fits = (gather.kind == "vectors") == (scatter.kind == "vectors")
            fits = fits and (scatter.kind != "fold" or len(scatter.kernel) == len(gather.kernel))
            require(fits, f"scatter {scatter.name!r}", f"must suit the gather {gather.name!r}", scatter.kind)
            require(step.buffer not in stored, subject, "must store into a buffer once", step.buffer)
            stored.add(step.buffer)
            require(dtypes.get(step.buffer) in _FLOATS, subject, "must store into a buffer of floats", step.buffer)
    require(bool(stored), subject, "must store its result", "nothing")
    _check_residue(program, layer, residues)
    known |= stored


def _check_store(program: TileProgram, layer: Layer, step: Store, scatter: Scatter | None, sums: set[str]) -> None:
    subject = f"loop {layer.name!r}"
    if scatter is None:
        raise ProgramError(subject, "must store through a scatter of the program", got=step.scatter)
    require(step.source in sums, subject, "must store a register that was accumulated", step.source)
    length = layer.groups * layer.cols
    require(scatter.length == length, f"scatter {scatter.name!r}", f"must write {length} elements", scatter.length)
    size = len(program.bias(layer.name))
    require(size == scatter.channels, f"tensor {layer.name}/bias", f"must hold {scatter.channels} elements", size)


def _check_residue(program: TileProgram, layer: Layer, steps: Mapping[str, Sequence[Load]]) -> None:
    """The residue is there when steps add it, within its budget, and they add each of its weights once."""
    subject, size = f"tensor {layer.name}/residue", layer.groups * layer.rows * layer.cols
    held = [f"{layer.name}/{key}" in program.tensors for key in ("residue_index", "residue")]
    require(held == [bool(steps)] * 2, subject, "must be there, with its index, when steps add it, and only then", held)
    if not steps:
        return
    index, values = program.residue(layer.name)
    good = index.dtype == np.int64 and index.ndim == 1
    good = good and bool((np.diff(index, prepend=-1) > 0).all() and (index < size).all())
    require(good, f"{subject}_index", f"must be rising int64 below {size}", index[:8].tolist())
    good = values.dtype == np.float64 and values.shape == index.shape and bool(np.isfinite(values).all())
    require(good, subject, f"must be {len(index)} finite float64", values.shape)
    most = ceil(program.spec.periphery.residue * size)
    require(len(index) <= most, subject, f"must hold at most {most} weights (periphery.residue)", len(index))
    for register, loads in steps.items():
        counts = np.zeros(layer.groups * layer.rows, np.int64)
        for load in loads:
            counts[load.start : load.stop] += 1
        good = bool((counts[index // layer.cols] == 1).all())
        require(good, f"loop {layer.name!r}", f"must add each weight of the residue to %{register} once", len(loads))
