"""How many copies layers get: the fastest pipeline within a number of arrays, and the golden numbers of VGG-8."""

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from faulty_programs import chip_for, compile_for
from onnx import TensorProto, helper, numpy_helper
from small_programs import SmallModel, one_node, small_spec, two_matmuls

import xbarc
from compiler.compile import CompileOptions, back_end, finish, options_of, run_compile
from compiler.frontend import load_model
from compiler.mapping import Mapping
from compiler.passes.duplicate import Copies, Duplicate
from compiler.passes.emit import emit
from compiler.passes.place import Place
from compiler.report import build_report
from hwspec.errors import DataError, DoesNotFit
from hwspec.spec import HardwareSpec
from runtime.costing import CostReport, cost
from runtime.timing import schedule
from xbarc.api import calibration_batches

CONV = one_node("Conv", np.random.default_rng(0).standard_normal((4, 3, 3, 3)), (3, 6, 6), pads=[1] * 4)


def chain(sizes: tuple[int, ...], side: int) -> SmallModel:
    """Convolutions of 3x3, every second one with stride 2."""
    generator, nodes, constants, source = np.random.default_rng(0), [], {}, "x"
    for number, (channels, results) in enumerate(itertools.pairwise(sizes)):
        shape = (results, channels, 3, 3)
        constants[f"w{number}"] = generator.normal(0, (9 * channels) ** -0.5, shape).astype(np.float32)
        target = f"t{number}" if number < len(sizes) - 2 else "y"
        stride = [1 + number % 2] * 2
        nodes.append(
            helper.make_node("Conv", [source, f"w{number}"], [target], f"conv{number}", pads=[1] * 4, strides=stride)
        )
        source = target
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", sizes[0], side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    return SmallModel(helper.make_model(graph, opset_imports=opset, ir_version=9), (sizes[0], side, side))


def compiled(model: SmallModel, copies: Copies, spec: HardwareSpec | None = None, **options: Any) -> xbarc.TileProgram:
    chosen = CompileOptions(copies=copies, **options)
    return finish(run_compile(load_model(model.proto), spec or small_spec(), chosen, None))


