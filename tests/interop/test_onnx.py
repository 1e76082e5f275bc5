"""A network exported as ONNX gives, with ONNX Runtime alone, the masks of Segmenter; one that does not is refused."""

import dataclasses
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.interop import onnx_export
from s2rm_jax.interop.onnx_export import relative_error, write_onnx
from s2rm_jax.interop.whole_folder import whole_folder
from s2rm_jax.segmenter import Segmenter

EXPORT = """
import sys
from pathlib import Path
from s2rm_jax.interop.onnx_export import write_onnx
from s2rm_jax.training.trained import load_trained

print(write_onnx(load_trained(sys.argv[1], "latest"), Path(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def exported(tiny_workdir, tmp_path_factory):
    """The folder, and what the export said, with warnings as errors."""
    folder = tmp_path_factory.mktemp("onnx")
    command = [sys.executable, "-W", "error", "-c", EXPORT, tiny_workdir, folder]
    return folder, subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.fixture
def folder(exported):
    return exported[0]


@pytest.fixture
def ready_graphs(folder, monkeypatch):
    """Lets `write_onnx` find the graphs of `folder` instead of making them, which takes long."""
    import onnx_ir
    from torch.onnx import ONNXProgram

    files = [folder / "encode_image.onnx", folder / "ground.onnx"]
    graphs = [ONNXProgram(onnx_ir.load(file), None) for file in files]
    monkeypatch.setattr(onnx_export, "export_graphs", lambda _: graphs)


def test_a_fresh_process_gives_the_masks_of_segmenter(trained, folder, question, tmp_path):
    answer = question.ask(folder, tmp_path, "jax", "torch", "onnx", "onnxscript", "safetensors")
    segmenter = Segmenter(trained.network, trained.params, trained.tokenizer, trained.config)
    masks = segmenter.segment(question.picture, question.sentences).masks
    assert all(0.1 < mask.mean() < 0.9 for mask in masks)
    np.testing.assert_array_equal(answer.masks, masks)
    # Another number of pictures, and of sentences for each.
    wanted = jax.jit(trained.network.apply)({"params": trained.params}, **question.batch).logits
    (logits,) = answer.outputs
    assert logits.shape == (2, 5, 32, 32)
    assert np.linalg.norm(logits - wanted) <= 1e-5 * np.linalg.norm(wanted)


def test_the_export_says_nothing_but_how_near_it_came(exported):
    _, done = exported
    assert done.stderr == ""
    assert 0 < float(done.stdout) <= 1e-5


def test_the_graphs_name_what_goes_in_and_out(folder):
    import onnxruntime

    def sides(items):
        return {item.name: [item.type, *item.shape] for item in items}

    encode_image = onnxruntime.InferenceSession(folder / "encode_image.onnx")
    ground = onnxruntime.InferenceSession(folder / "ground.onnx")
    features = sides(encode_image.get_outputs())
    assert sides(encode_image.get_inputs()) == {"images": ["tensor(float)", "b", 32, 32, 3]}
    assert list(features) == ["features_1", "features_2", "features_3", "features_4"]
    assert features["features_4"] == ["tensor(float)", "b", 1, 1, 64]
    words = {"tokens": ["tensor(int32)", "b", "k", 16], "token_mask": ["tensor(bool)", "b", "k", 16]}
    assert sides(ground.get_inputs()) == features | words
    assert sides(ground.get_outputs()) == {"logits": ["tensor(float)", "b", "k", 32, 32]}


def test_another_network_is_told_apart(trained, folder):
    other = dataclasses.replace(trained, params=jax.tree.map(lambda x: 1.001 * x, trained.params))
    assert relative_error(other, folder) > onnx_export.TOLERANCE


@pytest.mark.parametrize("error", [1.1e-4, float("nan")])
@pytest.mark.usefixtures("ready_graphs")
def test_what_differs_is_not_put_in_place(trained, tmp_path, monkeypatch, error):
    monkeypatch.setattr(onnx_export, "relative_error", lambda *_: error)
    with (
        pytest.raises(UserError, match=rf"differ from JAX's by {error:.1e} of their norm, more than 1e-04"),
        whole_folder(tmp_path / "out", "--out") as folder,
    ):
        write_onnx(trained, folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [1_000, 800_000])  # bytes; ends in the first graph and in the second
@pytest.mark.usefixtures("ready_graphs")
def test_a_full_disk_leaves_nothing(trained, tmp_path, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            pytest.raises(UserError, match=r"--out: .*out cannot be written \(.*\); nothing was left there"),
            whole_folder(tmp_path / "out", "--out") as folder,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            write_onnx(trained, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("packages", [("onnxruntime",), ("torch", "onnxscript")])
def test_missing_packages(trained, tmp_path, monkeypatch, packages):
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'writing ONNX needs {", ".join(packages)}: pip install "s2rm-jax\[onnx\]"'):
        write_onnx(trained, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_network_that_can_say_nothing_here_is_refused(trained, tmp_path):
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        config.decoder.no_target_width = 8
    with pytest.raises(UserError, match="use to-stablehlo"):
        write_onnx(dataclasses.replace(trained, config=config), tmp_path)
