"""The HTTP API: POST /segment takes an image and expressions and returns masks; GET /openapi.json describes it.

The models below define the request and the response in the OpenAPI schema. Request bodies are limited in size while
they arrive, and masks are returned as COCO RLE, PNG or polygons.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import partial
from http import HTTPStatus
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from jaxtyping import Bool
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.overlay import image_bytes
from s2rm_jax.input.masks import encode_rle, mask_box
from s2rm_jax.input.outlines import outlines
from s2rm_jax.serving.limits import Limits, RequestError
from s2rm_jax.serving.observe import DETAILS, Message, Receive, Send, visitor_of
from s2rm_jax.serving.service import Answer, ClientLeft, Service, answer_of

Format = Literal["rle", "png", "polygons"]

MAX_TEXT_BYTES = 200_000  # of a request body, without the image
_IMAGE = re.compile(rb'"image"\s*:\s*"[^"]*"')
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,")
# What Starlette says of forms that it can read but that are not a SegmentRequest, by its first words; and what to do.
_WRONG_FORMS = {
    "Too many files": "more than one file; send one file, image, and the expressions as text",
    "Too many fields": "more than 100 fields; send fewer expressions",
    "Part exceeded": "a field of text has more than 1 MB; send the image as a file, and shorten the expressions",
}
_SMALL = 1 << 18  # bytes that are processed at once; other requests do not wait noticeably for so few
_CHUNK = 1 << 18  # base64 characters that are decoded at once; a multiple of 4

# 8 x 8 pixels, the left half red: the example of the schema, short but a valid image.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFklEQVR4nGP8z4AAjAwIHhMDDjA4JQCGUgIPOvf3dAAAAABJRU5ErkJggg=="
)


class SegmentRequest(BaseModel):
    """An image and the expressions to segment in it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(
        description="the image file (JPEG, PNG or WebP), encoded in base64, plain or as a data URI",
        examples=[EXAMPLE_IMAGE],
    )
    expressions: list[str] = Field(min_length=1, examples=[["the red half"]])
    formats: list[Format] = Field(default=["rle"], min_length=1, description="the mask formats to return")


class Rle(BaseModel):
    """A mask in COCO's compressed run-length encoding."""

    size: tuple[int, int] = Field(description="height and width in pixels")
    counts: str


class Polygons(BaseModel):
    """Outlines along the edges of pixels; a pixel is in the mask if an odd number of outlines covers it."""

    size: tuple[int, int] = Field(description="height and width in pixels")
    polygons: list[list[int]] = Field(description="outer outlines, each as x0, y0, x1, y1, ...")
    holes: list[list[int]] = Field(description="outlines of holes, in the same form")


class ExpressionResult(BaseModel):
    """The result for one expression."""

    expression: str
    score: float = Field(
        ge=0,
        le=1,
        description="probability that the mask is correct if the network is calibrated, else mean foreground "
        "probability over the mask; 0 for an empty mask",
    )
    no_target: float | None = Field(
        description="probability that the expression has no target; null if the network does not predict it"
    )
    area: int = Field(ge=0, description="number of pixels in the mask")
    box: tuple[int, int, int, int] | None = Field(description="left, top, right, bottom; null for an empty mask")
    rle: Rle | None
    png: str | None = Field(description="a PNG encoded in base64: 255 inside, 0 outside")
    polygons: Polygons | None
    remarks: list[str] = Field(description="warnings about truncated or unknown words")


class Times(BaseModel):
    """Processing times on the server, without the time spent in the queue."""

    encode_seconds: float = Field(ge=0, description="0 if the image was encoded for an earlier request")
    image_was_cached: bool = Field(description="whether the encoding of the image was kept from an earlier request")
    segment_seconds: float = Field(ge=0, description="time to segment all expressions")


class SegmentAnswer(BaseModel):
    """Results in the order of the expressions; masks have the size of the image, with its EXIF orientation applied."""

    width: int
    height: int
    results: list[ExpressionResult]
    times: Times


class Problem(BaseModel):
    """What is wrong with a request and how to correct it."""

    error: str


class Health(BaseModel):
    """The status of the server."""

    status: Literal["ok"] = "ok"


