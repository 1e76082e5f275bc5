"""Shared fixtures: a network with known predictions, and the workdir of a tiny training run."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

# Compilation of tiny networks takes most of the tests' time. These settings make it four times as fast, and compile
# each program once for all workers, child processes and sessions. JAX keys a program by all that it depends on, its own
# version and every setting included. They are environment variables, so that child processes have them too, and must
# be set before JAX is imported.
_CACHE = Path(__file__).parents[1] / ".cache" / f"test-programs-jaxlib-{version('jaxlib')}"
_LARGEST_CACHE = 2_000_000_000  # bytes
_CACHES_OF_USER = tempfile.mkdtemp(prefix="s2rm-jax-tests-")  # instead of ~/.cache, which tests must not touch
atexit.register(shutil.rmtree, _CACHES_OF_USER, ignore_errors=True)
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(_CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "XDG_CACHE_HOME": _CACHES_OF_USER,
}
# Once each: JAX keys a program by the whole of XLA_FLAGS. Splitting a program for parallel code generation costs more
# than it gains where as many workers as cores compile. XLA aborts on a flag that it does not know; newer versions have
# no choice of fusion emitters.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for _flag in _FLAGS:
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
# Tracing allocates many objects that live long. With Python's default thresholds, looking for garbage among them takes
# 2.4 CPU seconds of tests/models/test_layers.py; with these, 0.6.
gc.set_threshold(100_000, 10, 10)

import jaxtyping
from jaxtyping import install_import_hook

# While tests run, the shapes and types of arguments are checked. The synthetic scenes are left out: their types name no
# shapes, and checking their many small calls would take three quarters of their time.
_PACKAGE = Path(__file__).parents[1] / "s2rm_jax"
_MODULES = (".".join(file.relative_to(_PACKAGE.parent).with_suffix("").parts) for file in _PACKAGE.rglob("[!_]*.py"))
install_import_hook(
    [module for module in _MODULES if not module.startswith("s2rm_jax.input.synthetic")], "beartype.beartype"
)

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filelock import FileLock
from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.input.example import Example, Expression
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.segmenter import Segmenter
from tests.hub_server import Hub, serve_hub
from tests.warm import WarmStart

# Fields of config.vision for the published sizes of Swin.
SWIN_SIZES = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long, and the long forms of others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked long, unless --long asks for them."""
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Return whether tests run in their long form."""
    return request.config.getoption("--long")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, handle Ctrl-C, and empty the cache of compiled programs once it is too large.

    Also remove the variables of a job that runs the tests, and those of a user's data, which commands would follow.
    """
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "JOB_COMPLETION_", "S2RM_")) and name != "S2RM_REFER_MINI":
            del os.environ[name]
    # A shell script starts "pytest &" with SIGINT ignored, and child processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "long: too long for `make test`; `make test-all` runs it")
    if not hasattr(config, "workerinput"):
        size = sum(file.stat().st_size for file in _CACHE.glob("*")) if _CACHE.is_dir() else 0
        if size > _LARGEST_CACHE:
            shutil.rmtree(_CACHE)


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "the", "part")


class Answer(NamedTuple):
    """The fields of the output of a network that evaluation and prediction read."""

    logits: jax.Array
    no_target_logits: jax.Array | None = None


class ColourNetwork(nn.Module):
    """A network with the methods of ReferringNetwork that segments exactly the colour that an expression names."""

    on_trace: Callable[[str], None]  # called with the name of each method when it is traced

    def __call__(self, images, tokens, token_mask):
        self.on_trace("__call__")
        return self._find(images, tokens)

    def encode_image(self, images):
        self.on_trace("encode_image")
        return (images,)

    def encode_text(self, tokens, token_mask):
        self.on_trace(f"encode_text {len(tokens)}")
        return tokens[..., None]

    def fuse_and_decode(self, features, words, token_mask, image_size):
        self.on_trace(f"fuse_and_decode {words.shape[1]}")
        assert features[0].shape[1:3] == image_size
        return self._find(features[0], words[..., 0])

    @nn.compact
    def _find(self, images, tokens):
        sharpness = self.param("sharpness", nn.initializers.constant(8.0), ())
        levels = images / 255  # 0 ... 1
        named = jnp.stack([(tokens == WORDS.index(colour)).any(-1) for colour in ("red", "green", "blue")], -1)
        found = jnp.einsum("bhwc,bkc->bkhw", levels, named.astype(jnp.float32), precision="highest")
        return Answer((found - 0.5) * sharpness)


