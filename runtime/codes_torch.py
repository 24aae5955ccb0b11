"""DAC codes of some samples on the CPU, and blocks of their windows: each worked out once for all that needs it."""

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwspec.errors import DataError
from hwspec.spec import HardwareSpec
from runtime.batches_torch import digit_inputs
from runtime.geometry import conv_windows
from runtime.loops_torch import CompiledLoop
from runtime.plans_torch import ROUND
from runtime.tables import Phase
from runtime.windows_numba import gather_windows, write_codes

Array = npt.NDArray[Any]


class Workspace:
    """Memory of one worker, kept between blocks."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Memory of this shape, with whatever was in it."""
        count = prod(shape)
        if name not in self._held or len(self._held[name]) < count:
            self._held[name] = torch.empty(count, dtype=self.dtype)
        return self._held[name][:count].view(shape)


class SampleCodes:
    """DAC codes of some samples, channels last and with their margins.

    Parameters
    ----------
    loop, spec
        The loop, and the hardware that it runs on.
    x
        Its input for these samples: images, or vectors ``(windows, channels)``.
    space
        Memory for the codes.

    Raises
    ------
    DataError
        If an input is not finite.
    """

    def __init__(self, loop: CompiledLoop, spec: HardwareSpec, x: Tensor, space: Workspace) -> None:
        self.loop, self._spec, self._space = loop, spec, space
        gather = loop.gather
        missing = 3 - len(gather.kernel)
        if gather.kind == "vectors":
            images = x.reshape(len(x), 1, 1, 1, -1)
            pads: tuple[tuple[int, int], ...] = ((0, 0),) * 3
            of_axes: tuple[tuple[int, ...], ...] = ((), (), (), ())
        else:
            windows = conv_windows(gather, tuple(x.shape[2:]))
            images = x.movedim(1, -1).reshape(len(x), *(1,) * missing, *x.shape[2:], x.shape[1])
            pads = ((0, 0),) * missing + windows.pads
            of_axes = (windows.out, gather.kernel, gather.strides, gather.dilations)
        self.axes = np.array([(1,) * (3 - len(values)) + tuple(values) for values in of_axes])
        self.count = len(x) * int(self.axes[0].prod())
        sizes = [size + begin + end for size, (begin, end) in zip(images.shape[1:4], pads, strict=True)]
        self.codes = space.take("codes", len(x), *sizes, gather.channels)
        if any(map(any, pads)):
            self.codes.zero_()
        self._write(images, np.array([begin for begin, _ in pads]))
        self._driven: dict[Phase, list[Tensor]] = {}

    @property
    def direct(self) -> bool:
        """Whether a window is one pixel, and all of them follow one another."""
        return bool((self.axes[1:3] == 1).all())

    def driven(self, phase: Phase) -> list[Tensor]:
        """What each digit of the codes that a phase drives multiplies the matrices with, in the shape of the codes."""
        if phase not in self._driven:
            codes = self.codes
            part = codes if phase == "both" else (codes if phase == "+" else -codes).clamp(min=0)
            drive, suffice = self.loop.drive, self.loop.in_codes
            self._driven[phase] = digit_inputs(part, drive, self._spec, codes_suffice=suffice)[0]
        return self._driven[phase]

    def _write(self, images: Tensor, begins: npt.NDArray[np.int64]) -> None:
        loop = self.loop
        kind = to_numpy(self.codes).dtype.type
        top = loop.drive.code_max
        step = kind(loop.full_scale if top is None else loop.full_scale / top)
        low, high = kind(-(top or 0) if loop.signed else 0), kind(top or 0)
        magic = kind(0 if top is None else ROUND[self.codes.dtype])
        values = to_numpy(images.to(self.codes.dtype).contiguous())
        if not write_codes(values, step, low, high, magic, begins, to_numpy(self.codes)):
            raise DataError(f"input of layer {loop.layer!r}", "must be finite, and has NaN or infinite values")


class Block:
    """Some windows of some samples.

    Parameters
    ----------
    samples
        Their codes.
    start, stop
        Numbers of the windows among those of the samples.
    space
        Memory for what they hold.
    """

    def __init__(self, samples: SampleCodes, start: int, stop: int, space: Workspace) -> None:
        self.samples, self.start, self.count, self._space = samples, start, stop - start, space
        self._windows: dict[tuple[Phase, int], Tensor] = {}
        self._squares: dict[tuple[Phase, int], Tensor] = {}

    def codes(self) -> Tensor:
        """The codes themselves, ``(windows, length)``."""
        return self._gather(self.samples.codes, "plain")

    def inputs(self, phase: Phase, digit: int) -> Tensor:
        """What a digit of the codes that a phase drives multiplies the matrices with, ``(windows, length)``."""
        key = phase, digit
        if key not in self._windows:
            self._windows[key] = self._gather(self.samples.driven(phase)[digit], f"{phase}{digit}")
        return self._windows[key]

    def squares(self, phase: Phase, digit: int) -> Tensor:
        """Squares of the inputs."""
        key = phase, digit
        if key not in self._squares:
            inputs = self.inputs(phase, digit)
            out = self._space.take(f"squares{phase}{digit}", *inputs.shape)
            self._squares[key] = torch.mul(inputs, inputs, out=out)
        return self._squares[key]

    def _gather(self, pixels: Tensor, name: str) -> Tensor:
        samples, gather = self.samples, self.samples.loop.gather
        if samples.direct:
            return pixels.view(-1, gather.channels)[self.start : self.start + self.count]
        found = self._space.take(f"windows{name}", self.count, gather.length)
        gather_windows(to_numpy(pixels), self.start, samples.axes, gather.groups, to_numpy(found))
        return found


def to_numpy(value: Tensor) -> Array:
    """The same memory as an array."""
    found: Array = value.numpy()
    return found
