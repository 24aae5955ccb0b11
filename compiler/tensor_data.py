"""Tensors of a model file: whether they hold the data that they declare, and folding in what lies in other files."""

import math
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import onnx
import onnx_ir as ir

from hwspec.errors import ModelFileError

_MAX_DIGITS = 19

_TYPED_FIELD = {
    "FLOAT": "float_data",
    "COMPLEX64": "float_data",
    "DOUBLE": "double_data",
    "COMPLEX128": "double_data",
    "INT64": "int64_data",
    "UINT32": "uint64_data",
    "UINT64": "uint64_data",
    "STRING": "string_data",
}
"""Typed field of each data type; every other type keeps its data in ``int32_data``."""


@dataclass(frozen=True)
class _ExternalRange:
    """The bytes of a file that are a tensor's data."""

    tensor: onnx.TensorProto
    file: Path
    offset: int
    length: int


def has_external_data(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor keeps its data in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def tensor_dtype(tensor: onnx.TensorProto, subject: str) -> ir.DataType:
    """The element type of a tensor, which must be one that ONNX defines."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelFileError(subject, "must have a known data type", got=tensor.data_type)
    return dtype


def check_tensor(tensor: onnx.TensorProto, subject: str) -> None:
    """Check that a tensor in the file holds exactly ``product(dims)`` elements of a known type.

    Raises
    ------
    ModelFileError
        The type is unknown, a dimension is negative, or more or less data is present than the dimensions say.
    """
    dtype = tensor_dtype(tensor, subject)
    elements = _element_count(tensor, subject)
    if tensor.HasField("segment"):
        raise ModelFileError(subject, "must not be stored in segments")
    if tensor.raw_data:
        if dtype == ir.DataType.STRING:
            raise ModelFileError(subject, "must keep strings in string_data, not in raw_data")
        unit, present, wanted = "bytes", len(tensor.raw_data), _byte_count(dtype, elements)
    else:
        field = _TYPED_FIELD.get(dtype.name, "int32_data")
        unit, present, wanted = f"entries of {field}", len(getattr(tensor, field)), _entry_count(dtype, elements)
    if present != wanted:
        raise ModelFileError(
            subject, f"of shape {list(tensor.dims)} and type {dtype.name} must hold {wanted} {unit}", got=present
        )


def fold_external_data(tensors: list[tuple[onnx.TensorProto, str]], folder: Path, budget: int) -> None:
    """Replace references to other files by their data, in place, after all of them have been checked.

    Parameters
    ----------
    tensors
        Tensors with external data, each with the words that name it in an error.
    folder
        The folder of the model file; the data must be regular files inside it.
    budget
        Bytes that may be added to the model.

    Raises
    ------
    ModelFileError
        A location leaves the folder, or offset, length, file size and shape do not agree.
    """
    try:
        root = folder.resolve(strict=True)
    except OSError as error:
        raise ModelFileError(str(folder), f"cannot be read: {error}") from None
    ranges = [_external_range(tensor, subject, root) for tensor, subject in tensors]
    if sum(piece.length for piece in ranges) > budget:
        raise ModelFileError(
            "the model", "must stay under 2 GiB with its external data folded in", hint="use a smaller model"
        )
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}
        for piece in ranges:
            try:
                if piece.file not in files:
                    files[piece.file] = stack.enter_context(piece.file.open("rb"))
                files[piece.file].seek(piece.offset)
                data = files[piece.file].read(piece.length)
            except OSError as error:
                raise ModelFileError(str(piece.file), f"cannot be read: {error}") from None
            if len(data) != piece.length:
                raise ModelFileError(str(piece.file), "became shorter while it was being read")
            piece.tensor.raw_data = data
            piece.tensor.ClearField("external_data")
            piece.tensor.ClearField("data_location")


def _external_range(tensor: onnx.TensorProto, subject: str, root: Path) -> _ExternalRange:
    """Where a tensor's data lies, checked against the real file and the tensor's shape."""
    dtype = tensor_dtype(tensor, subject)
    if dtype == ir.DataType.STRING:
        raise ModelFileError(subject, "must not keep strings in another file")
    fields = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
    if any(len(getattr(tensor, field)) for field in fields):
        raise ModelFileError(subject, "must keep its data either in the model or in another file, but does both")
    wanted = _byte_count(dtype, _element_count(tensor, subject))
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise ModelFileError(subject, "must give each key of its external data once")
    file = _locate(entries.get("location", ""), subject, root)
    offset = _whole_number(entries.get("offset", "0"), "offset", subject)
    length = _whole_number(entries.get("length", str(wanted)), "length", subject)
    size = file.stat().st_size
    if length != wanted:
        raise ModelFileError(
            subject, f"of shape {list(tensor.dims)} and type {dtype.name} must name {wanted} bytes of data", got=length
        )
    if offset + length > size:
        raise ModelFileError(
            subject,
            f"needs bytes {offset} to {offset + length} of {file.name!r}, which has only {size}",
            hint="is the data file complete and the one that belongs to this model?",
        )
    return _ExternalRange(tensor, file, offset, length)


def _locate(location: str, subject: str, root: Path) -> Path:
    """The regular file inside ``root`` that a location names; symbolic links must not lead out of it."""
    windows = PureWindowsPath(location)  # splits at both separators, and knows drives
    if not location or "\0" in location or windows.anchor or ".." in windows.parts:
        raise ModelFileError(
            subject, "must name its data file by a path relative to the model's folder, without '..'", got=location
        )
    try:
        file = (root / location).resolve(strict=True)
        inside, regular = file.is_relative_to(root), stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError:
        raise ModelFileError(
            subject, f"keeps its data in {location!r}, which does not exist", hint="put it beside the model file"
        ) from None
    except (OSError, RuntimeError) as error:
        raise ModelFileError(subject, f"keeps its data in {location!r}, which cannot be read: {error}") from None
    if not inside:
        raise ModelFileError(subject, "must keep its data inside the model's folder, not behind a link", got=location)
    if not regular:
        raise ModelFileError(subject, "must keep its data in a regular file", got=location)
    return file


def _whole_number(text: str, key: str, subject: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise ModelFileError(f"{subject}: {key} of the external data", "must be a whole number", got=text)
    return int(text)


def _element_count(tensor: onnx.TensorProto, subject: str) -> int:
    for dim in tensor.dims:
        if dim < 0:
            raise ModelFileError(subject, "must have dimensions that are not negative", got=dim)
    return math.prod(tensor.dims)


def _byte_count(dtype: ir.DataType, elements: int) -> int:
    return (elements * dtype.bitwidth + 7) // 8


def _entry_count(dtype: ir.DataType, elements: int) -> int:
    """Entries of the typed field: sub-byte types are packed into bytes, complex numbers take two."""
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * elements
    if dtype != ir.DataType.STRING and dtype.bitwidth < 8:
        return _byte_count(dtype, elements)
    return elements
