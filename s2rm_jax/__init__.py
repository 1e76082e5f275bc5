"""s2rm_jax: referring image segmentation in JAX/Flax (S2RM, arXiv 2405.09006).

The public names are imported when they are first used, so that `import s2rm_jax` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2rm_jax.config import default_config
    from s2rm_jax.models.network import build_network
    from s2rm_jax.segmenter import Result, Segmenter
    from s2rm_jax.training.run import load_run

__version__ = "0.1.0"
__all__ = ["Result", "Segmenter", "__version__", "build_network", "default_config", "load_run"]

_MODULES = {
    "Result": "segmenter",
    "Segmenter": "segmenter",
    "build_network": "models.network",
    "default_config": "config",
    "load_run": "training.run",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
