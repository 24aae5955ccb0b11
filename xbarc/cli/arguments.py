"""Options that verbs share, and the reading of their values."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.steps import STEPS
from hwspec.errors import DataError, SpecError
from hwspec.units import parse_quantity

ProgramPath = Annotated[str, typer.Argument(metavar="PROGRAM", help="Tile program (.xbar).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.")]
ModelPath = Annotated[
    str | None, typer.Option("--model", help="The ONNX model, where the program carries none (--no-source).")
]
Split = Annotated[str | None, typer.Option(help="Sub-folder of an image folder, or split of a built-in set.")]
Normalize = Annotated[
    str | None, typer.Option(help="MEAN,STD of images in [0, 1]; one each, or one a channel: M,M,M,S,S,S.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use at most so many samples, drawn at random.")]
Device = Annotated[str, typer.Option(help="Torch device to compute on, e.g. cuda.")]
Chips = Annotated[
    int, typer.Option(min=0, max=100_000, help="Chips to run on, of the seeds from --seed on; 0 is an ideal chip.")
]
Time = Annotated[str, typer.Option(help="Time between programming and the reads: 1h, 1d, 90 s.")]
Only = Annotated[
    str | None, typer.Option(help="Physical effects to keep: spread,wires. `xbarc spec effects` lists them.")
]
Without = Annotated[str | None, typer.Option(help="Physical effects to switch off: read_noise,adc.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Samples a batch.")]
ShareArrays = Annotated[bool | None, typer.Option(help="Short for --share layer, and for --share none.")]
ShareWith = Annotated[
    str | None,
    typer.Option(
        "--share",
        metavar="TILES",
        help="Small tiles that share arrays: none, those with the same inputs, those of one layer (default), or all.",
    ),
]
CopiesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COPIES",
        help="Copies of matrices, which share out a sample's windows: a number for every layer, LAYER=NUMBER "
        "(repeat for more), or balance for what makes the pipeline fastest.",
    ),
]
ArrayBudget = Annotated[
    int | None,
    typer.Option(min=1, help="Arrays to balance copies within or to reload (default: those of the chip)."),
]
Predistort = Annotated[bool, typer.Option(help="Let targets undo the resistance of wires.")]
MappedChip = Annotated[
    str | None,
    typer.Option("--chip", metavar="MAP", help="Map around the failed devices of this chip: a fault map (.npz, .csv)."),
]
ChipSeed = Annotated[
    int | None,
    typer.Option(
        min=0, max=2**63 - 1, help="Map around the failed devices of the chip of this seed, with the arrays needed."
    ),
]
SpareArrays = Annotated[int, typer.Option(min=0, help="Arrays that the chip of --chip-seed has beyond those needed.")]
Steps = Annotated[
    str | None,
    typer.Option(
        metavar="LIST", help=f"Steps of mapping around failures: all (default), none, or some of {','.join(STEPS)}."
    ),
]
WithoutSteps = Annotated[
    str | None, typer.Option(metavar="LIST", help="Steps of mapping around failures to leave out.")
]
Robust = Annotated[
    bool, typer.Option(help="Raise both devices of pairs where only the rates of failures are known, not the chip.")
]
RunChip = Annotated[
    str | None,
    typer.Option("--chip", metavar="MAP", help="Chip to run on, in place of sampled ones: a fault map (.npz, .csv)."),
]


def output_path(text: str, *, keep: str | None = None) -> Path:
    """Where to write a result, checked before the work that leads to it.

    Parameters
    ----------
    text
        The path as given. Behind a symbolic link it is the file that the link leads to.
    keep
        An input that must not be overwritten.

    Raises
    ------
    DataError
        If no file can be written there.
    """
    subject, path = f"output {text}", Path(text)
    path = path.resolve() if path.is_symlink() else path
    if path.is_dir():
        raise DataError(subject, "must be a file, and is a folder", hint=f"name a file in it: {path / 'NAME'}")
    if not path.parent.is_dir():
        raise DataError(subject, "must lie in an existing folder", hint=f"make it first: mkdir -p {path.parent}")
    if path.exists() and not path.is_file():
        raise DataError(subject, "must be a regular file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise DataError(subject, f"cannot be written: you may not write into {path.parent.resolve()}")
    if keep is not None and path.exists() and Path(keep).exists() and path.samefile(keep):
        raise DataError(subject, "must be another file than the input")
    return path


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Read ``name=1,3,48,192`` options."""
    shapes = {}
    for text in texts:
        name, separator, sizes = text.rpartition("=")
        try:
            if not (separator and name):
                raise ValueError
            shapes[name] = tuple(int(size) for size in sizes.split(",")) if sizes else ()
        except ValueError:
            raise DataError("--input-shape", "must be NAME=SIZE,SIZE,…", got=text) from None
        if any(size < 1 for size in shapes[name]):
            raise DataError("--input-shape", "must have positive sizes", got=text)
    return shapes


def parse_fields(texts: list[str]) -> dict[str, Any]:
    """Read ``periphery.adc_bits=6`` options; values are YAML, so that ``null`` and quantities with units work."""
    import yaml

    fields = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise SpecError("--set", "must be FIELD=VALUE", got=text)
        try:
            fields[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SpecError("--set", "must have a value that is valid YAML", got=text) from None
    return fields


def parse_time(text: str) -> float:
    """Read a time such as ``1d``, ``90 s`` or ``3600`` (seconds)."""
    try:
        seconds = parse_quantity(text, "second")
    except ValueError as error:
        raise DataError("--time", str(error)) from None
    if seconds < 0:
        raise DataError("--time", "must not be negative", got=text)
    return seconds


def parse_names(text: str | None) -> list[str] | None:
    """Read names separated by commas."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def parse_normalize(text: str | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Read ``MEAN,STD`` or ``M,M,M,S,S,S``."""
    if text is None:
        return None
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        values = ()
    if len(values) < 2 or len(values) % 2:
        raise DataError("--normalize", "must be MEAN,STD, or as many means as deviations", got=text)
    half = len(values) // 2
    return values[:half], values[half:]
