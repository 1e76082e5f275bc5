"""Export a trained network as ONNX, through PyTorch: two graphs for ONNX Runtime and similar runtimes."""

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
from s2rm_jax.interop.parameter_names import export_arrays, network_layout
from s2rm_jax.interop.torch_folder import LoadedRun, ground_outputs, require_torch_variant, write_preprocessing
from s2rm_jax.models.network import build_network

ENCODE_FILE, GROUND_FILE = "encode_image.onnx", "ground.onnx"
NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # relative: norm of the difference over the norm of the output of JAX


def write_onnx(trained: LoadedRun, folder: Path) -> float:
    """Write a network into an empty folder: two graphs with their weights, and the files of `write_preprocessing`.

    - `encode_image.onnx`: images -> features_1, features_2, ...
    - `ground.onnx`: features_1, ..., tokens, token_mask -> logits, or logits and no_target_logits

    There are two graphs so that an image is encoded once for any number of expressions. They compute in float32 for any
    number b of images and k of expressions. Weights of more than 1.5 GB are in a separate file next to their graph.

    Returns:
        The relative error of the outputs of ONNX Runtime for the written graphs, compared with those of JAX.

    Raises:
        UserError: the network is a variant for ablations that PyTorch does not have, a package is missing, or the
            outputs of ONNX Runtime differ from those of JAX.
        OSError: the folder cannot be written to.
    """
    require_torch_variant(trained.config)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"writing ONNX needs {', '.join(missing)}: pip install -e '.[onnx]'")
    encode_image, ground = export_graphs(trained)
    encode_image.save(folder / ENCODE_FILE)
    ground.save(folder / GROUND_FILE)
    write_preprocessing(trained, "onnx", folder)
    error = relative_error(trained, folder)
    if not error <= TOLERANCE:  # also where it is NaN
        raise UserError(
            f"the output of ONNX Runtime differs from JAX by {error:.1e} of its norm, more than {TOLERANCE:.0e}, so "
            f"nothing was written; try other versions of {', '.join(NEEDED)}"
        )
    return error


def export_graphs(trained: LoadedRun) -> tuple[Any, Any]:
    """Return the graphs of `encode_image` and `ground` as torch.onnx.ONNXProgram."""
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
            return ground_outputs(self.model.ground(features, tokens.long(), token_mask, (height, width)))

    arrays = export_arrays(network_layout(trained.params), trained.params)
    model = S2RMModel(trained.config.to_dict()).requires_grad_(False)
    model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    encode_image, ground = EncodeImage(model).eval(), Ground(model).eval()

    b, k = torch.export.Dim("b"), torch.export.Dim("k")
    images, tokens, token_mask = map(
        torch.from_numpy, random_inputs(trained.config, 2, 3)
    )  # not 1, which would become constant
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
    """Return the relative error of the graphs in `folder` against JAX in float32, on random inputs.

    It is the larger error of two batches: two images with three expressions each, and one image with one expression.
    """
    images, tokens, token_mask = random_inputs(trained.config, 2, 3)
    network = build_network(ConfigDict({**trained.config.to_dict(), "dtype": "float32"}))
    outputs: Any = jax.jit(network.apply)({"params": trained.params}, images, tokens, token_mask)
    encode_image, ground = load_onnx(folder)

    def errors(b: int, k: int) -> list[float]:
        found = ground(encode_image(images[:b]), tokens[:b, :k], token_mask[:b, :k])
        expected = [np.asarray(x)[:b, :k] for x in ground_outputs(outputs)]
        return [float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in zip(found, expected, strict=True)]

    return max(errors(2, 3) + errors(1, 1))


def random_inputs(config: ConfigDict, count: int, expressions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw normalized images [b, H, W, 3], tokens [b, k, L] and their mask, with expressions of different lengths."""
    rng = np.random.default_rng(0)
    shape = (count, expressions, config.text.max_tokens)
    images = rng.normal(size=(count, *config.input.image_size, 3)).astype(np.float32)
    lengths = rng.integers(3, shape[-1] + 1, shape[:2])
    tokens = rng.integers(0, config.text.vocab_size, shape, dtype=np.int32)
    return images, tokens, np.arange(shape[-1]) < lengths[..., None]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the messages of the exporter that concern its developers only."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings():
            # Several inputs share the name of an axis on purpose; the deprecated call is in torch itself.
            warnings.filterwarnings("ignore", "# The axis name: . will not be used", UserWarning)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
