"""How fast sweeps are, and that none loses a trial: ``python -m benchmarks.sweeps [WHAT ...] [--json FILE]``.

``speed``: trials a second in one process and in two, and what a sweep takes beside its trials, for trials of about a
second. ``kills``: the same sweep, killed with ``kill -9`` at random moments (the main process, workers, and the
scheduler of a Dask cluster of separate processes) and resumed, against one that was left alone. ``constants``: what
``docs/scaling.md`` reckons with.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import xbarc
from benchmarks.resnet18 import build_resnet18
from benchmarks.results import ROOT
from benchmarks.speed import machine
from compiler.compile import CompileOptions, options_of
from xbarc.data.load import load_data
from xbarc.sweeping.design import Design
from xbarc.sweeping.plan import points_of
from xbarc.sweeping.pools import LocalPool
from xbarc.sweeping.store import Store, read_rows
from xbarc.sweeping.trials import Trial, Unit, run_unit, write_job

MODELS = ROOT / "models"
RATES = "0.001:0.1:log4"
CHIPS, KILLS = 30, 20
PATIENCE = 60.0
LENET_IMAGES, DIGITS = 3000, 1000
"""Of a trial of about a second, and of a shorter one."""
RESNET_IMAGES, COMMITS, ROWS = 32, 500, 20_000


def work(folder: Path, model: str, images: int, side: int) -> Path:
    """A program on `rram-128`, and random images for it."""
    path = folder / "model.xbar"
    generator = np.random.default_rng(0)
    given = {"image": generator.random((images, 1, side, side), np.float32)}
    xbarc.compile(MODELS / model / "model.onnx", "rram-128", calibration=given["image"][:64]).save(path)
    arrays: dict[str, Any] = {"labels": generator.integers(0, 10, images), **given}
    np.savez(folder / "data.npz", **arrays)
    return path


def command(path: Path, results: Path, *options: object) -> list[str]:
    """A sweep of it."""
    vary = ["--vary", f"failures.unformed.rate={RATES}", "--data", str(path.parent / "data.npz")]
    more = [str(option) for option in options]
    return [sys.executable, "-m", "xbarc", "sweep", str(path), *vary, "--resume", "-o", str(results), *more]


def timed(path: Path, results: Path, processes: int, chips: int) -> tuple[float, float, int]:
    """Seconds of a sweep, those of its trials together, and how many there are."""
    options = ("--processes", processes, "--chips", chips)
    began = time.perf_counter()
    subprocess.run(command(path, results, *options), check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    seconds = [row["seconds"] for row in read_rows(results)]
    return wall, sum(seconds), len(seconds)


def speed(folder: Path, chips: int) -> dict[str, float]:
    """Trials a second in one process and in two, and the share of time that is not a trial's."""
    path, found = work(folder, "lenet5-mnist", LENET_IMAGES, 28), dict[str, float]()
    rates = {}
    for processes in (1, 2):
        wall, trials, count = timed(path, folder / f"{processes}.db", processes, chips)
        rates[processes] = count / wall
        found |= {
            f"trials a second, {processes} processes": count / wall,
            f"seconds a trial, {processes} processes": trials / count,
            f"beside the trials, {processes} processes": 1 - trials / (wall * processes),
        }
    return {**found, "two processes against one": rates[2] / rates[1]}


def workers_of(parent: int) -> list[int]:
    """Processes that a process started, and theirs."""
    found, left = [], [parent]
    while left:
        with contextlib.suppress(OSError):
            at = left.pop()
            text = Path(f"/proc/{at}/task/{at}/children").read_text(encoding="ascii")
            found += [int(one) for one in text.split()]
            left += [int(one) for one in text.split()]
    return found


class Cluster:
    """A scheduler and two workers, each a process that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "scheduler.json"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> str:
        """Start what does not run; the address of the scheduler."""
        if "scheduler" not in self._running or self._running["scheduler"].poll() is not None:
            self.stop()
            self._file.unlink(missing_ok=True)
            self._launch("scheduler", "dask_scheduler", "--host", "127.0.0.1", "--port", "0")
            began = time.perf_counter()
            while not (self._file.exists() and self._file.read_text(encoding="utf-8")):
                if time.perf_counter() - began > PATIENCE:
                    raise RuntimeError("the scheduler does not start")
                time.sleep(0.1)
        for name in ("worker 1", "worker 2"):
            if name not in self._running or self._running[name].poll() is not None:
                self._launch(name, "dask_worker", "--nthreads", "1", "--no-nanny")
        address = str(json.loads(self._file.read_text(encoding="utf-8"))["address"])
        import distributed

        with distributed.Client(address, timeout=PATIENCE, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
        return address

    def _launch(self, name: str, module: str, *options: str) -> None:
        where = ["--scheduler-file", str(self._file), "--no-dashboard"]
        self._running[name] = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *where, *options],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self, name: str) -> None:
        """End one of them, without asking."""
        self._running[name].kill()
        self._running[name].wait()

    def stop(self) -> None:
        """End all."""
        for name in reversed(self._running):
            self.kill(name)


def rows(path: Path) -> list[dict[str, Any]]:
    """All but how long trials took."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_rows(path)]


