"""The module that fine-tuning trains: it runs what `simulate` runs, and its gradients are those of what chips do."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from agreement import in_float64, sampled
from onnx import TensorProto, helper, numpy_helper
from small_programs import SmallModel, compile_small, matmul, small_spec, two_matmuls
from test_blocks import MODELS, shrink
from torch import Tensor

import xbarc
from compiler.compile import CompileOptions, remap_program
from hwspec.chip import Chip
from hwspec.errors import DataError, ProgramError
from runtime.engine import Engine, Trainable
from runtime.program import TileProgram
from runtime.rewrite import reachable_weights
from runtime.train import CrossbarModule

FAULTY: dict[str, Any] = {"failures.stuck_hrs.rate": 0.15, "failures.stuck_lrs.rate": 0.15}
QUIET: dict[str, Any] = {"device.read_noise.model": "none", "device.read_noise.share": 0.0}
EXACT: dict[str, Any] = {
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
"""Nothing rounds, and nothing is random."""


def mapped(fields: dict[str, Any], seed: int = 0) -> TileProgram:
    """Two layers, mapped around the failed devices of a chip."""
    program = compile_small(two_matmuls(), small_spec(fields))
    return remap_program(program, CompileOptions(), Chip.sample(program.spec, program.arrays, seed))


@pytest.mark.parametrize("fields", [{}, FAULTY, {"periphery.signed": "two_phase", "array.slices": 2}], ids=str)
@pytest.mark.parametrize("effects", [{}, {"without": ["read_noise", "spread"]}, {"only": ["failures", "adc"]}], ids=str)
def test_it_gives_what_simulate_gives(fields: dict[str, Any], effects: dict[str, Any]) -> None:
    """On a sampled chip with every effect, with some, and on an ideal one."""
    model = MODELS["conv"]
    program = compile_small(model, small_spec(fields))
    x = model.inputs(0)
    for chip in (Chip.sample(program.spec, program.arrays, 4), None):
        module = xbarc.to_torch(program, chip, seed=7, **effects)
        found = module(torch.from_numpy(x))
        run = program if not program.tables.robust else module.program  # pairs are not raised while they train
        wanted = xbarc.simulate(run, chip, seed=7, **effects)(x)[0]
        np.testing.assert_array_equal(found.detach().numpy(), wanted)


def test_a_mapped_program_runs_as_it_is() -> None:
    """It starts from what its devices hold, which is what is written again."""
    program = mapped({**FAULTY, "device.read_noise.share": 0.0})
    x = two_matmuls().inputs(0)
    found = xbarc.to_torch(program)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, xbarc.simulate(program, program.nominal_chip)(x)[0], rtol=0, atol=1e-6)


def test_parameters_are_the_layers_weights_and_biases() -> None:
    program = compile_small(two_matmuls())
    module = xbarc.to_torch(program)
    assert module.layers == ("first", "second")
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    assert shapes == {"weights.0": (1, 6, 6), "weights.1": (1, 6, 6), "biases.0": (6,), "biases.1": (6,)}
    for name, weight in zip(module.layers, module.weights, strict=True):
        np.testing.assert_array_equal(weight.detach().numpy(), program.weights[name])


@pytest.mark.parametrize("change", ["optimizer", "copy_", "data", "data in place"])
def test_weights_that_changed_are_written_before_they_run(change: str) -> None:
    """However they were changed, the module runs the program that it says it holds."""
    model = two_matmuls()
    program = compile_small(model, small_spec(FAULTY))
    chip, x = Chip.sample(program.spec, program.arrays, 2), torch.from_numpy(model.inputs(0))
    module = xbarc.to_torch(program, chip, seed=3, without=["read_noise"])
    before = module(x)
    before.square().sum().backward()
    with torch.no_grad():
        if change == "optimizer":
            torch.optim.SGD(module.parameters(), 0.1).step()
        elif change == "copy_":
            module.weights[0].copy_(0.5 * module.weights[0])
        elif change == "data in place":
            module.weights[0].data *= 0.5
        else:
            module.weights[0].data = 0.5 * module.weights[0].data
    found = module(x).detach().numpy()
    assert not np.array_equal(found, before.detach().numpy())
    wanted = xbarc.simulate(module.program, chip, seed=3, without=["read_noise"])(x.numpy())[0]
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(module(x).detach().numpy(), found)


def test_what_does_not_fit_is_refused() -> None:
    """Shapes that would be merged into another number of samples, arrays, and weights that are no numbers."""
    model = two_matmuls()
    module = xbarc.to_torch(compile_small(model))
    x = torch.from_numpy(model.inputs(0))
    for wrong, message in (
        (x[:, :-1], r"must have shape \("),
        (x.reshape(-1), r"must have shape \("),
        (x.numpy(), "must be a torch tensor, not 'ndarray'; torch.from_numpy makes one"),
        ({"z": x}, "inputs must be "),
    ):
        with pytest.raises(DataError, match=message):
            module(wrong)
    with pytest.raises(DataError, match=r"must be of type float32, not torch\.int32"):
        module(x.to(torch.int32))
    with torch.no_grad():
        module.weights[0][0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="weights of layer 'first' must be finite"):
        module(x)
    with pytest.raises(DataError, match="weights of layer 'first' must be finite"):
        module.program  # noqa: B018 (making it is what fails)


def test_a_copy_is_a_module_of_its_own() -> None:
    """As torch's averages of models make it."""
    model = two_matmuls()
    program = compile_small(model, small_spec(FAULTY))
    module = xbarc.to_torch(program, Chip.sample(program.spec, program.arrays, 2), seed=3, without=["read_noise"])
    x = torch.from_numpy(model.inputs(0))
    before = module(x).detach()
    module.weights[1].requires_grad_(False)
    averaged = torch.optim.swa_utils.AveragedModel(module)
    frozen = [name for name, one in averaged.module.named_parameters() if not one.requires_grad]
    assert frozen == ["weights.1"]
    with torch.no_grad():
        module.weights[0].mul_(0.5)
    torch.testing.assert_close(averaged(x).detach(), before, rtol=0, atol=0)
    assert not torch.equal(module(x).detach(), before)


