"""Retraining around failed devices on MNIST, after Liu et al., DAC 2017.

``python -m studies.liu2017 --data MNIST`` trains a network of one layer (784 to 10) and one of three, maps each onto
chips with 10 and 20 % failed devices (stuck at the largest conductance, or shorted beyond range: 300 to 1200 uS where
devices reach 1 to 300), and measures the naive mapping, mapping around failures, that with fine-tuning on the known
map, and mapping with eight tiles that hold each block. Accuracies are those of emitted programs, as shares of the same
program without failures. Everything done is kept in ``--out`` and not done again.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import xbarc
from compiler.compile import CompileOptions
from hwspec.spec import HardwareSpec
from models.export import export_onnx
from runtime.program import TileProgram
from studies.trials import FIRST_CHIP, Results, each_way
from xbarc.data.load import Dataset, load_data

NETWORKS: dict[str, tuple[int, ...]] = {"one layer": (784, 10), "three layers": (784, 256, 128, 10)}
RATES = (0.1, 0.2)
FAILURES: dict[str, dict[str, Any]] = {
    "at g_max": {"failures.stuck_lrs.conductance": None},
    "beyond range": {
        "failures.stuck_lrs.model": "uniform",
        "failures.stuck_lrs.conductance": 300e-6,
        "failures.stuck_lrs.upper": 1200e-6,
        "failures.allow_unbounded": True,
    },
}
DEVICE: dict[str, Any] = {"device.g_min": 1e-6, "device.g_max": 300e-6}
EPOCHS = {"one layer": 10, "three layers": 12}
REPLICAS = 8
"""Tiles that hold each block of a matrix where failures are beyond range; their results are averaged."""
NAIVE = CompileOptions(predistort=False, robust=False)


def network(sizes: tuple[int, ...]) -> nn.Sequential:
    """A network of linear layers with ReLU between, for images 28 by 28."""
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (rows, cols) in enumerate(itertools.pairwise(sizes)):
        layers += ([nn.ReLU()] if number else []) + [nn.Linear(rows, cols)]
    return nn.Sequential(*layers)


def trained(name: str, data: Dataset, path: Path) -> Path:
    """The network in floating point, as ONNX; made where it is missing."""
    if not path.exists():
        assert data.labels is not None
        torch.manual_seed(0)
        built = network(NETWORKS[name])
        images, labels = torch.from_numpy(data.inputs["image"]), torch.from_numpy(data.labels)
        optimizer = torch.optim.AdamW(built.parameters(), 2e-3, weight_decay=0.01)
        steps = EPOCHS[name] * (len(labels) // 100)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(0)
        for _ in range(EPOCHS[name]):
            for chosen in torch.split(torch.randperm(len(labels), generator=generator), 100):
                loss: Tensor = functional.cross_entropy(built(images[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        export_onnx(built.eval(), images[:2], path)
    return path


@dataclass(frozen=True)
class Study:
    """Where the data are and the results go, and how much is done.

    Attributes
    ----------
    data
        MNIST as an image folder with the splits train and test.
    out
        Folder of models and results.
    chips, images
        Measured for each rate and kind of failure: chips, and images of each.
    epochs
        Of the tuning for each chip.
    """

    data: str
    out: Path
    chips: int
    images: int
    epochs: int

    def run(self) -> None:
        """Everything that is missing."""
        results = Results(self.out / "results.json")
        for name in NETWORKS:
            train, test = (self._samples(split) for split in ("train", "test"))
            model = trained(name, train, self.out / f"{name.replace(' ', '-')}.onnx")
            for kind, fields in FAILURES.items():
                for rate in RATES:
                    spec = self._spec(fields, rate)
                    program = xbarc.compile(model, spec=spec, calibration=train.take(np.arange(512)), options=NAIVE)
                    for seed in range(FIRST_CHIP, FIRST_CHIP + self.chips):
                        told = f"{name}, {kind}, {rate:g}, chip {seed}"
                        results.get(told, self._chip(program, kind, seed, train, test))
                        print(
                            told,
                            {way: found for way, found in results.found[told].items() if way != "right"},
                            flush=True,
                        )

    def _samples(self, split: str) -> Dataset:
        path = self.out / "shape.onnx"
        if not path.exists():
            export_onnx(network((784, 10)).eval(), torch.zeros(2, 1, 28, 28), path)
        program = xbarc.compile(path, spec="ideal")
        return load_data(self.data, program.tables.inputs, split=split)

    def _spec(self, fields: dict[str, Any], rate: float) -> HardwareSpec:
        spec = HardwareSpec.preset("rram-128")
        return spec.with_fields({**DEVICE, "failures.stuck_lrs.rate": rate, **fields})

    def _chip(
        self, program: TileProgram, kind: str, seed: int, train: Dataset, test: Dataset
    ) -> Callable[[], dict[str, Any]]:
        def trial() -> dict[str, Any]:
            chip = xbarc.Chip.sample(program.spec, program.arrays * REPLICAS, seed)
            options = xbarc.TuneOptions(
                epochs=self.epochs,
                batch=100,
                learning_rate=1e-3,
                average=0.99,
                validation=2000,
            )
            mapped = xbarc.remap(program, chip, predistort=False)
            tuned = xbarc.finetune(mapped, train, "aware", chip=chip, options=options, seed=seed)
            programs = {"naive": program, "mapped": mapped, "tuned": tuned.program}
            if kind == "beyond range":
                programs["replicas"] = xbarc.remap(program, chip, predistort=False, replicas=REPLICAS)
            arrays = {f"arrays, {name}": one.report.totals.arrays for name, one in programs.items()}
            return each_way(programs, chip, test, seed, "cpu", self.images) | arrays

        return trial


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.liu2017", description=__doc__)
    parser.add_argument("--data", required=True, help="MNIST: image folder with the splits train and test")
    parser.add_argument("--out", type=Path, default=Path("liu2017"), help="folder of models and results")
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--images", type=int, default=250, help="of each chip")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    Study(options.data, options.out, options.chips, options.images, options.epochs).run()


if __name__ == "__main__":
    main()
