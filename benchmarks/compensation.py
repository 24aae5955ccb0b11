"""What compensation by healthy cells leaves of each layer's output error: ``python -m benchmarks.compensation``.

For every layer of a trained model on chips with failed devices: the mean squared error of the layer's outputs against
its float weights, on input vectors of images that calibration has not seen, before compensation (pairs, signs, orders
and spares alone), with the mean error in the digital bias, and with the other devices of the columns making up too.
Beside it: the error on a chip without failed devices, whose weights are rounded to levels one by one.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import xbarc
from benchmarks.failures import CALIBRATION_IMAGES, RATES, cases
from compiler.compile import CompileOptions
from runtime.program import TileProgram
from xbarc.data.load import load_data

ROOT = Path(__file__).parent.parent
FIRST_CHIP = 500


def output_errors(program: TileProgram, vectors: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean squared error of each layer's outputs on these input vectors, over the mean square of the exact ones."""
    found = {}
    for name, layer in program.layers.items():
        x = vectors[name].astype(np.float64).reshape(-1, layer.groups, layer.rows)
        exact = np.einsum("vgk,gkn->vgn", x, program.weights[name].astype(np.float64))
        held = np.einsum("vgk,gkn->vgn", x, program.decoded_weights(name))
        shift = program.tensors.get(f"{name}/bias_shift")
        if shift is not None:
            held = held + shift.reshape(1, layer.groups, layer.cols)
        found[name] = float(((held - exact) ** 2).mean() / (exact**2).mean())
    return found


def _line(row: dict[str, Any]) -> str:
    """A row as text: relative root-mean-square errors, and by how much the mean square falls."""
    before, bias, after, good = (f"{np.sqrt(row[key]):.2%}" for key in ("before", "bias", "after", "good_cells"))
    return (
        f"{row['what']:42s} {row['layer']:18s} {row['size']:14s} before {before}, bias {bias}, all {after} "
        f"(good cells {good}); squared error lowered by {row['lowered']:.0%}, {row['beyond_bias']:.0%} beyond the bias"
    )


def main() -> None:
    """Print a row for each layer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compensation", description=__doc__)
    parser.add_argument("model", help="folder under models/")
    parser.add_argument("--data", required=True, help="image folder, or a folder of its zip files; or digits")
    parser.add_argument("--rate", choices=RATES, default="10.79l")
    parser.add_argument("--chips", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = ROOT / "models" / options.model / "model.onnx"
    inputs = xbarc.compile(model, spec="ideal").tables.inputs
    results = []
    for case in (cases()[f"{packing}-{options.rate}"] for packing in ("all", "own")):
        spec = case.spec()
        seen, unseen = (
            load_data(options.data, inputs, split="train", limit=CALIBRATION_IMAGES, seed=seed) for seed in (0, 1)
        )
        plain = CompileOptions(robust=False)
        program = xbarc.compile(model, spec=spec, calibration=seen, options=plain)
        other = xbarc.compile(model, spec=spec, calibration=unseen, options=replace(plain, seed=1))
        vectors = {name: other.calibration[f"{name}/vectors"] for name in program.layers}
        sums: dict[str, np.ndarray] = {name: np.zeros(4) for name in program.layers}
        rounding = output_errors(program, vectors)
        for seed in range(FIRST_CHIP, FIRST_CHIP + options.chips):
            chip = xbarc.Chip.sample(spec, program.arrays, seed)
            placed = [step for step in case.steps if step not in ("compensation", "bias")]
            found = [
                output_errors(xbarc.remap(program, chip, steps=steps), vectors)
                for steps in (placed, [*placed, "bias"], case.steps)
            ]
            for name in sums:
                sums[name] += np.array([one[name] for one in (*found, rounding)]) / options.chips
        for name, (before, bias, after, good) in sums.items():
            layer = program.layers[name]
            row = {
                "what": case.what,
                "layer": name,
                "size": f"{layer.groups} x {layer.rows} x {layer.cols}",
                "before": before,
                "bias": bias,
                "after": after,
                "good_cells": good,
                "lowered": 1 - after / before,
                "beyond_bias": 1 - after / bias,
            }
            results.append(row)
            if not options.json:
                print(_line(row), flush=True)
        total = np.sum([sums[name] for name in sums], axis=0)
        if not options.json:
            print(f"{case.what}: all layers together, error lowered by {1 - total[2] / total[0]:.0%}", flush=True)
    if options.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
