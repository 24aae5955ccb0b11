"""Tiles of several layers on one array: the same results, real devices for each other, and never read at once."""

from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from faulty_programs import block_costs, chip_for, compile_for, faulty_specs
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small_programs import SmallModel, small_spec, two_matmuls

import xbarc
from compiler.compile import CompileOptions
from compiler.mapping import Mapping, verify
from compiler.packing import Share
from compiler.rectangle_packing import least_sites
from compiler.strips import takes_bias
from hwspec.chip import Chip
from hwspec.errors import VerificationError
from hwspec.spec import HardwareSpec
from runtime.check import check_program
from runtime.engine import Engine
from runtime.physics.wires import effective_matrix
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, program_chip
from runtime.reference import Reference
from runtime.report import CompileReport
from runtime.timing import schedule
from xbarc.consistency import structure_failures

Float64 = npt.NDArray[np.float64]
WIRES: dict[str, object] = {"array.r_word": 2.0, "array.r_bit": 3.0, "array.r_driver": 30.0, "array.r_sense": 20.0}
SHARES: tuple[Share, ...] = ("none", "layer", "all")


@cache
def mobilenet() -> SmallModel:
    """A stem, a separable convolution of V1, two inverted bottlenecks of V2 (one with a skip), and a classifier."""
    generator = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, npt.NDArray[np.float32]] = {}

    def conv(source: str, channels: int, results: int, kernel: int, groups: int = 1, *, relu: bool = True) -> str:
        name, shape = f"conv{len(constants)}", (results, channels // groups, kernel, kernel)
        constants[f"{name}_w"] = generator.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [source, f"{name}_w"], [name], name, group=groups, pads=pads))
        if not relu:
            return name
        nodes.append(helper.make_node("Clip", [name, "low", "high"], [f"{name}_r"], f"{name}_r"))
        return f"{name}_r"

    def bottleneck(source: str, channels: int, results: int) -> str:
        hidden = 6 * channels
        found = conv(conv(source, channels, hidden, 1), hidden, hidden, 3, hidden)
        found = conv(found, hidden, results, 1, relu=False)
        if channels == results:
            nodes.append(helper.make_node("Add", [source, found], [f"{found}_s"], f"{found}_s"))
            found = f"{found}_s"
        return found

    top = conv("x", 3, 8, 3)
    top = conv(conv(top, 8, 8, 3, 8), 8, 4, 1, relu=False)
    top = conv(bottleneck(bottleneck(top, 4, 6), 6, 6), 6, 20, 1)
    nodes.append(helper.make_node("GlobalAveragePool", [top], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    constants["head"] = generator.normal(0, 0.2, (20, 10)).astype(np.float32)
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["y"], "classifier"))
    constants |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    graph = helper.make_graph(
        nodes,
        "mobilenet",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return SmallModel(proto, (3, 6, 6))


def shared(
    model: SmallModel, spec: HardwareSpec, share: Share = "all", chip: Chip | None = None
) -> tuple[Mapping, TileProgram]:
    """A model with tiles that share arrays so."""
    return compile_for(model, spec, chip, CompileOptions(share_arrays=share))


def pair_of_layers(fields: dict[str, object] | None = None) -> TileProgram:
    """Two layers of 6x6 weights that fit on one site."""
    return shared(two_matmuls(), small_spec({"array.rows": 12, "array.cols": 24, **(fields or {})}))[1]


# -- MobileNet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"])
def test_a_mobilenet_is_packed_near_the_bound_and_computes_the_same(pairing: str) -> None:
    """At most 1.10 times the lower bound, and outputs equal to the bit on an ideal chip, by both engines."""
    fields: dict[str, object] = {"array.rows": 32, "array.cols": 32, "array.pairing": pairing}
    if pairing == "neighbouring_rows":
        fields |= {"array.rows": 64, "periphery.subtract": "before"}
    spec = small_spec(fields)
    model = mobilenet()
    mapping, _ = shared(model, spec)
    programs = {share: shared(model, spec, share)[1] for share in SHARES}
    array = spec.array
    every = [block.shape for layer in mapping.layers for block in mapping.grids[layer.name].blocks]
    bound = least_sites(every, array.weight_rows, array.weight_cols)
    assert programs["all"].arrays <= 1.1 * bound * array.arrays_per_site
    assert programs["all"].arrays < programs["layer"].arrays < programs["none"].arrays
    verify(mapping)
    check_program(programs["all"])
    x = model.inputs(1)
    for engine in (Engine, Reference):
        outputs = {share: engine(program_chip(program))(x)[0] for share, program in programs.items()}
        assert np.abs(outputs["none"]).max() > 0
        for share in ("layer", "all"):
            np.testing.assert_array_equal(outputs[share], outputs["none"])


def test_what_is_packed_across_layers_is_a_sound_program_of_its_model() -> None:
    """Mapping it again apart gives the program that was never shared, and back."""
    model, spec = mobilenet(), small_spec({"array.rows": 32, "array.cols": 32})
    together, apart = (shared(model, spec, share)[1] for share in ("all", "layer"))
    for start, whole, wanted in ((together, False, apart), (apart, True, together)):
        found = xbarc.remap(start, share_arrays="all" if whole else "layer")
        assert found.tables == wanted.tables
        for key, value in wanted.tensors.items():
            np.testing.assert_array_equal(found.tensors[key], value, err_msg=key)


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_report_names_layers_that_share_arrays() -> None:
    """As counted from the program's tiles."""
    model, spec = mobilenet(), small_spec({"array.rows": 32, "array.cols": 32})
    for share in SHARES:
        program = shared(model, spec, share)[1]
        on: dict[int, set[str]] = {}
        for tile in program.tables.tiles:
            for number, _, _ in program.places(tile.name).values():
                on.setdefault(number, set()).add(tile.layer)
        totals = program.report.totals
        assert totals.arrays == len(on)
        assert totals.shared_arrays == sum(len(names) > 1 for names in on.values())
        assert (totals.shared_arrays > 0) == (share == "all")
        for layer in program.report.layers:
            near = {name for names in on.values() if layer.name in names for name in names} - {layer.name}
            assert set(layer.shares_with) == near
            assert len(layer.shares_with) == len(near)
            assert layer.arrays == sum(layer.name in names for names in on.values())


def test_a_report_without_these_fields_still_loads() -> None:
    """That of a program of an earlier version."""
    dumped = pair_of_layers().report.model_dump(mode="json")
    del dumped["totals"]["shared_arrays"]
    for layer in dumped["layers"]:
        del layer["shares_with"]
    found = CompileReport.model_validate(dumped)
    assert found.totals.shared_arrays == 0
    assert [layer.shares_with for layer in found.layers] == [(), ()]


def test_a_report_that_hides_sharing_is_told_of() -> None:
    mapping, program = shared(two_matmuls(), small_spec({"array.rows": 12, "array.cols": 24}))
    assert mapping.graph is not None
    assert structure_failures(program, mapping.source, mapping.graph) == []
    report = program.report
    first, second = report.layers
    assert (first.shares_with, second.shares_with) == (("second",), ("first",))
    for changed, told in (
        ({"layers": (first.model_copy(update={"shares_with": ()}), second)}, "shares arrays with"),
        ({"totals": report.totals.model_copy(update={"shared_arrays": 0})}, "not the sums"),
    ):
        hidden = replace(program, report=report.model_copy(update=changed))
        (failure,) = structure_failures(hidden, mapping.source, mapping.graph)
        assert told in failure


def test_layers_on_one_array_never_run_at_once() -> None:
    """The schedule of the pipeline keeps them apart; on arrays of their own they overlap."""
    program = pair_of_layers({"costs.t_read": 1e-7})
    apart = xbarc.remap(program, share_arrays="none")
    found, free = schedule(program), schedule(apart)
    loops = [(start, stage) for start, stage in zip(found.starts, found.stages, strict=True) if 0 in stage.resources]
    assert len(loops) == 2
    assert found.interval >= sum(stage.time for _, stage in loops) * (1 - 1e-9) > free.interval
    for (start, stage), (other, later) in combinations(loops, 2):
        gap = (other - start) % found.interval
        assert gap >= stage.time * (1 - 1e-9)
        assert found.interval - gap >= later.time * (1 - 1e-9)


# -- wires ------------------------------------------------------------------------------------------------------------


def whole_arrays(program: TileProgram) -> dict[int, Float64]:
    """Target conductances of every array with the tiles of all layers on it."""
    array = program.spec.array
    found: dict[int, Float64] = {}
    for tile in program.tables.tiles:
        for (number, rows, cols), target in zip(
            program.places(tile.name).values(), program.target_conductances(tile.name), strict=False
        ):
            cells = found.setdefault(number, np.full((array.rows, array.cols), array.unused))
            cells[np.ix_(rows, cols)] = target
    return found


def channel_matrix(chip: ProgrammedChip, tile: str) -> Float64:
    """Plus minus minus, whether they are subtracted before or after the conversion."""
    channels = chip.tiles[tile].channels
    return sum((channel.sign * channel.matrix for channel in channels), np.zeros_like(channels[0].matrix))


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns"])
def test_wires_see_the_devices_of_all_layers(pairing: str) -> None:
    """Each tile's currents are those of its arrays with the other layer's devices, also where that layer is exact."""
    program = pair_of_layers({"array.pairing": pairing, **WIRES})
    assert {tile.array for tile in program.tables.tiles} == {0}
    wanted = {
        number: effective_matrix(conductance, 2.0, 3.0, 30.0, 20.0).T
        for number, conductance in whole_arrays(program).items()
    }
    for exact in ((), ("first",), ("second",)):
        chip = program_chip(program, exact_layers=exact)
        for tile in program.tables.tiles:
            if tile.layer in exact:
                continue
            places = program.places(tile.name)
            plus, minus = (wanted[number][np.ix_(rows, cols)] for number, rows, cols in places.values())
            np.testing.assert_allclose(channel_matrix(chip, tile.name), plus - minus, rtol=1e-9, atol=1e-15)


def test_a_neighbour_changes_currents_behind_wires_only() -> None:
    for fields, same in (({}, True), (WIRES, False)):
        program = pair_of_layers({"device.levels": None, **fields})
        weights = {**program.tensors}
        for side in ("plus", "minus"):
            weights[f"second/{side}"] = np.full_like(weights[f"second/{side}"], program.spec.device.g_max)
        other = replace(program, tensors=weights)
        first = next(tile.name for tile in program.tables.tiles if tile.layer == "first")
        before, after = (channel_matrix(program_chip(one), first) for one in (program, other))
        assert np.array_equal(before, after) == same


NOISY: dict[str, object] = {"device.read_noise": {"model": "constant", "sigma": 1e-6, "share": 0.0}}
SILENT: dict[str, object] = {"device.read_noise": {"model": "none", "share": 0.0}, "periphery.readout_noise": 0.0}
LAWS: dict[str, dict[str, object]] = {
    "wires": WIRES,
    "closed form": {**WIRES, "array.wire_model": "closed_form"},
    "floating lines": {**WIRES, "array.unselected": "floating"},
    "half-selected lines": {**WIRES, "array.unselected": "half"},
    "unused cells": {**WIRES, "array.unused": 3e-6},
    "a sinh law": {
        **WIRES,
        "device.iv": {"model": "sinh", "alpha": 4.0, "asymmetry": 0.1},
        "periphery.dac_bits": 3,
        "periphery.sense_offset_sigma": 0.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"])
@pytest.mark.parametrize("law", LAWS)
def test_engine_and_reference_agree_on_shared_arrays(law: str, pairing: str) -> None:
    """In float64, to 1e-9, on an ideal and on a sampled chip, in compiled blocks and without."""
    fields = SILENT | {"array.pairing": pairing, "array.rows": 24, "periphery.adc_bits": None}
    if pairing == "neighbouring_rows":
        fields["periphery.subtract"] = "before"
    program = pair_of_layers(fields | LAWS[law])
    assert program.report.totals.shared_arrays == program.arrays == program.spec.array.arrays_per_site
    buffers = tuple(
        buffer if buffer.name == "x" else buffer.model_copy(update={"dtype": "float64"})
        for buffer in program.tables.buffers
    )
    outputs = tuple(output.model_copy(update={"dtype": "float64"}) for output in program.tables.outputs)
    program = replace(program, tables=program.tables.model_copy(update={"buffers": buffers, "outputs": outputs}))
    x = two_matmuls().inputs(2)
    for chip in (None, Chip.sample(program.spec, program.arrays, 3)):
        programmed = program_chip(program, chip)
        wanted = Reference(programmed)(x)[0]
        for blocks in (True, False):
            (found,) = Engine(programmed, dtype=torch.float64, blocks=blocks)(x)
            assert found.dtype == wanted.dtype == np.float64
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


def test_noise_behind_wires_counts_with_each_layers_own_inputs() -> None:
    """A layer's noise does not change with the inputs that another one on the same word lines was calibrated on."""
    program = pair_of_layers({**WIRES, **NOISY, "array.rows": 6})
    lines = [program.tile_tensors[tile.name].word_lines.tolist() for tile in program.tables.tiles]
    assert all(one == other for one, other in pairwise(lines))
    vectors = np.zeros_like(program.calibration["second/vectors"])
    other = replace(program, calibration={**program.calibration, "second/vectors": vectors})
    for tile in program.tables.tiles:
        before, after = (
            program_chip(one, Chip.sample(one.spec, one.arrays, 3)).tiles[tile.name].channels[0].variance
            for one in (program, other)
        )
        assert before is not None
        assert after is not None
        assert np.array_equal(before, after) == (tile.layer == "first")


# -- around failures --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(faulty_specs(isolations=("none", "device")), st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_mapping_around_failures_moves_whole_sites(spec: HardwareSpec, seed: int, spare: int) -> None:
    """Tiles that share a site still do, on their territories; no column block is worse off than in order."""
    model = two_matmuls()
    plain, any_chip = compile_for(model, spec, None, CompileOptions(share_arrays="all", robust=False, predistort=False))
    chip = chip_for(any_chip, seed, spare)
    options = CompileOptions(share_arrays="all", predistort=False)
    mapping, program = compile_for(model, spec, chip, options)
    verify(mapping)
    check_program(program)
    if program.faults is None:
        return
    moved: dict[int, int] = {}
    for layer in mapping.layers:
        for before, after in zip(plain.placements[layer.name], mapping.placements[layer.name], strict=True):
            assert moved.setdefault(before.array, after.array) == after.array
            if any_chip.report.totals.shared_arrays:  # packed rectangles have no spare lines
                np.testing.assert_array_equal(after.word_lines, before.word_lines)
                np.testing.assert_array_equal(after.bit_lines, before.bit_lines)
    assert len(set(moved.values())) == len(moved)
    assert program.report.totals.shared_arrays == any_chip.report.totals.shared_arrays
    _, in_order = compile_for(model, spec, chip, replace(options, steps=frozenset()))
    for layer in mapping.layers:
        centred = takes_bias(layer)
        costs, limits = (block_costs(mapping, one, layer.name, centred=centred) for one in (program, in_order))
        assert (costs <= limits * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns"])
def test_lines_are_gated_for_all_layers_on_them(pairing: str) -> None:
    """A word line that is gated off is off for every tile on it."""
    spec = small_spec(
        {
            "array.rows": 6, "array.cols": 24, "array.pairing": pairing, "array.cell": "1T1R",
            "failures.isolation": "line", "failures.overformed.rate": 0.04,
            "failures.overformed.conductance": "600 uS", "failures.allow_unbounded": True,
        }
    )  # fmt: skip
    gated = 0
    for seed in range(4):
        chip = Chip.sample(spec, 2, seed)
        mapping, program = shared(two_matmuls(), spec, "all", chip)
        assert program.report.totals.shared_arrays
        check_program(program)  # refuses a line that is gated off for some of its tiles alone
        gated += len(mapping.gated)
    assert gated


def test_tiles_of_different_layers_must_not_overlap() -> None:
    mapping, program = shared(two_matmuls(), small_spec({"array.rows": 12, "array.cols": 24}))
    placements = {**mapping.placements, "second": mapping.placements["first"]}
    with pytest.raises(VerificationError, match=r"'second'.*must not overlap another tile on array 0"):
        verify(replace(mapping, placements=placements))
    tensors = {**program.tensors}
    for key in ("word_lines", "bit_lines"):
        tensors[f"second/{key}"] = tensors[f"first/{key}"]
    with pytest.raises(xbarc.ProgramError, match="must not overlap another tile on array 0"):
        check_program(replace(program, tensors=tensors))
