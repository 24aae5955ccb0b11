"""Time of mapping a network of ResNet-18's size around the failed devices of a chip:
``python -m benchmarks.compile_faulty [--spec NAME] [--json]``."""

import argparse
import json
import os
import platform
import resource
from typing import Any

from benchmarks.resnet18 import build_resnet18
from compiler.compile import CompileOptions, remap_program, run_compile
from compiler.compile import finish as finish_compile
from compiler.frontend import load_model
from hwspec.chip import Chip
from hwspec.spec import HardwareSpec

PASSES = ("place", "assign", "predistort", "ranges")
"""Those that mapping for a chip runs again."""


def measure(spec_name: str, size: int) -> dict[str, Any]:
    """Compile for any chip, then map again for a sampled one with 1 % of its arrays to spare."""
    spec = HardwareSpec.resolve(spec_name)
    program = finish_compile(run_compile(load_model(build_resnet18(size=size)), spec, CompileOptions(), None))
    per_site = spec.array.arrays_per_site
    spare = program.arrays // 100 // per_site * per_site
    chip = Chip.sample(spec, program.arrays + spare, seed=1)
    mapped = remap_program(program, CompileOptions(), chip)
    seconds = {name: mapped.report.seconds[name] for name in PASSES if name in mapped.report.seconds}
    failures = [layer.failures for layer in mapped.report.layers if layer.failures]
    tiles = len(mapped.tables.tiles)
    return {
        "spec": spec.name,
        "tiles": tiles,
        "failed_devices": sum(one.failed for one in failures),
        "failed_pairs": sum(one.failed_pairs for one in failures),
        "passes": {name: round(value, 2) for name, value in seconds.items()},
        "seconds_a_tile": round(sum(seconds.values()) / tiles, 4),
        "output_errors": {
            which: round(max(one.steps[at].output_error for one in failures), 4)
            for which, at in (("in_order", 0), ("mapped", -1))
        }
        if failures
        else {},
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def main() -> None:
    """Print the tiles, the seconds of each pass, and the seconds a tile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", default="rram-128-faulty", help="preset or file of a spec with failed devices")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the random images it calibrates on")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args()
    found = measure(options.spec, options.size)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['spec']}: {found['tiles']} tiles, {found['failed_pairs']} pairs with a failed device")
    for name, seconds in found["passes"].items():
        print(f"  {name:<12} {seconds:8.2f} s")
    print(f"  {found['seconds_a_tile']:.4f} s a tile, {found['peak_gb']:.2f} GB at most, {found['cores']} cores")


if __name__ == "__main__":
    main()
