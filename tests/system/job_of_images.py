"""A job with a stand-in for the network: `job_of_images.py IMAGES OUT SHARE`; it prints "ready" when it begins."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from s2rm_jax.prediction_files import Options
from s2rm_jax.prediction_job import find_share, list_items, run_job


class Segmenter:
    """Finds the pixels above the mean of the image."""

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
    images, out, share = sys.argv[1:]
    items = list_items(images, ["the bright part", "the other"])
    print("ready", flush=True)
    run_job(Segmenter(), items, find_share(share), Path(out), Options(), batch_size=4, quiet=True)
