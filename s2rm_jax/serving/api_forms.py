"""What the HTTP interface takes and gives, as the OpenAPI schema tells it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from s2rm_jax.serving.limits import Limits

Format = Literal["rle", "png", "polygons"]

# 8 x 8 pixels, the left half red: small enough for an example, and a picture that can be asked about.
EXAMPLE_PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFklEQVR4nGP8z4AAjAwIHhMDDjA4JQCGUgIPOvf3dAAAAABJRU5ErkJggg=="
)


class SegmentRequest(BaseModel):
    """A picture and what is to be found in it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(
        description="the file of the picture (JPEG, PNG, WebP, BMP, GIF, TIFF or PPM), in base64",
        examples=[EXAMPLE_PICTURE],
    )
    sentences: list[str] = Field(min_length=1, examples=[["the red half"]])
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
    """What one sentence means."""

    sentence: str
    score: float = Field(ge=0, le=1, description="mean probability of foreground over the mask; 0 where it is empty")
    no_target: float | None = Field(
        description="probability that the sentence refers to nothing, if the network says it"
    )
    area: int = Field(ge=0, description="pixels of the mask")
    box: tuple[int, int, int, int] | None = Field(description="left, top, right, bottom; null where the mask is empty")
    rle: Rle | None
    png: str | None = Field(description="a PNG in base64: 255 inside, 0 outside")
    polygons: Polygons | None
    remarks: list[str] = Field(description="words that were cut off or are not known")


class Times(BaseModel):
    """What took how long on the server, without waiting."""

    encode_seconds: float = Field(ge=0, description="0 where the picture was encoded for an earlier request")
    picture_was_known: bool
    ask_seconds: float = Field(ge=0)


class SegmentAnswer(BaseModel):
    """What was found, in the order of the sentences; masks have the size of the picture, upright as viewers show it."""

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
    properties["sentences"] |= {"maxItems": limits.sentences}
    properties["sentences"]["items"] |= {"minLength": 1, "maxLength": limits.characters}
    file = {"type": "string", "format": "binary", "description": "the file of the picture"}
    as_form = {"type": "object", "required": ["image", "sentences"], "properties": properties | {"image": file}}
    content = {"application/json": {"schema": as_json}, "multipart/form-data": {"schema": as_form}}
    return {"required": True, "content": content}
