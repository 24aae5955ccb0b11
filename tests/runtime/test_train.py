"""A program as a torch module: the weights' gradients, through every pairing, and none where a device cannot follow."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from small_programs import SmallModel, compile_small, mapped_specs, matmul, small_models, small_spec, small_specs
from test_blocks import MODELS

import xbarc
from compiler.compile import CompileOptions, finish, run_compile
from compiler.frontend import load_model
from hwspec.chip import Chip
from hwspec.errors import ProgramError
from hwspec.spec import HardwareSpec
from runtime.engine import Engine
from runtime.geometry import window_shape
from runtime.geometry_torch import gather_vectors, scatter_vectors
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.rewrite import rewrite
from runtime.tables import Load
from runtime.train import CrossbarModule

CONTINUOUS: dict[str, Any] = {
    "device.levels": None,
    "device.spread.model": "none",
    "device.spread.sigma": 0.0,
    "device.read_noise.model": "none",
    "device.read_noise.share": 0.0,
    "periphery.dac_bits": None,
    "periphery.adc_bits": None,
    "periphery.gain_sigma": 0.0,
    "periphery.offset_sigma": 0.0,
}
PAIRINGS: dict[str, dict[str, Any]] = {
    "two arrays": {},
    "columns": {"array.pairing": "neighbouring_columns"},
    "rows": {"array.pairing": "neighbouring_rows"},
    "after": {"periphery.subtract": "after"},
    "reference": {"array.pairing": "reference"},
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_models(), small_specs() | mapped_specs())
def test_the_same_weights_give_the_same_program(model: SmallModel, spec: HardwareSpec) -> None:
    options = CompileOptions(predistort=False)
    program = finish(run_compile(load_model(model.proto), spec, options, None))
    again = rewrite(program, program.weights, {"layer": program.bias("layer")})
    for name, values in program.tensors.items():
        rtol = 1e-14 if values.dtype.kind == "f" else 0
        np.testing.assert_allclose(again.tensors[name], values, rtol=rtol, atol=0, err_msg=name)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("model", MODELS)
def test_weights_gradients_are_those_of_the_products(model: str, pairing: str) -> None:
    """With continuous levels and ideal converters: the inputs' vectors times the gradients of the results."""
    small = MODELS[model]
    program = compile_small(small, small_spec({**CONTINUOUS, **PAIRINGS[pairing]}))
    module = CrossbarModule(program)
    module.write(Chip.ideal(program.spec, program.arrays))
    x = torch.from_numpy(small.inputs(1, batch=4))
    y = module({"x": x})
    factor = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    (y * factor).sum().backward()
    weights = torch.tensor(program.weights["layer"], dtype=torch.float64).requires_grad_()
    wanted = _plain(program, x.double(), weights)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.detach().abs().max()))
    (wanted * factor).sum().backward()  # type: ignore[no-untyped-call]
    assert weights.grad is not None
    found = module.weights[0].grad
    assert found is not None
    unclipped = weights.detach().abs() < weights.detach().abs().amax(1, keepdim=True)  # the largest may round beyond 1
    difference = ((found - weights.grad) * unclipped).abs().max()
    assert difference < 1e-4 * weights.grad.abs().max()
    assert module.biases[0].grad is not None
    of_bias = factor.movedim(1, -1).reshape(-1, factor.shape[1]) if factor.ndim > 2 else factor
    torch.testing.assert_close(module.biases[0].grad, of_bias.sum(0), rtol=1e-4, atol=1e-3)


