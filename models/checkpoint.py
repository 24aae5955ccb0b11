"""Checkpoints of a training run: one safetensors file, replaced whole; a killed run goes on to the same result."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_checkpoint(
    path: Path,
    networks: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    progress: dict[str, float],
) -> None:
    """Write everything that the next epoch depends on, and rename it into place.

    Parameters
    ----------
    path
        The file; an older one is replaced.
    networks
        Modules by name.
    optimizer
        Its state of each parameter is kept.
    generator
        Its state is kept.
    progress
        Numbers that JSON holds.
    """
    tensors = {
        f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()
    }
    tensors |= {key: value for key, _, _, value in _optimizer_state(optimizer)}
    tensors["generator"] = generator.get_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(
        {key: value.detach().clone().contiguous() for key, value in tensors.items()},
        partial,
        metadata={"progress": json.dumps(progress)},
    )
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(path)


def load_checkpoint(
    path: Path, networks: dict[str, nn.Module], optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, float]:
    """Take a run up where a checkpoint left it; returns its progress.

    Parameters
    ----------
    path
        A file of `save_checkpoint`.
    networks, optimizer, generator
        As they were built for a new run, on the device of that run; they are changed in place.

    Raises
    ------
    ValueError
        The run was on another kind of device, whose generator draws other numbers.
    """
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        progress = json.loads(file.metadata()["progress"])
    for name, network in networks.items():
        prefix = f"{name}."
        network.load_state_dict(
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".")
            parameter = parameters[int(index)]
            kept = value.contiguous(memory_format=_format_of(parameter)) if value.dim() == 4 else value
            optimizer.state[parameter][field] = kept if field == "step" else kept.to(parameter.device)
    if len(tensors["generator"]) != len(generator.get_state()):
        raise ValueError(f"checkpoint {path} was written on another kind of device than {generator.device}")
    generator.set_state(tensors["generator"])
    return dict(progress)


def _optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, int, str, Tensor]]:
    """Yield key, parameter number, field and tensor of everything that the optimizer remembers."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        for field, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                yield f"optimizer.{index}.{field}", index, field, value


def _format_of(parameter: Tensor) -> torch.memory_format:
    """Whether a weight of a convolution lies channels-last."""
    channels_last = parameter.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
