"""Three-valued weights trained with every effect of their hardware, after Cao et al., IEEE JETCAS 12(4) 2022.

``python -m studies.cao2022 --data CIFAR10`` takes the VGG of five layers with three-valued weights that was trained on
a model of the devices alone (``models/vgg5-ternary-noisy-cifar10``), fine-tunes it on chips of the preset ``cao2022``
with every effect on, and measures emitted programs on chips that no training saw: each effect left out in turn, and
wires from 0 to 5 ohm a segment. Beside them the same network trained without hardware
(``models/vgg5-ternary-distilled-cifar10``). Everything done is kept in ``--out`` and not done again.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import xbarc
from compiler.compile import CompileOptions
from hwspec.effects import active_effects
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from studies.trials import Results, measure, tell
from xbarc.data.load import Dataset, load_data

MODELS = Path(__file__).parents[1] / "models"
FLOAT, PLAIN, NOISY = "vgg5-cifar10", "vgg5-ternary-distilled-cifar10", "vgg5-ternary-noisy-cifar10"
OHMS = (0.0, 0.5, 1.0, 2.0, 5.0)
CALIBRATION_IMAGES = 256
REESTIMATION_IMAGES = 256
"""Training images, without labels, that columns are re-estimated with on each chip."""
CONVERTERS = ("dac", "adc")
TRIM: dict[str, Any] = {"periphery.trim.gain": "column", "periphery.trim.offset": True}
"""The controller measures a gain and an offset a column on 32 known vectors, and undoes them digitally (our choice)."""
OPTIONS = CompileOptions(predistort=False, robust=False)


@dataclass(frozen=True)
class Study:
    """Where the data are and the results go, and how much is done.

    Attributes
    ----------
    data
        CIFAR-10 as an image folder with the splits train and test.
    out
        Folder of models and results.
    device
        Of torch.
    epochs
        Of the fine-tuning.
    chips, images
        That each program is measured on: chips, and images of each.
    few
        Images of each chip in the ablation and over wires.
    learnt
        Images of an epoch; None takes all.
    """

    data: str
    out: Path
    device: str
    epochs: int
    chips: int
    images: int
    few: int
    learnt: int | None

    def samples(self, split: str, limit: int | None = None) -> Dataset:
        """Images of a split."""
        program = xbarc.compile(MODELS / PLAIN / "model.onnx", spec="ideal")
        return load_data(self.data, program.tables.inputs, split=split, limit=limit)

    def program(self, model: Path, ohms: float = 0.5) -> TileProgram:
        """A model on the hardware, its ranges calibrated on training images."""
        spec = HardwareSpec.preset("cao2022").with_fields({**TRIM, "array.r_word": ohms, "array.r_bit": ohms})
        few = self.samples("train", CALIBRATION_IMAGES)
        return xbarc.compile(model, spec=spec, calibration=few, options=OPTIONS)

    def tuned(self) -> Path:
        """The model tuned on chips with every effect; made where it is missing."""
        path = self.out / "tuned.onnx"
        if not path.exists():
            options = xbarc.TuneOptions(
                epochs=self.epochs,
                batch=128,
                learning_rate=2e-4,
                average=0.99,
                distill=0.5,
                smoothing=0.05,
                validation=500,
                validation_chips=2,
                augmentation=xbarc.Augmentation(crop=4, flip=True),
            )
            result = xbarc.finetune(
                self.program(MODELS / NOISY / "model.onnx"),
                self.samples("train", self.learnt),
                teacher=MODELS / FLOAT / "model.onnx",
                options=options,
                device=self.device,
                checkpoint=self.out / "tuned.checkpoint",
                metrics=self.out / "tuned.csv",
                progress=lambda told, done, total: tell(told, done, total),
            )
            result.program.save(self.out / "tuned.xbar")
            onnx.save(result.model, path)
        return path

    def measured(
        self,
        program: TileProgram,
        images: int,
        *,
        without: tuple[str, ...] = (),
        only: tuple[str, ...] | None = None,
        reestimate: Dataset | None = None,
    ) -> dict[str, Any]:
        """A program on sampled chips."""

        def chip(seed: int) -> xbarc.Chip:
            return xbarc.Chip.sample(program.spec, program.arrays, seed)

        test = self.samples("test")
        return measure(
            program, chip, self.chips, test, self.device, images, without=without, only=only, reestimate=reestimate
        )

    def run(self) -> None:
        """Everything that is missing."""
        tuned = self.tuned()
        results = Results(self.out / "results.json")
        train = self.samples("train")
        typical = train.take(np.random.default_rng(1).permutation(len(train))[:REESTIMATION_IMAGES])

        def made_at(name: str, ohms: float) -> TileProgram:
            if name == "tuned" and ohms == OHMS[1]:
                return xbarc.load(self.out / "tuned.xbar")
            return self.program(models[name], ohms)

        models = {"plain": MODELS / PLAIN / "model.onnx", "noisy": MODELS / NOISY / "model.onnx", "tuned": tuned}
        made = {name: made_at(name, OHMS[1]) for name in models}
        for name, program in made.items():
            results.get(f"{name}, every effect", lambda: self.measured(program, self.images))  # noqa: B023 (called at once)
            results.get(f"{name}, converters", lambda: self.measured(program, self.images, only=CONVERTERS))  # noqa: B023
            results.get(
                f"{name}, re-estimated",
                lambda: self.measured(program, self.images, reestimate=typical),  # noqa: B023
            )
        for effect in active_effects(made["plain"].spec):
            for name in ("plain", "tuned"):
                results.get(
                    f"{name}, without {effect}",
                    lambda: self.measured(made[name], self.few, without=(effect,)),  # noqa: B023
                )
        for ohms in OHMS:
            for name in ("plain", "tuned"):
                results.get(f"{name}, {ohms:g} ohm", lambda: self.measured(made_at(name, ohms), self.few))  # noqa: B023


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.cao2022", description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10: image folder with the splits train and test")
    parser.add_argument("--out", type=Path, default=Path("cao2022"), help="folder of models and results")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--images", type=int, default=250, help="of each chip")
    parser.add_argument("--few", type=int, default=100, help="images of each chip in the ablation and over wires")
    parser.add_argument("--learnt", type=int, help="images of an epoch (default: all)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    Study(
        options.data,
        options.out,
        options.device,
        options.epochs,
        options.chips,
        options.images,
        options.few,
        options.learnt,
    ).run()


if __name__ == "__main__":
    main()
