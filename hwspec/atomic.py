"""Files that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

Write = Callable[[BinaryIO], None]
_PREFIX = ".xbarc."
"""Of temporary names: short, so that a name as long as the file system allows can be written."""


def write_atomically(path: Path, write: Write) -> None:
    """Call ``write(stream)`` on a temporary file beside `path`, flush it to disk, and rename it to `path`.

    Whatever `write` or the file system raises is raised, and a file that was there before stays as it was. A link is
    followed. What is there and is no file, like a pipe or ``/dev/null``, is written to and stays.
    """
    write_together([(path, write)])


def write_together(files: Sequence[tuple[Path, Write]]) -> None:
    """`write_atomically` for several files: all are replaced, or none if one cannot be.

    All are whole on the disk before the first is replaced. A process that is killed between two replacements leaves
    whole files, some new and some old.
    """
    ready: list[tuple[Path, Path]] = []
    former: list[tuple[Path, Path | None]] = []
    try:
        for path, write in files:
            if path.exists() and not path.is_file():
                with path.open("wb") as stream:
                    write(stream)
                continue
            target = path.resolve()
            handle, name = tempfile.mkstemp(dir=target.parent or ".", prefix=_PREFIX)
            ready.append((Path(name), target))
            with os.fdopen(handle, "w+b") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        for number, (partial, target) in enumerate(ready, 1):
            partial.chmod(0o666 & ~umask)
            if number < len(ready):
                former.append((target, _kept(target)))
            partial.replace(target)
    except BaseException:
        for target, kept in reversed(former):
            if kept is not None:
                kept.replace(target)
            elif not any(partial.exists() for partial, other in ready if other == target):
                target.unlink(missing_ok=True)
        for partial, _ in ready:
            partial.unlink(missing_ok=True)
        raise
    for _, kept in former:
        if kept is not None:
            kept.unlink(missing_ok=True)


def _kept(target: Path) -> Path | None:
    """The present content of a file under another name beside it, or None where there is no such file."""
    if not target.exists():
        return None
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=_PREFIX)
    os.close(handle)
    try:
        shutil.copy2(target, name)
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)
