"""Accuracy on chips with failed devices, mapped around without retraining.

``python -m benchmarks.failures MODEL --data FOLDER [--cases NAME,..] [--chips 20] [--images 5000]`` runs the trials
that ``--trials FILE`` does not hold yet (one line a trial, so that a killed run goes on), prints the table and writes
``benchmarks/results/failures-MODEL.json``. ``--write`` puts the tables of all result files into the README.

Every chip maps the program around its own fault map. A drop is paired: the same images on the same chip without its
failed devices. Intervals are 95 % by bootstrap over chips and images. Calibration takes training images only.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import xbarc
from benchmarks.results import ROOT, write_between
from compiler.compile import CompileOptions
from compiler.steps import STEPS
from hwspec.fault_statistics import count_states
from xbarc.data.load import load_data
from xbarc.evaluation import bootstrap

RESULTS = Path(__file__).parent / "results"
CALIBRATION_IMAGES = 512
BATCH = 16
FIRST_CHIP = 1000
"""Seeds of the test chips count from here; none is used to tune anything."""

LEVELS_ONLY: dict[str, Any] = {
    "device.spread.model": "none",
    "device.spread.sigma": 0.0,
    "device.read_noise.model": "none",
    "device.read_noise.share": 0.0,
    "periphery.gain_sigma": 0.0,
    "periphery.offset_sigma": 0.0,
}
"""What makes `rram-128` a spec of 16 levels and 8-bit converters, and nothing else."""
ALL = tuple(STEPS)
OWN_LINES = tuple(step for step in ALL if step != "spares")


def stuck(hrs: float, lrs: float) -> dict[str, Any]:
    """Fields of devices that stay at high and low resistance, shares."""
    return {"failures.stuck_hrs.rate": hrs, "failures.stuck_lrs.rate": lrs}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes
    ----------
    name, what
        Key, and words for the table.
    fields
        Of the spec, beside those of its base.
    steps
        Of the mapping.
    base
        Preset; `rram-128` without its random effects where it is None.
    share
        Share of the images that it runs.
    """

    name: str
    what: str
    fields: dict[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ALL
    base: str | None = None
    share: float = 1.0

    def images(self, of: int) -> int:
        """Images that it is evaluated on, of so many."""
        return max(int(of * self.share), 10)

    def spec(self) -> xbarc.HardwareSpec:
        """The hardware."""
        if self.base is not None:
            return xbarc.HardwareSpec.preset(self.base).with_fields(self.fields)
        return xbarc.HardwareSpec.preset("rram-128").with_fields({**LEVELS_ONLY, **self.fields})


RATES = {
    "1": ("1 % (half each way)", stuck(0.005, 0.005)),
    "5": ("5 % (half each way)", stuck(0.025, 0.025)),
    "10.79h": ("9.04 % HRS, 1.75 % LRS", stuck(0.0904, 0.0175)),
    "10.79l": ("1.75 % HRS, 9.04 % LRS", stuck(0.0175, 0.0904)),
    "20": ("20 % (half each way)", stuck(0.1, 0.1)),
}
LADDER = (
    ("naive", ()),
    ("pair", ("pair",)),
    ("+ sign", ("pair", "sign")),
    ("+ columns", ("pair", "sign", "columns")),
    ("+ spares", ("pair", "sign", "columns", "spares")),
    ("+ rows and arrays", ("pair", "sign", "columns", "spares", "rows", "arrays")),
    ("+ bias", ("pair", "sign", "columns", "spares", "rows", "arrays", "bias")),
)
"""The steps between the naive mapping and all."""
PART = 0.1
"""Share of the images that the steps between, and what is printed beside them, run on."""


def cases() -> dict[str, Case]:
    """All rows by name."""
    found = []
    for key, (what, fields) in RATES.items():
        found.append(Case(f"all-{key}", f"{what}: default packing", fields))
        found.append(Case(f"own-{key}", f"{what}: no unused columns", fields, OWN_LINES))
    for key, (what, fields) in RATES.items():
        found += [Case(f"{step}-{key}", f"{what}: {step}", fields, steps, share=PART) for step, steps in LADDER]
    faulty = RATES["10.79l"][1]
    found += [
        Case("spread-wires", "1.75 / 9.04 %, with spread, read noise, offsets and 1 ohm wires", faulty, ALL,
             "rram-128-wired", PART),
        Case("lines", "1 % of devices, 1 % of word and of bit lines open", {
            **RATES["1"][1], "failures.lines.word_failed": 0.01, "failures.lines.bit_failed": 0.01,
        }, share=PART),
        Case("map-errors", "1.75 / 9.04 %, 1 % of the map missed, 1 % false", {
            **faulty, "failures.map_errors.missed": 0.01, "failures.map_errors.false": 0.01,
        }, share=PART),
        Case("hrs-20", "20 % HRS", stuck(0.2, 0.0)),
        Case("lrs-20", "20 % LRS", stuck(0.0, 0.2)),
    ]  # fmt: skip
    return {case.name: case for case in found}


@dataclass(frozen=True)
class Trial:
    """One chip: which images came out right on it, and on the same chip without failed devices.

    `model` is the SHA-256 of the model's file: trials of another one are not gone on from.
    """

    model: str
    case: str
    seed: int
    right: npt.NDArray[np.bool_]
    good: npt.NDArray[np.bool_]
    failed_devices: float
    failed_pairs: float
    map_seconds: float

    def line(self) -> str:
        """As one line of JSON."""
        bits = {key: np.packbits(getattr(self, key)).tobytes().hex() for key in ("right", "good")}
        return json.dumps({
            "model": self.model, "case": self.case, "seed": self.seed, "images": len(self.right), **bits,
            "failed_devices": self.failed_devices, "failed_pairs": self.failed_pairs, "map_seconds": self.map_seconds,
        })  # fmt: skip

    @classmethod
    def read(cls, line: str) -> "Trial":
        """From such a line."""
        told = json.loads(line)
        images = told.pop("images")
        for key in ("right", "good"):
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(told[key]), np.uint8), count=images)
            told[key] = bits.astype(bool)
        return cls(**told)


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_case(model: Path, case: Case, data: str, images: int, chips: Sequence[int]) -> Iterator[Trial]:
    """The trials of a case on chips of these seeds."""
    spec, digest = case.spec(), sha256(model)
    inputs = xbarc.compile(model, spec="ideal").tables.inputs
    train = load_data(data, inputs, split="train", limit=CALIBRATION_IMAGES)
    test = load_data(data, inputs, split="test", limit=case.images(images))
    program = xbarc.compile(model, spec=spec, calibration=train, options=CompileOptions(robust=False))
    x = test.inputs[inputs[0].name]
    known: npt.NDArray[np.bool_] | None = None

    def right(simulation: Any) -> npt.NDArray[np.bool_]:
        scores = np.concatenate([simulation(x[start : start + BATCH])[0] for start in range(0, len(x), BATCH)])
        found: npt.NDArray[np.bool_] = scores.argmax(1) == test.labels
        return found

    for seed in chips:
        chip = xbarc.Chip.sample(spec, program.arrays, seed)
        start = time.perf_counter()
        mapped = xbarc.remap(program, chip, steps=case.steps)
        seconds = time.perf_counter() - start
        if known is None or case.base is not None:  # without random effects all good chips are one
            known = right(xbarc.simulate(program, chip, seed=seed, without=("failures", "retention")))
        counted = count_states(chip.fault_map, spec.array.pairing)
        yield Trial(
            digest, case.name, seed, right(xbarc.simulate(mapped, chip, seed=seed)), known, counted.failed_share,
            counted.failed_pair_share or 0.0, seconds,
        )  # fmt: skip


