"""A trained network gives the same masks in PyTorch, loaded from the folder of `write_pytorch`."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file, save_file

from s2rm_jax.convert import write_workdir
from s2rm_jax.errors import UserError
from s2rm_jax.input.images import resize_image
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.interop.onnx import write_onnx
from s2rm_jax.interop.torch_folder import read_pytorch, write_pytorch
from s2rm_jax.models.network import build_network, normalize
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.training.run import load_config, load_run
from tests.interop.fresh_process import EXPRESSIONS

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
def test_logits_of_a_trained_network_agree(tiny_workdir, tmp_path, size):
    from s2rm_jax.interop.torch_model import S2RMModel

    (tmp_path / "torch").mkdir()
    write_pytorch(load_run(tiny_workdir, "best"), tiny_workdir / "config.json", tmp_path / "torch")
    model = S2RMModel.from_pretrained(tmp_path / "torch")

    config = load_config(tiny_workdir)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    images = normalize(resize_image(image, size))[None]
    tokenizer = Tokenizer(tiny_workdir / "vocab.txt", config.text.max_tokens)
    columns = zip(*map(tokenizer.encode, EXPRESSIONS), strict=True)
    tokens, mask = (np.stack(column)[None] for column in columns)

    apply = jax.jit(build_network(config).apply)
    expected = np.asarray(apply({"params": load_run(tiny_workdir).params}, images, tokens, mask).logits)
    with torch.no_grad():
        channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
        found = model(channels_first, torch.from_numpy(tokens).long(), torch.from_numpy(mask)).logits.numpy()
    assert found.shape == (1, 3, *size)
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
    assert ((found > 0) == (expected > 0)).all()


def test_a_fresh_process_gives_the_masks_of_segmenter(trained, question, tiny_workdir, tmp_path):
    folder = tmp_path / "torch"
    folder.mkdir()
    write_pytorch(trained, tiny_workdir / "config.json", folder)
    answer = question.ask(folder, tmp_path, "jax", "onnx", "onnxruntime")
    segmenter = Segmenter(trained.network, trained.params, trained.tokenizer, trained.config)
    masks = segmenter.segment(question.image, question.expressions).masks
    np.testing.assert_array_equal(answer.masks, masks)
    read_from_folder = Segmenter.from_checkpoint(folder)
    np.testing.assert_array_equal(read_from_folder.segment(question.image, question.expressions).masks, masks)
    wanted = np.asarray(jax.jit(trained.network.apply)({"params": trained.params}, **question.batch).logits)
    (found,) = answer.outputs
    assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("section", "field", "value"), [("fusion", "mode", "attention"), ("decoder", "semantics", ["stages"])]
)
def test_a_variant_for_ablations_is_refused(trained, tiny_workdir, tmp_path, section, field, value):
    config = ConfigDict(trained.config.to_dict())
    config[section][field] = tuple(value) if isinstance(value, list) else value
    with pytest.raises(UserError, match=rf"^config.{section}.{field}=.*which cannot be exported to PyTorch or ONNX"):
        write_pytorch(replace(trained, config=config), tiny_workdir / "config.json", tmp_path)
    with pytest.raises(UserError, match=rf"^config.{section}.{field}=.*exported to PyTorch or ONNX; use to-stablehlo"):
        write_onnx(replace(trained, config=config), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def exported(trained, tiny_workdir, tmp_path):
    (tmp_path / "torch").mkdir()
    write_pytorch(trained, tiny_workdir / "config.json", tmp_path / "torch")
    return tmp_path / "torch"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "_fsdp_wrapped_module."])
def test_the_prefix_of_a_wrapper_of_pytorch_is_removed(trained, exported, caplog, prefix):
    weights = load_file(exported / "model.safetensors")
    counter = {"n_averaged": np.array(3)} if prefix == "module." else {}  # as AveragedModel saves them
    save_file({prefix + name: array for name, array in weights.items()} | counter, exported / "model.safetensors")
    file = exported / "model.safetensors"
    jax.tree.map(np.testing.assert_array_equal, read_pytorch(file, trained.params), trained.params)
    assert f"model.safetensors: removed '{prefix}', with which all names begin" in caplog.text
    some = {prefix * (name < "text") + name: array for name, array in weights.items()}
    save_file(some, exported / "model.safetensors")
    with pytest.raises(UserError, match="does not fit this network"):
        read_pytorch(file, trained.params)


@pytest.mark.parametrize("window", [6, None])
def test_a_window_that_is_not_that_of_the_weights(exported, tmp_path, window):
    """Unlike pretrained weights, those of a trained network are not resized, even if its config.json was edited."""
    content = json.loads((exported / "config.json").read_text())
    content["vision"] = {name: value for name, value in content["vision"].items() if name != "window_size"}
    content["vision"] |= {"window_size": window} if window else {}  # the default is 12
    (exported / "config.json").write_text(json.dumps(content))
    message = r"another window than config\.vision\.window_size=%d: restore the config\.json of these weights$"
    for load in (load_run, lambda folder: write_workdir(folder, tmp_path)):
        with pytest.raises(UserError, match=message % (window or 12)):
            load(exported)


@pytest.mark.parametrize("part", ["vision", "text", "fusion", "decoder"])
def test_a_field_of_the_network_that_is_not_known(exported, part):
    content = json.loads((exported / "config.json").read_text())
    content[part]["newer"] = 3
    content["optimizer"]["newer"] = 3  # which does not change the network
    (exported / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=rf"json: config\.{part}\.newer: there is no such field in this version of s2rm"
    ):
        load_run(exported)
    del content[part]["newer"]
    (exported / "config.json").write_text(json.dumps(content))
    load_run(exported)


def test_weights_in_another_file_are_to_be_converted(exported):
    torch.save({}, exported / "pytorch_model.bin")
    (exported / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"torch has its weights in pytorch_model\.bin: convert it first \(.* from-pytorch"
    ):
        load_run(exported)


def test_two_files_of_weights_may_differ(exported, tmp_path):
    (tmp_path / "back").mkdir()
    torch.save({}, exported / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"torch has model\.safetensors and pytorch_model\.bin, which may differ"):
        write_workdir(exported, tmp_path / "back")


def test_the_python_of_the_page_on_weights_runs_as_written(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported.rename("mine_torch")
    Path("mine_onnx").symlink_to("mine_torch")  # segment.py is the same in every export
    Image.new("RGB", (40, 30)).save("street.jpg")
    names = {
        "images": torch.zeros(1, 3, 32, 32),
        "tokens": torch.ones(1, 2, 16, dtype=torch.int64),
        "token_mask": torch.ones(1, 2, 16, dtype=torch.bool),
    }
    page = (Path(__file__).parents[2] / "docs/weights.md").read_text(encoding="utf-8")
    shapes = []
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [*sys.path])
            exec(code, names)
        shapes.append(tuple(names["masks"].shape))
    for module in ("torch_model", "segment"):
        del sys.modules[module]
    assert shapes == [(1, 2, 32, 32), (1, 30, 40)]


def test_neither_direction_needs_torch(trained, tiny_workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # any import of it fails
    for name in ("torch", "back"):
        (tmp_path / name).mkdir()
    write_pytorch(trained, tiny_workdir / "config.json", tmp_path / "torch")
    write_workdir(tmp_path / "torch", tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path / "back").params, load_run(tiny_workdir).params)
