"""The HTTP API, called in this process: results, errors, limits and concurrent requests."""

import asyncio
import base64
import binascii
import io
import json
import re
import threading

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families as parse

from s2rm_jax.input.masks import rasterize
from s2rm_jax.serving.limits import Limits
from s2rm_jax.serving.service import Service
from tests.command import ROOT

httpx = pytest.importorskip("httpx", reason="the extra 'demo' is not installed")
pytest.importorskip("fastapi", reason="the extra 'demo' is not installed")


@pytest.fixture
def call_api(service):
    """A function that sends one request to the API; `limits` replaces the limits of the service."""
    from s2rm_jax.serving.api import build_api

    def send(method="POST", path="/segment", limits=None, **arguments):
        chosen = Service(service.segmenter, limits) if limits else service

        async def once():
            transport = httpx.ASGITransport(build_api(chosen))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(once())

    return send


async def post(app, requests):
    """Send requests one after another and return the responses."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return [await client.post("/segment", **arguments) for arguments in requests]


def encoded(content):
    return base64.b64encode(content).decode()


def test_json_and_form_requests_have_equal_results(call_api, striped_file):
    image, expressions, formats = striped_file(3, 16, 24), ["red", "the blue part"], ["rle", "png", "polygons"]
    by_json = call_api(json={"image": encoded(image), "expressions": expressions, "formats": formats})
    by_form = call_api(files={"image": ("a.png", image)}, data={"expressions": expressions, "formats": formats})
    assert by_json.status_code == by_form.status_code == 200
    assert by_json.json()["results"] == by_form.json()["results"]
    answer = by_json.json()
    assert (answer["width"], answer["height"]) == (24, 16)
    assert (answer["times"]["image_was_cached"], by_form.json()["times"]["image_was_cached"]) == (False, True)
    for found, expression in zip(answer["results"], expressions, strict=True):
        mask = rasterize(found["rle"], 16, 24)
        assert found["expression"] == expression
        assert found["area"] == np.count_nonzero(mask) > 0
        assert 0.5 < found["score"] <= 1
        with Image.open(io.BytesIO(base64.b64decode(found["png"]))) as png:
            np.testing.assert_array_equal(np.asarray(png) > 0, mask)
            assert found["box"] == list(png.getbbox())
        np.testing.assert_array_equal(rasterize(found["polygons"]["polygons"], 16, 24), mask)


def test_only_the_requested_formats_are_returned(call_api, striped_file):
    (found,) = call_api(json={"image": encoded(striped_file()), "expressions": ["green zebra"]}).json()["results"]
    assert (found["png"], found["polygons"], found["box"], found["area"], found["score"]) == (None, None, None, 0, 0)
    assert found["rle"]["size"] == [8, 8]
    assert "zebra" in found["remarks"][0]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ({"json": {"expressions": ["red"]}}, 422, "image: Field required"),
        ({"json": {"image": "", "expressions": ["red"]}}, 400, "the image file is empty"),
        ({"json": {"image": "%%%", "expressions": ["red"]}}, 422, "invalid base64"),
        ({"json": {"image": "YQ==", "expressions": ["red"]}}, 400, "not a readable JPEG"),
        ({"json": {"image": "YQ==", "expressions": "red"}}, 422, "expressions: "),
        ({"json": {"image": "YQ==", "expressions": ["red"], "formats": ["svg"]}}, 422, "formats.0: "),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "request body: Invalid JSON"),
        ({"content": b"red", "headers": {"content-type": "text/plain"}}, 415, "Content-Type: must be application"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 400, "form: Missing boundary"),
        ({"data": {"expressions": "red"}, "files": {"other": b"x"}}, 422, "image file missing"),
        ({"files": {"image": b"not an image"}, "data": {"expressions": "red"}}, 400, "not a readable JPEG"),
        ({"files": {"image": b"x"}}, 422, "expressions: "),
        ({"files": {"image": b"x"}, "data": {"expressions": "red", "format": "png"}}, 422, "format: Extra inputs"),
        (
            {"content": b"red", "headers": {"content-type": "multipart/form-data; boundary=b"}},
            400,
            "form: Invalid multipart data; let an HTTP library write the form and its Content-Type",
        ),
        ({"files": {"image": b"x", "expressions": ("f.txt", b"red")}}, 422, "send one file, image, and the exp"),
        ({"json": {"image": "YQ==", "expressions": ["x" * 10_000]}}, 422, "10,000 characters"),
        ({"json": {"image": "YQ==", "expressions": ["red"] * 17}}, 422, "17 expressions"),
        ({"files": [("image", b"x")] * 2, "data": {"expressions": "red"}}, 422, "form: more than one file; send one"),
        ({"files": {"image": b"x"}, "data": {"expressions": ["red"] * 101}}, 422, "form: more than 100 fields; send"),
        ({"files": {"image": b"x"}, "data": {"expressions": "x" * 1_100_000}}, 422, "form: a field of text"),
        ({"json": {"image": "YQ==", "expressions": ["red"], "path": "/etc/passwd"}}, 422, "path: "),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 422, "Invalid JSON"),
        ({"json": {"image": "", "expressions": [1] * 100_000}}, 413, "bytes without the image, more than 200,000"),
        ({"json": {"expressions": ["red"], "image": "YQ==", **dict.fromkeys(map(str, range(50_000)))}}, 413, ""),
        ({"method": "GET"}, 405, "Method Not Allowed"),
        ({"path": "/nowhere"}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_errors_are_json_with_one_line(call_api, arguments, status, message):
    answer = call_api(**arguments)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_an_image_of_200_megapixels(call_api, enormous_image):
    answer = call_api(files={"image": enormous_image}, data={"expressions": "red"})
    assert answer.status_code == 400
    assert "more than 25,000,000 pixels" in answer.json()["error"]


@pytest.mark.parametrize("declared", [True, False])
def test_reading_of_a_too_large_body_stops_early(call_api, declared):
    sent = 0

    async def body():
        nonlocal sent
        for _ in range(50):
            sent += 1
            yield bytes(100_000)

    content = bytes(5_000_000) if declared else body()
    answer = call_api(limits=Limits(bytes=1000), content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "more than 201,333 bytes" in answer.json()["error"]
    assert sent < 15


def test_too_many_requests_get_retry_after(striped_file, service):
    from s2rm_jax.serving.api import build_api

    app = build_api(Service(service.segmenter, Limits(per_minute=3)))
    arguments = {"json": {"image": encoded(striped_file()), "expressions": ["red"]}}
    answers = asyncio.run(post(app, [arguments] * 4))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert "more than 3 requests in a minute; retry in 20 s" in answers[-1].json()["error"]
    assert answers[-1].headers["retry-after"] == "20"


def test_too_much_work_gets_retry_after_or_is_rejected(striped_file, service):
    from s2rm_jax.serving.api import build_api

    app = build_api(Service(service.segmenter, Limits(work_per_minute=20)))
    image = encoded(striped_file())
    some, more, most = ({"json": {"image": image, "expressions": ["red"] * count}} for count in (3, 5, 6))
    answers = asyncio.run(post(app, [some, more, most]))
    assert [answer.status_code for answer in answers] == [200, 429, 422]
    assert "s (5 expressions on 0.0 megapixels), or send" in answers[1].json()["error"]
    assert 30 <= int(answers[1].headers["retry-after"]) <= 36
    assert "the work for 6 expressions on 0.0 megapixels exceeds the limit per minute" in answers[2].json()["error"]
    assert "retry-after" not in answers[2].headers


def test_fifty_concurrent_requests_get_their_own_results(service, striped_file):
    """Each of the fifty images has its own size, which identifies the result."""
    from s2rm_jax.serving.api import build_api

    async def crowd():
        transport = httpx.ASGITransport(build_api(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            images = [striped_file(8 * (i % 7 + 1), 40 + i, 64) for i in range(50)]
            return await asyncio.gather(
                *(
                    client.post("/segment", json={"image": encoded(image), "expressions": ["red", f"blue {i}"]})
                    for i, image in enumerate(images)
                )
            )

    for i, answer in enumerate(asyncio.run(crowd())):
        assert answer.status_code == 200
        red, blue = answer.json()["results"]
        assert (answer.json()["width"], answer.json()["height"]) == (64, 40 + i)
        assert blue["expression"] == f"blue {i}"
        mask = rasterize(red["rle"], 40 + i, 64)
        np.testing.assert_array_equal(mask, np.broadcast_to(np.arange(64) < 8 * (i % 7 + 1), mask.shape))
        assert blue["area"] == mask.size - red["area"]


def test_health(call_api):
    assert call_api("GET", "/healthz").json() == {"status": "ok"}


def test_ready_from_the_end_of_the_warm_up_to_the_shutdown(explaining_service):
    from s2rm_jax.serving.api import build_api

    api = build_api(explaining_service)

    async def status():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:
            answer = await client.get("/readyz")
            return answer.status_code, answer.headers.get("retry-after")

    assert asyncio.run(status()) == (503, "5")
    opened = []
    explaining_service.warm_up(lambda: opened.append(asyncio.run(status())))
    assert opened == [(503, "5")]
    assert asyncio.run(status()) == (200, None)
    explaining_service.close()
    assert asyncio.run(status()) == (503, "5")


def samples(text):
    """The value of each series of the metrics."""
    return {sample.name + str(sample.labels): sample.value for family in parse(text) for sample in family.samples}


def test_metrics_and_access_log_have_numbers_and_no_contents(service, striped_file):
    from s2rm_jax.serving.api import build_api
    from s2rm_jax.serving.observe import Observer

    log = []
    observed = Observer(build_api(service), service.metrics, ("/segment", "/metrics"), log.append)
    secret = {"json": {"image": encoded(striped_file()), "expressions": ["the secret part", "red"]}}

    async def use():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(observed), base_url="http://test") as client:
            await client.post("/segment?token=secret", **secret)
            await client.post("/segment", **secret)
            await client.post("/segment", json={"image": "secret"})
            await client.get("/secret")
            return (await client.get("/metrics")).text

    values = samples(asyncio.run(use()))
    assert values["s2rm_requests_total{'route': '/segment', 'status': '200'}"] == 2
    assert values["s2rm_requests_total{'route': '/segment', 'status': '422'}"] == 1
    assert values["s2rm_requests_total{'route': 'other', 'status': '404'}"] == 1
    assert values["s2rm_images_total{'cached': 'True'}"] == values["s2rm_images_total{'cached': 'False'}"] == 1
    assert values["s2rm_request_seconds_count{'route': '/segment'}"] == 3
    assert values["s2rm_batch_requests_sum{}"] == values["s2rm_queue_seconds_count{}"] == 2
    assert values["s2rm_waiting_requests{}"] == 0
    assert values["s2rm_device_seconds_total{'call': 'encode'}"] > 0
    assert values["s2rm_device_seconds_total{'call': 'segment'}"] > 0

    lines = [json.loads(line) for line in log]
    assert [(line["route"], line["status"]) for line in lines[:4]] == [
        ("/segment", 200), ("/segment", 200), ("/segment", 422), ("other", 404)
    ]  # fmt: skip
    first = lines[0]
    assert (first["visitor"], first["method"], first["expressions"], first["pixels"]) == ("127.0.0.1", "POST", 2, 64)
    assert (first["joined"], first["image_was_cached"], lines[1]["image_was_cached"]) == (1, False, True)
    assert 0 <= first["queue_seconds"] < first["seconds"]
    assert "secret" not in str(log) + str(values)


def status_of_post(service, headers, *messages):
    """Return the status in the access log of a POST whose client sends these messages."""
    from s2rm_jax.serving.api import build_api
    from s2rm_jax.serving.observe import Observer

    log, sent = [], iter(messages)
    observed = Observer(build_api(service), service.metrics, ("/segment",), log.append)
    scope = {"type": "http", "method": "POST", "path": "/segment", "root_path": "", "query_string": b""}
    scope["headers"] = [(b"content-type", b"application/json"), *headers]

    async def receive():
        return next(sent)

    async def send(message):
        pass

    asyncio.run(observed(scope, receive, send))
    return json.loads(log[0])["status"]


def test_a_client_that_leaves_during_its_upload_is_no_defect(service):
    part = {"type": "http.request", "body": b"{", "more_body": True}
    assert status_of_post(service, [(b"content-length", b"1000")], part, {"type": "http.disconnect"}) == 499


def test_a_client_that_leaves_is_not_waited_for(service, striped_file):
    """The request waits for both threads of the service, which are held."""
    leave = threading.Event()
    holding = [service.submit(striped_file(), ["red"] * 5, lambda _: leave.wait(10)) for _ in range(2)]
    body = json.dumps({"image": encoded(striped_file()), "expressions": ["red"]}).encode()
    assert status_of_post(service, [], {"type": "http.request", "body": body}, {"type": "http.disconnect"}) == 499
    assert samples(service.metrics.exposition()[0].decode())["s2rm_waiting_requests{}"] == 0
    leave.set()
    assert all(future.result(10) for future in holding)


@pytest.mark.parametrize(
    ("host", "visitor"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("testclient", "testclient"),
    ],
)
def test_limits_apply_to_a_network_of_ipv6(host, visitor):
    from s2rm_jax.serving.observe import visitor_at

    assert visitor_at(host) == visitor


def test_the_proxy_of_the_documentation_passes_on_the_largest_request_and_the_latest_answer():
    from s2rm_jax.serving import api

    text = (ROOT / "docs" / "demo.md").read_text()
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", text)
    assert int(megabytes) * 2**20 > Limits().bytes * 4 // 3 + api.MAX_TEXT_BYTES
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", text)
    assert int(seconds) > Limits().seconds


def test_large_images_are_decoded_in_chunks():
    from s2rm_jax.serving import api

    def body(text):
        return json.dumps({"image": text, "expressions": ["red"]}).encode()

    content = np.random.default_rng(0).bytes(500_000)
    assert api._read_json(body(encoded(content)))[1] == content
    first = encoded(content[: 3 * api._CHUNK // 4 - 1])  # padded to exactly one chunk
    assert len(first) == api._CHUNK and first.endswith("=")
    for wrong in (first + "QQ==", encoded(content)[:-1]):
        with pytest.raises(binascii.Error):
            api._read_json(body(wrong))


def test_base64_may_be_a_data_uri_and_have_the_line_breaks_of_mime(call_api, striped_file):
    image = striped_file(3, 16, 24)
    plain = encoded(image)
    forms = [plain + "\n", base64.encodebytes(image).decode(), plain.replace("A", "A\r\n", 1)]
    forms += [f"data:image/png;base64,{form}" for form in (plain, *forms)]
    expected = call_api(json={"image": plain, "expressions": ["red"]}).json()["results"]
    for form in forms:
        answer = call_api(json={"image": form, "expressions": ["red"]})
        assert (answer.status_code, answer.json().get("results")) == (200, expected)
    assert call_api(json={"image": f"data:text/html,{plain}", "expressions": ["red"]}).status_code == 422
