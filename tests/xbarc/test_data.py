"""Reading of data: what comes out is what went in, and whatever is wrong gives one clear DataError."""

import io
import os
import stat
import struct
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hwspec import npz
from hwspec.errors import DataError
from runtime.tables import TensorInfo
from xbarc.data import image_folder
from xbarc.data.load import Dataset, class_balanced, load_data
from xbarc.data.sample_axis import fixed_batch, sample_axes


def tensor(name: str, dtype: str, shape: tuple[int | str, ...]) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


X = tensor("x", "float32", ("batch", 3))
IMAGE = tensor("image", "float32", ("batch", 1, 4, 5))
COLOUR = tensor("image", "float32", ("batch", 3, 4, 5))
SILERO = (
    tensor("input", "float32", ("batch", "samples")),
    tensor("state", "float32", (2, "batch", 8)),
    tensor("sr", "int64", ()),
)


def png(pixels: np.ndarray, **save: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **{"format": "PNG", **save})
    return buffer.getvalue()


def grey(seed: int, height: int = 4, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pack(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def pack_link(path: Path, name: str, target: str) -> Path:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, target)
    return path


def patch(path: Path, offset: int, form: str, value: int) -> Path:
    """Overwrite a field of the first entry of the zip directory."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.index(b"PK\x01\x02") + offset, value)
    path.write_bytes(content)
    return path


def small_tree(prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{name}/{k}.png": png(grey(10 * c + k)) for c, name in enumerate("ab") for k in range(3)}


# Lazy imports


def test_importing_data_loads_no_heavy_library() -> None:
    code = "import sys, xbarc.data.load; print(sorted({'torch', 'onnx', 'PIL', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Sample axes


@pytest.mark.parametrize(
    ("shapes", "axes", "batch"),
    [
        ([("batch", 3, 8, 8)], (0,), None),
        ([("s0", "s1"), (2, "s2", 128), ()], (0, 1, None), None),
        ([("seq", "batch", 8), ("batch",)], (1, 0), None),
        ([(10, "unk", 8)], (1,), None),
        ([(-1, 3)], (0,), None),
        ([("n", 3), (4, 10)], (0, None), None),
        ([(4, 3), (2, 4, 8), ()], (0, 1, None), 4),
        ([(1, 3, "height", "width")], (0,), 1),
        ([(1, "batch", 8)], (1,), None),
        ([()], (None,), None),
    ],
)
def test_sample_axis_is_the_batch(
    shapes: list[tuple[int | str, ...]], axes: tuple[int | None, ...], batch: int | None
) -> None:
    assert sample_axes(shapes) == axes
    assert fixed_batch(shapes) == batch


# Batches


@given(samples=st.integers(1, 40), size=st.integers(1, 50))
def test_batches_put_together_are_the_data(samples: int, size: int) -> None:
    rng = np.random.default_rng(samples)
    arrays = {
        "input": rng.random((samples, 7), dtype=np.float32),
        "state": rng.random((2, samples, 8), dtype=np.float32),
        "sr": np.array(16000),
    }
    data = load_data(arrays, SILERO)
    batches = list(data.batches(size))
    assert len(data) == samples
    assert [len(batch["input"]) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert all(batch["sr"] == 16000 and batch["sr"].shape == () for batch in batches)
    np.testing.assert_array_equal(np.concatenate([batch["input"] for batch in batches]), arrays["input"])
    np.testing.assert_array_equal(np.concatenate([batch["state"] for batch in batches], axis=1), arrays["state"])


@given(samples=st.integers(4, 40), size=st.integers(1, 50))
def test_fixed_batch_gives_whole_batches_and_as_many_labels(samples: int, size: int) -> None:
    arrays = {"x": np.arange(samples * 3.0).reshape(samples, 3), "labels": np.arange(samples)}
    data = load_data(arrays, [tensor("x", "float32", (4, 3))])
    batches = list(data.batches(size))
    assert {batch["x"].shape for batch in batches} == {(4, 3)}
    assert data.labels is not None
    assert len(data) == len(data.labels) == 4 * len(batches) == samples // 4 * 4


def test_fixed_batch_needs_one_whole_batch() -> None:
    with pytest.raises(DataError, match="at least 4 samples, the fixed batch of the model, not 3"):
        load_data(np.zeros((3, 3)), [tensor("x", "float32", (4, 3))])
    with pytest.raises(DataError, match="at least 4 samples"):
        Dataset({"x": np.zeros((3, 3))}, fixed_batch=4).batches(1)
    with pytest.raises(DataError, match="batch size must be positive, not 0"):
        Dataset({"x": np.zeros((3, 3))}).batches(0)


# Subsets


@given(
    labels=hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 5)),
    limit=st.integers(1, 70),
    seed=st.integers(0, 2**32),
)
def test_subset_is_balanced_nested_and_repeatable(labels: np.ndarray, limit: int, seed: int) -> None:
    chosen = class_balanced(labels, len(labels), limit, seed)
    assert len(chosen) == len(set(chosen.tolist())) == min(limit, len(labels))
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(labels[chosen], minlength=6)
    available = np.bincount(labels, minlength=6)
    assert (counts[counts < available] >= counts.max() - 1).all()  # a class with samples left is not behind
    np.testing.assert_array_equal(chosen, class_balanced(labels, len(labels), limit, seed))
    assert set(chosen.tolist()) <= set(class_balanced(labels, len(labels), limit + 1, seed).tolist())


def test_subset_without_labels_depends_on_the_seed_alone() -> None:
    first, again, other = (class_balanced(None, 1000, 100, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(first.tolist()) != set(other.tolist())


def test_subset_never_changes() -> None:
    # Raw PCG64 bits are promised to stay the same; results taken with a limit stay comparable.
    assert class_balanced(None, 20, 5, 0).tolist() == [1, 2, 6, 10, 16]


def test_limit_keeps_inputs_and_labels_together() -> None:
    arrays = {"x": np.repeat(np.arange(30.0)[:, None], 3, axis=1), "labels": np.arange(30)}
    data = load_data(arrays, [X], limit=7, seed=3)
    assert len(data) == 7
    np.testing.assert_array_equal(data.inputs["x"][:, 0], data.labels)


# Arrays


@given(
    array=hnp.arrays(
        st.sampled_from(["<f8", ">f4", "<f2", "u1", "<i4", ">i8", "?"]),
        st.tuples(st.integers(1, 5), st.just(3)),
        elements={"allow_nan": False, "allow_infinity": False, "min_value": 0, "max_value": 1},
    ),
    fortran=st.booleans(),
    compressed=st.booleans(),
)
@settings(deadline=None)
def test_npz_gives_the_values_that_were_saved(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, fortran: bool, compressed: bool
) -> None:
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, x=np.asfortranarray(array) if fortran else array)
    data = load_data(path, [X])
    values = data.inputs["x"]
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert values.flags.writeable
    np.testing.assert_array_equal(values, array.astype(np.float32))


def test_npz_with_scalar_state_and_labels(tmp_path: Path) -> None:
    labels = np.array([1, 0, 2], dtype=np.uint8)
    np.savez(tmp_path / "d.npz", input=np.ones((3, 5)), state=np.zeros((2, 3, 8)), sr=np.int32(16000), labels=labels)
    data = load_data(str(tmp_path / "d.npz"), SILERO)
    assert data.inputs["sr"].shape == ()
    assert data.inputs["sr"].dtype == np.int64
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.labels, labels)


def test_one_array_goes_to_the_one_input(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "x.npy", array)
    for source in (array, tmp_path / "x.npy", {"x": array}):
        np.testing.assert_array_equal(load_data(source, [X]).inputs["x"], array)
    with pytest.raises(DataError, match="the model has 3 inputs; pass arrays by name"):
        load_data(array, SILERO)


def test_an_input_named_labels_is_an_input() -> None:
    infos = [X, tensor("labels", "float32", ("batch", 2))]
    data = load_data({"x": np.zeros((4, 3)), "labels": np.ones((4, 2))}, infos)
    assert data.labels is None
    assert data.inputs["labels"].shape == (4, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.zeros((2, 3))}, "must name its arrays after the model's inputs"),
        ({"xx": np.zeros((2, 3))}, "did you mean 'x' for 'xx'"),
        ({"x": np.zeros((2, 3)), "mask": np.zeros(2)}, "not an input: mask"),
        ({}, "missing: x"),
        ({"x": np.zeros((2, 4))}, r"input 'x' must have shape \(samples, 3\), not \(2, 4\)"),
        ({"x": np.zeros(3)}, r"not \(3,\); add the axis of samples"),
        ({"x": np.zeros((0, 3))}, "at least one sample"),
        ({"x": np.full((2, 3), np.nan)}, r"finite numbers, not nan; first at index \(0, 0\)"),
        ({"x": np.array([[0, 0, 0], [0, np.inf, 0]])}, r"not inf; first at index \(1, 1\)"),
        ({"x": np.full((2, 3), 1e300)}, "range of float32, not 1e\\+300"),
        ({"x": np.zeros((2, 3), dtype=complex)}, "must be float32 or cast safely to it, not 'complex128'"),
        ({"x": np.full((2, 3), "a")}, "cast safely"),
        ({"x": np.zeros((2, 3), dtype=object)}, "cast safely"),
        ({"x": np.zeros((2, 3)), "labels": np.zeros(3, dtype=int)}, "as many samples in every array"),
        ({"x": np.zeros((2, 3)), "labels": np.zeros(2)}, "labels must be integers, not 'float64'"),
        ({"x": np.zeros((2, 3)), "labels": np.zeros((2, 1), dtype=int)}, "labels must have one axis"),
        ({"x": np.zeros((2, 3)), "labels": np.array([0, -1])}, "labels must be class indices from 0 up"),
        ({"x": np.zeros((2, 3)), "labels": np.array([0, 2**64 - 1], dtype=np.uint64)}, "class indices"),
        ({"x": [[1.0], [1.0, 2.0]]}, "must be rectangular arrays"),
    ],
)
def test_wrong_arrays_are_refused(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(arrays, [X])


def test_different_sample_counts_are_refused() -> None:
    arrays = {"input": np.zeros((3, 5)), "state": np.zeros((2, 4, 8)), "sr": np.array(1)}
    with pytest.raises(DataError, match="'input': 3, 'state': 4"):
        load_data(arrays, SILERO)


def test_channels_last_gets_a_hint() -> None:
    with pytest.raises(DataError, match="channels-last"):
        load_data(np.zeros((2, 4, 5, 3)), [COLOUR])


@pytest.mark.parametrize(
    ("array", "dtype", "message"),
    [
        (np.array([0.0]), "int64", "cast safely to it, not 'float64'; round"),
        (np.array([300]), "uint8", r"range of uint8, not \(300, 300\)"),
        (np.array([-1]), "uint8", "range of uint8"),
        (np.array([2**40]), "int32", "range of int32"),
        (np.array([1]), "bool", "cast safely"),
        (np.array([1e5]), "float16", "range of float16"),
        (np.array([1]), "object", "cannot be read for"),
        (np.array([1]), "nosuchtype", "cannot be read for"),
    ],
)
def test_unsafe_casts_are_refused(array: np.ndarray, dtype: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(array, [tensor("x", dtype, ("batch",))])


@pytest.mark.parametrize(("source", "target"), [("uint8", "int64"), ("int64", "uint8"), ("bool", "int32")])
def test_integers_are_cast_where_values_fit(source: str, target: str) -> None:
    array = np.array([0, 1], dtype=source)
    values = load_data(array, [tensor("x", target, ("batch",))]).inputs["x"]
    assert values.dtype == target
    np.testing.assert_array_equal(values, array.astype(target))


# Hostile npz files


def test_object_arrays_are_refused_without_pickle(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    np.savez(tmp_path / "d.npz", x=np.array([Trap()], dtype=object))
    np.save(tmp_path / "d.npy", np.array([Trap()], dtype=object))
    for name in ("d.npz", "d.npy"):
        with pytest.raises(DataError, match="must be an array of numbers, not 'object'; objects would need pickle"):
            load_data(tmp_path / name, [X])
    assert not (tmp_path / "ran").exists()


def test_declared_size_is_checked_before_decompressing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1000, 3)))
    monkeypatch.setattr(npz, "MAX_BYTES", 10_000)
    np.savez_compressed(tmp_path / "many.npz", x=np.zeros(1000), y=np.zeros(1000))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("decompressed"))
    with pytest.raises(DataError, match="must declare at most 10000 bytes, not 24128"):
        load_data(tmp_path / "bomb.npz", [X])
    with pytest.raises(DataError, match="at most 10000 bytes in total"):
        load_data(tmp_path / "many.npz", [X])


def test_wrong_names_are_refused_before_values_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "d.npz", inptu=np.zeros((2, 3)))
    monkeypatch.setattr(npz, "_read_values", lambda *_: pytest.fail("read"))
    with pytest.raises(DataError, match="did you mean 'input' for 'inptu'"):
        load_data(tmp_path / "d.npz", [tensor("input", "float32", ("batch", 3))])


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "npy format"),
        (b"not an array", "npy format"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 3), }\n"), "does not fit"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }\n") + bytes(12), "does not fit"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n") + bytes(23), "does not fit"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n") + bytes(25), "does not fit"),
        (header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }\n") + bytes(8), "numbers"),
        (header("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (2,), }\n") + bytes(16), "numbers"),
        (header("__import__('os').abort()\n"), "npy format"),
        (header("(" * 9000), "npy format"),
        (header("{}", b"\x03\x00"), "version 1.0 or 2.0"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "d.npy").write_bytes(content)
    for path in (tmp_path / "d.npy", pack(tmp_path / "d.npz", {"x.npy": content})):
        with pytest.raises(DataError, match=message):
            load_data(path, [X])


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.ones((50, 3)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        load_data(path, [X])
    flipped = bytearray(whole)
    flipped[700] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"array 'x' of .* cannot be read: Bad CRC-32"):
        load_data(path, [X])
    with pytest.raises(DataError, match=r"must hold arrays \(.npy\) only, not 'readme.txt'"):
        load_data(pack(path, {"readme.txt": b""}), [X])


@given(cut=st.integers(0, 900), at=st.integers(0, 900), flip=st.integers(0, 255))
@settings(deadline=None, max_examples=200)
def test_mangled_npz_gives_the_data_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, at: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("mangled") / "d.npz"
    np.savez_compressed(path, x=np.arange(60.0).reshape(20, 3))
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= flip
    path.write_bytes(content[: len(content) - cut // 30])
    try:
        data = load_data(path, [X])
    except DataError:
        return
    assert data.inputs["x"].shape[1] == 3


# Image folders


@pytest.fixture(params=["folder", "zip"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> "Layout":
    return Layout(request.param == "zip", tmp_path)


@dataclass(frozen=True)
class Layout:
    """Writes the same files as a folder or as a zip file."""

    zipped: bool
    root: Path

    def __call__(self, files: dict[str, bytes]) -> Path:
        return pack(self.root / "set.zip", files) if self.zipped else put(self.root / "set", files)


def test_images_become_scaled_arrays_in_class_order(layout: Layout) -> None:
    calls: list[tuple[int, int]] = []
    data = load_data(layout(small_tree()), [IMAGE], progress=lambda done, total: calls.append((done, total)))
    assert data.classes == ("a", "b")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.stack([grey(10 * c + k) for c in range(2) for k in range(3)])[:, None].astype(np.float32) / 255
    np.testing.assert_array_equal(data.inputs["image"], expected)
    assert calls[-1] == (6, 6)


def test_classes_are_sorted_by_name_as_imagefolder_does(layout: Layout) -> None:
    data = load_data(layout({f"{name}/x.png": png(grey(0)) for name in ("10", "9", "B", "a")}), [IMAGE])
    assert data.classes == ("10", "9", "B", "a")


def test_colour_and_grey_follow_the_model(layout: Layout) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path = layout({"a/0.png": png(colour), "a/1.bmp": png(grey(1), format="BMP")})
    images = load_data(path, [COLOUR]).inputs["image"]
    np.testing.assert_array_equal(images[0], colour.transpose(2, 0, 1).astype(np.float32) / 255)
    assert (images[1] == images[1][:1]).all()
    assert load_data(path, [IMAGE]).inputs["image"].shape == (2, 1, 4, 5)


def test_normalize_is_per_channel(layout: Layout) -> None:
    path = layout(small_tree())
    plain = load_data(path, [COLOUR]).inputs["image"]
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    scaled = load_data(path, [COLOUR], normalize=(mean, std)).inputs["image"]
    expected = (plain - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=1e-7)
    one = load_data(path, [COLOUR], normalize=((0.1,), (0.5,))).inputs["image"]
    np.testing.assert_allclose(one, (plain - 0.1) / 0.5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("normalize", "message"),
    [
        (((0.1, 0.2), (1.0,)), "one finite number a channel"),
        (((0.1,), (0.0,)), "positive standard deviation"),
        (((float("nan"),), (1.0,)), "finite number"),
        (((0.0,), (1e-45,)), "must hold finite numbers"),
    ],
)
def test_wrong_normalize_is_refused(
    tmp_path: Path, normalize: tuple[tuple[float, ...], tuple[float, ...]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_data(put(tmp_path, small_tree()), [IMAGE], normalize=normalize)


def test_split_is_chosen_entered_or_asked_for(layout: Layout) -> None:
    two = layout({**small_tree("train/"), **small_tree("test/")})
    assert len(load_data(two, [IMAGE], split="test")) == 6
    with pytest.raises(DataError, match="holds the splits 'test', 'train'; name the one to use"):
        load_data(two, [IMAGE])
    with pytest.raises(DataError, match="not 'tset'; did you mean 'test'"):
        load_data(two, [IMAGE], split="tset")


@pytest.mark.parametrize("prefix", ["test/", "mnist/test/", "./test/"])
def test_lone_folders_are_entered(layout: Layout, prefix: str) -> None:
    path = layout(small_tree(prefix))
    assert load_data(path, [IMAGE]).classes == ("a", "b")
    assert len(load_data(path, [IMAGE], split="test")) == 6
    with pytest.raises(DataError, match="not 'train'; it has 'test'"):
        load_data(path, [IMAGE], split="train")


def test_folder_may_hold_a_zip_for_each_split(tmp_path: Path) -> None:
    pack(tmp_path / "train.zip", small_tree("train/"))
    pack(tmp_path / "test.zip", small_tree())
    assert len(load_data(tmp_path, [IMAGE], split="train")) == 6
    assert len(load_data(tmp_path, [IMAGE], split="test")) == 6
    with pytest.raises(DataError, match="holds the splits 'test', 'train'"):
        load_data(tmp_path, [IMAGE])
    with pytest.raises(DataError, match="did you mean 'train'"):
        load_data(tmp_path, [IMAGE], split="tran")


def test_files_that_are_no_images_are_passed_over(layout: Layout) -> None:
    extra = {
        ".DS_Store": b"?",
        "a/.hidden.png": b"?",
        "a/notes.txt": b"?",
        "a/nested.zip": b"PK",
        "readme.md": b"?",
        "__MACOSX/a/._0.png": b"?",
    }
    assert len(load_data(layout({**small_tree(), **extra}), [IMAGE])) == 6


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "must hold class folders with images"),
        ({"0.png": b""}, "image '0.png' .* must lie in a class folder"),
        ({"a/0.png": b"", "b/readme.txt": b""}, "class folder 'b' .* must hold at least one image"),
        ({"a/0.png": b"", "train/b/0.png": b""}, "either splits or class folders; it has 'train' with"),
        ({"a/0.png": b"", "train/a/0.png": b"", "b/1.png": b""}, "'a', 'b' without"),
        ({"1/2/3/4/5/6/7/8/9/0.png": b""}, "not be nested deeper than 8"),
    ],
)
def test_wrong_layouts_are_refused(layout: Layout, files: dict[str, bytes], message: str) -> None:
    (layout.root / "set").mkdir()
    with pytest.raises(DataError, match=message):
        load_data(layout(files), [IMAGE])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded"),
        (b"not an image", "cannot be decoded"),
        (png(grey(0))[:-30], "cannot be decoded"),
        (png(grey(0, 5, 4)), r"must have \(4, 5\) pixels \(height, width\), not \(5, 4\)"),
        (png(grey(0).astype(np.uint16) * 200), "8 bits a channel, not 'I;16'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n", "cannot be decoded"),
    ],
)
def test_broken_images_are_named(layout: Layout, content: bytes, message: str) -> None:
    path = layout({**small_tree(), "b/broken.png": content})
    with pytest.raises(DataError, match=f"image 'b/broken.png' of .*{message}"):
        load_data(path, [IMAGE])


@given(at=st.integers(0, 200), flip=st.integers(1, 255))
@settings(deadline=None)
def test_mangled_image_gives_pixels_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    content = bytearray(png(grey(0)))
    content[at % len(content)] ^= flip
    path = put(tmp_path_factory.mktemp("mangled"), {"a/0.png": bytes(content)})
    try:
        images = load_data(path, [IMAGE]).inputs["image"]
    except DataError:
        return
    assert images.shape == (1, 1, 4, 5)


def test_free_size_is_that_of_the_first_image(layout: Layout) -> None:
    free = tensor("image", "float32", ("batch", 1, "height", "width"))
    assert load_data(layout(small_tree()), [free]).inputs["image"].shape == (6, 1, 4, 5)
    with pytest.raises(DataError, match=r"image 'c/0.png' .* \(4, 5\) pixels .* not \(4, 6\)"):
        load_data(layout({**small_tree(), "c/0.png": png(grey(0, 4, 6))}), [free])


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = tensor("image", "float32", ("batch", 1, "height", "width"))
    path = put(tmp_path, {"a/0.png": png(np.zeros((200, 200), dtype=np.uint8))})
    monkeypatch.setattr(image_folder, "MAX_DECODED_BYTES", 100_000)
    with pytest.raises(DataError, match="must fit into 100000 bytes"):
        load_data(path, [free])
    for pixels in (30_000, 3_000):  # pillow warns above its bound and raises above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        with pytest.raises(DataError, match=r"cannot be decoded: Image size .* decompression bomb"):
            load_data(path, [free])
    monkeypatch.setattr(image_folder, "MAX_FILE_BYTES", 10)
    with pytest.raises(DataError, match="must be at most 10 bytes"):
        load_data(path, [free])
    with pytest.raises(DataError, match="must declare at most 10 bytes"):
        load_data(pack(tmp_path / "big.zip", {"a/0.png": bytes(11)}), [free])


def test_limit_decodes_only_what_it_takes(layout: Layout) -> None:
    files = {f"{name}/{k}.png": png(grey(k)) for name in "abc" for k in range(5)}
    path = layout(files)
    calls: list[tuple[int, int]] = []
    data = load_data(path, [IMAGE], limit=7, seed=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(7, 7)]
    assert data.labels is not None
    assert sorted(np.bincount(data.labels)) == [2, 2, 3]
    again = load_data(path, [IMAGE], limit=7, seed=1)
    np.testing.assert_array_equal(data.inputs["image"], again.inputs["image"])
    assert len(load_data(path, [IMAGE], limit=100)) == 15


def test_images_for_a_fixed_batch(tmp_path: Path) -> None:
    data = load_data(put(tmp_path, small_tree()), [tensor("image", "float32", (4, 1, 4, 5))])
    assert len(data) == 4
    assert data.labels is not None
    assert len(data.labels) == 4


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        (SILERO, "must have one input to take images"),
        ([X], r"1 or 3 channels, height, width\) for images"),
        ([tensor("x", "float32", ("n", 4, 5, 3))], "1 or 3 channels"),
        ([tensor("x", "uint8", ("n", 3, 4, 5))], "floating-point type for images, not 'uint8'"),
    ],
)
def test_models_without_an_image_input_are_refused(tmp_path: Path, infos: list[TensorInfo], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(put(tmp_path, small_tree()), infos)


# Hostile zip files


@pytest.mark.parametrize("name", ["/a/0.png", "../a/0.png", "a/../../0.png", "C:/a/0.png", "a\\0.png"])
def test_names_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="must have a name that stays inside the archive"):
        load_data(pack(tmp_path / "d.zip", {**small_tree(), name: b""}), [IMAGE])


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="symbolic link"):
        load_data(pack_link(tmp_path / "d.zip", "a/0.png", "/etc/passwd"), [IMAGE])


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = patch(pack(tmp_path / "d.zip", small_tree()), 8, "<H", 1)
    with pytest.raises(DataError, match="must not be encrypted"):
        load_data(path, [IMAGE])


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unbounded_compression_is_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(DataError, match=f"must be stored or deflated, not 'compression method {method}'"):
        load_data(pack(tmp_path / "d.zip", small_tree(), method), [IMAGE])


def test_huge_declared_sizes_are_refused(tmp_path: Path) -> None:
    path = patch(pack(tmp_path / "d.zip", small_tree()), 24, "<I", 2**31)
    with pytest.raises(DataError, match="must declare at most 67108864 bytes, not 2147483648"):
        load_data(path, [IMAGE])


def test_a_member_larger_than_it_declares_is_refused(tmp_path: Path) -> None:
    path = patch(pack(tmp_path / "d.zip", {"a/0.png": png(grey(0)) + bytes(10**6)}), 24, "<I", 100)
    with pytest.raises(DataError, match=r"image 'a/0.png' .* cannot be read: Bad CRC-32"):
        load_data(path, [IMAGE])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_occur_twice_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a/0.png", png(grey(0)))
        archive.writestr("a/0.png", png(grey(1)))
    with pytest.raises(DataError, match=r"must hold each name once, not 'a/0.png'"):
        load_data(tmp_path / "d.zip", [IMAGE])


def test_damaged_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    path.write_bytes(b"no zip file at all")
    with pytest.raises(DataError, match=r"archive .* cannot be read: File is not a zip file"):
        load_data(path, [IMAGE])
    content = bytearray(pack(path, {"a/0.png": png(grey(0))}, zipfile.ZIP_STORED).read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"image 'a/0.png' .* cannot be read: Bad CRC-32"):
        load_data(path, [IMAGE])


# Sources


def test_links_in_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    real = put(tmp_path / "real", small_tree())
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(real / "a")
    assert load_data(tmp_path / "set", [IMAGE]).classes == ("a",)
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    with pytest.raises(DataError, match="nested deeper"):
        load_data(tmp_path / "set", [IMAGE])


def test_unknown_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not 'digts'; did you mean the built-in set 'digits'"):
        load_data("digts", [IMAGE])
    with pytest.raises(DataError, match="cannot be read"):
        load_data("x" * 5000, [IMAGE])
    (tmp_path / "data.csv").write_text("1,2,3")
    with pytest.raises(DataError, match=r"must be .npz, .npy, an image folder, or a .zip of one"):
        load_data(tmp_path / "data.csv", [X])


def test_image_options_on_arrays_are_refused() -> None:
    with pytest.raises(DataError, match="split is for image folders and built-in sets"):
        load_data(np.zeros((2, 3)), [X], split="test")
    with pytest.raises(DataError, match="normalize is for images"):
        load_data(np.zeros((2, 3)), [X], normalize=((0.5,), (0.5,)))
    with pytest.raises(DataError, match="limit must be positive, not 0"):
        load_data(np.zeros((2, 3)), [X], limit=0)
    with pytest.raises(DataError, match="seed must not be negative, not -1"):
        load_data(np.zeros((2, 3)), [X], seed=-1)


# The built-in set

DIGITS = tensor("image", "float32", ("batch", 1, 8, 8))


def test_digits_splits_are_disjoint_and_complete() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="the set comes with scikit-learn")
    train, test = load_data("digits", [DIGITS], split="train"), load_data("digits", [DIGITS])
    assert (len(train), len(test)) == (1437, 360)
    together = np.concatenate([train.inputs["image"], test.inputs["image"]])[:, 0] * 16
    everything = datasets.load_digits().images
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(everything, axis=0))
    assert together.max() == 16
    assert test.labels is not None
    assert test.labels[:10].tolist() == [6, 2, 4, 2, 4, 1, 9, 3, 0, 5]  # the shuffle never changes
    assert test.classes == tuple("0123456789")


def test_digits_takes_normalize_limit_and_split_names() -> None:
    pytest.importorskip("sklearn.datasets", reason="the set comes with scikit-learn")
    data = load_data("digits", [DIGITS], limit=20, normalize=((0.5,), (0.5,)))
    assert data.labels is not None
    assert np.bincount(data.labels).tolist() == [2] * 10
    assert data.inputs["image"].min() == -1
    with pytest.raises(DataError, match="must be 'train' or 'test', not 'tets'; did you mean 'test'"):
        load_data("digits", [DIGITS], split="tets")
    with pytest.raises(DataError, match=r"must have shape \(samples, 3\), not \(360, 1, 8, 8\)"):
        load_data("digits", [X])


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"needs scikit-learn; pip install 'xbarc\[demo\]'"):
        load_data("digits", [DIGITS])