@contextlib.contextmanager
def running(path: Path, results: Path, *options: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A sweep that goes on meanwhile, and is killed where it has not ended."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command(path, results, *options), **quiet) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def kills(folder: Path, chips: int, times: int, seed: int) -> dict[str, Any]:
    """Kill a sweep so often, in turn on processes and on a cluster, and compare its rows with an undisturbed one's."""
    path, chance = work(folder, "digits-cnn", DIGITS, 8), random.Random(seed)
    whole, killed = folder / "whole.db", folder / "killed.db"
    subprocess.run(command(path, whole, "--processes", 1, "--chips", chips), check=True, stdout=subprocess.DEVNULL)
    cluster, done, story = Cluster(folder), 0, []
    try:
        while done < times:
            whom = ("main", "worker", "scheduler", "cluster worker")[done % 4]
            where = ("--scheduler", cluster.start()) if whom in ("scheduler", "cluster worker") else ("--processes", 2)
            with running(path, killed, *where, "--chips", chips) as process:
                time.sleep(chance.uniform(6.0, 18.0))
                if process.poll() is not None:
                    break  # nothing was left to run
                if whom == "worker":
                    started = workers_of(process.pid)
                    with contextlib.suppress(ProcessLookupError, IndexError):
                        os.kill(chance.choice(started), signal.SIGKILL)
                elif whom != "main":
                    cluster.kill("scheduler" if whom == "scheduler" else chance.choice(("worker 1", "worker 2")))
                if whom != "main":
                    time.sleep(chance.uniform(0.0, 3.0))
            done += 1
            story.append([whom, len(read_rows(killed)) if killed.exists() else 0])
        subprocess.run(command(path, killed, "--chips", chips), check=True, stdout=subprocess.DEVNULL)
    finally:
        cluster.stop()
    return {
        "kills": done,
        "trials after each": story,
        "trials": len(rows(whole)),
        "the same rows": rows(killed) == rows(whole),
    }


def constants(folder: Path) -> dict[str, float]:
    """A trial of a ResNet-18, what it needs on a worker, and what scheduler and store take for a unit."""
    image = np.random.default_rng(0).standard_normal((RESNET_IMAGES, 3, 64, 64)).astype(np.float32)
    model, path = build_resnet18(size=64), folder / "resnet18.xbar"
    resnet = xbarc.compile(model, "rram-128", calibration=image[:8], options=CompileOptions(keep_source=False))
    resnet.save(path)
    data = load_data({"image": image, "labels": np.zeros(RESNET_IMAGES, np.int64)}, resnet.tables.inputs)
    points = points_of({"a": resnet}, Design.of({}), {"a": options_of(resnet)})
    write_job(folder, {resnet.sha256: resnet}, points, data, {}, batch=16)
    run_unit(str(folder), Unit(0, (0,)))
    (trial,) = run_unit(str(folder), Unit(0, (1,)))
    began = time.perf_counter()
    with LocalPool(folder, 1) as pool:
        (first,) = pool.submit(Unit(0, (2,))).result()
        start = time.perf_counter() - began - trial.seconds
    del first
    with Store(folder / "store.db", {}, {}, "xbarc", resume=False) as store:
        store.add_points(points)
        began = time.perf_counter()
        for seed in range(COMMITS):
            store.add(points, [Trial(0, seed, 0.5, 0.1, 0.1, 1.0)])
        commit = (time.perf_counter() - began) / COMMITS
        began = time.perf_counter()
        store.add(points, [Trial(0, COMMITS + seed, 0.5, 0.1, 0.1, 1.0) for seed in range(ROWS)])
        row = (time.perf_counter() - began) / ROWS
    return {
        "seconds a trial of ResNet-18, an image": trial.seconds / RESNET_IMAGES,
        "seconds until a worker's first trial": start,
        "MB of its program": path.stat().st_size / 1e6,
        "seconds a transaction": commit,
        "seconds a row of many": row,
        "bytes a row": (folder / "store.db").stat().st_size / (COMMITS + ROWS),
        "seconds a unit of Dask": dask_unit(),
    }


def dask_unit() -> float:
    """Seconds that the scheduler takes for a unit that does nothing."""
    import distributed

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        executor = client.get_executor(pure=False)
        executor.submit(abs, -1).result()
        began = time.perf_counter()
        for future in [executor.submit(abs, -number) for number in range(COMMITS)]:
            future.result()
        return (time.perf_counter() - began) / COMMITS


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__)
    parser.add_argument("what", nargs="*", choices=["speed", "kills", "constants", []], help="default: all")
    parser.add_argument("--chips", type=int, default=CHIPS, help="chips at each of four rates")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine()}
    for what in options.what or ("speed", "kills", "constants"):
        with tempfile.TemporaryDirectory() as folder:
            if what == "speed":
                found[what] = speed(Path(folder), options.chips)
            elif what == "constants":
                found[what] = constants(Path(folder))
            else:
                found[what] = kills(Path(folder), options.chips, options.kills, options.seed)
        print(json.dumps(found[what], indent=1), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
