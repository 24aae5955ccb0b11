"""Distillation against variation-aware training with labels, in the manner of Charan et al., JXCDC 2020.

``python -m studies.charan2020 --data MNIST`` takes LeNet-5 on 16-level devices with a spread of 10 % and 10.79 % failed
devices (1.75 and 9.04 % at low and high resistance, both ways round), and fine-tunes it for chips never seen: with
labels, by distillation from the original model without labels, and with both. Accuracies are those of emitted programs
on chips that no training saw; what is recovered is the share of the loss by failures and spread that tuning takes back.
Everything done is kept in ``--out`` and not done again.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import xbarc
from compiler.compile import CompileOptions
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from studies.trials import Results, measure, tell
from xbarc.data.load import Dataset, load_data

MODEL = Path(__file__).parents[1] / "models" / "lenet5-mnist" / "model.onnx"
PRESETS = {"9.04 % HRS, 1.75 % LRS": "rram-128-faulty", "1.75 % HRS, 9.04 % LRS": "rram-128-faulty-lrs"}
SPREAD: dict[str, Any] = {"device.spread.model": "relative", "device.spread.share": 0.1, "device.spread.sigma": 0.0}
WAYS: dict[str, float] = {"labels": 0.0, "distillation": 1.0, "both": 0.5}
"""Share of the loss that the original model gives."""


@dataclass(frozen=True)
class Study:
    """Where the data are and the results go, and how much is done.

    Attributes
    ----------
    data
        MNIST as an image folder with the splits train and test.
    out
        Folder of programs and results.
    epochs
        Of each tuning.
    chips, images
        That each program is measured on: chips, and images of each.
    """

    data: str
    out: Path
    epochs: int
    chips: int
    images: int

    def run(self) -> None:
        """Everything that is missing."""
        results = Results(self.out / "results.json")
        train, test = self._samples("train"), self._samples("test")
        for told, preset in PRESETS.items():
            spec = HardwareSpec.preset(preset).with_fields(SPREAD)
            few = train.take(np.random.default_rng(0).permutation(len(train))[:512])
            program = xbarc.compile(MODEL, spec=spec, calibration=few, options=CompileOptions(robust=False))
            results.get(f"{told}, fault-free", lambda: self._measured(program, test, sampled=False))  # noqa: B023
            results.get(f"{told}, before", lambda: self._measured(program, test))  # noqa: B023
            for way, share in WAYS.items():
                results.get(f"{told}, {way}", lambda: self._tuned(program, train, test, share))  # noqa: B023
                print(told, way, results.found[f"{told}, {way}"]["mean"], flush=True)

    def _tuned(self, program: TileProgram, train: Dataset, test: Dataset, share: float) -> dict[str, Any]:
        options = xbarc.TuneOptions(
            epochs=self.epochs, batch=128, learning_rate=1e-3, average=0.99, distill=share, clip=2.5, validation=2000
        )
        learnt = train if share < 1 else Dataset(train.inputs, None, None, train.axes, train.fixed_batch)
        found = xbarc.finetune(program, learnt, options=options, progress=tell)
        return self._measured(found.program, test)

    def _measured(self, program: TileProgram, test: Dataset, *, sampled: bool = True) -> dict[str, Any]:
        def chip(seed: int) -> xbarc.Chip | None:
            return xbarc.Chip.sample(program.spec, program.arrays, seed) if sampled else None

        return measure(program, chip, self.chips, test, "cpu", self.images)

    def _samples(self, split: str) -> Dataset:
        program = xbarc.compile(MODEL, spec="ideal")
        return load_data(self.data, program.tables.inputs, split=split)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.charan2020", description=__doc__)
    parser.add_argument("--data", required=True, help="MNIST: image folder with the splits train and test")
    parser.add_argument("--out", type=Path, default=Path("charan2020"), help="folder of results")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--images", type=int, default=250, help="of each chip")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    Study(options.data, options.out, options.epochs, options.chips, options.images).run()


if __name__ == "__main__":
    main()
