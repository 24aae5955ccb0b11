"""Running the trials that are missing: cut into units, retried where a worker dies, kept as they come."""

import collections
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field

from hwspec.errors import DataError, XbarcError
from xbarc.sweeping.plan import Point
from xbarc.sweeping.pools import Pool
from xbarc.sweeping.statistics import width95
from xbarc.sweeping.store import Store
from xbarc.sweeping.trials import Trial, Unit

UNIT_SECONDS = 2.0
"""How long a worker is given work for at once: its results are kept when it is done with all of it."""

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
    ran: int = 0

    def __post_init__(self) -> None:
        """Read what is done already."""
        self.done = [self.store.done(point) for point in self.points]
        self.failed = [set() for _ in self.points]
        self._flying: dict[Future[list[Trial]], Unit] = {}
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
            finished, _ = wait(self._flying, return_when=FIRST_COMPLETED)
            died = False
            for future in sorted(finished, key=_failed):  # what is done is kept before an error ends everything
                died |= self._take(pool, self._flying.pop(future), future, beside=beside)
            if died and pool.renew():
                for future in list(self._flying):  # some may have ended before all workers went
                    unit = self._flying.pop(future)
                    if future.done():
                        self._take(pool, unit, future, beside=True)
                    else:
                        self._alone.extend(unit.alone())
            self._tell()

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
        self._flying[pool.submit(unit)] = unit

    def _next(self, workers: int) -> Unit | None:
        while self._ready:
            number = self._ready[0]
            left = self._open[number]
            if left:
                each = self._seconds.get(number)
                most = 1 if each is None else max(1, int(UNIT_SECONDS / max(each, 1e-9)))
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

    def _take(self, pool: Pool, unit: Unit, future: "Future[list[Trial]]", *, beside: bool) -> bool:
        """Keep the result of a unit, or see why there is none; returns whether workers died."""
        try:
            trials = future.result()
        except CancelledError:
            raise DataError("scheduler", "was lost", hint="start it again, and the sweep with --resume") from None
        except XbarcError as error:
            if len(unit.seeds) > 1:
                self._alone.extend(unit.alone())
            else:
                self._give_up(unit, str(error))
        except Exception as error:
            if pool.lost(error):
                if beside:  # it need not have been this unit
                    self._alone.extend(unit.alone())
                else:
                    self._again(unit, "its worker died")
                return True
            reason = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
            self._again(unit, reason)
        else:
            self.store.add(self.points, trials)
            for trial in trials:
                self.done[unit.point][trial.seed] = trial.value
                before = self._seconds.get(unit.point, trial.seconds)
                self._seconds[unit.point] = (before + trial.seconds) / 2
            self.ran += len(trials)
            self._settled(unit.point, len(trials))
        return False

    def _again(self, unit: Unit, reason: str) -> None:
        """Run each trial of a unit once more, alone, unless it had its chances."""
        for one in unit.alone():
            key = (one.point, one.seeds[0])
            self._tried[key] += 1
            if self._tried[key] < MOST_TRIES:
                self._alone.append(one)
            else:
                self._give_up(one, f"{reason} {MOST_TRIES} times" if "died" in reason else reason)

    def _give_up(self, unit: Unit, reason: str) -> None:
        self.store.fail(self.points[unit.point], unit.seeds, reason)
        self.failed[unit.point].update(unit.seeds)
        self._settled(unit.point, len(unit.seeds))

    def _tell(self) -> None:
        if self.progress is not None:
            total = sum(self._goals)
            self.progress("trials", total - self._left, total)


def _failed(future: "Future[list[Trial]]") -> bool:
    return future.cancelled() or future.exception() is not None
