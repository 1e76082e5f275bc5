"""RefCOCOg (also called G-Ref): splits by UMD, or by Google after a colon (configs/refcocog.py:google), LAVT's recipe.

    export S2RM_DATA=DATA
    python -m s2rm_jax.train --config configs/refcocog.py --workdir runs/refcocog

Data: DATA/refcocog/ and COCO's train2014 images (data/README.md).
Weights: timm/swin_base_patch4_window12_384.ms_in22k and google-bert/bert-base-uncased, downloaded from Hugging Face
at the start of training, or $S2RM_SWIN and $S2RM_BERT, each a file or a folder.
Steps: 40 epochs x floor(referents / 32), counted from the files: umd 40 x 1,319 = 52,760 (42,226 referents), google 40
x 1,400 = 56,000 (44,822 referents). Google's splits share images between train and val.
Recipe: s2rm_jax/recipes.py.
`configs/refcocog.py:ours` is our own recipe, `configs/refcocog.py:one_gpu` the same for a 24 GB GPU.
`configs/refcocog.py:google,small` is a small network from scratch, to try the complete pipeline on a laptop.
Result and training time: not measured yet.
"""

from ml_collections import ConfigDict

from s2rm_jax import recipes

VARIANTS = ("umd", "google", *recipes.VARIANTS)


def get_config(argument: str = "") -> ConfigDict:
    split_by, variant = recipes.read_variant(argument, "refcocog.py", ("umd", "google"))
    return recipes.recipe({"name": "refer", "dataset": "refcocog", "split_by": split_by}, variant)
