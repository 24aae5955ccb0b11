"""Digital segments in onnxruntime."""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from hwspec.errors import DataError, ModelError, XbarcError


def _run_seconds() -> float:
    given = os.environ.get("XBARC_RUN_SECONDS", "900")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise DataError("XBARC_RUN_SECONDS", "must be a positive number of seconds", got=given)
    return seconds


RUN_SECONDS = _run_seconds()
"""How long one run of a model may take before it is stopped: a loop in a hostile model need never end."""


class RunTimeout(XbarcError):  # noqa: N818
    """A run in onnxruntime took longer than it may."""

    def __init__(self) -> None:
        super().__init__("model", f"must run within {RUN_SECONDS:g} s", hint="set XBARC_RUN_SECONDS to allow more")


class Session:
    """An onnxruntime session that does not spin, is stopped when a run takes too long, and raises one kind of error."""

    def __init__(self, model: bytes, *, optimize: bool, subject: str) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        # Not beyond the basic level: higher ones put approximate operators in (for quantised weights, for example).
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC if optimize else levels.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many types, RuntimeError among them
            raise ModelError(subject, f"cannot be run by onnxruntime ({_reason(error)})") from None

    def get_inputs(self) -> Sequence[Any]:
        """Input arguments, as onnxruntime describes them."""
        inputs: Sequence[Any] = self._session.get_inputs()
        return inputs

    def get_outputs(self) -> Sequence[Any]:
        """Output arguments, as onnxruntime describes them."""
        outputs: Sequence[Any] = self._session.get_outputs()
        return outputs

    def run(self, names: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]) -> list[Any]:
        """Outputs by name.

        Raises
        ------
        ModelError
            If onnxruntime fails on these inputs.
        RunTimeout
            If the run takes longer than `RUN_SECONDS`.
        """
        if not names:
            return []  # onnxruntime takes an empty list for "all outputs"
        options = ort.RunOptions()
        options.log_severity_level = 4
        late = threading.Event()

        def stop() -> None:
            late.set()
            options.terminate = True

        timer = threading.Timer(RUN_SECONDS, stop)
        timer.daemon = True
        timer.start()
        try:
            results: list[Any] = self._session.run(list(names), dict(feeds), options)
        except Exception as error:  # onnxruntime raises many types
            if late.is_set():
                raise RunTimeout from None
            if "allocate memory" in str(error) or "bad_alloc" in str(error):
                raise MemoryError from None
            raise ModelError("model", f"cannot be run on these inputs ({_reason(error)})") from None
        finally:
            timer.cancel()
        return results


class HostSegment:
    """A digital segment: a small ONNX model run in onnxruntime."""

    def __init__(self, name: str, model: bytes) -> None:
        self._session = Session(model, optimize=True, subject=f"segment {name!r}")

    def __call__(self, values: Sequence[npt.NDArray[Any]]) -> list[Any]:
        """Outputs of the segment, in the order of its graph; `values` in the order of its inputs."""
        arguments = self._session.get_inputs()
        feeds = {argument.name: np.asarray(value) for argument, value in zip(arguments, values, strict=True)}
        return self._session.run([argument.name for argument in self._session.get_outputs()], feeds)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
