"""Reading of the data that verbs run a program on."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from xbarc.cli.arguments import parse_normalize

if TYPE_CHECKING:
    from runtime.program import TileProgram
    from xbarc.data.load import Dataset


def read_samples(
    program: "TileProgram",
    data: str,
    advance: Callable[[str, int, int | None], None],
    *,
    split: str | None,
    normalize: str | None,
    limit: int | None,
    seed: int,
    learning: bool = False,
) -> "Dataset":
    """The samples that ``--data`` and the options beside it name, for the inputs of a program; see `load_data`."""
    from xbarc.data.load import load_data

    return load_data(
        data,
        program.tables.inputs,
        split=split,
        normalize=parse_normalize(normalize),
        limit=limit,
        seed=seed,
        learning=learning,
        progress=lambda done, total: advance("reading", done, total),
    )
