"""RefCOCO, RefCOCO+ and G-Ref together, without a leak, from pretrained Swin-Base and BERT-base, LAVT's recipe.

    export S2RM_DATA=DATA
    python -m s2rm_jax.train --config configs/combined.py --workdir runs/combined

An image that any of the three evaluates on is left out of the training (s2rm_jax/input/mixture.py), so that all their
val and test splits can be reported: `python -m s2rm_jax.evaluate --workdir runs/combined --split refcoco:testA`, and so
on.

Data: DATA/refcoco/, DATA/refcoco+/ and DATA/refcocog/ (umd), and COCO's train2014 images (data/README.md).
Weights: microsoft/swin-base-patch4-window12-384-in22k and google-bert/bert-base-uncased, fetched from the Hugging Face
Hub when training begins, or $S2RM_SWIN and $S2RM_BERT, each a file or a folder.
Steps: 40 epochs x floor(referents / 32), counted from the files when training begins; the log's first line says them.
The recipe, and what of it is LAVT's: s2rm_jax/recipes.py.
`configs/combined.py:small` is a small network from scratch, for a look at the whole way on a laptop.
Result and time: not measured here.
"""

from ml_collections import ConfigDict

from s2rm_jax.recipes import lavt_recipe, read_variant

VARIANTS = ("", "small")


def get_config(argument: str = "") -> ConfigDict:
    _, small = read_variant(argument, "combined.py")
    config = lavt_recipe({"name": "combined", "datasets": ("refcoco/unc", "refcoco+/unc", "refcocog/umd")}, small)
    if not small:
        config.eval.every = 4000
    return config