def test_a_copy_goes_with_its_optimizer_and_what_was_added() -> None:
    model = two_matmuls()
    program = compile_small(model, small_spec(FAULTY))
    module = xbarc.to_torch(program, Chip.sample(program.spec, program.arrays, 2)).double()
    module.register_buffer("mean", torch.ones(2))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    copied, of_copy = copy.deepcopy((module, optimizer))
    before = [one.detach().clone() for one in copied.parameters()]
    copied(torch.from_numpy(model.inputs(0))).square().sum().backward()
    of_copy.step()
    assert not torch.equal(copied.weights[0].detach(), before[0])
    assert torch.equal(module.weights[0].detach(), before[0])
    assert copied.weights[0].dtype == torch.float64
    assert torch.equal(copied.get_buffer("mean"), module.get_buffer("mean"))
    assert copied.program is not module.program


def test_a_module_trains_after_inference() -> None:
    model = two_matmuls()
    program = compile_small(model, small_spec(FAULTY))
    module, x = xbarc.to_torch(program, without=["read_noise"]), torch.from_numpy(model.inputs(0))
    chips = [Chip.sample(program.spec, program.arrays, seed) for seed in (1, 2)]
    with torch.inference_mode():
        module.write(chips[0])
        module(x)
    module.write(chips[1])
    module(x).square().sum().backward()
    fresh = xbarc.to_torch(program, chips[1], without=["read_noise"])
    fresh(x).square().sum().backward()
    assert module.weights[0].grad is not None
    assert fresh.weights[0].grad is not None
    torch.testing.assert_close(module.weights[0].grad, fresh.weights[0].grad, rtol=0, atol=0)


def test_weights_of_half_precision_are_written() -> None:
    model = two_matmuls()
    module = xbarc.to_torch(compile_small(model)).bfloat16()
    found = module(torch.from_numpy(model.inputs(0)))
    (wanted,) = xbarc.simulate(module.program)(model.inputs(0))
    np.testing.assert_array_equal(found.detach().numpy(), wanted)


