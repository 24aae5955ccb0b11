"""The one quantiser that compiler, runtime and training share.

Every function takes numpy arrays or torch tensors and gives back the same kind; rounding is to nearest, ties to even.
"""

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    ArrayT = TypeVar("ArrayT", npt.NDArray[Any], "torch.Tensor")
else:
    ArrayT = TypeVar("ArrayT")

Float64 = npt.NDArray[np.float64]


def input_codes(x: ArrayT, full_scale: float, code_max: int | None, signed: bool) -> ArrayT:
    """DAC codes of inputs: symmetric, zero point 0 (``physics.md`` section 1, step 1).

    Parameters
    ----------
    x
        Inputs, any shape.
    full_scale
        Input that the largest code stands for.
    code_max
        Largest code; None for an ideal DAC, which gives the fraction of full scale, neither rounded nor clipped.
    signed
        Whether negative codes exist; otherwise negative inputs become 0.
    """
    if code_max is None:
        return x / full_scale
    return (x / (full_scale / code_max)).round().clip(-code_max if signed else 0, code_max)


def output_codes(lsbs: ArrayT, code_max: int) -> ArrayT:
    """ADC codes of currents given in units of the lsb: ``clip(round(I / lsb), -code_max, code_max)``."""
    return lsbs.round().clip(-code_max, code_max)


def level_conductances(g_min: float, g_max: float, levels: int) -> Float64:
    """Conductances of uniformly spaced levels, siemens, lowest first; shape ``(levels,)``."""
    return np.linspace(g_min, g_max, levels)


def weight_codes(w: Float64, levels: int) -> npt.NDArray[np.int32]:
    """Signed level codes of normalised weights in [-1, 1]: ``round(w (levels - 1))``."""
    return np.rint(w * (levels - 1)).astype(np.int32)
