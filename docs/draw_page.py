"""Take the screenshots of the demo page and of a report, with the bundled network and its generated scenes.

    python -m docs.draw_page   # needs pip install -e '.[demo,test]' and Chromium

Writes docs/images/demo_page.png, demo_word.png, the animation demo_page.gif, and report.png.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from s2rm_jax import default_network
from s2rm_jax.input.sources import build_source
from s2rm_jax.training.run import load_config

IMAGES = Path(__file__).parent / "images"
EXAMPLE = 0  # of the examples of the page, the one that is shown

# The animation: a scene of the test split, drawn larger than the network was trained on, so that outlines are smooth.
# It is a scene in which all four expressions of the split are segmented well.
SCENE, SIDE = 21, 384
TYPED = ("the red triangle", "the large blue circle that is below the green triangle")
WIDTH, HEIGHT = 760, 710  # pixels: of the animation, and of the page that it shows
PAUSES = {"type": 70, "image": 900, "ready": 500, "found": 2500}  # milliseconds


def main() -> None:
    """Serve the page, use it as a visitor does, evaluate the network, and save what both show."""
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
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.goto(address)
        _save_animation(list(_type_expressions(page)), "demo_page.gif")
        _save_report(browser.new_page(viewport={"width": 1000, "height": 900}), "report.png")
        browser.close()


def _save(page: Page, name: str) -> None:
    page.evaluate("window.scrollTo(0, 0)")
    page.mouse.move(0, 0)
    page.screenshot(path=IMAGES / name, full_page=True)


def _save_report(page: Page, name: str) -> None:
    """Save the report of an evaluation up to the worst cases, in few colours."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--workdir=s2rm_jax/default_network", "--split=test", "--limit=256", "--gallery=2", f"--out={folder}"]
        subprocess.run([sys.executable, "-m", "s2rm_jax.evaluate", *flags], cwd=IMAGES.parents[1], check=True)
        page.goto(f"file://{folder}/index.html")
        end = page.get_by_role("heading", name="Worst cases").bounding_box()
        assert end
        clip = {"x": 0, "y": 0, "width": 1000, "height": end["y"]}
        shown = Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True)))
        shown.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)


class Frame(NamedTuple):
    """A screenshot and for how many milliseconds it is shown."""

    image: Image.Image
    duration: int


def _type_expressions(page: Page) -> Iterator[Frame]:
    """Upload the scene and type one expression after the other; yield what the page shows."""

    def frame(kind: str) -> Frame:
        page.mouse.move(0, 0)
        box, view = page.locator("#image").bounding_box(), page.locator("#viewer").bounding_box()
        assert box and view
        width = view["x"] + view["width"] - box["x"] + 24
        shown = page.screenshot(clip={"x": box["x"] - 12, "y": view["y"] - 12, "width": width, "height": HEIGHT})
        return Frame(Image.open(io.BytesIO(shown)).convert("RGB"), PAUSES[kind])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.png"
        _scene().save(path)
        page.locator("#image input[type=file]").set_input_files(path)
        page.locator("#viewer .stage").wait_for()
        yield frame("image")
        box = page.locator("#expressions textarea")
        for expression in TYPED:
            box.fill("")
            for letter in expression:
                box.press_sequentially(letter)
                yield frame("type")
            yield frame("ready")
            page.locator("#find").click()
            page.locator(".found li", has_text=expression).wait_for()
            yield frame("found")


def _scene() -> Image.Image:
    source = load_config(default_network.FOLDER).input.source
    source.image_size = (SIDE, SIDE)
    return Image.fromarray(build_source(source, "test")[SCENE].load_image())


def _save_animation(frames: Sequence[Frame], name: str) -> None:
    """Save frames as a GIF with one palette, so that frames differ only where the page does."""
    height = round(frames[0].image.height * WIDTH / frames[0].image.width)
    resized = [frame.image.resize((WIDTH, height), Image.Resampling.LANCZOS) for frame in frames]
    palette = resized[-1].quantize(method=Image.Quantize.FASTOCTREE)
    drawn = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in resized]
    durations = [frame.duration for frame in frames]
    drawn[0].save(IMAGES / name, save_all=True, append_images=drawn[1:], duration=durations, loop=0, optimize=False)


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
