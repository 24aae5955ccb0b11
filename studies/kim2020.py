"""Defects of ReRAM cells and defect-aware training, after Kim et al., ACM JETC 16(4) 2020 (arXiv 2002.04605).

``python -m studies.kim2020 --data CIFAR10`` tunes ResNet-20 from the float checkpoint for crossbars of 4-bit weights: a
baseline without defects for each structure of a cell, and one defect-aware model for each type of defect, on a range
of rates. Each is measured as the emitted program on chips that no training saw, as it is and with columns re-estimated.
``--case NAME`` does some cases only; everything done is kept in ``--out`` and not done again. `studies.pages` puts
tables and curves into the documentation.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

import xbarc
from compiler.compile import CompileOptions
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from studies.defects import defective_chip
from studies.trials import FIRST_CHIP, Results, each_way, measure, tell
from xbarc.data.load import Dataset, load_data

MODEL = Path(__file__).parents[1] / "models" / "resnet20-cifar10" / "model.onnx"
RATES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2)
CHIPS, IMAGES = 20, 250
CALIBRATION_IMAGES = 512
AUGMENTATION = xbarc.Augmentation(crop=4, flip=True)

HARDWARE = HardwareSpec.preset("kim2020-2t2r")

Structure = Literal["pair", "zero", "single"]
Chips = Callable[[int, int], xbarc.Chip]
"""Gives the chip of a seed, with so many arrays."""
FIELDS: dict[Structure, dict[str, Any]] = {
    "pair": {"failures.failed_pair": "as_is", "failures.allow_unbounded": True},
    "zero": {"failures.failed_pair": "zero"},
    "single": {"array.pairing": "reference", "array.cell": "1T1R", "failures.failed_pair": "as_is"}
    | {"failures.isolation": "none", "failures.allow_unbounded": True},
}
"""Of a pair of devices, a pair that a failure turns into 0, and a single device against a reference."""
NONE: dict[str, Any] = {"failures.unformed.rate": 0.0, "failures.overformed.rate": 0.0}
WAYS = ("baseline", "baseline, re-estimated", "aware", "aware, re-estimated")
"""What a case is measured with: its program, as it is or with columns re-estimated on each chip by training images."""
REESTIMATION_IMAGES = 256
OVERFORMED: dict[str, dict[str, Any]] = {
    "at-max": {"failures.overformed.model": "fixed", "failures.overformed.deviation": 0.0},
    "at-1.25": {
        "failures.overformed.model": "fixed",
        "failures.overformed.deviation": 0.0,
        "failures.overformed.conductance": 125e-6,
    },
    "to-4": {
        "failures.overformed.model": "uniform",
        "failures.overformed.deviation": 0.0,
        "failures.overformed.upper": 400e-6,
    },
}
"""What over-formed devices conduct: g_max, 1.25 g_max, evenly 1 to 4 g_max."""


@dataclass(frozen=True)
class Case:
    """A type of defect.

    Attributes
    ----------
    what
        In a few words.
    structure
        Of the cells.
    fields
        Of the spec, that describe what failed devices conduct.
    state
        Of failed devices; None for defects of weights.
    ones, deviation
        Of defects of weights (`studies.defects`).
    highest, power
        Rate in training, at most (beyond it a network tells nothing to learn from), and the power of an even draw that
        it is multiplied by: high ones draw low rates more often.
    clip
        Full scale of each column in standard deviations of its weights. A defect at full scale is as large as that.
    learning_rate
        Of 64 images a step.
    low
        Rate at most in a second training at half the learning rate, evenly drawn and squared; None leaves it out.
    trained_as
        The case whose model this one is measured with; None is its own.
    targets
        Rates at which training is to halve the drop, where that is more than a point.
    """

    what: str
    structure: Structure
    fields: dict[str, Any]
    state: str | None = None
    ones: bool = False
    deviation: float = 0.0
    highest: float = 0.1
    power: int = 4
    clip: float = 2.5
    learning_rate: float = 4e-4
    low: float | None = None
    trained_as: str | None = None
    targets: tuple[float, ...] = ()

    def spec(self, rate: float) -> HardwareSpec:
        """The hardware with this rate of failures a device."""
        fields = {**FIELDS[self.structure], **NONE, **self.fields}
        if self.state is not None:
            fields[f"failures.{self.state}.rate"] = rate
        return HARDWARE.with_fields(fields)

    def chip(self, rate: float, seed: int, arrays: int) -> xbarc.Chip:
        """The chip of a seed: a share of its devices has failed, or of its weights."""
        spec = self.spec(rate)
        if self.state is not None:
            return xbarc.Chip.sample(spec, arrays, seed)
        return defective_chip(spec, arrays, seed, rate, ones=self.ones, deviation=self.deviation)

    def drawn(self, seed: int, arrays: int) -> xbarc.Chip:
        """A chip to train on: of any rate up to the highest, low ones more often."""
        share = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0x4A7E,))).random()
        return self.chip(self.highest * float(share) ** self.power, seed, arrays)

    def settled(self) -> "Case":
        """The case as it is trained the second time."""
        assert self.low is not None
        return replace(self, highest=self.low, power=2, learning_rate=self.learning_rate / 2)


LARGE: dict[str, Any] = {"highest": 0.08, "clip": 1.5, "learning_rate": 1e-3}
"""Of training for defects as large as the full scale."""


def _overformed() -> dict[str, Case]:
    found = {}
    structures: tuple[tuple[Structure, str], ...] = (("single", "single device"), ("pair", "pair"))
    for structure, told in structures:
        for name, fields in OVERFORMED.items():
            what = {"at-max": "g_max", "at-1.25": "1.25 g_max", "to-4": "1 to 4 g_max"}[name]
            highest = (0.02 if name == "to-4" else 0.08) / (2 if structure == "pair" else 1)  # of two, either spoils it
            found[f"overformed-{structure}-{name}"] = Case(
                f"{told}, over-formed at {what}", structure, fields, "overformed", **LARGE | {"highest": highest}
            )
    return found


CASES: dict[str, Case] = {
    "unformed-single": Case("single device, unformed", "single", {}, "unformed", **LARGE),
    "unformed-pair": Case("pair, unformed", "pair", {}, "unformed"),
    "zero": Case("pair that a failed device turns into 0", "zero", {}, "unformed"),
    **_overformed(),
    "weight-0": Case("0-defects of weights", "pair", {}, low=0.025, targets=RATES[1:]),
    "weight-0-deviating": Case(
        "0-defects of weights, deviation 0.05", "pair", {}, deviation=0.05, trained_as="weight-0", targets=RATES[1:]
    ),
    "weight-1": Case("±1-defects of weights", "pair", {}, ones=True, low=0.02, targets=RATES[1:4], **LARGE),
    "weight-1-deviating": Case(
        "±1-defects of weights, deviation 0.05",
        "pair",
        {},
        ones=True,
        deviation=0.05,
        trained_as="weight-1",
        targets=RATES[1:4],
    ),
}
BASELINES = {
    "baseline-pair": Case("pair", "pair", {}, learning_rate=1e-3),
    "baseline-single": Case("single device", "single", {}, learning_rate=1e-3),
}

KNOWN: dict[str, dict[str, Any]] = {
    "known-5": {"failures.stuck_hrs.rate": 0.025, "failures.stuck_lrs.rate": 0.025},
    "known-10.79-hrs": {"failures.stuck_hrs.rate": 0.0904, "failures.stuck_lrs.rate": 0.0175},
    "known-10.79-lrs": {"failures.stuck_hrs.rate": 0.0175, "failures.stuck_lrs.rate": 0.0904},
}
"""Failed devices of pairs whose map is known: 5 % half each way, and 10.79 % in both polarities."""
KNOWN_WAYS = ("fault-free", "naive", "mapped", "tuned")
TUNED_IMAGES = 6400
"""Images that a mapped program is tuned on, once each."""


@dataclass(frozen=True)
class Study:
    """Where the data are and the results go, and how much is done.

    Attributes
    ----------
    data
        CIFAR-10 as an image folder with the splits train and test.
    out
        Folder of programs and results.
    device
        Of torch.
    epochs, batch
        Of each tuning, and images a step.
    chips, images
        That each program is measured on: chips, and images of each.
    """

    data: str
    out: Path
    device: str
    epochs: int
    batch: int
    chips: int
    images: int

    def tuned(self, name: str, case: Case, *, defects: bool = True) -> TileProgram:
        """The program of a case, tuned; without `defects` as if no device failed."""
        path = self.out / f"{name}.xbar"
        if path.exists():
            return xbarc.load(path)
        train = self.samples("train")
        if case.low is None:
            chips = case.drawn if defects else None
            return self._tuned(name, case, self._compiled(case, train), chips, train, self.epochs, case.clip)
        first = self.tuned(f"{name}-first", replace(case, low=None))
        settled = case.settled()
        return self._tuned(name, settled, first, settled.drawn, train, math.ceil(self.epochs / 2), None)

    def _compiled(self, case: Case, train: Dataset) -> TileProgram:
        few = train.take(np.random.default_rng(0).permutation(len(train))[:CALIBRATION_IMAGES])
        options = CompileOptions(predistort=False, robust=False)
        return xbarc.compile(MODEL, spec=case.spec(0.0), calibration=few, options=options)

    def _tuned(
        self,
        name: str,
        case: Case,
        program: TileProgram,
        chips: Chips | None,
        train: Dataset,
        epochs: int,
        clip: float | None,
    ) -> TileProgram:
        """A program tuned, and kept under a name."""
        began = time.time()
        result = xbarc.finetune(
            program,
            train,
            teacher=MODEL,
            chips=None if chips is None else lambda seed: chips(seed, program.arrays),
            without=["read_noise", *(["failures"] if chips is None else [])],  # noise takes half of the time
            options=xbarc.TuneOptions(
                epochs=epochs,
                batch=self.batch,
                learning_rate=case.learning_rate * math.sqrt(self.batch / 64),
                average=0.998 ** (self.batch / 64),
                clip=clip,
                distill=0.5,
                validation=1000,
                validation_chips=2,
                augmentation=AUGMENTATION,
            ),
            device=self.device,
            checkpoint=self.out / f"{name}.checkpoint",
            metrics=self.out / f"{name}.csv",
            progress=lambda told, done, total: tell(f"{name}: {told}", done, total),
        )
        print(f"{name}: {time.time() - began:.0f} s of training", flush=True)
        onnx.save(result.model, self.out / f"{name}.onnx")
        result.program.save(self.out / f"{name}.xbar")
        return result.program

    def samples(self, split: str) -> Dataset:
        """Images of a split."""
        program = xbarc.compile(MODEL, spec="ideal")
        return load_data(self.data, program.tables.inputs, split=split)

    def baseline(self, name: str) -> None:
        """Tune a baseline, and measure it without defects."""
        program = self.tuned(name, BASELINES[name], defects=False)
        results = Results(self.out / f"{name}.json")
        test = self.samples("test")
        results.get("0", lambda: self._measured(BASELINES[name], program, 0.0, test, None))

    def case(self, name: str) -> None:
        """Tune for a type of defect, and measure it and its baseline at every rate."""
        case = CASES[name]
        base = "baseline-single" if case.structure == "single" else "baseline-pair"
        trained_as = case.trained_as or name
        aware = self.tuned(trained_as, CASES[trained_as])
        results, test = Results(self.out / f"{name}.json"), self.samples("test")
        while not (self.out / f"{base}.xbar").exists():
            time.sleep(1.0)  # another process makes it
        baseline = xbarc.load(self.out / f"{base}.xbar")
        train = self.samples("train")
        few = train.take(np.random.default_rng(1).permutation(len(train))[:REESTIMATION_IMAGES])
        for told in WAYS:
            program = aware if told.startswith("aware") else baseline
            typical = few if told.endswith("re-estimated") else None
            for rate in (0.0, *reversed(RATES)):
                results.get(f"{told} {rate:g}", lambda: self._measured(case, program, rate, test, typical))  # noqa: B023 (called at once)

    def known(self, name: str) -> None:
        """Map the baseline for chips whose failures are known, tune it there, and measure both."""
        while not (self.out / "baseline-pair.onnx").exists():
            time.sleep(1.0)  # another process makes it
        plain = xbarc.load(self.out / "baseline-pair.xbar")
        spec = BASELINES["baseline-pair"].spec(0.0).with_fields(KNOWN[name])
        program = plain.on(spec)
        results, test, train = Results(self.out / f"{name}.json"), self.samples("test"), self.samples("train")
        for seed in range(FIRST_CHIP, FIRST_CHIP + self.chips):
            results.get(str(seed), lambda: self._known(program, seed, train, test))  # noqa: B023 (called at once)
            print(name, seed, {way: results.found[str(seed)][way] for way in KNOWN_WAYS}, flush=True)

    def _known(self, program: TileProgram, seed: int, train: Dataset, test: Dataset) -> dict[str, Any]:
        chip = xbarc.Chip.sample(program.spec, program.arrays, seed)
        mapped = xbarc.remap(program, chip, predistort=False)
        options = xbarc.TuneOptions(epochs=1, batch=128, learning_rate=1e-4, validation=0, augmentation=AUGMENTATION)
        few = train.take(np.random.default_rng(seed).permutation(len(train))[:TUNED_IMAGES])
        tuned = xbarc.finetune(mapped, few, "aware", chip=chip, options=options, device=self.device).program
        programs = {"naive": program, "mapped": mapped, "tuned": tuned}
        return each_way(programs, chip, test, seed, self.device, self.images)

    def _measured(
        self, case: Case, program: TileProgram, rate: float, test: Dataset, typical: Dataset | None
    ) -> dict[str, Any]:
        def chip(seed: int) -> xbarc.Chip:
            return case.chip(rate, seed, program.arrays) if rate else _good(program, seed)

        return measure(program, chip, self.chips, test, self.device, self.images, reestimate=typical)


def _good(program: TileProgram, seed: int) -> xbarc.Chip:
    return xbarc.Chip.sample(program.spec, program.arrays, seed)


def main() -> None:
    """Run some cases, or all."""
    parser = argparse.ArgumentParser(prog="python -m studies.kim2020", description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10: image folder with the splits train and test")
    parser.add_argument(
        "--case", action="append", choices=[*BASELINES, *CASES, *KNOWN], help="repeat for more (default: all)"
    )
    parser.add_argument("--out", type=Path, default=Path("kim2020"), help="folder of programs and results")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="images a step; few fill no GPU")
    parser.add_argument("--chips", type=int, default=CHIPS)
    parser.add_argument("--images", type=int, default=IMAGES, help="of each chip")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    study = Study(
        options.data, options.out, options.device, options.epochs, options.batch, options.chips, options.images
    )
    for name in options.case or [*BASELINES, *CASES, *KNOWN]:
        run = study.baseline if name in BASELINES else study.case if name in CASES else study.known
        run(name)


if __name__ == "__main__":
    main()
