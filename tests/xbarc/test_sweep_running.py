"""Running and keeping trials: what dies is tried again, what is done is never lost, however it comes."""

import collections
import csv
import itertools
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwspec.errors import DataError
from xbarc.sweeping.plan import Point
from xbarc.sweeping.running import MOST_TRIES, Chips, Runner
from xbarc.sweeping.statistics import report_of, statistics_of, width95
from xbarc.sweeping.store import FIXED, Store, read_rows, save_csv, save_parquet
from xbarc.sweeping.trials import Trial, Unit

IDENTITY = {"model": "m", "data": "d", "metric": "accuracy"}
FACTS = {"original": "0.9", "samples": "10", "program": "p"}
VERSIONS = "xbarc 1"


class LostError(Exception):
    """A worker died."""


def point(number: int, *, random: bool = True) -> Point:
    return Point("p", {"a": number}, {}, 0.0, False, (), f"spec {number}", "name", {"a": number, "b": number}, random)


def value(number: int, seed: int) -> float:
    """What a trial finds."""
    return float(np.random.default_rng([number, seed]).random())


class FakePool:
    """Workers that run in this process, in any order; `script` may raise in place of a worker."""

    def __init__(self, script: Callable[[Unit], None] = lambda _unit: None, workers: int = 2) -> None:
        self.workers, self.ran, self.renewed = workers, list[Unit](), 0
        self._script = script

    def submit(self, unit: Unit) -> "Future[list[Trial]]":
        self.ran.append(unit)
        future: Future[list[Trial]] = Future()
        try:
            self._script(unit)
        except Exception as error:
            future.set_exception(error)
        else:
            trials = [Trial(unit.point, seed, value(unit.point, seed), 0.1, 0.2, 0.5) for seed in unit.seeds]
            future.set_result(trials)
        return future

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, LostError)

    def renew(self) -> bool:
        self.renewed += 1
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass


def run(
    path: Path, points: Sequence[Point], chips: Chips, pool: FakePool, *, resume: bool = False
) -> tuple[Runner, list[dict[str, Any]]]:
    with Store(path, IDENTITY, FACTS, VERSIONS, resume=resume) as store:
        store.add_points(points)
        runner = Runner(points, chips, store)
        runner.run(pool)
        assert runner.missing == 0
    return runner, read_rows(path)


def good(rows: list[dict[str, Any]]) -> dict[tuple[int, int], float]:
    return {(row["a"], row["chip_seed"]): row["value"] for row in rows if row["state"] == "done"}


def all_of(points: int, seeds: range) -> dict[tuple[int, int], float]:
    return {(number, seed): value(number, seed) for number in range(points) for seed in seeds}


# -- running --------------------------------------------------------------------------------------------------------


def test_every_trial_is_run_once(tmp_path: Path) -> None:
    pool = FakePool()
    _, rows = run(tmp_path / "a.db", [point(0), point(1)], Chips(5, 7), pool)
    assert good(rows) == all_of(2, range(5, 12))
    ran = [(unit.point, seed) for unit in pool.ran for seed in unit.seeds]
    assert sorted(ran) == sorted(good(rows))
    assert any(len(unit.seeds) > 1 for unit in pool.ran)  # at half a second each they come together
    assert set(rows[0]) == {"a", "b", *FIXED}


@settings(deadline=None)  # every transaction waits for the disk
@given(st.sets(st.integers(0, 60)), st.integers(1, 4))
def test_workers_that_die_at_any_moment_lose_nothing(deaths: set[int], workers: int) -> None:
    calls, alone = itertools.count(), collections.Counter[Unit]()

    def script(unit: Unit) -> None:
        if next(calls) in deaths and alone[unit] < MOST_TRIES - 1:  # beyond that it is the trial's own fault
            alone[unit] += 1
            raise LostError

    with tempfile.TemporaryDirectory() as folder:
        pool = FakePool(script, workers)
        _, rows = run(Path(folder) / "a.db", [point(number) for number in range(3)], Chips(0, 9), pool)
    assert good(rows) == all_of(3, range(9))


