"""A trained network as ONNX, through its PyTorch form: two files that ONNX Runtime and its kin run."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.interop.exported_segment import load_onnx
from s2rm_jax.interop.layout import export_arrays
from s2rm_jax.interop.parameter_names import network_layout
from s2rm_jax.interop.torch_folder import write_preprocessing
from s2rm_jax.models.network import build_network
from s2rm_jax.training.run import LoadedRun

ENCODE_FILE, GROUND_FILE = "encode_image.onnx", "ground.onnx"
NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # relative: norm of the difference over norm of what JAX computes


def write_onnx(trained: LoadedRun, folder: Path) -> float:
    """Writes a network into an empty folder: two graphs with their weights, and all that is needed to use them.

    encode_image.onnx  images -> features_1, features_2, ...
    ground.onnx        features_1, ..., tokens, token_mask -> logits, or logits and no_target_logits

    There are two so that an image is encoded once, however many expressions are asked of it. They compute in float32 for
    any number of images b and of expressions k. Weights of more than 1.5 GB lie in a file of their own beside a graph.

    Returns:
        The relative error of what ONNX Runtime computes with what was written, against what JAX computes.

    Raises:
        UserError: a package is missing, or ONNX Runtime computes something else than JAX.
        OSError: the folder cannot be written to.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'writing ONNX needs {", ".join(missing)}: pip install "s2rm-jax[onnx]"')
    encode_image, ground = export_graphs(trained)
    encode_image.save(folder / ENCODE_FILE)
    ground.save(folder / GROUND_FILE)
    write_preprocessing(trained, "onnx", folder)
    error = relative_error(trained, folder)
    if not error <= TOLERANCE:  # also where it is NaN
        raise UserError(
            f"what ONNX Runtime computes differs from JAX by {error:.1e} of its norm, more than {TOLERANCE:.0e}, and "
            f"nothing was written; try other versions of {', '.join(NEEDED)}"
        )
    return error


def export_graphs(trained: LoadedRun) -> tuple[Any, Any]:
    """Returns the graphs of `encode_image` and `ground` as torch.onnx.ONNXProgram."""
    import torch

    from s2rm_jax.interop.torch_model import S2RMModel

    height, width = trained.config.input.image_size

    class EncodeImage(torch.nn.Module):
        def __init__(self, model: S2RMModel):
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.model.encode_image(images.permute(0, 3, 1, 2))

    class Ground(EncodeImage):
        def forward(self, features: Any, tokens: Any, token_mask: Any) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
            return _returned(self.model.ground(features, tokens.long(), token_mask, (height, width)))

    arrays = export_arrays(network_layout(trained.params), trained.params)
    model = S2RMModel(trained.config.to_dict()).requires_grad_(False)
    model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    encode_image, ground = EncodeImage(model).eval(), Ground(model).eval()

    b, k = torch.export.Dim("b"), torch.export.Dim("k")
    images, tokens, token_mask = map(torch.from_numpy, random_inputs(trained.config, 2, 3))  # sizes of 1 would be fixed
    features = encode_image(images)
    names = [f"features_{stage}" for stage in range(1, len(features) + 1)]
    export = partial(torch.onnx.export, dynamo=True, verbose=False)
    with _quiet_exporter():
        encoder = export(encode_image, (images,), input_names=["images"], output_names=names, dynamic_shapes=({0: b},))
        grounder = export(
            ground,
            (features, tokens, token_mask),
            input_names=[*names, "tokens", "token_mask"],
            output_names=["logits", "no_target_logits"][: 1 if model.no_target is None else 2],
            dynamic_shapes=(tuple({0: b} for _ in names), {0: b, 1: k}, {0: b, 1: k}),
        )
    return encoder, grounder


def relative_error(trained: LoadedRun, folder: Path) -> float:
    """Returns how far the outputs of the graphs in `folder` are from those of JAX in float32, on noise.

    That is the larger of two: of two images with three expressions each, and of one of them with one expression alone.
    """
    images, tokens, token_mask = random_inputs(trained.config, 2, 3)
    network = build_network(ConfigDict({**trained.config.to_dict(), "dtype": "float32"}))
    outputs: Any = jax.jit(network.apply)({"params": trained.params}, images, tokens, token_mask)
    encode_image, ground = load_onnx(folder)

    def errors(b: int, k: int) -> list[float]:
        found = ground(encode_image(images[:b]), tokens[:b, :k], token_mask[:b, :k])
        wanted = [np.asarray(x)[:b, :k] for x in _returned(outputs)]
        return [float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in zip(found, wanted, strict=True)]

    return max(errors(2, 3) + errors(1, 1))


def _returned(output: Any) -> tuple[Any, ...]:
    """What `ground` returns of the output of either network."""
    return (output.logits,) if output.no_target_logits is None else (output.logits, output.no_target_logits)


def random_inputs(config: ConfigDict, count: int, expressions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns noise as images [b, H, W, 3], tokens [b, k, L] and their mask, with expressions of different lengths."""
    rng = np.random.default_rng(0)
    shape = (count, expressions, config.text.max_tokens)
    images = rng.normal(size=(count, *config.input.image_size, 3)).astype(np.float32)
    lengths = rng.integers(3, shape[-1] + 1, shape[:2])
    tokens = rng.integers(0, config.text.vocab_size, shape, dtype=np.int32)
    return images, tokens, np.arange(shape[-1]) < lengths[..., None]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps from a person what the exporter has to say to its developers."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings():
            # One axis of several inputs has one name, as it should; and pytree deprecates what torch itself calls.
            warnings.filterwarnings("ignore", "# The axis name: . will not be used", UserWarning)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
