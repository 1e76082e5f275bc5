"""Where the configurations are: beside the package in a clone, in it where it was installed from a wheel."""

from __future__ import annotations

from pathlib import Path

from s2rm_jax.errors import UserError

_PACKAGE = Path(__file__).parent


def shipped_configs() -> Path:
    """Returns the folder of the configurations that come with this package."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_config(given: str) -> str:
    """Returns the file that --config means, with the argument that may stand behind a colon.

    A file that is there is taken as it is. Otherwise `synthetic`, `synthetic.py` and `configs/synthetic.py` name one of
    those that come with the package, so that the same command works in a clone and anywhere else.

    Raises:
        UserError: there is no such configuration.
    """
    name, colon, argument = given.partition(":")
    path = Path(name)
    if path.is_file() and path.suffix == ".py":
        return given
    shipped = shipped_configs() / f"{path.stem}.py"
    if path.parent in (Path(), Path("configs")) and path.suffix in ("", ".py") and shipped.is_file():
        return f"{shipped}{colon}{argument}"
    raise UserError(f"--config: {path} {_what_is_wrong(path)}.")


def _what_is_wrong(path: Path) -> str:
    """Says it of a path, and what could be named instead: what lies there, else what comes with the package."""
    wrong = "is no configuration, which is a Python file" if path.is_file() else "does not exist"
    folder, wrong = (path, "is a folder; name a file in it") if path.is_dir() else (path.parent, wrong)
    others = [] if folder == Path() else [str(other) for other in folder.glob("*.py")]
    shipped = [other.stem for other in shipped_configs().glob("*.py")]
    there = f"there are: {', '.join(sorted(others))}" if others else f"there are by name: {', '.join(sorted(shipped))}"
    return f"{wrong}; {there}"
