"""The passes in order: each is checked before the next, timed, and can be the last."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from compiler.mapping import Mapping, verify
from hwspec.errors import DataError, VerificationError


class Pass(Protocol):
    """A pass: options as fields, `run` gives a further mapping."""

    @property
    def name(self) -> str:
        """Name of the pass."""

    @property
    def requires(self) -> tuple[str, ...]:
        """Passes that must have run before."""

    def run(self, mapping: Mapping) -> Mapping:
        """The mapping with this pass's decisions in it."""


@dataclass(frozen=True)
class Outcome:
    """What a pipeline gives: the mapping, and the seconds that each pass took."""

    mapping: Mapping
    seconds: dict[str, float]


def run_passes(
    mapping: Mapping,
    passes: Sequence[Pass],
    *,
    stop_after: str | None = None,
    after_each: Callable[[str, Mapping], None] | None = None,
) -> Outcome:
    """Run passes in order, checking the invariants after each.

    Parameters
    ----------
    mapping
        Where to start.
    passes
        What to run.
    stop_after
        Name of the last pass to run; None runs all.
    after_each
        Called with the name of a pass and its mapping once its invariants hold.

    Raises
    ------
    VerificationError
        If an invariant fails; it names the pass and those that had run.
    DataError
        If `stop_after` is no pass.
    """
    names = [step.name for step in passes]
    if stop_after is not None and stop_after not in names:
        raise DataError("--stop-after", f"must be one of {', '.join(names)}", got=stop_after)
    seconds: dict[str, float] = {}
    for step in passes:
        missing = [name for name in step.requires if name not in mapping.passes]
        if missing:
            raise VerificationError(f"pass {step.name!r}", f"must run after {missing[0]!r}")
        start = time.perf_counter()
        mapping = step.run(mapping)
        mapping = replace(mapping, passes=(*mapping.passes, step.name))
        try:
            verify(mapping)
        except VerificationError as error:
            ran = ", ".join(mapping.passes)
            raise VerificationError(
                f"after pass {step.name!r}", f"an invariant fails: {error} (passes run: {ran})"
            ) from None
        seconds[step.name] = time.perf_counter() - start
        if after_each:
            after_each(step.name, mapping)
        if step.name == stop_after:
            break
    return Outcome(mapping, seconds)
