"""The web page: upload an image, enter expressions, view the masks.

Gradio transfers files and events; viewer.py renders the results. The examples on the page are images of the dataset
that the run was trained on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import gradio as gr
from ml_collections import ConfigDict
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.sources import build_source
from s2rm_jax.serving.observe import visitor_of
from s2rm_jax.serving.page_gate import Uploads
from s2rm_jax.serving.service import Answer, ClientLeft, Service, answer_of
from s2rm_jax.serving.viewer import answer_html, image_html

_LOG = logging.getLogger(__name__)
_EXAMPLE_EXPRESSIONS = 3  # per example image
_JPEG_QUALITY = 92
_HOUR = 3600  # seconds
_SESSIONS = 16
_CHECK_SECONDS = 0.25  # between checks whether a visitor has closed the page
_INTRODUCTION = """# Referring image segmentation
Drop an image and write one expression per line to see what each expression refers to. Images stay on the machine that
serves this page and are removed within two hours.
"""
_PLACEHOLDER = '<div class="s2rm"><p class="times">The image and its masks appear here.</p></div>'


@dataclass(frozen=True)
class Case:
    """An example: an image file in a format that browsers display, and expressions for it."""

    path: Path
    expressions: tuple[str, ...]


def example_cases(config: ConfigDict, folder: Path, count: int = 6, split: str | None = None) -> list[Case]:
    """Write up to `count` images of the run's split to `folder`; return no cases if the data is not available.

    Generated scenes are always available. The images are evenly spaced over the split, whose order is often not random.
    With a `count` of 0 the data is not read.

    Raises:
        UserError: `split` is given, and the data has no such split or is not available.
    """
    if count == 0:
        return []
    try:
        source = build_source(
            config.input.source, split or config.eval.split, on_bad_example=config.input.on_bad_example
        )
    except UserError as error:
        if split:
            raise UserError(f"--split {split} has no examples: {error}") from error
        return []
    cases = []
    for number in range(min(count, len(source))):
        try:
            example = source[number * len(source) // min(count, len(source))]
            image = Image.fromarray(example.load_image())
        except (UserError, OSError):  # skip an image that cannot be read
            continue
        path = folder / f"example_{number + 1}.{'jpg' if isinstance(example.image, Path) else 'png'}"
        image.save(path, quality=_JPEG_QUALITY)
        expressions = tuple(dict.fromkeys(expression.text for expression in example.expressions))[:_EXAMPLE_EXPRESSIONS]
        cases.append(Case(path, expressions))
    return cases


def build_page(service: Service, cases: Sequence[Case], uploads: Uploads, name: str) -> gr.Blocks:
    """Return the page; `uploads` holds the files of visitors, and `name` is the displayed name of the network."""

    turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by session

    async def render(
        path: str, lines: list[str] | None, convert: Callable[[Answer], str], request: gr.Request
    ) -> tuple[str, object]:
        """Return the contents of the error line and of the viewer."""
        try:
            # In the order of the clicks: expressions are never processed before their image.
            async with turns.setdefault(session := str(request.session_hash), asyncio.Lock()):
                future = await asyncio.to_thread(submit, path, lines, convert, request)
                return "", await answer_of(future, service.limits.seconds, leaves(session))
        except ClientLeft:
            return "", gr.skip()
        except UserError as error:
            return _problem(str(error)), gr.skip()
        except Exception:
            _LOG.exception("a request of the page failed")
            return _problem("internal server error; see the log of the server"), gr.skip()

    def submit(
        path: str, lines: list[str] | None, convert: Callable[[Answer], str], request: gr.Request
    ) -> Future[str]:
        content = uploads.read(path, service.limits.bytes + 1)
        return service.submit(content, lines, convert, visitor=visitor_of(request), explain=lines is not None)

    async def leaves(session: str) -> None:
        """Wait until the visitor has closed the page."""
        while any(
            event.alive for job in page._queue.active_jobs for event in job or () if event.session_hash == session
        ):
            await asyncio.sleep(_CHECK_SECONDS)

    async def show_image(path: str | None, request: gr.Request) -> tuple[str, object]:
        if path is None:
            return "", _PLACEHOLDER
        problem, view = await render(path, None, lambda answer: image_html(answer.encoding), request)
        return problem, _PLACEHOLDER if problem else view

    async def segment(path: str | None, text: str, request: gr.Request) -> tuple[str, object]:
        if path is None:
            return _problem("no image yet; drop one or click an example"), gr.skip()
        return await render(path, [line for line in text.splitlines() if line.strip()], answer_html, request)

    def load_example(selected: gr.SelectData) -> tuple[str, str]:
        case = cases[selected.index]
        return str(case.path), "\n".join(case.expressions)

    # Gradio passes on as many events as the queue of the service, which is fair between visitors, has room for.
    event: dict[str, Any] = {
        "concurrency_limit": service.limits.waiting,
        "concurrency_id": "service",
        "api_visibility": "private",
    }
    with gr.Blocks(title=f"s2rm_jax: {name}", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
        file, text, find, problem, gallery, viewer = _lay_out(cases, name)
        out, event["show_progress_on"] = [problem, viewer], viewer
        file.upload(show_image, file, out, **event)
        file.clear(show_image, file, out, **event)
        gr.on([find.click, text.submit], segment, [file, text], out, **event)
        loaded = gallery.select(load_example, None, [file, text], api_visibility="private")
        loaded.then(segment, [file, text], out, **event)
    page.queue(max_size=service.limits.waiting, api_open=False)
    # By default Gradio keeps the last result, several megabytes, of each of 10,000 sessions, and unfetched results of
    # 2,000. The page does not use the former; the number of the latter must exceed that of waiting requests.
    page.state_session_capacity = _SESSIONS
    page._queue.pending_messages_per_session.max_size = 2 * service.limits.waiting
    # Gradio checks that a visitor's file is an upload only if this is set, and mounting does not set it.
    page.has_launched = True
    return page


class _Widgets(NamedTuple):
    file: gr.File
    text: gr.Textbox
    find: gr.Button
    problem: gr.HTML
    gallery: gr.Gallery
    viewer: gr.HTML


def _lay_out(cases: Sequence[Case], name: str) -> _Widgets:
    """Add the widgets of the page to the open `gr.Blocks`."""
    gr.Markdown(_INTRODUCTION)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            suffixes = [".jpg", ".jpeg", ".png", ".webp"]
            file = gr.File(label="Image", file_types=suffixes, height=130, elem_id="image")
            # Gradio's own method creates an empty file at every event and never removes it. It is replaced on the
            # instance, because Gradio writes an interface file beside the source of every subclass.
            file.preprocess = _path_of  # type: ignore[method-assign]
            text = gr.Textbox(
                label="Expressions, one per line (Shift + Enter to run)",
                placeholder="the man in red\nthe car behind him",
                lines=3,
                max_lines=8,
                elem_id="expressions",
            )
            find = gr.Button("Find", variant="primary", elem_id="find")
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
            viewer = gr.HTML(_PLACEHOLDER, elem_id="viewer")
    return _Widgets(file, text, find, problem, gallery, viewer)


def _path_of(payload: Any) -> Any:
    return payload and payload.path


def _problem(message: str) -> str:
    return f'<p class="s2rm-problem" role="alert">{escape(message)}</p>'
