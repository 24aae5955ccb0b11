"""The one quantiser that compiler, runtime and training share.

Every function takes numpy arrays or torch tensors and gives back the same kind; rounding is to nearest, ties to even.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from hwspec.device import Device
from hwspec.spec import HardwareSpec

if TYPE_CHECKING:
    import torch

    ArrayT = TypeVar("ArrayT", npt.NDArray[Any], "torch.Tensor")
else:
    ArrayT = TypeVar("ArrayT")

Float64 = npt.NDArray[np.float64]


def input_codes(x: ArrayT, full_scale: float, code_max: int | None, signed: bool) -> ArrayT:
    """DAC codes of inputs: symmetric, zero point 0 (``docs/physics.md``, From an input to a code).

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


def output_codes(lsbs: ArrayT, low: int, high: int) -> ArrayT:
    """ADC codes of currents given in units of the lsb: ``clip(round(I / lsb), low, high)``."""
    return lsbs.round().clip(low, high)


def input_digit(codes: ArrayT, base: int, number: int) -> ArrayT:
    """Digit of input codes in this base, the code's sign kept; `number` 0 is the least significant."""
    magnitude = abs(codes)
    digit = magnitude // base**number % base
    found: ArrayT = digit * ((codes > 0) * 1.0 - (codes < 0) * 1.0)
    return found


def level_conductances(device: Device) -> Float64 | None:
    """Conductances of a device's levels, siemens, lowest first; None when they are continuous."""
    if isinstance(device.levels, tuple):
        return np.array(device.levels)
    return None if device.levels is None else np.linspace(device.g_min, device.g_max, device.levels)


def off_target(device: Device) -> int | float:
    """Target of a device that is gated off: the code that follows its last level, or 0 S where levels are continuous.

    No device can be programmed to 0 S: `g_min` is above.
    """
    return 0.0 if device.level_count is None else device.level_count


def is_off(device: Device, targets: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which targets (level codes, or siemens) gate a device off, in their shape."""
    found: npt.NDArray[np.bool_] = targets == off_target(device)
    return found


def target_siemens(device: Device, targets: npt.NDArray[Any]) -> Float64:
    """Conductances of targets (level codes, or siemens) in their shape; 0 S where a device is gated off."""
    levels = level_conductances(device)
    if levels is None:
        return targets
    found: Float64 = np.append(levels, 0.0)[targets]
    return found


def weight_codes(w: Float64, levels: int) -> npt.NDArray[np.int64]:
    """Signed level codes of normalised weights in [-1, 1]: ``round(w (levels - 1))``."""
    return np.rint(w * (levels - 1)).astype(np.int64)


@dataclass(frozen=True)
class WeightCode:
    """How a normalised weight in [-1, 1] becomes the levels of devices.

    With uniform levels a weight is a whole number in base ``levels``, whose digits lie in `slices` devices (or pairs).
    A pair holds its magnitude in the device of its sign; a single device stands for ``w = 2 s - 1``.

    Parameters
    ----------
    device, slices, single
        The device, the devices that a weight's digits lie in, and whether they are read against a reference.
    """

    device: Device
    slices: int = 1
    single: bool = False

    @classmethod
    def of(cls, spec: HardwareSpec) -> "WeightCode":
        """The code of a spec."""
        return cls(spec.device, spec.array.slices, spec.array.pairing == "reference")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of targets: of level codes and the code that gates a device off, or of siemens."""
        return np.min_scalar_type(off_target(self.device)) if self.device.level_count else np.dtype(np.float64)

    def grid(self) -> Float64 | None:
        """Shares of full scale that one sign's weights can have, rising; None when continuous, or of several slices."""
        levels = level_conductances(self.device)
        if levels is None or self.slices > 1:
            return None
        return (levels - self.device.g_min) / self.device.span

    def round(self, w: Float64) -> Float64:
        """The nearest weights that the devices can hold."""
        count = self._count()
        if count is not None:
            if self.single:
                return np.rint((w + 1) / 2 * (count - 1)) * 2 / (count - 1) - 1
            return weight_codes(w, count) / (count - 1)
        grid = self.grid()
        if grid is None:
            return w
        share = grid[_nearest(grid, (w + 1) / 2 if self.single else np.abs(w))]
        return 2 * share - 1 if self.single else np.copysign(share, w)

    def half_gap(self, w: Float64) -> Float64:
        """Half the distance of the two weights that the devices can hold around each of `w`; 0 when continuous."""
        count, grid = self._count(), self.grid()
        if count is not None:
            return np.full_like(w, (1.0 if self.single else 0.5) / (count - 1))
        if grid is None:
            return np.zeros_like(w)
        share = (w + 1) / 2 if self.single else np.abs(w)
        above = np.clip(np.searchsorted(grid, share), 1, len(grid) - 1)
        return (grid[above] - grid[above - 1]) * (1.0 if self.single else 0.5)

    def slice_weight(self, number: int) -> float:
        """Weight that full scale of slice `number` (0 is the least significant) stands for."""
        if self.slices == 1:
            return 1.0
        base = self._base()
        return float((base - 1) * base**number / (base**self.slices - 1))

    def devices(self, w: Float64, number: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """What the devices of a slice are programmed to, for weights as `round` leaves them: level codes, or siemens.

        Of single devices the second array is zero: it holds no device.
        """
        share = self._shares(w)
        if self.device.levels is None:
            found = self.device.g_min + share[0] * self.device.span, self.device.g_min + share[1] * self.device.span
            return (found[0], np.zeros_like(w)) if self.single else found
        return self._codes(share[0], number), self._codes(share[1], number)

    def differences(self, w: Float64, number: int = 0) -> Float64:
        """What a slice contributes for weights as `round` leaves them, in units of its full scale, in [-1, 1]."""
        if self.slices == 1:
            return w
        plus, minus = (self._codes(share, number).astype(np.float64) for share in self._shares(w))
        top = self._base() - 1
        return (2 * plus - top) / top if self.single else (plus - minus) / top

    def _shares(self, w: Float64) -> tuple[Float64, Float64]:
        return ((w + 1) / 2, np.zeros_like(w)) if self.single else (np.maximum(w, 0), np.maximum(-w, 0))

    def _codes(self, share: Float64, number: int) -> npt.NDArray[Any]:
        count = self._count()
        if count is None:
            grid = self.grid()
            assert grid is not None
            codes = _nearest(grid, share)
        else:
            codes = np.rint(share * (count - 1)).astype(np.int64) // self._base() ** number % self._base()
        return codes.astype(self.dtype)

    def _base(self) -> int:
        assert isinstance(self.device.levels, int)
        return self.device.levels

    def _count(self) -> int | None:
        """Values that the magnitude of a weight can have, where they are uniform."""
        return self._base() ** self.slices if isinstance(self.device.levels, int) else None


def _nearest(grid: Float64, values: Float64) -> npt.NDArray[np.int64]:
    """Index of the nearest of rising values."""
    found: npt.NDArray[np.int64] = np.searchsorted((grid[1:] + grid[:-1]) / 2, values)
    return found
