"""Reference and engine side by side on one programmed chip: equal codes but at ties, equal outputs."""

import zlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from hwspec.chip import Chip
from runtime.channels import NoiseKind
from runtime.engine import Engine
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, program_chip
from runtime.reference import Conversion, Reference
from runtime.tables import Loop, Phase, Store, TensorInfo

Float64 = npt.NDArray[np.float64]
Key = tuple[str, Phase, int]
"""A tile, a phase, and the number of its conversion."""
TIE = 1e-9
"""Engines may convert a value differently that lies so near to where an ADC steps to the next code (in lsb)."""


def in_float64(program: TileProgram) -> TileProgram:
    """The program up to its loop, which stores float64: a float32 buffer would round the result."""
    instructions = program.tables.instructions
    end = next(number for number, step in enumerate(instructions) if isinstance(step, Loop))
    loop = next(program.tables.loops)
    name = next(step.buffer for step in loop.body if isinstance(step, Store))
    buffers = tuple(
        buffer.model_copy(update={"dtype": "float64"}) if buffer.name == name else buffer
        for buffer in program.tables.buffers
    )
    tables = program.tables.model_copy(
        update={
            "buffers": buffers,
            "instructions": instructions[: end + 1],
            "outputs": (TensorInfo(name=name, dtype="float64", shape=()),),
        }
    )
    return replace(program, tables=tables)


def sampled(program: TileProgram, seed: int = 0, seconds: float = 0.0) -> ProgrammedChip:
    """The program on a chip that is not ideal."""
    chip = Chip.sample(program.spec, program.arrays, seed)
    return program_chip(program, chip, seed=seed, seconds=seconds)


def fixed_noise(tile: str, phase: Phase, channel: int, kind: NoiseKind, shape: tuple[int, ...]) -> Float64:
    """The same standard normal numbers for a tile, phase, channel and kind, whoever asks and how often."""
    key = zlib.crc32(f"{tile} {phase} {channel} {kind}".encode())
    return np.random.default_rng(key).standard_normal(shape)


@dataclass(frozen=True, eq=False)
class Watched:
    """One conversion of the reference: its codes, and how far the values lie from where a code changes (in lsb).

    Where the ADC is ideal, codes are amperes, and `margin` is None.
    """

    codes: Float64
    margin: Float64 | None


def run_reference(chip: ProgrammedChip, x: Float64) -> tuple[list[Float64], dict[Key, Watched]]:
    """Outputs, and what each conversion did."""
    seen: dict[Key, Watched] = {}

    def watch(conversion: Conversion) -> None:
        key = (conversion.tile, conversion.phase, conversion.number)
        seen[key] = Watched(conversion.codes, None if conversion.adc is None else margin(chip, conversion))

    return Reference(chip, watch, noise=fixed_noise)(x), seen


def margin(chip: ProgrammedChip, conversion: Conversion) -> Float64:
    """How far what a conversion rounded lies from the nearest threshold of its ADC, in lsb."""
    assert conversion.adc is not None
    lsbs = conversion.current / conversion.adc.lsb
    tile = chip.program.tiles[conversion.tile]
    channel = chip.tiles[conversion.tile].channels[conversion.number // chip.drive(conversion.layer).digits]
    thresholds = chip.readout(tile, conversion.phase, channel).thresholds()
    found: Float64 = np.abs(lsbs - np.floor(lsbs) - 0.5)
    if thresholds is not None:
        found = np.min(np.abs(lsbs[:, :, None] - thresholds), axis=-1)
    return found


def run_engine(
    chip: ProgrammedChip, x: Float64, dtype: torch.dtype, *, blocks: bool
) -> tuple[list[Float64], dict[Key, Float64]]:
    """Outputs, and the codes of each conversion; in compiled blocks, or in torch operations alone."""
    codes: dict[Key, Float64] = {}

    def watch(layer: str, tile: str, phase: Phase, number: int, found: torch.Tensor) -> None:
        assert layer == "layer"
        codes[tile, phase, number] = found.numpy().astype(np.float64)

    return Engine(chip, dtype=dtype, watch=watch, noise=fixed_noise, blocks=blocks)(x), codes


def assert_same_values(found: Float64, wanted: Float64, tolerance: float = 1e-9) -> None:
    """Equal to a share of the largest value."""
    scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)


def assert_agree(chip: ProgrammedChip, x: Float64) -> None:
    """In float64: equal codes but at ties, and equal outputs to 1e-9; in compiled blocks, and in torch alone."""
    wanted, conversions = run_reference(chip, x)
    for blocks in (True, False):
        assert_same(*run_engine(chip, x, torch.float64, blocks=blocks), wanted, conversions)


def assert_same(
    found: list[Float64], codes: dict[Key, Float64], wanted: list[Float64], conversions: dict[Key, Watched]
) -> None:
    """Equal codes but at ties, and equal outputs to 1e-9."""
    assert codes.keys() == conversions.keys()
    same = True
    for key, conversion in conversions.items():
        if conversion.margin is None:
            assert_same_values(codes[key], conversion.codes)
            continue
        differs = codes[key] != conversion.codes
        assert not (differs & (conversion.margin > TIE)).any()
        same = same and not differs.any()
    for got, value in zip(found, wanted, strict=True):
        assert got.shape == value.shape
        assert got.dtype == value.dtype == np.float64
        if same:
            assert_same_values(got, value)


def assert_nearly_agree(chip: ProgrammedChip, x: Float64, conversions: int) -> None:
    """In float32: at most 1e-4 of the codes differ, each by one; there are so many conversions at least."""
    _, wanted = run_reference(chip, x)
    for blocks in (True, False):
        _, codes = run_engine(chip, x, torch.float32, blocks=blocks)
        total = different = 0
        for key, conversion in wanted.items():
            if conversion.margin is None:
                continue
            gap = np.abs(codes[key] - conversion.codes) * (conversion.margin > TIE)
            assert gap.max() <= 1
            different += int(gap.sum())
            total += gap.size
        assert total >= conversions
        assert different <= 1e-4 * total
