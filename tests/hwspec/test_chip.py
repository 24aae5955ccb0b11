"""Chips: they have arrays and failed devices, take the programs that fit them, and are saved and read back."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import compile_small, matmul

from hwspec.chip import Chip
from hwspec.errors import ChipError, DoesNotFit, FitReport
from hwspec.fault_map import FaultMap
from hwspec.spec import HardwareSpec
from runtime.programming import program_chip

SPEC = HardwareSpec.preset("rram-128")


def test_an_ideal_chip_has_the_arrays_of_its_spec() -> None:
    chip = Chip.ideal(SPEC, 6)
    assert (chip.rows, chip.cols, chip.arrays) == (128, 128, 6)
    chip.check_fits(SPEC, 6)
    chip.check_fits(SPEC, 0)


@pytest.mark.parametrize("field", ["rows", "cols", "arrays"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None, float("nan")])
def test_a_chip_without_arrays_is_refused(field: str, value: object) -> None:
    sizes: dict[str, object] = {"rows": 8, "cols": 8, "arrays": 2, field: value}
    with pytest.raises(ChipError, match=rf"chip\.{field} must be a positive integer, not {value!r}"):
        Chip(**sizes)  # type: ignore[arg-type]


def test_too_few_arrays_are_refused_with_a_report() -> None:
    with pytest.raises(DoesNotFit, match="at least 9 arrays for this program, not 6; 3 too few: try ") as found:
        Chip.ideal(SPEC, 6).check_fits(SPEC, 9)
    report = found.value.report
    assert isinstance(found.value, ChipError)
    assert found.value.exit_code == 4
    assert (report.demand, report.bound, report.gap, report.unit) == (9, 6, 3, "arrays")
    assert report == FitReport(9, 6, 3)
    assert "\n" not in str(found.value)
    for lever in ("a chip with more arrays", "larger arrays", "--share all", "slices", "replicas", "--digital"):
        assert any(lever in one for one in report.levers), lever
        assert lever in str(found.value)


@pytest.mark.parametrize("path", ["array.rows", "array.cols"])
def test_other_arrays_are_refused(path: str) -> None:
    other = SPEC.with_fields({path: 64})
    with pytest.raises(ChipError, match=r"must have arrays of .* for rram-128"):
        Chip.ideal(SPEC, 6).check_fits(other, 1)


def test_a_program_is_written_only_onto_a_chip_that_fits() -> None:
    program = compile_small(matmul(20, 20))
    program_chip(program, Chip.ideal(program.spec, program.arrays))
    with pytest.raises(ChipError, match="must have at least"):
        program_chip(program, Chip.ideal(program.spec, program.arrays - 1))
    with pytest.raises(ChipError, match="must have arrays of 8x8"):
        program_chip(program, Chip.ideal(SPEC, 100))


# -- failed devices ---------------------------------------------------------------------------------------------------

FAULTY = HardwareSpec.preset("kim2020-2t2r").with_fields({"array.rows": 8, "array.cols": 6})
SEEDS = (None, 0, 7, 1 << 63, (1 << 128) - 1)


def test_a_sampled_chip_has_the_failed_devices_of_its_spec_and_seed() -> None:
    chip = Chip.sample(FAULTY, 40, 3)
    assert chip.faults is not None
    assert chip.faults.shape == chip.shape == (40, 8, 6)
    assert chip == Chip.sample(FAULTY, 40, 3)
    assert hash(chip) == hash(Chip.sample(FAULTY, 40, 3))
    assert chip.fault_map is chip.faults
    few = Chip.sample(FAULTY, 10, 3).fault_map
    np.testing.assert_array_equal(few.states, chip.faults.states[:10])


def test_an_ideal_chip_and_one_of_a_spec_without_failures_have_none() -> None:
    for chip in (Chip.ideal(FAULTY, 40), Chip.sample(SPEC, 2, 3)):
        assert chip.faults is None
        assert chip.fault_map.failed == 0
        assert chip.fault_map.shape == chip.shape
    good = FaultMap(np.zeros((2, 8, 6), np.uint8), np.zeros(0))
    assert Chip(8, 6, 2, faults=good) == Chip(8, 6, 2), "a map without failures is none"


def test_chips_that_differ_in_anything_have_other_hashes() -> None:
    chip = Chip.sample(FAULTY, 40, 3)
    others = [
        Chip.sample(FAULTY, 40, 4),
        Chip.sample(FAULTY, 39, 3),
        replace(chip, seed=4),
        replace(chip, seed=None),
        replace(chip, faults=None),
        Chip(6, 8, 40, 3),
    ]
    assert len({chip.sha256, *(other.sha256 for other in others)}) == 7
    assert all(chip != other for other in others)
    assert len(set(others)) == 6


def test_faults_of_another_chip_are_refused() -> None:
    faults = Chip.sample(FAULTY, 40, 3).faults
    with pytest.raises(ChipError, match=r"chip\.faults must be of 40 arrays of 6x8, not '40 arrays of 8x6'"):
        Chip(6, 8, 40, faults=faults)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SEEDS), st.booleans(), st.integers(1, 9))
def test_a_saved_chip_is_read_back_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, seed: int | None, faulty: bool, arrays: int
) -> None:
    path = tmp_path_factory.mktemp("chips") / "chip.npz"
    faults = Chip.sample(FAULTY, arrays, 5).faults if faulty else None
    chip = Chip(8, 6, arrays, seed, faults)
    chip.save(path)
    assert Chip.load(path) == chip
    assert Chip.load(str(path), FAULTY) == chip
    first = path.read_bytes()
    chip.save(path)
    assert path.read_bytes() == first, "equal chips give equal files"
    assert [one.name for one in path.parent.iterdir()] == ["chip.npz"]
    with np.load(path, allow_pickle=False) as members:
        assert set(members) == {"states", "conductance"} | ({"seed"} if seed is not None else set())


def test_a_chip_survives_pickling_to_another_process() -> None:
    chip = Chip.sample(FAULTY, 40, 3)
    assert pickle.loads(pickle.dumps(chip)) == chip


def test_a_chip_of_another_technology_is_refused(tmp_path: Path) -> None:
    Chip.sample(FAULTY, 40, 3).save(tmp_path / "chip.npz")
    with pytest.raises(ChipError, match="must have arrays of 128x128 for rram-128, not '8x6'"):
        Chip.load(tmp_path / "chip.npz", SPEC)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none" / "chip.npz"):
        with pytest.raises(ChipError, match="cannot be written"):
            Chip.ideal(FAULTY, 2).save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_a_chip_is_seen_as_its_test_sees_it() -> None:
    chip = Chip.sample(FAULTY, 40, 3)
    assert chip.as_tested(FAULTY) is chip
    erring = FAULTY.with_fields({"failures.map_errors.missed": 0.5, "failures.map_errors.false": 0.1})
    seen = chip.as_tested(erring)
    assert seen == chip.as_tested(erring)
    assert (seen.shape, seen.seed) == (chip.shape, chip.seed)
    assert seen.fault_map != chip.fault_map
    blind = FAULTY.with_fields({"failures.map_errors.missed": 1.0})
    assert chip.as_tested(blind).faults is None
    ideal = Chip.ideal(erring, 4)
    assert ideal.as_tested(erring) is ideal
