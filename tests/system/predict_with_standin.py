"""The command predict with a stand-in for the network; with READY set, it prints "ready" when it begins."""

import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from s2rm_jax import command_line, predict
from s2rm_jax.config import default_config


class Segmenter:
    """Finds the pixels above the mean of the image."""

    config = default_config()

    def __init__(self, workdir):
        if "READY" in os.environ:
            print("ready", file=sys.__stdout__, flush=True)

    def fingerprint(self):
        return "stand-in"

    def remarks(self, expression):
        return []

    def segment(self, images, expressions, *, explain):
        return [self._one(image, texts) for image, texts in zip(images, expressions, strict=True)]

    def _one(self, image, texts):
        mask = image.mean(-1) > image.mean()
        return SimpleNamespace(
            expressions=texts,
            masks=np.stack([mask] * len(texts)),
            scores=np.full(len(texts), 0.75),
            no_target=None,
            explanations=None,
        )


if __name__ == "__main__":
    predict._segmenter, predict._compilation_cache = Segmenter, nullcontext
    sys.argv.append("--batch_size=4")
    command_line.run_and_exit(predict.main, predict.FLAGS, predict.__doc__, required=("out",))
