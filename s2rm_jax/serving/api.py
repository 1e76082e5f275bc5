"""The HTTP interface: POST /segment with a picture and sentences gives masks; GET /openapi.json describes it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from jaxtyping import Bool
from PIL import Image
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from s2rm_jax.errors import UserError
from s2rm_jax.serving.api_forms import (
    Found,
    Health,
    Polygons,
    Problem,
    Rle,
    SegmentAnswer,
    SegmentRequest,
    Times,
    request_body,
)
from s2rm_jax.serving.body_limit import BodyLimit
from s2rm_jax.serving.limits import Rate, Refused
from s2rm_jax.serving.mask_formats import as_png, as_polygons, as_rle
from s2rm_jax.serving.service import Answer, Service

_ROOM_FOR_TEXT = 1_000_000  # bytes of a request beside the picture
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


def build_api(service: Service, rate: Callable[[str], None] | None = None) -> FastAPI:
    """Returns the application that answers POST /segment; `rate` counts requests by visitor."""
    # The interactive pages of FastAPI load their code from elsewhere.
    app = FastAPI(title="s2rm_jax", docs_url=None, redoc_url=None)
    count = rate or Rate(service.limits.per_minute)

    @app.get("/health")
    async def health() -> Health:  # not in the threads in which questions wait
        """Says that the server answers."""
        return Health()

    @app.post("/segment", responses=_PROBLEMS, openapi_extra={"requestBody": request_body(service.limits)})
    async def segment(request: Request) -> SegmentAnswer:
        """Segments what each sentence means in the picture."""
        count(request.client.host if request.client else "")
        asked, content = await _read(request)
        return await run_in_threadpool(_answer, service, asked, content)

    app.add_middleware(BodyLimit, path="/segment", limit=service.limits.bytes * 4 // 3 + _ROOM_FOR_TEXT)
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
        given: dict[str, Any] = {"image": "", "sentences": form.getlist("sentences")}
        if "formats" in form:
            given["formats"] = form.getlist("formats")
        asked = SegmentRequest.model_validate(given)
        file = form.get("image")
        if not isinstance(file, UploadFile):
            raise Refused("image: the file of the picture is missing", HTTPStatus.UNPROCESSABLE_ENTITY)
        return asked, await file.read()


def _answer(service: Service, asked: SegmentRequest, content: bytes) -> SegmentAnswer:
    with service.turn():
        answer = service.ask(content, asked.sentences)
        height, width = answer.encoding.picture.picture.shape[:2]
        results = [_found(answer, row, asked) for row in range(len(answer.result.sentences))]
    times = Times(
        encode_seconds=answer.encoding.seconds,
        picture_was_known=answer.encoding.was_known,
        ask_seconds=answer.seconds,
    )
    return SegmentAnswer(width=width, height=height, results=results, times=times)


def _found(answer: Answer, row: int, asked: SegmentRequest) -> Found:
    result, formats = answer.result, asked.formats
    mask: Bool[np.ndarray, "h w"] = result.masks[row]
    return Found(
        sentence=result.sentences[row],
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
    status = error.status if isinstance(error, Refused) else HTTPStatus.BAD_REQUEST
    again = {"Retry-After": "5"} if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) else None
    return JSONResponse({"error": str(error)}, status, again)


async def _say_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
