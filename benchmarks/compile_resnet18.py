"""Time and memory of compiling and reporting ResNet-18's size: ``python -m benchmarks.compile_resnet18``."""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

from benchmarks.resnet18 import build_resnet18


def main() -> None:
    """Compile in a process of its own and print its time, peak memory and what it mapped, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        model, program = Path(folder, "resnet18.onnx"), Path(folder, "resnet18.xbar")
        onnx.save(build_resnet18(), model)
        command = [sys.executable, "-m", "xbarc", "compile", str(model), "-o", str(program), "--json"]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        report = json.loads(done.stdout)
        size = program.stat().st_size
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        page = Path(folder, "report.html")
        start = time.perf_counter()
        told = [sys.executable, "-m", "xbarc", "report", str(program), "--html", str(page), "--json"]
        subprocess.run(told, check=True, capture_output=True)
        report_seconds = time.perf_counter() - start
        page_size = page.stat().st_size
    figures = {
        "seconds": round(seconds, 2),
        "peak_gb": round(peak * 1024 / 1e9, 3),
        "program_mb": round(size / 1e6, 1),
        "weights": sum(layer["groups"] * layer["rows"] * layer["cols"] for layer in report["layers"]),
        "tiles": report["totals"]["tiles"],
        "arrays": report["totals"]["arrays"],
        "passes": {name: round(value, 2) for name, value in report["seconds"].items()},
        "report_seconds": round(report_seconds, 2),
        "page_mb": round(page_size / 1e6, 2),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
