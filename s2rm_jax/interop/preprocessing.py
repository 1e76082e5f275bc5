"""Everything around an exported network that must be known to use it: written beside it, so that nobody guesses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import s2rm_jax
from s2rm_jax.input.compact import IMAGENET_MEAN, IMAGENET_STD
from s2rm_jax.interop import segment_standalone
from s2rm_jax.training.run_config import VOCAB_FILE
from s2rm_jax.training.trained import Trained

Format = Literal["pytorch", "stablehlo", "onnx"]

SETTINGS_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"
SCRIPT_FILE = "segment.py"


def write_preprocessing(trained: Trained, format: Format, folder: Path) -> None:
    """Writes preprocessing.json, tokenizer.json, vocab.txt and segment.py, which uses them, into `folder`.

    segment.py gives the masks of `Segmenter` and needs nothing of this package.

    Raises:
        OSError: the folder cannot be written to.
    """
    content = {
        "format": format,
        "written_by": f"s2rm_jax {s2rm_jax.__version__}",
        **settings(trained, channels_first=format == "pytorch"),
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    trained.tokenizer.save_engine(folder / TOKENIZER_FILE)
    trained.tokenizer.save(folder / VOCAB_FILE)
    shutil.copyfile(segment_standalone.__file__, folder / SCRIPT_FILE)


def settings(trained: Trained, channels_first: bool = False) -> dict[str, Any]:
    """Returns what happens to pictures, sentences and logits, in the order in which it happens."""
    tokenizer, text = trained.tokenizer, trained.config.text
    height, width = trained.config.input.image_size
    images = f"float32 [b, 3, {height}, {width}]" if channels_first else f"float32 [b, {height}, {width}, 3]"
    nothing = ["no_target_logits float32 [b, k]"] if trained.config.decoder.get("no_target_width", 0) else []
    return {
        "image": {
            "orientation": "upright, as EXIF says",
            "transparent_on": "white",
            "channels": "RGB",
            "size": [height, width],
            "resize": {"method": "bilinear", "antialias": True, "keep_proportions": False, "rounded_to": "uint8"},
            "scale": "divide by 255, subtract mean, divide by std",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
        "text": {
            "tokenizer": TOKENIZER_FILE,
            "vocabulary": VOCAB_FILE,
            "kind": "BERT WordPiece",
            "lower_case": True,
            "strip_accents": True,
            "max_tokens": text.max_tokens,
            "truncate": "the last word pieces, never [SEP]",
            "pad_id": tokenizer.vocabulary.index("[PAD]"),
            "unknown_id": tokenizer.vocabulary.index("[UNK]"),
            "start_id": tokenizer.vocabulary.index("[CLS]"),
            "end_id": tokenizer.vocabulary.index("[SEP]"),
        },
        "functions": {
            "encode_image": {"images": images, "returns": "features, one map per stage"},
            "ground": {
                "features": "as encode_image returns them",
                "tokens": f"int32 [b, k, {text.max_tokens}]",
                "token_mask": f"bool [b, k, {text.max_tokens}], false where padding is",
                "returns": [f"logits float32 [b, k, {height}, {width}]", *nothing],
            },
        },
        "mask": {
            "resize_logits": {"method": "bilinear", "antialias": True, "to": "size of the picture"},
            "true_where": "logits > 0 and no_target_logits <= 0" if nothing else "logits > 0",
        },
    }
