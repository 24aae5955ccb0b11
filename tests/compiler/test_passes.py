"""The passes behind the front end: grids, territories, ranges; the invariants between them; compiling again."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import (
    SmallModel,
    compile_small,
    map_small,
    matmul,
    one_node,
    place_and_emit,
    small_models,
    small_spec,
    small_specs,
)

from compiler.compile import CompileOptions, finish, mapping_of, remap_program, run_compile
from compiler.frontend import load_model
from compiler.mapping import Block, Mapping, Placement, TileGrid, verify
from compiler.packing import chosen_share
from compiler.passes.assign import Assign
from compiler.passes.place import Place
from compiler.passes.quantize import quantize_layer
from compiler.passes.ranges import Ranges
from compiler.pipeline import Pass, run_passes
from hwspec.array import Array as CrossbarArray
from hwspec.errors import DataError, VerificationError
from hwspec.spec import HardwareSpec
from runtime.check import check_program
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.quantize import WeightCode
from runtime.reference import Conversion, Reference
from runtime.tables import Host

PAIRINGS = st.sampled_from(["two_arrays", "neighbouring_columns"])
PASSES = [
    "clean", "lower", "partition", "calibrate", "quantize", "duplicate", "place", "assign", "predistort", "ranges"
]  # fmt: skip


@st.composite
def sized(draw: st.DrawFn) -> tuple[CrossbarArray, tuple[int, int, int]]:
    """An array and matrices for it: multiples of its rows and columns, one more and one less among them."""
    array = CrossbarArray(rows=draw(st.integers(1, 9)), cols=2 * draw(st.integers(1, 5)), pairing=draw(PAIRINGS))
    near = st.sampled_from([-1, 0, 1])
    rows = max(draw(st.integers(0, 4)) * array.rows + draw(near), 1)
    cols = max(draw(st.integers(0, 4)) * array.weight_cols + draw(near), 1)
    return array, (draw(st.integers(1, 3)), rows, cols)


@settings(max_examples=200, deadline=None)
@given(sized())
def test_a_grid_covers_every_weight_once(case: tuple[CrossbarArray, tuple[int, int, int]]) -> None:
    array, shape = case
    groups, rows, cols = shape
    grid = TileGrid.of(np.zeros(shape), array)
    times = np.zeros(shape, int)
    for block in grid.blocks:
        times[block.group, block.rows, block.cols] += 1
        assert block.shape[0] <= array.rows
        assert block.shape[1] <= array.weight_cols
    assert (times == 1).all()
    assert len(grid.blocks) == groups * -(-rows // array.rows) * -(-cols // array.weight_cols)
    assert grid.partial_sums == groups * cols * (-(-rows // array.rows) - 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(small_models(), small_specs(), st.booleans())
def test_layers_share_arrays_only_with_themselves(model: SmallModel, spec: HardwareSpec, share: bool) -> None:
    placed = Place(share=chosen_share(share)).run(map_small(model, spec, "quantize"))
    verify(placed)
    sites = [placement.array for placement in placed.placements["layer"]]
    if not share:
        assert len(set(sites)) == len(sites)
    assert set(sites) == set(range(0, max(sites) + 1, spec.array.arrays_per_site))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(small_models(), small_specs())
def test_scales_and_levels(model: SmallModel, spec: HardwareSpec) -> None:
    mapping = map_small(model, spec, "quantize")
    layer, quantized = mapping.layers[0], mapping.quantized["layer"]
    weight = layer.weight.astype(np.float64)
    np.testing.assert_array_equal(quantized.scale, np.abs(weight).max(axis=1))
    error = np.abs(quantized.normalized * quantized.scale[:, None] - weight)
    code = WeightCode.of(spec)
    half_gap = code.half_gap(np.clip(weight / quantized.scale[:, None], -1, 1))
    assert (error <= quantized.scale[:, None] * (half_gap + 1e-12)).all()
    np.testing.assert_allclose(code.round(quantized.normalized), quantized.normalized, atol=1e-12)
    statistics = mapping.statistics["layer"]
    assert quantized.signed == (statistics.low < 0)
    largest = max(-statistics.low, statistics.high)
    assert largest <= quantized.full_scale <= 1.01 * largest


def test_columns_of_zeros_have_a_scale() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 5))
    weight[:, 2] = 0
    program = compile_small(one_node("MatMul", weight, (6,)))
    np.testing.assert_array_equal(program.decoded_weights("layer")[0, :, 2], 0)
    x = np.ones((2, 6), np.float32)
    np.testing.assert_array_equal(Reference(program_chip(program))(x)[0][:, 2], 0)


def test_a_layer_that_sees_only_zeros_compiles() -> None:
    """Neither the DAC nor the ADC has a range to take from calibration."""
    mapping = map_small(matmul(6, 5), small_spec(), "calibrate")
    statistics = mapping.statistics["layer"]
    empty = replace(statistics, low=0.0, high=0.0, vectors=np.zeros_like(statistics.vectors))
    quantized = quantize_layer(mapping.layers[0], empty, WeightCode.of(mapping.spec))
    assert (quantized.full_scale, quantized.signed) == (1.0, False)
    mapping = replace(mapping, statistics={"layer": empty}, quantized={"layer": quantized}, passes=tuple(PASSES[:6]))
    finished = run_passes(mapping, [Place(), Assign(), Ranges()]).mapping
    assert all(value > 0 for tile in finished.adc_ranges["layer"] for value in tile)
    check_program(place_and_emit(mapping))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(small_models(), small_specs(), st.integers(0, 2**32 - 1))
def test_ranges_clip_at_most_their_share(model: SmallModel, spec: HardwareSpec, seed: int) -> None:
    """On the calibration vectors themselves, tile by tile and phase by phase."""
    spec = spec.with_fields({"periphery.adc_bits": 8})
    quantized = map_small(model, spec, "quantize")
    program = place_and_emit(quantized, np.random.default_rng(seed))
    share = spec.periphery.adc_clip_share
    clipped: list[bool] = []

    def watch(found: Conversion) -> None:
        ranges = program.tiles[found.tile].adc_range
        over = np.abs(found.current) > ranges[1 if found.phase == "-" else 0]
        assert over.mean() <= share + 1e-12
        clipped.extend(over.ravel().tolist())

    layer = quantized.layers[0]
    vectors = quantized.statistics["layer"].vectors
    gather = layer.gather.model_copy(
        update={"kind": "vectors", "channels": vectors.shape[1], "kernel": (), "strides": (), "dilations": ()}
    )
    scatter = layer.scatter.model_copy(
        update={"kind": "vectors", "channels": layer.scatter.length, "groups": 1, "kernel": ()}
    )
    bias = np.zeros(layer.scatter.length)
    program = replace(
        program,
        tables=program.tables.model_copy(update={"gathers": (gather,), "scatters": (scatter,)}),
        tensors={**program.tensors, "layer/bias": bias},
    )
    Reference(program_chip(program), watch).loop(next(program.tables.loops), {layer.source: vectors})
    assert program.report.layers[0].calibration_clipped == pytest.approx(np.mean(clipped), abs=1e-12)


# -- invariants -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished() -> Mapping:
    """A finished mapping of several tiles that share arrays."""
    return map_small(matmul(20, 3), small_spec())


def grid(**changes: int) -> Callable[[Mapping], Mapping]:
    return lambda m: replace(m, grids={"layer": replace(m.grids["layer"], **changes)})


def place(number: int, **changes: object) -> Callable[[Mapping], Mapping]:
    def change(mapping: Mapping) -> Mapping:
        placements = list(mapping.placements["layer"])
        placements[number] = replace(placements[number], **changes)  # type: ignore[arg-type]
        return replace(mapping, placements={"layer": tuple(placements)})

    return change


def quantized(**changes: object) -> Callable[[Mapping], Mapping]:
    return lambda m: replace(m, quantized={"layer": replace(m.quantized["layer"], **changes)})  # type: ignore[arg-type]


def target(side: str, index: tuple[int, int], value: int) -> Callable[[Mapping], Mapping]:
    def change(mapping: Mapping) -> Mapping:
        first, *others = mapping.targets["layer"]
        array = getattr(first, side).astype(np.int64)
        array[index] = value
        return replace(mapping, targets={"layer": (replace(first, **{side: array}), *others)})

    return change


class _SkippingGrid(TileGrid):
    """A grid that forgets its last tile."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        return super().blocks[:-1]


