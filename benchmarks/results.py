"""The tables of the README: ``python -m benchmarks.results [--accuracy --mnist FOLDER] [--write]``."""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

import xbarc
from benchmarks.real_models import REAL_MODELS
from benchmarks.resnet18 import build_resnet18
from compiler.compile import CompileOptions
from runtime.physics.spread import DAY
from xbarc.data.load import load_data

ROOT = Path(__file__).parent.parent
Feeds = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def _models() -> Iterator[tuple[str, str | Path | onnx.ModelProto, Shapes, Feeds]]:
    generator = np.random.default_rng(0)
    yield "digits-cnn", ROOT / "models/digits-cnn/model.onnx", {}, {"image": generator.random((4, 1, 8, 8), np.float32)}
    yield (
        "lenet5-mnist",
        ROOT / "models/lenet5-mnist/model.onnx",
        {},
        {"image": generator.random((4, 1, 28, 28), np.float32)},
    )
    for model in REAL_MODELS.values():
        yield f"{model.package}: {Path(model.file).stem}", model.path, model.input_shapes, model.feeds()
    image = generator.standard_normal((1, 3, 64, 64)).astype(np.float32)
    yield "ResNet-18, random weights, 64x64", build_resnet18(size=64), {}, {"image": image}


CHIPS = 8
SETTINGS = (
    ("`rram-128`", "rram-128", 0, True),
    ("`rram-128-wired`, wires not undone", "rram-128-wired", 0, False),
    ("`rram-128-wired`", "rram-128-wired", 0, True),
    ("`kim2020-2t2r`", "kim2020-2t2r", 0, True),
    ("`kim2020-1t1r`", "kim2020-1t1r", 0, True),
    ("`cao2022`", "cao2022", 0, True),
    ("`poolformer2023`", "poolformer2023", 0, True),
    ("`wan2022`", "wan2022", 0, True),
    ("`wan2022` after a day", "wan2022", 1, True),
    ("`cmo-hfox` after a day", "cmo-hfox", 1, True),
    ("`pcm` after a day", "pcm", 1, True),
    ("`isaac`", "isaac", 0, True),
)
"""What the table of accuracies is made of: its label, the spec, days since programming, whether wires are undone."""


def mapping_table() -> list[str]:
    """What is mapped, what it takes, and whether it verifies."""
    lines = ["| model | weights | mapped | tiles | arrays | *ideal* | *rram-128* |", "|---|---|---|---|---|---|---|"]
    for name, model, shapes, feeds in _models():
        ideal = xbarc.compile(model, spec="ideal", calibration=feeds, input_shapes=shapes)
        real = xbarc.compile(model, spec="rram-128", calibration=feeds, input_shapes=shapes)
        checks = [xbarc.verify(program, model, feeds) for program in (ideal, real)]
        totals = real.report.totals
        mapped = f"{totals.mapped_macs / totals.constant_weight_macs:.1%}, {totals.mapped_macs / totals.macs:.1%}"
        weights = sum(layer.groups * layer.rows * layer.cols for layer in real.report.layers)
        error = f"{checks[0].max_error:.1e}" if checks[0].passed else "FAILED"
        holds = f"{len(real.report.layers)} layers hold" if checks[1].passed else "FAILED"
        row = f"| {name} | {weights:,} | {mapped} | {totals.tiles:,} | {totals.arrays:,} | {error} | {holds} |"
        lines.append(row)
        print(row, flush=True)
    return lines


def accuracy_table(mnist: str | None) -> list[str]:
    """Accuracy of the trained models, in floating point and as chips of several technologies, without retraining."""
    lines = [
        "| model, test images | spec | float | ideal chip | sampled chips | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    sets = {"digits-cnn": "digits", **({"lenet5-mnist": mnist} if mnist else {})}
    for name, data in sets.items():
        path = ROOT / "models" / name / "model.onnx"
        inputs = xbarc.compile(path, spec="ideal").tables.inputs
        train, test = (load_data(data, inputs, split=split, limit=500) for split in ("train", "test"))
        for label, spec, days, predistort in SETTINGS:
            options = CompileOptions(predistort=predistort)
            program = xbarc.compile(path, spec=spec, calibration=train, options=options)
            found = xbarc.evaluate(program, test, chips=CHIPS, time=days * DAY)
            low, high = found.ci95
            row = (
                f"| {name}, {found.samples} | {label} | {found.float_:.1%} | {found.ideal:.1%} "
                f"| {found.mean:.1%} ± {found.std:.1%} | {low:.1%} to {high:.1%} |"
            )
            lines.append(row)
            print(row, flush=True)
    return lines


def write_between(name: str, lines: list[str], path: Path = ROOT / "README.md") -> None:
    """Replace what stands in a page (the README) between the marks of this name."""
    before, rest = path.read_text(encoding="utf-8").split(f"<!-- {name} -->\n", 1)
    _, after = rest.split(f"<!-- end of {name} -->", 1)
    text = before + f"<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- end of {name} -->" + after
    with tempfile.NamedTemporaryFile("w", dir=ROOT, delete=False, encoding="utf-8") as stream:
        stream.write(text)
    Path(stream.name).replace(path)


def main() -> None:
    """Print a table, and write it into the README when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accuracy", action="store_true", help="the table of accuracies instead")
    parser.add_argument("--mnist", help="folder with train.zip and test.zip of MNIST as image folders")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    options = parser.parse_args()
    lines = accuracy_table(options.mnist) if options.accuracy else mapping_table()
    if options.write:
        write_between("accuracy" if options.accuracy else "results", lines)


if __name__ == "__main__":
    main()
