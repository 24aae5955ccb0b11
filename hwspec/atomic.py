"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call ``write(stream)`` on a temporary file beside `path`, flush it to disk, and rename it to `path`.

    Whatever `write` or the file system raises is raised, and a file that was there before stays as it was. A link is
    followed. What is there and is no file, like a pipe or ``/dev/null``, is written to and stays.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            write(stream)
        return
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent or ".", prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "w+b") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
