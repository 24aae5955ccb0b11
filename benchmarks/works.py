"""What `benchmarks.speed` times: each work gives a call of ours, and the call of torch or onnxruntime it is held to."""

import importlib.util
import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

import xbarc
from benchmarks.real_models import REAL_MODELS
from benchmarks.resnet18 import build_resnet18
from compiler.compile import CompileOptions
from hwspec.effects import EFFECTS
from hwspec.spec import HardwareSpec
from models.export import export_onnx
from runtime.engine import Engine
from runtime.physics.wires import effective_matrix
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.train import CrossbarModule

Call = Callable[[], Any]
CONVERTERS = frozenset({"dac", "adc"})
FEW_FAILURES: dict[str, Any] = {"failures.stuck_hrs.rate": 0.05, "failures.stuck_lrs.rate": 0.05}
CONSTANT: dict[str, Any] = {
    "device.read_noise.model": "constant",
    "device.read_noise.sigma": 0.5e-6,
    "device.read_noise.share": 0.0,
}
DENSE, IMAGES = (256, 512), (64, 3, 32, 32)
CHIPS = 32
PLAIN = CompileOptions(predistort=False)
"""Compiles in seconds; what runs then costs the same."""


@dataclass(frozen=True)
class Pair:
    """Two calls that do the same work, and how often `ours` does what `theirs` does once.

    Without `theirs` what counts is the time itself, in milliseconds.
    """

    ours: Call
    theirs: Call | None
    times: float = 1.0


@dataclass(frozen=True)
class Work:
    """One row of the table.

    Attributes
    ----------
    what
        In a few words, with what it is held to.
    at_most
        The ratio that we aim at; of the programming, milliseconds an array.
    prepare
        Makes the calls.
    """

    what: str
    at_most: float
    prepare: Callable[[], Pair]


