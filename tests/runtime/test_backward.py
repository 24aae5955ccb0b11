"""Gradients of loops in compiled blocks: those of the products, through what rounds, and none where something clips."""

from typing import Any

import pytest
import torch
from agreement import in_float64, sampled
from small_programs import compile_small, matmul, small_spec
from test_blocks import MODELS, shrink

import xbarc
from hwspec.chip import Chip
from runtime.engine import Engine
from runtime.programming import program_chip

IDEAL: dict[str, Any] = {
    "device.read_noise.share": 0.0,
    "periphery.dac_bits": None,
    "periphery.adc_bits": None,
    "periphery.offset_sigma": 0.0,
}
SPECS: dict[str, dict[str, Any]] = {
    "plain": IDEAL,
    "after": {**IDEAL, "periphery.subtract": "after"},
    "neighbours": {**IDEAL, "array.pairing": "neighbouring_columns"},
    "slices": {**IDEAL, "array.slices": 2},
    "wires": {**IDEAL, "array.r_word": 2.0, "array.r_bit": 2.0},
}


def gradient(engine: Engine, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Of the outputs times a factor, by the input."""
    leaf = x.clone().requires_grad_()
    buffers: dict[str, Any] = {"x": leaf}
    engine.run(buffers)
    (buffers["y"] * factor).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_those_of_the_operations(model: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ideal converters nothing rounds or clips, and torch differentiates its own operations exactly."""
    shrink(monkeypatch)
    chip = sampled(in_float64(compile_small(MODELS[model], small_spec(SPECS[spec]))))
    x = torch.from_numpy(MODELS[model].inputs(1, batch=5)).double()
    buffers: dict[str, Any] = {"x": x}
    Engine(chip, dtype=torch.float64).run(buffers)
    factor = torch.randn(buffers["y"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, wanted = (gradient(Engine(chip, dtype=torch.float64, blocks=b), x, factor) for b in (True, False))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    chip = sampled(compile_small(MODELS["conv"], small_spec({"device.read_noise.share": 0.0})))
    x = torch.from_numpy(MODELS["conv"].inputs(1, batch=7))
    factor = torch.ones(7, 24, 12, 12)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = gradient(Engine(chip), x, factor)
        torch.set_num_threads(threads)
        torch.testing.assert_close(gradient(Engine(chip), x, factor), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("signed", ["bipolar", "two_phase"])
@pytest.mark.parametrize(
    "fields", [{}, {"periphery.dac_bits": 3, "periphery.input_bits": 8, "periphery.adc_bits": None}]
)
def test_rounding_is_passed_straight(signed: str, fields: dict[str, Any]) -> None:
    """Of an ideal chip with converters of 8 bits: the weights on their levels, for signed codes and for two phases."""
    model = matmul(24, 10)
    spec = small_spec({"periphery.signed": signed, **fields})
    program = in_float64(compile_small(model, spec))
    x = torch.from_numpy(model.inputs(1, batch=20)).double() * 0.2  # no converter clips
    factor = torch.randn(20, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = gradient(Engine(program_chip(program), dtype=torch.float64), x, factor)
    wanted = factor @ torch.from_numpy(program.decoded_weights("layer")[0]).T
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_nothing_passes_where_converters_clip() -> None:
    """One weight and an ADC that clips 30 % of what calibration saw: the gradient is the weight, or nothing."""
    program = in_float64(compile_small(matmul(1, 1), small_spec({"periphery.adc_clip_share": 0.3})))
    chip = program_chip(program)
    codes: list[torch.Tensor] = []
    x = torch.linspace(-5, 5, 401, dtype=torch.float64)[:, None]
    engine = Engine(chip, dtype=torch.float64, watch=lambda *shown: codes.append(shown[-1]))
    found = gradient(engine, x, torch.ones(401, 1, dtype=torch.float64))
    top = codes[0].abs().max()
    inside = (codes[0].abs() < top)[:, 0] & (x[:, 0].abs() <= program.layers["layer"].full_scale)
    weight = float(program.decoded_weights("layer")[0, 0, 0])
    assert 50 < int(inside.sum()) < 300
    torch.testing.assert_close(found[inside, 0], torch.full((int(inside.sum()),), weight, dtype=torch.float64))
    beyond = (x[:, 0].abs() > 1.05 * x[inside, 0].abs().max()) | (x[:, 0].abs() > program.layers["layer"].full_scale)
    assert (found[beyond, 0] == 0).all()


@pytest.mark.parametrize("name", ["conv", "dense"])
def test_gradients_go_through_weights_in_digital_memory(name: str) -> None:
    """Of a program that was mapped around failed devices, the worst weights of which are digital."""
    fields = {**IDEAL, "failures.stuck_hrs.rate": 0.1, "periphery.residue": 0.05}
    program = compile_small(MODELS[name], small_spec(fields))
    mapped = xbarc.remap(program, Chip.sample(program.spec, program.arrays, 1))
    assert len(mapped.residue("layer")[0]) > 0
    chip = sampled(in_float64(mapped), seed=1)
    x = torch.from_numpy(MODELS[name].inputs(1, batch=5)).double()
    buffers: dict[str, Any] = {"x": x}
    Engine(chip, dtype=torch.float64).run(buffers)
    factor = torch.randn(buffers["y"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, wanted = (gradient(Engine(chip, dtype=torch.float64, blocks=b), x, factor) for b in (True, False))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
