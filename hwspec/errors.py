"""The errors of xbarc: one root, one grammar (subject, requirement, offending value, hint)."""

import reprlib
from dataclasses import dataclass
from typing import Any, ClassVar

_NOTHING = object()
_LONGEST = 120
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _LONGEST
_REPR.maxlevel = 3


def shown(value: object) -> str:
    """A value as errors print it: short, however large or deeply nested it is."""
    try:
        text = _REPR.repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a huge number"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _restored(kind: "type[XbarcError]", text: str, state: dict[str, Any]) -> "XbarcError":
    error = kind.__new__(kind, text)
    error.__dict__.update(state)
    return error


class XbarcError(Exception):
    """Root of every error that xbarc raises on purpose.

    Parameters
    ----------
    subject
        What the error is about: a field (``array.rows``), a node, a file.
    requirement
        What it must be or why it was refused, as the rest of a sentence.
    got
        The offending value, printed as ``, not <value>``.
    hint
        What to do about it.
    """

    exit_code: ClassVar[int] = 2
    """Exit code of the command line: 1 verification failed, 2 bad input, 3 not supported, 4 does not fit."""

    def __init__(self, subject: str, requirement: str, *, got: object = _NOTHING, hint: str = "") -> None:
        self.subject = subject
        self.requirement = requirement
        self.hint = hint
        text = f"{subject} {requirement}"
        if got is not _NOTHING:
            text += f", not {shown(got)}"
        if hint:
            text += f"; {hint}"
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        """As another process gets it: what it was made from is not kept."""
        return _restored, (type(self), str(self), dict(self.__dict__))


class SpecError(XbarcError, ValueError):
    """A hardware spec is malformed or contradicts itself."""


class ModelError(XbarcError, ValueError):
    """The model is a valid ONNX model that xbarc does not support; names node, operator and rule."""

    exit_code = 3


class ModelFileError(ModelError):
    """The model file cannot be read: missing, corrupt, hostile, or larger than it may be."""

    exit_code = 2


class ProgramError(XbarcError, ValueError):
    """A tile program is malformed, altered or truncated; names the member or table entry."""


class ChipError(XbarcError, ValueError):
    """A chip does not match the program or the spec that it is used with."""


@dataclass(frozen=True)
class FitReport:
    """How far a program is from fitting a chip.

    Parameters
    ----------
    demand
        What it needs.
    bound
        What there is.
    gap
        By how much it does not fit: ``demand - bound``.
    unit
        Of all three.
    levers
        What would make it fit, each as a phrase.
    """

    demand: int
    bound: int
    gap: int
    unit: str = "arrays"
    levers: tuple[str, ...] = (
        "a chip with more arrays",
        "larger arrays",
        "--share all",
        "fewer slices or replicas",
        "layers kept digital with --digital",
    )


class DoesNotFit(ChipError):  # noqa: N818 - the field says that a design does not fit
    """A program needs more than its chip has.

    Parameters
    ----------
    report
        Demand, bound, gap and levers; the message says the same in one line.
    """

    exit_code = 4

    def __init__(self, report: FitReport) -> None:
        self.report = report
        super().__init__(
            "chip",
            f"must have at least {report.demand} {report.unit} for this program",
            got=report.bound,
            hint=f"{report.gap} too few: try {', '.join(report.levers)}",
        )


class DataError(XbarcError, ValueError):
    """Input data is missing, malformed, or of another shape or type than the model wants."""


class NotFiniteError(DataError):
    """What a layer is given, or its weights, are NaN or infinite."""


class VerificationError(XbarcError):
    """An invariant of a mapping or a program does not hold."""

    exit_code = 1