def test_what_kills_its_worker_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    def script(unit: Unit) -> None:
        if (unit.point, 3) in {(unit.point, seed) for seed in unit.seeds} and unit.point == 1:
            raise LostError

    pool = FakePool(script)
    _, rows = run(tmp_path / "a.db", [point(0), point(1)], Chips(0, 6), pool)
    (failed,) = (row for row in rows if row["state"] == "failed")
    assert (failed["a"], failed["chip_seed"]) == (1, 3)
    assert failed["reason"] == f"its worker died {MOST_TRIES} times"
    assert len(good(rows)) == 11
    assert pool.renewed in (MOST_TRIES, MOST_TRIES + 1)  # the first time others may have been under way
    alone = [unit for unit in pool.ran if unit.point == 1 and 3 in unit.seeds]
    assert len(alone[-1].seeds) == 1


@pytest.mark.parametrize(
    ("error", "told", "tries"),
    [
        (MemoryError(), "out of memory", MOST_TRIES),
        (RuntimeError("odd"), "RuntimeError: odd", MOST_TRIES),
        (DataError("x", "must be y"), "x must be y", 1),  # the same would come again
    ],
)
def test_a_trial_that_fails_has_its_reason(error: Exception, told: str, tries: int, tmp_path: Path) -> None:
    def script(unit: Unit) -> None:
        if 2 in unit.seeds:
            raise error

    pool = FakePool(script)
    _, rows = run(tmp_path / "a.db", [point(0)], Chips(0, 4), pool)
    assert [row["reason"] for row in rows if row["state"] == "failed"] == [told]
    assert len(good(rows)) == 3
    assert sum(unit.seeds == (2,) for unit in pool.ran) in (tries, tries + 1)
    # Resumed, it has another chance.
    _, rows = run(tmp_path / "a.db", [point(0)], Chips(0, 4), FakePool(), resume=True)
    assert good(rows) == all_of(1, range(4))


def test_a_lost_scheduler_ends_the_sweep_and_keeps_what_is_done(tmp_path: Path) -> None:
    def script(unit: Unit) -> None:
        if unit.point == 1:
            raise CancelledError

    with pytest.raises(DataError, match="scheduler was lost"):
        run(tmp_path / "a.db", [point(0), point(1)], Chips(0, 4), FakePool(script, workers=1))
    assert good(read_rows(tmp_path / "a.db")) == all_of(1, range(4))


def test_resumed_and_widened_sweeps_run_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    run(path, [point(0)], Chips(0, 3), FakePool())
    pool = FakePool()
    _, rows = run(path, [point(0), point(1)], Chips(0, 5), pool, resume=True)
    ran = {(unit.point, seed) for unit in pool.ran for seed in unit.seeds}
    assert ran == {(0, 3), (0, 4), *((1, seed) for seed in range(5))}
    assert good(rows) == all_of(2, range(5))
    again = FakePool()
    run(path, [point(0), point(1)], Chips(0, 5), again, resume=True)
    assert not again.ran


def test_many_workers_get_larger_units(tmp_path: Path) -> None:
    """Each trial takes half a second: two workers get four at once, a thousand get forty."""
    few, many = FakePool(workers=2), FakePool(workers=1000)
    run(tmp_path / "few.db", [point(0)], Chips(0, 400), few)
    run(tmp_path / "many.db", [point(0)], Chips(0, 100_000), many)
    assert max(len(unit.seeds) for unit in few.ran) == 4
    assert max(len(unit.seeds) for unit in many.ran) == 40


def test_a_point_without_chance_has_one_chip(tmp_path: Path) -> None:
    _, rows = run(tmp_path / "a.db", [point(0, random=False)], Chips(4, 9), FakePool())
    assert list(good(rows)) == [(0, 4)]


@pytest.mark.parametrize("workers", [1, 3])
def test_chips_are_added_until_the_interval_is_narrow(workers: int, tmp_path: Path) -> None:
    width = 0.15
    chips = Chips(0, 10, width, 300)
    runner, rows = run(tmp_path / "a.db", [point(0), point(1)], chips, FakePool(workers=workers))
    for number in range(2):
        count = len(runner.seeds(number))
        found = [value(number, seed) for seed in range(count)]
        assert 10 < count < 300
        assert width95(found) <= width < width95(found[:-10])
    assert len(rows) == sum(len(runner.seeds(number)) for number in range(2))


def test_no_more_chips_than_allowed_are_added(tmp_path: Path) -> None:
    runner, _ = run(tmp_path / "a.db", [point(0)], Chips(0, 10, 1e-6, 25), FakePool())
    assert len(runner.seeds(0)) == 25


# -- keeping --------------------------------------------------------------------------------------------------------