def request_body(limits: Limits) -> dict[str, Any]:
    """Return the OpenAPI request body: a SegmentRequest as JSON, or the same fields as a form with an image file."""
    as_json = SegmentRequest.model_json_schema()
    properties = as_json["properties"]
    properties["expressions"] |= {"maxItems": limits.expressions}
    properties["expressions"]["items"] |= {"minLength": 1, "maxLength": limits.characters}
    file = {"type": "string", "format": "binary", "description": "the image file"}
    as_form = {"type": "object", "required": ["image", "expressions"], "properties": properties | {"image": file}}
    content = {"application/json": {"schema": as_json}, "multipart/form-data": {"schema": as_form}}
    return {"required": True, "content": content}


class _TooLarge(Exception):
    pass


class BodyLimit:
    """ASGI middleware that responds with status 413 if a request body has more than `limit` bytes."""

    def __init__(self, app: Any, limit: int):
        self._app, self._limit = app, limit

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request to the application and count the bytes of its body as they arrive."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received, started = 0, False

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise _TooLarge
            return message

        async def send_recorded(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        declared = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if declared.isdigit() and int(declared) > self._limit:
                raise _TooLarge
            await self._app(scope, receive_counted, send_recorded)
        except _TooLarge:
            if not started:
                problem = f"request body: more than {self._limit:,} bytes; send a smaller image"
                answer = JSONResponse({"error": problem}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"connection": "close"})
                await answer(scope, receive, send)


def as_png(mask: Bool[np.ndarray, "h w"]) -> bytes:
    """Return the mask as a grayscale PNG: 255 inside, 0 outside."""
    return image_bytes(Image.fromarray(mask.astype(np.uint8) * 255))


