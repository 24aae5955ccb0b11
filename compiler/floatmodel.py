"""The model in floating point, run by onnxruntime with inner values laid open."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt
import onnx

from hwspec.errors import ModelError, ModelFileError
from runtime.host import Session
from runtime.tables import TensorInfo

MAX_DIMENSION = 2**40
"""What a program's tables hold."""

_NUMPY_OF = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "bool": "bool",
    "string": "str",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class FloatModel:
    """A model with more outputs than it had.

    Parameters
    ----------
    model
        An ONNX model.
    expose
        Values of the main graph to give out beside the model's own outputs.
    optimize
        Whether onnxruntime may fuse operators; values laid open then keep it from fusing over them.

    Raises
    ------
    ModelError
        If onnxruntime refuses the model.
    """

    def __init__(self, model: onnx.ModelProto, expose: Iterable[str] = (), *, optimize: bool = False) -> None:
        opened = onnx.ModelProto()
        opened.CopyFrom(model)
        own = {output.name for output in opened.graph.output}
        opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(set(expose) - own))
        try:
            content = opened.SerializeToString()
        except Exception as error:  # protobuf raises its own types past 2 GiB
            raise ModelError("model", f"is too large to be run ({error})") from None
        self._session = Session(content, optimize=optimize, subject="model")
        self.inputs = tuple(tensor_info(argument) for argument in self._session.get_inputs())
        self.outputs = {argument.name: tensor_info(argument) for argument in self._session.get_outputs()}

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], wanted: Iterable[str] | None = None) -> dict[str, Any]:
        """Values by name: the `wanted` ones, or all."""
        names = list(self.outputs if wanted is None else wanted)
        return dict(zip(names, self._session.run(names, feeds), strict=True))


def tensor_info(argument: Any) -> TensorInfo:
    """Name, type and shape of an argument as onnxruntime describes it; ``other`` where it is no tensor."""
    kind = str(argument.type)
    if not kind.startswith("tensor("):
        return TensorInfo(name=argument.name, dtype="other", shape=())
    dtype = _NUMPY_OF.get(kind.removeprefix("tensor(").removesuffix(")"), "other")
    for size in argument.shape:
        if isinstance(size, int) and size > MAX_DIMENSION:
            raise ModelFileError(f"value {argument.name!r}", f"must have dimensions up to {MAX_DIMENSION}", got=size)
    shape = tuple(size if isinstance(size, int) and size >= 0 else str(size or "?") for size in argument.shape)
    return TensorInfo(name=argument.name, dtype=dtype, shape=shape)
