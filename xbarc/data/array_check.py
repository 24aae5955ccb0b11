"""Checks and casts of arrays against the inputs of a model."""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from hwspec.errors import DataError
from hwspec.npz import ArrayHeader
from runtime.inputs import check_type
from runtime.tables import TensorInfo
from xbarc.data.sample_axis import is_symbolic, sample_axes

LABELS = "labels"
"""Name of the array of labels beside the inputs."""


def is_input(name: str, inputs: Sequence[TensorInfo]) -> bool:
    """Tell whether a model has an input of this name."""
    return any(info.name == name for info in inputs)


def check_arrays(headers: Mapping[str, ArrayHeader], inputs: Sequence[TensorInfo]) -> None:
    """Check names, types, shapes and sample counts; values are not needed.

    Parameters
    ----------
    headers
        Shape and type of each array by name; ``labels`` may be among them.
    inputs
        The inputs of the model.

    Raises
    ------
    DataError
        A name, type, rank or size is not the model's, arrays differ in samples, or there are none.
    """
    _check_names(tuple(headers), tuple(info.name for info in inputs))
    counts: dict[str, int] = {}
    for info, axis in zip(inputs, sample_axes([info.shape for info in inputs]), strict=True):
        header = headers[info.name]
        check_type(header.dtype, info)
        _check_shape(header.shape, info, axis)
        if axis is not None:
            counts[info.name] = header.shape[axis]
    if LABELS in headers and not is_input(LABELS, inputs):
        header = headers[LABELS]
        if len(header.shape) != 1:
            raise DataError("labels", "must have one axis, one class a sample", got=header.shape)
        if header.dtype.kind not in "iu":
            raise DataError("labels", "must be integers", got=str(header.dtype))
        counts[LABELS] = header.shape[0]
    if len(set(counts.values())) > 1:
        raise DataError("data", "must have as many samples in every array", got=counts)
    if 0 in counts.values():
        raise DataError("data", "must hold at least one sample")


def _check_names(names: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in names]
    extra = [name for name in names if name not in (*wanted, LABELS)]
    if not missing and not extra:
        return
    near = [(name, difflib.get_close_matches(name, missing or wanted, n=1)) for name in extra]
    pairs = [f"'{match[0]}' for '{name}'" for name, match in near if match]
    if pairs:
        hint = f"did you mean {', '.join(pairs)}?"
    else:
        hint = f"missing: {', '.join(missing)}" if missing else f"not an input: {', '.join(extra)}"
    raise DataError("data", f"must name its arrays after the model's inputs, {wanted}", got=names, hint=hint)


def _check_shape(shape: tuple[int, ...], info: TensorInfo, axis: int | None) -> None:
    wanted = info.shape
    fits = len(shape) == len(wanted) and all(
        index == axis or is_symbolic(dim) or size == dim
        for index, (size, dim) in enumerate(zip(shape, wanted, strict=True))
    )
    if fits:
        return
    dims = ["samples" if index == axis else str(dim) for index, dim in enumerate(wanted)]
    text = f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"
    hint = ""
    if axis is not None and shape == tuple(dim for index, dim in enumerate(wanted) if index != axis):
        hint = "add the axis of samples: x[None]" if axis == 0 else f"add the axis of samples, axis {axis}"
    elif len(shape) == len(wanted) == 4 and (shape[3], *shape[1:3]) == tuple(wanted[1:]):
        hint = "it looks channels-last: x.transpose(0, 3, 1, 2)"
    raise DataError(f"input '{info.name}'", f"must have shape {text}", got=shape, hint=hint)


def cast_labels(labels: np.ndarray) -> np.ndarray:
    """Cast the labels to int64; refuse negative ones."""
    if int(labels.min()) < 0 or int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError("labels", "must be class indices from 0 up", got=(int(labels.min()), int(labels.max())))
    return labels.astype(np.int64)
