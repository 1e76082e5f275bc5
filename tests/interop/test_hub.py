"""Weights by path or by name on the Hub; the offline error names the files to download."""

import contextlib

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from huggingface_hub.utils import logging

from s2rm_jax.errors import UserError
from s2rm_jax.hub import accessing_hub
from s2rm_jax.interop.pretrained import locate


def test_paths(tmp_path):
    (tmp_path / "bert").mkdir()
    weights = tmp_path / "bert" / "model.safetensors"
    weights.touch()
    assert locate(str(weights), "text.pretrained") == locate(str(tmp_path / "bert"), "text.pretrained") == weights


@pytest.mark.parametrize("path", ["nowhere/swin.pth", "swin_base.pth", "./weights", "/data/bert", "../bert", "~/bert"])
def test_a_missing_path_is_not_searched_on_the_hub(path):
    with pytest.raises(UserError, match=r"^config\.vision\.pretrained: weights .* not found; check the path$"):
        locate(path, "vision.pretrained")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A fake Hub with {file: content}; None means no network."""
    files = {}

    def download(name, file, revision=None):
        name = f"{name}-{revision}" if revision else name
        if files.get(file, "") is None:
            raise LocalEntryNotFoundError("cannot find the requested files\nin the local cache")
        if file not in files:
            raise RemoteEntryNotFoundError("404", response=Response())
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(files[file])
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return files


class Response:
    """A response for errors of the Hub."""

    headers: dict = {}  # noqa: RUF012
    request = None


def test_names_of_the_hub(hub, tmp_path):
    hub.update({"pytorch_model.bin": "old", "vocab.txt": "words", "config.json": "{}", "tokenizer_config.json": None})
    assert locate("google-bert/bert-base-uncased", "text.pretrained").read_text() == "old"
    hub["model.safetensors"] = "new"
    weights = locate("bert-base-uncased", "text.pretrained")
    assert weights.read_text() == "new"
    assert {path.name for path in weights.parent.iterdir()} == {"model.safetensors", "vocab.txt", "config.json"}
    for name in ("anna/bert@v1", "hf://anna/bert@v1"):
        assert locate(name, "text.pretrained").parent == tmp_path / "anna/bert-v1"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"model.safetensors": None}, ": cannot find the requested files in the local cache; otherwise "),
        ({}, " (it has neither model.safetensors nor pytorch_model.bin): "),
    ],
)
def test_the_offline_error_names_the_files_and_the_folder(hub, files, reason):
    hub.update(files)
    with pytest.raises(UserError) as caught:
        locate("google-bert/bert-base-uncased", "text.pretrained")
    assert str(caught.value) == (
        f"config.text.pretrained=google-bert/bert-base-uncased is not a path and cannot be downloaded from the Hugging "
        f"Face Hub{reason}put model.safetensors or pytorch_model.bin, config.json and, for text, "
        "tokenizer_config.json and vocab.txt or tokenizer.json from "
        "https://huggingface.co/google-bert/bert-base-uncased/tree/main into a folder and set "
        "config.text.pretrained=FOLDER"
    )


@pytest.mark.parametrize("error", [None, RuntimeError("no")])
def test_the_logging_of_the_hub_is_as_before(error):
    before = logging.get_verbosity()
    with contextlib.suppress(UserError), accessing_hub("it cannot be downloaded"):
        assert logging.get_verbosity() == logging.ERROR
        if error:
            raise error
    assert logging.get_verbosity() == before != logging.ERROR
