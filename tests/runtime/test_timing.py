"""Schedules: dependencies are heeded, no array does two things at once, and throughput is what resources allow."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_programs import compile_small, matmul, small_spec, two_matmuls

from runtime.timing import Schedule, Stage, plan, read_time, schedule

SLACK = 1e-9


@st.composite
def graphs(draw: st.DrawFn, *, shared: bool = True) -> tuple[list[Stage], list[list[int]]]:
    """Stages of random times on random arrays, each waiting for some earlier ones."""
    count = draw(st.integers(1, 8))
    stages, depends = [], []
    for number in range(count):
        time = draw(st.integers(1, 20)) * 1e-6
        arrays = draw(st.sets(st.integers(0, 5), min_size=1, max_size=3)) if shared else {number}
        stages.append(Stage(f"s{number}", time, dict.fromkeys(sorted(arrays), time), time, "array"))
        depends.append(sorted(draw(st.sets(st.integers(0, number - 1), max_size=3))) if number else [])
    return stages, depends


def check(found: Schedule) -> None:
    """Dependencies hold, and over many samples no array is used twice at once."""
    for number, before in enumerate(found.depends):
        for other in before:
            assert found.starts[number] >= found.starts[other] + found.stages[other].time - SLACK * found.serial
    busy: dict[int, list[tuple[float, float]]] = {}
    samples = range(int(found.latency / found.interval) + 3)
    for (start, stage), sample in itertools.product(zip(found.starts, found.stages, strict=True), samples):
        at = start + sample * found.interval
        for array in stage.resources:
            busy.setdefault(array, []).append((at, at + stage.time))
    for parts in busy.values():
        for (_, end), (begin, _) in itertools.pairwise(sorted(parts)):
            assert end <= begin + SLACK * found.serial


@given(graphs(), st.booleans())
def test_a_schedule_is_one(graph: tuple[list[Stage], list[list[int]]], pipelined: bool) -> None:
    found = plan(*graph, pipelined=pipelined)
    check(found)
    assert found.interval <= found.serial * (1 + SLACK)
    assert found.latency >= max(stage.time for stage in found.stages)
    assert all(share <= 1 + SLACK for share in found.occupancy.values())


@given(graphs(shared=False))
def test_arrays_of_their_own_make_the_slowest_stage_the_interval(graph: tuple[list[Stage], list[list[int]]]) -> None:
    found = plan(*graph, pipelined=True)
    assert found.interval == pytest.approx(max(stage.time for stage in found.stages))
    assert found.fill == pytest.approx(found.latency - found.interval)
    assert next(stage.time for stage in found.stages if stage.name == found.bottleneck) == pytest.approx(found.interval)


@given(graphs())
def test_one_after_another(graph: tuple[list[Stage], list[list[int]]]) -> None:
    found = plan(*graph, pipelined=False)
    assert found.interval == found.latency == pytest.approx(sum(stage.time for stage in found.stages))
    assert found.fill == 0


def test_two_layers_of_a_program() -> None:
    program = compile_small(two_matmuls(), small_spec())
    found = schedule(program)
    assert [stage.name for stage in found.stages] == ["first", "second"]
    assert found.depends == ((), (0,))
    assert found.starts[1] == pytest.approx(found.stages[0].time)
    check(found)


def test_bit_serial_inputs_take_a_read_for_each_digit() -> None:
    spec = small_spec().with_fields({"periphery.dac_bits": 2, "periphery.input_bits": 8})
    model = matmul(8, 8, seed=1)
    (stage,) = schedule(compile_small(model, spec)).stages
    assert stage.vector_time == pytest.approx(spec.periphery.digits(signed=True) * read_time(spec))


def test_phases_follow_one_another() -> None:
    one, two = (
        schedule(compile_small(matmul(8, 8, seed=1), small_spec().with_fields({"periphery.signed": signed})))
        for signed in ("bipolar", "two_phase")
    )
    assert two.stages[0].vector_time == pytest.approx(2 * one.stages[0].vector_time)
