"""A model compiled like a program: the round trip of trained weights, in Python and on the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run_xbarc

import xbarc
from compiler.compile import CompileOptions
from compiler.tuned import tuned_model
from runtime.program import TileProgram
from runtime.rewrite import rewrite

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"


@pytest.fixture(scope="module")
def program() -> TileProgram:
    """digits-cnn on rram-128, calibrated on random images."""
    return xbarc.compile(DIGITS, calibration=np.random.default_rng(0).random((8, 1, 8, 8), np.float32), seed=3)


@pytest.fixture(scope="module")
def tuned(program: TileProgram) -> onnx.ModelProto:
    """The same with smaller weights."""
    return tuned_model(program, {name: 0.9 * weight for name, weight in program.weights.items()}, {})


def assert_rewritten(found: TileProgram, program: TileProgram) -> None:
    """The program is the other with its weights, as they are in the tuned model."""
    weights = {name: (0.9 * weight).astype(weight.dtype) for name, weight in program.weights.items()}
    wanted = rewrite(program, weights, {})
    for name in wanted.tensors:
        np.testing.assert_array_equal(found.tensors[name], wanted.tensors[name])
    for name, value in program.calibration.items():
        np.testing.assert_array_equal(found.calibration[name], value)
    assert found.tables.tiles == program.tables.tiles
    assert found.spec == program.spec


def test_compile_like_a_program(program: TileProgram, tuned: onnx.ModelProto, tmp_path: Path) -> None:
    found = xbarc.compile(tuned, like=program)
    assert_rewritten(found, program)
    program.save(tmp_path / "program.xbar")
    assert_rewritten(xbarc.compile(tuned, like=str(tmp_path / "program.xbar")), program)
    found.save(tmp_path / "found.xbar")
    assert_rewritten(xbarc.load(tmp_path / "found.xbar"), program)
    x = np.random.default_rng(1).random((4, 1, 8, 8), np.float32)
    assert np.isfinite(xbarc.simulate(found)(x)[0]).all()


def test_what_is_as_in_the_program_may_be_given(program: TileProgram, tuned: onnx.ModelProto) -> None:
    options = CompileOptions(predistort=False, keep_source=False)
    found = xbarc.compile(tuned, "rram-128", seed=3, like=program, options=options)
    assert_rewritten(found, program)
    assert found.source is None
    xbarc.compile(tuned, program.spec, chip=xbarc.Chip.ideal(program.spec, program.arrays), like=program)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"spec": "ideal"}, xbarc.SpecError, r"spec must be that of the program given as like \('rram-128'\)"),
        ({"calibration": np.zeros((1, 1, 8, 8), np.float32)}, xbarc.DataError, "calibration must not be given"),
        ({"seed": 4}, xbarc.DataError, "option seed must be that of the program given as like, not 4; leave it out"),
        ({"input_shapes": {"image": (1, 1, 8, 8)}}, xbarc.DataError, "option input_shapes"),
        ({"options": CompileOptions(digital=("node_linear",))}, xbarc.DataError, "option digital"),
        ({"options": CompileOptions(share_arrays=False)}, xbarc.DataError, "option share_arrays"),
        ({"options": CompileOptions(replicas=2)}, xbarc.DataError, "option replicas"),
    ],
)
def test_what_differs_from_the_program_is_refused(
    program: TileProgram, tuned: onnx.ModelProto, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        xbarc.compile(tuned, like=program, **given)


def test_a_program_of_one_chip() -> None:
    """The round trip of a program that is mapped around failed devices; the chip is that of the program, or none."""
    compiled = xbarc.compile(DIGITS, "rram-128-faulty")
    chip, other = (xbarc.Chip.sample(compiled.spec, compiled.arrays, seed) for seed in (1, 2))
    mapped = xbarc.remap(compiled, chip)
    model = tuned_model(mapped, {name: 0.9 * weight for name, weight in mapped.weights.items()}, {})
    assert_rewritten(xbarc.compile(model, like=mapped), mapped)
    found = xbarc.compile(model, like=mapped, chip=chip)
    assert found.tables.mapped_for == chip.sha256
    assert found.faults == mapped.faults
    whole = xbarc.Chip.ideal(compiled.spec, compiled.arrays)
    for program, wrong in ((mapped, other), (compiled, chip), (mapped, whole)):
        with pytest.raises(xbarc.ChipError, match="chip must be the one that the program given as like is mapped for"):
            xbarc.compile(model, like=program, chip=wrong)
    with pytest.raises(xbarc.ChipError, match="at least"):
        xbarc.compile(model, like=mapped, chip=xbarc.Chip.sample(compiled.spec, 1, 1))


def test_predistorted_targets_are_not_those_of_weights(tuned: onnx.ModelProto) -> None:
    spec = xbarc.HardwareSpec.preset("rram-128").with_fields({"array.r_word": 1.0, "array.rows": 32})
    program = xbarc.compile(DIGITS, spec, options=CompileOptions(predistort=False))
    xbarc.compile(tuned, like=program)
    tables = program.tables.model_copy(update={"predistorted": True})
    with pytest.raises(xbarc.ProgramError, match="pre-distorted"):
        xbarc.compile(tuned, like=replace(program, tables=tables))


# -- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(program: TileProgram, tuned: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program and the tuned model as files."""
    folder = tmp_path_factory.mktemp("like")
    program.save(folder / "digits.xbar")
    onnx.save(tuned, folder / "tuned.onnx")
    return folder


def test_command_line(folder: Path, program: TileProgram) -> None:
    like = ("compile", folder / "tuned.onnx", "--like", folder / "digits.xbar")
    done = run_xbarc(*like)
    assert done.code == 0, done.stderr
    assert done.stdout.endswith(f"written to {folder / 'tuned.xbar'}\n")
    assert_rewritten(xbarc.load(folder / "tuned.xbar"), program)
    done = run_xbarc(*like, "-o", folder / "bare.xbar", "--no-source", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "tuned"
    assert xbarc.load(folder / "bare.xbar").source is None
    done = run_xbarc(*like, "-o", folder / "digits.xbar")
    assert done.code == 2
    assert "must be another file than the input" in done.stderr


@pytest.mark.parametrize(
    "option",
    [
        ("--spec", "rram-128"),
        ("--set", "periphery.adc_bits=6"),
        ("--calib", "digits"),
        ("--seed", "0"),
        ("--no-predistort",),
        ("--digital", "node_linear"),
        ("--chip-seed", "1"),
        ("--replicas", "1"),
        ("--stop-after", "lower"),
        ("--save-stages", "stages"),
    ],
)
def test_options_without_effect_are_refused(folder: Path, option: tuple[str, ...]) -> None:
    path = folder / "refused.xbar"
    done = run_xbarc("compile", folder / "tuned.onnx", "--like", folder / "digits.xbar", "-o", path, *option)
    assert done.code == 2
    assert done.stderr == (
        f"error: {option[0].replace('--no-', '--')} and --like must not be given together; "
        "leave it out: that program decides\n"
    )
    assert not path.exists()


def test_another_model_is_refused(folder: Path) -> None:
    lenet = DIGITS.parents[1] / "lenet5-mnist" / "model.onnx"
    done = run_xbarc("compile", lenet, "--like", folder / "digits.xbar", "-o", folder / "lenet.xbar")
    assert done.code == 3
    assert "must have 'node_Conv_36' as layer 0, as the program, not 'node_conv2d'" in done.stderr
