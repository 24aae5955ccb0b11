"""Mapping around failed devices, from model to program: never worse than in order, whatever is left out."""

from dataclasses import replace

import numpy as np
import pytest
from faulty_programs import block_costs, chip_for, column_costs, compile_for, faulty_specs
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import SmallModel, compile_small, map_small, matmul, small_models, small_spec, small_specs

import xbarc
from compiler.compile import CompileOptions, remap_program
from compiler.mapping import verify
from compiler.packing import chosen_share, pack
from compiler.passes.place import Place
from compiler.steps import ALL, STEPS, chosen_steps
from compiler.strips import takes_bias
from hwspec.chip import Chip
from hwspec.errors import DataError, DoesNotFit, VerificationError
from hwspec.failures import State
from hwspec.fault_map import FaultMap
from hwspec.spec import HardwareSpec
from runtime.check import check_program
from runtime.program import TileProgram
from runtime.quantize import is_off

FAULTY = {"failures.stuck_hrs.rate": 0.08, "failures.stuck_lrs.rate": 0.08}
NONE = frozenset[str]()


def assert_same_tensors(found: TileProgram, wanted: TileProgram) -> None:
    assert found.tensors.keys() == wanted.tensors.keys()
    for key, value in wanted.tensors.items():
        assert found.tensors[key].dtype == value.dtype
        np.testing.assert_array_equal(found.tensors[key], value, err_msg=key)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(small_models(), faulty_specs(), st.integers(0, 3))
def test_a_chip_without_failed_devices_changes_nothing(model: SmallModel, spec: HardwareSpec, spare: int) -> None:
    """Bit for bit what any chip's program is when pairs are not raised, although the spec knows rates."""
    wanted = compile_small_as_is(model, spec)
    whole = Chip.ideal(spec, wanted.arrays + spare)
    for chip in (whole, replace(whole, faults=FaultMap(np.zeros(whole.shape, np.uint8), np.zeros(0)))):
        _, found = compile_for(model, spec, chip)
        assert_same_tensors(found, wanted)
        assert [tile.array for tile in found.tables.tiles] == [tile.array for tile in wanted.tables.tiles]
        assert found.faults is None
        assert found.tables.tiles == wanted.tables.tiles


def compile_small_as_is(model: SmallModel, spec: HardwareSpec) -> TileProgram:
    return compile_for(model, spec, None, CompileOptions(robust=False))[1]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    small_models(),
    faulty_specs(isolations=("none", "device")),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2),
    st.integers(1, 2),
)
def test_no_column_block_is_worse_off_than_in_order(
    model: SmallModel, spec: HardwareSpec, seed: int, spare: int, replicas: int
) -> None:
    """Cost ``e' H e`` of the weights that devices hold, found from the programs alone."""
    chip = chip_for(compile_small_as_is(model, spec), seed, spare, replicas)
    options = CompileOptions(replicas=replicas, predistort=False)
    mapping, best = compile_for(model, spec, chip, options)
    _, in_order = compile_for(model, spec, chip, replace(options, steps=NONE))
    check_program(best)
    check_program(in_order)
    centred = takes_bias(mapping.layers[0])
    after, before = (block_costs(mapping, program, "layer", centred=centred) for program in (best, in_order))
    assert (after <= before * (1 + 1e-5) + 1e-12).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_models(), faulty_specs(), st.integers(0, 2**32 - 1), st.sets(st.sampled_from(sorted(STEPS))))
