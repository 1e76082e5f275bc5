"""The HTTP interface: POST /segment with an image and expressions gives masks; GET /openapi.json describes it.

What the HTTP interface takes and gives, as the OpenAPI schema tells it.

Refuses request bodies that are too large while they arrive, before anything is stored of them.

Masks in the forms in which other programs take them.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from jaxtyping import Bool
from PIL import Image
from pycocotools import mask as coco_mask
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from s2rm_jax.errors import UserError
from s2rm_jax.input.masks import outlines
from s2rm_jax.serving.limits import Limits, Refused
from s2rm_jax.serving.service import Answer, Service

Format = Literal["rle", "png", "polygons"]

# 8 x 8 pixels, the left half red: small enough for an example, and an image that can be asked about.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFklEQVR4nGP8z4AAjAwIHhMDDjA4JQCGUgIPOvf3dAAAAABJRU5ErkJggg=="
)


class SegmentRequest(BaseModel):
    """An image and what is to be found in it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(
        description="the file of the image (JPEG, PNG or WebP), in base64",
        examples=[EXAMPLE_IMAGE],
    )
    expressions: list[str] = Field(min_length=1, examples=[["the red half"]])
    formats: list[Format] = Field(default=["rle"], min_length=1, description="the forms in which masks are wanted")


class Rle(BaseModel):
    """COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="height and width in pixels")
    counts: str


class Polygons(BaseModel):
    """Outlines along the edges of pixels; the mask is where an odd number of them covers a pixel."""

    size: tuple[int, int] = Field(description="height and width in pixels")
    polygons: list[list[int]] = Field(description="around the parts, each as x0, y0, x1, y1, ...")
    holes: list[list[int]]


class Found(BaseModel):
    """What one expression means."""

    expression: str
    score: float = Field(ge=0, le=1, description="mean probability of foreground over the mask; 0 where it is empty")
    no_target: float | None = Field(
        description="probability that the expression refers to nothing, if the network says it"
    )
    area: int = Field(ge=0, description="pixels of the mask")
    box: tuple[int, int, int, int] | None = Field(description="left, top, right, bottom; null where the mask is empty")
    rle: Rle | None
    png: str | None = Field(description="a PNG in base64: 255 inside, 0 outside")
    polygons: Polygons | None
    remarks: list[str] = Field(description="words that were cut off or are not known")


class Times(BaseModel):
    """What took how long on the server, without waiting."""

    encode_seconds: float = Field(ge=0, description="0 where the image was encoded for an earlier request")
    image_was_known: bool
    ask_seconds: float = Field(ge=0)


class SegmentAnswer(BaseModel):
    """What was found, in the order of the expressions; masks have the size of the image, upright as viewers show it."""

    width: int
    height: int
    results: list[Found]
    times: Times


class Problem(BaseModel):
    """What is wrong with a request, and what to do."""

    error: str


class Health(BaseModel):
    """That the server answers."""

    status: Literal["ok"] = "ok"


def request_body(limits: Limits) -> dict[str, Any]:
    """Returns what OpenAPI calls the request body: a SegmentRequest in JSON, or the same as a form with a file."""
    as_json = SegmentRequest.model_json_schema()
    properties = as_json["properties"]
    properties["expressions"] |= {"maxItems": limits.expressions}
    properties["expressions"]["items"] |= {"minLength": 1, "maxLength": limits.characters}
    file = {"type": "string", "format": "binary", "description": "the file of the image"}
    as_form = {"type": "object", "required": ["image", "expressions"], "properties": properties | {"image": file}}
    content = {"application/json": {"schema": as_json}, "multipart/form-data": {"schema": as_form}}
    return {"required": True, "content": content}


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _TooLarge(Exception):
    pass


class BodyLimit:
    """An ASGI middleware that answers 413 where a body has more than `limit` bytes."""

    def __init__(self, app: Any, limit: int):
        self._app, self._limit = app, limit

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Passes a request on, counting its bytes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received, answered = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        announced = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if announced.isdigit() and int(announced) > self._limit:
                raise _TooLarge
            await self._app(scope, counted, noted)
        except _TooLarge:
            if not answered:
                await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        body = json.dumps({"error": f"the request has more than {self._limit:,} bytes; send a smaller image"}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": body})


def as_png(mask: Bool[np.ndarray, "h w"]) -> bytes:
    """Returns a PNG of the mask's size with one value a pixel: 255 inside, 0 outside."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


