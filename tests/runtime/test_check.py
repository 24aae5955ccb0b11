"""Every rule of a sound program: a good program with one thing changed is refused, and the error names it."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mapped_programs import FAILED, mapped_for, with_gated, with_residue, with_spec
from small_programs import compile_small, matmul, one_node, small_spec, two_matmuls

from hwspec.chip import Chip
from hwspec.errors import ProgramError
from runtime.archive import load_program
from runtime.check import check_program
from runtime.program import TileProgram
from runtime.tables import Acc, Host, Load, Loop, Mvm, Residue, Row, Store

Change = Callable[[TileProgram], TileProgram]
Array = npt.NDArray[Any]

GENERATOR = np.random.default_rng(0)
BATCHES = one_node("MatMul", GENERATOR.standard_normal((2, 10, 9)), (2, 2, 10))
"""Two groups of 10 rows and 9 columns: tiles of 8 and 2 rows, 8 and 1 columns; digital segments on both sides."""
CONV = one_node("Conv", GENERATOR.standard_normal((4, 2, 3, 3)), (4, 6, 6), group=2, positive=True)
TRANSPOSED = one_node("ConvTranspose", GENERATOR.standard_normal((4, 2, 3, 3)), (4, 6, 6), group=2)
KINDS: dict[str, Callable[[], TileProgram]] = {
    "batches": lambda: compile_small(BATCHES),
    "conv": lambda: compile_small(CONV),
    "transposed": lambda: compile_small(TRANSPOSED),
    "two_phase": lambda: compile_small(matmul(12, 12), small_spec({"periphery.signed": "two_phase"})),
    "continuous": lambda: compile_small(matmul(12, 12), small_spec({"device.levels": None})),
    "shared": lambda: compile_small(matmul(12, 3)),
    "faulty": lambda: around_failures({"array.cell": "2T2R"}),
    "lines": lambda: around_failures({"failures.isolation": "line", "failures.overformed.isolatable": True}),
    "residue": lambda: with_residue(compile_small(matmul(12, 3)), 0.2, np.random.default_rng(0)),
}


def around_failures(fields: dict[str, object]) -> TileProgram:
    """Mapped around failed devices, with some gated off."""
    program = compile_small(matmul(12, 12), small_spec({**FAILED, **fields}))
    mapped = mapped_for(program, Chip.sample(program.spec, program.arrays, 1))
    return with_gated(mapped, 0.3, np.random.default_rng(0))


@pytest.fixture(scope="module")
def programs() -> dict[str, TileProgram]:
    return {kind: build() for kind, build in KINDS.items()}


def row(table: str, number: int, **changes: object) -> Change:
    """Change fields of a row of a table."""

    def change(program: TileProgram) -> TileProgram:
        rows: list[Row] = list(getattr(program.tables, table))
        rows[number] = rows[number].model_copy(update=changes)
        return with_tables(program, **{table: tuple(rows)})

    return change


def drop(table: str, number: int) -> Change:
    """Leave a row out."""

    def change(program: TileProgram) -> TileProgram:
        rows = list(getattr(program.tables, table))
        del rows[number]
        return with_tables(program, **{table: tuple(rows)})

    return change


def step(kind: type[Row], number: int, **changes: object) -> Change:
    """Change fields of the step of this kind and number in the loop's body."""

    def change(program: TileProgram) -> TileProgram:
        loop = next(program.tables.loops)
        places = [at for at, found in enumerate(loop.body) if isinstance(found, kind)]
        body = list(loop.body)
        body[places[number]] = body[places[number]].model_copy(update=changes)
        return with_loop(program, body=tuple(body))

    return change


def without(kind: type[Row], number: int) -> Change:
    """Leave a step out of the loop's body."""

    def change(program: TileProgram) -> TileProgram:
        body = list(next(program.tables.loops).body)
        body.remove([found for found in body if isinstance(found, kind)][number])
        return with_loop(program, body=tuple(body))

    return change


