"""Time and memory against torch float32 in the same run: ``python -m benchmarks.speed [--works A,B] [--json FILE]``.

Every work runs in a process of its own for each number of threads. The two sides take turns, and what is given is the
median of their ratios and of their times. ``python -m benchmarks.compare OLD NEW`` sets two result files side by side.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, write_between

RESULT = ROOT / "benchmarks" / "results" / "speed.json"
SECONDS = 12.0
"""What the pairs of a work may take, once there are enough of them."""
FEWEST = 5


def measure(name: str, threads: int, seconds: float) -> dict[str, Any]:
    """Interleaved runs of one work in this process."""
    import torch

    from benchmarks.works import WORKS

    torch.set_num_threads(threads)
    work = WORKS[name]
    pair = work.prepare()
    calls = [pair.ours] if pair.theirs is None else [pair.ours, pair.theirs]
    found: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    while len(found[0]) < FEWEST or time.perf_counter() < end:
        order = range(len(calls)) if len(found[0]) % 2 else reversed(range(len(calls)))
        for which in order:
            start = time.perf_counter()
            calls[which]()
            found[which].append(time.perf_counter() - start)
    ours = [1e3 * one / pair.times for one in found[0]]
    theirs = [1e3 * one for one in found[1]] if len(calls) > 1 else None
    ratios = ours if theirs is None else [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "work": name,
        "what": work.what,
        "threads": threads,
        "ms": round(statistics.median(ours), 3),
        "held_to_ms": None if theirs is None else round(statistics.median(theirs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(one, 3) for one in statistics.quantiles(ratios, n=4)[::2]],
        "at_most": work.at_most,
        "pairs": len(ours),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
    }


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import version

    model = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("xbarc", "torch", "numpy", "numba", "onnxruntime")},
    }


def table(told: dict[str, Any]) -> list[str]:
    """The README's table: each work once, with every number of threads."""
    results = told["results"]
    threads = sorted({one["threads"] for one in results})
    heads = "".join(f" | {count} thread{'s' if count > 1 else ''}" for count in threads)
    lines = [f"| work{heads} | at most | MB |", "|---|" + "---|" * (len(threads) + 2)]
    for name in dict.fromkeys(one["work"] for one in results):
        of_work = {one["threads"]: one for one in results if one["work"] == name}
        first = next(iter(of_work.values()))
        plain = first["held_to_ms"] is None
        cells = [
            f"{of_work[count]['ratio']:.3g}{' ms' if plain else ''}" if count in of_work else "" for count in threads
        ]
        most = f"{first['at_most']:g}{' ms' if plain else ''}"
        lines.append(f"| {first['what']} | {' | '.join(cells)} | {most} | {first['peak_mb']} |")
    versions = ", ".join(
        f"{name} {version}" for name, version in told["machine"]["versions"].items() if name != "xbarc"
    )
    return [*lines, "", f"{told['machine']['cpu']}, {told['machine']['cores']} cores; {versions}."]


def merged(told: dict[str, Any], works: list[str]) -> list[dict[str, Any]]:
    """The new results, and the kept ones of other works and threads where machine and versions are the same."""
    old = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else told
    kept = old["results"] if old["machine"] == told["machine"] else []
    rows = {
        (one["threads"], works.index(one["work"])): one for one in (*kept, *told["results"]) if one["work"] in works
    }
    return [rows[key] for key in sorted(rows)]


def main() -> None:
    """Run the works, print a line for each, and keep them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--works", help="names, comma separated; default all")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, comma separated; default 1,2")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for the pairs of a work; default {SECONDS:g}")
    parser.add_argument("--json", type=Path, help="file for the figures, with machine and versions")
    parser.add_argument("--write", action="store_true", help=f"put the figures into {RESULT.name} and the README")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.works, int(options.threads), options.seconds)))
        return
    from benchmarks.works import WORKS

    names = list(WORKS) if options.works is None else options.works.split(",")
    results = []
    print(f"{'work':<72} {'threads':>7} {'ms':>9} {'torch ms':>9} {'ratio':>6} {'at most':>7} {'MB':>6}")
    for threads in options.threads.split(","):
        limits = {f"{name}_NUM_THREADS": threads for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        for name in names:
            command = [sys.executable, "-m", "benchmarks.speed", "--one", "--works", name, "--threads", threads]
            command += ["--seconds", str(options.seconds)]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **limits})
            found = json.loads(ran.stdout.splitlines()[-1])
            results.append(found)
            held_to = "" if found["held_to_ms"] is None else f"{found['held_to_ms']:.2f}"
            print(
                f"{found['what']:<72} {threads:>7} {found['ms']:>9.2f} {held_to:>9} "
                f"{found['ratio']:>6.3g} {found['at_most']:>7.1f} {found['peak_mb']:>6}",
                flush=True,
            )
    told = {"machine": machine(), "results": results}
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if options.write:
        told["results"] = merged(told, list(WORKS))
        RESULT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        write_between("speed", table(told))


if __name__ == "__main__":
    main()