class _RepeatingGrid(TileGrid):
    """A grid that has its first tile twice."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        return (super().blocks[0], *super().blocks)


def other_grid(kind: type[TileGrid]) -> Callable[[Mapping], Mapping]:
    def change(mapping: Mapping) -> Mapping:
        old = mapping.grids["layer"]
        return replace(mapping, grids={"layer": kind(old.groups, old.rows, old.cols, old.tile_rows, old.tile_cols)})

    return change


def steps(*found: Host | str) -> Callable[[Mapping], Mapping]:
    return lambda m: replace(m, graph=replace(m.lowered, steps=found))


NAN = float("nan")
INVARIANTS: list[tuple[str, Callable[[Mapping], Mapping]]] = [
    ("must run every layer once", steps()),
    ("must run every layer once", steps("layer", "layer")),
    ("must write a buffer before it is read", steps(Host(segment="s", inputs=("q",), outputs=("z",)), "layer")),
    ("must have a grid of its matrix", grid(rows=19)),
    ("must have a grid of its matrix", grid(groups=2)),
    ("must map every weight exactly once", other_grid(_SkippingGrid)),
    ("must map every weight exactly once", other_grid(_RepeatingGrid)),
    ("must have positive finite scales", quantized(scale=np.array([[1.0, 0.0, 1.0]]))),
    ("must have positive finite scales", quantized(scale=np.array([[1.0, NAN, 1.0]]))),
    ("must have a scale for each column", quantized(scale=np.ones((1, 2)))),
    ("must have weights in", quantized(normalized=np.full((1, 20, 3), 1.01))),
    ("must have weights in", quantized(normalized=np.full((1, 20, 3), NAN))),
    ("must have a positive finite full scale", quantized(full_scale=0.0)),
    ("must have a positive finite full scale", quantized(full_scale=NAN)),
    ("must keep tile 0 on the device's levels", target("plus", (0, 0), 17)),
    ("must keep tile 0 on the device's levels", target("minus", (7, 2), -1)),
    ("must assign its 3 tiles", lambda m: replace(m, targets={"layer": m.targets["layer"][:2]})),
    ("must assign all of tile 0", lambda m: replace(m, targets={"layer": m.targets["layer"][::-1]})),
    ("must place its 3 tiles", lambda m: replace(m, placements={"layer": m.placements["layer"][:2]})),
    ("must keep its tiles on rising lines inside", place(0, word_lines=np.arange(1, 9))),
    ("must keep its tiles on rising lines inside", place(0, bit_lines=np.arange(6, 9))),
    ("must keep its tiles on rising lines inside", place(0, bit_lines=np.arange(-1, 2))),
    ("must keep its tiles on rising lines inside", place(0, bit_lines=np.array([0, 2, 1]))),
    ("must keep its tiles on rising lines inside", place(0, bit_lines=np.array([0, 1, 1]))),
    ("must keep its tiles on rising lines inside", place(0, bit_lines=np.arange(2))),
    ("must start its tiles' sites", place(0, array=1)),
    ("must start its tiles' sites", place(0, array=-2)),
    ("must not overlap another tile on array 0", place(1, bit_lines=np.arange(2, 5))),
    ("must order each tile's rows by a permutation", place(0, row_map=np.zeros(8, np.int32))),
    ("must order each tile's rows by a permutation", place(0, row_map=np.arange(7))),
    ("must order each tile's columns by a permutation", place(0, col_order=np.array([0, 1, 3]))),
    ("must give each column a sign", place(0, col_sign=np.array([1, 0, 1]))),
    ("must give each column a sign", place(0, col_sign=np.array([1, 1]))),
    ("must have ADC ranges for each tile", lambda m: replace(m, adc_ranges={"layer": ()})),
    (
        "must have 1 positive finite ADC ranges on tile 2",
        lambda m: replace(m, adc_ranges={"layer": ((1.0,),) * 2 + ((),)}),
    ),
    ("must have 1 positive finite ADC ranges on tile 0", lambda m: replace(m, adc_ranges={"layer": ((NAN,),) * 3})),
]


@pytest.mark.parametrize(
    ("invariant", "change"), INVARIANTS, ids=[f"{n}-{text}" for n, (text, _) in enumerate(INVARIANTS)]
)
def test_each_invariant_is_checked(finished: Mapping, invariant: str, change: Callable[[Mapping], Mapping]) -> None:
    verify(finished)
    with pytest.raises(VerificationError, match=invariant):
        verify(change(finished))


def test_conductances_that_are_no_numbers_are_found() -> None:
    mapping = map_small(matmul(5, 3), small_spec({"device.levels": None}))
    first = mapping.targets["layer"][0]
    broken = replace(mapping, targets={"layer": (replace(first, plus=np.full_like(first.plus, np.nan)),)})
    with pytest.raises(VerificationError, match="must keep tile 0 on the device's levels"):
        verify(broken)


def test_layers_are_known_once_the_model_is_lowered() -> None:
    cleaned = map_small(matmul(3, 3), small_spec(), "clean")
    verify(cleaned)
    with pytest.raises(VerificationError, match="must be lowered before later passes run"):
        _ = cleaned.layers


# -- the pipeline -----------------------------------------------------------------------------------------------------


def test_a_broken_pass_is_named() -> None:
    class Broken(Place):
        def run(self, mapping: Mapping) -> Mapping:
            placed = super().run(mapping)
            moved: list[Placement] = [
                replace(found, word_lines=found.word_lines + 1) for found in placed.placements["layer"]
            ]
            return replace(placed, placements={"layer": tuple(moved)})

    with pytest.raises(
        VerificationError, match=r"after pass 'place'.*inside their arrays.*clean, lower.*quantize, place"
    ):
        run_passes(map_small(matmul(9, 9), small_spec(), "quantize"), [Broken()])


def test_a_pass_names_what_it_needs() -> None:
    later: list[Pass] = [Ranges()]
    with pytest.raises(VerificationError, match="pass 'ranges' must run after 'assign'"):
        run_passes(map_small(matmul(3, 3), small_spec(), "quantize"), later)


@pytest.mark.parametrize("number", range(len(PASSES)))
def test_a_pipeline_stops_where_it_is_told(number: int) -> None:
    seen: list[str] = []
    outcome = run_compile(
        load_model(matmul(9, 9).proto),
        small_spec(),
        CompileOptions(),
        None,
        stop_after=PASSES[number],
        after_each=lambda name, _: seen.append(name),
    )
    assert list(outcome.mapping.passes) == seen == list(outcome.seconds) == PASSES[: number + 1]
    filled = [
        bool(getattr(outcome.mapping, part)) for part in ("grids", "statistics", "quantized", "placements", "targets")
    ]
    assert filled == [number >= first for first in (2, 3, 4, 6, 7)]


def test_an_unknown_pass_is_refused() -> None:
    with pytest.raises(DataError, match=r"must be one of clean, lower, .*, not 'emit'"):
        map_small(matmul(3, 3), small_spec(), "emit")


# -- compiling again --------------------------------------------------------------------------------------------------


def assert_same_program(found: TileProgram, wanted: TileProgram) -> None:
    """Equal in everything but the time that the passes took."""
    assert found.tables == wanted.tables
    assert dict(found.segments) == dict(wanted.segments)
    for part in ("tensors", "weights", "calibration"):
        mine, theirs = getattr(found, part), getattr(wanted, part)
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key].dtype == value.dtype
            np.testing.assert_array_equal(mine[key], value)
    untimed = {"seconds": dict[str, float]()}
    assert found.report.model_copy(update=untimed) == wanted.report.model_copy(update=untimed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(small_models(), small_specs(), st.integers(0, 2**32 - 1))
def test_a_seed_decides_everything(model: SmallModel, spec: HardwareSpec, seed: int) -> None:
    program = compile_small(model, spec, seed)
    assert_same_program(compile_small(model, spec, seed), program)
    assert program.tables.seed == seed


def test_another_seed_draws_other_inputs() -> None:
    one, other = compile_small(matmul(9, 9), seed=1), compile_small(matmul(9, 9), seed=2)
    assert one.layers["layer"].full_scale != other.layers["layer"].full_scale


@settings(max_examples=25, deadline=None, derandomize=True)
@given(small_models(), small_specs())
def test_remapping_gives_the_same_program(model: SmallModel, spec: HardwareSpec) -> None:
    """Nothing that later passes need is lost in a program: the grid, the scales, the ranges come out alike."""
    program = compile_small(model, spec)
    again = remap_program(program, CompileOptions())
    assert_same_program(again, program)
    assert again.source == program.source


@settings(max_examples=25, deadline=None, derandomize=True)
@given(small_models(), small_specs())
def test_the_mapping_of_a_program_is_the_one_it_came_from(model: SmallModel, spec: HardwareSpec) -> None:
    wanted = map_small(model, spec, "duplicate")
    found = mapping_of(compile_small(model, spec))
    verify(found)
    assert found.passes == wanted.passes
    assert found.grids == wanted.grids
    assert found.warnings == wanted.warnings
    assert found.lowered.steps == wanted.lowered.steps
    assert (found.lowered.inputs, found.lowered.outputs) == (wanted.lowered.inputs, wanted.lowered.outputs)
    for layer, original in zip(found.layers, wanted.layers, strict=True):
        for name in ("name", "op", "initializer", "gather", "scatter", "source", "target", "windows", "macs"):
            assert getattr(layer, name) == getattr(original, name)
        np.testing.assert_array_equal(layer.weight, original.weight)
        np.testing.assert_array_equal(layer.bias, original.bias)
    for key in ("low", "high", "mean", "covariance", "vectors"):
        mine, theirs = (getattr(mapping.statistics["layer"], key) for mapping in (found, wanted))
        np.testing.assert_array_equal(mine, theirs)
    for key in ("scale", "normalized", "full_scale", "signed"):
        mine, theirs = (getattr(mapping.quantized["layer"], key) for mapping in (found, wanted))
        np.testing.assert_array_equal(mine, theirs)


def test_report_counts_what_the_program_holds() -> None:
    program = finish(
        run_compile(load_model(matmul(20, 17).proto), small_spec(), CompileOptions(share_arrays=False), None)
    )
    layer, totals = program.report.layers[0], program.report.totals
    assert layer.tiles == totals.tiles == len(program.tables.tiles) == 9
    assert layer.arrays == totals.arrays == program.arrays == 18
    assert layer.cells == totals.cells == 2 * 20 * 17
    assert layer.partial_sums == 17 * 2
    assert layer.macs == totals.macs == totals.mapped_macs == totals.constant_weight_macs == 20 * 17
    assert layer.utilisation == totals.utilisation == 2 * 20 * 17 / (18 * 64)
    assert layer.windows == 1
    weight = program.weights["layer"][0].astype(np.float64)
    error = np.linalg.norm(program.decoded_weights("layer")[0] - weight) / np.linalg.norm(weight)
    assert layer.weight_error == pytest.approx(error, rel=1e-9)


def test_the_flip_code_halves_the_largest_current() -> None:
    """Columns of high weights are stored with the opposite sign; the results are the same."""
    weights = np.abs(np.random.default_rng(0).standard_normal((24, 6)))
    weights[:, ::2] *= -1
    model = one_node("MatMul", weights, (24,), positive=True)
    spec = small_spec({"array.pairing": "reference", "array.rows": 32, "periphery.adc_bits": None})
    program = finish(run_compile(load_model(model.proto), spec, CompileOptions(), None))
    (tensors,) = program.tile_tensors.values()
    np.testing.assert_array_equal(tensors.col_sign, [1, -1, 1, -1, 1, -1])
    conductance, _ = program.target_conductances("t0")
    assert (conductance.mean(0) < spec.reference_conductance).all()
    step = 2 / (16 - 1)
    scale = np.abs(weights).max(0)
    assert (np.abs(program.decoded_weights("layer")[0] - weights) <= scale * step / 2 * (1 + 1e-6)).all()
