"""Take the screenshots of the demo page, with the network of the package and its generated scenes.

    python -m docs.draw_page   # needs pip install -e '.[demo,test]' and Chromium

Writes docs/images/demo_page.png, demo_word.png and demo_refused.png.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
EXAMPLE = 0  # of the examples of the page, the one that is shown


def main() -> None:
    """Serve the page, use it as a visitor does, and save what it shows."""
    with _server() as address, sync_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 860})
        page.goto(address)
        page.locator("#examples button.thumbnail-item").nth(EXAMPLE).click()
        page.locator(".found li").nth(1).wait_for()
        _save(page, "demo_page.png")
        page.locator(".words .layer").nth(2).click()
        page.locator("summary").first.click()
        page.locator(".stage .heat").wait_for()
        _save(page, "demo_word.png")
        page.locator("#expressions textarea").fill("x" * 10_000)
        page.locator("#find").click()
        page.locator(".s2rm-problem").wait_for()
        _save(page, "demo_refused.png", full_page=False)
        browser.close()


def _save(page: Page, name: str, full_page: bool = True) -> None:
    page.evaluate("window.scrollTo(0, 0)")
    page.mouse.move(0, 0)
    page.screenshot(path=IMAGES / name, full_page=full_page)


@contextmanager
def _server() -> Iterator[str]:
    """Run the demo on a free port and give its address."""
    command = [sys.executable, "-m", "s2rm_jax.demo", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield next(found[0] for line in server.stdout if (found := re.search(r"http://[\w.:]+", line)))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
