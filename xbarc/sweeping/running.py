"""Running the trials that are missing: cut into units, retried where a worker dies, kept as they come."""

import collections
import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from hwspec.errors import DataError, XbarcError
from xbarc.sweeping.plan import Point
from xbarc.sweeping.pools import Pool
from xbarc.sweeping.statistics import width95
from xbarc.sweeping.store import Store
from xbarc.sweeping.trials import Trial, Unit

UNIT_SECONDS = 2.0
"""How long a worker is given work for at once: its results are kept when it is done with all of it."""

UNITS_A_SECOND = 50.0
"""How many units may end in a second, however many workers there are: more get larger ones (``docs/scaling.md``)."""

MOST_TRIES = 3
"""How often a trial is run, with nothing beside it, that its worker does not survive or that fails in some odd way."""

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Chips:
    """Which chips each point has.

    Attributes
    ----------
    first
        Seed of the first.
    count
        How many; where `width` is given, how many more each time.
    width
        Of the 95 % interval of the mean that is wanted, in the metric's unit; None for just `count` chips.
    most
        How many at most, for that.
    """

    first: int
    count: int
    width: float | None = None
    most: int = 0

    def goal(self, point: Point, done: dict[int, float], failed: set[int]) -> int:
        """How many chips a point must have, given those that are done."""
        if not point.random:
            return 1
        if self.width is None:
            return self.count
        goal = self.count
        while goal < self.most:
            seeds = range(self.first, self.first + goal)
            if any(seed not in done and seed not in failed for seed in seeds):
                break  # the interval is judged on all of them together, whatever order they come in
            if width95([done[seed] for seed in seeds if seed in done]) <= self.width:
                break
            goal = min(goal + self.count, self.most)
        return goal


