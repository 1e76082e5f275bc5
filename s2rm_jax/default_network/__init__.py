"""The network that comes with the package, trained on generated shapes; see the README.md in this folder."""

from pathlib import Path

FOLDER = Path(__file__).parent  # accepted wherever the workdir of a run is read


def is_default_network(workdir: str | Path) -> bool:
    """Return whether a workdir is this folder, in whatever form its path is given."""
    return Path(workdir).resolve() == FOLDER.resolve()