def test_any_steps_can_be_left_out(model: SmallModel, spec: HardwareSpec, seed: int, steps: set[str]) -> None:
    """The rest still maps soundly, does what its steps may do and no more, and is no worse than in order."""
    chip = chip_for(compile_small_as_is(model, spec), seed, 1)
    mapping, program = compile_for(model, spec, chip, CompileOptions(steps=frozenset(steps), predistort=False))
    check_program(program)
    if program.faults is None:
        return
    wanted = compile_small_as_is(model, spec)
    assert program.tables.mapping_steps == tuple(step for step in STEPS if step in steps)
    assert next(iter(mapping.step_errors["layer"].sums)) == "identity"
    assert set(mapping.step_errors["layer"].sums) <= {"identity", *steps}
    for tile, plain in zip(program.tables.tiles, wanted.tables.tiles, strict=True):
        found, before = program.tile_tensors[tile.name], wanted.tile_tensors[plain.name]
        if "arrays" not in steps:
            assert tile.array == plain.array
        if "sign" not in steps:
            order = np.argsort(found.col_map)
            np.testing.assert_array_equal(found.col_sign[order], before.col_sign[np.argsort(before.col_map)])
        if not {"columns", "spares"} & steps:
            np.testing.assert_array_equal(found.col_map, before.col_map)
        if "rows" not in steps:
            np.testing.assert_array_equal(found.row_map, before.row_map)
        if "spares" not in steps:
            np.testing.assert_array_equal(found.word_lines, before.word_lines)
            np.testing.assert_array_equal(found.bit_lines, before.bit_lines)
    if "bias" not in steps:
        assert "layer/bias_shift" not in program.tensors
    if "residue" not in steps:
        assert "layer/residue" not in program.tensors
    unmoved, in_order = compile_for(model, spec, chip, CompileOptions(steps=NONE, predistort=False))
    if mapping.gated or unmoved.gated:  # lines are gated off for all that lies on them, whatever the steps
        return
    centred = "bias" in steps and takes_bias(mapping.layers[0])
    after, before_costs = (block_costs(mapping, one, "layer", centred=centred) for one in (program, in_order))
    assert (after <= before_costs * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("left_out", [None, *STEPS])
def test_each_step_is_worth_taking(left_out: str | None) -> None:
    """On a small network each of the steps can go, and none of them alone keeps the errors from falling."""
    model, spec = matmul(24, 20), small_spec({**FAULTY, "periphery.residue": 0.02, "array.rows": 16, "array.cols": 16})
    chip = chip_for(compile_small(model, spec), 4, 3)
    costs = []
    for steps in (chosen_steps(without=[left_out] if left_out else []), NONE):
        _, program = compile_for(model, spec, chip, CompileOptions(steps=steps))
        costs.append(column_costs(program, "layer", centred=False).sum())
    print(f"without {left_out}: {costs[0] / costs[1]:.4f} of the squared error in order")
    assert costs[0] < 0.2 * costs[1]


def test_a_step_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'columns'"):
        CompileOptions(steps=frozenset({"colums"}))
    with pytest.raises(DataError, match="there are pair, arrays"):
        chosen_steps(without=["xyz"])
    assert chosen_steps() == ALL
    assert chosen_steps(without=["pair"]) == ALL - {"pair"}
    assert chosen_steps(["pair"], ["pair"]) == frozenset()


# -- where tiles lie --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_models(), faulty_specs(), st.integers(0, 2**32 - 1), st.booleans())
def test_tiles_stay_on_their_territories(model: SmallModel, spec: HardwareSpec, seed: int, share: bool) -> None:
    """Sites are exchanged as a whole, and spare lines belong to one tile each."""
    chip = chip_for(compile_for(model, spec, None, CompileOptions(share_arrays=share, robust=False))[1], seed, 2)
    mapping, program = compile_for(model, spec, chip, CompileOptions(share_arrays=share))
    if program.faults is None:
        return
    blocks, placements = mapping.grids["layer"].blocks, mapping.placements["layer"]
    territories = pack([block.shape for block in blocks], spec.array, share=share, spares=True)
    array_of: dict[int, int] = {}
    for place, placement in zip(territories, placements, strict=True):
        assert array_of.setdefault(place.site, placement.array) == placement.array
        assert place.rows.start <= placement.word_lines[0]
        assert placement.word_lines[-1] < place.rows.stop
        assert place.cols.start <= placement.bit_lines[0]
        assert placement.bit_lines[-1] < place.cols.stop
    assert len(set(array_of.values())) == len(array_of)
    assert max(array_of.values()) + spec.array.arrays_per_site <= chip.arrays
    assert program.arrays <= chip.arrays


@settings(max_examples=30, deadline=None, derandomize=True)
@given(small_models(), small_specs(), st.booleans())
def test_sites_of_layers_in_order(model: SmallModel, spec: HardwareSpec, share: bool) -> None:
    """Where nothing is known of failures: site after site, lines from the first of each territory."""
    mapping = map_small(model, spec, "quantize")
    placed = Place(share=chosen_share(share)).run(mapping)
    verify(placed)
    blocks = mapping.grids["layer"].blocks
    for place, found in zip(
        pack([block.shape for block in blocks], spec.array, share=share, spares=False),
        placed.placements["layer"],
        strict=True,
    ):
        assert found.array == place.site * spec.array.arrays_per_site
        np.testing.assert_array_equal(found.word_lines, np.arange(place.rows.start, place.rows.stop))
        np.testing.assert_array_equal(found.bit_lines, np.arange(place.cols.start, place.cols.stop))


def chip_of_states(spec: HardwareSpec, states: np.ndarray) -> Chip:
    """An ideal chip with these failed devices, at the range's ends."""
    conducts = np.array([0, 0, spec.device.g_max, spec.device.g_min, spec.device.g_max])[states[states != State.OK]]
    arrays, rows, cols = states.shape
    return Chip(rows, cols, arrays, faults=FaultMap(states, conducts))


def test_a_dead_site_is_left_for_a_spare_one() -> None:
    model, spec = matmul(8, 8), small_spec(FAULTY)
    states = np.zeros((4, 8, 8), np.uint8)
    states[:2] = State.STUCK_LRS
    chip = chip_of_states(spec, states)
    _, program = compile_for(model, spec, chip)
    assert [tile.array for tile in program.tables.tiles] == [2]
    assert program.arrays == 4
    _, kept = compile_for(model, spec, chip, CompileOptions(steps=ALL - {"arrays"}))
    assert [tile.array for tile in kept.tables.tiles] == [0]


def test_dead_lines_are_left_for_spare_ones() -> None:
    """A tile of 6x5 on a site of 8x8 whose first two word lines and three bit lines are dead."""
    model, spec = matmul(6, 5), small_spec(FAULTY)
    states = np.zeros((2, 8, 8), np.uint8)
    states[:, :2], states[:, :, 1:4] = State.STUCK_LRS, State.STUCK_LRS
    _, program = compile_for(model, spec, chip_of_states(spec, states))
    (tensors,) = program.tile_tensors.values()
    assert tensors.word_lines.tolist() == [2, 3, 4, 5, 6, 7]
    assert tensors.bit_lines.tolist() == [0, 4, 5, 6, 7]
    np.testing.assert_allclose(
        program.decoded_weights("layer"), compile_small_as_is(model, spec).decoded_weights("layer"), rtol=1e-9
    )


def test_a_chip_that_is_too_small_is_refused_with_what_it_lacks() -> None:
    model, spec = matmul(20, 17), small_spec(FAULTY)
    program = compile_small(model, spec)
    chip = Chip.sample(spec, program.arrays - 3, 1)
    for attempt in (lambda: compile_for(model, spec, chip), lambda: xbarc.remap(program, chip)):
        with pytest.raises(DoesNotFit) as caught:
            attempt()
        assert caught.value.exit_code == 4
        report = caught.value.report
        assert (report.demand, report.bound, report.gap) == (program.arrays, program.arrays - 3, 3)
    double = CompileOptions(replicas=2)
    needed = remap_program(program, double).arrays
    with pytest.raises(DoesNotFit, match="replicas"):
        remap_program(program, double, Chip.sample(spec, needed - 1, 1))
    assert remap_program(program, double, Chip.sample(spec, needed, 1)).arrays <= needed


@pytest.mark.parametrize("router", [False, True])
def test_tiles_of_the_same_inputs_share_their_rows_unless_there_is_a_router(router: bool) -> None:
    model = matmul(16, 48, seed=5)
    spec = small_spec({**FAULTY, "array.rows": 16, "array.cols": 16, "array.router": router})
    chip = chip_for(compile_small(model, spec), 2)
    mapping, program = compile_for(model, spec, chip)
    lines = {tuple(one.word_lines[one.row_map].tolist()) for one in program.tile_tensors.values()}
    assert len(lines) == (3 if router else 1)
    broken = list(mapping.placements["layer"])
    broken[0] = replace(broken[0], row_map=np.roll(broken[0].row_map, 1))
    changed = replace(mapping, placements={"layer": tuple(broken)})
    if router:
        verify(changed)
    else:
        with pytest.raises(VerificationError, match="must order the rows of tiles with the same inputs alike"):
            verify(changed)


def test_a_router_costs_no_more() -> None:
    model, costs = matmul(16, 48, seed=5), []
    for router in (False, True):
        spec = small_spec({**FAULTY, "array.rows": 16, "array.cols": 16, "array.router": router})
        _, program = compile_for(model, spec, chip_for(compile_small(model, spec), 2))
        costs.append(column_costs(program, "layer", centred=True).sum())
    assert costs[1] < costs[0]


# -- replicas, gates, wires -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [1, 2])
def test_replicas_share_what_a_weight_is(slices: int) -> None:
    """Each holds it whole where nothing failed; around failures two err less together than one alone."""
    model = matmul(12, 10)
    spec = small_spec({**FAULTY, "array.rows": 16, "array.cols": 16, "device.levels": 4, "array.slices": slices})
    one, two = (compile_for(model, spec, None, CompileOptions(replicas=n, robust=False))[1] for n in (1, 2))
    assert len(two.tables.tiles) == 2 * len(one.tables.tiles)
    assert [tile.replica for tile in two.tables.tiles] == [0, 1] * slices
    np.testing.assert_allclose(two.decoded_weights("layer"), one.decoded_weights("layer"), rtol=1e-12)
    costs = []
    for replicas in (1, 2):
        lost = []
        for seed in range(4):
            _, program = compile_for(model, spec, chip_for(one, seed, 0, replicas), CompileOptions(replicas=replicas))
            check_program(program)
            lost.append(column_costs(program, "layer", centred=True).sum())
        costs.append(np.mean(lost))
    assert costs[1] < 0.7 * costs[0]


SHORTED = {
    "failures.overformed.rate": 0.06,
    "failures.overformed.conductance": 300e-6,
    "failures.allow_unbounded": True,
}


def off_of(program: TileProgram) -> tuple[np.ndarray, ...]:
    """Gated devices and states of the first tile."""
    tensors = program.tile_tensors["t0"]
    states = np.stack(program.failed_states("t0"))
    return np.stack([is_off(program.spec.device, side) for side in (tensors.plus, tensors.minus)]), states


def test_shorted_devices_with_gates_of_their_own_are_gated_off() -> None:
    """Those that would push weights out of range; good devices only beside failed ones."""
    model = matmul(16, 16)
    spec = small_spec({**SHORTED, "array.rows": 16, "array.cols": 16, "array.cell": "2T2R"})
    _, program = compile_for(model, spec, chip_for(compile_small(model, spec), 1))
    off, states = off_of(program)
    shorted = states == State.OVERFORMED
    assert off.any()
    assert off[shorted & (shorted.sum(0) == 1)].mean() > 0.9
    assert not off[:, ~shorted.any(0)].any()
    bare = spec.with_fields({"array.cell": "1T1R"})
    _, without = compile_for(model, bare, chip_for(compile_small(model, bare), 1))
    assert not off_of(without)[0].any()
    costs = [column_costs(one, "layer", centred=True).sum() for one in (program, without)]
    assert costs[0] < 0.1 * costs[1]


def test_devices_whose_gates_failed_are_not_gated_off() -> None:
    fields = {**SHORTED, "array.cell": "2T2R", "failures.overformed.isolatable": False}
    spec = small_spec({**fields, "array.rows": 16, "array.cols": 16})
    model = matmul(16, 16)
    _, program = compile_for(model, spec, chip_for(compile_small(model, spec), 1))
    off, states = off_of(program)
    assert (states == State.OVERFORMED).any()
    assert not off[states == State.OVERFORMED].any()
    check_program(program)


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_rows", "neighbouring_columns", "reference"])
def test_whole_word_lines_are_gated_off_where_gates_belong_to_lines(pairing: str) -> None:
    """Of a line full of shorts all devices that tiles use, or none: the program says so by itself."""
    spec = small_spec({**SHORTED, "failures.isolation": "line", "array.pairing": pairing})
    model = matmul(8 if pairing != "neighbouring_rows" else 4, 4)
    states = np.zeros((2, 8, 8), np.uint8)
    states[0, 3, :: 2 if pairing == "neighbouring_columns" else 1] = State.OVERFORMED
    chip = Chip(8, 8, 2, faults=FaultMap(states, np.full(np.count_nonzero(states), 3e-3)))
    mapping, program = compile_for(model, spec, chip, CompileOptions(steps=ALL - {"spares", "rows", "arrays"}))
    assert mapping.gated == {(0, 3)}
    check_program(program)
    for (number, rows, _), side in zip(
        program.places("t0").values(),
        (program.tile_tensors["t0"].plus, program.tile_tensors["t0"].minus),
        strict=False,
    ):
        off = is_off(spec.device, side)
        np.testing.assert_array_equal(off, np.broadcast_to(((number == 0) & (rows == 3))[:, None], off.shape))
    assert xbarc.verify(program, model=model.proto.SerializeToString()).passed


def test_a_line_with_a_device_whose_gate_failed_stays() -> None:
    """A line of shorts is gated off unless there is such a device on columns of it that a tile uses."""
    fields = {"failures.stuck_lrs.rate": 0.01, "failures.stuck_lrs.isolatable": False}
    spec = small_spec({**SHORTED, **fields, "failures.isolation": "line"})
    for col, gated in ((1, frozenset()), (6, frozenset({(0, 3)}))):
        states = np.zeros((2, 8, 8), np.uint8)
        states[0, 3] = State.OVERFORMED
        states[0, 3, col] = State.STUCK_LRS
        chip = Chip(8, 8, 2, faults=FaultMap(states, np.full(8, 3e-3)))
        options = CompileOptions(steps=ALL - {"spares", "rows", "arrays"})
        mapping, program = compile_for(matmul(8, 4), spec, chip, options)
        assert mapping.gated == gated
        check_program(program)


def test_lines_that_gain_nothing_are_not_gated_off() -> None:
    spec = small_spec({"failures.isolation": "line", "failures.stuck_hrs.rate": 0.2})
    model = matmul(8, 8)
    mapping, _ = compile_for(model, spec, chip_for(compile_small(model, spec), 1))
    assert not mapping.gated


@pytest.mark.parametrize("cell", ["1T1R", "2T2R"])
def test_targets_that_undo_wires_leave_failed_devices_alone(cell: str) -> None:
    """Targets of failed and of gated devices stay what they are, and outputs err no more than without."""
    wires = {"array.r_word": 20.0, "array.r_bit": 20.0, "array.rows": 24, "array.cols": 24}
    spec = small_spec({**wires, **FAULTY, **SHORTED, "array.cell": cell})
    model = matmul(24, 20)
    chip = chip_for(compile_small(model, spec), 3)
    _, plain = compile_for(model, spec, chip, CompileOptions(predistort=False))
    _, moved = compile_for(model, spec, chip)
    check_program(moved)
    before, after = plain.tile_tensors["t0"], moved.tile_tensors["t0"]
    changed = 0
    for side, stuck in zip(("plus", "minus"), plain.stuck_conductances("t0"), strict=True):
        held = ~np.isnan(stuck) | is_off(spec.device, getattr(before, side))
        assert held.any()
        np.testing.assert_array_equal(getattr(before, side)[held], getattr(after, side)[held])
        changed += int((getattr(before, side) != getattr(after, side)).sum())
    assert changed > 20
    wires_report = moved.report.layers[0].wires
    assert wires_report is not None
    assert wires_report.error_predistorted is not None
    assert wires_report.error_predistorted < wires_report.error
