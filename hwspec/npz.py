"""Arrays in ``.npy`` and ``.npz`` files, read without pickle and without trusting what the file declares."""

import io
import math
import tokenize
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from hwspec.errors import DataError
from hwspec.zip_archive import checked_members, open_archive, reading

MAX_BYTES = 8 * 2**30
"""The most that the arrays of one file may take in memory, in bytes."""

_CHUNK = 2**24
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and type of an array, known before its values are read."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran_order: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes that the values take."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(path: Path, check: Callable[[Mapping[str, ArrayHeader]], None]) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file.

    Parameters
    ----------
    path
        The file, as ``numpy.savez`` or ``numpy.savez_compressed`` writes it.
    check
        Called with the header of every array before any values are decompressed; raises to refuse them.

    Returns
    -------
    dict
        The arrays by name, writable and in C order.

    Raises
    ------
    DataError
        The archive is damaged or hostile, holds something that is no array of numbers, or is larger than `MAX_BYTES`.
    """
    with open_archive(path) as archive:
        members = checked_members(archive, member_bytes=MAX_BYTES)
        declared = sum(member.file_size for member in members)
        if declared > MAX_BYTES:
            raise DataError(f"archive '{path}'", f"must declare at most {MAX_BYTES} bytes in total", got=declared)
        named = {_array_name(member, path): member for member in members}
        headers: dict[str, ArrayHeader] = {}
        for name, member in named.items():
            subject = f"array '{name}' of '{path}'"
            with reading(subject), archive.open(member) as stream:
                headers[name] = _read_header(stream, member.file_size, subject)
        check(headers)
        arrays: dict[str, np.ndarray] = {}
        for name, member in named.items():
            subject = f"array '{name}' of '{path}'"
            with reading(subject), archive.open(member) as stream:
                _read_header(stream, member.file_size, subject)
                arrays[name] = _read_values(stream, headers[name], subject)
        return arrays


def read_npy(path: Path) -> np.ndarray:
    """Read the one array of an ``.npy`` file, writable and in C order.

    Raises
    ------
    DataError
        The file is damaged, holds no array of numbers, or is larger than `MAX_BYTES`.
    """
    subject = f"array file '{path}'"
    with reading(subject), path.open("rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        if size > MAX_BYTES:
            raise DataError(subject, f"must be at most {MAX_BYTES} bytes", got=size)
        return _read_values(stream, _read_header(stream, size, subject), subject)


def _array_name(member: zipfile.ZipInfo, path: Path) -> str:
    if not member.filename.endswith(".npy"):
        raise DataError(
            f"archive '{path}'", "must hold arrays (.npy) only", got=member.filename, hint="write it with numpy.savez"
        )
    return member.filename.removesuffix(".npy")


def _read_header(stream: IO[bytes], size: int, subject: str) -> ArrayHeader:
    """Read the header of an array that takes ``size`` bytes in all; the stream then stands at its values."""
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise DataError(subject, "must be in version 1.0 or 2.0 of the npy format", got=version)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about headers that Python 2 wrote, which are read alike
            shape, fortran_order, dtype = _HEADERS[version](stream)
    except DataError:
        raise
    # What numpy lets through of its parser: it reads a header as a Python literal.
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise DataError(subject, f"must be an array in numpy's npy format: {error}") from error
    header = ArrayHeader(shape, dtype, fortran_order)
    if dtype.kind not in "biuf":
        hint = "objects would need pickle, which is never used" if dtype.hasobject else ""
        raise DataError(subject, "must be an array of numbers", got=str(dtype), hint=hint)
    if min(shape, default=0) < 0 or stream.tell() + header.nbytes != size:
        raise DataError(subject, f"declares shape {shape} of {dtype}, which does not fit the {size} bytes it takes")
    return header


def _read_values(stream: IO[bytes], header: ArrayHeader, subject: str) -> np.ndarray:
    values = bytearray(header.nbytes)
    done = 0
    while done < len(values):
        chunk = stream.read(min(_CHUNK, len(values) - done))
        if not chunk:
            raise DataError(subject, f"ends after {done} of its {len(values)} bytes", hint="is the file complete?")
        values[done : done + len(chunk)] = chunk
        done += len(chunk)
    flat = np.frombuffer(values, dtype=header.dtype)
    return np.asarray(flat.reshape(header.shape, order="F" if header.fortran_order else "C"), order="C")