def as_rle(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Returns COCO's compressed run lengths: {"size": [height, width], "counts": text}."""
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


def as_polygons(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Returns {"size": [height, width], "polygons": [[x0, y0, ...], ...], "holes": [...]}, see `outlines`.

    Without holes the polygons are a segmentation of COCO as they are.
    """
    around, holes = outlines(mask)
    return {"size": list(mask.shape), "polygons": around, "holes": holes}


ROOM_FOR_TEXT = 1_000_000  # bytes of a request beside the image
_PIECE = 1 << 18  # letters of base64, a multiple of 4
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
    """Returns the application that answers POST /segment."""
    # The interactive pages of FastAPI load their code from elsewhere.
    app = FastAPI(title="s2rm_jax", docs_url=None, redoc_url=None)

    @app.get("/health")
    async def health() -> Health:  # not in the threads in which questions wait
        """Says that the server answers."""
        return Health()

    @app.post("/segment", responses=_PROBLEMS, openapi_extra={"requestBody": request_body(service.limits)})
    async def segment(request: Request) -> SegmentAnswer:
        """Segments what each expression means in the image."""
        visitor = visitor_of(request)
        service.visitors.count(visitor)
        asked, content = await _read(request)
        return await run_in_threadpool(_answer, service, asked, content, visitor)

    app.add_middleware(BodyLimit, limit=service.limits.bytes * 4 // 3 + ROOM_FOR_TEXT)
    app.add_exception_handler(UserError, _say_user_error)
    app.add_exception_handler(HTTPException, _say_http_error)
    return app


async def _read(request: Request) -> tuple[SegmentRequest, bytes]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return await run_in_threadpool(_read_json, await request.body())
        if kind == "multipart/form-data":
            return await _read_form(request)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the request"
        raise Refused(f"{where}: {first['msg']}; see /openapi.json", HTTPStatus.UNPROCESSABLE_ENTITY) from error
    except (binascii.Error, ValueError) as error:
        raise Refused("image: not base64; see /openapi.json", HTTPStatus.UNPROCESSABLE_ENTITY) from error
    raise Refused("send application/json or multipart/form-data; see /openapi.json", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)


def _read_json(body: bytes) -> tuple[SegmentRequest, bytes]:
    """Reads a request in a thread, while the server goes on answering others.

    Of 28 MB it takes a quarter of a second, nearly all of it in base64, which lets no other thread run before it is
    through; so it goes by pieces.
    """
    asked = SegmentRequest.model_validate_json(body)
    text = asked.image
    if "=" in text[:-2]:  # padding between pieces
        raise binascii.Error
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    return asked, b"".join(base64.b64decode(piece, validate=True) for piece in pieces)


async def _read_form(request: Request) -> tuple[SegmentRequest, bytes]:
    async with request.form(max_files=1, max_fields=100) as form:
        given: dict[str, Any] = {"image": "", "expressions": form.getlist("expressions")}
        if "formats" in form:
            given["formats"] = form.getlist("formats")
        asked = SegmentRequest.model_validate(given)
        return asked, await uploaded(form, "image").read()


def uploaded(form: FormData, field: str) -> UploadFile:
    """Returns the file in a field of a form; raises Refused if there is none."""
    file = form.get(field)
    if not isinstance(file, UploadFile):
        raise Refused(f"{field}: the file of the image is missing", HTTPStatus.UNPROCESSABLE_ENTITY)
    return file


def visitor_of(request: Any) -> str:
    """Returns the address by which requests, of Starlette or of Gradio, are counted together."""
    return request.client.host if request.client else ""


def _answer(service: Service, asked: SegmentRequest, content: bytes, visitor: str) -> SegmentAnswer:
    with service.turn():
        answer = service.ask(content, asked.expressions, visitor=visitor)
        height, width = answer.encoding.image.image.shape[:2]
        results = [_found(answer, row, asked) for row in range(len(answer.result.expressions))]
    times = Times(
        encode_seconds=answer.encoding.seconds,
        image_was_known=answer.encoding.was_known,
        ask_seconds=answer.seconds,
    )
    return SegmentAnswer(width=width, height=height, results=results, times=times)


def _found(answer: Answer, row: int, asked: SegmentRequest) -> Found:
    result, formats = answer.result, asked.formats
    mask: Bool[np.ndarray, "h w"] = result.masks[row]
    return Found(
        expression=result.expressions[row],
        score=float(result.scores[row]),
        no_target=None if result.no_target is None else float(result.no_target[row]),
        area=int(np.count_nonzero(mask)),
        box=Image.fromarray(mask).getbbox(),
        rle=Rle(**as_rle(mask)) if "rle" in formats else None,
        png=base64.b64encode(as_png(mask)).decode() if "png" in formats else None,
        polygons=Polygons(**as_polygons(mask)) if "polygons" in formats else None,
        remarks=list(answer.remarks[row]),
    )


async def _say_user_error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, Refused):
        return JSONResponse({"error": str(error)}, error.status, error.headers)
    return JSONResponse({"error": str(error)}, HTTPStatus.BAD_REQUEST)


async def _say_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
