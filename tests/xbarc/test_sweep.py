"""Sweeps as a whole: trials are what `xbarc.evaluate` finds, wherever they run and however often they are killed."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tuning_cases as cases

import xbarc
from compiler.compile import CompileOptions, options_of
from hwspec.errors import DataError
from runtime.program import TileProgram
from xbarc.sweeping.design import Design
from xbarc.sweeping.plan import points_of
from xbarc.sweeping.store import read_rows
from xbarc.sweeping.trials import Bench, Unit, run_unit, write_job

VARY: dict[str, Any] = {"failures.stuck_hrs.rate": "0.01:0.3:log3"}
DATA = cases.blobs(60, 7)
SEED, CHIPS = 3, 4
AROUND = CompileOptions(predistort=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program and data as files."""
    path = tmp_path_factory.mktemp("sweep")
    cases.program().save(path / "model.xbar")
    cases.save(path / "data.npz", DATA)
    return path


def swept(folder: Path, results: str, **given: Any) -> xbarc.SweepReport:
    """The sweep of these tests."""
    files = folder / "model.xbar", folder / "data.npz"
    return xbarc.sweep(*files, VARY, results=folder / results, chips=CHIPS, seed=SEED, **given)


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[dict[str, Any]]:
    """The rows of an undisturbed sweep in one process."""
    swept(folder, "whole.db", processes=1)
    return rows(folder / "whole.db")


