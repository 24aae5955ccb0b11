"""Errors come whole from another process."""

import pickle

import pytest

from hwspec.errors import (
    ChipError,
    DataError,
    DoesNotFit,
    FitReport,
    ModelError,
    ModelFileError,
    ProgramError,
    SpecError,
    VerificationError,
    XbarcError,
)

KINDS = (ChipError, DataError, ModelError, ModelFileError, ProgramError, SpecError, VerificationError, XbarcError)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_as_it_was(kind: type[XbarcError]) -> None:
    error = kind("array.rows", "must be positive", got=0, hint="did you mean 128?")
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind
    assert str(found) == str(error) == "array.rows must be positive, not 0; did you mean 128?"
    assert (found.subject, found.requirement, found.hint) == (error.subject, error.requirement, error.hint)


def test_a_misfit_comes_with_its_report() -> None:
    error = DoesNotFit(FitReport(5, 3, 2))
    found = pickle.loads(pickle.dumps(error))
    assert isinstance(found, DoesNotFit)
    assert (found.report, str(found), found.exit_code) == (error.report, str(error), 4)
