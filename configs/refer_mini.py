"""A small network on a few real photographs in the REFER layout, from scratch on a CPU.

It tests the complete path on real images; the data is far too small to generalize.

    python -m s2rm_jax.train --config configs/refer_mini.py --workdir runs/refer_mini
    python -m s2rm_jax.train --config configs/refer_mini.py:memorise --workdir runs/memorise

`memorise` is an overfitting test: it trains and evaluates on the same 32 referents and should reach a mean IoU above 80
(measured curve: docs/results/refer_mini.md). It needs the data at $S2RM_REFER_MINI or
--config.input.source.root=DIR, the vocabulary at $S2RM_BERT_VOCAB or --config.text.vocab=FILE.
"""

import os

from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.recipes import set_small_network


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "memorise"):
        raise UserError(f"configs/refer_mini.py has no variant {variant!r}; available: 'memorise'")
    config = default_config()
    config.input.source = ConfigDict(
        {
            "name": "refer",
            "root": os.environ.get("S2RM_REFER_MINI", ""),
            "dataset": "refcoco",
            "split_by": "mini",
            "limit_referents": 32 if variant == "memorise" else 0,
        }
    )
    config.input.image_size = (160, 160)
    config.input.expressions_per_image = 4
    config.batch_size = 8
    config.steps = 400
    config.log_every = 25
    config.checkpoint_every = 200

    set_small_network(config)
    config.optimizer.update(learning_rate=5e-4, b2=0.99, warmup_steps=50, schedule="cosine", clip_norm=1.0)
    config.eval.update(split="train" if variant else "val", every=100, batch_size=8)
    return config
