"""The number of compiled programs is bounded for any sequence of image sizes and numbers of expressions."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.measure.many_expressions import record_compilations
from s2rm_jax.segmenter import BUCKETS, Segmenter
from s2rm_jax.serving.limits import Limits
from s2rm_jax.serving.service import EXPRESSIONS, Service

WORDS = ("red", "the green part", "blue", "the red part the blue part", "part")


def images(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        height, width = rng.integers(3, 90, 2)
        expressions = [WORDS[index] for index in rng.integers(0, 5, rng.integers(1, 40))]
        yield rng.integers(0, 256, (height, width, 3), np.uint8), expressions


@pytest.fixture
def segmenter(colour_world):
    """A new Segmenter, for which nothing is compiled yet."""
    network, _, params, tokenizer, config = colour_world
    return Segmenter(network, params, tokenizer, config)


def test_segmenter(segmenter):
    with record_compilations() as compilations:
        for image, expressions in images(60):
            segmenter.segment(image, expressions)
    assert 1 < len(compilations) <= 1 + 2 * len(BUCKETS)
    with record_compilations() as compilations:
        for image, expressions in images(60):
            segmenter.segment(image, expressions)
    assert compilations == []


def test_http(segmenter):
    httpx = pytest.importorskip("httpx", reason="the extra 'demo' is not installed")
    pytest.importorskip("fastapi", reason="the extra 'demo' is not installed")
    from s2rm_jax.serving.api import build_api

    limits = Limits(per_minute=10_000, work_per_minute=10**9)
    api = build_api(Service(segmenter, limits))

    async def send_all():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:
            for image, expressions in images(40):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "PNG")
                encoded = base64.b64encode(buffer.getvalue()).decode()
                request = {"image": encoded, "expressions": expressions[: limits.expressions]}
                assert (await client.post("/segment", json=request)).status_code == 200

    with record_compilations() as compilations:
        asyncio.run(send_all())
    assert 1 < len(compilations) <= 1 + 2 * sum(size <= limits.expressions for size in BUCKETS)


def test_requests_after_the_warm_up(explaining_segmenter):
    """Nothing is compiled for any request; those of the API with up to four expressions are joined."""
    service = Service(explaining_segmenter)
    service.warm_up()
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()

    def submit(most=EXPRESSIONS[-1], explain=False):
        buffer.seek(0)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "PNG")
        expressions = [WORDS[index] for index in rng.integers(0, 5, rng.integers(1, most + 1))]
        return service.submit(buffer.getvalue(), expressions, lambda answer: answer.joined, explain=explain)

    with record_compilations() as compilations:
        joined = [future.result(60) for future in [submit() for _ in range(60)]]
        for explain in [True, False] * 20:
            submit(service.limits.expressions, explain).result(60)
    assert set(joined) == {1, 4} and compilations == []