@pytest.mark.parametrize("extra", [0, 2, 6, 14, 40])
@pytest.mark.parametrize("share", ["none", "inputs", "layer"])
def test_no_other_copies_within_the_budget_are_faster(extra: int, share: Any) -> None:
    """By trying them all."""
    model = chain((2, 3, 5, 4), 4)
    one = compiled(model, 1, share_arrays=share)
    budget = one.arrays + extra
    program = compiled(model, "balance", share_arrays=share, array_budget=budget)
    assert program.arrays <= budget
    arrays = [layer.arrays for layer in one.report.layers]
    times = [stage.time for stage in schedule(one).stages if stage.resources]
    windows = [layer.windows for layer in one.report.layers]
    best = min(
        max(time / count * -(-count // copies) for time, count, copies in zip(times, windows, chosen, strict=True))
        for chosen in itertools.product(*(range(1, min(count, 24) + 1) for count in windows))
        if sum(each * copies for each, copies in zip(arrays, chosen, strict=True)) <= budget
    )
    assert max(stage.time for stage in schedule(program).stages) == pytest.approx(best)


def test_the_chip_is_the_budget() -> None:
    spec = small_spec({"chip.arrays_per_core": 4, "chip.cores_per_tile": 2, "chip.tiles": 5})
    program = compiled(CONV, "balance", spec)
    assert program.arrays <= 40 < program.arrays + 2 * len(program.tables.tiles)
    assert program.tables.layers[0].copies > 1
    with pytest.raises(DoesNotFit):
        compiled(CONV, "balance", array_budget=1, spec=small_spec({"chip.tiles": 1, "chip.arrays_per_core": 1,
                                                                    "chip.cores_per_tile": 1}))  # fmt: skip


def test_numbers_by_layer_and_for_all() -> None:
    model = chain((2, 3, 4), 4)
    named = compiled(model, {"conv1": 3})
    assert [layer.copies for layer in named.tables.layers] == [1, 3]
    assert options_of(named).copies == {"conv1": 3}
    assert [layer.copies for layer in named.report.layers] == [1, 3]
    every = compiled(model, 9)
    assert [layer.copies for layer in every.tables.layers] == [9, 4]  # the second has four windows
    assert [layer.copies for layer in compiled(two_matmuls(), 5).tables.layers] == [1, 1]
    on = {number: {tile.array for tile in every.tables.tiles if tile.copy_number == number} for number in range(9)}
    assert all(not one & other for one, other in itertools.combinations(on.values(), 2))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"copies": {"conv7": 2}}, "did you mean 'conv1'"),
        ({"copies": {"conv1": 5}}, "must be from 1 to 4, a window each, not 5"),
        ({"copies": {"conv1": 0}}, "must be from 1 to 4"),
        ({"copies": 0}, "must be a whole number from 1"),
        ({"copies": True}, "must be a whole number from 1"),
        ({"copies": "many"}, "must be numbers, or 'balance'"),
        ({"copies": "balance"}, "only within a number of arrays"),
        ({"copies": 2, "array_budget": 5}, "copies='balance'"),
        ({"copies": "balance", "array_budget": 0}, "from 1 up"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        compiled(chain((2, 3, 4), 4), **options)


def test_digital_memory_corrects_one_matrix_only() -> None:
    spec = small_spec({"periphery.residue": 0.05, "failures.stuck_lrs.rate": 0.2, "failures.allow_unbounded": True})
    chip = chip_for(compiled(CONV, 2, spec), 0)
    with pytest.raises(DataError, match=r"must have one copy .* leave out the step residue"):
        compile_for(CONV, spec, chip, CompileOptions(copies=2))
    steps = frozenset({"pair", "bias"})
    assert compile_for(CONV, spec, chip, CompileOptions(copies=2, steps=steps))[1].faults is not None


# -- VGG-8 ------------------------------------------------------------------------------------------------------------


def vgg8() -> onnx.ModelProto:
    """Convolutions of 128-128-256-256-512-512 channels, pooled after every second, then 8192-1024-10."""
    generator, nodes, constants = np.random.default_rng(0), [], {}
    source, channels = "x", 3
    for number, results in enumerate((128, 128, 256, 256, 512, 512)):
        constants[f"w{number}"] = generator.normal(0, 0.05, (results, channels, 3, 3)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}"))
        source, channels = f"r{number}", results
        if number % 2:
            pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
            nodes.append(helper.make_node("MaxPool", [source], [f"p{number}"], f"pool{number}", **pool))
            source = f"p{number}"
    nodes.append(helper.make_node("Flatten", [source], ["flat"], "flatten"))
    for name, shape, before, after in (("fc0", (8192, 1024), "flat", "h"), ("fc1", (1024, 10), "a", "y")):
        constants[f"{name}_w"] = generator.normal(0, 0.02, shape).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [before, f"{name}_w"], [after], name))
    nodes.insert(-1, helper.make_node("Relu", ["h"], ["a"], "relu_fc0"))
    graph = helper.make_graph(
        nodes,
        "vgg8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def quantized(spec: HardwareSpec) -> Mapping:
    """VGG-8 before any copies; few calibration vectors, for costs of fixed energies don't depend on them."""
    data = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    batches = calibration_batches({"x": data})
    return run_compile(load_model(vgg8()), spec, CompileOptions(), batches, stop_after="quantize").mapping


def costs_of(mapping: Mapping, copies: Copies, budget: int | None = None) -> tuple[list[int], CostReport]:
    """Arrays of each layer, and what the program takes; ADC ranges, which don't matter here, are left out."""
    mapping = Place("inputs").run(Duplicate(copies, budget, "inputs").run(mapping))
    mapping = back_end(CompileOptions())[1].run(mapping)  # the pass `assign`
    report = build_report(mapping, {})
    return [layer.arrays for layer in report.layers], cost(emit(mapping, report, keep_source=False))


EIGHT_BITS: dict[str, object] = {"periphery.input_bits": 8, "array.slices": 4, "chip.tiles": None}
"""Of ISAAC with 8-bit weights and inputs."""


@pytest.fixture(scope="module")
def offset_encoded() -> Mapping:
    return quantized(xbarc.HardwareSpec.preset("isaac").with_fields(EIGHT_BITS))


def test_vgg8(offset_encoded: Mapping) -> None:
    """3176 arrays layer by layer, 157.3 M conversions, 2152 us serial and an interval of 819.2 us."""
    arrays, report = costs_of(offset_encoded, 1)
    assert arrays == [4, 36, 72, 144, 288, 576, 2048, 8]
    assert report.arrays == 3176
    assert report.macs == 615_917_568
    assert sum(layer.conversions for layer in report.layers) == 157_288_960
    assert sum(layer.time for layer in report.layers) == pytest.approx(2152e-6, rel=1e-12)
    assert report.pipelined.interval == pytest.approx(819.2e-6, rel=1e-12)


def test_vgg8_with_copies(offset_encoded: Mapping) -> None:
    """16, 16, 4, 4, 1, 1, 1 and 1 copies take 4424 arrays and 51.2 us, and nothing faster fits."""
    arrays, report = costs_of(offset_encoded, "balance", 4424)
    assert arrays == [64, 576, 288, 576, 288, 576, 2048, 8]
    assert report.arrays == 4424
    assert report.pipelined.interval == pytest.approx(51.2e-6, rel=1e-12)
    assert sum(layer.conversions for layer in report.layers) == 157_288_960


def test_vgg8_in_pairs() -> None:
    """Of neighbouring columns, subtracted before the conversion: 6344 arrays, and as many conversions."""
    fields: dict[str, object] = {"array.pairing": "neighbouring_columns", "periphery.subtract": "before"}
    spec = xbarc.HardwareSpec.preset("isaac").with_fields(EIGHT_BITS | fields)
    arrays, report = costs_of(quantized(spec), 1)
    assert sum(arrays) == report.arrays == 6344
    assert sum(layer.conversions for layer in report.layers) == 157_288_960
