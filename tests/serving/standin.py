"""A service with a network whose insides are made up, and a program that serves it until it is ended.

As a program: `python -m tests.serving.standin FOLDER`, which receives the example's image; prints its address.
"""

from __future__ import annotations

import io
import socket
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from s2rm_jax.models.network import Output
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.serving.page import Case
from s2rm_jax.serving.service import Service


def striped(red: int = 3, height: int = 8, width: int = 8) -> bytes:
    """The bytes of a PNG whose left columns are red and the others blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :red, 0] = 255
    image[:, red:, 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def telling_service_of(colour_world):
    """The service of a network that finds colours; each direction weighs as much as its number, in tenths."""
    network, _, params, tokenizer, config = colour_world

    class Telling(type(network)):
        def ground(self, features, tokens, token_mask, image_size):
            logits = super().ground(features, tokens, token_mask, image_size).logits
            b, k, length = tokens.shape
            across = jnp.broadcast_to(jnp.arange(4.0)[:, None] * jnp.arange(length), (b, k, 2, 4, 4, length))
            attention = jax.nn.softmax(jnp.where(token_mask[:, :, None, None, None], across, -jnp.inf))
            pairs = ("language_parses_vision", "vision_parses_language")
            maps = {pair: jnp.arange(1.0, 5.0).reshape(4, 1, 1, 1, 1, 1) * jnp.ones((b, k, 4, 4, 3)) for pair in pairs}
            weights = {pair: maps[pair][..., :1] / 10 for pair in pairs}
            return Output(logits, (logits[..., ::2, ::2],), attention, maps, weights)

    return Service(Segmenter(Telling(network.hear), params, tokenizer, config))


def main(folder: Path) -> None:
    import uvicorn

    from s2rm_jax.serving.app import build_app
    from tests.conftest import make_colour_world

    (folder / "example.png").write_bytes(striped(36, 48, 96))
    app = build_app(
        telling_service_of(make_colour_world()), [Case(folder / "example.png", ("blue", "red"))], "a stand-in"
    )
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
