"""Files that a verb reads are not written over."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hwspec.errors import DataError
from xbarc.cli.arguments import output_path


def check_apart(outputs: Mapping[str, str | None], inputs: Iterable[str | None]) -> None:
    """Refuse to write one file twice, or over what is read.

    Parameters
    ----------
    outputs
        Files to write, by option.
    inputs
        Files and folders that are read; the weights that an ONNX model keeps beside itself are read with it.

    Raises
    ------
    DataError
        Naming the output.
    """
    read = [part for one in inputs if one is not None for part in (one, *_weights_of(Path(one)))]
    taken: dict[Path, str] = {}
    for name, given in outputs.items():
        if given is None:
            continue
        path = output_path(given)
        for one in read:
            output_path(given, keep=one)
            if path.exists() and Path(one).is_dir() and path.resolve().is_relative_to(Path(one).resolve()):
                raise DataError(f"output {given}", f"must be another file than those of {one}, which is read")
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            raise DataError(f"output {given}", f"must be another file than that of {other}", hint=f"see {name}")


def same_samples(one: str, split: str | None, other: str, other_split: str | None, built_in: Iterable[str]) -> bool:
    """Whether two sources with their splits are the same data; without a split, that of a built-in set differs."""
    first, second = (_place(source, of) for source, of in ((one, split), (other, other_split)))
    if one in built_in or other in built_in:
        return one == other and (split or "train") == (other_split or "test")
    return first == second


def _place(source: str, split: str | None) -> tuple[int, int] | str:
    path = Path(source)
    whole = path / split if split and (path / split).exists() else path
    found = f"{path.resolve()} {split or ''}"
    if not whole.exists():
        return found
    if split and whole == path and path.is_dir():  # one of several archives in a folder
        return found
    status = whole.stat()
    return status.st_dev, status.st_ino


def _weights_of(path: Path) -> Iterator[str]:
    """Files beside an ONNX model that hold its weights."""
    if path.suffix != ".onnx" or not path.is_file():
        return
    import onnx

    try:
        tensors = onnx.load(path, load_external_data=False).graph.initializer
    except Exception:  # protobuf's own exception types differ; whoever reads the model says what is wrong with it
        return
    for tensor in tensors:
        yield from (str(path.parent / entry.value) for entry in tensor.external_data if entry.key == "location")
