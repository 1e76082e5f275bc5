"""Page and HTTP interface in one application: / leads to the page, /segment answers programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before Gradio is imported: it would report its use and look for newer versions of itself.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from s2rm_jax.serving.api import build_api
from s2rm_jax.serving.limits import Rate
from s2rm_jax.serving.page import Case, build_page
from s2rm_jax.serving.service import Service
from s2rm_jax.serving.viewer import SCRIPT, STYLE

PAGE = "/demo"


def build_app(service: Service, cases: Sequence[Case] = (), name: str = "") -> FastAPI:
    """Returns the application; page and interface share one limit on the requests of a visitor."""
    rate = Rate(service.limits.per_minute)
    app = build_api(service, rate)

    @app.get("/", include_in_schema=False)
    def front() -> RedirectResponse:
        return RedirectResponse(PAGE)

    # Fonts of the system, as those of Gradio's themes are loaded from elsewhere.
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.mount_gradio_app(
        app,
        build_page(service, cases, rate, name),
        PAGE,
        theme=gr.themes.Default(primary_hue="orange", **fonts),
        css=STYLE,
        head=SCRIPT,
        max_file_size=service.limits.bytes,
        allowed_paths=sorted({str(Path(case.path).parent) for case in cases}),
        ssr_mode=False,
        footer_links=[],
        show_error=False,
    )
