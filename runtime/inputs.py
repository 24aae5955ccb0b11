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
    if not isinstance(given, Mapping):
        if len(infos) != 1:
            names = ", ".join(info.name for info in infos)
            raise DataError("inputs", f"must be given by name ({names})")
        given = {infos[0].name: given}
    for name in given:
        known = [info.name for info in infos]
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1) or known
            raise DataError(
                f"input {name!r}", "is no input of the model", hint=f"did you mean {close[0]!r}?" if close else ""
            )
    bound: dict[str, Array] = {}
    symbols: dict[str, int] = {}
    for info in infos:
        if info.name not in given:
            raise DataError(f"input {info.name!r}", "must be given")
        bound[info.name] = _bind(info, np.asarray(given[info.name]), symbols)
    return bound


def _bind(info: TensorInfo, value: Array, symbols: dict[str, int]) -> Array:
    subject = f"input {info.name!r}"
    if info.shape is not None:
        expected = ",".join(map(str, info.shape))
        good = value.ndim == len(info.shape)
        for size, wanted in zip(value.shape, info.shape, strict=False):
            good = good and size == (wanted if isinstance(wanted, int) else symbols.setdefault(wanted, size))
        if not good:
            raise DataError(subject, f"must have shape ({expected})", got=tuple(value.shape))
        if 0 in value.shape and 0 not in info.shape:
            raise DataError(subject, f"must have shape ({expected}) without empty dimensions", got=tuple(value.shape))
    if info.dtype in ("other", "str"):
        return value
    if value.dtype != np.dtype(info.dtype):
        same_kind = value.dtype.kind == np.dtype(info.dtype).kind
        if not (same_kind or np.can_cast(value.dtype, info.dtype)):
            raise DataError(subject, f"must be of type {info.dtype}", got=str(value.dtype))
        cast = value.astype(info.dtype)
        if value.dtype.kind in "iu" and not np.array_equal(cast, value):
            raise DataError(subject, f"must have values that fit into {info.dtype}", got=str(value.dtype))
        value = cast
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise DataError(subject, "must be finite, and has NaN or infinite values")
    return value
