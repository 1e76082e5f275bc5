"""What the files of configs/ share: the training recipe of the REFER benchmarks, and small networks.

The recipe is that of the LAVT family (LAVT and, with changes, CARIS, DMMI and CGFormer), so that a difference in the
result is a difference of the network: 480 x 480 pixels without augmentation, Swin-Base with windows of 12 pretrained on
ImageNet-22k at 384 pixels, BERT-base, 20 tokens, one random expression per referent, 40 epochs of batches of 32, AdamW
at 5e-5 for everything with weight decay 0.01, polynomial decay of power 0.9 without warm-up, two-class cross-entropy
weighted 0.9 / 1.1, drop path 0.3 (yz93/LAVT-RIS args.py, train.py, lib/segmentation.py).

docs/training.md lists the differences from LAVT's code.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError

# Names on the Hugging Face Hub; the vocabulary is BERT's own. timm's copy of Microsoft's weights has safetensors, which
# need no PyTorch; Microsoft's own repository has none.
SWIN = "hf://timm/swin_base_patch4_window12_384.ms_in22k"
BERT = "hf://google-bert/bert-base-uncased"
EPOCHS = 40


VARIANTS = ("small", "ours", "one_gpu")


def recipe(source: dict[str, object], variant: str = "") -> ConfigDict:
    """Return the recipe for a source in the REFER layout.

    Paths come from environment variables; flags take precedence:
        S2RM_DATA     the root of the layout                        --config.input.source.root
        S2RM_IMAGES   the folder of COCO's images, if elsewhere     --config.input.source.image_root
        S2RM_SWIN     weights of Swin: a path or a Hub name         --config.vision.pretrained
        S2RM_BERT     weights of BERT: a path or a Hub name         --config.text.pretrained

    The source also has sentence_field ("raw" or "sent") and overlap ("union" or "drop"), see ReferSource.

    Args:
        source: the name and the arguments of the source, without the root.
        variant: one of
            ""       the recipe of the LAVT family, above
            ours     [ours], compared with LAVT's on generated scenes (docs/results/ablations.md) and a few photographs
                     (docs/results/refer_mini.md), not on RefCOCO: 16 images with 4 expressions each per step, so that
                     each encoded image is used for four expressions; cross-entropy and Dice, also on the coarser masks;
                     mirrored and masked inputs; smaller learning rates for the early layers of pretrained parts;
                     averaged parameters; bfloat16
            one_gpu  `ours` for a 24 GB GPU: each step in 4 parts, with recomputation
            small    a small network, trained from scratch for 400 steps, to try the complete path from the files to the
                     evaluation on a laptop. Its vocabulary is $S2RM_BERT_VOCAB or --config.text.vocab.
    """
    config = default_config()
    defaults = {"root": os.environ.get("S2RM_DATA", ""), "sentence_field": "raw", "overlap": "union"}
    image_root = os.environ.get("S2RM_IMAGES")
    if image_root and source.get("dataset") != "refclef":  # which has images of its own
        defaults["image_root"] = image_root
    config.input.source = ConfigDict(defaults | source)
    config.input.image_size = (480, 480)
    config.input.sampling = "referent"
    config.input.expressions_per_image = 1  # so that a batch of 32 images has 32 referents, as in LAVT
    config.input.workers = 4
    config.steps = 0  # computed from the epochs
    config.epochs = EPOCHS
    config.batch_size = 32
    config.log_every = 50
    config.checkpoint_every = 1000

    config.vision.pretrained = os.environ.get("S2RM_SWIN") or SWIN
    config.text.pretrained = os.environ.get("S2RM_BERT") or BERT
    config.loss.kind = "weighted_ce"
    config.optimizer.update(learning_rate=5e-5, weight_decay=0.01, schedule="polynomial", power=0.9, warmup_steps=0)
    config.eval.update(split="val", every=1325, batch_size=8, expressions_per_image=8, metric="overall_iou")
    if variant == "small":
        return _shrunk(config)
    return _ours(config, one_gpu=variant == "one_gpu") if variant else config


def read_variant(argument: str, config_file: str, choices: Sequence[str] = ()) -> tuple[str, str]:
    """Parse the argument of a configuration: one of `choices` (by default the first), one of VARIANTS, or both.

    Returns:
        The choice and the variant, both possibly empty.

    Raises:
        UserError: unknown argument; names the valid ones.
    """
    words = [word for word in argument.split(",") if word]
    variants = [word for word in words if word in VARIANTS]
    chosen = [word for word in words if word not in VARIANTS]
    if len(chosen) > 1 or len(variants) > 1 or not set(chosen) <= set(choices):
        available = ", ".join(repr(choice) for choice in (*choices, *VARIANTS))
        raise UserError(f"configs/{config_file} has no variant {argument!r}; available: {available}")
    return (chosen or [*choices, ""])[0], (variants or [""])[0]


def _ours(config: ConfigDict, one_gpu: bool) -> ConfigDict:
    config.epochs = 60
    config.batch_size = 16
    config.dtype = "bfloat16"
    config.input.sampling = "image"
    config.input.expressions_per_image = 4
    config.input.augment.update(flip=0.5, hide_patches=0.2, hide_words=0.1)
    config.loss.update(kind="bce_dice", coarse_weight=0.3)
    config.optimizer.update(learning_rate=1e-4, schedule="cosine", warmup_steps=500, clip_norm=1.0, ema_decay=0.999)
    config.optimizer.multipliers = _LAYER_RATES
    if one_gpu:
        config.optimizer.accumulate = 4
        config.remat = "dense"
    return config


# Factors on the learning rate: the earlier a pretrained layer, the smaller. (pattern, factor); the first match applies.
# The patterns are anchored, because fusion and decoder, which begin untrained, have "vision" in names too.
_LAYER_RATES = (
    ("^vision/(patch_|stage1)", 0.1),
    ("^vision/stage2", 0.2),
    ("^vision/", 0.5),
    (r"^text/(\w*embeddings|layer[0-3]/)", 0.1),
    ("^text/layer[4-7]/", 0.2),
    ("^text/", 0.5),
)


def _shrunk(config: ConfigDict) -> ConfigDict:
    config.steps = 400
    config.epochs = 0
    config.batch_size = 8
    config.input.image_size = (160, 160)
    config.input.workers = 0
    config.log_every = 25
    config.checkpoint_every = 200
    config.eval.update(every=200, limit=100)
    config.vision.pretrained = config.text.pretrained = ""
    config.loss.kind = "bce_dice"  # learns to find the referent faster from scratch
    config.optimizer.update(learning_rate=5e-4, warmup_steps=50)
    set_small_network(config)
    return config


def set_small_network(config: ConfigDict) -> None:
    """Set a small network with four stages and the vocabulary at $S2RM_BERT_VOCAB, to train on photographs."""
    config.vision.update(embed_dim=48, depths=(2, 2, 2, 2), num_heads=(3, 6, 12, 24), window_size=5, drop_path_rate=0.0)
    config.text.vocab = os.environ.get("S2RM_BERT_VOCAB", "")
    config.text.update(hidden_size=128, num_layers=2, num_heads=4, intermediate_size=256, dropout_rate=0.0)
    config.fusion.update(width=128, recurrent_width=64, num_heads=4)
    config.decoder.widths = (48, 64, 96, 128)
    config.loss.coarse_weight = 0.2


def set_tiny_network(config: ConfigDict) -> None:
    """Set a smaller network with three stages, and its optimizer, to train on generated scenes."""
    config.vision.update(embed_dim=48, depths=(2, 2, 2), num_heads=(3, 6, 12), window_size=6, drop_path_rate=0.0)
    config.text.update(
        vocab_size=64, hidden_size=128, num_layers=2, num_heads=4, intermediate_size=256, max_positions=32
    )
    config.text.dropout_rate = 0.0
    config.fusion.update(width=128, recurrent_width=64, num_heads=4)
    config.decoder.widths = (32, 64, 128)
    config.loss.coarse_weight = 0.3
    config.optimizer.update(
        learning_rate=6e-4, b2=0.99, warmup_steps=60, schedule="cosine", clip_norm=1.0, ema_decay=0.995
    )
