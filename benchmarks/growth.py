"""How time and memory grow: ``python -m benchmarks.growth [--write]``.

Time of inference over the batch, over the tiles of a layer and over the chips, each through two decades, on one thread,
with every effect; time of mapping around failed devices over the tiles, on all cores; and the peak memory of the CNN at
a batch of 1024. The slope of the logarithms over the upper decade
is printed: 1 is linear. ``--write`` keeps the figures in ``benchmarks/results/growth.json`` and draws them,
``docs/images/growth.svg``.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import xbarc
from benchmarks.results import ROOT
from benchmarks.speed import machine
from benchmarks.works import ALL, FEW_FAILURES, PLAIN, cnn, compiled
from compiler.compile import CompileOptions
from runtime.engine import Engine
from runtime.programming import program_chip

BATCHES = (8, 16, 32, 64, 128, 256, 512, 1024)
TILES = (1, 4, 16, 64, 144)
MAPPED = (4, 8, 16, 32, 64, 128, 400)
CHIPS = (1, 2, 4, 8, 16, 32, 64, 128)
RUNS = 5
RESULT = ROOT / "benchmarks" / "results" / "growth.json"
FIGURE = ROOT / "docs" / "images" / "growth.svg"


def median(call: Callable[[], Any]) -> float:
    """Seconds of a call, after one that does not count."""
    call()
    found = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def engine_of(network: nn.Module, images: torch.Tensor) -> Engine:
    """A network on a sampled chip with every effect."""
    program = compiled(network, images, "rram-128-wired", FEW_FAILURES, options=PLAIN)
    return Engine(program_chip(program, xbarc.Chip.sample(program.spec, program.arrays, seed=0), effects=ALL))


def batches() -> list[tuple[int, float]]:
    """Seconds of the CNN for every batch."""
    torch.manual_seed(0)
    engine = engine_of(cnn(), torch.rand(32, 3, 32, 32))
    images = np.random.default_rng(0).random((max(BATCHES), 3, 32, 32), np.float32)
    return [(batch, median(lambda batch=batch: engine(images[:batch]))) for batch in BATCHES]  # type: ignore[misc]


def tiles() -> list[tuple[int, float]]:
    """Seconds of one square linear layer for every number of tiles, batch 256."""
    found = []
    for count in TILES:
        side = 128 * int(count**0.5)
        torch.manual_seed(0)
        vectors = torch.rand(256, side)
        engine = engine_of(nn.Sequential(nn.Linear(side, side)), vectors)
        inputs = vectors.numpy()
        found.append((count, median(lambda engine=engine, inputs=inputs: engine(inputs))))  # type: ignore[misc]
    return found


def chips() -> list[tuple[int, float]]:
    """Seconds of LeNet-5 on so many chips, writing them included, 64 images."""
    images = np.random.default_rng(0).random((64, 1, 28, 28), np.float32)
    model = ROOT / "models" / "lenet5-mnist" / "model.onnx"
    spec = xbarc.HardwareSpec.preset("rram-128").with_fields(FEW_FAILURES)
    program = xbarc.compile(model, spec=spec, calibration=images)
    sampled = [xbarc.Chip.sample(spec, program.arrays, seed=seed) for seed in range(max(CHIPS))]

    def run(count: int) -> None:
        for chip in sampled[:count]:
            xbarc.simulate(program, chip)(images)

    return [(count, median(lambda count=count: run(count))) for count in CHIPS]  # type: ignore[misc]


def mapping() -> list[tuple[int, float]]:
    """Seconds of mapping a linear layer of 512 rows around a chip's failed devices, for every number of tiles."""
    found = []
    spec = xbarc.HardwareSpec.preset("rram-128-faulty")
    for count in MAPPED:
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(512, 32 * count))
        program = compiled(layer, torch.rand(1024, 512), spec.name, {}, options=CompileOptions(robust=False))
        chip = xbarc.Chip.sample(spec, program.arrays, seed=0)
        xbarc.remap(program, chip)
        start = time.perf_counter()
        xbarc.remap(program, chip)
        found.append((count, time.perf_counter() - start))
    return found


def slope(found: list[tuple[int, float]]) -> float:
    """Of the logarithms of time and number, over the upper decade."""
    upper = [(number, seconds) for number, seconds in found if 10 * number >= found[-1][0]]
    numbers, seconds = np.log([list(pair) for pair in upper]).T
    return float(np.polyfit(numbers, seconds, 1)[0])


def peak() -> int:
    """Peak memory in MB of a process that runs the CNN at a batch of 1024 with every effect."""
    torch.manual_seed(0)
    engine = engine_of(cnn(), torch.rand(32, 3, 32, 32))
    engine(np.random.default_rng(0).random((1024, 3, 32, 32), np.float32))
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def draw(told: dict[str, Any], path: Path) -> None:
    """Time over each number, and straight lines of slope 1."""
    from matplotlib.figure import Figure

    from studies.plot_style import GREY, Effort, label, panels, write

    def figure(_: Effort) -> Figure:
        names = {"batch": "images of the CNN", "tiles": "tiles", "chips": "chips", "mapping": "tiles mapped"}
        found, axes = panels(*(f"slope {told['slopes'][key]:.2f}" for key in names), height=2.2)
        for axis, (key, name) in zip(axes, names.items(), strict=True):
            numbers, seconds = np.array(told[key]).T
            axis.loglog(numbers, numbers * seconds[-1] / numbers[-1], color=GREY, linewidth=1, linestyle="--")
            axis.loglog(numbers, seconds, marker="o", markersize=3)
            label(axis, name, "seconds" if key == "batch" else "", legend=None)
        return found

    write(figure, Effort(), path)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures and draw them")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(peak())
        return
    limits = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    command = [sys.executable, "-m", "benchmarks.growth", "--peak"]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **limits})
    told: dict[str, Any] = {"machine": machine(), "peak_mb_batch_1024": int(ran.stdout.splitlines()[-1])}
    told |= {"batch": batches(), "tiles": tiles(), "chips": chips(), "mapping": mapping()}
    told["slopes"] = {key: round(slope(told[key]), 3) for key in ("batch", "tiles", "chips", "mapping")}
    print(json.dumps(told, indent=1))
    if options.write:
        RESULT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        draw(told, FIGURE)


if __name__ == "__main__":
    main()
