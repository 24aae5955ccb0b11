"""Segments of layers on the same arrays, one after another: what they hold, meet, compute and take."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tuning_cases as cases
from hypothesis import given
from hypothesis import strategies as st
from small_programs import small_spec

import xbarc
from compiler.compile import CompileOptions
from compiler.packing import Territory
from compiler.reloading import Territories, in_segments, segments_of
from hwspec.errors import DataError, DoesNotFit, ProgramError
from runtime.costing import cost
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.timing import schedule
from runtime.writing import written_devices

SPREAD: dict[str, object] = {
    **cases.FAULTY,
    "periphery.gain_sigma": 0.0,
    "periphery.offset_sigma": 0.0,
}
INPUTS = cases.blobs(40, 3).inputs


def compiled(arrays: int | None, fields: Mapping[str, object] | None = None, **options: Any) -> TileProgram:
    """The classifier of two layers, one tile each, that takes two arrays of each side of a pair."""
    return xbarc.compile(
        cases.classifier(),
        small_spec({**SPREAD, **(fields or {})}),
        calibration=cases.blobs(64, 98),
        options=CompileOptions(reload=arrays is not None, array_budget=arrays, **options),
    )


@pytest.fixture(scope="module")
def plain() -> TileProgram:
    return compiled(None)


@pytest.fixture(scope="module")
def reloaded(plain: TileProgram) -> TileProgram:
    """On as many arrays as the larger layer takes."""
    return compiled(most_of_a_layer(plain))


def most_of_a_layer(program: TileProgram) -> int:
    found: dict[str, set[int]] = {}
    for tile in program.tables.tiles:
        found.setdefault(tile.layer, set()).update(number for number, *_ in program.places(tile.name).values())
    return max(map(len, found.values()))


# -- cutting --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.integers(6, 12), st.integers(1, 2))
def test_segments_are_as_few_as_can_be(sizes: list[int], budget: int, per_site: int) -> None:
    names = [str(number) for number in range(len(sizes))]

    def pack(some: Sequence[str]) -> Territories:
        sites = itertools.count()
        place = slice(0, 1)
        return {name: tuple(Territory(next(sites), place, place) for _ in range(sizes[int(name)])) for name in some}

    found = in_segments(names, pack, budget, per_site)
    of_layers = [{place.site // budget for place in found[name]} for name in names]
    assert all(len(segments) == 1 for segments in of_layers)
    order = [next(iter(segments)) for segments in of_layers]
    assert order == sorted(order)
    sites = [place.site for places in found.values() for place in places]
    assert len(set(sites)) == len(sites) == sum(sizes)
    fewest = [0] + [len(sizes)] * len(sizes)  # for the first layers, by trying where the last segment begins
    for end in range(1, len(sizes) + 1):
        fewest[end] = min(fewest[begin] + 1 for begin in range(end) if sum(sizes[begin:end]) <= budget)
    assert segments_of(found, budget) == order[-1] + 1 == fewest[-1]


def test_a_layer_that_does_not_fit_alone_is_named() -> None:
    def pack(some: Sequence[str]) -> Territories:
        return {name: tuple(Territory(site, slice(0, 1), slice(0, 1)) for site in range(5)) for name in some}

    with pytest.raises(DoesNotFit, match="layer a kept digital") as error:
        in_segments(["a"], pack, 4, 2)
    assert (error.value.report.demand, error.value.report.bound, error.value.report.gap) == (10, 8, 2)


# -- what a program is ----------------------------------------------------------------------------------------------


def test_a_program_addresses_the_arrays_that_there_are(plain: TileProgram, reloaded: TileProgram) -> None:
    assert reloaded.arrays == reloaded.tables.reload == most_of_a_layer(plain) < plain.arrays
    segments = {tile.layer: reloaded.tables.segment(tile.array) for tile in reloaded.tables.tiles}
    assert sorted(segments.values()) == [0, 1]
    assert {reloaded.tables.physical(tile.array) for tile in reloaded.tables.tiles} <= set(range(reloaded.arrays))


def test_a_network_that_fits_is_written_once(plain: TileProgram) -> None:
    assert compiled(plain.arrays).sha256 == plain.sha256
    assert compiled(plain.arrays).tables.reload is None


def test_outputs_are_the_same_to_the_last_bit(plain: TileProgram, reloaded: TileProgram) -> None:
    for engine in ("torch", "reference"):
        found = [xbarc.simulate(one, engine=engine)(INPUTS)[0] for one in (plain, reloaded)]
        np.testing.assert_array_equal(*found)
    assert xbarc.verify(reloaded).passed


def test_segments_meet_the_same_failed_devices_and_a_spread_of_their_own(reloaded: TileProgram) -> None:
    """As the arrays of a larger chip, one after another, whose failed devices repeat."""
    chip = xbarc.Chip.sample(reloaded.spec, reloaded.arrays, 4)
    assert chip.faults is not None
    tables = reloaded.tables.model_copy(update={"reload": None})
    unrolled = dataclasses.replace(reloaded, tables=tables)
    larger = xbarc.Chip.sample(reloaded.spec, unrolled.arrays, 4)
    repeated = dataclasses.replace(larger, faults=chip.faults.repeated(2).first(unrolled.arrays))
    assert repeated.faults != larger.faults
    found = xbarc.simulate(reloaded, chip)(INPUTS)[0]
    np.testing.assert_array_equal(found, xbarc.simulate(unrolled, repeated)(INPUTS)[0])
    assert not np.array_equal(found, xbarc.simulate(unrolled, larger)(INPUTS)[0])


def test_segments_have_the_same_converters() -> None:
    program = compiled(4, {"periphery.gain_sigma": 0.1, "array.pairing": "two_arrays"})
    assert program.tables.reload == 4
    chip = program_chip(program, xbarc.Chip.sample(program.spec, 4, 1))
    found: dict[tuple[int, int], set[float]] = {}
    segments: dict[tuple[int, int], set[int]] = {}
    for tile in program.tables.tiles:
        (channel,) = chip.tiles[tile.name].channels
        for line, gain in zip(program.tile_tensors[tile.name].bit_lines.tolist(), channel.errors.gain, strict=True):
            at = program.tables.physical(tile.array), line
            found.setdefault(at, set()).add(float(gain))
            segments.setdefault(at, set()).add(program.tables.segment(tile.array))
    assert {len(gains) for gains in found.values()} == {1}
    assert max(map(len, segments.values())) == 2
    assert len(set.union(*found.values())) == len(found)


def test_copies_and_sharing_go_with_it() -> None:
    for options in ({"copies": 2}, {"share_arrays": "all"}, {"share_arrays": "none"}, {"replicas": 2}):
        plain = compiled(None, **options)
        program = compiled(most_of_a_layer(plain), **options)
        assert program.tables.reload in (None, most_of_a_layer(plain))
        np.testing.assert_array_equal(*(xbarc.simulate(one)(INPUTS)[0] for one in (plain, program)))


# -- mapped, tuned, saved -------------------------------------------------------------------------------------------


def test_segments_are_mapped_around_the_failed_devices_that_all_of_them_meet(reloaded: TileProgram) -> None:
    chip = xbarc.Chip.sample(reloaded.spec, reloaded.arrays + 2, 4)
    mapped = xbarc.remap(reloaded, chip)
    assert mapped.tables.reload == reloaded.tables.reload
    assert mapped.arrays <= chip.arrays
    assert mapped.faults is not None
    assert chip.faults is not None
    assert mapped.tested_faults == chip.faults.first(reloaded.arrays)
    assert xbarc.verify(mapped).passed
    before, after = (cases.accuracy(one, cases.blobs(300, 6), [chip]) for one in (reloaded, mapped))
    assert after > before
    quiet = ["spread", "read_noise"]
    np.testing.assert_array_equal(*(xbarc.simulate(mapped, one, without=quiet)(INPUTS)[0] for one in (chip, None)))


def test_it_is_saved_tuned_and_compiled_like(reloaded: TileProgram, tmp_path: Path) -> None:
    reloaded.save(tmp_path / "a.xbar")
    assert xbarc.load(tmp_path / "a.xbar").sha256 == reloaded.sha256
    options = xbarc.TuneOptions(epochs=1, batch=32)
    for mode, chip in (("agnostic", None), ("aware", xbarc.Chip.sample(reloaded.spec, reloaded.arrays, 4))):
        tuned = xbarc.finetune(reloaded, cases.blobs(64), mode, chip=chip, options=options)  # type: ignore[arg-type]
        assert tuned.program.tables.reload == reloaded.tables.reload
        again = xbarc.compile(tuned.model, like=tuned.program)
        assert {name: values.tolist() for name, values in again.tensors.items()} == {
            name: values.tolist() for name, values in tuned.program.tensors.items()
        }


@pytest.mark.parametrize(
    ("reload", "told"),
    [(1, "must be whole sites of 2"), (100, "must be fewer arrays than"), (None, None)],
)
def test_segments_of_a_file_are_checked(reload: int | None, told: str | None, tmp_path: Path) -> None:
    program = compiled(4, {"array.pairing": "two_arrays"})
    tables = program.tables.model_copy(update={"reload": reload})
    dataclasses.replace(program, tables=tables).save(tmp_path / "a.xbar")
    if told is None:
        xbarc.load(tmp_path / "a.xbar")
        return
    with pytest.raises(ProgramError, match=told):
        xbarc.load(tmp_path / "a.xbar")


def test_segments_far_apart_are_refused_before_anything_is_made_for_them(reloaded: TileProgram, tmp_path: Path) -> None:
    far = 1 << 20
    tiles = tuple(
        tile.model_copy(update={"array": tile.array + far * reloaded.arrays}) if tile.layer == "second" else tile
        for tile in reloaded.tables.tiles
    )
    tables = reloaded.tables.model_copy(update={"tiles": tiles})
    dataclasses.replace(reloaded, tables=tables).save(tmp_path / "a.xbar")
    with pytest.raises(ProgramError, match="without a gap"):
        xbarc.load(tmp_path / "a.xbar")


def test_a_layer_that_lies_in_two_segments_is_refused(tmp_path: Path) -> None:
    program = compiled(None, {"array.rows": 4, "array.cols": 4, "array.pairing": "two_arrays"})
    tables = program.tables.model_copy(update={"reload": 4})
    dataclasses.replace(program, tables=tables).save(tmp_path / "a.xbar")
    with pytest.raises(ProgramError, match="must lie in one segment"):
        xbarc.load(tmp_path / "a.xbar")


# -- time and energy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipelined", [True, False])
def test_a_batch_shares_the_writing(reloaded: TileProgram, pipelined: bool) -> None:
    one, two, many = (schedule(reloaded, pipelined=pipelined, batch=batch) for batch in (1, 2, 1000))
    written = sum(time for _, time in one.writes)
    assert len(one.writes) == 2
    assert written > 0
    assert one.latency == one.interval == pytest.approx(written + sum(stage.time for stage in one.stages))
    each = two.latency - one.latency  # what one more sample takes
    assert many.latency == pytest.approx(one.latency + 999 * each)
    assert many.interval == many.latency / 1000 < one.interval
    for (start, time), stage_start in zip(one.writes, one.starts, strict=False):
        assert start + time <= stage_start + 1e-15 or stage_start <= start


def test_nothing_runs_before_its_segment_is_written(reloaded: TileProgram) -> None:
    for batch in (1, 7):
        found = schedule(reloaded, batch=batch)
        (_, first), (second_start, second) = found.writes
        starts = dict(zip((stage.name for stage in found.stages), found.starts, strict=True))
        assert starts["first"] >= first
        assert second_start >= starts["first"] + found.stages[0].time
        assert starts["second"] >= second_start + second
        for earlier, stage in enumerate(found.stages):
            for at, waits in enumerate(found.depends):
                if earlier in waits:
                    assert found.starts[at] >= found.starts[earlier] + stage.time - 1e-15


def test_energy_time_and_wear_are_those_of_the_writing(plain: TileProgram, reloaded: TileProgram) -> None:
    once, one, ten = cost(plain), cost(reloaded), cost(reloaded, 10)
    assert once.reloading is None
    assert one.reloading is not None
    assert ten.reloading is not None
    used = {part: set[int]() for part in (0, 1)}
    for number in written_devices(reloaded):
        used[number // reloaded.arrays].add(number % reloaded.arrays)
    devices = written_devices(reloaded).items()
    again = sum(count for number, count in devices if number % reloaded.arrays in used[0] & used[1])
    assert again < once.programming.devices  # an array that one segment alone uses keeps what it holds
    assert again == sum(part.devices for part in one.reloading.segments)
    assert one.programming.devices == once.programming.devices
    assert one.reloading.energy == pytest.approx(once.programming.energy * again / once.programming.devices)
    assert one.reloading.energy == one.energy["write"] == pytest.approx(10 * ten.energy["write"])
    assert [part.layers for part in one.reloading.segments] == [("first",), ("second",)]
    assert one.reloading.writes == 2
    assert one.arrays == reloaded.arrays
    assert sum(one.area.values()) < sum(once.area.values())
    for found in (one, ten):
        assert found.pipelined.energy == pytest.approx(sum(found.energy.values()))
        assert any("from one segment to the next" in told for told in found.excluded)
    with pytest.raises(DataError, match="batch"):
        cost(reloaded, 0)


# -- what does not fit ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_names_the_way_out(plain: TileProgram) -> None:
    small = {"chip.tiles": 1, "chip.cores_per_tile": 1, "chip.arrays_per_core": most_of_a_layer(plain)}
    with pytest.raises(DoesNotFit, match="--reload, which writes it in 2 segments"):
        compiled(None, small)
    spec = small_spec({**SPREAD, **small})
    program = xbarc.compile(cases.classifier(), spec, options=CompileOptions(reload=True))
    assert program.tables.reload == most_of_a_layer(plain)
    tiny = {**small, "chip.arrays_per_core": 1, "array.rows": 4, "array.cols": 4}
    with pytest.raises(DoesNotFit) as error:
        compiled(None, tiny)
    assert "--reload" not in str(error.value)


def test_more_arrays_than_there_are_cannot_be_reloaded(plain: TileProgram, reloaded: TileProgram) -> None:
    arrays = most_of_a_layer(plain)
    with pytest.raises(DoesNotFit, match=f"--array-budget {arrays} or less"):
        compiled(arrays + 1, {"chip.tiles": 1, "chip.cores_per_tile": 1, "chip.arrays_per_core": arrays})
    with pytest.raises(DoesNotFit):
        xbarc.remap(reloaded, xbarc.Chip.sample(reloaded.spec, arrays - 1, 1))


def test_reload_needs_arrays_and_no_balance() -> None:
    with pytest.raises(DataError, match="needs a number of arrays"):
        xbarc.compile(cases.classifier(), small_spec(), options=CompileOptions(reload=True))
    with pytest.raises(DataError, match="cannot be balanced"):
        CompileOptions(reload=True, copies="balance")
    with pytest.raises(DataError, match="balanced within, or segments are written to"):
        CompileOptions(array_budget=3)