def _plain(program: TileProgram, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The layer's results by torch's own operators, bias and all, for weights ``(groups, rows, cols)``."""
    load = next(program.tables.loops).body[0]
    assert isinstance(load, Load)
    gather, scatter = program.gathers[load.gather], next(iter(program.scatters.values()))
    vectors = gather_vectors(gather, x).reshape(-1, *weights.shape[:2])
    results = torch.einsum("ngk,gkc->ngc", vectors, weights).flatten(1)
    return scatter_vectors(scatter, results, window_shape(gather, x.shape), torch.tensor(program.bias("layer")))


def test_failed_devices_take_no_gradient() -> None:
    """Of a weight above 0 the plus device must be good, of one below 0 the minus device."""
    model = matmul(8, 4)
    program = compile_small(model, small_spec({"failures.stuck_hrs.rate": 0.3, "device.levels": None}))
    chip = Chip.sample(program.spec, program.arrays, 1)
    module = CrossbarModule(program)
    module.write(chip)
    square = module({"x": torch.from_numpy(model.inputs(0, batch=50)) * 0.3}) ** 2
    square.sum().backward()
    found = module.weights[0].grad
    assert found is not None
    assert chip.faults is not None
    tile = program.tables.tiles[0]
    places, tensors = program.places(tile.name), program.tile_tensors[tile.name]
    good = [np.isnan(chip.faults.stuck(number)[np.ix_(rows, cols)]) for number, rows, cols in places.values()]
    held = program.intended(tile.name)
    follows = np.where(held > 0, *good)[tensors.row_map]
    lines = np.empty_like(follows)
    lines[:, tensors.col_map] = follows
    np.testing.assert_array_equal(found[0].numpy() != 0, lines)
    assert 0.4 < lines.mean() < 0.9


def test_training_sees_new_failures_every_step_and_learns() -> None:
    """A regression on resampled chips: the error on chips never seen falls by two thirds."""
    model = matmul(24, 6, seed=4)
    spec = small_spec({"failures.stuck_hrs.rate": 0.1})
    program = compile_small(model, spec)
    target = torch.tensor(program.weights["layer"][0])
    generator = torch.Generator().manual_seed(0)
    module = CrossbarModule(program)
    with torch.no_grad():
        module.weights[0].mul_(0.2)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)

    def loss(seed: int) -> torch.Tensor:
        module.write(Chip.sample(spec, program.arrays, seed), seed)
        x = torch.randn(64, 24, generator=generator) * 0.5
        error: torch.Tensor = ((module({"x": x}) - x @ target) ** 2).mean()
        return error

    before = float(loss(1000).detach())
    for step in range(60):
        optimizer.zero_grad()
        loss(step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = float(np.mean([float(loss(2000 + seed).detach()) for seed in range(5)]))
    assert after < before / 3


def test_what_is_run_is_the_programmed_chip() -> None:
    """The module's outputs are those of the engine on the same chip, bit for bit."""
    model = MODELS["conv"]
    program = compile_small(model, small_spec({"failures.stuck_hrs.rate": 0.05}))
    chip = Chip.sample(program.spec, program.arrays, 3)
    module = CrossbarModule(program, seed=5)
    module.write(chip, seed=2)
    x = model.inputs(0)
    wanted = Engine(program_chip(program, chip, seed=2), seed=5)(x)[0]
    np.testing.assert_array_equal(module({"x": torch.from_numpy(x)}).detach().numpy(), wanted)


def test_programs_that_do_not_follow_from_their_weights_are_refused() -> None:
    model = matmul(24, 6)
    wired = compile_small(model, small_spec({"array.r_word": 1.0}))
    with pytest.raises(ProgramError, match="pre-distorted"):
        CrossbarModule(wired)
    faulty = small_spec({"failures.stuck_hrs.rate": 0.1, "array.slices": 2})
    program = compile_small(model, faulty)
    mapped = xbarc.remap(program, Chip.sample(faulty, program.arrays, 1))
    with pytest.raises(ProgramError, match="each weight on one pair"):
        CrossbarModule(mapped)


def test_every_step_reads_with_noise_of_its_own() -> None:
    """Writing the same weights onto the same chip again does not start the noise again."""
    model = matmul(24, 6)
    program = compile_small(model, small_spec({"device.read_noise.share": 0.05}))
    module = CrossbarModule(program, seed=5)
    chip, x = Chip.sample(program.spec, program.arrays, 3), torch.from_numpy(model.inputs(0))
    found = []
    for _ in range(2):
        module.write(chip)
        found.append(module({"x": x}).detach())
    assert not torch.equal(found[0], found[1])


def test_what_cannot_train_is_named() -> None:
    """Devices that are not ohmic behind wires are solved as networks, through which no gradient flows."""
    fields = {"device.iv.model": "sinh", "device.iv.alpha": 3.0, "array.r_word": 1.0}
    spec = small_spec(fields)
    options = CompileOptions(predistort=False)
    program = finish(run_compile(load_model(matmul(8, 4).proto), spec, options, None))
    module = CrossbarModule(program)
    with pytest.raises(ProgramError, match="layer 'layer' cannot be trained"):
        module.write(Chip.ideal(spec, program.arrays))
