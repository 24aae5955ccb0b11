"""Verification passes what the compiler makes, and fails whatever was changed in it since."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import xbarc
from hwspec.errors import DataError, ProgramError
from runtime.program import TILE_TENSORS, TileProgram, tile_tensor_size
from runtime.tables import Loop, Tables
from xbarc.verification import BOUND

Array = npt.NDArray[Any]
DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"

SPECS: dict[str, dict[str, object]] = {
    "ideal": {},
    "rram-128": {},
    "two_phase": {"periphery.signed": "two_phase"},
    "neighbouring_columns": {"array.pairing": "neighbouring_columns"},
    "adc4": {"periphery.adc_bits": 4},
}
LEVELS = {name: fields for name, fields in SPECS.items() if name in ("ideal", "rram-128")}


def spec_of(name: str) -> xbarc.HardwareSpec:
    return xbarc.HardwareSpec.preset("ideal" if name == "ideal" else "rram-128").with_fields(SPECS[name])


def mixed_model() -> onnx.ModelProto:
    """A depthwise Conv, a ConvTranspose, a MatMul by a batch of matrices, and digital nodes between them."""
    generator = np.random.default_rng(3)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "depthwise", group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("ConvTranspose", ["r", "t", "tb"], ["u"], "transposed", strides=[2, 2]),
        helper.make_node("Reshape", ["u", "shape"], ["v"], "reshape"),
        helper.make_node("MatMul", ["v", "m"], ["y"], "batched"),
        helper.make_node("Tanh", ["v"], ["z"], "tanh"),
    ]
    weights = {
        "w": normal(4, 1, 3, 3),
        "t": normal(4, 3, 2, 2),
        "tb": normal(3),
        "shape": np.array([0, 3, 12, 12]),
        "m": normal(3, 12, 5),
    }
    return built(nodes, weights, ["N", 4, 6, 6], ["y", "z"])


def built(
    nodes: list[onnx.NodeProto], weights: Mapping[str, Array], shape: list[int | str], outputs: list[str]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tested",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@cache
def program_of(model: str, spec: str) -> TileProgram:
    """A program, compiled once for all tests."""
    if model == "digits":
        return xbarc.compile(DIGITS, spec=spec_of(spec))
    small = spec_of(spec).with_fields({"array.rows": 16, "array.cols": 16})
    return xbarc.compile(mixed_model(), spec=small)


def layers_of(model: str) -> list[str]:
    return list(program_of(model, "ideal").layers)


def refused(program: TileProgram) -> bool:
    """Whether a program fails: on loading, or in its verification."""
    try:
        report = xbarc.verify(program)
    except ProgramError:
        return True
    assert report.passed == (not report.failures)
    return not report.passed


# -- what the compiler makes passes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("model", ["digits", "mixed"])
def test_what_was_compiled_passes(model: str, spec: str) -> None:
    report = xbarc.verify(program_of(model, spec))
    assert report.passed, report.failures
    assert report.max_error <= report.bound
    assert [layer.name for layer in report.layers] == layers_of(model)
    assert all(output.structure_error <= output.structure_bound == BOUND for output in report.per_output)
    if spec == "ideal":
        assert report.bound == BOUND
        assert report.max_error == max(output.error for output in report.per_output)
    else:
        assert report.bound == 1
        assert all(0 < layer.weight_error <= 1 and 0 < layer.output_error <= 1 for layer in report.layers)


def test_the_bound_is_half_an_lsb_and_not_loose() -> None:
    """A 4-bit ADC rounds values of every kind: some conversion comes close to the half lsb that it may be off by."""
    report = xbarc.verify(program_of("mixed", "adc4"))
    assert max(layer.output_error for layer in report.layers) > 0.9
    assert max(layer.weight_error for layer in report.layers) > 0.9


def test_inputs_and_seeds_change_what_is_run_and_not_the_verdict() -> None:
    program = program_of("mixed", "rram-128")
    inputs = np.random.default_rng(0).standard_normal((5, 4, 6, 6)).astype(np.float32)
    reports = [xbarc.verify(program, inputs=inputs), *(xbarc.verify(program, seed=seed) for seed in (0, 0, 7))]
    assert all(report.passed for report in reports)
    assert reports[1] == reports[2] != reports[3]
    assert reports[0].layers[0].conversions == 5 * 36 * 4


def test_inputs_far_outside_the_calibration_clip_and_still_pass() -> None:
    program = program_of("mixed", "rram-128")
    report = xbarc.verify(program, inputs=np.full((1, 4, 6, 6), 50, np.float32))
    assert report.passed, report.failures
    assert report.layers[0].clipped > 0


def test_a_program_without_its_model_takes_one() -> None:
    program = replace(program_of("mixed", "ideal"), source=None)
    with pytest.raises(DataError, match="--model"):
        xbarc.verify(program)
    assert xbarc.verify(program, mixed_model()).passed


def test_another_model_fails() -> None:
    program = program_of("mixed", "ideal")
    other = mixed_model()
    values = numpy_helper.to_array(other.graph.initializer[0]).copy()
    values[0, 0, 0, 0] += 1e-4
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    report = xbarc.verify(program, other)
    assert not report.passed
    assert "hash" in report.failures[0]


def test_the_bound_widens_to_what_onnxruntime_itself_is_off_by() -> None:
    """A sigmoid of -87 is as small as float32 goes, and onnxruntime's fused and plain forms need not agree on it."""
    weights = {"w": np.eye(3, dtype=np.float32), "b": np.array([-87.0, -87.1, -87.2], np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["g"]), helper.make_node("Sigmoid", ["g"], ["y"])]
    program = xbarc.compile(built(nodes, weights, ["N", 3], ["y"]), spec="ideal")
    report = xbarc.verify(program)
    assert report.passed, report.failures
    (output,) = report.per_output
    assert output.structure_bound >= BOUND


