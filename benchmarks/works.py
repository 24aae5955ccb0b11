"""What `benchmarks.speed` times: each work gives a call of ours, and the call of torch or onnxruntime it is held to."""

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import xbarc
from hwspec.effects import EFFECTS
from hwspec.spec import HardwareSpec
from models.export import export_onnx
from runtime.engine import Engine
from runtime.programming import program_chip

Call = Callable[[], Any]
CONVERTERS = frozenset({"dac", "adc"})
FEW_FAILURES: dict[str, Any] = {"failures.stuck_hrs.rate": 0.05, "failures.stuck_lrs.rate": 0.05}
CONSTANT: dict[str, Any] = {
    "device.read_noise.model": "constant",
    "device.read_noise.sigma": 0.5e-6,
    "device.read_noise.share": 0.0,
}
PROPORTIONAL: dict[str, Any] = {}


@dataclass(frozen=True)
class Pair:
    """Two calls that do the same work, and how often `ours` does what `theirs` does once."""

    ours: Call
    theirs: Call
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
    network = make().eval()
    images = torch.rand(shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(network, images[:2], path)
        spec = HardwareSpec.preset("rram-128-wired").with_fields(fields)
        program = xbarc.compile(path, spec=spec, calibration=images.numpy()[:32])
    chip = xbarc.Chip.sample(spec, program.arrays, seed=0)
    engine = Engine(program_chip(program, chip, effects=effects))

    def theirs() -> None:
        with torch.no_grad():
            network(images)

    inputs = images.numpy()
    return Pair(lambda: engine(inputs), theirs)


def _network(
    what: str,
    at_most: float,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    effects: Collection[str],
    fields: dict[str, Any] | None = None,
) -> Work:
    return Work(what, at_most, lambda: network_pair(make, shape, effects, fields or {}))


DENSE, IMAGES = (256, 512), (64, 3, 32, 32)
WITH_NOISE = CONVERTERS | {"spread", "wires", "read_noise"}
ALL = frozenset(EFFECTS)
WORKS: dict[str, Work] = {
    "dense": _network("dense 512 to 512, batch 256, DAC 8, ADC 8, spread", 1.8, dense, DENSE, CONVERTERS | {"spread"}),
    "dense-noise": _network("the same with read noise and wires", 3.5, dense, DENSE, WITH_NOISE),
    "cnn": _network("CNN, batch 64, DAC 8, ADC 8, spread, wires", 2.2, cnn, IMAGES, CONVERTERS | {"spread", "wires"}),
    "cnn-constant": _network(
        "the same with failures and read noise, constant sigma", 4.0, cnn, IMAGES, ALL, {**FEW_FAILURES, **CONSTANT}
    ),
    "cnn-proportional": _network(
        "the same, sigma proportional to G", 5.0, cnn, IMAGES, ALL, {**FEW_FAILURES, **PROPORTIONAL}
    ),
}
"""By name, in the order of the table."""
