"""RefCOCO, RefCOCO+ and RefCOCOg together, without their evaluation images, from pretrained Swin-Base and
BERT-base, LAVT's recipe.

    export S2RM_DATA=DATA
    python -m s2rm_jax.train --config configs/combined.py --workdir runs/combined

Evaluation images of any of the three are left out of training (s2rm_jax/input/mixture.py), so that all their val and
test splits can be reported, for example by `python -m s2rm_jax.evaluate --workdir runs/combined --split refcoco:testA`.

Data: DATA/refcoco/, DATA/refcoco+/ and DATA/refcocog/ (umd), and COCO's train2014 images (data/README.md).
Weights: timm/swin_base_patch4_window12_384.ms_in22k and google-bert/bert-base-uncased, downloaded from Hugging Face
at the start of training, or $S2RM_SWIN and $S2RM_BERT, each a file or a folder.
Steps: 40 epochs x floor(referents / 32), counted from the files at the start; the log's first line has the number.
Recipe: s2rm_jax/recipes.py.
`configs/combined.py:ours` is our own recipe, `configs/combined.py:one_gpu` the same for a 24 GB GPU.
`configs/combined.py:small` is a small network from scratch, to try the complete pipeline on a laptop.
Result and training time: not measured yet.
"""

from ml_collections import ConfigDict

from s2rm_jax import recipes

VARIANTS = ("", *recipes.VARIANTS)


def get_config(argument: str = "") -> ConfigDict:
    _, variant = recipes.read_variant(argument, "combined.py")
    config = recipes.recipe({"name": "combined", "datasets": ("refcoco/unc", "refcoco+/unc", "refcocog/umd")}, variant)
    if variant != "small":
        config.eval.every = 4000
    return config
