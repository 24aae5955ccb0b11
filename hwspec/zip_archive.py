"""Zip files from strangers: every name, flag and declared size is checked before a byte is decompressed."""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from hwspec.errors import DataError

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# bzip2, lzma and zstd members are refused: zipfile decompresses a whole chunk of them without an output bound.
_ENCRYPTED = 0x1
_COMPLAINTS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    UnicodeDecodeError,
)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file for reading and close it at the end.

    Raises
    ------
    DataError
        The file is missing, is no zip file, or its directory is damaged.
    """
    with reading(f"archive '{path}'"):
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


@contextmanager
def reading(subject: str) -> Iterator[None]:
    """Turn whatever a damaged zip file or disk raises into one `DataError` about ``subject``."""
    try:
        yield
    except _COMPLAINTS as error:
        raise DataError(subject, f"cannot be read: {error}", hint="is the file complete?") from error


def checked_members(archive: zipfile.ZipFile, *, member_bytes: int) -> tuple[zipfile.ZipInfo, ...]:
    """List the members of an archive, folders included, after checking all of them.

    The declared size of a member bounds what it can decompress to, because ``zipfile`` stops there; the bound on
    declared sizes is therefore a bound on memory.

    Parameters
    ----------
    archive
        An open archive.
    member_bytes
        The largest size that one member may declare, in bytes.

    Raises
    ------
    DataError
        A member has an absolute name, one that climbs out of the archive or one that occurs twice; is a link,
        encrypted, compressed by other means than deflate, or larger than ``member_bytes``.
    """
    members = tuple(archive.infolist())
    seen: set[str] = set()
    for member in members:
        _check_member(member, f"member '{member.filename}' of '{archive.filename}'", member_bytes)
        if member.filename in seen:
            raise DataError(f"archive '{archive.filename}'", "must hold each name once", got=member.filename)
        seen.add(member.filename)
    return members


def _check_member(member: zipfile.ZipInfo, subject: str, member_bytes: int) -> None:
    name = member.filename
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":":
        raise DataError(subject, "must have a name that stays inside the archive", got=name)
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(subject, "must be a file or a folder, and it is a symbolic link")
    if member.flag_bits & _ENCRYPTED:
        raise DataError(subject, "must not be encrypted", hint="unpack it with its password first")
    if member.compress_type not in _METHODS:
        raise DataError(subject, "must be stored or deflated", got=f"compression method {member.compress_type}")
    if member.file_size > member_bytes:
        raise DataError(subject, f"must declare at most {member_bytes} bytes", got=member.file_size)
