"""Run an exported network in a process without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from s2rm_jax.interop.torch_folder import LoadedRun

# The tiny network of the tests predicts masks for these that are neither empty nor full, which tests assert.
EXPRESSIONS = ("the red circle", "the small star left of the blue square", "the rightmost square")

FRESH = """
import json, runpy, sys
folder, work, expressions, foreign = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(foreign))  # importing one of these now raises ImportError
sys.path.insert(0, folder)
sys.argv = ["segment.py", f"{work}/image.png", *expressions, "--out", f"{work}/new/masks"]
runpy.run_path(f"{folder}/segment.py", run_name="__main__")
import numpy as np
import segment

network = segment.load_network(folder)
batch = np.load(f"{work}/batch.npz")
outputs = network.ground(network.encode_image(batch["images"]), batch["tokens"], batch["token_mask"])
np.savez(f"{work}/answer.npz", **{f"output_{i}": output for i, output in enumerate(outputs)})
"""


class Answer(NamedTuple):
    """The masks of one image from an exported network, and the raw outputs of a batch."""

    masks: np.ndarray
    outputs: list[np.ndarray]


class Question(NamedTuple):
    """An image, expressions about it, and a batch of another size: two images with five expressions each."""

    image: np.ndarray
    expressions: tuple[str, ...]
    batch: dict[str, np.ndarray]

    def ask(self, folder: Path, work: Path, *foreign: str) -> Answer:
        """Run `segment.py` in `folder` and its network in a fresh process.

        The process can import neither this package nor `foreign`.
        """
        Image.fromarray(self.image).save(work / "image.png")
        np.savez(work / "batch.npz", **self.batch)
        ours = ("s2rm_jax", "flax", "einops", "grain", "jaxtyping", "ml_collections", "optax", "orbax", "transformers")
        argument = json.dumps([str(folder), str(work), self.expressions, ours + foreign])
        subprocess.run([sys.executable, "-I", "-c", FRESH, argument], cwd=work, check=True)
        files = [work / f"new/masks/mask_{number}.png" for number in range(1, len(self.expressions) + 1)]
        masks = np.stack([np.asarray(Image.open(file)) for file in files])
        assert set(np.unique(masks)) == {0, 255}
        with np.load(work / "answer.npz") as answer:
            return Answer(masks == 255, list(answer.values()))


def make_question(trained: LoadedRun) -> Question:
    """Return inputs for a network that was trained on synthetic scenes."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 57, 3), dtype=np.uint8)
    images = rng.normal(size=(2, *trained.config.input.image_size, 3)).astype(np.float32)
    shape = (2, 5, trained.config.text.max_tokens)
    tokens = rng.integers(0, trained.tokenizer.size, shape, dtype=np.int32)
    token_mask = np.arange(shape[-1]) < rng.integers(3, shape[-1] + 1, shape[:2])[..., None]
    return Question(image, EXPRESSIONS, {"images": images, "tokens": tokens, "token_mask": token_mask})