def test_noise_of_onnxruntime_doubles_into_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    from compiler.floatmodel import FloatModel

    program = program_of("mixed", "ideal")
    plain_run, fused = FloatModel.run, set[int]()

    def noisy(self: FloatModel, feeds: Any, wanted: Any = None) -> dict[str, Any]:
        found = plain_run(self, feeds, wanted)
        return {name: value + 0.01 if name == "z" and id(self) in fused else value for name, value in found.items()}

    original = FloatModel.__init__

    def remember(self: FloatModel, *arguments: Any, optimize: bool = False, **more: Any) -> None:
        original(self, *arguments, optimize=optimize, **more)
        if optimize:
            fused.add(id(self))
        else:
            fused.discard(id(self))

    monkeypatch.setattr(FloatModel, "__init__", remember)
    monkeypatch.setattr(FloatModel, "run", noisy)
    y, z = xbarc.verify(program).per_output
    assert y.structure_bound == BOUND
    assert z.structure_bound == pytest.approx(0.02, rel=0.1)  # tanh comes close to 1


# -- what was changed fails -------------------------------------------------------------------------------------------


def tile_slice(program: TileProgram, tile: str, key: str) -> slice:
    """Where a tile's part of its layer's flat tensor lies."""
    at = 0
    for row in program.tables.tiles:
        if row.layer == program.tiles[tile].layer:
            size = tile_tensor_size(key, row)
            if row.name == tile:
                return slice(at, at + size)
            at += size
    raise KeyError(tile)


def with_tile(program: TileProgram, tile: str, **changed: Array) -> TileProgram:
    """The program with other arrays for a tile."""
    tensors = dict(program.tensors)
    for key, values in changed.items():
        assert key in TILE_TENSORS
        name = f"{program.tiles[tile].layer}/{key}"
        tensors[name] = tensors[name].copy()
        tensors[name][tile_slice(program, tile, key)] = values.reshape(-1)
    return replace(program, tensors=tensors)


def with_tables(program: TileProgram, **changed: object) -> TileProgram:
    return replace(program, tables=program.tables.model_copy(update=changed))


def first_tile(program: TileProgram, layer: str) -> str:
    return next(tile.name for tile in program.tables.tiles if tile.layer == layer)


def flip_a_cell(program: TileProgram, layer: str) -> TileProgram:
    """One device one level away; where levels are continuous, a hundredth of the span."""
    tile = first_tile(program, layer)
    plus = program.tile_tensors[tile].plus.copy()
    at = np.unravel_index(int(np.argmax(plus)), plus.shape)
    plus[at] -= 1 if program.spec.device.levels else 0.01 * program.spec.device.span
    return with_tile(program, tile, plus=plus)


def swap_two_rows(program: TileProgram, layer: str) -> TileProgram:
    tile = first_tile(program, layer)
    tensors = program.tile_tensors[tile]
    difference = tensors.plus.astype(np.float64) - tensors.minus
    other = next(row for row in range(1, len(difference)) if not np.array_equal(difference[0], difference[row]))
    order = np.arange(len(difference))
    order[[0, other]] = other, 0
    return with_tile(program, tile, plus=tensors.plus[order], minus=tensors.minus[order])


def swap_two_in_the_row_map(program: TileProgram, layer: str) -> TileProgram:
    tile = first_tile(program, layer)
    rows = program.tile_tensors[tile].row_map.copy()
    rows[[0, 1]] = rows[[1, 0]]
    return with_tile(program, tile, row_map=rows)


def zero_a_tile(program: TileProgram, layer: str) -> TileProgram:
    tile = first_tile(program, layer)
    tensors = program.tile_tensors[tile]
    lowest = np.zeros_like(tensors.plus) + (0 if program.spec.device.levels else program.spec.device.g_min)
    return with_tile(program, tile, plus=lowest.astype(tensors.plus.dtype), minus=lowest.astype(tensors.plus.dtype))


def scale_a_column(program: TileProgram, layer: str) -> TileProgram:
    tile = first_tile(program, layer)
    scale = program.tile_tensors[tile].scale.copy()
    scale[0] *= 1.1
    return with_tile(program, tile, scale=scale)


def shrink_the_conductances_of_a_column(program: TileProgram, layer: str) -> TileProgram:
    tile, device = first_tile(program, layer), program.spec.device
    low = 0 if device.levels else device.g_min
    sides = {}
    for key in ("plus", "minus"):
        values = getattr(program.tile_tensors[tile], key).astype(np.float64).copy()
        values[:, 0] = low + (values[:, 0] - low) / 1.1
        sides[key] = np.rint(values) if device.levels else values
    return with_tile(program, tile, **sides)


EVERYWHERE: tuple[Callable[[TileProgram, str], TileProgram], ...] = (
    flip_a_cell,
    swap_two_rows,
    swap_two_in_the_row_map,
    zero_a_tile,
    scale_a_column,
    shrink_the_conductances_of_a_column,
)


@pytest.mark.parametrize("mutate", EVERYWHERE, ids=lambda function: function.__name__)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("model", ["digits", "mixed"])
def test_a_changed_tile_of_any_layer_fails(
    model: str, spec: str, mutate: Callable[[TileProgram, str], TileProgram]
) -> None:
    program = program_of(model, spec)
    for layer in program.layers:
        if len(program.tile_tensors[first_tile(program, layer)].row_map) > 1:
            assert refused(mutate(program, layer)), layer


def change_a_bias(program: TileProgram) -> TileProgram:
    name = next(name for name in program.tensors if name.endswith("/bias"))
    bias = program.tensors[name].copy()
    bias[0] += 1e-6
    return replace(program, tensors={**program.tensors, name: bias})


def widen_an_adc_range(program: TileProgram) -> TileProgram:
    return scaled_adc_range(program, 1.01)


def narrow_an_adc_range(program: TileProgram) -> TileProgram:
    return scaled_adc_range(program, 0.99)


def scaled_adc_range(program: TileProgram, factor: float) -> TileProgram:
    last = program.tables.tiles[-1]
    ranges = (*last.adc_range[:-1], last.adc_range[-1] * factor)
    return with_tables(program, tiles=(*program.tables.tiles[:-1], last.model_copy(update={"adc_range": ranges})))