def summary(case: Case, trials: Sequence[Trial]) -> dict[str, Any]:
    """Figures of a case."""
    right, good = (np.array([getattr(trial, key) for trial in trials], np.float64) for key in ("right", "good"))
    low, high = bootstrap(good - right, 0)
    of_chips = right.mean(1)
    return {
        "case": case.name,
        "what": case.what,
        "steps": list(case.steps),
        "chips": len(trials),
        "images": right.shape[1],
        "failed_devices": float(np.mean([trial.failed_devices for trial in trials])),
        "failed_pairs": float(np.mean([trial.failed_pairs for trial in trials])),
        "good": float(good.mean()),
        "accuracy": float(right.mean()),
        "drop": float((good - right).mean()),
        "drop_ci95": [low, high],
        "worst": float(of_chips.min()),
        "percentile5": float(np.quantile(of_chips, 0.05)),
        "map_seconds": float(np.median([trial.map_seconds for trial in trials])),
    }


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """The table of figures."""
    lines = [
        "| failed devices and mapping | devices, pairs | without failures | accuracy | drop, 95 % interval (points) "
        "| worst chip, 5th percentile | images |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        low, high = one["drop_ci95"]
        lines.append(
            f"| {one['what']} | {one['failed_devices']:.2%}, {one['failed_pairs']:.1%} | {one['good']:.2%} "
            f"| {one['accuracy']:.2%} | {one['drop'] * 100:.2f} ({low * 100:.2f} to {high * 100:.2f}) "
            f"| {one['worst']:.2%}, {one['percentile5']:.2%} | {one['images']} |"
        )
    return lines


def main() -> None:
    """Run what is missing, and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failures", description=__doc__)
    parser.add_argument("model", nargs="?", help="folder under models/")
    parser.add_argument("--data", help="image folder with the splits train and test, or a folder of their zip files")
    parser.add_argument("--cases", help="rows to run, comma separated; default all")
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--trials", type=Path, help="file of the trials done; default benchmarks/results/MODEL.trials")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the tables of all result files into README.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    RESULTS.mkdir(exist_ok=True)
    if options.model:
        _run(options)
    if options.write:
        lines: list[str] = []
        for path in sorted(RESULTS.glob("failures-*.json")):
            told = json.loads(path.read_text(encoding="utf-8"))
            lines += [f"**{told['model']}**, `{told['command']}`:", "", *table(told["results"]), ""]
        write_between("failures", lines[:-1])


def _run(options: argparse.Namespace) -> None:
    known = cases()
    chosen = list(known) if options.cases is None else options.cases.split(",")
    path = options.trials or RESULTS / f"{options.model}.trials"
    model = ROOT / "models" / options.model / "model.onnx"
    digest = sha256(model)
    kept = [Trial.read(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    done = [
        trial
        for trial in kept
        if trial.model == digest and len(trial.right) == known[trial.case].images(options.images)
    ]
    for name in chosen:
        case = known[name]
        had = {trial.seed for trial in done if trial.case == name}
        wanted = [seed for seed in range(FIRST_CHIP, FIRST_CHIP + options.chips) if seed not in had]
        for trial in run_case(model, case, options.data, options.images, wanted) if wanted else ():
            done.append(trial)
            with path.open("a", encoding="utf-8") as stream:
                stream.write(trial.line() + "\n")
        print(table([summary(case, [trial for trial in done if trial.case == name])])[-1], flush=True)
    ran = [name for name in known if any(trial.case == name for trial in done)]
    results = [summary(known[name], [trial for trial in done if trial.case == name]) for name in ran]
    told = {
        "model": options.model,
        "model_sha256": digest,
        "command": f"python -m benchmarks.failures {options.model} --data DATA --images {options.images}",
        "versions": {"xbarc": xbarc.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "results": results,
    }
    target = RESULTS / f"failures-{options.model}.json"
    target.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
