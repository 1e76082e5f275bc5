"""gRefCOCO (splits by UNC), from pretrained Swin-Base and BERT-base, LAVT's recipe with a no-target head.

    export S2RM_DATA=DATA
    python -m s2rm_jax.train --config configs/grefcoco.py --workdir runs/grefcoco

An expression may refer to several objects, whose masks are joined, or to nothing, which a separate head predicts
(s2rm_jax/models/casg.py); its loss has the weight 0.1, as in ReLA.

Data: DATA/grefcoco/ (grefs(unc).json, instances.json) and COCO's train2014 images (data/README.md).
Weights: timm/swin_base_patch4_window12_384.ms_in22k and google-bert/bert-base-uncased, downloaded from Hugging Face
at the start of training, or $S2RM_SWIN and $S2RM_BERT, each a file or a folder.
Steps: 225,000 of 32 expressions, as many expressions as in ReLA's 150,000 steps of 48; every expression once per epoch,
as in ReLA.
Everything else is LAVT's recipe: s2rm_jax/recipes.py.
`configs/grefcoco.py:ours` is our own recipe, `configs/grefcoco.py:one_gpu` the same for a 24 GB GPU.
`configs/grefcoco.py:small` is a small network from scratch, to try the complete pipeline on a laptop.
Result and training time: not measured yet.
"""

from ml_collections import ConfigDict

from s2rm_jax import recipes

VARIANTS = ("", *recipes.VARIANTS)


def get_config(argument: str = "") -> ConfigDict:
    _, variant = recipes.read_variant(argument, "grefcoco.py")
    config = recipes.recipe({"name": "refer", "dataset": "grefcoco", "split_by": "unc"}, variant)
    if variant in ("", "small"):
        config.input.sampling = "expression"
    config.decoder.no_target_width = 64 if variant == "small" else 256
    config.loss.no_target_weight = 0.1
    config.eval.protocol = "rela_gref"
    if not variant:
        config.steps, config.epochs = 225_000, 0
        config.eval.every = 5000
    return config
