"""Take the README's picture: the top of a comparison page, as a browser shows it.

::

    .venv/bin/python docs/make_picture.py demo/report.html docs/images/report.png
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def take(page: Path, picture: Path) -> None:
    """Write the first screens of `page` to `picture`, a PNG file."""
    with sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(
            offline=True, color_scheme="light", viewport={"width": 1120, "height": 800}
        )
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("html[data-drawn]", state="attached")
        end = tab.locator("#memory-over-time").bounding_box()
        bottom = end["y"] + end["height"] + 16 if end else 1600
        tab.screenshot(
            path=picture,
            full_page=True,
            clip={"x": 0, "y": 0, "width": 1120, "height": bottom},
        )
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
