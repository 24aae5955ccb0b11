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

_FORMAT = 1
_OF_EACH = ("value", "averaged", "best", "step", "exp_avg", "exp_avg_sq")
"""Tensors of each parameter."""
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
    notes = {"fingerprint": wanted, "progress": asdict(progress), "history": [asdict(row) for row in history]}
    data = save_tensors(kept, {"notes": json.dumps(notes)})

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
    return DataError(f"checkpoint {path}", "is not a checkpoint of fine-tuning, or is damaged", hint="remove it")


def load_checkpoint(
    path: Path, wanted: str, like: Sequence[Tensor]
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

    Raises
    ------
    DataError
        If it is no checkpoint, or one of another run.
    """
    subject = f"checkpoint {path}"
    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        if length > _MEMBERS:
            raise ValueError("its header is too large")
        notes = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["notes"])
        tensors = load_tensors(data)
    except OSError as error:
        raise DataError(subject, f"cannot be read ({error.strerror})") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise damaged(path) from None
    if not isinstance(notes, dict) or notes.get("fingerprint") != wanted:
        hint = "go on with the same program, data and options, or remove the file"
        raise DataError(subject, "belongs to another run (program, data, options, seed or torch differ)", hint=hint)
    try:
        progress = Progress(**notes["progress"])
        history = [Epoch(**row) for row in notes["history"]]
        found = [{key: tensors[f"{number}.{key}"] for key in _OF_EACH} for number in range(len(like))]
        whole = all(isinstance(value, int | float) for value in asdict(progress).values())
        whole &= progress.epoch == len(history) and progress.step >= 0
    except (KeyError, TypeError):
        raise damaged(path) from None
    for one, of_one in zip(like, found, strict=True):
        shapes = [torch.Size() if key == "step" else one.shape for key in _OF_EACH]
        whole &= shapes == [of_one[key].shape for key in _OF_EACH]
        whole &= all(value.dtype == one.dtype for value in of_one.values())
    if not whole:
        raise damaged(path)
    return found, progress, history
