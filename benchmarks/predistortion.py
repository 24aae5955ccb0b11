"""What pre-distortion of the conductance targets undoes of the wires: ``python -m benchmarks.predistortion``."""

import json
import os
import platform
import statistics
import time

import numpy as np
import numpy.typing as npt

from runtime.physics.predistortion import predistort
from runtime.physics.wires import effective_matrix, kernels

Float64 = npt.NDArray[np.float64]
SIZE = 128
OHMS = 1.0
G_MIN, G_MAX = 1e-6, 1e-4
LEVELS = np.linspace(G_MIN, G_MAX, 16)
VOLTS = 0.2
WEIGHTS = ("normal", "uniform", "laplace", "sparse")
INPUTS = ("non-negative", "half zero", "signed")


def weights(kind: str, generator: np.random.Generator) -> Float64:
    """Weights of one tile, in [-1, 1]."""
    shape = (SIZE, SIZE)
    if kind == "uniform":
        return generator.uniform(-1, 1, shape)
    if kind == "laplace":
        w = generator.laplace(size=shape)
        return np.asarray(w / np.abs(w).max(0))
    w = (0.4 * generator.standard_normal(shape)).clip(-1, 1)
    return np.where(generator.random(shape) < 0.2, w, 0.0) if kind == "sparse" else w


def inputs(kind: str, generator: np.random.Generator, count: int) -> Float64:
    """Word-line voltages: uniform from 0, the positive part of a normal, or a normal, clipped at three sigma."""
    if kind == "non-negative":
        return VOLTS * generator.random((count, SIZE))
    low = 0 if kind == "half zero" else -1
    return np.asarray(VOLTS * (generator.standard_normal((count, SIZE)) / 3).clip(low, 1))


def effective(plus: Float64, minus: Float64) -> tuple[Float64, Float64]:
    """March a tile whose pairs lie on two arrays, on one thread."""
    W = effective_matrix(np.stack([plus, minus]), OHMS, OHMS, threads=1).swapaxes(1, 2)
    return W[0], W[1]


def off(D: Float64, target: Float64, volts: Float64) -> float:
    """Relative error of the products."""
    return float(np.linalg.norm(volts @ (D - target)) / np.linalg.norm(volts @ target))


def measure(weight: str, drive: str, levels: Float64 | None, vectors: int, seed: int) -> dict[str, float]:
    """One tile: errors on 1000 fresh inputs, percent of the wires' error gone, milliseconds."""
    generator = np.random.default_rng(seed)
    w = weights(weight, generator)
    if levels is not None:
        w = np.rint(w * (len(levels) - 1)) / (len(levels) - 1)
    target = w * (G_MAX - G_MIN)
    plus, minus = G_MIN + target.clip(0), G_MIN + (-target).clip(0)
    if levels is not None:
        plus, minus = (levels[np.abs(a[..., np.newaxis] - levels).argmin(-1)] for a in (plus, minus))
    calibration, fresh = inputs(drive, generator, vectors), inputs(drive, generator, 1000)
    start = time.perf_counter()
    found = predistort(plus, minus, effective, calibration, G_MIN, G_MAX, levels)
    took = time.perf_counter() - start
    before, after = (np.subtract(*effective(*pair)) for pair in ((plus, minus), (found.plus, found.minus)))
    wires, error = off(before, target, fresh), off(found.gain * after, target, fresh)
    return {
        "error_wires": wires,
        "gone_by_gain": 100 * (1 - found.error_gain_only / found.error_before),
        "error": error,
        "gone_percent": 100 * (1 - error / wires),
        "headroom_min": float(found.headroom.min()),
        "mean_conductance_ratio": float((found.plus + found.minus).mean() / (plus + minus).mean()),
        "ms": 1e3 * took,
    }


def main() -> None:
    """Print all combinations of weights, inputs and devices, as JSON."""
    measure("normal", "signed", None, 8, 0)
    figures = []
    for devices, levels in (("continuous", None), ("16 levels", LEVELS)):
        for weight in WEIGHTS:
            for drive in INPUTS:
                for vectors in (64, 256):
                    runs = [measure(weight, drive, levels, vectors, seed) for seed in range(3)]
                    figure = {key: float(f"{statistics.mean(r[key] for r in runs):.4g}") for key in runs[0]}
                    worst = round(min(r["gone_percent"] for r in runs), 2)
                    case = {"devices": devices, "weights": weight, "inputs": drive, "calibration_vectors": vectors}
                    figures.append(case | figure | {"gone_percent_worst": worst})
    found = {
        "tile": f"{SIZE}x{SIZE}, pairs on two arrays, {OHMS:g} ohm a segment, 1 to 100 uS, fresh inputs, 3 tiles each",
        "compiled": kernels() is not None,
        "cases": figures,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