def cnn() -> nn.Module:
    """Convolutions 64-64-pool-128-pool-128-pool and one linear layer on 3x32x32 images."""
    layers: list[nn.Module] = []
    for source, target, pool in ((3, 64, False), (64, 64, True), (64, 128, True), (128, 128, True)):
        layers += [nn.Conv2d(source, target, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


def dense() -> nn.Module:
    """One linear layer of 512 inputs and 512 outputs."""
    return nn.Sequential(nn.Linear(512, 512))


def network_pair(
    make: Callable[[], nn.Module], shape: tuple[int, ...], effects: Collection[str], fields: dict[str, Any]
) -> Pair:
    """A network in torch float32 eager, and on a sampled chip of `rram-128-wired` with these effects."""
    torch.manual_seed(0)
    network, images = make().eval(), torch.rand(shape)
    program = compiled(network, images, "rram-128-wired", fields)
    chip = xbarc.Chip.sample(program.spec, program.arrays, seed=0)
    engine = Engine(program_chip(program, chip, effects=effects))

    def theirs() -> None:
        with torch.no_grad():
            network(images)

    inputs = images.numpy()
    return Pair(lambda: engine(inputs), theirs)


def compiled(
    network: nn.Module, images: torch.Tensor, preset: str, fields: dict[str, Any], **options: Any
) -> TileProgram:
    """A network's program for a preset with these fields, calibrated on half of the images."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(network.eval(), images[:2], path)
        spec = HardwareSpec.preset(preset).with_fields(fields)
        return xbarc.compile(path, spec=spec, calibration=images.numpy()[: -(-len(images) // 2)], **options)


def training_pair() -> Pair:
    """A step of the CNN: on a chip drawn anew, with the present weights on it, and in torch."""
    torch.manual_seed(0)
    network, images, labels = cnn(), torch.rand(IMAGES), torch.randint(0, 10, IMAGES[:1])
    program = compiled(network, images, "rram-128", FEW_FAILURES)
    module = CrossbarModule(program, effects=CONVERTERS | {"spread", "failures"})
    seeds = itertools.count()

    def step(run: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def on_a_chip() -> torch.Tensor:
        module.write(xbarc.Chip.sample(program.spec, program.arrays, seed=next(seeds)))
        scores: torch.Tensor = module({"image": images})
        return scores

    ours, theirs = (torch.optim.AdamW(one.parameters(), 1e-4) for one in (module, network.train()))
    return Pair(lambda: step(on_a_chip, ours), lambda: step(lambda: network(images), theirs))


def recogniser_pair() -> Pair:
    """The text recogniser of rapidocr-onnxruntime with every effect, and in onnxruntime."""
    model = REAL_MODELS["ocr_recogniser"]
    feeds = model.feeds()
    spec = HardwareSpec.preset("rram-128-wired").with_fields(FEW_FAILURES)
    program = xbarc.compile(model.path, spec=spec, calibration=feeds, input_shapes=model.input_shapes, options=PLAIN)
    engine = Engine(program_chip(program, xbarc.Chip.sample(spec, program.arrays, seed=0)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    return Pair(lambda: engine(feeds), lambda: session.run(None, feeds))


def programming_pair() -> Pair:
    """All tiles of a network of ResNet-18's size: spread, exact wires of 1 ohm; per array of 128x128."""
    spec = HardwareSpec.preset("rram-128-wired")
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    program = xbarc.compile(build_resnet18(size=32), spec=spec, calibration=images, options=PLAIN)
    chip = xbarc.Chip.sample(spec, program.arrays, seed=0)
    effects = CONVERTERS | {"spread", "wires"}
    return Pair(lambda: program_chip(program, chip, effects=effects), None, times=program.arrays)


def chips_pair() -> Pair:
    """The CNN on 32 chips one after another, per chip, and on one chip."""
    torch.manual_seed(0)
    images = torch.rand(IMAGES)
    program = compiled(cnn(), images, "rram-128-wired", {}, options=PLAIN)
    effects, inputs = CONVERTERS | {"spread", "wires"}, images.numpy()
    chips = (xbarc.Chip.sample(program.spec, program.arrays, seed=seed) for seed in range(CHIPS))
    engines = [Engine(program_chip(program, chip, effects=effects)) for chip in chips]
    return Pair(lambda: [engine(inputs) for engine in engines], lambda: engines[0](inputs), times=CHIPS)


def badcrossbar_pair() -> Pair:
    """Currents of one 128x128 array with wires of 1 ohm for 64 inputs: ours, matrix and product, and badcrossbar's."""
    import badcrossbar

    generator = np.random.default_rng(0)
    conductances, volts = generator.uniform(1e-6, 1e-4, (128, 128)), generator.random((128, 64))

    def theirs() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, of newer numpy and scipy
            badcrossbar.compute(volts, 1 / conductances, r_i_word_line=1.0, r_i_bit_line=1.0)

    logging.disable(logging.INFO)  # badcrossbar tells of each call
    return Pair(lambda: effective_matrix(conductances, 1.0, 1.0) @ volts, theirs)


def _network(
    what: str,
    at_most: float,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    effects: Collection[str],
    fields: dict[str, Any] | None = None,
) -> Work:
    return Work(what, at_most, lambda: network_pair(make, shape, effects, fields or {}))


WITH_NOISE = CONVERTERS | {"spread", "wires", "read_noise"}
ALL = frozenset(EFFECTS)
WORKS: dict[str, Work] = {
    "dense": _network("dense 512 to 512, batch 256, DAC 8, ADC 8, spread", 1.8, dense, DENSE, CONVERTERS | {"spread"}),
    "dense-noise": _network("the same with read noise and wires", 3.5, dense, DENSE, WITH_NOISE),
    "cnn": _network("CNN, batch 64, DAC 8, ADC 8, spread, wires", 2.2, cnn, IMAGES, CONVERTERS | {"spread", "wires"}),
    "cnn-constant": _network(
        "the same with failures and read noise, constant sigma", 4.0, cnn, IMAGES, ALL, {**FEW_FAILURES, **CONSTANT}
    ),
    "cnn-proportional": _network("the same, sigma proportional to G", 5.0, cnn, IMAGES, ALL, FEW_FAILURES),
    "training": Work("training step of that CNN: quantisation, resampled failures, spread", 3.5, training_pair),
    "chips": Work("the CNN on 32 chips, per chip, against one chip alone", 0.8, chips_pair),
    "recogniser": Work("recogniser of rapidocr, ADC 8, all effects, against onnxruntime", 8.0, recogniser_pair),
    "programming": Work("programming ResNet-18's tiles with exact wires, ms an array", 2.5, programming_pair),
}
"""By name, in the order of the table; peers where they are installed (``pip install -e '.[peers]'``)."""
if importlib.util.find_spec("badcrossbar"):
    WORKS["badcrossbar"] = Work("a 128x128 array with wires, 64 inputs, against badcrossbar", 0.1, badcrossbar_pair)
