"""The page on the physics names every effect and field, and its figures are drawn by the project's own functions."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from test_spec_effects import leaves

from hwspec.effects import EFFECTS, OF_A_CHIP
from hwspec.scope import EXCLUDED
from hwspec.spec import HardwareSpec

pytest.importorskip("matplotlib")

from studies.physics_plots import FIGURES, OUTPUT, draw_all
from studies.plot_style import Effort, write

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "physics.md").read_text(encoding="utf-8")
COSTS = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
QUICK = Effort(side=32, draws=60)


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    """Each is a picture with curves, text and a white ground, small, and without the date."""
    paths = draw_all(tmp_path, QUICK)
    assert sorted(path.stem for path in paths) == sorted(FIGURES)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tags = [node.tag.rpartition("}")[2] for node in ET.fromstring(text).iter()]
        assert tags.count("path") > 10, path.name
        assert tags.count("text") > 10, path.name
        assert len(text) < 60_000, path.name
        assert "date" not in text


def test_a_figure_is_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(FIGURES["spread"], QUICK, tmp_path / f"{name}.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_the_page_shows_every_figure_and_no_other() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(images/physics/([\w-]+)\.svg\)", PAGE)
    assert sorted(shown) == sorted(FIGURES)
    assert sorted(path.name for path in (ROOT / OUTPUT).iterdir()) == sorted(f"{name}.svg" for name in FIGURES)


@pytest.mark.parametrize("effect", EFFECTS)
def test_the_page_names_every_effect(effect: str) -> None:
    assert re.search(rf"^`{effect}`\. ", PAGE, re.MULTILINE), f"docs/physics.md has no section of {effect}"


@pytest.mark.parametrize("field", sorted(set(leaves(HardwareSpec)) - {"name"}))
def test_the_page_names_every_field(field: str) -> None:
    """What time, energy and area come from is told on a page of its own."""
    page, name = (COSTS, "costs") if field.startswith(("chip.", "costs.")) else (PAGE, "physics")
    assert f"`{field}`" in page, f"docs/{name}.md does not tell of {field}"


def test_the_page_tells_what_an_ideal_chip_and_a_spec_leave_out() -> None:
    text = " ".join(PAGE.split())
    ideal = text[text.index("On `Chip.ideal`") : text.index("Wires, converters, temperature")]
    assert set(re.findall(r"`(\w+)`", ideal)) == OF_A_CHIP
    for effect in EXCLUDED:
        assert effect in text, f"docs/physics.md does not say that {effect} is left out"


def test_links_within_the_page_have_their_headings() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors
