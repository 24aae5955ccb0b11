"""What verbs print: JSON for machines, tables and progress bars for people."""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any


def emit_json(value: dict[str, Any]) -> None:
    """Print one JSON object on standard output; numbers that JSON does not have (NaN, infinity) become null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str) -> None:
    """Print a line for people."""
    print(text)


def note(text: str) -> None:
    """Print a line beside the result: on standard error, so that piped output stays clean."""
    print(text, file=sys.stderr)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, dim: Collection[int] = ()) -> None:
    """Print a table; columns whose cells are all numbers are aligned to the right, rows of these numbers are dim."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # What goes into a file or a pipe must not be cut to the width of a terminal that is not there.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 240)
    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[number]) for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for number, row in enumerate(rows):
        drawn.add_row(*(Text(cell) for cell in row), style="dim" if number in dim else None)
    console.print(drawn)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").removesuffix("%").replace(".", "", 1).isdigit()


@contextlib.contextmanager
def progress_bar(what: str, *, quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar on standard error when that is a terminal; gives a function ``(what, done, total)``."""
    if quiet or not sys.stderr.isatty():
        yield _no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def advance(label: str, done: int, total: int | None) -> None:
            progress.update(task, description=label, completed=done, total=total)

        yield advance


def _no_progress(what: str, done: int, total: int | None) -> None:
    del what, done, total