@dataclass
class Runner:
    """Runs what is missing of a sweep.

    Attributes
    ----------
    points
        Of the sweep.
    chips
        Of each point.
    store
        Where results are kept.
    progress
        Called with what runs, trials done and trials in all, as far as known.
    """

    points: Sequence[Point]
    chips: Chips
    store: Store
    progress: Progress | None = None
    done: list[dict[int, float]] = field(init=False)
    failed: list[set[int]] = field(init=False)

    def __post_init__(self) -> None:
        """Read what is done already."""
        self.done = [self.store.done(point) for point in self.points]
        self.failed = [set() for _ in self.points]
        self._flying: dict[Future[list[Trial]], Unit] = {}
        self._ended: SimpleQueue[Future[list[Trial]]] = SimpleQueue()
        self._tried: collections.Counter[tuple[int, int]] = collections.Counter()
        self._alone: collections.deque[Unit] = collections.deque()
        self._seconds: dict[int, float] = {}
        self._goals = [0] * len(self.points)
        self._open: list[collections.deque[int]] = [collections.deque() for _ in self.points]
        self._under_way = [0] * len(self.points)
        self._ready: collections.deque[int] = collections.deque()
        self._left = 0
        for number in range(len(self.points)):
            self._extend(number)

    def seeds(self, number: int) -> range:
        """Chips that a point must have, as far as known now."""
        return range(self.chips.first, self.chips.first + self._goals[number])

    @property
    def missing(self) -> int:
        """Trials that are to be run, as far as known."""
        return self._left

    def _extend(self, number: int) -> None:
        """Open the chips that a point needs in the light of those that are done."""
        done, failed = self.done[number], self.failed[number]
        while not self._open[number] and not self._under_way[number]:
            goal = self.chips.goal(self.points[number], done, failed)
            if goal <= self._goals[number]:
                return
            more = range(self.chips.first + self._goals[number], self.chips.first + goal)
            self._goals[number] = goal
            self._open[number].extend(seed for seed in more if seed not in done and seed not in failed)
            self._left += len(self._open[number])
            if self._open[number]:
                self._ready.append(number)

    def run(self, pool: Pool) -> None:
        """Run everything; raises `DataError` where the cluster is lost."""
        self._tell()
        while True:
            self._fill(pool)
            if not self._flying:
                return
            beside = len(self._flying) > 1
            finished = self._ended_units()
            self._keep(finished)
            died = False
            for future in finished & self._flying.keys():
                died |= self._failed_unit(pool, self._flying.pop(future), future, beside=beside)
            if died and pool.renew():
                self._keep(future for future in self._flying if future.done())  # some ended before all workers went
                for unit in self._flying.values():
                    self._alone.extend(unit.alone())
                self._flying.clear()
            self._tell()

    def _ended_units(self) -> set["Future[list[Trial]]"]:
        """Units that have ended, at least one; nothing here grows with the number of those under way."""
        found: set[Future[list[Trial]]] = set()
        while not found:
            found = {self._ended.get()}
            with contextlib.suppress(Empty):
                while True:
                    found.add(self._ended.get_nowait())
            found &= self._flying.keys()  # those of workers that are gone may still end
        return found

    def _keep(self, finished: Iterable["Future[list[Trial]]"]) -> None:
        """Keep the trials of units that succeeded, in one transaction."""
        good = [future for future in finished if not future.cancelled() and future.exception() is None]
        units = [(self._flying.pop(future), future.result()) for future in good]
        self.store.add(self.points, [trial for _, trials in units for trial in trials])
        for unit, trials in units:
            for trial in trials:
                self.done[unit.point][trial.seed] = trial.value
                before = self._seconds.get(unit.point, trial.seconds)
                self._seconds[unit.point] = (before + trial.seconds) / 2
            self._settled(unit.point, len(trials))

    def _fill(self, pool: Pool) -> None:
        """Give every worker something to do; what may have killed one runs with nothing beside it."""
        if self._alone:
            if not self._flying:
                self._submit(pool, self._alone.popleft())
            return
        while len(self._flying) < 2 * pool.workers:
            unit = self._next(pool.workers)
            if unit is None:
                return
            self._submit(pool, unit)

    def _submit(self, pool: Pool, unit: Unit) -> None:
        future = pool.submit(unit)
        self._flying[future] = unit
        future.add_done_callback(self._ended.put)

    def _next(self, workers: int) -> Unit | None:
        while self._ready:
            number = self._ready[0]
            left = self._open[number]
            if left:
                each = self._seconds.get(number)
                seconds = max(UNIT_SECONDS, workers / UNITS_A_SECOND)
                most = 1 if each is None else max(1, int(seconds / max(each, 1e-9)))
                count = min(most, max(1, len(left) // workers))
                self._under_way[number] += count
                return Unit(number, tuple(left.popleft() for _ in range(count)))
            self._ready.popleft()
        return None

    def _settled(self, number: int, count: int) -> None:
        """So many trials of a point are done or given up."""
        self._under_way[number] -= count
        self._left -= count
        self._extend(number)

    def _failed_unit(self, pool: Pool, unit: Unit, future: "Future[list[Trial]]", *, beside: bool) -> bool:
        """See why a unit failed, and what to do with its trials; returns whether workers died."""
        if future.cancelled():
            raise _lost()
        error = future.exception()
        if isinstance(error, CancelledError):
            raise _lost()
        if error is not None and pool.lost(error):
            if beside:  # it need not have been this unit
                self._alone.extend(unit.alone())
            else:
                self._again(unit, f"its worker died {MOST_TRIES} times")
            return True
        if not isinstance(error, XbarcError):
            reason = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
            self._again(unit, reason)
        elif len(unit.seeds) > 1:
            self._alone.extend(unit.alone())
        else:
            self._give_up(unit, str(error))
        return False

    def _again(self, unit: Unit, reason: str) -> None:
        """Run each trial of a unit once more, alone, unless it had its chances."""
        for one in unit.alone():
            key = (one.point, one.seeds[0])
            self._tried[key] += 1
            if self._tried[key] < MOST_TRIES:
                self._alone.append(one)
            else:
                self._give_up(one, reason)

    def _give_up(self, unit: Unit, reason: str) -> None:
        self.store.fail(self.points[unit.point], unit.seeds, reason)
        self.failed[unit.point].update(unit.seeds)
        self._settled(unit.point, len(unit.seeds))

    def _tell(self) -> None:
        if self.progress is not None:
            total = sum(self._goals)
            self.progress("trials", total - self._left, total)


def _lost() -> DataError:
    return DataError("scheduler", "was lost", hint="start it again, and the sweep with --resume")