def host(number: int, **changes: object) -> Change:
    """Change fields of a host instruction."""

    def change(program: TileProgram) -> TileProgram:
        steps = list(program.tables.instructions)
        places = [at for at, found in enumerate(steps) if isinstance(found, Host)]
        steps[places[number]] = steps[places[number]].model_copy(update=changes)
        return with_tables(program, instructions=tuple(steps))

    return change


def tensor(name: str, edit: Callable[[Array], Array | None], part: str = "tensors") -> Change:
    """Change a tensor; None leaves it out."""

    def change(program: TileProgram) -> TileProgram:
        tensors = dict(getattr(program, part))
        edited = edit(tensors[name].copy())
        if edited is None:
            del tensors[name]
        else:
            tensors[name] = edited
        if part == "tensors":
            return replace(program, tensors=tensors)
        return replace(program, weights=tensors) if part == "weights" else replace(program, calibration=tensors)

    return change


def lines(key: str, number: int, start: int, step: int = 1) -> Change:
    """Move a tile to the lines ``start``, ``start + step``, …"""

    def change(program: TileProgram) -> TileProgram:
        flat = program.tensors[f"layer/{key}"].copy()
        sizes = [len(getattr(found, key)) for found in program.tile_tensors.values()]
        first = sum(sizes[:number])
        flat[first : first + sizes[number]] = start + step * np.arange(sizes[number])
        return replace(program, tensors={**program.tensors, f"layer/{key}": flat})

    return change


def put(index: Any, value: object) -> Callable[[Array], Array]:
    """Set elements of an array."""

    def edit(array: Array) -> Array:
        array[index] = value
        return array

    return edit


def with_loop(program: TileProgram, **changes: object) -> TileProgram:
    steps = tuple(
        found.model_copy(update=changes) if isinstance(found, Loop) else found for found in program.tables.instructions
    )
    return with_tables(program, instructions=steps)


def with_tables(program: TileProgram, **changes: object) -> TileProgram:
    return replace(program, tables=program.tables.model_copy(update=changes))


def reversed_order(program: TileProgram) -> TileProgram:
    return with_tables(program, instructions=program.tables.instructions[::-1])


def loop_twice(program: TileProgram) -> TileProgram:
    loop = next(program.tables.loops)
    return with_tables(program, instructions=(*program.tables.instructions, loop))


def other_step(position: int, new: Row) -> Change:
    """Put one more step into the loop's body."""

    def change(program: TileProgram) -> TileProgram:
        body = list(next(program.tables.loops).body)
        body.insert(position, new)  # type: ignore[arg-type]
        return with_loop(program, body=tuple(body))

    return change


def two(first: Change, second: Change) -> Change:
    return lambda program: second(first(program))


