"""The page in a real browser: uploads, masks, explanations, downloads and errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.input.masks import rasterize

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("Chromium is not installed (Debian: apt-get install chromium)", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("gradio", reason="the extra 'demo' is not installed")

TIMEOUT = 600_000  # milliseconds; only reached if something hangs
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def window():
    """A browser context; its pages share a cache."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(TIMEOUT)
        yield context
        browser.close()


@pytest.fixture
def page(window, server):
    """The loaded page; `foreign` has its requests to other servers, `errors` its failed requests and script errors."""
    page = window.new_page()
    page.foreign, page.errors = [], []
    page.on("request", lambda sent: sent.url.startswith(("data:", server.address)) or page.foreign.append(sent.url))
    page.on("response", lambda answer: answer.status < 400 or page.errors.append(f"{answer.status} {answer.url}"))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(server.address, wait_until="domcontentloaded")
    page.wait_for_selector("#find")
    yield page
    page.close()


def upload(page, path):
    page.locator("#image input[type=file]").set_input_files(path)


def submit(page, text):
    page.locator("#expressions textarea").fill(text)
    page.locator("#find").click()


def downloaded(page, label, row=0):
    with page.expect_download() as download:
        page.locator(".found li").nth(row).get_by_text(label, exact=True).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_an_image_and_its_masks(page, striped_file, tmp_path):
    image = tmp_path / "image.png"
    image.write_bytes(striped_file(24, 48, 64))
    upload(page, image)
    page.get_by_text("64 × 48 pixels · Image encoded in").wait_for()
    submit(page, "the red part\nblue")
    page.locator(".found li").nth(1).wait_for()
    assert "2 expressions segmented in" in page.locator(".times").inner_text()
    assert "already encoded" in page.locator(".times").inner_text()
    assert "score 0.9" in page.locator(".score").first.inner_text()

    masks = page.locator(".stage .mask")
    assert [masks.nth(i).is_visible() for i in range(2)] == [True, True]
    assert masks.first.bounding_box() == page.locator(".stage .photo").bounding_box()
    page.locator(".found input").first.uncheck()
    assert [masks.nth(i).is_visible() for i in range(2)] == [False, True]
    page.locator(".found input").first.check()

    page.get_by_role("button", name="red", exact=True).click()
    assert page.locator(".stage .heat").is_visible()
    assert not masks.first.is_visible()
    assert "attention to “red”" in page.locator(".legend").inner_text()
    page.locator("summary").first.click()
    page.locator(".found li").first.locator(".bars .layer").nth(3).click()
    assert "weight of the direction rightwards" in page.locator(".legend").inner_text()
    page.locator(".found li").first.locator(".bars .layer").nth(3).click()  # off again
    assert masks.first.is_visible()

    red = np.broadcast_to(np.arange(64) < 24, (48, 64))
    name, content = downloaded(page, "PNG")
    assert name == "mask_1_the_red_part.png"
    (tmp_path / name).write_bytes(content)
    with Image.open(tmp_path / name) as mask:
        np.testing.assert_array_equal(np.asarray(mask) > 0, red)
    np.testing.assert_array_equal(rasterize(json.loads(downloaded(page, "COCO RLE")[1]), 48, 64), red)
    np.testing.assert_array_equal(rasterize(json.loads(downloaded(page, "polygons", 1)[1])["polygons"], 48, 64), ~red)
    assert not page.foreign
    assert not page.errors


def test_one_click_segments_an_example(page):
    page.locator("#examples button.thumbnail-item").first.click()
    page.locator(".found li").nth(1).wait_for()
    assert page.locator("#expressions textarea").input_value() == "blue\nred"
    assert [name.inner_text() for name in page.locator(".found b").all()] == ["blue", "red"]


def test_the_page_works_after_errors(page, striped_file, enormous_image, tmp_path):
    problem = page.locator(".s2rm-problem")
    submit(page, "red")
    page.get_by_text("no image yet").wait_for()
    for content, message in (
        (b"not an image", "not a readable JPEG, PNG or WebP image"),
        (enormous_image, "more than 25,000,000 pixels"),
    ):
        (tmp_path / "bad.png").write_bytes(content)
        upload(page, tmp_path / "bad.png")
        page.get_by_text(message).wait_for()
        page.locator("#image button[aria-label*=lear], #image button[aria-label*=emove]").first.click()
        problem.wait_for(state="detached")

    (tmp_path / "good.png").write_bytes(striped_file())
    upload(page, tmp_path / "good.png")
    page.get_by_text("Image encoded in").wait_for()
    submit(page, "x" * 10_000)
    page.get_by_text("an expression has 10,000 characters, more than the limit of 500").wait_for()
    submit(page, "red\n" * 17)
    page.get_by_text("17 expressions exceed the limit of 16").wait_for()
    submit(page, "red")
    page.locator(".found li").wait_for()
    assert problem.count() == 0
    assert not page.errors


def test_expressions_are_escaped(page, striped_file, tmp_path):
    """The stand-in's tokenizer returns HTML for the word "part", so the labels of words contain HTML too."""
    (tmp_path / "image.png").write_bytes(striped_file())
    upload(page, tmp_path / "image.png")
    page.locator(".stage .photo").wait_for()
    written = "part <script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    submit(page, written)
    page.locator(".found li").wait_for()
    assert page.locator(".found b").inner_text() == written
    word = page.locator(".words .layer", has_text="<img")
    word.click()
    assert "attention to “<img src=x onerror=\"document.title='run'\">”" in page.locator(".legend").inner_text()
    assert page.locator(".s2rm [src='x']").count() == page.locator(".s2rm script").count() == 0
    assert page.title() != "run"
    assert not page.foreign
    assert not page.errors
