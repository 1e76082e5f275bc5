"""Serve a trained network as a web page and over HTTP.

    python -m s2rm_jax.demo --workdir runs/demo
    python -m s2rm_jax.demo   # the small network bundled with the package, for generated shapes
    curl -F image=@street.jpg -F expressions="the man in red" http://127.0.0.1:7860/segment

Drop an image and write expressions to see their masks with explanations; docs/demo.md describes the page and the HTTP
interface. By default only this machine can reach it. Needs pip install -e '.[demo]'. Ctrl-C ends it.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from absl import flags

from s2rm_jax import command_line, default_network
from s2rm_jax.errors import UserError

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir",
    str(default_network.FOLDER),
    "the workdir of a training run; by default the small network bundled with the package, trained on generated shapes",
    flag_values=FLAGS,
)
CHECKPOINT = command_line.define_checkpoint(FLAGS)
HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "the address to listen on; 0.0.0.0 accepts connections from other machines, and :: also by IPv6",
    flag_values=FLAGS,
)
PORT = flags.DEFINE_integer(
    "port", 7860, "the port; 0 chooses a free one", lower_bound=0, upper_bound=65_535, flag_values=FLAGS
)
ROOT_PATH = flags.DEFINE_string(
    "root_path", "", "the path under which a proxy serves the page, such as /s2rm; empty at the root", flag_values=FLAGS
)
ACCESS_LOG = flags.DEFINE_string(
    "access_log", None, "a file to which one JSON object is appended per request; - for stdout", flag_values=FLAGS
)
MAX_MEGABYTES = flags.DEFINE_float(
    "max_megabytes",
    20,
    "maximum size of an image file, in megabytes",
    lower_bound=0.01,
    upper_bound=1000,
    flag_values=FLAGS,
)
MAX_MEGAPIXELS = flags.DEFINE_float(
    "max_megapixels",
    25,
    "maximum size of an image, in megapixels",
    lower_bound=0.01,
    upper_bound=1000,
    flag_values=FLAGS,
)
PER_MINUTE = flags.DEFINE_integer(
    "per_minute", 240, "maximum number of requests per visitor and minute", lower_bound=1, flag_values=FLAGS
)
WORK_PER_MINUTE = flags.DEFINE_integer(
    "work_per_minute",
    800,
    "maximum work per visitor and minute: the megapixels of an image (at least 4) times its expressions",
    lower_bound=4,
    flag_values=FLAGS,
)
MAX_SECONDS = flags.DEFINE_float(
    "max_seconds",
    60,
    "maximum time from a complete request to its answer, in seconds",
    lower_bound=0.1,
    upper_bound=86_400,
    flag_values=FLAGS,
)
WAITING = flags.DEFINE_integer(
    "waiting", 100, "maximum number of waiting requests, over all visitors", lower_bound=1, flag_values=FLAGS
)
CONNECTIONS_PER_VISITOR = flags.DEFINE_integer(
    "connections_per_visitor",
    100,
    "maximum number of connections per visitor; all visitors together can have 200",
    lower_bound=1,
    flag_values=FLAGS,
)
SPLIT = flags.DEFINE_string(
    "split",
    None,
    "the split whose images are the examples; by default the one evaluated in training",
    flag_values=FLAGS,
)
EXAMPLES = flags.DEFINE_integer(
    "examples", 6, "how many images of that split the page shows to every visitor", lower_bound=0, flag_values=FLAGS
)


def main() -> None:
    """Serve until the process is interrupted."""
    missing = [name for name in ("gradio", "fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise UserError(f"{missing[0]} is not installed; install what the demo needs: pip install -e '.[demo]'")

    if SPLIT.value and not EXAMPLES.value:
        raise UserError("--split is given with --examples 0; it chooses the split of the examples")

    from s2rm_jax.input.tokens import silence_tokenizer
    from s2rm_jax.segmenter import Segmenter
    from s2rm_jax.serving.app import build_app, build_server
    from s2rm_jax.serving.limits import Limits
    from s2rm_jax.serving.page import example_cases
    from s2rm_jax.serving.service import Service
    from s2rm_jax.training.logging import log

    # The log must not contain the expressions of visitors; the answers have the remarks.
    silence_tokenizer()
    assert WORKDIR.value is not None  # has a default
    root_path = f"/{ROOT_PATH.value.strip('/')}" if ROOT_PATH.value.strip("/") else ""
    listening = _listen(HOST.value, PORT.value)  # first: a port that is in use is reported before the network is loaded
    segmenter = Segmenter.from_checkpoint(WORKDIR.value, CHECKPOINT.value, keep_programs=True)
    limits = Limits(
        bytes=round(1e6 * MAX_MEGABYTES.value),
        pixels=round(1e6 * MAX_MEGAPIXELS.value),
        per_minute=PER_MINUTE.value,
        work_per_minute=WORK_PER_MINUTE.value,
        waiting=WAITING.value,
        seconds=MAX_SECONDS.value,
        connections_per_visitor=CONNECTIONS_PER_VISITOR.value,
    )
    service = Service(segmenter, limits)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2rm_demo_")))
        cases = example_cases(segmenter.config, folder, EXAMPLES.value, SPLIT.value)
        name = f"the {command_line.describe_checkpoint(CHECKPOINT.value)} of {Path(WORKDIR.value).resolve().name}"
        if default_network.is_default_network(WORKDIR.value):
            name = "the bundled network, trained on generated shapes"
        access_log = None
        if ACCESS_LOG.value:
            access_log = partial(print, file=stack.enter_context(_open_log(ACCESS_LOG.value)), flush=True)
        app = build_app(service, folder, cases, name, root_path=root_path, access_log=access_log)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that the folder is removed
        log("compiling the network for its first images")
        address = _address(listening) + root_path
        message = f"open {address} in a browser; programs send POST /segment there. Ctrl-C stops the server."
        server = build_server(app)

        def warmed_up(warm_up: Future[None]) -> None:
            server.should_exit = server.should_exit or warm_up.exception() is not None
            gc.freeze()  # a million objects that stay; each collection would go through them, for a tenth of a second

        warming = stack.enter_context(ThreadPoolExecutor(1)).submit(service.warm_up, partial(log, message))
        warming.add_done_callback(warmed_up)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it after it has finished the open requests
            server.run(sockets=[listening])
        service.close()
        warming.result()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise UserError(f"cannot listen at {host}:{port} ({reason}); give another --host or --port") from error


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if listening.family == socket.AF_INET6 else f"http://{host}:{port}"


def _open_log(path: str) -> contextlib.AbstractContextManager[TextIO]:
    try:
        return contextlib.nullcontext(sys.stdout) if path == "-" else open(path, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--access_log: cannot write to {path} ({error.strerror}); name another file") from error


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__)
