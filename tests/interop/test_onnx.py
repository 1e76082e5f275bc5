"""A network exported as ONNX gives the masks of Segmenter with ONNX Runtime alone; one that differs is refused."""

import dataclasses
import pickle
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.interop import onnx
from s2rm_jax.interop.onnx import relative_error, write_onnx
from s2rm_jax.interop.torch_folder import LoadedRun
from s2rm_jax.io import atomic_folder
from s2rm_jax.models.network import build_network
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.training.state import parameter_shapes
from tests.interop.fresh_process import make_question

EXPORT = """
import pickle, sys
from pathlib import Path
from s2rm_jax.interop.onnx import write_onnx

print(write_onnx(pickle.load(sys.stdin.buffer), Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def shared(request, made_once):
    """A folder with a network (`judge`) and with an export of it by a process with warnings as errors.

    Both are made once for all workers, because the export takes long.
    """

    def fill(folder):
        judging = judge(request.getfixturevalue("trained"))
        (folder / "run.pickle").write_bytes(pickle.dumps(judging))
        (folder / "onnx").mkdir()
        command = [sys.executable, "-W", "error", "-c", EXPORT, folder / "onnx"]
        done = subprocess.run(command, input=pickle.dumps(judging), capture_output=True, check=True)
        (folder / "stdout").write_bytes(done.stdout)
        (folder / "stderr").write_bytes(done.stderr)

    return made_once("exported-onnx", fill)


def judge(trained):
    """Return the trained network with a no-target head that is positive for some of the expressions.

    Its images are the smallest with a recurrence of two steps: the exporter follows each step anew.
    """
    config = ConfigDict(trained.config.to_dict())
    config.input.image_size = (16, 16)
    config.decoder.no_target_width = 8
    network = build_network(config)
    rng = np.random.default_rng(0)
    head = jax.tree.map(
        lambda leaf: rng.normal(scale=leaf.shape[0] ** -0.5, size=leaf.shape).astype(np.float32),
        parameter_shapes(network, config)["no_target"],
    )
    params = jax.tree.map(np.array, trained.params)
    params["decoder"]["stage1_mask"]["kernel"]["bias"] -= np.float32(1.8)  # for masks that are neither empty nor full
    judging = LoadedRun(network, {**params, "no_target": head}, trained.tokenizer, config)
    question = make_question(judging)
    found = Segmenter(network, judging.params, judging.tokenizer, config).segment(question.image, question.expressions)
    logits = np.sort(np.log(found.no_target / (1 - found.no_target)))
    head["nothing"]["bias"] -= np.float32(logits[-2:].mean())  # positive for one of the three
    return judging


@pytest.fixture(scope="module")
def judging(shared):
    return pickle.loads((shared / "run.pickle").read_bytes())


@pytest.fixture(scope="module")
def question(judging):
    return make_question(judging)


@pytest.fixture
def folder(shared):
    return shared / "onnx"


@pytest.fixture
def ready_graphs(folder, monkeypatch):
    """Make `write_onnx` use the graphs of `folder`, because an export takes long."""
    import onnx_ir
    from torch.onnx import ONNXProgram

    files = [folder / "encode_image.onnx", folder / "ground.onnx"]
    graphs = [ONNXProgram(onnx_ir.load(file), None) for file in files]
    monkeypatch.setattr(onnx, "export_graphs", lambda _: graphs)


def test_a_fresh_process_gives_the_masks_of_segmenter(judging, folder, question, tmp_path):
    answer = question.ask(folder, tmp_path, "jax", "torch", "onnx", "onnxscript", "safetensors")
    segmenter = Segmenter(judging.network, judging.params, judging.tokenizer, judging.config)
    result = segmenter.segment(question.image, question.expressions)
    assert 0 < (result.no_target > 0.5).sum() < 3
    assert all(0.1 < mask.mean() < 0.9 for mask in result.masks[result.no_target < 0.5])
    np.testing.assert_array_equal(answer.masks, result.masks)
    # Another number of images, and of expressions for each.
    wanted = jax.jit(judging.network.apply)({"params": judging.params}, **question.batch)
    logits, no_target_logits = answer.outputs
    assert logits.shape == (2, 5, 16, 16)
    for found, expected in ((logits, wanted.logits), (no_target_logits, wanted.no_target_logits)):
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_the_export_prints_only_its_error(shared):
    assert (shared / "stderr").read_bytes() == b""
    assert 0 < float((shared / "stdout").read_bytes()) <= 1e-5


def test_the_graphs_name_their_inputs_and_outputs(folder):
    import onnxruntime

    def sides(items):
        return {item.name: [item.type, *item.shape] for item in items}

    encode_image = onnxruntime.InferenceSession(folder / "encode_image.onnx")
    ground = onnxruntime.InferenceSession(folder / "ground.onnx")
    features = sides(encode_image.get_outputs())
    assert sides(encode_image.get_inputs()) == {"images": ["tensor(float)", "b", 16, 16, 3]}
    assert list(features) == ["features_1", "features_2"]
    assert features["features_2"] == ["tensor(float)", "b", 2, 2, 16]
    words = {"tokens": ["tensor(int32)", "b", "k", 16], "token_mask": ["tensor(bool)", "b", "k", 16]}
    assert sides(ground.get_inputs()) == features | words
    masks = {"logits": ["tensor(float)", "b", "k", 16, 16], "no_target_logits": ["tensor(float)", "b", "k"]}
    assert sides(ground.get_outputs()) == masks


def test_another_network_exceeds_the_tolerance(judging, folder):
    other = dataclasses.replace(judging, params=jax.tree.map(lambda x: 1.001 * x, judging.params))
    assert relative_error(other, folder) > onnx.TOLERANCE


@pytest.mark.parametrize("error", [1.1e-4, float("nan")])
@pytest.mark.usefixtures("ready_graphs")
def test_a_graph_that_differs_is_not_written(judging, tmp_path, monkeypatch, error):
    monkeypatch.setattr(onnx, "relative_error", lambda *_: error)
    with (
        pytest.raises(UserError, match=rf"differs from JAX by {error:.1e} of its norm, more than 1e-04"),
        atomic_folder(tmp_path / "out", "--out") as folder,
    ):
        write_onnx(judging, folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("too_large", [1, 2])  # files, of the two graphs
@pytest.mark.usefixtures("ready_graphs")
def test_a_full_disk_leaves_nothing(judging, folder, tmp_path, too_large):
    limit = sorted(file.stat().st_size for file in folder.glob("*.onnx"))[-too_large] - 1
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            pytest.raises(UserError, match=r"--out: .*out cannot be written \(.*\); .*give another --out"),
            atomic_folder(tmp_path / "out", "--out") as folder,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            write_onnx(judging, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("packages", [("onnxruntime",), ("torch", "onnxscript")])
def test_missing_packages(trained, tmp_path, monkeypatch, packages):
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"writing ONNX needs {', '.join(packages)}: pip install -e '\.\[onnx\]'"):
        write_onnx(trained, tmp_path)
    assert not list(tmp_path.iterdir())