def rows(path: Path) -> list[dict[str, Any]]:
    """All but how long trials took."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_rows(path)]


def with_spec(program: TileProgram, **fields: object) -> TileProgram:
    return program.on(program.spec.with_fields({name.replace("__", "."): value for name, value in fields.items()}))


def trials(tmp_path: Path, vary: dict[str, object], *, labels: bool = True, **given: Any) -> list[list[float]]:
    """Values of the chips of each point, run in this process."""
    program, data = cases.program(), DATA if labels else dataclasses.replace(DATA, labels=None)
    points = points_of({"a": program}, Design.of(vary), {"a": options_of(program)}, **given)
    truth = {}
    if not labels:
        assert program.source is not None
        from compiler.floatmodel import FloatModel
        from compiler.frontend import load_model

        model = FloatModel(load_model(program.source).proto, optimize=True)
        truth = {"y": (model.run(data.inputs, ["y"])["y"], 0)}
    write_job(tmp_path, {program.sha256: program}, points, data, truth, batch=16)
    seeds = tuple(range(SEED, SEED + CHIPS))
    return [[trial.value for trial in run_unit(str(tmp_path), Unit(at, seeds))] for at in range(len(points))]


def evaluated(program: TileProgram, *, labels: bool = True, **given: Any) -> list[float]:
    data = DATA if labels else dataclasses.replace(DATA, labels=None)
    torch.set_num_threads(1)
    report = xbarc.evaluate(program, data, batch=16, seed=SEED, chips=CHIPS, model=cases.program().source, **given)
    return list(report.chips)


# -- what a trial is ------------------------------------------------------------------------------------------------


def test_trials_are_what_evaluate_finds(tmp_path: Path) -> None:
    found = trials(tmp_path, {"failures.stuck_hrs.rate": [0.05, 0.3]})
    assert found == [evaluated(with_spec(cases.program(), failures__stuck_hrs__rate=rate)) for rate in (0.05, 0.3)]
    assert len({*found[0], *found[1]}) > 2


def test_without_labels_a_trial_is_the_error_of_outputs(tmp_path: Path) -> None:
    (found,) = trials(tmp_path, {}, labels=False)
    np.testing.assert_allclose(found, evaluated(cases.program(), labels=False), rtol=1e-12)


def test_trials_do_not_depend_on_what_ran_before(tmp_path: Path) -> None:
    noisy = {"device.read_noise.model": ["proportional"], "device.read_noise.share": [0.2]}
    together = trials(tmp_path, noisy)
    bench = Bench(tmp_path)
    alone = [bench.run(Unit(0, (seed,)))[0].value for seed in reversed(range(SEED, SEED + CHIPS))]
    assert alone[::-1] == together[0]


@pytest.mark.parametrize(("field", "value"), [("array.rows", 5), ("device.levels", 4), ("array.cols", 16)])
def test_what_a_program_is_made_for_maps_it_anew(field: str, value: int, tmp_path: Path) -> None:
    program = with_spec(cases.program(), **{field.replace(".", "__"): value})
    anew = xbarc.remap(program)
    assert anew.sha256 != program.sha256
    assert trials(tmp_path, {field: [value]}) == [evaluated(anew)]


def test_options_of_compiling_vary(tmp_path: Path) -> None:
    program = cases.program()
    expected = [evaluated(xbarc.remap(program, replicas=replicas)) for replicas in (1, 3)]
    assert trials(tmp_path, {"compile.replicas": [1, 3]}) == expected
    assert expected[0] != expected[1]


def test_programs_are_an_axis_of_their_own(tmp_path: Path) -> None:
    programs = {"fine": cases.program(), "coarse": cases.program_of({"device.levels": 2})}
    recorded = {name: options_of(program) for name, program in programs.items()}
    points = points_of(programs, Design.of({"failures.stuck_hrs.rate": [0.05, 0.3]}), recorded)
    write_job(tmp_path, {one.sha256: one for one in programs.values()}, points, DATA, {}, batch=16)
    assert [(point.label, point.values["failures.stuck_hrs.rate"]) for point in points] == [
        (name, rate) for name in programs for rate in (0.05, 0.3)
    ]
    seeds = tuple(range(SEED, SEED + CHIPS))
    for at, point in enumerate(points):
        rate = point.values["failures.stuck_hrs.rate"]
        expected = evaluated(with_spec(programs[point.label], failures__stuck_hrs__rate=rate))
        assert [trial.value for trial in run_unit(str(tmp_path), Unit(at, seeds))] == expected


def test_programs_are_mapped_for_each_chip(tmp_path: Path) -> None:
    found = trials(tmp_path, {"compile.replicas": [1, 2]}, remap=True)
    mapped = [CompileOptions(predistort=False, replicas=replicas) for replicas in (1, 2)]
    assert found == [evaluated(cases.program(), remap=True, options=options) for options in mapped]
    assert np.mean(found[0]) > np.mean(evaluated(cases.program()))


def test_a_chip_has_the_arrays_that_smaller_ones_take(tmp_path: Path) -> None:
    anew = xbarc.remap(with_spec(cases.program(), array__rows=4))
    assert anew.arrays > cases.program().arrays
    assert trials(tmp_path, {"array.rows": [4]}, remap=True) == [evaluated(anew, remap=True, options=AROUND)]


def test_time_varies(tmp_path: Path) -> None:
    fixed: dict[str, Any] = {"device.g_max": "25 uS", "device.drift.model": "pcm"}
    found = trials(tmp_path, {"time": [0, "10 days"]}, fixed=fixed)
    drifting = xbarc.remap(with_spec(cases.program(), device__g_max="25 uS", device__drift__model="pcm"))
    assert found == [evaluated(drifting, time=seconds) for seconds in (0.0, 864_000.0)]
    assert found[0] != found[1]


def test_effects_are_switched_off(tmp_path: Path) -> None:
    from hwspec.effects import chosen_effects

    found = trials(tmp_path, {}, effects=chosen_effects(without=["failures"]))
    assert found == [evaluated(cases.program(), without=["failures"])]


# -- where it runs --------------------------------------------------------------------------------------------------


def test_the_report_says_what_the_rows_say(whole: list[dict[str, Any]], folder: Path) -> None:
    assert len(whole) == 3 * CHIPS
    report = swept(folder, "whole.db", resume=True, loss=0.1)
    assert rows(folder / "whole.db") == whole
    for point in report.points:
        rate = point.values["failures.stuck_hrs.rate"]
        values = [row["value"] for row in whole if row["failures.stuck_hrs.rate"] == rate]
        assert point.mean == pytest.approx(np.mean(values))
        assert point.worst == min(values)
        assert point.chip_yield == np.mean([value >= report.original - 0.1 for value in values])


def test_two_processes_find_the_same(whole: list[dict[str, Any]], folder: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    swept(folder, "two.db", processes=2, progress=lambda *row: told.append(row))
    assert rows(folder / "two.db") == whole
    assert told[0][1:] == (0, 3 * CHIPS)
    assert told[-1][1:] == (3 * CHIPS, 3 * CHIPS)


def test_a_trial_that_cannot_be_run_keeps_its_own_reason(folder: Path) -> None:
    """What a worker raises comes whole, and the other trials run."""
    fixed = {"device.g_max": "40 uS", "device.drift.model": "wan2022"}  # fitted to two days
    vary = {"time": [0, "3 days"]}
    files = folder / "model.xbar", folder / "data.npz"
    report = xbarc.sweep(*files, vary, results=folder / "failed.db", chips=2, fixed=fixed, processes=1)
    assert [(point.chips, point.failed) for point in report.points] == [(2, 0), (0, 2)]
    reasons = {row["reason"] for row in rows(folder / "failed.db")} - {None}
    assert len(reasons) == 1
    assert "choose a time of at most two days" in str(reasons.pop())


@contextlib.contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """A Dask scheduler and workers, each a process of its own."""
    pytest.importorskip("distributed")
    told = folder / "scheduler.json"
    told.unlink(missing_ok=True)
    dask, quiet = [sys.executable, "-m"], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    where = ["--scheduler-file", str(told)]
    started = [
        subprocess.Popen(
            [*dask, "distributed.cli.dask_scheduler", *where, "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
            **quiet,  # type: ignore[call-overload]
        )
    ]
    worker = [*dask, "distributed.cli.dask_worker", *where, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DASK_TEMPORARY_DIRECTORY": str(folder)}
    started += [
        subprocess.Popen(worker, env=environment, **quiet)  # type: ignore[call-overload]
        for _ in range(workers)
    ]
    try:
        import json

        import distributed

        for _ in range(600):
            if told.exists() and told.read_text(encoding="utf-8"):
                break
            time.sleep(0.1)
        address = json.loads(told.read_text(encoding="utf-8"))["address"]
        with distributed.Client(address, timeout=30, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)
        yield address
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


# Threads of Dask that end after a test, and files that it leaves to the collector, are not ours.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_of_a_cluster_find_the_same(whole: list[dict[str, Any]], folder: Path) -> None:
    with cluster(folder, 2) as address:
        swept(folder, "cluster.db", scheduler=address)
    assert rows(folder / "cluster.db") == whole


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scheduler_that_does_not_answer_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("xbarc.sweeping.pools.CONNECT_SECONDS", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(DataError, match="does not answer"):
            xbarc.sweep(cases.program(), DATA, VARY, results=folder / f"{address[:3]}.db", chips=1, scheduler=address)


# -- and is killed --------------------------------------------------------------------------------------------------


def command(folder: Path, name: str) -> list[str]:
    options = [*("--chips", str(CHIPS)), *("--seed", str(SEED)), *("--processes", "2"), "--resume"]
    vary = ["--vary", f"failures.stuck_hrs.rate={VARY['failures.stuck_hrs.rate']}"]
    files = [folder / "model.xbar", "--data", folder / "data.npz", "-o", folder / name]
    return [sys.executable, "-m", "xbarc", "sweep", *map(str, files), *vary, *options]


def children(of: int) -> list[int]:
    """Processes that a process started."""
    found = Path(f"/proc/{of}/task/{of}/children").read_text(encoding="ascii").split()
    return [int(one) for one in found]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers are found under /proc")
def test_killed_at_any_moment_it_ends_with_the_same_rows(whole: list[dict[str, Any]], folder: Path) -> None:
    chance = random.Random(5)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(2):
        with subprocess.Popen(command(folder, "killed.db"), env=environment, stdout=subprocess.DEVNULL) as process:
            for _ in range(chance.randint(30, 80)):
                time.sleep(0.1)
                workers = children(process.pid) if process.poll() is None else []
                if len(workers) > 1 and chance.random() < 0.03:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(workers), signal.SIGKILL)
            process.kill()
    ended = subprocess.run(command(folder, "killed.db"), env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert rows(folder / "killed.db") == whole


# -- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"chips": 0}, "at least 1"),
        ({"until": 0.0}, "positive"),
        ({"until": 0.1, "chips": 1}, "at least 2"),
        ({"seed": -1}, "negative"),
        ({"seed": 2**63 - 2}, "leave room"),
        ({"loss": float("nan")}, "negative"),
        ({"processes": 0}, "1 to 1024"),
        ({"processes": 1, "workers": 1}, "exclude each other"),
        ({"chips": 20_000}, "at most 10000 trials"),
        ({"most_trials": 11}, "at most 11 trials"),
        ({"programs": {}}, "at least one"),
        ({"data": {"z": np.zeros((2, 8), np.float32)}}, "z"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"programs": cases.program(), "data": DATA, "vary": VARY, "chips": CHIPS, **given}
    with pytest.raises(DataError, match=told):
        xbarc.sweep(**chosen, results=tmp_path / "a.db")
    assert not (tmp_path / "a.db").exists()


def test_programs_of_another_model_or_without_one_are_refused(tmp_path: Path) -> None:
    other = cases.program_of(model=cases.classifier(softmax=True))
    with pytest.raises(DataError, match="must be of the model of the others"):
        xbarc.sweep({"a": cases.program(), "b": other}, DATA, VARY, results=tmp_path / "a.db")
    bare = dataclasses.replace(cases.program(), source=None)
    with pytest.raises(DataError, match="carries no model"):
        xbarc.sweep(bare, DATA, VARY, results=tmp_path / "a.db")
