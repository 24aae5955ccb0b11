"""Pre-distorted targets on the path from model to chip: what they gain, and that verification sees through them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from small_programs import compile_small, matmul, one_node, small_spec

import xbarc
from compiler.compile import CompileOptions, finish, run_compile
from compiler.frontend import load_model
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.reference import Reference

Float64 = npt.NDArray[np.float64]
WIRED = {"array.r_word": 1.0, "array.r_bit": 1.0}
IDEAL = {"periphery.dac_bits": None, "periphery.adc_bits": None}


def compiled(model_seed: int, spec: HardwareSpec, *, predistort: bool) -> TileProgram:
    model = matmul(256, 128, seed=model_seed, positive=True)
    return finish(run_compile(load_model(model.proto), spec, CompileOptions(predistort=predistort), None))


def results(program: TileProgram, effects: frozenset[str]) -> Float64:
    """Outputs for inputs that calibration, which saw uniform ones, did not see."""
    x = np.abs(np.random.default_rng(77).standard_normal((100, 256))).clip(0, 1).astype(np.float32)
    found: Float64 = Reference(program_chip(program, effects=effects))(x)[0].astype(np.float64)
    return found


@pytest.mark.parametrize(("levels", "gone"), [(None, 0.95), (16, 0.75)])
@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns", "neighbouring_rows"])
def test_wires_errors_go(levels: int | None, gone: float, pairing: str) -> None:
    """On `rram-128` at 1 ohm a segment, on fresh inputs: 95 % with continuous targets, 75 % with 16 levels."""
    spec = HardwareSpec.preset("rram-128").with_fields(
        {**WIRED, **IDEAL, "device.levels": levels, "array.pairing": pairing}
    )
    plain, moved = (compiled(4, spec, predistort=choice) for choice in (False, True))
    wanted = results(plain, frozenset())
    before, after = (results(program, frozenset({"wires"})) - wanted for program in (plain, moved))
    share = 1 - np.linalg.norm(after) / np.linalg.norm(before)
    print(f"{pairing}, {levels or 'continuous'}: {share:.1%} of the wires' error gone")
    assert np.linalg.norm(before) > 0.05 * np.linalg.norm(wanted)
    assert share >= gone
    report = moved.report.layers[0].wires
    assert report is not None
    assert report.error_predistorted is not None
    assert report.error_with_gain is not None
    assert report.error_predistorted < report.error_with_gain < report.error


def test_without_wires_nothing_moves() -> None:
    spec = small_spec()
    programs = [compile_small(matmul(24, 12), spec.with_fields({"array.r_word": ohms})) for ohms in (0.0, 5.0)]
    assert [program.tables.predistorted for program in programs] == [False, True]
    assert programs[0].report.layers[0].wires is None
    assert all((tensors.gain == 1).all() for tensors in programs[0].tile_tensors.values())


def test_single_devices_are_left_as_they_are() -> None:
    spec = small_spec({**WIRED, "array.pairing": "reference"})
    program = compile_small(matmul(24, 12), spec)
    assert not program.tables.predistorted
    wires = program.report.layers[0].wires
    assert wires is not None
    assert wires.error > 0
    assert wires.error_predistorted is None


def test_access_resistance_is_made_up_for_too() -> None:
    """It bends large conductances more than small ones, which no gain undoes."""
    spec = small_spec({**WIRED, **IDEAL, "device.levels": None, "device.r_access": 2000.0})
    model = matmul(24, 12)
    x = model.inputs(3, batch=40)
    errors = []
    for predistort in (False, True):
        program = finish(run_compile(load_model(model.proto), spec, CompileOptions(predistort=predistort), None))
        wanted = x @ program.weights["layer"][0]
        found = Reference(program_chip(program, effects={"wires", "access"}))(x)[0]
        errors.append(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    assert errors[1] < 0.05 * errors[0]


def test_the_same_model_gives_the_same_targets() -> None:
    model, spec = matmul(30, 20), small_spec(WIRED)
    one, other = compile_small(model, spec), compile_small(model, spec)
    remapped = xbarc.remap(one)
    for again in (other, remapped):
        assert again.tables.tiles == one.tables.tiles
        for name, tensor in one.tensors.items():
            np.testing.assert_array_equal(again.tensors[name], tensor)
    assert not xbarc.remap(one, predistort=False).tables.predistorted


def moved_level(program: TileProgram) -> TileProgram:
    plus = program.tensors["layer/plus"].copy()
    plus[7] = plus[7] - 1 if plus[7] else plus[7] + 1
    return replace(program, tensors={**program.tensors, "layer/plus": plus})


def larger_gain(program: TileProgram) -> TileProgram:
    gain = program.tensors["layer/gain"].copy()
    gain[3] *= 1.01
    return replace(program, tensors={**program.tensors, "layer/gain": gain})


def not_declared(program: TileProgram) -> TileProgram:
    return replace(program, tables=program.tables.model_copy(update={"predistorted": False}))


def test_targets_that_undo_nothing_are_not_declared_so() -> None:
    model = matmul(12, 8)
    program = compile_small(model)
    declared = replace(program, tables=program.tables.model_copy(update={"predistorted": True}))
    assert not xbarc.verify(declared, model=model.proto.SerializeToString()).passed


@pytest.mark.parametrize("change", [moved_level, larger_gain, not_declared])
def test_verification_sees_changed_targets(change: object) -> None:
    """Targets that undo wires are not the weights' own: they must be what the pass gives, to the level."""
    assert callable(change)
    model = matmul(30, 20)
    program = compile_small(model, small_spec({**WIRED, "array.rows": 32, "array.cols": 32}))
    assert xbarc.verify(program, model=model.proto.SerializeToString()).passed
    report = xbarc.verify(change(program), model=model.proto.SerializeToString())
    assert not report.passed
    assert report.failures


def test_tiles_without_output_have_no_relative_error(tmp_path: Path) -> None:
    """A channel whose weights are zero, beside others on one array: its tile should put nothing out, and wires make it
    put out something. The report still has numbers, which load."""
    weight = np.random.default_rng(0).standard_normal((6, 1, 3, 3))
    weight[2] = 0
    model = one_node("Conv", weight, (6, 5, 5), group=6)
    program = compile_small(model, small_spec({**WIRED, "array.rows": 64, "array.cols": 64}))
    program.save(tmp_path / "quiet.xbar")
    report = xbarc.load(tmp_path / "quiet.xbar").report.layers[0].wires
    assert report is not None
    assert report.error > 0
    assert np.isfinite([report.closed_form_error, report.error]).all()
