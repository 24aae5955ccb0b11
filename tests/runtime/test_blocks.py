"""Compiled blocks: the same results as torch alone, whatever the blocks, the threads and the layout of the input."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agreement import assert_agree, assert_same_values, in_float64, sampled
from small_programs import SmallModel, compile_small, matmul, one_node, small_spec

from hwspec.errors import DataError
from hwspec.spec import HardwareSpec
from runtime.engine import Engine
from runtime.plans_torch import Plan
from runtime.program import TileProgram

ROOT = Path(__file__).parents[2]
GENERATOR = np.random.default_rng(5)
NOISY = {"device.read_noise.share": 0.05, "periphery.readout_noise": 0.3}
MODELS = {
    "conv": one_node("Conv", GENERATOR.standard_normal((24, 8, 3, 3)), (8, 12, 12), pads=[1, 1, 1, 1]),
    "pointwise": one_node("Conv", GENERATOR.standard_normal((24, 8, 1, 1)), (8, 6, 6)),
    "strided": one_node("Conv", GENERATOR.standard_normal((6, 4, 1, 1)), (4, 7, 7), strides=[2, 2]),
    "volume": one_node("Conv", GENERATOR.standard_normal((5, 2, 2, 3, 2)), (2, 4, 5, 6), pads=[1, 0, 1, 0, 1, 1]),
    "signal": one_node("Conv", GENERATOR.standard_normal((6, 3, 5)), (3, 20), dilations=[2], pads=[3, 1]),
    "grouped": one_node("Conv", GENERATOR.standard_normal((12, 2, 3, 3)), (6, 8, 8), group=3),
    "depthwise": one_node(
        "Conv", GENERATOR.standard_normal((9, 1, 3, 3)), (9, 8, 8), group=9, pads=[1, 1, 1, 1], strides=[2, 1]
    ),
    "multiplied": one_node("Conv", GENERATOR.standard_normal((18, 1, 3, 3)), (9, 8, 8), group=9),
    "fold": one_node("ConvTranspose", GENERATOR.standard_normal((4, 6, 3, 3)), (4, 6, 6), strides=[2, 2]),
    "dense": matmul(40, 30),
}
SPECS: dict[str, dict[str, Any]] = {
    "levels": {},
    "noise": NOISY,
    "digits": {"periphery.dac_bits": 3, "periphery.input_bits": 8, **NOISY},
    "phases": {"periphery.signed": "two_phase", **NOISY},
    "bends": {"periphery.cubic": -0.2, "periphery.saturation": 0.1, "periphery.compliance": 20e-6, **NOISY},
    "thresholds": {"periphery.adc_inl_sigma": 0.5, "periphery.adc_dnl_sigma": 0.3},
    "ideal converters": {"periphery.dac_bits": None, "periphery.adc_bits": None, **NOISY},
    "curved devices": {"device.iv.model": "sinh", "device.iv.alpha": 2.0, "periphery.input_coding": "amplitude"},
    "wires": {"array.r_word": 2.0, "array.r_bit": 2.0},
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of one sample or so, and blocks of three windows."""
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let even small inputs be cut, and shared out to threads."""
    monkeypatch.setattr("runtime.blocks_torch.GROUP", 500)
    monkeypatch.setattr("runtime.blocks_torch._WORTH_THREADS", 1)
    monkeypatch.setattr("runtime.plans_torch.BLOCK", 1)
    monkeypatch.setattr("runtime.plans_torch._FEWEST", 3)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def program_of(model: SmallModel, spec: HardwareSpec) -> TileProgram:
    return in_float64(compile_small(model, spec))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("model", MODELS)
def test_every_geometry_agrees_with_the_reference(model: str, spec: str) -> None:
    """Depthwise convolutions, folds, one and three spatial axes; every kind of readout."""
    assert_agree(sampled(program_of(MODELS[model], small_spec(SPECS[spec]))), MODELS[model].inputs(1))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.usefixtures("small_blocks", "threads")
def test_blocks_and_threads_change_nothing(model: str) -> None:
    """Without noise: equal to one block of everything, which watching makes."""
    spec = small_spec({"array.r_word": 1.0, "failures.stuck_hrs.rate": 0.05})
    chip = sampled(program_of(MODELS[model], spec))
    x = MODELS[model].inputs(2, batch=7)
    whole = Engine(chip, dtype=torch.float64, watch=lambda *_: None, seed=3, noise=lambda *which: np.zeros(which[-1]))
    quiet = Engine(chip, dtype=torch.float64, noise=lambda *which: np.zeros(which[-1]), blocks=False)
    assert_same_values(whole(x)[0], quiet(x)[0])
    still = sampled(program_of(MODELS[model], spec.with_fields({"device.read_noise.share": 0.0})))
    found = Engine(still, dtype=torch.float64, seed=3)(x)[0]
    assert_same_values(found, Engine(still, dtype=torch.float64, blocks=False)(x)[0])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.usefixtures("threads")
def test_noise_does_not_depend_on_blocks(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chip = sampled(program_of(MODELS[model], small_spec(NOISY)))
    x = MODELS[model].inputs(2, batch=7)
    whole = [Engine(chip, dtype=torch.float64, seed=seed)(x)[0] for seed in (3, 4)]
    shrink(monkeypatch)
    engine = Engine(chip, dtype=torch.float64, seed=3)
    first, second = engine(x)[0], engine(x)[0]
    assert_same_values(first, whole[0])
    assert not np.array_equal(second, whole[0])
    assert not np.array_equal(whole[0], whole[1])


@pytest.mark.parametrize("kind", ["read", "readout"])
def test_noise_has_the_moments_of_torchs_own(kind: str) -> None:
    """The same mean and deviation of each output as the engine without blocks, whose numbers torch draws."""
    fields = {"read": {"device.read_noise.share": 0.1}, "readout": {"periphery.readout_noise": 1.5}}[kind]
    still = {"device.read_noise.share": 0.0, "periphery.adc_bits": None}
    chip = sampled(program_of(matmul(24, 12), small_spec({**still, **fields, "periphery.adc_bits": 10})))
    x = np.repeat(matmul(24, 12).inputs(0, batch=1), 20000, 0)
    moments = []
    for blocks in (True, False):
        found = Engine(chip, dtype=torch.float64, blocks=blocks)(x)[0]
        moments.append((found.mean(0), found.std(0)))
    (mean, deviation), (other_mean, other_deviation) = moments
    assert (deviation > 0).all()
    assert (np.abs(mean - other_mean) < 5 * deviation * np.sqrt(2 / 20000)).all()
    np.testing.assert_allclose(deviation, other_deviation, rtol=5 / np.sqrt(20000))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", ["conv", "dense"])
def test_inputs_must_be_finite(model: str, value: float) -> None:
    engine = Engine(sampled(compile_small(MODELS[model])))
    x = torch.from_numpy(MODELS[model].inputs(0))
    x[(1,) * x.ndim] = value
    with pytest.raises(DataError, match="must be finite"):
        engine.run({"x": x})
    assert np.isfinite(engine(MODELS[model].inputs(0))[0]).all()


def test_any_layout_gives_the_same() -> None:
    """Channels-last images, as one layer leaves them for the next, and slices of larger arrays."""
    engine = Engine(sampled(compile_small(MODELS["conv"], small_spec({"device.read_noise.share": 0.0}))))
    x = torch.from_numpy(MODELS["conv"].inputs(0, batch=4))
    found = []
    for layout in (x, x.contiguous(memory_format=torch.channels_last), torch.cat([x, x], 3)[..., :12]):
        buffers: dict[str, Any] = {"x": layout}
        engine.run(buffers)
        found.append(buffers["y"])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


ONE_RUN = """
import numpy as np
import xbarc
program = xbarc.compile("models/digits-cnn/model.onnx", spec="rram-128-wired", calibration="digits")
xbarc.simulate(program, xbarc.Chip.sample(program.spec, program.arrays, 1))(np.ones((2, 1, 8, 8), np.float32))
"""


def test_nothing_is_compiled_anew() -> None:
    """The second run of a program finds all machine code on disk: numba writes and replaces nothing."""
    environment = {**os.environ, "NUMBA_DEBUG_CACHE": "1"}

    def run() -> str:
        command = [sys.executable, "-c", ONE_RUN]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    run()
    told = run()
    assert "convert_numba" in told
    assert "data loaded from" in told
    assert "data saved to" not in told


def test_empty_batches() -> None:
    buffers = {"x": torch.zeros(0, 8, 12, 12)}
    Engine(sampled(compile_small(MODELS["conv"]))).run(buffers)
    assert buffers["y"].shape == (0, 24, 12, 12)


def test_depthwise_columns_are_multiplied_without_gathering() -> None:
    """The plan sees channels in depthwise convolutions of one column each, and in nothing else."""
    for name, model in MODELS.items():
        engine = Engine(sampled(compile_small(model, small_spec({"array.rows": 32, "array.cols": 32}))))
        loop = next(iter(engine.loops.values()))
        channels = [one.channels is not None for of_store in Plan.of(loop, 0).conversions for one in of_store]
        assert any(channels) == (name == "depthwise")


def test_columns_of_mapped_tiles_are_added_in_runs() -> None:
    """However a tile's columns lie, what is added to the result is one run of elements a drive."""
    spec = small_spec({"failures.stuck_hrs.rate": 0.1, "array.rows": 32, "array.cols": 32})
    engine = Engine(sampled(compile_small(matmul(64, 30), spec)))
    loop = next(iter(engine.loops.values()))
    segments = np.concatenate([one.segments for one in Plan.of(loop, 0).conversions[0]])
    assert (segments[:, 3] == 30).all()
