"""The results of a sweep: one SQLite file, a row a trial, written in transactions."""

import contextlib
import csv
import io
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import JsonValue

from hwspec.atomic import write_atomically
from hwspec.errors import DataError
from xbarc.sweeping.plan import Point
from xbarc.sweeping.trials import Trial

_FORMAT = "xbarc sweep 1"
PATIENCE = 10.0
"""Seconds that another writer is waited for."""
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE points (
    key TEXT PRIMARY KEY, program TEXT NOT NULL, program_sha256 TEXT NOT NULL, spec_sha256 TEXT NOT NULL,
    seconds_after REAL NOT NULL, remap INTEGER NOT NULL, effects TEXT NOT NULL, vals TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE trials (
    point TEXT NOT NULL REFERENCES points (key), chip_seed INTEGER NOT NULL, state TEXT NOT NULL, value REAL,
    failed_devices REAL, failed_pairs REAL, seconds REAL, reason TEXT, versions TEXT NOT NULL,
    PRIMARY KEY (point, chip_seed)
) WITHOUT ROWID;
CREATE VIEW results AS SELECT
    program, point, spec_sha256, program_sha256, vals, seconds_after, remap, effects, chip_seed, state, value,
    failed_devices, failed_pairs, seconds, reason, versions
    FROM trials JOIN points ON trials.point = points.key;
"""
FIXED = (
    *("program", "chip_seed", "seconds_after", "remap", "state", "value", "failed_devices", "failed_pairs", "seconds"),
    *("reason", "point", "effects", "spec_sha256", "program_sha256", "versions"),
)
"""Columns of every table of trials, after the fields that sweeps named; `point` is the hash of all but the chip."""


class Store:
    """The file of a sweep.

    Parameters
    ----------
    path
        The file; made where it is missing.
    identity
        Hashes and names of all that every trial has in common. A file of other ones is refused.
    facts
        What else is kept of the sweep, to be shown with its results.
    versions
        Of xbarc and of what decides its numbers; each row notes those that it was made with.
    resume
        Whether the file may be there already.

    Raises
    ------
    DataError
        If the file cannot be opened, is no results file, is another sweep's, or is there and must not be.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, str], facts: Mapping[str, str], versions: str, *, resume: bool
    ) -> None:
        self._path, self._versions = path, versions
        if path.exists() and not resume:
            hint = "--resume runs what is missing, and adds what is new"
            raise DataError(f"results {path}", "must not be there yet", hint=hint)
        self._open = _connect(path)
        self._prepare(identity, facts)

    def _prepare(self, identity: Mapping[str, str], facts: Mapping[str, str]) -> None:
        wanted = {"format": _FORMAT, **identity}
        try:
            with self._open:
                self._open.execute("BEGIN IMMEDIATE")
                found = _meta(self._open)
                if not found:
                    for statement in _SCHEMA.strip().split(";\n"):
                        self._open.execute(statement)
                    self._open.executemany("INSERT INTO meta VALUES (?, ?)", sorted(wanted.items()))
                    self._open.executemany("INSERT INTO facts VALUES (?, ?)", sorted(facts.items()))
                    return
        except sqlite3.OperationalError as error:
            raise _unusable(self._path, error) from None
        except sqlite3.DatabaseError as error:
            raise _no_results(self._path, str(error)) from None
        differ = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
        if differ:
            raise DataError(
                f"results {self._path}",
                f"must be of this model, data and version to go on from, and differ in {', '.join(differ)}",
                hint="give another -o to start anew",
            )

    def __enter__(self) -> Self:
        """Use the file until the end of a block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file."""
        self._open.close()

    def add_points(self, points: Iterable[Point]) -> None:
        """Note the points; one that is there keeps the names that it had, and gets those that vary now."""
        held = dict(self._open.execute("SELECT key, vals FROM points").fetchall())
        rows = []
        for one in points:
            values = json.dumps({**json.loads(held.get(one.key, "{}")), **one.values}, sort_keys=True)
            rows.append(
                (
                    *(one.key, one.label, one.program, one.spec_sha256, one.seconds, one.remap),
                    *(",".join(one.effects), values),
                )
            )
        self._write(
            "INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET vals = excluded.vals", rows
        )

    def add(self, points: Sequence[Point], trials: Iterable[Trial]) -> None:
        """Keep trials that are done, all or none; one that failed before is replaced."""
        self._write(
            "INSERT INTO trials VALUES (?, ?, 'done', ?, ?, ?, ?, NULL, ?) ON CONFLICT DO UPDATE SET "
            "state = excluded.state, value = excluded.value, failed_devices = excluded.failed_devices, "
            "failed_pairs = excluded.failed_pairs, seconds = excluded.seconds, reason = NULL, "
            "versions = excluded.versions WHERE trials.state <> 'done'",
            [
                (
                    points[trial.point].key,
                    trial.seed,
                    trial.value,
                    trial.failed_devices,
                    trial.failed_pairs,
                    trial.seconds,
                    self._versions,
                )
                for trial in trials
            ],
        )

    def fail(self, point: Point, seeds: Iterable[int], reason: str) -> None:
        """Note trials that could not be run; they are tried again when the sweep is resumed."""
        rows = [(point.key, seed, reason, self._versions) for seed in seeds]
        self._write("INSERT OR IGNORE INTO trials VALUES (?, ?, 'failed', NULL, NULL, NULL, NULL, ?, ?)", rows)

    def done(self, point: Point) -> dict[int, float]:
        """Values of the trials of a point that are done, by the seed of the chip."""
        rows = self._open.execute(
            "SELECT chip_seed, value FROM trials WHERE point = ? AND state = 'done' ORDER BY chip_seed", (point.key,)
        )
        return dict(rows.fetchall())

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        try:
            with self._open:
                self._open.execute("BEGIN IMMEDIATE")
                self._open.executemany(statement, rows)
        except sqlite3.OperationalError as error:
            raise _unusable(self._path, error) from None