RULES: list[tuple[str, str, Change]] = [
    # tables
    ("batches", "spec must have the hash", lambda p: with_tables(p, spec=p.spec.with_fields({"device.levels": 17}))),
    ("batches", "layer 'layer' must be defined once", lambda p: with_tables(p, layers=p.tables.layers * 2)),
    ("batches", "gather 'layer.in' must be defined once", lambda p: with_tables(p, gathers=p.tables.gathers * 2)),
    ("batches", "scatter 'layer.out' must be defined once", lambda p: with_tables(p, scatters=p.tables.scatters * 2)),
    ("batches", "tile 't0' must be defined once", row("tiles", 1, name="t0")),
    ("batches", "must be defined once", lambda p: with_tables(p, buffers=p.tables.buffers * 2)),
    ("batches", "evenly among its groups", row("gathers", 0, groups=3)),
    ("transposed", "scatter.*evenly among its groups", row("scatters", 0, groups=3)),
    ("batches", "gather 'layer.in' must have no kernel", row("gathers", 0, kernel=(1,))),
    ("conv", "gather 'layer.in' must have a kernel", row("gathers", 0, kernel=())),
    ("conv", "must have 2 strides", row("gathers", 0, strides=(1,))),
    ("conv", "must have 2 dilations", row("gathers", 0, dilations=(1, 1, 1))),
    ("conv", "must have 4 pads", row("gathers", 0, pads=())),
    ("conv", "scatter 'layer.out' must have no kernel", row("scatters", 0, kernel=(1,))),
    ("transposed", "must have 2 output paddings", row("scatters", 0, output_padding=(0,))),
    ("transposed", "must have 2 output sizes", row("scatters", 0, output_shape=(9,))),
    ("transposed", "scatter 'layer.out' must have 4 pads", row("scatters", 0, pads=(0, 0))),
    # layers and their tensors
    ("batches", "must have float weights of shape", row("layers", 0, groups=4)),
    ("batches", "must have float weights of shape", tensor("layer", lambda _: None, "weights")),
    ("batches", "must have float weights", tensor("layer", lambda a: a.astype(np.int32), "weights")),
    ("batches", "must have finite weights", tensor("layer", put((0, 0, 0), np.nan), "weights")),
    ("batches", "weights 'other' must belong", lambda p: replace(p, weights={**p.weights, "other": np.zeros(1)})),
    ("batches", "tensor 'x/plus' must belong", lambda p: replace(p, tensors={**p.tensors, "x/plus": np.zeros(1)})),
    ("batches", "calibration 'x' must belong", lambda p: replace(p, calibration={**p.calibration, "x": np.zeros(1)})),
    *(
        ("batches", f"tensor layer/{key} must hold", tensor(f"layer/{key}", edit))
        for key in ("plus", "minus", "row_map", "col_map", "col_sign", "scale", "word_lines", "bit_lines")
        for edit in (lambda a: a[:-1], lambda _: None, lambda a: a[None])
    ),
    *(
        ("batches", f"tensor layer/{key} must be of type", tensor(f"layer/{key}", lambda a: a.astype(np.float32)))
        for key in ("plus", "minus", "row_map", "col_map", "col_sign", "scale", "word_lines", "bit_lines")
    ),
    ("continuous", "layer/plus must be of type", tensor("layer/plus", lambda a: a.astype(np.float32))),
    ("batches", "tensor layer/bias must be a vector", tensor("layer/bias", put(0, np.inf))),
    ("batches", "tensor layer/bias must be a vector", tensor("layer/bias", lambda a: a.astype(np.float32))),
    ("batches", "tensor layer/bias must hold 18 elements", tensor("layer/bias", lambda a: a[:-1])),
    ("batches", "must be computed by one loop, not 2", loop_twice),
    ("batches", "must be computed by one loop, not 0", drop("instructions", 1)),
    # calibration and report
    *(
        ("batches", f"calibration layer/{key} must be in the program", tensor(f"layer/{key}", edit, "calibration"))
        for key in ("range", "mean", "covariance", "vectors")
        for edit in (lambda _: None, lambda a: a.astype(np.int64))
    ),
    ("batches", "layer/range must be finite", tensor("layer/range", put(1, np.nan), "calibration")),
    ("batches", "layer/range must be a lowest", tensor("layer/range", put(0, 0.5), "calibration")),
    ("batches", "layer/range must be a lowest", tensor("layer/range", lambda a: a[:1], "calibration")),
    ("batches", "layer/mean must hold 20", tensor("layer/mean", lambda a: a[1:], "calibration")),
    ("batches", "layer/vectors must be vectors of 20", tensor("layer/vectors", lambda a: a[:, 1:], "calibration")),
    ("batches", "layer/vectors must be finite", tensor("layer/vectors", put((0, 0), np.inf), "calibration")),
    ("batches", "layer/covariance must hold", tensor("layer/covariance", lambda a: a[1:], "calibration")),
    ("batches", "report must tell", lambda p: replace(p, report=p.report.model_copy(update={"layers": ()}))),
    # tiles
    ("batches", "tile 't3' must belong to a layer", row("tiles", 3, layer="nothing")),
    ("batches", "tile 't0' must lie within its site", lines("word_lines", 0, 1)),
    ("batches", "tile 't0' must lie within its site", lines("bit_lines", 0, 1)),
    ("batches", "tile 't0' must lie within its site", lines("word_lines", 0, 2**31 - 9)),
    ("batches", "tile 't0' must lie within its site", lines("bit_lines", 0, -1)),
    ("batches", "tile 't0' must have rising word lines", lines("word_lines", 0, 0, step=0)),
    ("batches", "tile 't0' must have rising bit lines", lines("bit_lines", 0, 7, step=-1)),
    ("batches", "tile 't0' must start a site", row("tiles", 0, array=1)),
    ("batches", "tile 't0' must have plus level codes below 16", tensor("layer/plus", put(0, 17))),
    ("batches", "tile 't0' must not gate plus devices off", tensor("layer/plus", put(0, 16))),
    ("continuous", "tile 't0' must not gate minus devices off", tensor("layer/minus", put(0, 0.0))),
    ("batches", "tile 't0' must be one of 1 replicas", row("tiles", 0, replica=1)),
    ("batches", "tile 't0' must have minus level codes below 16", tensor("layer/minus", put(0, 255))),
    ("continuous", "must have plus conductances within", tensor("layer/plus", put(0, 2e-4))),
    ("continuous", "must have minus conductances within", tensor("layer/minus", put(0, 1e-7))),
    ("continuous", "must have minus conductances within", tensor("layer/minus", put(0, np.nan))),
    ("batches", "tile 't0' must drive each of its rows once", tensor("layer/row_map", put(0, 1))),
    ("batches", "tile 't0' must drive each of its rows once", tensor("layer/row_map", put(0, -1))),
    ("batches", "tile 't0' must drive each of its rows once", tensor("layer/row_map", put(0, 8))),
    ("batches", "tile 't0' must have distinct columns", tensor("layer/col_map", put(0, 1))),
    ("batches", "tile 't0' must have distinct columns", tensor("layer/col_map", put(0, -1))),
    ("batches", "tile 't0' must have distinct columns of one group", tensor("layer/col_map", put(0, 9))),
    (
        "batches",
        "tile 't0' must have distinct columns of one group",
        tensor("layer/col_map", put(slice(0, 8), range(20, 28))),
    ),
    ("batches", "tile 't0' must have column signs", tensor("layer/col_sign", put(0, 0))),
    ("batches", "tile 't0' must have positive finite scales", tensor("layer/scale", put(0, 0.0))),
    ("batches", "tile 't0' must have positive finite scales", tensor("layer/scale", put(0, np.inf))),
    ("shared", "tile 't1' must not overlap another tile on array", lines("bit_lines", 1, 2)),
    # instructions
    ("batches", "segment 'seg9' must be in the program", host(0, segment="seg9")),
    ("batches", "segment 'seg0' must be an ONNX model", lambda p: replace(p, segments={**p.segments, "seg0": b"\xff"})),
    ("batches", "segment 'seg0' must read", host(0, inputs=("y",))),
    ("batches", "segment 'seg0' must read", host(0, inputs=("x", "x"))),
    ("batches", "segment 'seg0' must write", host(0, outputs=())),
    ("batches", "must read buffers that earlier instructions wrote", reversed_order),
    ("batches", "program outputs must read buffers", row("outputs", 0, name="nothing")),
    (
        "batches",
        "loop 'other' must compute a layer",
        two(
            loop_twice,
            lambda p: with_tables(
                p,
                instructions=(
                    *p.tables.instructions[:-1],
                    p.tables.instructions[-1].model_copy(update={"layer": "other"}),
                ),
            ),
        ),
    ),
    ("batches", "must load from one buffer through one gather", step(Load, 0, buffer="x")),
    ("batches", "must load from one buffer through one gather", lambda p: with_loop(p, body=())),
    (
        "shared",
        "must read buffers that earlier instructions wrote",
        two(step(Load, 0, buffer="z"), step(Load, 1, buffer="z")),
    ),
    ("conv", "must load from a buffer of floats", row("buffers", 0, dtype="int32")),
    ("shared", "must load through a gather of the program", two(step(Load, 0, gather="g"), step(Load, 1, gather="g"))),
    ("batches", "must load rows of one group", step(Load, 0, start=4, stop=12)),
    ("batches", "must load rows of one group", step(Load, 0, start=8, stop=8)),
    ("batches", "must load rows of one group", step(Load, -1, stop=21)),
    ("batches", "must load rows of one group", row("gathers", 0, channels=40)),
    ("batches", "must drive a tile of the program", step(Mvm, 0, tile="t99")),
    ("batches", "must drive a register that was loaded", step(Mvm, 0, source="q")),
    ("batches", "must drive a register that was loaded", without(Load, 0)),
    ("batches", "tile 't0' must have the 7 rows loaded", step(Load, 0, start=1)),
    ("batches", "tile 't0' must see rows of its own group", step(Load, 0, start=10, stop=18)),
    ("batches", "must use the phases", step(Mvm, 0, phase="+")),
    ("two_phase", "must use the phases", step(Mvm, 0, phase="both")),
    ("batches", "tile 't0' must have 1 ADC ranges", row("tiles", 0, adc_range=())),
    ("two_phase", "tile 't0' must have 2 ADC ranges", row("tiles", 0, adc_range=(1e-5,))),
    ("batches", "must accumulate a register that an mvm wrote", step(Acc, 0, source="x0")),
    ("batches", "must accumulate 't0' through its own map", step(Acc, 0, tile="t1")),
    ("batches", "must use a register for one kind of step, not 'x0'", step(Mvm, 0, into="x0")),
    ("batches", "must use a register for one kind of step, not 'x0'", step(Acc, 0, into="x0")),
    ("batches", "must use a register for one kind of step, not 'y'", step(Load, -1, into="y")),
    ("batches", "must store through a scatter of the program", step(Store, 0, scatter="s")),
    ("batches", "must store a register that was accumulated", step(Store, 0, source="p0")),
    ("batches", "scatter 'layer.out' must write 18 elements", row("scatters", 0, channels=20)),
    ("batches", "scatter 'layer.out' must suit", row("scatters", 0, kind="image")),
    ("conv", "scatter 'layer.out' must suit", row("scatters", 0, kind="vectors")),
    (
        "transposed",
        "scatter 'layer.out' must suit",
        row("scatters", 0, kernel=(9,), strides=(1,), dilations=(1,), pads=(0, 0), output_padding=(0,)),
    ),
    ("conv", "must store into a buffer of floats", step(Store, 0, buffer="nothing")),
    ("shared", "must store into a buffer of floats", row("buffers", 0, dtype="int8")),
    ("batches", "must store its result", without(Store, 0)),
    # failed devices and gates
    ("faulty", "must hold failed devices and mapped_for", lambda p: with_tables(p, mapped_for=None)),
    ("faulty", "must hold failed devices and mapped_for", lambda p: replace(p, faults=None)),
    ("faulty", "failed devices must cover", lambda p: replace(p, faults=Chip(8, 8, 1).fault_map)),
    ("faulty", "failed devices must cover", lambda p: replace(p, faults=Chip(8, 7, 8).fault_map)),
    ("faulty", "must not gate off overformed devices", tensor("layer/plus", put(slice(None), 16))),
    ("lines", "must gate off all devices of a word line", tensor("layer/plus", put(slice(0, 200, 3), 16))),
    # residue
    ("residue", "layer/residue must be there", tensor("layer/residue", lambda _: None)),
    ("residue", "layer/residue must be there", tensor("layer/residue_index", lambda _: None)),
    ("residue", "layer/residue must be there", two(without(Residue, 1), without(Residue, 0))),
    ("residue", "residue_index must be rising", tensor("layer/residue_index", lambda a: a[::-1].copy())),
    ("residue", "residue_index must be rising", tensor("layer/residue_index", put(0, -1))),
    ("residue", "residue_index must be rising", tensor("layer/residue_index", put(-1, 36))),
    ("residue", "residue_index must be rising", tensor("layer/residue_index", lambda a: a.astype(np.int32))),
    ("residue", "layer/residue must be 8 finite", tensor("layer/residue", lambda a: a[1:])),
    ("residue", "layer/residue must be 8 finite", tensor("layer/residue", put(0, np.nan))),
    ("residue", "layer/residue must be 8 finite", tensor("layer/residue", lambda a: a.astype(np.float32))),
    ("residue", "must hold at most 4 weights", lambda p: with_spec(p, {"periphery.residue": 0.1})),
    ("residue", "must add each weight of the residue to %y once", without(Residue, 0)),
    ("residue", "must add each weight of the residue to %y once", step(Residue, 0, source="x1")),
    ("residue", "must take the residue of a register that was loaded", step(Residue, 0, source="p0")),
    ("residue", "must add its residue to a register that was accumulated", step(Residue, 0, into="z")),
    ("residue", "must use a register for one kind of step, not 'x0'", step(Residue, 0, into="x0")),
]