def as_polygons(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Return {"size": [height, width], "polygons": [[x0, y0, ...], ...], "holes": [...]}; see `outlines`.

    If there are no holes, the polygons are a valid COCO segmentation.
    """
    polygons, holes = outlines(mask)
    return {"size": list(mask.shape), "polygons": polygons, "holes": holes}


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    int(status): {"model": Problem, "description": status.phrase}
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.SERVICE_UNAVAILABLE,
    )
}


def build_api(service: Service) -> FastAPI:
    """Return the application that serves POST /segment and the health checks /healthz and /readyz."""
    # The interactive pages of FastAPI load scripts from other servers.
    app = FastAPI(title="s2rm_jax", docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def health() -> Health:
        """Return the status of the process."""
        return Health()

    @app.get("/readyz", responses={503: {"model": Problem}})
    async def ready() -> Health:
        """Return whether the common programs are compiled, so that common requests are answered without delay."""
        if not service.is_ready:
            raise RequestError("the network is being compiled; retry in 5 s", HTTPStatus.SERVICE_UNAVAILABLE, wait=5)
        return Health()

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        content, media_type = service.metrics.exposition()
        return Response(content, media_type=media_type)

    @app.post(
        "/segment",
        response_model=SegmentAnswer,
        responses=_PROBLEMS,
        openapi_extra={"requestBody": request_body(service.limits)},
    )
    async def segment(request: Request) -> Response:
        """Segment the referent of each expression in the image."""
        visitor = visitor_of(request)
        service.visitors.count(visitor)
        try:
            body, content = await _read(request)
        except ClientDisconnect:
            return Response(status_code=499)  # for the access log
        convert = partial(_answer_json, formats=body.formats, details=request.scope.get(DETAILS, {}))
        submit = partial(service.submit, content, body.expressions, convert, visitor=visitor)
        future = submit() if len(content) < _SMALL else await run_in_threadpool(submit)
        try:
            answer = await answer_of(future, service.limits.seconds, _leaves(request.receive))
        except ClientLeft:
            return Response(status_code=499)  # for the access log
        return Response(answer, media_type="application/json")

    app.add_middleware(BodyLimit, limit=service.limits.bytes * 4 // 3 + MAX_TEXT_BYTES)
    app.add_exception_handler(UserError, _error_response)
    app.add_exception_handler(HTTPException, _error_response)
    return app


async def _read(request: Request) -> tuple[SegmentRequest, bytes]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            content = await request.body()
            return _read_json(content) if len(content) < _SMALL else await run_in_threadpool(_read_json, content)
        if kind == "multipart/form-data":
            return await _read_form(request)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "request body"
        raise RequestError(f"{where}: {first['msg']}; see /openapi.json", HTTPStatus.UNPROCESSABLE_ENTITY) from error
    except (binascii.Error, ValueError) as error:
        raise RequestError("image: invalid base64; see /openapi.json", HTTPStatus.UNPROCESSABLE_ENTITY) from error
    raise RequestError(
        "Content-Type: must be application/json or multipart/form-data; see /openapi.json",
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    )


def _read_json(body: bytes) -> tuple[SegmentRequest, bytes]:
    """Return a JSON request and the decoded bytes of its image.

    Decoding 28 MB of base64 takes a quarter of a second and holds the GIL throughout. The text is therefore decoded in
    chunks, between which other threads can run.
    """
    image = _IMAGE.search(body)
    text_bytes = len(body) - (len(image[0]) if image else 0)
    if text_bytes > MAX_TEXT_BYTES:  # Pydantic would report each of 13 million wrong expressions, in 7 GB
        raise RequestError(
            f"request body: {text_bytes:,} bytes without the image, more than {MAX_TEXT_BYTES:,}; split the request",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    request = SegmentRequest.model_validate_json(body)
    text = request.image
    if prefix := _DATA_URI.match(text):
        text = text[prefix.end() :]
    if "\n" in text:  # MIME breaks lines, and many tools end the text with one
        text = "".join(text.split())
    if "=" in text[:-2]:  # padding is valid at the end only; b64decode would accept it at the end of any chunk
        raise binascii.Error
    chunks = (text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK))
    return request, b"".join(base64.b64decode(chunk, validate=True) for chunk in chunks)


async def _read_form(request: Request) -> tuple[SegmentRequest, bytes]:
    try:
        async with request.form(max_files=1, max_fields=100) as form:
            image = uploaded_file(form, "image")
            fields: dict[str, Any] = {name: form.getlist(name) for name in form if name != "image"}
            body = SegmentRequest.model_validate({"image": "", "expressions": []} | fields)
            return body, await image.read()
    except HTTPException as error:
        for words, problem in _WRONG_FORMS.items():
            if error.detail.startswith(words):
                raise RequestError(f"form: {problem}; see /openapi.json", HTTPStatus.UNPROCESSABLE_ENTITY) from error
        problem = f"form: {error.detail.rstrip('.')}; let an HTTP library write the form and its Content-Type"
        raise RequestError(problem, HTTPStatus.BAD_REQUEST) from error


def uploaded_file(form: FormData, field: str) -> UploadFile:
    """Return the file in a field of a form; raise RequestError if the field has no file."""
    file = form.get(field)
    if not isinstance(file, UploadFile):
        raise RequestError(
            f"{field}: image file missing; attach a JPEG, PNG or WebP file", HTTPStatus.UNPROCESSABLE_ENTITY
        )
    return file


async def _leaves(receive: Receive) -> None:
    """Wait until the client has left; its request must be complete."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _answer_json(answer: Answer, formats: list[Format], details: dict[str, Any]) -> bytes:
    """Return the answer as JSON; add what the access log says of it to `details`."""
    height, width = answer.encoding.image.image.shape[:2]
    results = [_expression_result(answer, row, formats) for row in range(len(answer.result.expressions))]
    times = Times(
        encode_seconds=answer.encoding.seconds,
        image_was_cached=answer.encoding.was_cached,
        segment_seconds=answer.seconds,
    )
    details |= {
        "expressions": len(results),
        "pixels": height * width,
        "image_was_cached": answer.encoding.was_cached,
        "queue_seconds": round(answer.waited, 6),
        "joined": answer.joined,
    }
    return SegmentAnswer(width=width, height=height, results=results, times=times).model_dump_json().encode()


def _expression_result(answer: Answer, row: int, formats: list[Format]) -> ExpressionResult:
    result = answer.result
    mask: Bool[np.ndarray, "h w"] = result.masks[row]
    return ExpressionResult(
        expression=result.expressions[row],
        score=float(result.scores[row]),
        no_target=None if result.no_target is None else float(result.no_target[row]),
        area=int(np.count_nonzero(mask)),
        box=mask_box(mask),
        rle=Rle(**encode_rle(mask)) if "rle" in formats else None,
        png=base64.b64encode(as_png(mask)).decode() if "png" in formats else None,
        polygons=Polygons(**as_polygons(mask)) if "polygons" in formats else None,
        remarks=list(answer.remarks[row]),
    )


async def _error_response(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
    status, headers = HTTPStatus.BAD_REQUEST, None
    if isinstance(error, RequestError):
        status, headers = error.status, error.headers
    return JSONResponse({"error": str(error)}, status, headers)
