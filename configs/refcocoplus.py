"""RefCOCO+ (splits by UNC; expressions without location words), from pretrained Swin-Base and BERT-base, LAVT's recipe.

    export S2RM_DATA=DATA
    python -m s2rm_jax.train --config configs/refcocoplus.py --workdir runs/refcocoplus

Data: DATA/refcoco+/ and COCO's train2014 images (data/README.md).
Weights: timm/swin_base_patch4_window12_384.ms_in22k and google-bert/bert-base-uncased, downloaded from Hugging Face
at the start of training, or $S2RM_SWIN and $S2RM_BERT, each a file or a folder.
Steps: 40 epochs x floor(42,278 referents / 32) = 40 x 1,321 = 52,840, counted from the files at the start of training.
Recipe: s2rm_jax/recipes.py.
`configs/refcocoplus.py:ours` is our own recipe, `configs/refcocoplus.py:one_gpu` the same for a 24 GB GPU.
`configs/refcocoplus.py:small` is a small network from scratch, to try the complete pipeline on a laptop.
Result and training time: not measured yet.
"""

from ml_collections import ConfigDict

from s2rm_jax import recipes

VARIANTS = ("", *recipes.VARIANTS)


def get_config(argument: str = "") -> ConfigDict:
    _, variant = recipes.read_variant(argument, "refcocoplus.py")
    return recipes.recipe({"name": "refer", "dataset": "refcoco+", "split_by": "unc"}, variant)
