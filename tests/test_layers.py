"""The house rules: imports point down, torch stays in its rooms, `import xbarc` stays light, rooms are small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("hwspec", "runtime", "compiler", "xbarc")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "hwspec": ("hwspec",),
    "runtime": ("hwspec", "runtime"),
    "compiler": ("hwspec", "runtime", "compiler"),
    "xbarc": OURS,
}
RUN_TIME_ONLY = ("runtime.engine", "runtime.train", "runtime.sweep")
"""Rooms of the runtime that the compiler never needs."""
LIGHT = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "scipy",
    "networkx",
    "numba",
    "pint",
    "pydantic",
    "numpy",
)
"""What `import xbarc` leaves to those who use it."""
ROOMS = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))
LONGEST = 400


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, inside functions and type checks too."""
    module = list(path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(module[: -node.level]) if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def test_the_rooms_are_found() -> None:
    assert len(ROOMS) > 50
    assert {path.relative_to(ROOT).parts[0] for path in ROOMS} == set(OURS)


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for line, name in imports(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        top = name.split(".")[0]
        assert top not in OURS or top in MAY_IMPORT[package], where
        assert top not in ("tests", "models", "benchmarks", "studies"), where
        if package == "compiler":
            assert not f"{name}.".startswith(tuple(f"{room}." for room in RUN_TIME_ONLY)), where


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_stays_in_its_rooms(path: Path) -> None:
    room = path.relative_to(ROOT)
    if str(room) in ("runtime/engine.py", "runtime/train.py") or room.stem.endswith("_torch"):
        return
    typing_only = _type_checking_lines(path)
    found = [line for line, name in imports(path) if name.split(".")[0] == "torch" and line not in typing_only]
    assert not found, f"{room} imports torch on line {found[0]}"


def _type_checking_lines(path: Path) -> set[int]:
    """Lines that only a type checker reads."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.body:
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has after a statement."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_xbarc_is_light() -> None:
    loaded = loaded_by("import xbarc")
    assert "xbarc" in loaded
    assert not loaded & set(LIGHT)


def test_compiling_and_the_reference_need_no_torch() -> None:
    loaded = loaded_by("import runtime.archive, runtime.listing, runtime.reference, compiler.compile")
    assert "numpy" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_are_small_and_named(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path.relative_to(ROOT)} has {lines} lines: split it"
    for part in path.relative_to(ROOT).with_suffix("").parts:
        assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(part.split("_")), path


@pytest.mark.parametrize("package", OURS)
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
