"""The public functions of xbarc."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compiler.compile import CompileOptions, finish, remap_program, run_compile
from compiler.frontend import load_model
from compiler.like import check_options, compile_like
from compiler.packing import Share
from compiler.passes.calibrate import Batch, Batches
from compiler.steps import chosen_steps
from hwspec.chip import Chip
from hwspec.effects import chosen_effects
from hwspec.errors import ChipError, DataError, SpecError
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, program_chip
from runtime.tables import TensorInfo
from xbarc.data.load import Dataset, load_data
from xbarc.loading import load as load

if TYPE_CHECKING:
    import onnx

Data = str | Path | Mapping[str, Any] | np.ndarray | Dataset

CALIBRATION_BATCH = 16
REESTIMATION_BATCH = 64


def compile_model(
    model: "str | Path | bytes | onnx.ModelProto",
    spec: HardwareSpec | str | Path | None = None,
    calibration: Data | None = None,
    chip: Chip | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    like: TileProgram | str | Path | None = None,
    options: CompileOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> TileProgram:
    """Compile an ONNX model into a tile program.

    Parameters
    ----------
    model
        Path of an ONNX file, its bytes, or the model itself.
    spec
        The hardware: a spec, the name of a preset, or the path of a file; None is the preset ``rram-128``.
    calibration
        Typical inputs: arrays by the names of the model's inputs, one array for a model with one input, or anything
        that `xbarc.data.load.load_data` reads. Without them ranges stem from random inputs.
    chip
        The chip that the program is for: its failed devices, as its test sees them, are mapped around. None is any
        chip of the spec.
    seed
        For random inputs and for the choice of calibration vectors.
    input_shapes
        Shapes of inputs that the model leaves open; an open leading dimension stays the batch.
    like
        A program, or the path of one, that the model has the layers of, with other weights: everything that is no
        function of the weights is that program's (`compiler.like`). Whatever else is given must be as it is there.
    options
        Further options; `seed` and `input_shapes` given here take their place there.
    progress
        Called with the number of calibration samples done.

    Raises
    ------
    ModelFileError, ModelError
        The model cannot be read, or is not supported.
    SpecError, ChipError, DataError
        The spec, the chip, or the data does not fit, or is not that of `like`.
    ProgramError
        `like` is no sound program, or cannot take other weights (`runtime.rewrite`).
    """
    options = dataclasses.replace(
        options or CompileOptions(),
        seed=seed,
        input_shapes={name: tuple(int(size) for size in shape) for name, shape in (input_shapes or {}).items()},
    )
    if like is not None:
        program = like if isinstance(like, TileProgram) else load(like)
        _check_like(program, spec, calibration, chip)
        check_options(options, program)
        return compile_like(load_model(model), program, keep_source=options.keep_source)
    batches = None if calibration is None else calibration_batches(calibration)
    source = load_model(model)
    program = finish(
        run_compile(source, HardwareSpec.resolve(spec or "rram-128"), options, batches, chip, progress=progress),
        keep_source=options.keep_source,
    )
    if chip is not None:
        chip.check_fits(program.spec, program.arrays)
    return program


def _check_like(
    like: TileProgram, spec: HardwareSpec | str | Path | None, calibration: Data | None, chip: Chip | None
) -> None:
    """Refuse a spec, calibration data and a chip that are not those of the program that a model is compiled like."""
    hint = "leave it out: with like it is the program's"
    if spec is not None and HardwareSpec.resolve(spec).sha256 != like.tables.spec_sha256:
        raise SpecError("spec", f"must be that of the program given as like ({like.spec.name!r})", got=spec, hint=hint)
    if calibration is not None:
        raise DataError("calibration", "must not be given with like, whose ranges stay", hint="leave it out")
    if chip is not None:
        chip.check_fits(like.spec, like.arrays)
        known = like.tested_faults
        tested = chip.as_tested(like.spec).fault_map.first(like.arrays if known is None else known.shape[0])
        if tested != known and (tested.failed or known is not None):
            requirement = "must be the one that the program given as like is mapped for"
            raise ChipError("chip", requirement, got=chip.sha256[:12], hint=hint)


def calibration_batches(data: Data, **reading: Any) -> Batches:
    """Batches of calibration data for a model whose inputs are known only once it is cleaned.

    Parameters
    ----------
    data
        As for `compile_model`.
    reading
        Options of `xbarc.data.load.load_data`.
    """

    def batches(inputs: Sequence[TensorInfo]) -> Iterator[Batch]:
        dataset = data if isinstance(data, Dataset) else load_data(data, inputs, learning=True, **reading)
        start = 0
        for feeds in dataset.batches(CALIBRATION_BATCH):
            count = min(dataset.fixed_batch or CALIBRATION_BATCH, len(dataset) - start)
            start += count
            yield feeds, count

    return batches


def remap(
    program: TileProgram,
    chip: Chip | None = None,
    *,
    share_arrays: Share | bool = "layer",
    predistort: bool = True,
    steps: Iterable[str] | None = None,
    robust: bool = True,
    replicas: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> TileProgram:
    """Place, assign and set ranges again, for this chip.

    Parameters
    ----------
    program
        A program of any chip.
    chip
        The chip that the result is for: its failed devices, as its test sees them, are mapped around. None is any chip
        of the spec.
    share_arrays
        Which small tiles share arrays: ``"none"``, those of a layer with the same ``"inputs"``, those of one
        ``"layer"``, or those of ``"all"`` layers. True and False stand for ``"layer"`` and ``"none"``.
    predistort
        Whether targets undo the resistance of wires.
    steps
        Of mapping around failures that are taken (`compiler.steps.STEPS`); None takes all, an empty list none.
    robust
        Whether both devices of pairs are raised where only the rates of failures are known.
    replicas
        Tiles that hold each block of a matrix; their results are averaged.
    progress
        Called with what is being done, how much of it is, and how much there is.

    Raises
    ------
    ChipError
        If the chip does not take the program; `DoesNotFit` if it has too few arrays.
    DataError
        If a step does not exist.
    """
    options = CompileOptions(
        share_arrays=share_arrays,
        predistort=predistort,
        steps=chosen_steps(steps),
        robust=robust,
        replicas=replicas,
    )
    remapped = remap_program(program, options, chip, progress)
    if chip is not None:
        chip.check_fits(remapped.spec, remapped.arrays)
    return remapped


class Simulation:
    """A program on a chip, ready to run. Call it with inputs; it gives outputs as onnxruntime's ``run`` does.

    Attributes
    ----------
    program
        The program.
    chip
        As it was programmed; its `report` tells what that took.
    host_reasons
        Digital segments that run in onnxruntime although the engine is torch, with the reason.
    """

    def __init__(
        self,
        programmed: ProgrammedChip,
        device: str = "cpu",
        engine: Literal["torch", "reference"] = "torch",
        seed: int = 0,
    ) -> None:
        self.program, self.chip = programmed.program, programmed
        self.host_reasons: dict[str, str] = {}
        self._runner: Callable[[Mapping[str, Any] | Any], list[Any]]
        if engine == "torch":
            from runtime.engine import Engine

            compiled = Engine(programmed, device, seed=seed)
            self._runner, self.host_reasons = compiled, compiled.host_reasons
        elif engine == "reference":
            from runtime.reference import Reference

            self._runner = Reference(programmed, seed=seed)
        else:
            raise DataError("engine", "must be 'torch' or 'reference'", got=engine)

    def __call__(self, inputs: Mapping[str, Any] | Any) -> list[Any]:
        """Outputs for `inputs`: arrays by name, or one array for a program with one input."""
        return self._runner(inputs)


def simulate(
    program: TileProgram,
    chip: Chip | None = None,
    device: str = "cpu",
    engine: Literal["torch", "reference"] = "torch",
    seed: int = 0,
    *,
    time: float = 0.0,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    reestimate: Data | None = None,
) -> Simulation:
    """Write a program onto a chip and get it ready to run.

    Parameters
    ----------
    program
        The program.
    chip
        The chip; None is `Chip.ideal`: no spread, failures, offsets, drift or noise; converters, levels and wires stay.
    device
        Where the torch engine computes, e.g. ``"cuda"``.
    engine
        ``"torch"``, or ``"reference"`` for numpy in float64, instruction by instruction.
    seed
        For what differs from one programming or read to the next: pulses of write-verify, slow traps, read noise.
    time
        Seconds between programming and the reads.
    only
        Names of the physical effects to keep (`hwspec.effects.EFFECTS`); None keeps all.
    without
        Names of effects to switch off.
    reestimate
        Typical inputs, some hundred, that digital gains and biases of the layers' columns are re-estimated with on this
        chip (`runtime.reestimate_torch`): no labels, no map of failed devices. None leaves them as they are.

    Raises
    ------
    ChipError
        If the chip does not take the program.
    DataError
        If an effect does not exist, the device cannot be used, or the inputs do not fit the program.
    SpecError
        If the time is beyond what the drift model was fitted to.
    """
    effects = chosen_effects(only, without)
    programmed = program_chip(program, chip, effects=effects, seed=seed, seconds=time)
    if reestimate is not None:
        programmed = reestimated_on(programmed, program_chip(program, effects=effects), reestimate, device, seed)
    return Simulation(programmed, device, engine, seed)


def reestimated_on(
    chip: ProgrammedChip, expected: ProgrammedChip, data: Data, device: str, seed: int
) -> ProgrammedChip:
    """A programmed chip, its columns re-estimated with data, against its program on the chip that this expects."""
    from runtime.reestimate_torch import reestimated

    inputs = chip.program.tables.inputs
    dataset = data if isinstance(data, Dataset) else load_data(data, inputs, learning=True)
    batches = list(dataset.batches(REESTIMATION_BATCH))
    return reestimated(chip, expected, batches, device, seed)
