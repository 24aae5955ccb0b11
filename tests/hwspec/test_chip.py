"""Chips: they have arrays, and take the programs that fit them."""

import pytest
from small_programs import compile_small, matmul

from hwspec.chip import Chip
from hwspec.errors import ChipError
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


def test_too_few_arrays_are_refused() -> None:
    with pytest.raises(ChipError, match="at least 7 arrays for this program, not 6"):
        Chip.ideal(SPEC, 6).check_fits(SPEC, 7)


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