def test_backward_passes_without_a_step_add_up() -> None:
    model = two_matmuls()
    program = compile_small(model, small_spec({"device.read_noise.share": 0.0, "device.read_noise.model": "none"}))
    inputs = [torch.from_numpy(model.inputs(seed)) for seed in range(2)]
    module = xbarc.to_torch(program, Chip.sample(program.spec, program.arrays, 1))
    alone = []
    for x in inputs:
        module.zero_grad()
        module(x).square().sum().backward()
        alone.append(_gradients(module))
    module.zero_grad()
    for x in inputs:
        module(x).square().sum().backward()
    for found, one, other in zip(_gradients(module), *alone, strict=True):
        torch.testing.assert_close(found, one + other)
    module.zero_grad()
    both = [module(x).square().sum() for x in inputs]  # both ways forward first, then both ways back
    torch.autograd.backward(both)
    for found, one, other in zip(_gradients(module), *alone, strict=True):
        torch.testing.assert_close(found, one + other)


def _gradients(module: CrossbarModule) -> list[Tensor]:
    return [one.grad.clone() for one in module.parameters() if one.grad is not None]


@pytest.mark.parametrize("faulty", [False, True])
def test_projected_weights_lie_within_reach(faulty: bool) -> None:
    """Weights within stay as they are, those beyond come to the end; a second time nothing moves."""
    program = mapped({**FAULTY, "device.levels": None}) if faulty else compile_small(two_matmuls())
    module = xbarc.to_torch(program)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.weights:
            weight.add_(torch.randn(weight.shape, generator=generator))
    before = [weight.detach().numpy().copy() for weight in module.weights]
    module.project()
    moved = 0
    for name, weight, was in zip(module.layers, module.weights, before, strict=True):
        low, high = (end.astype(np.float32) for end in reachable_weights(program, name))
        np.testing.assert_array_equal(weight.detach().numpy(), np.clip(was, low, high))
        moved += int((was != weight.detach().numpy()).sum())
    assert moved > 5
    projected = [weight.detach().clone() for weight in module.weights]
    module.project()
    for weight, was in zip(module.weights, projected, strict=True):
        assert torch.equal(weight, was)


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns", "reference"])
@pytest.mark.parametrize("subtract", ["before", "after"])
def test_gradients_are_the_slopes_of_the_loss(pairing: str, subtract: str) -> None:
    """Of each weight on a mapped program, by finite differences: none where no good device is left.

    The loss is linear in each weight alone, so that differences are its slope.
    """
    fields = {**EXACT, "array.pairing": pairing, "periphery.subtract": subtract}
    program = mapped({**fields, "failures.stuck_hrs.rate": 0.2, "failures.stuck_lrs.rate": 0.2})
    module = xbarc.to_torch(program)
    generator = np.random.default_rng(0)
    pinned = []
    with torch.no_grad():
        for name, weight in zip(module.layers, module.weights, strict=True):
            low, high = reachable_weights(program, name)
            share = np.where(generator.random(low.shape) < 0.5, 0.3, 0.7)
            weight.copy_(torch.from_numpy(low + share * (high - low)))
            pinned.append(high - low < 1e-9)
    x = torch.from_numpy(two_matmuls().inputs(1, batch=8))
    factor = torch.from_numpy(generator.standard_normal((8, 6)).astype(np.float32))

    def loss() -> Tensor:
        found: Tensor = (module(x) * factor).sum()
        return found

    loss().backward()  # type: ignore[no-untyped-call]
    for weight, stuck in zip(module.weights, pinned, strict=True):
        assert weight.grad is not None
        gradient = weight.grad.numpy().copy()
        step = 0.02 * float(weight.detach().abs().max())
        slopes = np.empty(gradient.size)
        for at in range(gradient.size):
            ends = []
            for change in (step, -step):
                with torch.no_grad():
                    weight.view(-1)[at] += change
                    ends.append(float(loss()))
                    weight.view(-1)[at] -= change
            slopes[at] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(gradient.ravel(), slopes, rtol=0, atol=2e-3 * np.abs(slopes).max())
        assert (gradient[stuck] == 0).all()
        assert (np.abs(gradient[~stuck]) > 0).mean() > 0.9
    assert sum(int(stuck.sum()) for stuck in pinned) > 0
    for bias in module.biases:
        assert bias.grad is not None
        assert bias.grad.abs().min() > 0


