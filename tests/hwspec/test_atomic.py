"""Files are written whole or not at all, through links, and into what is no file."""

import os
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from hwspec.atomic import write_atomically, write_together


def hello(stream: BinaryIO) -> None:
    stream.write(b"hello")


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def stop(stream: BinaryIO) -> None:
        hello(stream)
        raise OSError("full")

    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"):
        write_atomically(path, stop)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_several_files_are_replaced_together(tmp_path: Path) -> None:
    """All of them or none, wherever one fails."""
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths[:2]:
        path.write_bytes(b"old")

    def stop(stream: BinaryIO) -> None:
        hello(stream)
        raise OSError("full")

    for failing in range(3):
        with pytest.raises(OSError, match="full"):
            write_together([(path, stop if number == failing else hello) for number, path in enumerate(paths)])
        assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"old"] * 2
    write_together([(path, hello) for path in paths])
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"hello"] * 3


def test_what_was_replaced_comes_back_where_a_later_one_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a file that is immutable: renaming onto it fails after others were replaced."""
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths[1:]:
        path.write_bytes(b"old")
    real = Path.replace
    for failing in paths:

        def replace(self: Path, target: Path, failing: Path = failing) -> Path:
            if target == failing and self.read_bytes() == b"hello":
                raise PermissionError(1, "Operation not permitted")
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            with pytest.raises(PermissionError):
                write_together([(path, hello) for path in paths])
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"b": b"old", "c": b"old"}


def test_names_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("\N{CJK UNIFIED IDEOGRAPH-5B57}" * 85)  # 255 bytes
    write_atomically(path, hello)
    assert path.read_bytes() == b"hello"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(Path("folder") / "target")
    for _ in range(2):  # the target is made, then replaced
        write_atomically(tmp_path / "link", hello)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "target").read_bytes() == b"hello"


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write_atomically(path, hello)
    reader.join()
    assert read == [b"hello"]
    assert path.is_fifo()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path, hello)
