"""Verification of programs that were mapped around failed devices: what the passes give passes, nothing else does."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from small_programs import matmul, small_spec

import xbarc
from compiler.compile import CompileOptions
from hwspec.errors import ProgramError
from hwspec.failures import State
from hwspec.fault_map import FaultMap
from runtime.program import TileProgram

STUCK: dict[str, object] = {"failures.stuck_hrs.rate": 0.06, "failures.stuck_lrs.rate": 0.04}
SPECS: dict[str, dict[str, object]] = {
    "pairs": STUCK,
    "neighbouring columns": {**STUCK, "array.pairing": "neighbouring_columns"},
    "neighbouring rows": {**STUCK, "array.pairing": "neighbouring_rows"},
    "reference": {**STUCK, "array.pairing": "reference"},
    "slices": {**STUCK, "device.levels": 4, "array.slices": 2},
    "continuous": {**STUCK, "device.levels": None},
    "wires": {**STUCK, "array.r_word": 2.0, "array.r_bit": 2.0},
    "access": {**STUCK, "device.r_access": 2000.0},
    "residue": {**STUCK, "periphery.residue": 0.03},
    "gates": {"failures.overformed.rate": 0.05, "failures.overformed.conductance": 4e-4, "array.cell": "2T2R"},
    "gated lines": {
        "failures.overformed.rate": 0.01,
        "failures.overformed.conductance": 4e-4,
        "failures.isolation": "line",
        "failures.allow_unbounded": True,
    },
}
MODEL = matmul(24, 12, seed=1)
REPLICAS = {"pairs": 2}
"""Of some programs; others have one."""


@functools.cache
def mapped(name: str) -> TileProgram:
    spec = small_spec(SPECS[name])
    options = CompileOptions(robust=False)
    x = MODEL.inputs(3, batch=64)
    program = xbarc.compile(MODEL.proto, spec=spec, calibration={"x": x}, options=options)
    replicas = REPLICAS.get(name, 1)
    chip = xbarc.Chip.sample(spec, program.arrays * replicas, 11)
    found = xbarc.remap(program, chip, replicas=replicas)
    assert found.faults is not None
    return replace(found, source=program.source)


def passes(program: TileProgram) -> bool:
    """Whether a program is sound and passes verification."""
    try:
        return xbarc.verify(program, inputs={"x": MODEL.inputs(5)}).passed
    except ProgramError:
        return False


@pytest.mark.parametrize("name", SPECS)
def test_what_was_mapped_passes(name: str) -> None:
    report = xbarc.verify(mapped(name), inputs={"x": MODEL.inputs(5)})
    assert report.passed, report.failures


@pytest.mark.parametrize("spec", ["rram-128-faulty", "rram-128-faulty-lrs"])
def test_raised_pairs_pass(spec: str) -> None:
    x = MODEL.inputs(3, batch=64)
    program = xbarc.compile(MODEL.proto, spec=spec, calibration={"x": x})
    report = xbarc.verify(program, inputs={"x": MODEL.inputs(5)})
    assert report.passed, report.failures


def with_tensor(program: TileProgram, key: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> TileProgram:
    name = f"layer/{key}"
    return replace(program, tensors={**program.tensors, name: change(program.tensors[name].copy())})


def with_tables(program: TileProgram, **changed: object) -> TileProgram:
    return replace(program, tables=program.tables.model_copy(update=changed))


def move_a_good_device(program: TileProgram) -> TileProgram:
    tile = program.tables.tiles[0].name
    good = np.isnan(program.stuck_conductances(tile)[0]).ravel()
    top = program.tile_tensors[tile].plus.max()

    def change(plus: npt.NDArray[Any]) -> npt.NDArray[Any]:
        at = np.flatnonzero(good)[0]
        plus[at] = 0 if plus[at] else top
        return plus

    return with_tensor(program, "plus", change)


def turn_a_column(program: TileProgram) -> TileProgram:
    def change(sign: npt.NDArray[Any]) -> npt.NDArray[Any]:
        sign[0] = -sign[0]
        return sign

    return with_tensor(program, "col_sign", change)


def shift_the_bias(program: TileProgram) -> TileProgram:
    return with_tensor(program, "bias_shift", lambda shift: shift * 1.01)


def forget_the_bias(program: TileProgram) -> TileProgram:
    return replace(program, tensors={key: one for key, one in program.tensors.items() if key != "layer/bias_shift"})


def move_to_a_spare_line(program: TileProgram) -> TileProgram:
    def change(lines: npt.NDArray[Any]) -> npt.NDArray[Any]:
        most = program.spec.array.weight_cols
        tile = program.tables.tiles[-1].cols
        free = sorted(set(range(most)) - set(lines[-tile:].tolist()))
        lines[-tile:] = sorted([*lines[-tile:].tolist()[1:], free[-1]])
        return lines

    return with_tensor(program, "bit_lines", change)


def fail_a_device(program: TileProgram) -> TileProgram:
    """A good device at its lowest level is shorted by the map; nothing else changes."""
    assert program.faults is not None
    tile = program.tables.tiles[0].name
    number, rows, cols = program.places(tile)["plus"]
    good = np.isnan(program.stuck_conductances(tile)[0]) & (program.tile_tensors[tile].plus == 0)
    row, col = np.argwhere(good)[0]
    states = program.faults.states.copy()
    dense = np.stack([program.faults.stuck(array) for array in range(len(states))])
    at = number, rows[row], cols[col]
    states[at], dense[at] = State.STUCK_LRS, program.spec.device.g_max
    faults = FaultMap(states, dense[states != State.OK])
    return with_tables(replace(program, faults=faults), faults_sha256=faults.sha256)


def take_another_chip_s_map(program: TileProgram) -> TileProgram:
    other = xbarc.Chip.sample(program.spec, program.arrays, 99)
    return with_tables(replace(program, faults=other.faults), faults_sha256=other.fault_map.sha256)


def forge_the_map(program: TileProgram) -> TileProgram:
    return replace(program, faults=xbarc.Chip.sample(program.spec, program.arrays, 99).faults)


def claim_fewer_steps(program: TileProgram) -> TileProgram:
    return with_tables(program, mapping_steps=("pair",))


MUTATIONS = (
    move_a_good_device,
    turn_a_column,
    shift_the_bias,
    forget_the_bias,
    move_to_a_spare_line,
    fail_a_device,
    take_another_chip_s_map,
    forge_the_map,
    claim_fewer_steps,
)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("name", ["pairs", "reference", "slices", "wires"])
def test_a_changed_program_fails(mutate: Callable[[TileProgram], TileProgram], name: str) -> None:
    assert not passes(mutate(mapped(name)))


def test_a_changed_residue_fails() -> None:
    program = mapped("residue")
    assert len(program.residue("layer")[0])
    assert not passes(with_tensor(program, "residue", lambda values: values * 1.01))
    assert not passes(with_tensor(program, "residue_index", lambda index: (index + 1) % (24 * 12)))


def test_a_gate_that_opens_or_closes_fails() -> None:
    program = mapped("gates")
    off = program.spec.device.level_count
    assert off is not None
    assert any((side == off).any() for side in (program.tensors["layer/plus"], program.tensors["layer/minus"]))
    assert not passes(with_tensor(program, "plus", lambda plus: np.where(plus == off, 0, plus).astype(plus.dtype)))
    assert not passes(with_tensor(program, "minus", lambda minus: np.where(minus == 0, off, minus).astype(minus.dtype)))
