import json
import re
import shutil
from functools import reduce
from operator import getitem

import pytest
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from tokenizers import BertWordPieceTokenizer

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.calibration import UNCALIBRATED, Calibration
from s2rm_jax.training.checkpoint import Checkpoints
from s2rm_jax.training.run import (
    load_config,
    open_workdir,
    require_same_config,
    resolve_config,
    save_calibration,
    save_config,
)
from tests.command import ROOT


def changed(config: ConfigDict, **changes) -> ConfigDict:
    copy = ConfigDict(config.to_dict())
    for name, value in changes.items():
        *sections, field = name.split("__")
        reduce(getitem, sections, copy)[field] = value
    return copy


def test_a_stored_configuration_is_read_back_equal_and_locked_with_its_tuples(tmp_path):
    config = default_config()
    config.input.source = ConfigDict({"name": "synthetic", "size": (96, 96)})
    config.optimizer.multipliers = (("^vision", 0.1), ("^text", 0.5))
    save_config(tmp_path, config)
    loaded = load_config(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert isinstance(loaded.optimizer.multipliers[0], tuple)
    with pytest.raises(AttributeError):
        loaded.stepps = 3


def test_the_vocabulary_of_the_run_is_used_where_there_is_one(tmp_path):
    config = default_config()
    config.text.vocab = "/elsewhere/vocab.txt"
    save_config(tmp_path, config)
    assert load_config(tmp_path).text.vocab == "/elsewhere/vocab.txt"
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    assert load_config(str(tmp_path)).text.vocab == str(tmp_path / "vocab.txt")


def test_a_run_may_change_its_length_and_cadence_only(tmp_path):
    config = default_config()
    save_config(tmp_path, config)
    require_same_config(tmp_path, load_config(tmp_path), config)
    require_same_config(
        tmp_path,
        load_config(tmp_path),
        changed(config, steps=7, log_every=1, checkpoint_every=3, eval__every=9, input__workers=2),
    )
    with pytest.raises(UserError) as caught:
        require_same_config(tmp_path, load_config(tmp_path), changed(config, seed=5, steps=7, optimizer__clip_norm=1.0))
    message = str(caught.value)
    assert "optimizer.clip_norm (was 0.0, now 1.0), seed (was 0, now 5)" in message
    assert "Give another --workdir" in message and "steps" not in message and "\n" not in message


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    return (*value, 1) if isinstance(value, tuple) else value + 1


def test_the_fields_that_the_documentation_lists_may_change_and_no_others(tmp_path):
    page = (ROOT / "docs/determinism.md").read_text()
    listed = set(re.findall(r"`([\w.]+)`", page.split("## What may change when a run resumes\n")[1]))
    began = default_config()
    fields = flatten_dict(began.to_dict(), sep=".")
    assert len(listed) > 10 and listed < fields.keys()
    refused = set()
    for name, value in fields.items():
        try:
            require_same_config(tmp_path, began, changed(began, **{name.replace(".", "__"): another(value)}))
        except UserError as error:
            assert f": {name} (was " in str(error)
            refused.add(name)
    assert refused == fields.keys() - listed


def test_a_run_from_before_a_field_was_there_has_its_default(tmp_path):
    config = default_config()
    save_config(tmp_path, config)
    old = config.to_dict()
    del old["input"]["sampling"], old["input"]["augment"], old["decoder"]["no_target_width"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert load_config(tmp_path).to_dict() == config.to_dict()
    require_same_config(tmp_path, load_config(tmp_path), config)
    with pytest.raises(UserError, match=r"input.sampling \(was 'image', now 'referent'\)"):
        require_same_config(tmp_path, load_config(tmp_path), changed(config, input__sampling="referent"))


def test_fields_that_came_or_went_are_differences(tmp_path):
    config = default_config()
    config.input.source = ConfigDict({"name": "synthetic", "difficulty": "hard"})
    save_config(tmp_path, config)
    with pytest.raises(UserError, match=r"input.source.difficulty \(was 'hard', now None\)"):
        require_same_config(
            tmp_path, load_config(tmp_path), changed(config, input__source=ConfigDict({"name": "synthetic"}))
        )


def test_the_data_of_a_mixture_may_move_but_not_change(tmp_path):
    def mixture(root, weight=1.0):
        parts = {"photos": {"name": "refer", "root": root, "weight": weight}}
        return changed(default_config(), input__source=ConfigDict({"name": "mixture", "parts": parts}))

    save_config(tmp_path, mixture("here"))
    require_same_config(tmp_path, load_config(tmp_path), mixture("there"))
    with pytest.raises(UserError, match=r"input.source.parts.photos.weight \(was 1.0, now 2.0\)"):
        require_same_config(tmp_path, load_config(tmp_path), mixture("here", weight=2.0))


def test_the_folder_of_parquet_files_may_move_but_the_dataset_may_not_change(tmp_path):
    def stored_in(path):
        return changed(default_config(), input__source=ConfigDict({"name": "hf", "path": str(path)}))

    (tmp_path / "RefCOCO").mkdir()
    (tmp_path / "RefCOCOg").mkdir()
    save_config(tmp_path, stored_in("lmms-lab/RefCOCO"))
    require_same_config(tmp_path, load_config(tmp_path), stored_in(tmp_path / "RefCOCO"))
    for other in ("lmms-lab/RefCOCOg", tmp_path / "RefCOCOg", "/nowhere/RefCOCO", ""):
        with pytest.raises(UserError, match=rf"input.source.path \(was 'lmms-lab/RefCOCO', now '{other}'\)"):
            require_same_config(tmp_path, load_config(tmp_path), stored_in(other))


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"^folder {tmp_path}/nowhere not found; check the path$"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json not found; give the workdir of a run, or a folder that"):
        load_config(tmp_path)
    (tmp_path / "encode_image.onnx").touch()
    with pytest.raises(UserError, match=rf"^{tmp_path} is an export; give the workdir of its run, or use segment\.py"):
        load_config(tmp_path)


@pytest.mark.parametrize("given", ["image.png", "image.png/run"])
def test_a_file_is_not_a_workdir(tmp_path, given):
    (tmp_path / "image.png").touch()
    with pytest.raises(UserError, match=rf"^{tmp_path}/image\.png is a file; give the folder of a training run$"):
        load_config(tmp_path / given)


@pytest.mark.parametrize("content", ["{", "\xff\xfe", ""])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        load_config(tmp_path)


def test_the_file_is_plain_json(tmp_path):
    save_config(tmp_path, default_config())
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["learning_rate"] == 5e-5
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("content", ['{"architectures": ["BertModel"]}', "[1, 2]", '{"text": 3}'])
def test_another_programs_config_is_not_taken_for_a_run(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"not the workdir of a run$"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("steps", "many", "an integer"),
        ("steps", True, "an integer"),
        ("batch_size", 4.0, "an integer"),
        ("tensorboard", 1, "true or false"),
        ("optimizer.learning_rate", "5e-5", "a number"),
        ("input.image_size", 480, "a list"),
        ("vision.depths", [2, "2"], "a list"),
        ("fusion.mode", 3, "a string"),
        ("input.source.name", ["refer"], "a string"),
        ("input.augment", 0.5, "a section"),
        ("input.workers", {"number": 2}, "an integer"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, field, value, expected):
    content = default_config().to_dict()
    *sections, name = field.split(".")
    section = content
    for part in sections:
        section = section[part]
    section[name] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"config.json: config.{field} is .*; it must be {expected}") as told:
        load_config(tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("section", "field", "value", "expected"),
    [
        ("input", "image_size", [100, -1], r"\(height, width\) in pixels, each at least 8"),
        ("input", "image_size", [100], r"\(height, width\) in pixels, each at least 8"),
        ("vision", "depths", [], "two or more stages"),
        ("text", "max_tokens", 0, "from 3 to"),
        ("fusion", "rotations", [45], "one or more of: 0, 90"),
        ("eval", "batch_size", 0, "at least 1"),
    ],
)
def test_a_value_that_a_field_must_not_have_is_named(tmp_path, section, field, value, expected):
    content = default_config().to_dict()
    content[section][field] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"config.json: config.{section}.{field} is .*; it must be {expected}.*\."):
        load_config(tmp_path)


def test_values_that_earlier_versions_took_are_read(tmp_path):
    content = default_config().to_dict() | {"seed": -1, "of_another_version": 3}
    content["optimizer"]["clip_norm"] = -1.0
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_config(tmp_path).optimizer.clip_norm == -1.0


def test_fields_that_ml_collections_allows_are_read(tmp_path):
    content = default_config().to_dict() | {"epochs": 5, "wandb_project": None}
    content["input"]["source"] = {"name": "refer", "root": 3, "parts": {"name": {}}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_config(tmp_path).input.source.root == 3


def vocabulary(path, *words):
    path.write_text("".join(f"{word}\n" for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *words)))
    return str(path)


def test_a_run_continues_with_its_own_vocabulary_or_one_of_equal_content(tmp_path):
    began = changed(default_config(), text__vocab=vocabulary(tmp_path / "vocab.txt", "red", "dog"))
    same = changed(began, text__vocab=vocabulary(tmp_path / "same.txt", "red", "dog"))
    assert resolve_config(same, began).text.vocab == began.text.vocab
    for words in (("dog", "red"), ("red", "cat"), ("red", "dog", "cat")):
        other = changed(began, text__vocab=vocabulary(tmp_path / "other.txt", *words))
        with pytest.raises(
            UserError,
            match=r"^config.text.vocab: .*other.txt differs in words or their order from .*vocab.txt, .* leave",
        ):
            resolve_config(other, began)
    with pytest.raises(UserError, match=r"vocabulary .*nowhere.txt not found"):
        resolve_config(changed(began, text__vocab=str(tmp_path / "nowhere.txt")), began)


def test_a_cased_vocabulary_is_compared_as_one(tmp_path):
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "The")
    tokenizer = BertWordPieceTokenizer({word: index for index, word in enumerate(words)}, lowercase=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    given = changed(default_config(), text__vocab=str(tmp_path / "tokenizer.json"), text__lower_case=False)
    began = changed(given, text__vocab=vocabulary(tmp_path / "vocab.txt", "The"))
    assert resolve_config(given, began).text.vocab == began.text.vocab


def test_a_run_keeps_the_weights_that_it_began_with_and_says_which_are_ignored(capsys):
    began = changed(default_config(), vision__pretrained="swin.pth", text__vocab="run/vocab.txt")
    for given in (began, changed(began, vision__pretrained="", text__vocab="")):
        assert resolve_config(given, began).to_dict() == began.to_dict()
    assert capsys.readouterr().out == ""
    other = changed(began, vision__pretrained="other.pth", text__pretrained="bert")
    assert resolve_config(other, began).to_dict() == began.to_dict()
    vision, text = capsys.readouterr().out.splitlines()
    assert vision.startswith("ignored: config.vision.pretrained=other.pth, because the run continues")
    assert text.startswith("ignored: config.text.pretrained=bert, because the run continues")


def test_a_calibration_is_kept_until_the_run_is_trained_further(tiny_workdir, tmp_path, capsys):
    workdir = shutil.copytree(tiny_workdir, tmp_path / "run")
    calibration = Calibration(2.0, -1.0)
    save_calibration(workdir, calibration)
    given = load_config(tiny_workdir)
    for steps, kept in ((given.steps, calibration), (given.steps + 1, UNCALIBRATED)):
        began = load_config(workdir)
        assert Calibration.of(began) == calibration
        config = resolve_config(changed(given, steps=steps, text__vocab=began.text.vocab), began)
        with open_workdir(epath.Path(workdir), config, began, lambda path: None):
            pass
        assert Calibration.of(load_config(workdir)) == kept
        assert ("scores are no longer calibrated" in capsys.readouterr().out) is (kept == UNCALIBRATED)


def test_a_run_cannot_be_shorter_than_it_is(tiny_workdir, tmp_path, monkeypatch):
    workdir = shutil.copytree(tiny_workdir, tmp_path / "run")
    before = (workdir / "config.json").read_bytes()
    began = load_config(workdir)
    config = changed(began, steps=began.steps - 1)
    closed, close = [], Checkpoints.__exit__
    monkeypatch.setattr(Checkpoints, "__exit__", lambda self, *error: closed.append(self) or close(self, *error))
    message = rf"config\.steps is {config.steps}, but the run in .*run has taken {began.steps} steps: give at least"
    with (
        pytest.raises(UserError, match=message),
        open_workdir(epath.Path(workdir), config, began, lambda path: None),
    ):
        pass
    assert (workdir / "config.json").read_bytes() == before
    assert len(closed) == 1, "the threads of Orbax end"


def test_a_field_of_the_source_that_was_left_out_had_the_default_of_its_reader(tmp_path):
    def of_refer(**fields):
        config = default_config()
        config.input.source = ConfigDict({"name": "refer", "dataset": "refcoco", "split_by": "unc", **fields})
        return config

    save_config(tmp_path, of_refer())
    require_same_config(tmp_path, load_config(tmp_path), of_refer(overlap="union", sentence_field="raw"))
    with pytest.raises(UserError, match=r"input\.source\.overlap \(was 'union', now 'drop'\)"):
        require_same_config(tmp_path, load_config(tmp_path), of_refer(overlap="drop"))
