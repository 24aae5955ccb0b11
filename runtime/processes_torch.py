"""Fine-tuning by several processes that torch's launcher started (``torchrun``): each takes its share of a step.

All of them hold the same weights throughout; the first one writes the files.
"""

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed


def is_first() -> bool:
    """Whether this process is the one that writes files, of those that the launcher started; no one else does."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or int(os.environ.get("RANK", "0")) == 0


class Processes:
    """The processes of a run; one, unless the launcher says otherwise.

    Attributes
    ----------
    rank, count
        Number of this process, and how many there are.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.count > 1 else 0
        if self.count > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo")

    def share(self, chosen: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], float]:
        """This process's part of the samples of a step, never empty, and its weight in their mean loss.

        Where there are fewer samples than processes, each takes all of them.
        """
        if len(chosen) < self.count:
            return chosen, 1 / self.count
        part = np.array_split(chosen, self.count)[self.rank]
        return part, len(part) / len(chosen)

    def sum(self, loss: float, gradients: Sequence[Tensor]) -> float:
        """The loss of all processes together; their gradients are added up in place."""
        if self.count == 1:
            return loss
        together = torch.tensor([loss], dtype=torch.float64)
        distributed.all_reduce(together)
        for gradient in gradients:
            there = gradient.cpu()
            distributed.all_reduce(there)
            gradient.copy_(there)
        return float(together)
