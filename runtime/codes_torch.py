"""DAC codes of some samples on the CPU, and blocks of their windows: each worked out once for all that needs it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwspec.errors import NotFiniteError
from hwspec.spec import HardwareSpec
from runtime.batches_torch import digit_inputs
from runtime.geometry import conv_windows
from runtime.loops_torch import CompiledLoop
from runtime.plans_torch import ROUND
from runtime.tables import Phase
from runtime.windows_numba import gather_windows, write_codes
from runtime.workers_torch import Workspace

Array = npt.NDArray[Any]


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
        self.loop, self._spec = loop, spec
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
        self.begins = np.array([begin for begin, _ in pads])
        self.images = images.to(self.codes.dtype).contiguous()
        self._write()
        self._parts: dict[Phase, Tensor] = {"both": self.codes}
        self._driven: dict[Phase, list[Tensor]] = {}

    @property
    def direct(self) -> bool:
        """Whether a window is one pixel, and all of them follow one another."""
        return bool((self.axes[1:3] == 1).all())

    def part(self, phase: Phase) -> Tensor:
        """The part of the codes that a phase drives, in their shape."""
        if phase not in self._parts:
            self._parts[phase] = (self.codes if phase == "+" else -self.codes).clamp(min=0)
        return self._parts[phase]

    def driven(self, phase: Phase) -> list[Tensor]:
        """What each digit of the codes that a phase drives multiplies the matrices with, in the shape of the codes."""
        if phase not in self._driven:
            drive, suffice = self.loop.drive, self.loop.in_codes
            self._driven[phase] = digit_inputs(self.part(phase), drive, self._spec, codes_suffice=suffice)[0]
        return self._driven[phase]

    @property
    def step(self) -> Any:
        """Input of one code, in the type that is computed in."""
        top = self.loop.drive.code_max
        return self._number(self.loop.full_scale if top is None else self.loop.full_scale / top)

    def limits(self, none: float) -> tuple[Any, Any]:
        """Smallest and largest code; minus and plus `none` for an ideal DAC."""
        top = self.loop.drive.code_max
        if top is None:
            return self._number(-none), self._number(none)
        return self._number(-top if self.loop.signed else 0), self._number(top)

    def _number(self, value: float) -> Any:
        return to_numpy(self.codes).dtype.type(value)

    def _write(self) -> None:
        magic = self._number(0 if self.loop.drive.code_max is None else ROUND[self.codes.dtype])
        arguments = self.step, *self.limits(0.0), magic, self.begins, to_numpy(self.codes)
        if not write_codes(to_numpy(self.images), *arguments):
            name = self.loop.layer
            raise NotFiniteError(f"input of layer {name!r}", "must be finite, and has NaN or infinite values")


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
    copy
        Of the layer's matrix that takes them.
    """

    def __init__(self, samples: SampleCodes, start: int, stop: int, space: Workspace, copy: int = 0) -> None:
        self.samples, self.start, self.count, self._space = samples, start, stop - start, space
        self.copy = copy
        self._windows: dict[str, Tensor] = {}
        self._squares: dict[tuple[Phase, int], Tensor] = {}

    def codes(self) -> Tensor:
        """The codes themselves, ``(windows, length)``."""
        return self.part("both")

    def inputs(self, phase: Phase, digit: int) -> Tensor:
        """What a digit of the codes that a phase drives multiplies the matrices with, ``(windows, length)``."""
        if self.samples.loop.drive.digits == 1 and self.samples.loop.in_codes:
            return self.part(phase)
        return self._gather(self.samples.driven(phase)[digit], f"digit{phase}{digit}")

    def part(self, phase: Phase) -> Tensor:
        """The part of the codes that a phase drives, ``(windows, length)``."""
        return self._gather(self.samples.part(phase), f"part{phase}")

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
        if name not in self._windows:
            self._windows[name] = self._space.take(f"windows{name}", self.count, gather.length)
            out = to_numpy(self._windows[name])
            gather_windows(to_numpy(pixels), self.start, samples.axes, gather.groups, out)
        return self._windows[name]


def to_numpy(value: Tensor) -> Array:
    """The same memory as an array."""
    found: Array = value.numpy()
    return found
