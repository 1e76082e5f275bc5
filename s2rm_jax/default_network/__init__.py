"""The network that comes with the package: it knows generated shapes, see the README.md beside this file."""

from pathlib import Path

FOLDER = Path(__file__).parent  # may be given wherever the workdir of a run may be read


def is_it(workdir: str | Path) -> bool:
    """Says whether a workdir is this folder, however its path is written."""
    return Path(workdir).resolve() == FOLDER.resolve()
