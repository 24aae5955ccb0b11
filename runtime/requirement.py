"""How the checks of a program refuse it."""

from hwspec.errors import ProgramError


def require(condition: bool, subject: str, requirement: str, got: object) -> None:
    """Raise `ProgramError` with this subject, requirement and offending value unless the condition holds."""
    if not condition:
        raise ProgramError(subject, requirement, got=got)
