"""Checks and casts of arrays against the inputs of a model."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from hwspec.errors import DataError
from xbarc.npz import ArrayHeader
from xbarc.sample_axis import is_symbolic, sample_axes

LABELS = "labels"
"""Name of the array of labels beside the inputs."""


class TensorInfo(Protocol):
    """Name, type and shape of an input of a model."""

    @property
    def name(self) -> str:
        """Name of the input."""

    @property
    def dtype(self) -> str:
        """Type of its elements by numpy's name, such as ``float32``."""

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Size of each axis; a string is a symbolic one."""


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
        _check_type(header.dtype, info)
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


def _check_type(dtype: np.dtype[np.generic], info: TensorInfo) -> None:
    target = element_type(info)
    allowed = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}[target.kind]
    if dtype.kind not in allowed:
        hint = "round and cast it yourself if that is meant" if dtype.kind == "f" else ""
        raise DataError(f"input '{info.name}'", f"must be {target} or cast safely to it", got=str(dtype), hint=hint)


def element_type(info: TensorInfo) -> np.dtype[np.generic]:
    """Give the numpy type of an input; refuse one that holds no numbers or that numpy does not know."""
    try:
        target = np.dtype(info.dtype)
    except TypeError:
        target = np.dtype(object)
    if target.kind not in "fiub":
        raise DataError(f"input '{info.name}'", "is of a type that data cannot be read for", got=info.dtype)
    return target


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


def cast_input(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Cast to the model's type, C order; refuse values that the type cannot hold."""
    subject = f"input '{info.name}'"
    target = element_type(info)
    if target.kind in "iu" and array.dtype.kind in "iu" and array.size and array.dtype != target:
        low, high = int(array.min()), int(array.max())
        limits = np.iinfo(target.name)
        if low < limits.min or high > limits.max:
            raise DataError(subject, f"must hold values in the range of {target}", got=(low, high))
    if target.kind != "f":
        return np.asarray(array, dtype=target, order="C")
    if not np.isfinite(array).all():
        first = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise DataError(subject, "must hold finite numbers", got=float(array[first]), hint=f"first at index {first}")
    with np.errstate(over="ignore"):
        values: np.ndarray = np.asarray(array, dtype=target, order="C")
    if array.dtype != target and not np.isfinite(values).all():
        raise DataError(subject, f"must hold values in the range of {target}", got=float(np.abs(array).max()))
    return values


def cast_labels(labels: np.ndarray) -> np.ndarray:
    """Cast the labels to int64; refuse negative ones."""
    if int(labels.min()) < 0 or int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError("labels", "must be class indices from 0 up", got=(int(labels.min()), int(labels.max())))
    return labels.astype(np.int64)