class ColourWorld(NamedTuple):
    """The colour network ready for use, at an input size of 8 x 8 pixels, K = 3 and two images a batch."""

    network: ColourNetwork
    traced_methods: list[str]
    params: dict[str, jax.Array]
    tokenizer: Tokenizer
    config: ConfigDict


@pytest.fixture
def colour_world() -> ColourWorld:
    return make_colour_world()


@pytest.fixture
def segmenter(colour_world):
    network, _, params, tokenizer, config = colour_world
    return Segmenter(network, params, tokenizer, config)


def make_colour_world() -> ColourWorld:
    config = default_config()
    config.input.image_size = (8, 8)
    config.input.expressions_per_image = 3
    config.text.max_tokens = 6
    config.eval.batch_size = 2
    methods: list[str] = []
    return ColourWorld(
        ColourNetwork(methods.append), methods, {"sharpness": jnp.float32(8)}, Tokenizer(WORDS, 6), config
    )


@pytest.fixture(autouse=True, scope="session")
def propagate_log_records() -> None:
    """Propagate the log records of this package to the root logger, where caplog collects them."""
    from s2rm_jax.training import logging as training_logging  # sets `propagate` when it is imported

    training_logging._LOGGER.propagate = True


def striped_example(name: str, texts: list[str], height: int = 4, width: int = 8, kind: str = "") -> Example:
    """Return an image whose left 3 of 8 columns are red, the others blue; every expression refers to its left half."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : 3 * width // 8, 0] = 255
    image[:, 3 * width // 8 :, 2] = 255
    left_half = np.broadcast_to(np.arange(width) < width // 2, (height, width))
    expressions = tuple(Expression(s, left_half, kind, f"{name}-{i}") for i, s in enumerate(texts))
    return Example(name, image, height, width, expressions)


class Examples(tuple):
    """A source that holds these examples."""

    def expression_count(self, index):
        return len(self[index].expressions)

    def referents(self, index):
        return tuple((position,) for position in range(self.expression_count(index)))


@pytest.fixture
def source_of():
    """The class that makes a source from a list of examples."""
    return Examples


@pytest.fixture
def make_example():
    """The function `striped_example`, which makes images for the colour network."""
    return striped_example


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Return the folder of a name, which the first worker of this session that asks for it fills."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, fill: Callable[[Path], None]) -> Path:
        folder, unfinished = shared / name, shared / f"{name}.unfinished"
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                shutil.rmtree(unfinished, ignore_errors=True)  # of a worker that failed
                unfinished.mkdir()
                fill(unfinished)
                unfinished.rename(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def tiny_workdir(
    tmp_path_factory: pytest.TempPathFactory, made_once: Callable[[str, Callable[[Path], None]], Path]
) -> Path:
    """The workdir of a tiny run on synthetic scenes: two steps, one evaluation, one checkpoint.

    One worker trains it for all; each has its own copy, because commands write into a workdir.
    """
    from s2rm_jax.training.loop import train_and_evaluate

    trained = made_once("tiny_run", lambda folder: train_and_evaluate(tiny_config(), folder))
    return shutil.copytree(trained, tmp_path_factory.mktemp("tiny_run"), dirs_exist_ok=True)


def tiny_config() -> ConfigDict:
    """Return the configuration of a very small network on very small scenes."""
    config = default_config()
    config.steps = 2
    config.batch_size = 2
    config.input.source = ConfigDict({"name": "synthetic", "image_size": (48, 64), "expressions_per_scene": 3})
    config.input.image_size = (32, 32)
    config.input.expressions_per_image = 2
    config.vision.update({"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4})
    config.text.update({"vocab_size": 128, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32})
    config.text.max_tokens = 16
    config.fusion.update({"width": 16, "recurrent_width": 8, "num_heads": 2})
    config.decoder.widths = (8, 8)
    config.eval.update({"every": 2, "limit": 4, "batch_size": 4})
    config.checkpoint_every = 2
    return config


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Call functions as users do: without the checks of shapes and types that are only made while tests run."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmStart]:
    """Starts programs in processes that have imported JAX."""
    with WarmStart() as start:
        yield start


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in for the Hugging Face Hub, with an empty local cache."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    with serve_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served
        close_session()