@pytest.mark.parametrize(("kind", "message", "change"), RULES, ids=[f"{kind}-{text}" for kind, text, _ in RULES])
def test_a_changed_program_is_refused(
    programs: dict[str, TileProgram], tmp_path: Path, kind: str, message: str, change: Change
) -> None:
    changed = change(programs[kind])
    with pytest.raises(ProgramError, match=message):
        check_program(changed)
    changed.save(tmp_path / "changed.xbar")
    with pytest.raises(ProgramError):
        load_program(tmp_path / "changed.xbar")


def test_a_second_store_into_a_buffer_is_refused(programs: dict[str, TileProgram]) -> None:
    program = programs["batches"]
    store = next(found for found in next(program.tables.loops).body if isinstance(found, Store))
    with pytest.raises(ProgramError, match="must store into a buffer once"):
        check_program(other_step(10**6, store)(program))


def test_a_loop_drives_no_tile_of_another_layer() -> None:
    program = compile_small(two_matmuls())
    first, second = program.tables.loops
    tile = next(found.tile for found in second.body if isinstance(found, Mvm))
    body = tuple(found.model_copy(update={"tile": tile}) if hasattr(found, "tile") else found for found in first.body)
    changed = with_tables(program, instructions=(first.model_copy(update={"body": body}), second))
    with pytest.raises(ProgramError, match="must drive its own tiles"):
        check_program(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_good_programs_pass(programs: dict[str, TileProgram], kind: str) -> None:
    check_program(programs[kind])


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 0},
        {"array": -1},
        {"adc_range": (0.0,)},
        {"adc_range": (float("inf"),)},
        {"adc_range": (1.0, 1.0, 1.0)},
        {"name": ""},
    ],
)
def test_fields_out_of_range_are_refused_on_loading(
    programs: dict[str, TileProgram], tmp_path: Path, change: dict[str, object]
) -> None:
    row("tiles", 0, **change)(programs["batches"]).save(tmp_path / "changed.xbar")
    with pytest.raises(ProgramError, match=r"invalid program\.json"):
        load_program(tmp_path / "changed.xbar")


def test_many_tiles_are_checked_quickly() -> None:
    """Ten thousand tiles take a fraction of a second; a check that compares each with each would take minutes."""
    program = compile_small(matmul(800, 800))
    assert len(program.tables.tiles) == 10_000
    seconds = []
    for _ in range(3):
        start = time.process_time()
        check_program(program)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2
