"""The page in a real browser: drawn, quiet, offline; on a phone, in the dark and on paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.replay.results import load_results
from workbench.reports.page import page

playwright = pytest.importorskip("playwright.sync_api", reason="the page tests need playwright")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="the page tests need Chromium"),
]

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


class Visit:
    """The page opened from its file without a network.

    Args:
        browser: a running Chromium.
        file: the page.
        options: of the browser's context.
    """

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(offline=True, **options)
        self.tab = self.context.new_page()
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector("html[data-drawn]", state="attached")

    def colour(self, selector: str, what: str) -> str:
        script = "([s, w]) => getComputedStyle(document.querySelector(s))[w]"
        return str(self.tab.evaluate(script, [selector, what]))


@pytest.fixture
def file(tmp_path: Path, synthetic_results: Path) -> Path:
    target = tmp_path / "report.html"
    target.write_text(page(load_results([synthetic_results])), encoding="utf-8")
    return target


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_all_charts_are_drawn_and_nothing_leaves_the_file(
    browser: Any, file: Path, scheme: str, width: int
) -> None:
    visit = Visit(browser, file, color_scheme=scheme, viewport={"width": width, "height": 800})
    places = visit.tab.locator(".plot")
    assert places.count() == 4
    for place in places.all():
        assert place.locator("svg .trace, svg .bars .point").count() > 0
    scroll = visit.tab.evaluate("document.documentElement.scrollWidth")
    assert scroll <= width, "the page scrolls sideways"
    assert visit.requests == [file.as_uri()]
    assert visit.complaints == []


def test_dark_is_dark_and_follows_the_reader(browser: Any, file: Path) -> None:
    visit = Visit(browser, file, color_scheme="dark")
    assert visit.colour("body", "backgroundColor") == "rgb(21, 24, 29)"
    assert visit.colour(".plot .xtick text", "fill") == "rgb(154, 164, 176)"
    visit.tab.emulate_media(color_scheme="light")
    tick = visit.tab.locator(".plot .xtick text").first
    playwright.expect(tick).to_have_css("fill", "rgb(90, 101, 114)")
    assert visit.colour("body", "backgroundColor") == "rgb(255, 255, 255)"
    assert visit.complaints == []


def test_the_table_scrolls_in_its_own_frame(browser: Any, file: Path) -> None:
    visit = Visit(browser, file, viewport={"width": 390, "height": 800})
    frame = visit.tab.locator(".scroll").first
    inside, outside = frame.evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert inside > outside


def test_the_reader_chooses_the_state(browser: Any, file: Path) -> None:
    visit = Visit(browser, file)
    shown = "[...document.querySelector('#latency-distribution').data].filter(l => l.visible)"
    assert set(visit.tab.evaluate(f"{shown}.map(l => l.meta)")) == {"steady"}
    visit.tab.locator("input[name=latency-distribution][value=cold]").check()
    assert set(visit.tab.evaluate(f"{shown}.map(l => l.meta)")) == {"cold"}
    assert visit.complaints == []


def test_it_prints(browser: Any, file: Path, tmp_path: Path) -> None:
    visit = Visit(browser, file, color_scheme="dark")
    target = tmp_path / "page.pdf"
    visit.tab.pdf(path=target, prefer_css_page_size=True)
    assert target.read_bytes().startswith(b"%PDF")
    assert visit.complaints == []


def test_hostile_text_does_not_run(browser: Any, tmp_path: Path, make_result: Any) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)><a href=//x>x</a>"
    make_result(tmp_path, label=hostile, trace={"path": hostile, "program": [hostile]})
    target = tmp_path / "report.html"
    target.write_text(page(load_results([tmp_path])), encoding="utf-8")
    visit = Visit(browser, target)
    assert visit.tab.locator("img, a:not(.modebar-btn)").count() == 0
    assert hostile in visit.tab.locator("table").first.inner_text()
    assert visit.requests == [target.as_uri()]
    assert visit.complaints == []


def test_without_scripts_the_words_remain(browser: Any, file: Path) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False)
    tab = context.new_page()
    tab.goto(file.as_uri())
    assert "The chart needs JavaScript" in tab.locator(".plot").first.inner_text()
    assert "cpu-caching" in tab.locator("table").first.inner_text()
