"""The page: drop an image, ask, look. Gradio carries files and events; viewer.py draws what was found.

Images with expressions for the first click, from the data that a run was trained for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from ml_collections import ConfigDict
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import load_image
from s2rm_jax.input.sources import build_source
from s2rm_jax.serving.api import visitor_of
from s2rm_jax.serving.service import Service
from s2rm_jax.serving.uploads import Uploads
from s2rm_jax.serving.viewer import answer_html, image_html

_EXPRESSIONS = 3
_QUALITY = 92


@dataclass(frozen=True)
class Case:
    """An image, as a file in a format that browsers know, and expressions about it."""

    path: Path
    expressions: tuple[str, ...]


def example_cases(config: ConfigDict, folder: Path, count: int = 6, split: str | None = None) -> list[Case]:
    """Writes up to `count` images of the run's split into `folder`; returns none where its data is not at hand.

    Generated scenes are always at hand. The images are spread over the split, whose order often means something.
    """
    try:
        source = build_source(config.input.source, split or config.eval.split)
    except UserError:
        return []
    cases = []
    for number in range(min(count, len(source))):
        try:
            example = source[number * len(source) // min(count, len(source))]
            image = Image.fromarray(load_image(example.image))
        except (UserError, OSError):  # an image of the split is gone; the page has others
            continue
        path = folder / f"example_{number + 1}.{'jpg' if isinstance(example.image, Path) else 'png'}"
        image.save(path, quality=_QUALITY)
        expressions = tuple(dict.fromkeys(expression.text for expression in example.expressions))[:_EXPRESSIONS]
        cases.append(Case(path, expressions))
    return cases


_LOG = logging.getLogger(__name__)
_HOUR = 3600  # seconds
_SESSIONS = 16
_INTRODUCTION = """# What do the words mean in the image?
Drop an image, write one expression a line, and see what each of them refers to. Images stay on the machine that serves
this page, and are removed within two hours.
"""
_BEFORE = '<div class="s2rm"><p class="times">The image and what is found in it appear here.</p></div>'


def build_page(service: Service, cases: Sequence[Case], uploads: Uploads, name: str) -> gr.Blocks:
    """Returns the page; `uploads` has the files that visitors may name, `name` says which network answers."""

    def shown(draw: Callable[[], str]) -> tuple[str, object]:
        """What goes into the line for problems and into the viewer."""
        try:
            with service.turn():
                return "", draw()
        except UserError as error:
            return _problem(str(error)), gr.skip()
        except Exception:
            _LOG.exception("a request of the page failed")
            return _problem("something went wrong on the server; its log says what"), gr.skip()

    def read(path: str) -> bytes:
        return uploads.read(path, service.limits.bytes + 1)

    def chosen(path: str | None, request: gr.Request) -> tuple[str, object]:
        if path is None:
            return "", _BEFORE
        problem, view = shown(lambda: image_html(service.encode(read(path), visitor=visitor_of(request))))
        return problem, _BEFORE if problem else view

    def asked(path: str | None, text: str, request: gr.Request) -> tuple[str, object]:
        if path is None:
            return _problem("there is no image yet; drop one, or click an example"), gr.skip()
        lines = [line for line in text.splitlines() if line.strip()]
        visitor = visitor_of(request)
        return shown(lambda: answer_html(service.ask(read(path), lines, visitor=visitor, explain=True)))

    def example(event: gr.SelectData) -> tuple[str, str]:
        case = cases[event.index]
        return str(case.path), "\n".join(case.expressions)

    # One question at a time, in the order of the clicks: an expression never overtakes the image that it is about.
    in_order: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "device", "api_visibility": "private"}
    with gr.Blocks(title=f"s2rm_jax: {name}", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                kinds = [".jpg", ".jpeg", ".png", ".webp"]
                file = gr.File(label="Image", file_types=kinds, height=130, elem_id="image")
                # Gradio's own makes an empty file at every event and never removes it. It is replaced and not
                # overridden, as Gradio writes an interface file beside the source of every subclass.
                file.preprocess = _path_of  # type: ignore[method-assign]
                text = gr.Textbox(
                    label="Expressions, one a line (Shift + Enter asks)",
                    placeholder="the man in red\nthe car behind him",
                    lines=3,
                    max_lines=8,
                    elem_id="expressions",
                )
                ask = gr.Button("Find", variant="primary", elem_id="ask")
                problem = gr.HTML(elem_id="problem")
                gallery = gr.Gallery(
                    [str(case.path) for case in cases],
                    label="Or click an example",
                    columns=3,
                    height="auto",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    visible=bool(cases),
                    elem_id="examples",
                )
                gr.Markdown(f"Network: {escape(name)}")
            with gr.Column(scale=3, min_width=420):
                viewer = gr.HTML(_BEFORE, elem_id="viewer")
        out, in_order["show_progress_on"] = [problem, viewer], viewer
        file.upload(chosen, file, out, **in_order)
        file.clear(chosen, file, out, **in_order)
        gr.on([ask.click, text.submit], asked, [file, text], out, **in_order)
        gallery.select(example, None, [file, text], api_visibility="private").then(asked, [file, text], out, **in_order)
    page.queue(max_size=service.limits.waiting, api_open=False)
    # Gradio keeps the latest answer, of several megabytes, for each of 10,000 sessions, and answers that were never
    # fetched for 2,000. Nothing here needs the first; of the second there must be more than can wait.
    page.state_session_capacity = _SESSIONS
    page._queue.pending_messages_per_session.max_size = 2 * service.limits.waiting
    # Gradio checks that a visitor's file is an upload only where this is set, and mounting does not set it.
    page.has_launched = True
    return page


def _path_of(payload: Any) -> Any:
    return payload and payload.path


def _problem(message: str) -> str:
    return f'<p class="s2rm-problem" role="alert">{escape(message)}</p>'
