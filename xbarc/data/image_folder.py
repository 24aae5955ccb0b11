"""Image folders, ``<split>/<class>/<file>``, on disk or in a zip file; the layout of torchvision's ImageFolder."""

import difflib
import io
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from hwspec.errors import DataError
from hwspec.zip_archive import checked_members, open_archive, reading

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""Endings of the files that count as images, as in torchvision; all others are passed over."""

MAX_FILE_BYTES = 64 * 2**20
"""The largest image file that is opened."""

MAX_DECODED_BYTES = 8 * 2**30
"""The most that the decoded images of one call may take, as float32."""

# The decoders that pillow may choose from: raster formats only, none that starts another program.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MODES = {1: "L", 3: "RGB"}
_MODES_OF_8_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_MAX_DEPTH = 8
_PROGRESS_EVERY = 256

Progress = Callable[[int, int], None]
"""Called with the number of samples done and the number in all."""


@dataclass(frozen=True)
class _Tree:
    """Files and folders below a root; each path as its parts."""

    origin: str
    files: tuple[tuple[str, ...], ...]
    folders: Mapping[tuple[str, ...], tuple[str, ...]]  # the folders in each folder, sorted
    read: Callable[[tuple[str, ...]], bytes]


@dataclass(frozen=True)
class ImageFolder:
    """The image files of one split, not yet decoded.

    Attributes
    ----------
    origin : str
        Where the files come from, for messages.
    classes : tuple of str
        Names of the class folders, sorted; a label is an index into them.
    files : tuple of str
        Paths below the origin, sorted by class, then by name.
    labels : (n,) int64
        Class of each file.
    read : callable
        Path below the origin to the bytes of the file.
    """

    origin: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[str], bytes]


@contextmanager
def open_image_folder(path: Path, split: str | None = None) -> Iterator[ImageFolder]:
    """Find the classes and files of an image folder; nothing is decoded.

    Parameters
    ----------
    path
        A folder, or a zip file of one. A folder may also hold its splits as ``<split>.zip``.
    split
        Sub-folder to use. Without it, a lone folder at the top that holds the class folders is entered.

    Raises
    ------
    DataError
        The split is not there, the layout is ambiguous, a class folder holds no image, or the zip file is damaged or
        hostile.
    """
    if split is not None and path.is_dir() and not (path / split).is_dir() and (path / f"{split}.zip").is_file():
        path = path / f"{split}.zip"
    if path.is_dir():
        tree = _folder_tree(path)
        archives = sorted(file.stem for file in path.glob("*.zip"))
        if archives and not tree.folders:
            raise _unnamed_split(str(path), archives, split)
        yield _choose(tree, split)
        return
    with open_archive(path) as archive:
        tree = _zip_tree(path, archive)
        # train.zip may hold train/<class> or the classes themselves: its name already says which split it is.
        inside = split != path.stem or split in _folders_in(tree, ()) or split in _wrapped(tree)
        yield _choose(tree, split if inside else None)


def decode_images(
    folder: ImageFolder,
    chosen: Sequence[int],
    *,
    channels: int,
    size: tuple[int | None, int | None],
    progress: Progress | None = None,
) -> np.ndarray:
    """Decode images to float32 in [0, 1].

    Parameters
    ----------
    folder
        Where the files are.
    chosen
        Indices into ``folder.files``.
    channels
        1 (grey) or 3 (red, green, blue); images are converted.
    size
        Height and width that every image must have; ``None`` for those of the first image.
    progress
        Called with the number of images done and the number in all.

    Returns
    -------
    (n, channels, height, width) float32
        The images in the order of ``chosen``.

    Raises
    ------
    DataError
        An image is broken, is no 8-bit image, has another size, or is larger than it may be.
    """
    total = len(chosen)
    pixels: np.ndarray | None = None
    for done, index in enumerate(chosen):
        file = folder.files[index]
        image = _decode(folder.read(file), channels, size, f"image '{file}' of '{folder.origin}'", total)
        if pixels is None:
            size = (image.shape[1], image.shape[2])
            pixels = np.empty((total, *image.shape), dtype=np.uint8)
        pixels[done] = image
        if progress is not None and (done + 1 == total or done % _PROGRESS_EVERY == _PROGRESS_EVERY - 1):
            progress(done + 1, total)
    if pixels is None:
        raise DataError(f"data '{folder.origin}'", "must hold at least one image")
    scaled = pixels.astype(np.float32)
    scaled /= np.float32(255.0)
    return scaled


def _decode(data: bytes, channels: int, size: tuple[int | None, int | None], subject: str, total: int) -> np.ndarray:
    from PIL import Image

    try:
        # Warnings of pillow are about bombs, which become errors, and about metadata, which nobody here reads.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_image(image.mode, image.height, image.width, channels, size, subject, total)
                decoded = np.asarray(image.convert(_MODES[channels]))
    except DataError:
        raise
    # A malformed file makes decoders raise whatever its bytes lead to: OSError, SyntaxError, struct.error, and more.
    except Exception as error:
        raise DataError(subject, f"cannot be decoded: {error or type(error).__name__}") from error
    return decoded[np.newaxis] if channels == 1 else decoded.transpose(2, 0, 1)


def _check_image(
    mode: str,
    height: int,
    width: int,
    channels: int,
    size: tuple[int | None, int | None],
    subject: str,
    total: int,
) -> None:
    """Check what the header of an image says, before its pixels are decoded."""
    wanted = (size[0] or height, size[1] or width)
    if (height, width) != wanted:
        raise DataError(
            subject, f"must have {wanted} pixels (height, width)", got=(height, width), hint="resize the images"
        )
    if mode not in _MODES_OF_8_BITS:
        raise DataError(subject, "must have 8 bits a channel", got=mode, hint="pass other data as .npz")
    if total * channels * height * width * 4 > MAX_DECODED_BYTES:
        raise DataError(
            subject, f"and {total - 1} more of its size must fit into {MAX_DECODED_BYTES} bytes", hint="use a limit"
        )


def _folder_tree(root: Path) -> _Tree:
    files: list[tuple[str, ...]] = []
    folders: set[tuple[str, ...]] = set()

    def walk(folder: Path, parts: tuple[str, ...]) -> None:
        _check_depth(parts, str(root))  # also where a link to a parent ends
        for entry in sorted(folder.iterdir()):
            here = (*parts, entry.name)
            if _hidden(here):
                continue
            if entry.is_dir():
                folders.add(here)
                walk(entry, here)
            elif entry.suffix.lower() in SUFFIXES and entry.is_file():
                files.append(here)

    def read(parts: tuple[str, ...]) -> bytes:
        file = root.joinpath(*parts)
        with reading(f"image '{file}'"):
            if file.stat().st_size > MAX_FILE_BYTES:
                raise DataError(f"image '{file}'", f"must be at most {MAX_FILE_BYTES} bytes", got=file.stat().st_size)
            return file.read_bytes()

    with reading(f"data '{root}'"):
        walk(root, ())
    return _Tree(str(root), tuple(files), _by_parent(folders), read)


def _zip_tree(path: Path, archive: zipfile.ZipFile) -> _Tree:
    members: dict[tuple[str, ...], zipfile.ZipInfo] = {}
    folders: set[tuple[str, ...]] = set()
    for member in checked_members(archive, member_bytes=MAX_FILE_BYTES):
        parts = PurePosixPath(member.filename).parts
        if _hidden(parts):
            continue
        _check_depth(parts, str(path))
        folders.update(parts[:depth] for depth in range(1, len(parts) + member.is_dir()))
        if not member.is_dir() and PurePosixPath(member.filename).suffix.lower() in SUFFIXES:
            members[parts] = member

    def read(parts: tuple[str, ...]) -> bytes:
        with reading(f"image '{'/'.join(parts)}' of '{path}'"):
            return archive.read(members[parts])

    return _Tree(str(path), tuple(members), _by_parent(folders), read)


def _check_depth(parts: tuple[str, ...], origin: str) -> None:
    if len(parts) > _MAX_DEPTH:
        raise DataError(f"data '{origin}'", f"must not be nested deeper than {_MAX_DEPTH} folders", got="/".join(parts))


def _hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _choose(tree: _Tree, split: str | None) -> ImageFolder:
    """Find the folder that holds the class folders, and label its files."""
    root: tuple[str, ...] = ()
    if split is not None:
        root = _split_root(tree, split)
    while True:
        below = _folders_in(tree, root)
        nested = [name for name in below if _folders_in(tree, (*root, name))]
        if not nested:
            break
        if len(below) > 1:
            raise _ambiguous(tree, below, nested)
        root = (*root, below[0])
    return _labelled(tree, root)


def _unnamed_split(origin: str, splits: Sequence[str], split: str | None) -> DataError:
    """Build the error for a split that is not named, or not there."""
    if split is None:
        return DataError(
            f"data '{origin}'", f"holds the splits {_listed(splits)}", hint="name the one to use (--split)"
        )
    near = difflib.get_close_matches(split, splits, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"it has {_listed(splits)}" if splits else ""
    return DataError(f"split of data '{origin}'", "must be one of its folders or zip files", got=split, hint=hint)


def _ambiguous(tree: _Tree, below: Sequence[str], nested: Sequence[str]) -> DataError:
    """Build the error for several folders of which some hold folders."""
    if len(nested) == len(below):
        return _unnamed_split(tree.origin, below, None)
    flat = [name for name in below if name not in nested]
    mixed = f"{_listed(nested)} with folders inside, {_listed(flat)} without"
    return DataError(f"data '{tree.origin}'", f"must hold either splits or class folders; it has {mixed}")


def _split_root(tree: _Tree, split: str) -> tuple[str, ...]:
    top = _folders_in(tree, ())
    if split in top:
        return (split,)
    inner = _wrapped(tree)
    if split in inner:
        return (top[0], split)
    nested = any(_folders_in(tree, (top[0], name)) for name in inner)
    raise _unnamed_split(tree.origin, inner if nested else top, split)


def _wrapped(tree: _Tree) -> tuple[str, ...]:
    """Folders in the lone folder at the top, as archives of a whole folder have it; none if there is no such folder."""
    top = _folders_in(tree, ())
    return _folders_in(tree, top) if len(top) == 1 else ()


def _folders_in(tree: _Tree, root: tuple[str, ...]) -> tuple[str, ...]:
    return tree.folders.get(root, ())


def _by_parent(folders: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    children: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for folder in sorted(folders):
        children[folder[:-1]].append(folder[-1])
    return {parent: tuple(names) for parent, names in children.items()}


def _labelled(tree: _Tree, root: tuple[str, ...]) -> ImageFolder:
    depth = len(root)
    classes = _folders_in(tree, root)
    grouped: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for file in sorted(tree.files):
        if file[:depth] == root:
            if len(file) == depth + 1:
                hint = "images lie in class folders: <split>/<class>/<file>"
                raise DataError(f"image '{'/'.join(file)}' of '{tree.origin}'", "must lie in a class folder", hint=hint)
            grouped[file[depth]].append(file)
    if not classes:
        hint = "images lie in class folders: <split>/<class>/<file>"
        raise DataError(f"data '{tree.origin}'", "must hold class folders with images", hint=hint)
    for name in classes:
        if not grouped[name]:
            known = ", ".join(sorted(SUFFIXES))
            raise DataError(f"class folder '{name}' of '{tree.origin}'", f"must hold at least one image ({known})")
    files = [file for name in classes for file in grouped[name]]
    labels = np.repeat(np.arange(len(classes)), [len(grouped[name]) for name in classes])
    return ImageFolder(
        tree.origin,
        classes,
        tuple("/".join(file) for file in files),
        labels,
        lambda file: tree.read(tuple(file.split("/"))),
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
