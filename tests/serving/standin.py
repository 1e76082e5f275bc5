"""A Segmenter whose network returns fixed explanations, and a program that serves it until it is terminated.

`python -m tests.serving.standin FOLDER` prints, as JSON, the folder of uploads and the addresses of three servers: one
with high limits, one with low limits, and one whose page a proxy has under /sub/path. On the first, /bare is Gradio's
application without the page gate.
"""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.models.network import Output
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.serving.limits import Limits
from s2rm_jax.serving.service import Service


class WaitingService(Service):
    """A Service whose `encode` and `segment` wait for the answer."""

    def encode(self, content, **options):
        return self.submit(content, None, lambda answer: answer.encoding, **options).result()

    def segment(self, content, expressions, **options):
        return self.submit(content, expressions, lambda answer: answer, **options).result()


def striped(red: int = 3, height: int = 8, width: int = 8) -> bytes:
    """Return a PNG whose left columns are red and the others blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :red, 0] = 255
    image[:, red:, 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


HTML = "<img src=x onerror=\"document.title='run'\">"


class HtmlTokenizer(Tokenizer):
    """A tokenizer that returns HTML for the word "part", as a malicious vocabulary could."""

    def words(self, ids):
        return [HTML if word == "part" else word for word in super().words(ids)]


def explaining_segmenter_of(colour_world):
    """Return the Segmenter of a network that finds colours; the weights of the directions are 0.1, 0.2, 0.3 and 0.4."""
    network, _, params, tokenizer, config = colour_world

    class ExplainingNetwork(type(network)):
        def fuse_and_decode(self, features, words, token_mask, image_size):
            logits = super().fuse_and_decode(features, words, token_mask, image_size).logits
            b, k, length = token_mask.shape
            across = jnp.broadcast_to(jnp.arange(4.0)[:, None] * jnp.arange(length), (b, k, 2, 4, 4, length))
            attention = jax.nn.softmax(jnp.where(token_mask[:, :, None, None, None], across, -jnp.inf))
            pairs = ("language_parses_vision", "vision_parses_language")
            maps = {pair: jnp.arange(1.0, 5.0).reshape(4, 1, 1, 1, 1, 1) * jnp.ones((b, k, 4, 4, 3)) for pair in pairs}
            weights = {pair: maps[pair][..., :1] / 10 for pair in pairs}
            return Output(logits, (logits[..., ::2, ::2],), attention, maps, weights)

    return Segmenter(ExplainingNetwork(network.on_trace), params, HtmlTokenizer(tokenizer.vocabulary, 6), config)


def main(folder: Path) -> None:
    from s2rm_jax.serving.app import PAGE, build_app, build_server
    from s2rm_jax.serving.page import Case
    from tests.conftest import make_colour_world

    (folder / "example.png").write_bytes(striped(36, 48, 96))
    cases = [Case(folder / "example.png", ("blue", "red"))]
    segmenter = explaining_segmenter_of(make_colour_world())
    high, low = Limits(per_minute=1_000_000, work_per_minute=10**9), Limits(per_minute=12, work_per_minute=24)
    app, limited, under = (
        build_app(Service(segmenter, limits), folder, cases, "a stand-in", root_path=path)
        for limits, path in ((high, ""), (low, ""), (high, "/sub/path"))
    )
    gate = next(route.app for route in app.routes if route.path == PAGE)
    app.mount("/bare", gate.gradio)

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    addresses = [f"http://127.0.0.1:{listening.getsockname()[1]}" for listening in sockets]
    named = dict(zip(("address", "limited", "under"), addresses, strict=True))
    print(json.dumps(named | {"uploads": str(folder)}), flush=True)
    for other, listening in zip((limited, under), sockets[1:], strict=True):
        threading.Thread(target=build_server(other).run, kwargs={"sockets": [listening]}, daemon=True).start()
    build_server(app).run(sockets=sockets[:1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
