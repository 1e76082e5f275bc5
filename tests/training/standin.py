"""A network and data that train in milliseconds, and a program that trains them, for tests that kill it.

python standin.py WORKDIR STEPS [GATE]
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from s2rm_jax.config import default_config
from s2rm_jax.input.encode import pack_mask
from s2rm_jax.input.example import Batch
from s2rm_jax.io import workdir_path
from s2rm_jax.models.network import normalize
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training.checkpoint import has_checkpoint
from s2rm_jax.training.logging import RunLog
from s2rm_jax.training.loop import Parts, train_with_parts
from s2rm_jax.training.run import load_config

SIZE, WORDS, MAX_TOKENS, EXPRESSIONS = 8, 16, 5, 3


@flax.struct.dataclass
class StandInOutput:
    logits: jax.Array
    coarse_logits: tuple[jax.Array, ...]
    no_target_logits: jax.Array | None = None


class StandIn(nn.Module):
    """Compare every pixel with the mean of the words; with `judges`, a head detects absent referents."""

    dropout_rate: float = 0.0
    judges: bool = False
    width: int = 6
    words: int = WORDS
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, tokens, token_mask, train=False):
        images = normalize(images) if images.dtype == jnp.uint8 else images  # as ReferringNetwork does
        pixels = nn.tanh(nn.Dense(self.width, name="vision", dtype=self.dtype)(images))
        words = nn.Embed(self.words, self.width, name="text", dtype=self.dtype)(tokens) * token_mask[..., None]
        words = nn.LayerNorm(name="norm", dtype=self.dtype)(words.sum(-2))
        words = nn.Dropout(self.dropout_rate, deterministic=not train)(words)
        logits = jnp.einsum("bhwc,bkc->bkhw", pixels, nn.Dense(self.width, name="head", dtype=self.dtype)(words))
        logits = logits.astype(jnp.float32)
        b, k, h, w = logits.shape
        halves = logits.reshape(b, k, h // 2, 2, w // 2, 2).mean((3, 5))
        nothing = nn.Dense(1, name="no_target")(words)[..., 0] if self.judges else None
        return StandInOutput(logits, (halves,), nothing)


def make_config(**changes):
    """Return a small configuration; `changes` are dotted names of fields with __ for the dots."""
    config = default_config()
    config.steps, config.batch_size, config.log_every, config.checkpoint_every = 12, 4, 4, 5
    config.input.image_size, config.input.expressions_per_image = (SIZE, SIZE), EXPRESSIONS
    config.text.max_tokens = MAX_TOKENS
    config.optimizer.learning_rate = 0.01
    config.eval.every = 0
    for name, value in changes.items():
        *sections, field = name.split("__")
        section = config
        for part in sections:
            section = section[part]
        section[field] = value
    return config.lock()


def make_batch(seed, batch_size=4):
    """Return a batch of random images, expressions and masks; some expressions are padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, WORDS, (batch_size, EXPRESSIONS, MAX_TOKENS), dtype=np.int32)
    token_mask = np.arange(MAX_TOKENS) < rng.integers(2, MAX_TOKENS + 1, (batch_size, EXPRESSIONS, 1))
    valid = np.arange(EXPRESSIONS) < rng.integers(1, EXPRESSIONS + 1, (batch_size, 1))
    targets = rng.random((batch_size, EXPRESSIONS, SIZE, SIZE)) < 0.3
    return Batch(
        images=(120 + 58 * rng.standard_normal((batch_size, SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8),
        tokens=tokens,
        token_mask=token_mask,
        targets=pack(targets & valid[..., None, None]),
        valid=valid,
        has_target=valid,
    )


def pack(masks):
    """Pack masks [b, k, h, w] as in a batch."""
    return np.stack([np.stack([pack_mask(mask) for mask in row]) for row in masks])


def wait_at(gate, number):
    """Wait until the file `gate` has `number` bytes, one for each batch that the test allows this process to read."""
    if gate.stat().st_size < number:
        print(f"waiting for batch {number}", flush=True)
    while gate.stat().st_size < number:
        time.sleep(0.01)


def allow(gate, count=1000):
    """Allow the processes at `gate` to read `count` more batches."""
    with gate.open("ab") as file:
        file.write(b"." * count)


def make_parts(config, network=None, evaluate=None, gate=None):
    """Batch i is a pure function of the number of images before it, as with the real pipeline."""

    def batches(rows_seen):
        for number in itertools.count(1):
            if gate:
                wait_at(gate, number)
            yield make_batch(1000 + rows_seen, config.batch_size)
            rows_seen += config.batch_size

    return Parts(
        network=network or StandIn(dropout_rate=0.5),
        batches=batches,
        evaluate=evaluate,
        save_vocab=lambda path: path.write_text("[PAD]\n", encoding="utf-8"),
    )


def train(config, workdir, parts, mesh, profile_steps=range(0)):
    """Train as `train_and_evaluate` does, with the given parts on the given devices and without pretrained weights."""
    workdir = workdir_path(workdir)
    began = load_config(workdir) if has_checkpoint(workdir) else None
    with RunLog() as run_log:
        return train_with_parts(config, workdir, parts, mesh, profile_steps, began=began, run_log=run_log)


def main(workdir, steps, gate=None):
    config = make_config(steps=int(steps), optimizer__ema_decay=0.9, optimizer__accumulate=2, log_every=1)
    train(config, Path(workdir), make_parts(config, gate=gate and Path(gate)), make_mesh())


if __name__ == "__main__":
    from absl import flags

    from s2rm_jax import command_line

    arguments = sys.argv[1:]
    sys.argv[1:] = []
    command_line.run_and_exit(lambda: main(*arguments), flags.FlagValues(), __doc__)
