"""Checkpoints of fine-tuning: one safetensors file, replaced whole, that a run goes on from to the same result."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from hwspec.atomic import write_atomically
from hwspec.errors import DataError
from runtime.program import TileProgram
from runtime.tuning import Epoch, Samples, TuneOptions

_FORMAT = 2
_OF_EACH = ("value", "averaged", "best", "step", "exp_avg", "exp_avg_sq")
"""Tensors of each parameter."""
_MAY_LACK = ("validation_loss", "accuracy")
"""What an epoch without samples held out, or without labels, does not tell."""
_MEMBERS = 1 << 27
"""Bytes of notes that a checkpoint may have, at most."""


def fingerprint(program: TileProgram, samples: Samples, options: TuneOptions, **more: Any) -> str:
    """Hash of everything that the result of a run depends on."""
    digest = hashlib.sha256()
    notes = {"options": asdict(options), "format": _FORMAT, "torch": torch.__version__, **more}
    digest.update(json.dumps(notes, sort_keys=True, default=str).encode())
    digest.update(program.tables.model_dump_json().encode())
    tensors = {**program.tensors, **{f"weights/{name}": one for name, one in program.weights.items()}}
    arrays = {**tensors, **{f"inputs/{name}": one for name, one in samples.inputs.items()}}
    if samples.labels is not None:
        arrays["labels"] = samples.labels
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


@dataclass(eq=False)
class Progress:
    """What a run depends on beside its tensors."""

    step: int = 0
    epoch: int = 0
    loss: float = 0.0
    """Summed over the samples of the present epoch."""
    seen: int = 0
    seconds: float = 0.0
    """That the present epoch took so far."""
    best_loss: float = math.inf
    best_epoch: int = 0


def save_checkpoint(
    path: Path,
    wanted: str,
    tensors: Sequence[Mapping[str, Tensor]],
    progress: Progress,
    history: Sequence[Epoch],
) -> None:
    """Write a checkpoint; the one before stays until this one is whole on the disk.

    Parameters
    ----------
    path
        The file.
    wanted
        Fingerprint of the run.
    tensors
        Of each parameter: its present, averaged and best values, and what AdamW holds of it.
    progress, history
        How far the run has come.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    named = {f"{number}.{key}": value for number, one in enumerate(tensors) for key, value in one.items()}
    kept = {name: value.detach().cpu().clone().contiguous() for name, value in named.items()}
    told = {"fingerprint": wanted, "progress": asdict(progress), "history": [asdict(row) for row in history]}
    notes = json.dumps(told)
    data = save_tensors(kept, {"notes": notes, "sha256": _digest(notes, kept)})

    def write(stream: BinaryIO) -> None:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())

    try:
        write_atomically(path, write)
    except OSError as error:
        hint = "free some space, or name another folder; a checkpoint written before is whole"
        raise DataError(f"checkpoint {path}", f"cannot be written ({error.strerror})", hint=hint) from None


def damaged(path: Path) -> DataError:
    """What is raised of a file that is no checkpoint."""
    hint = "remove it if it was one, or name another file"
    return DataError(f"checkpoint {path}", "is not a checkpoint of fine-tuning, or is damaged", hint=hint)


def load_best(path: Path, like: Sequence[Tensor]) -> list[Tensor]:
    """The best weights so far of whatever run a checkpoint is of, for parameters of the same shapes.

    In the first epoch none have been compared yet, and the present ones are taken.

    Raises
    ------
    DataError
        If it is no checkpoint, or one of other layers.
    """
    notes, tensors = _read(path)
    progress = notes.get("progress")
    compared = isinstance(progress, dict) and progress.get("best_epoch")
    found = [tensors.get(f"{number}.{'best' if compared else 'averaged'}") for number in range(len(like))]
    shapes = [None if one is None else one.shape for one in found]
    if shapes != [one.shape for one in like] or f"{len(like)}.best" in tensors:
        raise DataError(f"checkpoint {path}", "must hold weights of the layers that the program has")
    return [one.to(parameter) for one, parameter in zip(found, like, strict=True) if one is not None]


def load_checkpoint(
    path: Path, wanted: str, like: Sequence[Tensor], steps: int
) -> tuple[list[dict[str, Tensor]], Progress, list[Epoch]]:
    """Tensors of each parameter, progress and history of a checkpoint.

    Parameters
    ----------
    path
        The file.
    wanted
        Fingerprint of the run that is to go on.
    like
        The parameters.
    steps
        Of an epoch.

    Raises
    ------
    DataError
        If it is no checkpoint, or one of another run.
    """
    notes, tensors = _read(path)
    if notes.get("fingerprint") != wanted:
        hint = "go on with the same program, data and options, or remove the file (--start takes its best weights)"
        requirement = "belongs to another run (program, data, options, seed or torch differ)"
        raise DataError(f"checkpoint {path}", requirement, hint=hint)
    try:
        progress = Progress(**notes["progress"])
        history = [Epoch(**row) for row in notes["history"]]
        found = [{key: tensors[f"{number}.{key}"] for key in _OF_EACH} for number in range(len(like))]
        rows = [asdict(progress), *map(asdict, history)]
        whole = all(type(value) in (int, float, type(None)) for row in rows for value in row.values())
        whole &= all(None not in {**row, **dict.fromkeys(_MAY_LACK, 0)}.values() for row in rows)
        whole &= len(history) == progress.epoch >= progress.best_epoch >= 0
        whole &= progress.epoch * steps <= progress.step <= (progress.epoch + 1) * steps
    except (KeyError, TypeError):
        raise damaged(path) from None
    for one, of_one in zip(like, found, strict=True):
        shapes = [torch.Size() if key == "step" else one.shape for key in _OF_EACH]
        whole &= shapes == [of_one[key].shape for key in _OF_EACH]
        whole &= all(value.dtype == one.dtype for value in of_one.values())
    if not whole:
        raise damaged(path)
    return found, progress, history


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Notes and tensors of a checkpoint, as they were written."""
    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        if length > _MEMBERS:
            raise ValueError("its header is too large")
        members = json.loads(data[8 : 8 + length])["__metadata__"]
        text, tensors = members["notes"], load_tensors(data)
        notes = json.loads(text)
        whole = members["sha256"] == _digest(text, tensors)
    except OSError as error:
        raise DataError(f"checkpoint {path}", f"cannot be read ({error.strerror})") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise damaged(path) from None
    if not whole or not isinstance(notes, dict):
        raise damaged(path)
    return notes, tensors


def _digest(notes: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash of what a checkpoint holds."""
    digest = hashlib.sha256(notes.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
