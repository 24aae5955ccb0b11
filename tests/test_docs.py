"""Pages that are made by a command are what the command makes."""

import re
from pathlib import Path

from hwspec.spec import HardwareSpec
from xbarc import spec_page
from xbarc.supported_ops import markdown_page

ROOT = Path(__file__).parent.parent


def test_supported_ops_page_is_current() -> None:
    assert (ROOT / "docs" / "supported-ops.md").read_text(encoding="utf-8") == markdown_page(), "run `make docs`"


def test_spec_page_is_current_and_whole() -> None:
    page = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    assert page == spec_page.markdown_page(), "run `make docs`"
    for field, _ in HardwareSpec.preset("ideal").fields():
        assert f"| `{field}` |" in page
    assert all(field.meaning for field in spec_page.described_fields())


def test_readme_names_every_preset() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for preset in HardwareSpec.presets():
        assert f"`{preset}`" in readme, preset


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "models" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists() or target.startswith("http"), f"{page.name}: {target}"
