"""Reference and engine compute the same: any layer, any spec, any placement, any body of a loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from agreement import (
    TIE,
    assert_agree,
    assert_nearly_agree,
    assert_same_values,
    fixed_noise,
    in_float64,
    run_reference,
    sampled,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import (
    SmallModel,
    compile_small,
    map_small,
    mapped_specs,
    matmul,
    one_node,
    physical_specs,
    place_and_emit,
    small_models,
    small_spec,
    small_specs,
    two_matmuls,
)

from hwspec.errors import DataError
from hwspec.spec import HardwareSpec
from runtime.check import check_program
from runtime.engine import Engine
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.reference import Reference
from runtime.tables import Acc, Buffer, Load, Loop, Mvm, Step, Store, TensorInfo, input_phases

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(small_models(), small_specs() | mapped_specs(), SEEDS)
def test_engine_agrees_in_float64(model: SmallModel, spec: HardwareSpec, seed: int) -> None:
    """On an ideal chip, where conversions round exact products."""
    quantized = map_small(model, spec, "quantize")
    program = in_float64(place_and_emit(quantized, np.random.default_rng(seed)))
    check_program(program)
    assert_agree(program_chip(program), model.inputs(seed))


def with_free_signs(spec: HardwareSpec) -> HardwareSpec:
    """Single devices and their reference, alike but for the sign: converted together, of even levels, at 25 degrees."""
    if spec.array.pairing != "reference":
        return spec
    return spec.with_fields(
        {
            "periphery.subtract": "before",
            "device.levels": spec.device.level_count,
            "device.r_access": 0.0,
            "device.temperature": 25.0,
        }
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_models(), small_specs() | physical_specs(lines=False).map(with_free_signs), SEEDS)
def test_placement_changes_nothing(model: SmallModel, spec: HardwareSpec, seed: int) -> None:
    """Row orders, column orders and swapped pairs are undone: the same codes in another place, the same outputs."""
    quantized = map_small(model, spec, "quantize")
    plain = in_float64(place_and_emit(quantized))
    moved = in_float64(place_and_emit(quantized, np.random.default_rng(seed)))
    x = model.inputs(seed)
    chip, other = program_chip(plain), program_chip(moved)
    (wanted, conversions), (found, moved_conversions) = run_reference(chip, x), run_reference(other, x)
    assert moved_conversions.keys() == conversions.keys()
    same = True
    for (tile, phase, number), conversion in moved_conversions.items():
        tensors, home = moved.tile_tensors[tile], plain.tile_tensors[tile]
        column = np.argsort(home.col_map)[np.searchsorted(np.sort(home.col_map), tensors.col_map)]
        # Where pairs are subtracted after their conversions, a swapped pair has these swapped, too.
        digits, channels = chip.drive("layer").digits, chip.tiles[tile].channels
        twin = conversions[tile, phase, (number + digits) % (digits * len(channels))]
        sign = tensors.col_sign * home.col_sign[column]
        own = conversions[tile, phase, number]
        if len(channels) == 2:
            logical = np.where(sign < 0, twin.codes[:, column], own.codes[:, column])
        else:
            logical = own.codes[:, column] * sign
        if conversion.margin is None:
            assert_same_values(conversion.codes, logical)
            continue
        differs = conversion.codes != logical
        assert not (differs & (conversion.margin > TIE)).any()
        same = same and not differs.any()
    if same:
        assert_same_values(found[0], wanted[0])
    np.testing.assert_allclose(moved.decoded_weights("layer"), plain.decoded_weights("layer"), rtol=1e-9, atol=1e-12)


CONV = one_node("Conv", np.random.default_rng(3).standard_normal((24, 8, 3, 3)), (8, 12, 12), pads=[1, 1, 1, 1])


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns"])
@pytest.mark.parametrize("signed", ["bipolar", "two_phase"])
@pytest.mark.parametrize(("levels", "dac_bits", "adc_bits"), [(16, 8, 8), (2, 4, 6), (None, 8, 8), (4, None, 8)])
def test_engine_agrees_in_float32(
    pairing: str, signed: str, levels: int | None, dac_bits: int | None, adc_bits: int
) -> None:
    spec = small_spec(
        {
            "array.rows": 32,
            "array.cols": 16,
            "array.pairing": pairing,
            "periphery.signed": signed,
            "device.levels": levels,
            "periphery.dac_bits": dac_bits,
            "periphery.adc_bits": adc_bits,
        }
    )
    assert_nearly_agree(program_chip(compile_small(CONV, spec)), CONV.inputs(5, batch=2), 20_000)


@pytest.mark.parametrize("name", ["ideal", "rram-128"])
def test_outputs_agree_in_float32(name: str) -> None:
    program = compile_small(CONV, HardwareSpec.preset(name))
    x = CONV.inputs(5, batch=2)
    wanted, found = Reference(program_chip(program))(x), Engine(program_chip(program))(x)
    largest = np.abs(wanted[0]).max()
    difference = np.abs(found[0] - wanted[0])
    assert (difference > 1e-5 * largest).mean() <= 1e-3
    assert difference.max() <= 0.05 * largest


def random_body(program: TileProgram, generator: np.random.Generator, steps: int) -> tuple[Step, ...]:
    """A body of the grammar: registers reused, tiles driven again and by other rows, results added up at random."""
    layer, loop = program.tables.layers[0], next(program.tables.loops)
    first = next(step for step in loop.body if isinstance(step, Load))
    last = next(step for step in loop.body if isinstance(step, Store))
    phases = input_phases(program.spec, layer.signed)
    loads: dict[str, Load] = {}
    mvms: dict[str, Mvm] = {}
    sums: set[str] = set()
    body: list[Step] = []
    stores = 0
    for number in range(steps):
        tile = program.tables.tiles[generator.integers(len(program.tables.tiles))]
        group = int(program.tile_tensors[tile.name].col_map[0]) // layer.cols
        fitting = [
            name
            for name, load in loads.items()
            if (load.start // layer.rows, load.stop - load.start) == (group, tile.rows)
        ]
        action = generator.integers(8)
        if action == 7 and sums:
            source = str(generator.choice(sorted(sums)))
            body.append(last.model_copy(update={"source": source, "buffer": f"out{stores}"}))
            stores += 1
        elif action >= 4 and mvms:
            source = str(generator.choice(sorted(mvms)))
            into = f"y{generator.integers(2)}"
            body.append(Acc(into=into, source=source, tile=mvms[source].tile))
            sums.add(into)
        elif action >= 2 and fitting:
            into = f"p{generator.integers(3)}"
            step = Mvm(
                into=into, tile=tile.name, source=str(generator.choice(fitting)), phase=phases[number % len(phases)]
            )
            mvms[into] = step
            body.append(step)
        else:
            start = group * layer.rows + int(generator.integers(layer.rows - tile.rows + 1))
            into = f"x{generator.integers(3)}"
            loads[into] = first.model_copy(update={"into": into, "start": start, "stop": start + tile.rows})
            body.append(loads[into])
    if not sums:
        return random_body(program, generator, 2 * steps)
    return (*body, *(last.model_copy(update={"source": name, "buffer": f"out{name}"}) for name in sorted(sums)))


def with_body(program: TileProgram, body: tuple[Step, ...]) -> TileProgram:
    """The program with another loop body, every buffer that it stores an output."""
    names = [step.buffer for step in body if isinstance(step, Store)]
    instructions = tuple(
        step.model_copy(update={"body": body}) if isinstance(step, Loop) else step
        for step in program.tables.instructions
    )
    tables = program.tables.model_copy(
        update={
            "instructions": instructions,
            "buffers": (*program.tables.buffers, *(Buffer(name=name, dtype="float64") for name in names)),
            "outputs": tuple(TensorInfo(name=name, dtype="float64", shape=()) for name in names),
        }
    )
    return replace(program, tables=tables)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(small_models(), small_specs() | physical_specs(), st.integers(4, 60), SEEDS)
def test_any_body_runs_alike(model: SmallModel, spec: HardwareSpec, steps: int, seed: int) -> None:
    """On a chip as it comes from the line; a tile that a body drives again sees the same noise in both engines."""
    generator = np.random.default_rng(seed)
    program = place_and_emit(map_small(model, spec, "quantize"), generator)
    program = with_body(in_float64(program), random_body(program, generator, steps))
    check_program(program)
    x = model.inputs(seed, batch=2)
    chip = sampled(program, seed)
    wanted = Reference(chip, noise=fixed_noise)(x)
    found = Engine(chip, dtype=torch.float64, noise=fixed_noise)(x)
    assert len(found) == len(wanted) >= 1
    for got, value in zip(found, wanted, strict=True):
        assert_same_values(got, value)


def test_shuffled_steps_give_the_same_result() -> None:
    """Loads, drives and additions commute."""
    model = matmul(30, 20)
    program = in_float64(compile_small(model))
    body = next(program.tables.loops).body
    generator = np.random.default_rng(0)
    shuffled: list[Step] = []
    for kind in (Load, Mvm, Acc, Store):
        steps = [step for step in body if isinstance(step, kind)]
        shuffled += [steps[number] for number in generator.permutation(len(steps))]
    moved = with_body(program, tuple(shuffled))
    x = model.inputs(1)
    wanted = Reference(program_chip(program))(x)[0]
    assert_same_values(Reference(program_chip(moved))(x)[0], wanted)
    assert_same_values(Engine(program_chip(moved), dtype=torch.float64)(x)[0], wanted)


def test_exact_layers_give_the_float_result() -> None:
    model = matmul(30, 20)
    program = in_float64(compile_small(model))
    x = model.inputs(1)
    weight = program.weights["layer"][0].astype(np.float64)
    chip = program_chip(program, exact_layers=["layer"])
    for run in (Reference(chip), Engine(chip, dtype=torch.float64)):
        assert_same_values(run(x)[0], x.astype(np.float64) @ weight)


def test_large_finite_inputs_are_taken() -> None:
    """The sum of the inputs overflows in float32, none of them does."""
    model = matmul(30, 20)
    program = in_float64(compile_small(model))
    x = np.full((40, 30), 3e37, np.float32)
    found, wanted = Engine(program_chip(program))(x)[0], Reference(program_chip(program))(x)[0]
    assert_same_values(found, wanted, 1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_inside(bad: float) -> None:
    """A digital segment may compute them: both engines stop at the layer that they reach."""
    model = one_node("MatMul", np.ones((3, 2)), (3,), positive=True)
    program = compile_small(model)
    x = np.array([[1.0, bad, 2.0], [1.0, 2.0, 3.0]], np.float32)
    reference, engine = Reference(program_chip(program)), Engine(program_chip(program))
    loop = next(program.tables.loops)
    source = next(step.buffer for step in loop.body if isinstance(step, Load))
    with pytest.raises(DataError, match=r"layer 'layer'.*finite"):
        reference.loop(loop, {source: x})
    with pytest.raises(DataError, match=r"layer 'layer'.*finite"):
        engine.loop("layer", {source: torch.from_numpy(x)})


def test_layers_follow_one_another() -> None:
    """What one loop stores the next one loads, rounded to the buffer's type in both."""
    model = two_matmuls()
    program = compile_small(model, HardwareSpec.preset("ideal"))
    x = model.inputs(3)
    wanted = x.astype(np.float64) @ program.weights["first"][0] @ program.weights["second"][0]
    for run in (Reference(program_chip(program)), Engine(program_chip(program), dtype=torch.float64)):
        assert_same_values(run(x)[0], wanted, 1e-6)


def test_large_batches_run_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    program = in_float64(compile_small(CONV))
    x = CONV.inputs(2, batch=5)
    whole = Engine(program_chip(program), dtype=torch.float64, blocks=False)(x)[0]
    monkeypatch.setattr("runtime.engine.BLOCK_ELEMENTS", 2 * 8 * 9 * 144)
    assert_same_values(Engine(program_chip(program), dtype=torch.float64, blocks=False)(x)[0], whole)
