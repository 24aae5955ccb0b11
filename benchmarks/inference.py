"""Time of inference on a programmed chip, with wires and without: ``python -m benchmarks.inference``."""

import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import xbarc
from hwspec.effects import EFFECTS
from runtime.engine import Engine
from runtime.programming import program_chip

MODEL = Path(__file__).parents[1] / "models" / "lenet5-mnist" / "model.onnx"
BATCH = 256
PAIRS = 40


def main() -> None:
    """Print medians of interleaved runs, and their ratio, as JSON."""
    torch.set_num_threads(1)
    inputs = np.random.default_rng(0).random((BATCH, 1, 28, 28), dtype=np.float32)
    spec = xbarc.HardwareSpec.preset("rram-128-wired")
    program = xbarc.compile(MODEL, spec=spec, calibration=inputs[:64])
    chip = xbarc.Chip.sample(spec, program.arrays, seed=0)
    programming, engines = {}, {}
    for name, effects in (("without wires", EFFECTS.keys() - {"wires"}), ("with wires", EFFECTS.keys())):
        start = time.perf_counter()
        programmed = program_chip(program, chip, effects=effects)
        programming[name] = time.perf_counter() - start
        engines[name] = Engine(programmed)
        engines[name](inputs)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(PAIRS):
        for name in list(engines)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            engines[name](inputs)
            seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["with wires"], seconds["without wires"], strict=True)]
    figures = {
        "network": f"lenet5-mnist, batch {BATCH}, rram-128-wired, one thread",
        "inference_ms": {name: round(1e3 * statistics.median(found), 2) for name, found in seconds.items()},
        "ratio_with_wires": round(statistics.median(ratios), 3),
        "programming_ms_an_array": {name: round(1e3 * t / program.arrays, 2) for name, t in programming.items()},
        "arrays": program.arrays,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