CONVERTERS: dict[str, dict[str, Any]] = {
    "8 bits": {},
    "two phases": {"periphery.signed": "two_phase"},
    "digits": {"periphery.dac_bits": 3, "periphery.input_bits": 8},
    "digits of two phases": {
        "periphery.dac_bits": 3,
        "periphery.input_bits": 8,
        "periphery.signed": "two_phase",
        "periphery.subtract": "after",
    },
    "slices": {"array.slices": 2, "device.levels": 4},
}


@pytest.mark.parametrize("name", CONVERTERS)
@pytest.mark.parametrize("model", ["conv", "matmul"])
def test_gradients_without_blocks_are_those_in_blocks(name: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of inputs, bias and matrices, through converters of few bits, some of which clip."""
    shrink(monkeypatch)
    small: SmallModel = MODELS[model] if model in MODELS else matmul(24, 10)
    spec = small_spec({**QUIET, "periphery.adc_bits": 6, "periphery.adc_clip_share": 0.02, **CONVERTERS[name]})
    chip = sampled(in_float64(compile_small(small, spec)))
    x = torch.from_numpy(small.inputs(1, batch=5)).double()
    found, wanted = (_of_loop(Engine(chip, dtype=torch.float64, blocks=blocks), x) for blocks in (True, False))
    assert len(found) == len(wanted) > 2
    for one, other in zip(found, wanted, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


def _of_loop(engine: Engine, x: Tensor) -> list[Tensor]:
    """Gradients of the input, of the bias and of each matrix."""
    engine.reseed(0)
    leaf = x.clone().requires_grad_()
    loop = engine.loops["layer"]
    bias = loop.bias.clone().requires_grad_()
    matrices = tuple(batch.matrix.clone().requires_grad_() for store in loop.stores for batch in store.batches)
    engine.trainable["layer"] = Trainable(bias, matrices)
    assert engine.trains("layer")
    buffers: dict[str, Any] = {"x": leaf}
    engine.run(buffers)
    factor = torch.randn(buffers["y"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (buffers["y"] * factor).sum().backward()
    leaves = [leaf, bias, *matrices]
    return [one.grad for one in leaves if one.grad is not None]


def test_inputs_are_given_by_name_or_alone() -> None:
    model = two_matmuls()
    module = xbarc.to_torch(compile_small(model))
    x = torch.from_numpy(model.inputs(0))
    assert torch.equal(module(x), module({"x": x}))
    with pytest.raises(DataError, match="inputs must be x, not 'z'"):
        module({"z": x})


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_operator_without_gradient_stops_training_by_its_name(place: str) -> None:
    """It runs in onnxruntime, through which no gradient passes; before the layers that train it does no harm."""
    odd = [
        helper.make_node("Reshape", ["m" if place == "after" else "x", "shape"], ["r"], "reshape"),
        helper.make_node("Det", ["r"], ["d"], "odd"),
    ]
    constants = {
        "w": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32),
        "shape": np.array([-1, 4, 2, 2] if place == "before" else [-1, 2, 2]),
    }
    layer = helper.make_node("MatMul", ["x" if place == "after" else "d", "w"], ["m"], "layer")
    nodes = [layer, *odd] if place == "after" else [*odd, layer]
    shape = [4] if place == "after" else [16]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("d" if place == "after" else "m", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    module = xbarc.to_torch(compile_small(SmallModel(proto, tuple(shape))))
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((3, *shape)).astype(np.float32))
    if place == "before":
        module(x).sum().backward()
        assert module.weights[0].grad is not None
        assert module.weights[0].grad.abs().max() > 0
        return
    with pytest.raises(ProgramError, match=r"takes no gradient.*odd: operator Det has no translation"):
        module(x)
    with torch.no_grad():
        assert torch.isfinite(module(x)).all()
