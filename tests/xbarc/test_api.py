"""The public API: what the README shows works, and errors are xbarc's own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import xbarc
from runtime.listing import parse_listing
from xbarc.data.load import load_data

MODEL = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"


@pytest.fixture(scope="module")
def program() -> xbarc.TileProgram:
    """digits-cnn on rram-128, calibrated on the training split."""
    return xbarc.compile(MODEL, calibration=_digits("train"))


def _digits(split: str) -> dict[str, np.ndarray]:
    from runtime.tables import TensorInfo

    info = TensorInfo(name="image", dtype="float32", shape=("batch", 1, 8, 8))
    return load_data("digits", [info], split=split, limit=64).inputs


def test_every_public_name_can_be_had() -> None:
    for name in xbarc.__all__:
        assert getattr(xbarc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        _ = xbarc.compil


def test_import_is_light() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "scipy", "networkx", "pint", "rich"}
    code = f"import sys, xbarc; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_in_python(program: xbarc.TileProgram, tmp_path: Path) -> None:
    path = tmp_path / "model.xbar"
    program.save(path)
    loaded = xbarc.load(path)
    assert loaded.report == program.report
    assert parse_listing(loaded.listing()) == program.tables
    x = _digits("test")
    truth = ort.InferenceSession(str(MODEL)).run(None, x)[0]
    fast, slow = xbarc.simulate(loaded)(x)[0], xbarc.simulate(loaded, engine="reference")(x["image"])[0]
    assert fast.shape == slow.shape == truth.shape
    assert (fast.argmax(1) == truth.argmax(1)).mean() > 0.95
    # In float32 a code in ten thousand may fall on the other side of a tie.
    assert np.abs(fast - slow).mean() < 0.05 * np.abs(slow - truth).mean()
    report = xbarc.verify(loaded, inputs=x)
    assert report.passed, report.failures


def test_compile_takes_the_model_in_any_form() -> None:
    import onnx

    programs = [xbarc.compile(model, spec="ideal") for model in (str(MODEL), MODEL.read_bytes(), onnx.load(MODEL))]
    assert [program.tables.model_name for program in programs] == ["model", "main_graph", "main_graph"]
    first, *others = (program.tables.model_copy(update={"model_name": ""}) for program in programs)
    assert all(other == first for other in others)


def test_seed_decides_random_calibration() -> None:
    ranges = []
    for seed in (0, 0, 1):
        program = xbarc.compile(MODEL, seed=seed)
        assert program.tables.calibration == "none"
        assert any("no calibration data" in warning for warning in program.report.warnings)
        ranges.append([tile.adc_range for tile in program.tables.tiles])
    assert ranges[0] == ranges[1] != ranges[2]


def test_remap_gives_the_program_again(program: xbarc.TileProgram) -> None:
    again = xbarc.remap(program)
    assert again.tables == program.tables
    assert set(again.tensors) == set(program.tensors)
    assert all(np.array_equal(again.tensors[name], program.tensors[name]) for name in program.tensors)
    alone = xbarc.remap(program, share_arrays=False)
    assert alone.arrays > program.arrays
    x = _digits("test")
    np.testing.assert_array_equal(xbarc.simulate(alone)(x)[0], xbarc.simulate(program)(x)[0])


def test_a_chip_must_take_the_program(program: xbarc.TileProgram) -> None:
    good = xbarc.Chip.ideal(program.spec, program.arrays)
    x = _digits("test")
    np.testing.assert_array_equal(xbarc.simulate(program, good)(x)[0], xbarc.simulate(program)(x)[0])
    small = xbarc.Chip.ideal(program.spec, program.arrays - 1)
    for use in (xbarc.simulate, xbarc.remap):
        with pytest.raises(xbarc.ChipError, match="at least"):
            use(program, small)
    other = program.spec.model_copy(update={"array": {"rows": 64}})
    with pytest.raises(xbarc.ChipError, match="128x128"):
        xbarc.simulate(program, xbarc.Chip.ideal(other, 100))
    with pytest.raises(xbarc.ChipError, match="at least"):
        xbarc.compile(MODEL, calibration=x, chip=small)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"imge": np.zeros((1, 1, 8, 8), np.float32)}, "did you mean 'image'"),
        ({}, "must be given"),
        (np.zeros((1, 1, 8, 9), np.float32), r"must have shape \(batch, 1, 8, 8\)"),
        (np.zeros((0, 1, 8, 8), np.float32), "must have shape"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "finite"),
        (np.full((1, 1, 8, 8), "a"), "float32"),
        ([[1], [2, 3]], "rectangular"),
    ],
)
def test_wrong_inputs_are_refused_by_name(program: xbarc.TileProgram, inputs: object, message: str) -> None:
    for engine in ("torch", "reference"):
        simulation = xbarc.simulate(program, engine=engine)
        with pytest.raises(xbarc.DataError, match=message):
            simulation(inputs)


def test_unknown_engine() -> None:
    program = xbarc.compile(MODEL, spec="ideal")
    with pytest.raises(xbarc.DataError, match="'torch' or 'reference'"):
        xbarc.simulate(program, engine="numpy")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_seed_must_be_an_integer_from_zero_up(seed: object) -> None:
    with pytest.raises(xbarc.DataError, match="seed must be an integer from 0 up"):
        xbarc.compile(MODEL, spec="ideal", seed=seed)  # type: ignore[arg-type]
