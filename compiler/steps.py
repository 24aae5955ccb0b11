"""The steps of mapping around failed devices, each of which can be left out."""

import difflib
from collections.abc import Iterable

from hwspec.errors import DataError

STEPS: dict[str, str] = {
    "pair": "the good device of a pair makes up for the failed one",
    "arrays": "tiles choose among physical arrays",
    "sign": "columns are stored with the opposite sign where that costs less",
    "columns": "columns choose among the bit lines of their tile",
    "spares": "lines that a site leaves over serve as spares",
    "rows": "rows choose among the word lines of their tile",
    "bias": "the digital bias takes up the mean of what is left",
    "compensation": "good devices of a column make up for its failed ones",
    "residue": "digital memory holds the worst errors, within the spec's budget",
}
"""Name of each step, and what it does, in the order in which they are reported."""

ALL = frozenset(STEPS)


def chosen_steps(names: Iterable[str] | None = None, without: Iterable[str] = ()) -> frozenset[str]:
    """The steps to take.

    Parameters
    ----------
    names
        Steps; None takes all.
    without
        Steps to leave out.

    Raises
    ------
    DataError
        If a name is no step.
    """
    chosen, left_out = set(STEPS if names is None else names), set(without)
    for name in sorted(chosen | left_out):
        if name not in STEPS:
            close = difflib.get_close_matches(name, STEPS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(STEPS)}"
            raise DataError(f"step {name!r}", "does not exist", hint=hint)
    return frozenset(chosen - left_out)