def permute_a_col_map(program: TileProgram) -> TileProgram:
    tile = program.tables.tiles[-1].name
    columns = program.tile_tensors[tile].col_map
    return with_tile(program, tile, col_map=np.roll(columns, 1))


def turn_a_column_sign(program: TileProgram) -> TileProgram:
    tile = program.tables.tiles[-1].name
    sign = program.tile_tensors[tile].col_sign.copy()
    sign[0] = -sign[0]
    return with_tile(program, tile, col_sign=sign)


def swap_two_segments(program: TileProgram) -> TileProgram:
    first, second, *rest = program.segments
    swapped = {first: program.segments[second], second: program.segments[first]}
    return replace(program, segments=swapped | {name: program.segments[name] for name in rest})


def change_a_constant_of_a_segment(program: TileProgram) -> TileProgram:
    for name, content in program.segments.items():
        model = onnx.load_model_from_string(content)
        if model.graph.initializer:
            values = numpy_helper.to_array(model.graph.initializer[0]).copy()
            values.reshape(-1)[-1] += 1
            model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, model.graph.initializer[0].name))
            return replace(program, segments={**program.segments, name: model.SerializeToString()})
    raise AssertionError("no segment has a constant")


def change_an_operator_of_a_segment(program: TileProgram) -> TileProgram:
    for name, content in program.segments.items():
        model = onnx.load_model_from_string(content)
        for node in model.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Identity"
                return replace(program, segments={**program.segments, name: model.SerializeToString()})
    raise AssertionError("no segment has a Relu")


def change_the_pads_of_a_gather(program: TileProgram) -> TileProgram:
    first, *rest = program.tables.gathers
    pads = (0, 0, 2, 2) if first.pads == (1, 1, 1, 1) else (1, *first.pads[1:])
    return with_tables(program, gathers=(first.model_copy(update={"pads": pads}), *rest))


def drop_an_instruction(program: TileProgram) -> TileProgram:
    return with_tables(program, instructions=program.tables.instructions[:-1])


def drop_a_tile_from_a_loop(program: TileProgram) -> TileProgram:
    return with_last_loop(program, lambda body: (body[0], *body[3:]))


def accumulate_twice(program: TileProgram) -> TileProgram:
    return with_last_loop(program, lambda body: (*body[:-1], *[s for s in body if s.op == "acc"][:1], body[-1]))


def forget_to_accumulate(program: TileProgram) -> TileProgram:
    accs = sum(step.op == "acc" for step in list(program.tables.loops)[-1].body)
    assert accs > 1
    return with_last_loop(program, lambda body: (*body[:-2], body[-1]))


