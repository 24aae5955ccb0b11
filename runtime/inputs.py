"""Inputs of a program: names, shapes and types are checked before anything runs."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from runtime.tables import TensorInfo

Array = npt.NDArray[Any]


def bind_inputs(infos: Sequence[TensorInfo], given: Mapping[str, Any] | Any) -> dict[str, Array]:
    """Inputs by name, each of the type that the program wants.

    Parameters
    ----------
    infos
        The program's inputs.
    given
        Arrays by name, or one array for a program with one input.

    Raises
    ------
    DataError
        If a name, shape or type is wrong. Only conversions that keep values are made.
    """
    known = [info.name for info in infos]
    if not isinstance(given, Mapping):
        if len(infos) != 1:
            raise DataError("inputs", f"must be given by name ({', '.join(known)})")
        given = {known[0]: given}
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1) or known
            raise DataError(f"input {name!r}", "is no input of the model", hint=f"did you mean {close[0]!r}?")
    symbols: dict[str, int] = {}
    bound: dict[str, Array] = {}
    for info in infos:
        if info.name not in given:
            raise DataError(f"input {info.name!r}", "must be given")
        try:
            value = np.asarray(given[info.name])
        except ValueError as error:
            raise DataError(f"input {info.name!r}", f"must be a rectangular array ({error})") from None
        check_shape(info, value.shape, symbols)
        check_type(value.dtype, info)
        bound[info.name] = cast_input(value, info)
    return bound


def check_shape(info: TensorInfo, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
    """Refuse a shape that an input cannot have; a symbol stands for one size in all inputs."""
    good = len(shape) == len(info.shape) and 0 not in shape
    for size, wanted in zip(shape, info.shape, strict=False):
        good = good and size == (symbols.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
    if not good:
        raise DataError(f"input {info.name!r}", f"must have shape ({', '.join(map(str, info.shape))})", got=shape)


def check_type(dtype: np.dtype[np.generic], info: TensorInfo) -> None:
    """Refuse arrays of a type that cannot be cast safely to that of the input."""
    target = element_type(info)
    allowed = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}[target.kind]
    if dtype.kind not in allowed:
        hint = "round and cast it yourself if that is meant" if dtype.kind == "f" else ""
        raise DataError(f"input {info.name!r}", f"must be {target} or cast safely to it", got=str(dtype), hint=hint)


def element_type(info: TensorInfo) -> np.dtype[np.generic]:
    """Give the numpy type of an input; refuse one that holds no numbers or that numpy does not know."""
    try:
        target = np.dtype(info.dtype)
    except TypeError:
        target = np.dtype(object)
    if target.kind not in "fiub":
        raise DataError(f"input {info.name!r}", "is of a type that data cannot be read for", got=info.dtype)
    return target


def cast_input(array: Array, info: TensorInfo) -> Array:
    """Cast to the model's type, C order; refuse values that the type cannot hold."""
    subject = f"input {info.name!r}"
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
        values: Array = np.asarray(array, dtype=target, order="C")
    if array.dtype != target and not np.isfinite(values).all():
        raise DataError(subject, f"must hold values in the range of {target}", got=float(np.abs(array).max()))
    return values