def test_another_sweeps_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    run(path, [point(0)], Chips(0, 2), FakePool())
    with pytest.raises(DataError, match="must not be there yet"):
        Store(path, IDENTITY, FACTS, VERSIONS, resume=False)
    with pytest.raises(DataError, match="differ in data"):
        Store(path, {**IDENTITY, "data": "other"}, FACTS, VERSIONS, resume=True)
    assert good(read_rows(path)) == all_of(1, range(2))


@pytest.mark.parametrize("content", [b"no database" * 200, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_file_that_is_no_database_is_refused_and_kept(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(content)
    with pytest.raises(DataError, match="results"):
        Store(path, IDENTITY, FACTS, VERSIONS, resume=True)
    with pytest.raises(DataError, match="results"):
        read_rows(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE meta2 (a)")
    other.close()
    with pytest.raises(DataError, match="differ in data, format"):
        Store(path, IDENTITY, FACTS, VERSIONS, resume=True)
    with pytest.raises(DataError, match="another format"):
        read_rows(path)
    with pytest.raises(DataError, match="must be a file"):
        read_rows(tmp_path / "nosuch.db")


def test_two_writers_get_in_each_others_way_with_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    run(path, [point(0)], Chips(0, 2), FakePool())
    monkeypatch.setattr("xbarc.sweeping.store.PATIENCE", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DataError, match="another sweep may be writing"):
        Store(path, IDENTITY, FACTS, VERSIONS, resume=True)
    other.close()


def test_a_transaction_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Store(path, IDENTITY, FACTS, VERSIONS, resume=False) as store:
        store.add_points([point(0)])
        broken: Any = [Trial(0, 1, 0.5, 0, 0, 0), Trial(0, 2, 0.5, 0, 0, object())]  # type: ignore[arg-type]
        with pytest.raises(sqlite3.Error):
            store.add([point(0)], broken)
        assert not store.done(point(0))


def test_tables_hold_every_trial(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = run(tmp_path / "a.db", [point(0), point(1)], Chips(0, 3), FakePool())[1]
    rows[0]["a"] = "text"  # values of one field may be of several types
    save_csv(rows, tmp_path / "a.csv")
    save_parquet(rows, tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open(encoding="utf-8") as stream:
        read = list(csv.DictReader(stream))
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert len(read) == len(table) == len(rows) == 6
    assert [float(row["value"]) for row in read] == [row["value"] for row in table] == [row["value"] for row in rows]
    assert [row["a"] for row in table] == [str(row["a"]) for row in rows]


# -- what trials say ------------------------------------------------------------------------------------------------


def test_the_interval_is_students() -> None:
    """Of ten normal numbers the 95 % interval of the mean holds the true mean in 95 % of the cases."""
    generator = np.random.default_rng(0)
    draws = generator.standard_normal((4000, 10))
    held = np.mean([abs(row.mean()) <= width95(row) / 2 for row in draws])
    assert held == pytest.approx(0.95, abs=0.012)
    assert width95([0.5]) == float("inf")


@pytest.mark.parametrize(("accuracy", "worst", "good_share"), [(True, 0.80, 2 / 3), (False, 0.91, 1 / 3)])
def test_worst_chip_and_yield(accuracy: bool, worst: float, good_share: float) -> None:
    original = 0.9 if accuracy else 0.82
    found = statistics_of("p", {}, {0: 0.91, 1: 0.80, 2: 0.89}, 1, original=original, loss=0.01, accuracy=accuracy)
    assert (found.worst, found.chips, found.failed) == (worst, 3, 1)
    assert found.ci95 is not None
    assert found.mean is not None
    half = width95([0.91, 0.80, 0.89]) / 2
    assert found.ci95 == pytest.approx(
        (found.mean - half, min(found.mean + half, 1.0) if accuracy else found.mean + half)
    )
    assert found.chip_yield == pytest.approx(good_share)
    nothing = statistics_of("p", {}, {}, 2, original=original, loss=0.01, accuracy=accuracy)
    assert (nothing.mean, nothing.chips, nothing.chip_yield) == (None, 0, None)


def test_a_file_tells_its_report(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    run(path, [point(0), point(1)], Chips(0, 4), FakePool())
    report = report_of(path, loss=0.5)
    assert report.axes == ("a,b",)
    assert (report.original, report.samples, report.metric) == (0.9, 10, "accuracy")
    for number, found in enumerate(report.points):
        values = [value(number, seed) for seed in range(4)]
        assert found.mean == pytest.approx(np.mean(values))
        assert found.chip_yield == np.mean([one >= 0.4 for one in values])
