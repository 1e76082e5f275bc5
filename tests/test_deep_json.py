"""Every reader of files reports JSON that is nested too deeply as a damaged file."""

from pathlib import Path

import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.input.custom import coco_json_source, json_lines_source
from s2rm_jax.input.refer_annotations import load_refs, read_json
from s2rm_jax.interop.weight_files import read_weights
from s2rm_jax.prediction.files import RESULT_FILE, remove_earlier_prediction
from s2rm_jax.training.run import CONFIG_FILE, load_config

DEEP = '{"a": ' * 100_000


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("refs.json", load_refs),
        ("instances.json", read_json),
        ("all.json", lambda path: coco_json_source("train", root=path.parent, file=path.name)),
        ("all.jsonl", lambda path: json_lines_source("train", root=path.parent, file=path.name)),
        ("model.safetensors.index.json", read_weights),
        (CONFIG_FILE, lambda path: load_config(path.parent)),
    ],
)
def test_each_reader_names_the_file(tmp_path: Path, name, read):
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(UserError, match=name.split(".")[0]) as caught:
        read(tmp_path / name)
    assert "recursion" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_results_of_another_program_are_not_changed(tmp_path):
    (tmp_path / RESULT_FILE).write_text(DEEP)
    remove_earlier_prediction(tmp_path)
    assert (tmp_path / RESULT_FILE).exists()