def with_last_loop(program: TileProgram, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> TileProgram:
    steps = list(program.tables.instructions)
    index = max(number for number, step in enumerate(steps) if isinstance(step, Loop))
    loop = steps[index]
    assert isinstance(loop, Loop)
    steps[index] = loop.model_copy(update={"body": change(loop.body)})
    return with_tables(program, instructions=tuple(steps))


def change_a_full_scale(program: TileProgram) -> TileProgram:
    first, *rest = program.tables.layers
    return with_tables(program, layers=(first.model_copy(update={"full_scale": first.full_scale * 1.01}), *rest))


def change_the_calibrated_range(program: TileProgram) -> TileProgram:
    name = next(name for name in program.calibration if name.endswith("/range"))
    return replace(program, calibration={**program.calibration, name: program.calibration[name] * 2})


def change_a_float_weight(program: TileProgram) -> TileProgram:
    name, weight = next(iter(program.weights.items()))
    changed = weight.copy()
    changed.reshape(-1)[0] += np.float32(1e-5)
    return replace(program, weights={**program.weights, name: changed})


def change_the_model(program: TileProgram) -> TileProgram:
    assert program.source is not None
    model = onnx.load_model_from_string(program.source)
    model.doc_string = "another"
    return replace(program, source=model.SerializeToString())


def change_the_spec(program: TileProgram) -> TileProgram:
    spec = program.spec.with_fields({"periphery.v_read": program.spec.periphery.v_read * 1.01})
    return with_tables(program, spec=spec)


def swap_two_buffers(program: TileProgram) -> TileProgram:
    tables = program.tables
    assert len(tables.outputs) > 1
    return with_tables(program, outputs=tables.outputs[::-1])


def invent_a_neighbour_in_the_report(program: TileProgram) -> TileProgram:
    first, *rest = program.report.layers
    layers = (first.model_copy(update={"shares_with": (rest[0].name,)}), *rest)
    return replace(program, report=program.report.model_copy(update={"layers": layers}))


def boast_in_the_report(program: TileProgram) -> TileProgram:
    totals = program.report.totals.model_copy(update={"arrays": 1})
    return replace(program, report=program.report.model_copy(update={"totals": totals}))


ANYWHERE: tuple[Callable[[TileProgram], TileProgram], ...] = (
    change_a_bias,
    permute_a_col_map,
    turn_a_column_sign,
    swap_two_segments,
    change_a_constant_of_a_segment,
    change_an_operator_of_a_segment,
    change_the_pads_of_a_gather,
    drop_an_instruction,
    drop_a_tile_from_a_loop,
    accumulate_twice,
    forget_to_accumulate,
    change_a_full_scale,
    change_the_calibrated_range,
    change_a_float_weight,
    change_the_model,
    change_the_spec,
    swap_two_buffers,
    boast_in_the_report,
    invent_a_neighbour_in_the_report,
)


@pytest.mark.parametrize("mutate", ANYWHERE, ids=lambda function: function.__name__)
@pytest.mark.parametrize("spec", ["ideal", "rram-128"])
def test_a_changed_program_fails(spec: str, mutate: Callable[[TileProgram], TileProgram]) -> None:
    assert refused(mutate(program_of("mixed", spec)))


@pytest.mark.parametrize("mutate", [widen_an_adc_range, narrow_an_adc_range], ids=lambda function: function.__name__)
@pytest.mark.parametrize("spec", ["rram-128", "two_phase", "adc4"])
def test_a_changed_adc_range_fails(spec: str, mutate: Callable[[TileProgram], TileProgram]) -> None:
    """A wider range would widen the bound of half an lsb with it: it must be that of the calibration record."""
    report = xbarc.verify(mutate(program_of("mixed", spec)))
    assert not report.passed
    assert "ADC ranges" in " ".join(report.failures)


def test_the_mutations_change_something() -> None:
    """None of the mutations gives the program that it was given."""
    program = program_of("mixed", "rram-128")
    for mutate in ANYWHERE:
        changed = mutate(program)
        assert (
            changed.tables != program.tables
            or changed.segments != program.segments
            or changed.source != program.source
            or changed.report != program.report
            or any(not np.array_equal(changed.tensors[name], value) for name, value in program.tensors.items())
            or any(not np.array_equal(changed.weights[name], value) for name, value in program.weights.items())
            or any(not np.array_equal(changed.calibration[name], v) for name, v in program.calibration.items())
        ), mutate.__name__


def test_unchanged_tables_round_trip() -> None:
    """`model_copy` with nothing to change is the identity: what fails above fails for what was changed."""
    program = program_of("mixed", "rram-128")
    same = replace(program, tables=Tables.model_validate(program.tables.model_dump()))
    assert xbarc.verify(same).passed


def test_an_infinite_value_does_not_hide_the_error_of_the_others() -> None:
    """The error is in units of the largest finite magnitude: one -inf in an output does not make it vanish."""
    weights = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    constants = {"w": weights, "floor": np.full((1, 1), -np.inf, np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["p"]), helper.make_node("Concat", ["p", "floor"], ["y"], axis=1)],
        "masked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    spec = xbarc.HardwareSpec.preset("rram-128").with_fields({"device.levels": 2})
    report = xbarc.verify(xbarc.compile(model, spec), model)
    assert report.passed, report.failures
    assert 1e-3 < report.per_output[0].error < 10
