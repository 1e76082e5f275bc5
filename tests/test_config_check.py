"""Invalid configurations are refused before anything is computed."""

import pytest
from ml_collections import ConfigDict

from s2rm_jax.config import check_config, default_config
from s2rm_jax.errors import UserError


def test_the_defaults_are_valid():
    check_config(default_config())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "float16", "one of: float32, bfloat16"),
        ("remat", "all", "one of: none, dense, blocks"),
        ("fusion.language", "letters", "one of: words, sentence"),
        ("decoder.semantics", ("words",), "one or more of: sentence, stages"),
        ("fusion.mode", "convolution", "one of: s2rm, sum, product, concat, attention"),
        ("fusion.recurrence", "lstm", "one of: gated, linear, none"),
        ("fusion.rotations", (), "one or more of: 0, 90, 180, 270"),
        ("fusion.rotations", (45,), "one or more of: 0, 90, 180, 270"),
        ("fusion.rotations", (0, 0), "one or more of: 0, 90, 180, 270"),
        ("fusion.pairs", ("vision",), "language_parses_vision"),
        ("fusion.balance", "max", "one of: position, channel, mean"),
        ("fusion.num_heads", 3, "divide 512 channels evenly; 3 does not"),
        ("decoder.guidance", "half", "one of: full, maps, none"),
        ("decoder.widths", (8, 8, 8), "4 numbers, one per stage"),
        ("vision.num_heads", (4, 8, 16), "4 numbers, one per stage"),
        ("vision.depths", (2,), "1 number, one per stage"),
        ("vision.num_heads", (5, 8, 16, 32), "divide 128 channels evenly; 5 does not"),
        ("vision.depths", (2,), "two or more stages"),
        ("text.num_heads", 5, "divide 768 channels evenly; 5 does not"),
        ("text.max_tokens", 600, "from 3 to config.text.max_positions=512"),
        ("text.max_tokens", 2, "from 3 to"),
        ("input.image_size", 96, "a list"),
        ("input.image_size", (96, "96"), r"a list such as \(480, 480\)"),
        ("input.on_bad_example", "ignore", "one of: stop, skip"),
        ("batch_size", "32", "an integer"),
        ("batch_size", True, "an integer"),
        ("steps", 1000.0, "an integer"),
        ("epochs", "ten", "a number"),
        ("tensorboard", "no", "true or false"),
        ("vision.depths", 2, "a list"),
        ("input.augment", 0.5, "a section"),
        ("input.image_size", (96,), r"\(height, width\) in pixels"),
        ("input.image_size", (96, 4), "each at least 8"),
        ("input.expressions_per_image", 0, "at least 1"),
        ("eval.batch_size", 0, "at least 1"),
        ("mesh.fsdp", 0, "at least 1"),
        ("mesh.step", "pmap", "one of: jit, shard_map"),
        ("eval.expressions_per_image", -1, "at least 0"),
        ("decoder.no_target_width", -1, "at least 0"),
        ("input.sampling", "object", "one of: image, expression, referent"),
        ("input.augment.flip", 1.5, "from 0 to 1"),
        ("input.augment.hide_words", -0.1, "from 0 to 1"),
        ("input.augment.patch", 0, "at least 1"),
        ("optimizer.schedule", "step", "one of: polynomial, cosine"),
        ("loss.kind", "focal", "one of: bce_dice, weighted_ce"),
        ("optimizer.ema_decay", 1.0, "less than 1"),
        ("optimizer.b2", 1.0, "at least 0 and less than 1"),
        ("optimizer.clip_norm", -1.0, "at least 0"),
        ("optimizer.learning_rate", float("nan"), "at least 0"),
        ("seed", -1, "at least 0"),
        ("decoder.widths", (8, 8, 8, 0), "at least 1 each"),
        ("vision.drop_path_rate", 1.0, "less than 1"),
        ("text.dropout_rate", -0.1, "at least 0"),
        ("input.workers", -1, "at least 0"),
        ("eval.every", -1, "at least 0"),
        ("eval.limit", -1, "at least 0"),
        ("loss.coarse_weight", -0.1, "at least 0"),
    ],
)
def test_a_mistake_is_named(field, value, message):
    config = default_config()
    section, _, name = field.rpartition(".")
    holder = config[section] if section else config
    with holder.ignore_type():
        holder[name] = value
    with pytest.raises(UserError, match=rf"config\.{field} is .*; (it must be|the number of heads must) .*{message}"):
        check_config(config)


def test_a_field_that_does_not_exist_is_named_with_those_that_may_be_meant():
    config = default_config().unlock()
    config.optimizer.learning_rat = 1e-3  # as a config.json can
    config.vision.batch_size = 7
    config.modle = ConfigDict({"width": 3})
    config.fusoin = ConfigDict({"width": 3})
    config.input.source = ConfigDict({"name": "synthetic", "anything": 1})  # checked by the source
    with pytest.raises(UserError) as caught:
        check_config(config)
    message = str(caught.value)
    assert (
        "config.optimizer.learning_rat: there is no such field; did you mean config.optimizer.learning_rate" in message
    )
    assert "config.vision.batch_size: there is no such field; did you mean config.batch_size or" in message
    assert "config.fusoin: there is no such field; did you mean config.fusion?" in message
    assert "config.modle: " in message and "modle.width" not in message and "anything" not in message


def test_only_the_source_takes_fields_that_have_no_default():
    config = default_config()
    with pytest.raises(AttributeError, match='Key "widht" does not exist'):
        config.fusion.widht = 3
    with pytest.raises(AttributeError, match="is locked"):
        config.fusoin = ConfigDict({"width": 3})
    config.input.source.root = "data"
    config.input.source = ConfigDict({"name": "json_lines", "root": "data"})
    config.input.source.file = "data.jsonl"


def test_all_mistakes_are_named_at_once():
    config = default_config()
    config.batch_size, config.steps, config.epochs, config.dtype = 0, 0, 0.0, "int8"
    config.vision.depths = (2, 2)
    with pytest.raises(UserError) as caught:
        check_config(config)
    for field in ("dtype", "batch_size", "steps", "vision.num_heads", "decoder.widths"):
        assert f"config.{field} " in str(caught.value)
    assert "\n" not in str(caught.value)
