"""Images from the web, against a server of this process."""

import io
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import load_image
from s2rm_jax.input.web import fetch, is_url


def image_file():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content = image_file()
        if self.path == "/missing":
            return self.send_error(404)
        self.send_response(302 if self.path in ("/moved", "/to_a_file", "/to_ftp", "/to_itself") else 200)
        if self.path == "/moved":
            self.send_header("Location", "/image.png")
        elif self.path == "/to_a_file":
            self.send_header("Location", "file:///etc/passwd")
        elif self.path == "/to_ftp":
            self.send_header("Location", "ftp://127.0.0.1/image.png")
        elif self.path == "/to_itself":
            self.send_header("Location", "/to_itself")
        elif self.path == "/slow_headers":
            self.flush_headers()
            for letter in b"X-Header: value":  # each resets the time that a socket waits
                self.wfile.write(bytes([letter]))
                time.sleep(0.05)
        elif self.path == "/broken":
            self.send_header("Content-Length", str(len(content) + 10))
        self.end_headers()
        if self.path == "/text":
            content = b"a page and not an image"
        for byte in content if self.path == "/slow" else ():
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)
        if self.path in ("/image.png", "/text", "/broken", "/Z%C3%BCrich%20old.png?a=1&b=%20"):
            self.wfile.write(content)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("page", ["image.png", "moved", "Zürich old.png?a=1&b=%20"])
def test_an_image_comes_from_its_address(server, page):
    image = load_image(f"{server}/{page}")
    assert image.shape == (4, 6, 3)
    assert (image == 200).all()


def test_what_is_an_address():
    assert is_url("https://example.org/a.jpg")
    assert is_url("HTTP://example.org/a.jpg")
    assert not is_url("file:///etc/passwd")
    assert not is_url("http.png")
    assert not is_url(b"http://example.org/a.jpg")


@pytest.mark.parametrize(
    ("page", "limits", "message"),
    [
        ("missing", {}, "download failed: HTTP 404"),
        ("image.png", {"max_bytes": 20}, "larger than 20 bytes"),
        ("slow", {"timeout": 0.3}, r"more than 0\.3 seconds"),
        ("slow_headers", {"timeout": 0.3}, r"more than 0\.3 seconds"),
        ("broken", {}, "download stopped after"),
        ("to_itself", {}, "infinite loop"),
        ("to_ftp", {}, "unknown url type: ftp"),
        ("to_a_file", {}, "download failed"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(server, page, limits, message):
    with pytest.raises(UserError, match=message) as raised:
        fetch(f"{server}/{page}", **limits)
    assert "\n" not in str(raised.value)
    assert f"{server}/{page}" in str(raised.value)


def test_a_page_is_not_an_image(server):
    with pytest.raises(UserError, match="text is not an image"):
        load_image(f"{server}/text")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.png", "http://", "http://[::1/a", "http://a b/c"])
def test_addresses_that_lead_nowhere(url):
    with pytest.raises(UserError, match="check the address"):
        load_image(url)
