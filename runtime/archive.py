"""A program as one file: a zip, stored uncompressed, hashed member by member and as a whole, written atomically."""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from hwspec.atomic import write_together
from hwspec.errors import ChipError, ProgramError
from hwspec.fault_map import FaultMap
from runtime.check import check_program
from runtime.program import TileProgram
from runtime.report import CompileReport
from runtime.tables import Tables

_DATE = (1980, 1, 1, 0, 0, 0)  # a fixed date: equal programs give equal files
_DIGEST = 64
_TENSORS = ("tiles", "weights", "calibration")
_FIXED = ("program.json", "report.json", *(f"{name}.safetensors" for name in _TENSORS))
_CHIP = "chip.safetensors"
"""Present where the program was mapped around the failed devices of a chip."""
_OPTIONAL = ("source.onnx", _CHIP)
_SEGMENT = re.compile(r"segments/[A-Za-z0-9_.-]{1,200}\.onnx")
_MAX_JSON = 1 << 28


class Manifest(BaseModel):
    """The hash of every member."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: dict[str, str]


def save_program(program: TileProgram, path: Path, beside: Mapping[Path, bytes] | None = None) -> None:
    """Write `program` to `path`, whole or not at all, and together with it the files `beside` it.

    Raises
    ------
    ProgramError
        If the file cannot be written; one that was there before stays as it was.
    """
    members = {
        "program.json": program.tables.model_dump_json().encode(),
        "report.json": program.report.model_dump_json().encode(),
        "tiles.safetensors": _dump_tensors(program.tensors),
        "weights.safetensors": _dump_tensors(program.weights),
        "calibration.safetensors": _dump_tensors(program.calibration),
        **{f"segments/{name}.onnx": data for name, data in sorted(program.segments.items())},
    }
    if program.source is not None:
        members["source.onnx"] = program.source
    if program.faults is not None:
        members[_CHIP] = _dump_tensors({"states": program.faults.states, "conductance": program.faults.conductance})
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = Manifest(sha256=hashes).model_dump_json().encode()
    try:
        own = (path, lambda stream: _write(stream, {"manifest.json": manifest, **members}))
        write_together([*((other, _putting(content)) for other, content in (beside or {}).items()), own])
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ProgramError(f"program {path}", f"cannot be written ({reason})") from None


def _putting(content: bytes) -> Callable[[BinaryIO], None]:
    def put(stream: BinaryIO) -> None:
        stream.write(content)

    return put


def _write(stream: BinaryIO, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), data)
        archive.comment = b"0" * _DIGEST
    stream.seek(0)
    digest = hashlib.sha256()
    left = stream.seek(0, os.SEEK_END) - _DIGEST
    stream.seek(0)
    while left:
        block = stream.read(min(left, 1 << 24))
        digest.update(block)
        left -= len(block)
    stream.write(digest.hexdigest().encode())


def load_program(path: Path) -> TileProgram:
    """Read a program and validate it.

    Raises
    ------
    ProgramError
        Naming the member that is missing, truncated, altered or unsound.
    """
    subject = f"program {path}"
    try:
        if not path.is_file():
            raise ProgramError(subject, "must be an existing file")
        data = path.read_bytes()
    except OSError as error:
        raise ProgramError(subject, f"cannot be read ({error.strerror})") from None
    members = _read_members(data, subject)
    try:
        tables = Tables.model_validate_json(members["program.json"])
        report = CompileReport.model_validate_json(members["report.json"])
    except (ValidationError, RecursionError) as error:
        where, what = "", str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where, what = ".".join(map(str, first["loc"])), first["msg"]
        raise ProgramError(subject, f"has an invalid program.json or report.json ({where}: {what})") from None
    tensors = {name: _load_tensors(f"{name}.safetensors", members[f"{name}.safetensors"]) for name in _TENSORS}
    program = TileProgram(
        tables=tables,
        tensors=tensors["tiles"],
        segments={
            name.removeprefix("segments/").removesuffix(".onnx"): content
            for name, content in members.items()
            if name.startswith("segments/")
        },
        weights=tensors["weights"],
        calibration=tensors["calibration"],
        report=report,
        source=members.get("source.onnx"),
        faults=_load_faults(members[_CHIP]) if _CHIP in members else None,
    )
    check_program(program)
    return program


def _read_members(data: bytes, subject: str) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > len(data):
                raise ProgramError(subject, "must store its members uncompressed, one after another")
            members = {info.filename: _read_member(archive, info, len(data), subject) for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise ProgramError(subject, "must not hold a member twice")
            comment = archive.comment
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ProgramError):
            raise
        reason = " ".join(str(error).split())
        raise ProgramError(subject, f"is not a tile program, or is truncated ({reason})") from None
    manifest_bytes = members.pop("manifest.json", None)
    if manifest_bytes is None:
        raise ProgramError(subject, "must hold the member manifest.json")
    try:
        manifest = Manifest.model_validate_json(manifest_bytes)
    except (ValidationError, RecursionError):
        raise ProgramError(subject, "holds an altered member manifest.json") from None
    for name, content in members.items():
        if hashlib.sha256(content).hexdigest() != manifest.sha256.get(name):
            raise ProgramError(subject, f"holds an altered member {name}")
    for name in (*manifest.sha256, *_FIXED):
        if name not in members:
            raise ProgramError(subject, f"must hold the member {name}")
    if comment != hashlib.sha256(data[:-_DIGEST]).hexdigest().encode():
        raise ProgramError(subject, "is altered outside its members (manifest or zip directory)")
    return members


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, total: int, subject: str) -> bytes:
    name = info.filename
    if name not in (*_FIXED, *_OPTIONAL, "manifest.json") and not _SEGMENT.fullmatch(name):
        raise ProgramError(subject, "must hold only members of a tile program", got=name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.file_size > total:
        raise ProgramError(subject, f"must store {name} uncompressed")
    if name.endswith(".json") and info.file_size > _MAX_JSON:
        raise ProgramError(subject, f"must have a {name} below {_MAX_JSON} bytes", got=info.file_size)
    try:
        content = archive.read(info)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ProgramError(subject, f"holds an altered or truncated member {name} ({reason})") from None
    if len(content) != info.file_size:
        raise ProgramError(subject, f"holds a truncated member {name}")
    return content


def _dump_tensors(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    return save_tensors({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})


def _load_tensors(member: str, data: bytes) -> dict[str, npt.NDArray[Any]]:
    try:
        return dict(load_tensors(data))
    except (SafetensorError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ProgramError(member, f"holds no valid tensors ({error})") from None


def _load_faults(data: bytes) -> FaultMap:
    tensors = _load_tensors(_CHIP, data)
    if set(tensors) != {"states", "conductance"}:
        raise ProgramError(_CHIP, "must hold the tensors states and conductance", got=sorted(tensors))
    try:
        return FaultMap(tensors["states"], tensors["conductance"])
    except ChipError as error:
        raise ProgramError(_CHIP, f"holds no valid fault map ({error})") from None