@contextlib.contextmanager
def opened_results(path: Path) -> Iterator[sqlite3.Connection]:
    """An open file of results; raises `DataError` where it is none."""
    if not path.is_file():
        raise DataError(f"results {path}", "must be a file that `xbarc sweep` wrote")
    opened = _connect(path)
    try:
        if _meta(opened).get("format") != _FORMAT:
            raise _no_results(path, "it has another format")
        yield opened
    except sqlite3.OperationalError as error:
        raise _unusable(path, error) from None
    except sqlite3.DatabaseError as error:
        raise _no_results(path, str(error)) from None
    finally:
        opened.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every trial in a file of results; raises `DataError` where it is none."""
    with opened_results(path) as opened:
        return list(rows_of(opened))


def read_facts(path: Path) -> dict[str, str]:
    """What a file of results says of its sweep; raises `DataError` where it is none."""
    with opened_results(path) as opened:
        return {**_meta(opened), **dict(opened.execute("SELECT name, value FROM facts").fetchall())}


def rows_of(opened: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """The trials of an open file, by point and seed."""
    select = f"SELECT vals, {', '.join(FIXED)} FROM results ORDER BY program, vals, point, chip_seed"
    for values, *rest in opened.execute(select):
        varied: dict[str, JsonValue] = json.loads(values)
        yield {**varied, **dict(zip(FIXED, rest, strict=True))}


def save_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write one row a trial."""
    names = _names(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value is None else value for name, value in row.items()})
    content = text.getvalue().encode()

    def put(stream: Any) -> None:
        stream.write(content)

    write_atomically(path, put)


def save_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write one row a trial; raises `DataError` where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            "pyarrow", "must be installed for Parquet", hint="pip install 'xbarc[sweep]', or --csv"
        ) from None
    columns = {name: [_plain(row.get(name)) for row in rows] for name in _names(rows)}
    try:
        table = pyarrow.table(columns)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # values of several types in one column
        text = {name: [None if one is None else str(one) for one in found] for name, found in columns.items()}
        mixed = {name for name, found in columns.items() if len({type(one) for one in found if one is not None}) > 1}
        table = pyarrow.table({name: text[name] if name in mixed else found for name, found in columns.items()})
    write_atomically(path, lambda stream: pyarrow.parquet.write_table(table, stream))


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row)
    return [*(name for name in names if name not in FIXED), *FIXED]


def _connect(path: Path) -> sqlite3.Connection:
    try:
        opened = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        opened.execute("PRAGMA synchronous = FULL")
    except sqlite3.OperationalError as error:
        raise _unusable(path, error) from None
    except sqlite3.DatabaseError as error:
        raise _no_results(path, str(error)) from None
    return opened


def _meta(opened: sqlite3.Connection) -> dict[str, str]:
    tables = opened.execute("SELECT name FROM sqlite_master WHERE name = 'meta'").fetchall()
    if not tables and opened.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return {"format": "another program's"}
    return dict(opened.execute("SELECT name, value FROM meta").fetchall()) if tables else {}


def _unusable(path: Path, error: sqlite3.Error) -> DataError:
    hint = "another sweep may be writing to it" if "locked" in str(error) else ""
    return DataError(f"results {path}", f"cannot be used ({error})", hint=hint)


def _no_results(path: Path, reason: str) -> DataError:
    return DataError(f"results {path}", f"must be a file that `xbarc sweep` wrote ({reason})")
