"""Fixtures of the parity tests and their report, and a trained network to export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from s2rm_jax.interop.torch_folder import LoadedRun
from s2rm_jax.training.run import load_run
from tests.interop.fresh_process import Question, make_question

if TYPE_CHECKING:
    from tests.interop.parity_page import Mistake, Row

ROWS = pytest.StashKey["list[Row]"]()
MISTAKES = pytest.StashKey["list[Mistake]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity-table",
        metavar="FILE",
        type=Path,
        help="compare all published sizes with PyTorch, not only some, and write the errors to FILE (not with -n)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS], config.stash[MISTAKES] = [], []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    file = session.config.getoption("--parity-table", None)
    stash, arguments = session.config.stash, session.config.invocation_params.args
    if file and exitstatus == 0 and stash[ROWS]:
        from tests.interop.parity_page import parity_page  # imports torch

        file.write_text(parity_page(stash[ROWS], stash[MISTAKES], arguments))


@pytest.fixture
def hold(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Assert that every error of a row is within its tolerance, and keep the row for the page."""

    def check(row: Row) -> None:
        named = {f"output {i}": error for i, error in enumerate(row.errors.outputs, 1)}
        named |= {f"input {i}": error for i, error in enumerate(row.errors.inputs, 1)}
        beyond = {name: error for name, error in (named | row.errors.parameters).items() if not error <= row.tolerance}
        assert not beyond
        request.config.stash[ROWS].append(row)

    return check


@pytest.fixture
def notice(request: pytest.FixtureRequest) -> Callable[[Mistake], None]:
    """Assert that a mistake is far beyond the tolerance, and keep it for the page."""

    def check(mistake: Mistake) -> None:
        assert mistake.error > 10 * mistake.tolerance
        request.config.stash[MISTAKES].append(mistake)

    return check


@pytest.fixture(scope="session")
def trained(tiny_workdir: Path) -> LoadedRun:
    """The network of `tiny_workdir`."""
    return load_run(tiny_workdir, "latest")


@pytest.fixture(scope="session")
def question(trained: LoadedRun) -> Question:
    """Inputs for `trained` once it is exported."""
    return make_question(trained)
