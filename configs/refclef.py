"""ReferIt (RefCLEF): splits by Berkeley, or by UNC after a colon (configs/refclef.py:unc), LAVT's recipe.

    export S2RM_DATA=DATA
    python -m s2rm_jax.train --config configs/refclef.py --workdir runs/refclef

Data: DATA/refclef/ and the SAIAPR TC-12 images (data/README.md).
Weights: timm/swin_base_patch4_window12_384.ms_in22k and google-bert/bert-base-uncased, downloaded from Hugging Face
at the start of training, or $S2RM_SWIN and $S2RM_BERT, each a file or a folder.
Steps: 40 epochs x floor(referents / 32), counted from the files at the start; the log's first line has the number.
Recipe: s2rm_jax/recipes.py.
`configs/refclef.py:ours` is our own recipe, `configs/refclef.py:one_gpu` the same for a 24 GB GPU.
`configs/refclef.py:unc,small` is a small network from scratch, to try the complete pipeline on a laptop.
Result and training time: not measured yet.
"""

from ml_collections import ConfigDict

from s2rm_jax import recipes

VARIANTS = ("berkeley", "unc", *recipes.VARIANTS)


def get_config(argument: str = "") -> ConfigDict:
    split_by, variant = recipes.read_variant(argument, "refclef.py", ("berkeley", "unc"))
    return recipes.recipe({"name": "refer", "dataset": "refclef", "split_by": split_by}, variant)
