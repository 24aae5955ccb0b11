"""The original model as a teacher in torch, for devices that onnxruntime does not compute on."""

from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor

from runtime.host_torch import TorchSegment


class TorchTeacher:
    """Outputs of a model for tensors that lie where it computes.

    Parameters
    ----------
    model
        The model, all of whose operators have a torch translation (`runtime.host_torch.untranslatable`).
    outputs
        Names of the outputs that teach.
    device
        Where it computes.
    """

    def __init__(self, model: onnx.ModelProto, outputs: Sequence[str], device: str | torch.device) -> None:
        self._segment, self._outputs = TorchSegment(model, device), tuple(outputs)

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs, in order; inputs that the model does not have are left out."""
        wanted = self._segment.inputs
        found = self._segment({name: one.to(wanted[name]) for name, one in inputs.items() if name in wanted})
        return [found[name] for name in self._outputs]
