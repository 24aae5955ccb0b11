"""A program's file: nothing altered, truncated or forged is loaded, and nothing half written is left behind."""

import hashlib
import io
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from mapped_programs import FAILED, mapped_for, with_residue
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from small_programs import compile_small, matmul, small_spec

from hwspec.atomic import write_atomically
from hwspec.chip import Chip
from hwspec.errors import ProgramError
from runtime import archive
from runtime.archive import load_program
from runtime.program import TileProgram

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def program() -> TileProgram:
    return compile_small(matmul(9, 9, positive=True))


@pytest.fixture(scope="module")
def content(program: TileProgram, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("program") / "good.xbar"
    program.save(path)
    return path.read_bytes()


def members_of(content: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def forge(members: Mapping[str, bytes], *, hashed: bool = True, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of these members as someone would write it who knows the format: hashes are right again."""
    parts = dict(members)
    if hashed:
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items() if name != "manifest.json"}
        parts["manifest.json"] = json.dumps({"sha256": hashes}).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as opened:
        for name, data in parts.items():
            opened.writestr(name, data)
        opened.comment = b"0" * 64
    return seal(stream.getvalue())


def seal(content: bytes) -> bytes:
    """The content with the hash of the whole at its end."""
    return content[:-64] + hashlib.sha256(content[:-64]).hexdigest().encode()


def refused(content: bytes, folder: Path) -> str:
    """Why a file with this content is refused."""
    path = folder / "bad.xbar"
    path.write_bytes(content)
    with pytest.raises(ProgramError) as caught:
        load_program(path)
    return str(caught.value)


def test_a_forged_file_of_good_members_loads(content: bytes, tmp_path: Path) -> None:
    """What the tests below alter is nothing but what they say."""
    path = tmp_path / "forged.xbar"
    path.write_bytes(forge(members_of(content)))
    load_program(path)


def test_equal_programs_give_equal_files(program: TileProgram, content: bytes, tmp_path: Path) -> None:
    program.save(tmp_path / "again.xbar")
    assert (tmp_path / "again.xbar").read_bytes() == content
    assert sorted(members_of(content)) == [
        "calibration.safetensors",
        "manifest.json",
        "program.json",
        "report.json",
        "segments/seg0.onnx",
        "source.onnx",
        "tiles.safetensors",
        "weights.safetensors",
    ]


def test_every_flipped_bit_is_found(content: bytes, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    ends = [*range(40), *range(len(content) - 160, len(content))]
    for position in [*generator.integers(0, len(content), 300).tolist(), *ends]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(generator.integers(8))
        refused(bytes(flipped), tmp_path)


def test_every_truncation_is_found(content: bytes, tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(0, len(content), 100).tolist()
    for length in [0, 1, 4, 21, 22, 64, *lengths, *range(len(content) - 100, len(content))]:
        refused(content[:length], tmp_path)


def test_an_altered_member_is_named(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        for info in opened.infolist():
            start = info.header_offset + 30 + len(info.filename)
            altered = bytearray(content)
            altered[start + info.file_size // 2] ^= 1
            assert info.filename in refused(bytes(altered), tmp_path)


def test_an_altered_member_with_a_right_checksum_is_named(content: bytes, tmp_path: Path) -> None:
    """CRCs of zip are for accidents in its members; hashes are for the rest."""
    members = members_of(content)
    for name in members:
        if name != "manifest.json":
            changed = {**members, name: members[name] + b" "}
            assert f"altered member {name}" in refused(forge(changed, hashed=False), tmp_path)


def test_a_missing_member_is_named(content: bytes, tmp_path: Path) -> None:
    members = members_of(content)
    for name in members:
        fewer = {key: data for key, data in members.items() if key != name}
        assert f"must hold the member {name}" in refused(forge(fewer, hashed=False), tmp_path)
    for name in ("program.json", "report.json", "tiles.safetensors"):
        fewer = {key: data for key, data in members.items() if key != name}
        assert f"must hold the member {name}" in refused(forge(fewer), tmp_path)


def test_bytes_around_the_file_are_refused(content: bytes, tmp_path: Path) -> None:
    assert "altered" in refused(b"MZ" + content, tmp_path)
    assert refused(content + b"\0", tmp_path)
    assert refused(content + content, tmp_path)
    assert "not a tile program" in refused(b"hello", tmp_path)
    assert "not a tile program" in refused(b"", tmp_path)


def test_a_member_twice_is_refused(content: bytes, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for name, data in members_of(content).items():
            opened.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            opened.writestr("report.json", b"{}")
        opened.comment = b"0" * 64
    assert "twice" in refused(seal(stream.getvalue()), tmp_path)


def test_compressed_members_are_refused(content: bytes, tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "uncompressed" in refused(forge(members_of(content), compression=compression), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.onnx",
        "segments/../../evil.onnx",
        "/etc/passwd",
        "segments/a/b.onnx",
        "extra.txt",
        "segments/.onnx",
    ],
)
def test_only_members_of_a_program_are_taken(content: bytes, tmp_path: Path, name: str) -> None:
    assert "members of a tile program" in refused(forge({**members_of(content), name: b"x"}), tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["bad.xbar"]


@pytest.mark.parametrize("size", [2**32 - 2, 2**31, 10**9])
def test_a_huge_declared_size_is_refused(content: bytes, tmp_path: Path, size: int) -> None:
    """In the directory of the zip, and in both the directory and the member's own header."""
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        info = opened.getinfo("weights.safetensors")
    changed = bytearray(content)
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02"))
    while content[entry + 46 : entry + 46 + len(info.filename)] != info.filename.encode():
        entry = content.index(b"PK\x01\x02", entry + 1)
    changed[entry + 20 : entry + 28] = struct.pack("<II", size, size)
    assert refused(seal(bytes(changed)), tmp_path)
    changed[info.header_offset + 18 : info.header_offset + 26] = struct.pack("<II", size, size)
    assert refused(seal(bytes(changed)), tmp_path)


def test_members_that_share_their_bytes_are_refused(content: bytes, tmp_path: Path) -> None:
    """A small file whose directory lists one large member many times would fill the memory."""
    members = {"segments/a.onnx": bytes(100_000), **members_of(content)}
    forged = forge(members)
    at = forged.index(b"PK\x01\x02")
    entry = forged[at : at + 46 + len("segments/a.onnx")]
    extra = b"".join(entry.replace(b"segments/a.onnx", f"segments/{n}.onnx".encode()) for n in "bcdefgh")
    tail = bytearray(forged[forged.rindex(b"PK\x05\x06") :])
    count = struct.unpack("<H", tail[10:12])[0] + 7
    size = struct.unpack("<I", tail[12:16])[0] + len(extra)
    tail[8:16] = struct.pack("<HHI", count, count, size)
    bomb = forged[: forged.rindex(b"PK\x05\x06")] + extra + bytes(tail)
    assert "one after another" in refused(seal(bomb), tmp_path)


def test_nothing_is_unpickled(content: bytes, tmp_path: Path) -> None:
    """A pickle in the place of tensors or tables is no valid member."""
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    npy = io.BytesIO()
    np.save(npy, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("tiles.safetensors", "weights.safetensors", "calibration.safetensors"):
        for data in (evil, npy.getvalue(), b"", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 8) + b"[[[[[[[["):
            assert name in refused(forge({**members_of(content), name: data}), tmp_path)
    for name in ("program.json", "report.json"):
        for data in (evil, b"", b"[" * 200_000, b"{}", b"null", b"\xff"):
            assert "program.json or report.json" in refused(forge({**members_of(content), name: data}), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_segment_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    changed = {**members_of(content), "segments/seg0.onnx": b"\x08\xff\xff"}
    assert "segment 'seg0' must be an ONNX model" in refused(forge(changed), tmp_path)


def test_tensors_of_unknown_types_are_refused(content: bytes, tmp_path: Path) -> None:
    members = members_of(content)
    tensors = load_tensors(members["tiles.safetensors"])
    narrow = {**tensors, "layer/col_map": tensors["layer/col_map"].astype(np.int8)}
    changed = {**members, "tiles.safetensors": save_tensors(narrow)}
    assert "tensor layer/col_map must be of type" in refused(forge(changed), tmp_path)
    header = members["weights.safetensors"].replace(b'"F32"', b'"F99"')
    assert "weights.safetensors" in refused(forge({**members, "weights.safetensors": header}), tmp_path)


@pytest.fixture(scope="module")
def mapped() -> TileProgram:
    """A program that was mapped around failed devices, with a digital residue."""
    program = compile_small(matmul(9, 9), small_spec(FAILED))
    return with_residue(
        mapped_for(program, Chip.sample(program.spec, program.arrays + 1, 1)), 0.1, np.random.default_rng(0)
    )


def test_failed_devices_and_residue_come_back(mapped: TileProgram, tmp_path: Path) -> None:
    mapped.save(tmp_path / "a.xbar")
    found = load_program(tmp_path / "a.xbar")
    assert found.faults == mapped.faults
    assert found.faults is not None
    assert found.faults.failed > 0
    assert found.tables == mapped.tables
    assert found.nominal_chip == mapped.nominal_chip
    for name in ("layer/residue", "layer/residue_index", "layer/word_lines", "layer/bit_lines"):
        np.testing.assert_array_equal(found.tensors[name], mapped.tensors[name])
    np.testing.assert_array_equal(found.decoded_weights("layer"), mapped.decoded_weights("layer"))
    found.save(tmp_path / "b.xbar")
    assert (tmp_path / "b.xbar").read_bytes() == (tmp_path / "a.xbar").read_bytes()


def test_failed_devices_that_are_none_are_refused(mapped: TileProgram, tmp_path: Path) -> None:
    mapped.save(tmp_path / "a.xbar")
    members = members_of((tmp_path / "a.xbar").read_bytes())
    tensors = load_tensors(members["chip.safetensors"])
    wrong = {
        "must hold the tensors states and conductance": {"states": tensors["states"]},
        "holds no valid fault map": {**tensors, "conductance": -1 - tensors["conductance"]},
        "failed devices must cover": {
            "states": tensors["states"][:1],
            "conductance": tensors["conductance"][: np.count_nonzero(tensors["states"][0])],
        },
    }
    for message, changed in wrong.items():
        parts = {name: np.ascontiguousarray(value) for name, value in changed.items()}
        assert message in refused(forge({**members, "chip.safetensors": save_tensors(parts)}), tmp_path)
    del members["chip.safetensors"]
    assert "must hold failed devices and mapped_for, or neither" in refused(forge(members), tmp_path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.xbar", tmp_path, tmp_path / ("x" * 5000)):
        with pytest.raises(ProgramError, match=r"must be an existing file|cannot be read"):
            load_program(path)


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = compile_small(matmul(3, 3))
    path = tmp_path / "a.xbar"
    program.save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    other = compile_small(matmul(4, 4))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ProgramError, match=r"a\.xbar cannot be written \(No space left on device\)"):
        other.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.xbar", stop)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    program = compile_small(matmul(3, 3))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in ("missing/a.xbar", "folder", "file/a.xbar", "nul\0.xbar", f"{'x' * 300}.xbar"):
        with pytest.raises(ProgramError, match="cannot be written"):
            program.save(tmp_path / path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(**options: object) -> None:
        raise PermissionError(13, "Permission denied", options["dir"])

    monkeypatch.setattr(tempfile, "mkstemp", deny)
    with pytest.raises(ProgramError, match=r"cannot be written \(Permission denied\)"):
        compile_small(matmul(3, 3)).save(tmp_path / "a.xbar")


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    compile_small(matmul(3, 3)).save(tmp_path / "a.xbar")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a.xbar").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_large_tables_are_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MAX_JSON", 100)
    assert "below 100 bytes" in refused(content, tmp_path)
