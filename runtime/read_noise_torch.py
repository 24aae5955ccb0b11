"""Normal numbers for the conversions of a batch, and the noise of its reads, in plain torch operations."""

import numpy as np
import torch
from torch import Tensor

from runtime.batches_torch import Batch
from runtime.channels import NoiseKind, NoiseSource, correlated


class Noise:
    """Standard normal numbers for the reads of batches.

    Parameters
    ----------
    generator
        Where they come from.
    source
        What gives them instead, for each tile, where that is not None.
    """

    def __init__(self, generator: torch.Generator, source: NoiseSource | None) -> None:
        self._generator, self._source = generator, source

    def reseed(self, seed: int) -> None:
        """Let the generator begin anew."""
        self._generator.manual_seed(seed)

    def draw(self, batch: Batch, kind: NoiseKind, digits: int, like: Tensor) -> list[Tensor]:
        """Numbers of the shape of `like`, ``(batch, windows, cols)``, for each digit."""
        if self._source is None:
            options = {"generator": self._generator, "device": like.device, "dtype": like.dtype}
            return [torch.randn(like.shape, **options) for _ in range(digits)]  # type: ignore[call-overload]
        found = np.empty((digits, *like.shape))
        for number, drive in enumerate(batch.drives):
            drawn = []
            for part in drive.parts:
                shape = (digits, like.shape[1], len(part.columns))
                drawn.append(self._source(part.tile, drive.phase, drive.number, kind, shape))
            found[:, number] = drive.side_by_side(drawn)
        return list(torch.as_tensor(found, dtype=like.dtype, device=like.device))


def read_noise(batch: Batch, inputs: list[Tensor], noise: Noise, *, per_vector: bool) -> list[Tensor]:
    """Noise of each digit's read, in the unit of the batch's matrix."""
    assert batch.variance is not None
    power = batch.variance
    like = torch.bmm(inputs[0] ** 2, power)
    draws = noise.draw(batch, "read", len(inputs), like)
    if not per_vector or len(inputs) == 1:
        variances = [like, *(torch.bmm(one**2, power) for one in inputs[1:])]
        return [value.clamp(min=0).sqrt() * z for value, z in zip(variances, draws, strict=True)]
    return correlated(lambda k, j: torch.bmm(inputs[k] * inputs[j], power), draws)
