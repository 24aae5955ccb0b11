"""Where trials run: processes of this machine, or a Dask cluster; behind `concurrent.futures` either way."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from hwspec.errors import DataError
from xbarc.sweeping.trials import THREADS, Trial, Unit, run_unit, start_worker, warm

CONNECT_SECONDS = 10.0
LEAST_GIB = 4.0
"""Memory that a worker may take however many there are: libraries alone reserve a good part of one."""


class Pool(Protocol):
    """Workers that run units."""

    workers: int

    def submit(self, unit: Unit) -> "Future[list[Trial]]":
        """Begin a unit."""

    def lost(self, error: BaseException) -> bool:
        """Whether an error says that the worker died, and not what it ran."""

    def renew(self) -> bool:
        """Have workers again after some died; returns whether all that was under way is lost with them."""

    def __enter__(self) -> Self:
        """Start."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop every worker, whatever it does."""


class LocalPool:
    """Processes of this machine, one thread each.

    Parameters
    ----------
    folder
        Of the job (`trials.write_job`), whose arrays all of them map.
    workers
        How many.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self.workers, self._folder = workers, str(folder)
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, unit: Unit) -> "Future[list[Trial]]":
        """Begin a unit."""
        assert self._pool is not None
        try:
            with _one_thread():  # processes start when there is something to do
                return self._pool.submit(run_unit, self._folder, unit)
        except BrokenProcessPool as error:  # a worker died since the last result
            failed: Future[list[Trial]] = Future()
            failed.set_exception(error)
            return failed

    def warm(self) -> None:
        """Let all workers import what they need, whatever comes then."""
        assert self._pool is not None
        with _one_thread(), contextlib.suppress(BrokenProcessPool):  # the next unit finds out
            for _ in range(self.workers):
                self._pool.submit(warm)

    def lost(self, error: BaseException) -> bool:
        """Whether an error says that a worker died."""
        return isinstance(error, BrokenProcessPool)

    def renew(self) -> bool:
        """Start all workers again: the death of one ends the others."""
        if self._pool is not None:
            self._end()
        gib = max(LEAST_GIB, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.9 / 2**30 / self.workers)
        self._pool = ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=start_worker,
            initargs=(os.getpid(), gib),
        )
        return True

    def __enter__(self) -> Self:
        """Start."""
        self.renew()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop every worker."""
        self._end()

    def _end(self) -> None:
        assert self._pool is not None
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with contextlib.suppress(OSError, ValueError):
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, signal.SIGTERM)
        for process in processes:
            process.join(5.0)
        self._pool = None


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start meanwhile find the number of threads in their environment."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class ClusterPool:
    """Workers of a Dask cluster.

    Each worker gets the job's files when it joins, so that the machines need no folder in common.

    Parameters
    ----------
    folder
        Of the job.
    scheduler
        Address of a scheduler that runs, or None to start workers here.
    workers
        Processes to start here, each with one thread; of a scheduler's workers all are used.

    Raises
    ------
    DataError
        If Dask is not installed, the scheduler does not answer, or it has no workers.
    """

    def __init__(self, folder: Path, scheduler: str | None, workers: int | None) -> None:
        self._folder, self._scheduler, self._count = folder, scheduler, workers
        self.workers = workers or 1
        self._client: Any = None
        self._cluster: Any = None
        self._executor: Executor | None = None
        self._job = ""

    def submit(self, unit: Unit) -> "Future[list[Trial]]":
        """Begin a unit."""
        assert self._executor is not None
        from xbarc.sweeping.cluster import run_sent

        return self._executor.submit(run_sent, self._job, unit)

    def lost(self, error: BaseException) -> bool:
        """Whether an error says that workers died."""
        from distributed.scheduler import KilledWorker

        return isinstance(error, KilledWorker)

    def renew(self) -> bool:
        """Nothing: Dask starts workers again itself, where it started them, and the others go on."""
        return False

    def __enter__(self) -> Self:
        """Connect, and send the job."""
        try:
            import distributed
        except ImportError:
            raise DataError("dask.distributed", "must be installed", hint="pip install 'xbarc[sweep]'") from None
        from xbarc.sweeping.cluster import SendJob

        if self._scheduler is None:
            with _one_thread():
                self._cluster = distributed.LocalCluster(
                    n_workers=self._count, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
                )
        try:
            self._client = distributed.Client(
                self._cluster or self._scheduler, timeout=CONNECT_SECONDS, set_as_default=False
            )
        except (OSError, TimeoutError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else "no answer"
            raise DataError(f"scheduler {self._scheduler}", f"does not answer ({reason})") from None
        if self._cluster is None:
            self.workers = len(self._client.nthreads())
            if not self.workers:
                hint = f"start some: dask worker {self._scheduler} --nthreads 1"
                raise DataError(f"scheduler {self._scheduler}", "has no workers", hint=hint)
        job = SendJob.of(self._folder)
        self._job = job.name
        self._client.register_plugin(job)
        self._executor = self._client.get_executor(pure=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let workers forget the job, leave the scheduler, and stop what was started here."""
        if self._job and not isinstance(error, DataError):  # else the scheduler is gone
            with contextlib.suppress(OSError, TimeoutError, concurrent.futures.CancelledError):
                self._client.unregister_worker_plugin(self._job)
        for opened in (self._client, self._cluster):
            if opened is not None:
                with contextlib.suppress(OSError, TimeoutError, concurrent.futures.CancelledError):
                    opened.close()
