"""Pages that are made by a command are what the command makes."""

import re
from pathlib import Path

from hwspec.spec import HardwareSpec
from xbarc.supported_ops import markdown_page

ROOT = Path(__file__).parent.parent


def test_supported_ops_page_is_current() -> None:
    assert (ROOT / "docs" / "supported-ops.md").read_text(encoding="utf-8") == markdown_page(), "run `make docs`"


def test_readme_describes_every_spec_field() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("| field | meaning |") : readme.index("### From Python")]
    named = set(re.findall(r"`([a-z_.]+)`", table))
    for field, _ in HardwareSpec.preset("ideal").fields():
        assert field == "name" or field in named or field.split(".")[1] in named, field


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "models" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists() or target.startswith("http"), f"{page.name}: {target}"
