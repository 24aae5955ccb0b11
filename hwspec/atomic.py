"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

Write = Callable[[BinaryIO], None]


def write_atomically(path: Path, write: Write) -> None:
    """Call ``write(stream)`` on a temporary file beside `path`, flush it to disk, and rename it to `path`.

    Whatever `write` or the file system raises is raised, and a file that was there before stays as it was. A link is
    followed. What is there and is no file, like a pipe or ``/dev/null``, is written to and stays.
    """
    write_together([(path, write)])


def write_together(files: Sequence[tuple[Path, Write]]) -> None:
    """`write_atomically` for several files: all are whole on the disk before the first is renamed."""
    ready: list[tuple[Path, Path]] = []
    try:
        for path, write in files:
            if path.exists() and not path.is_file():
                with path.open("wb") as stream:
                    write(stream)
                continue
            target = path.resolve()
            handle, name = tempfile.mkstemp(dir=target.parent or ".", prefix=f".{target.name[:100]}.")
            ready.append((Path(name), target))
            with os.fdopen(handle, "w+b") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        for partial, target in ready:
            partial.chmod(0o666 & ~umask)
            partial.replace(target)
    except BaseException:
        for partial, _ in ready:
            partial.unlink(missing_ok=True)
        raise
