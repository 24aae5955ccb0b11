"""Report pages in a browser: nothing is complained of or asked for, tables sort, all is legible in any window."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import FOUND, Page, browser
from PIL import Image
from report_pages import chain, evaluation

import xbarc

pytestmark = pytest.mark.skipif(FOUND is None, reason="needs Chromium (Debian package chromium) on the PATH")

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"
NAMES = (
    '"><script>document.title="hacked"</script>',
    "<img src=x onerror='alert(2)'>",
    "long" * 500,
    "שלום\u202eevil",
    "a b " * 60,
)
COLUMN = """(number) => Array.from(document.querySelectorAll('#layers tbody tr'),
    row => row.cells[number].dataset.value ?? row.cells[number].textContent)"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = xbarc.compile(DIGITS, spec="rram-128")
    path = tmp_path_factory.mktemp("pages") / "digits.html"
    path.write_text(xbarc.report_page(program, evaluation(program)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "hostile.html"
    path.write_text(xbarc.report_page(xbarc.compile(chain(NAMES))), encoding="utf-8")
    return path


@pytest.fixture(params=["digits", "hostile"])
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def column(page: Page, number: int) -> list[str]:
    """What cells of a column of the table of layers are sorted by."""
    found: list[str] = page.value(f"({COLUMN})({number})")
    return found


def test_nothing_is_asked_for_and_nothing_complained_of(page: Page, path: Path) -> None:
    page.open(path, 1280)
    assert page.requests == [path.as_uri()]
    assert page.complaints == []
    assert page.value("document.title").endswith("report of xbarc")
    loaded = page.value("performance.getEntriesByType('resource').map(one => one.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_complaints_and_requests_are_noticed(page: Page, tmp_path: Path) -> None:
    """What the tests above look at does tell."""
    found = tmp_path / "bad.html"
    found.write_text("<script>console.error('no')</script><img src='nosuch.png'>", encoding="utf-8")
    page.open(found, 1280)
    assert any("nosuch.png" in address for address in page.requests)
    assert any("no" in complaint for complaint in page.complaints)


def test_every_image_has_a_size(page: Page, path: Path) -> None:
    page.open(path, 1280)
    images = page.value("Array.from(document.images, one => [one.complete, one.naturalWidth, one.naturalHeight])")
    assert images
    assert all(complete and width > 0 and height > 0 for complete, width, height in images)
    drawn = page.value("Array.from(document.querySelectorAll('svg'), one => one.getBoundingClientRect().height)")
    assert drawn
    assert min(drawn) > 0


@pytest.mark.parametrize("width", [1280, 390])
def test_only_boxes_scroll_sideways(page: Page, path: Path, width: int) -> None:
    page.open(path, width)
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    outside = page.value(
        "Array.from(document.querySelectorAll('body *')).filter(one => !one.closest('.scroll, .graph') && "
        "one.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5).map(one => one.outerHTML)"
    )
    assert outside == []
    assert page.value("getComputedStyle(document.querySelector('.scroll')).overflowX") == "auto"


def test_a_click_sorts_and_the_next_turns_round(page: Page, digits: Path) -> None:
    page.open(digits, 1280)
    names = page.value("Array.from(document.querySelectorAll('#layers thead th'), one => one.textContent)")
    number = names.index("time")
    selector = f"#layers thead th:nth-child({number + 1}) button"
    before = [float(value) for value in column(page, number)]
    page.click(selector)
    assert [float(value) for value in column(page, number)] == sorted(before, reverse=True) != before
    sorts = "Array.from(document.querySelectorAll('#layers th'), one => one.getAttribute('aria-sort'))"
    assert [one for one in page.value(sorts) if one] == ["descending"]
    page.click(selector)
    assert [float(value) for value in column(page, number)] == sorted(before)
    assert page.value(sorts)[number] == "ascending"


def test_the_keyboard_sorts(page: Page, digits: Path) -> None:
    page.open(digits, 1280)
    before = [float(value) for value in column(page, 3)]
    page.value("document.querySelector('#layers thead th:nth-child(4) button').focus()")
    page.press("Enter", 13, "\r")
    assert [float(value) for value in column(page, 3)] == sorted(before, reverse=True)
    page.press(" ", 32, " ")
    assert [float(value) for value in column(page, 3)] == sorted(before)
    page.press("Tab", 9)
    assert page.value("document.activeElement.textContent") == "arrays"


def test_every_column_sorts_rows_whole(page: Page, path: Path) -> None:
    page.open(path, 1280)
    rows = "Array.from(document.querySelectorAll('table.sortable tbody tr'), one => one.textContent)"
    before = page.value(rows)
    page.value("document.querySelectorAll('th button').forEach(one => one.click())")
    assert sorted(page.value(rows)) == sorted(before)
    assert page.complaints == []


def test_without_scripts_all_is_there(page: Page, digits: Path) -> None:
    page.open(digits, 390, scripts=False)
    found = page.value("[document.querySelectorAll('section').length, document.querySelectorAll('button').length]")
    assert found == [8, 0]


def test_light_and_dark(page: Page, digits: Path, tmp_path: Path) -> None:
    shades = []
    for dark in (False, True):
        page.open(digits, 1280, dark=dark)
        page.screenshot(tmp_path / "page.png", whole=False)
        with Image.open(tmp_path / "page.png") as opened:
            shades.append(float(np.median(np.asarray(opened.convert("L")))))
        assert contrast(page, "body", "body") > 7
        assert contrast(page, "small", "body") > 4.5
        assert contrast(page, "a", "body") > 4.5
        assert contrast(page, ".cards dt", ".cards > div") > 4.5
    assert shades[0] > 200
    assert shades[1] < 60


def contrast(page: Page, ink: str, ground: str) -> float:
    """Contrast ratio by WCAG 2 of the text of one element on the ground of another."""

    def luminance(selector: str, style: str) -> float:
        colour: Any = page.value(
            f"getComputedStyle(document.querySelector('{selector}')).{style}.match(/[0-9.]+/g).slice(0, 3).map(Number)"
        )
        linear = [one / 255 / 12.92 if one <= 10 else ((one / 255 + 0.055) / 1.055) ** 2.4 for one in colour]
        return 0.2126 * float(linear[0]) + 0.7152 * float(linear[1]) + 0.0722 * float(linear[2])

    one, other = luminance(ink, "color"), luminance(ground, "backgroundColor")
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_pictures_are_drawn_in_their_colours(page: Page, digits: Path, tmp_path: Path) -> None:
    """Pixels of the first picture on the screen are those of its file, each a block."""
    page.open(digits, 1280)
    page.value("document.querySelector('img').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = page.value("(({x, y, width, height}) => [x, y, width, height])(document.images[0].getBoundingClientRect())")
    source = page.value("document.images[0].src").partition(",")[2]
    page.screenshot(tmp_path / "page.png", whole=False)
    with (
        Image.open(io.BytesIO(base64.b64decode(source))) as file,
        Image.open(tmp_path / "page.png") as screen,
    ):
        wanted, seen = file.convert("RGB"), screen.convert("RGB")
    for row in range(wanted.height):
        for col in range(wanted.width):
            x = box[0] + box[2] * (col + 0.5) / wanted.width
            y = box[1] + box[3] * (row + 0.5) / wanted.height
            assert seen.getpixel((int(x), int(y))) == wanted.getpixel((col, row))
