"""Time of the exact matrices of arrays with resistive wires: ``python -m benchmarks.wires``."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import scipy
import torch
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu

from runtime.physics import wires_torch
from runtime.physics.wires import approximate_matrix, approximation_error, effective_matrix, kernels

Float64 = npt.NDArray[np.float64]
SIZE = 128
OHMS = 1.0


def tiles(count: int) -> Float64:
    """Arrays of 1 to 100 uS with a mean of 23 uS."""
    generator = np.random.default_rng(0)
    return generator.lognormal(np.log(15e-6), 1.0, (count, SIZE, SIZE)).clip(1e-6, 1e-4)


def by_superlu(G: Float64) -> Float64:
    """The matrix of one array by SciPy's SuperLU, from the conductance matrix of its ``2 M N`` nodes."""
    m, n = G.shape
    u = np.arange(m * n).reshape(m, n)
    v = u + m * n
    wire = 1 / OHMS
    ends = np.concatenate([u[:, 0], v[-1]])
    edges: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.ArrayLike]] = [
        (u, v, G),
        (u[:, 1:], u[:, :-1], wire),
        (v[1:], v[:-1], wire),
    ]
    rows, cols, data = [ends], [ends], [np.full(ends.size, wire)]
    for a, b, siemens in edges:
        rows += [a.ravel(), b.ravel(), a.ravel(), b.ravel()]
        cols += [a.ravel(), b.ravel(), b.ravel(), a.ravel()]
        values = np.broadcast_to(siemens, a.shape).ravel()
        data += [values, values, -values, -values]
    where = (np.concatenate(rows), np.concatenate(cols))
    matrix = coo_array((np.concatenate(data), where), (2 * m * n, 2 * m * n)).tocsc()
    drive = np.zeros((2 * m * n, m))
    drive[u[:, 0], range(m)] = wire
    solved: Float64 = splu(matrix).solve(drive)[v[-1]] * wire
    return solved


def seconds(call: Callable[[], object], times: int) -> list[float]:
    """Wall-clock seconds of each of so many calls."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    """Print milliseconds an array, ratios and errors, as JSON."""
    hundred, many = tiles(100), tiles(500)
    start = time.perf_counter()
    effective_matrix(hundred[:1], OHMS, OHMS)
    first = time.perf_counter() - start
    march = seconds(lambda: effective_matrix(hundred, OHMS, OHMS, threads=1), 5)
    superlu = seconds(lambda: by_superlu(hundred[0]), 3)
    exact = effective_matrix(hundred[0], OHMS, OHMS)
    reference = by_superlu(hundred[0])
    threads = {count: min(seconds(lambda: effective_matrix(many, OHMS, OHMS, threads=count), 3)) for count in (1, 2)}  # noqa: B023
    G = torch.tensor(hundred[:20], requires_grad=True)
    wires_torch.effective_matrix(G[:1], OHMS, OHMS).sum().backward()  # type: ignore[no-untyped-call]
    W = wires_torch.effective_matrix(G, OHMS, OHMS)
    gradient = seconds(lambda: torch.autograd.grad(W.sum(), G, retain_graph=True), 3)
    inputs = np.random.default_rng(1).random((256, SIZE))
    closed = approximate_matrix(hundred[0], OHMS, OHMS)
    per_tile = min(march) / len(hundred)
    figures = {
        "array": f"{SIZE}x{SIZE}, {OHMS:g} ohm a segment",
        "compiled": kernels() is not None,
        "ms_per_tile": round(1e3 * per_tile, 3),
        "ms_per_tile_median_of_runs": round(1e3 * statistics.median(march) / len(hundred), 3),
        "superlu_ms": round(1e3 * min(superlu), 1),
        "superlu_ratio": round(min(superlu) / per_tile, 1),
        "error_against_superlu": float(np.abs(exact - reference).max() / np.abs(reference).max()),
        "seconds_500_tiles": {f"{count} threads": round(value, 3) for count, value in threads.items()},
        "speedup_of_2_threads": round(threads[1] / threads[2], 2),
        "gradient_ms_per_tile_all_threads": round(1e3 * min(gradient) / len(G), 2),
        "closed_form_ms": round(1e3 * min(seconds(lambda: approximate_matrix(hundred[0], OHMS, OHMS), 5)), 3),
        "closed_form_error": {
            "inputs of one sign": float(f"{approximation_error(closed, exact, inputs):.3g}"),
            "inputs of both signs": float(f"{approximation_error(closed, exact):.3g}"),
        },
        "first_call_s": round(first, 2),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
