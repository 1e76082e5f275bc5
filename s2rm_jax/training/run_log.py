"""What a run said, kept by each process as JSON lines: <workdir>/log/process_N.jsonl."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from etils import epath

from s2rm_jax.parallel import distributed
from s2rm_jax.training.progress import SAID
from s2rm_jax.training.workdir_files import JsonLines

LOG_DIRECTORY = "log"


class RunLog(logging.Handler):
    """While inside, keeps every line that is said: {"time", "process", "step" where it is of one, "message"}.

    What is said before `open` is kept until then. Of several processes only the first prints, but each keeps its own.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: JsonLines | None = None
        self._before: list[dict[str, Any]] = []

    def open(self, workdir: epath.Path) -> None:
        """Names the workdir, which must exist.

        Raises:
            OSError: it cannot be written.
        """
        folder = workdir / LOG_DIRECTORY
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(folder / f"process_{distributed.process()[0]}.jsonl")
        for values in self._before:
            self._lines.write(values)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        step = getattr(record, "step", None)
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "process": distributed.process()[0],
            **({} if step is None else {"step": step}),
            "message": record.getMessage(),
        }
        if self._lines:
            self._lines.write(values)
        else:
            self._before.append(values)

    def __enter__(self) -> RunLog:
        SAID.addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None:
            SAID.info("ended by %s: %s", kind.__name__, error)
        SAID.removeHandler(self)
        if self._lines:
            self._lines.close()
