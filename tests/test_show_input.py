"""Drawing training data."""

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2rm_jax import command_line, io, show_input
from s2rm_jax.config import default_config
from s2rm_jax.evaluation import overlay
from s2rm_jax.input.encode import pack_mask
from s2rm_jax.input.example import Batch
from s2rm_jax.input.tokens import Tokenizer
from tests.command import run_function


def test_each_active_augmentation_has_a_row():
    config = default_config()
    config.input.source.update({"name": "synthetic", "seed": 0})
    config.input.image_size = (64, 64)
    config.input.augment.hide_patches = 0.0
    plain = np.asarray(show_input.draw(config, 2, 96))
    config.input.augment.update(hide_patches=0.9, patch=8)
    hidden = np.asarray(show_input.draw(config, 2, 96))
    assert hidden.shape == (2 * plain.shape[0], *plain.shape[1:])
    np.testing.assert_array_equal(hidden[: len(plain)], plain)
    assert not np.array_equal(hidden[len(plain) :], plain)


def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch):
    out = tmp_path / "input.png"
    out.write_bytes(b"earlier")

    def fail(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(show_input, "draw", lambda *_: Image.new("RGB", (8, 8)))
    monkeypatch.setattr(io, "flush_to_disk", fail)
    flags = [f"--config={Path(__file__).parents[1] / 'configs/synthetic.py'}", f"--out={out}"]
    done = run_function(lambda: command_line.run_and_exit(show_input.main, show_input.FLAGS, ""), *flags)
    reason = "cannot be written (No space left on device); give another --out, or free space"
    assert done.stderr == f"error: --out: {out} {reason}\n"
    assert out.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("split", "of_split"), [("train", ""), ("trainval", " from trainval")])
def test_the_split_is_named_if_it_is_not_train(tmp_path, monkeypatch, split, of_split):
    monkeypatch.setattr(show_input, "draw", lambda *_: Image.new("RGB", (8, 8)))
    config = tmp_path / "config.py"
    config.write_text(
        "from configs import synthetic\n\n\ndef get_config():\n    config = synthetic.get_config()\n"
        f"    config.input.train_split = {split!r}\n    return config\n"
    )
    flags = [f"--config={config}", "--number=8", f"--out={tmp_path}/a.png"]
    done = run_function(lambda: command_line.run_and_exit(show_input.main, show_input.FLAGS, ""), *flags)
    assert f"{tmp_path}/a.png shows 8 training images{of_split} (some may repeat)\n" in done.stdout, done.stderr


def test_each_row_applies_one_augmentation():
    config = default_config()
    config.input.augment.update(flip=0.2, hide_patches=0.3)
    kinds = {label: one.input.augment.to_dict() for label, one in show_input.kinds_of(config)}
    assert list(kinds) == ["as it is", "mirrored", "hidden"]
    off = config.input.augment.to_dict() | {"flip": 0.0, "hide_patches": 0.0}
    assert kinds == {"as it is": off, "mirrored": off | {"flip": 1.0}, "hidden": off | {"hide_patches": 0.3}}


def test_expressions_for_one_object_have_its_colour(monkeypatch):
    drawn, written = [], []

    def mask_layer(masks, colours, size, shade):
        drawn.append((masks, colours))
        return Image.new("RGBA", size)

    def draw_lines(canvas, lines, at, size, *colour):
        written.append((lines, *colour))
        return 0

    monkeypatch.setattr(overlay, "mask_layer", mask_layer)
    monkeypatch.setattr(overlay, "draw_lines", draw_lines)
    left, right = np.zeros((2, 8, 8), bool)
    left[:, :4] = right[:, 4:] = True
    tokenizer = Tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three"), 3)
    tokens = np.array([[[2, 4, 3], [2, 5, 3], [2, 6, 3], [0, 0, 0]]])
    valid = np.array([[True, True, True, False]])
    targets = np.stack([pack_mask(mask) for mask in (left, right, left, left)])[None]
    batch = Batch(np.zeros((1, 8, 8, 3), np.uint8), tokens, tokens > 0, targets, valid, valid)
    show_input.strip("as it is", batch, tokenizer, 64)
    ((masks, colours),) = drawn
    assert len(masks) == 2
    assert written[1:] == [(["one"], colours[0]), (["two"], colours[1]), (["three"], colours[0])]
