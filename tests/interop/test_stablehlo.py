"""A network exported as StableHLO gives exactly the masks of Segmenter without this package."""

import dataclasses
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import export
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file

from s2rm_jax.errors import UserError
from s2rm_jax.interop import stablehlo
from s2rm_jax.interop.stablehlo import export_programs, write_stablehlo
from s2rm_jax.interop.torch_folder import settings
from s2rm_jax.io import atomic_folder
from s2rm_jax.models.network import build_network
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.training.state import parameter_shapes


@pytest.fixture(scope="module")
def folder(trained, made_once):
    return made_once("exported-stablehlo", lambda folder: write_stablehlo(trained, folder))


def test_a_fresh_process_gives_the_masks_of_segmenter(trained, folder, question, tmp_path):
    answer = question.ask(folder, tmp_path, "torch", "onnx", "onnxruntime")
    segmenter = Segmenter(trained.network, trained.params, trained.tokenizer, trained.config)
    masks = segmenter.segment(question.image, question.expressions).masks
    assert all(0.1 < mask.mean() < 0.9 for mask in masks)
    np.testing.assert_array_equal(answer.masks, masks)
    # Another number of images, and of expressions for each.
    wanted = jax.jit(trained.network.apply)({"params": trained.params}, **question.batch).logits
    (logits,) = answer.outputs
    assert logits.shape == (2, 5, 32, 32)
    assert np.linalg.norm(logits - wanted) <= 1e-6 * np.linalg.norm(wanted)


def test_the_programs_are_for_every_platform_and_any_number(folder):
    for name, free in (("encode_image", {"b"}), ("ground", {"b", "k"})):
        program = export.deserialize((folder / f"{name}.stablehlo").read_bytes())
        assert set(program.platforms) == {"cpu", "cuda", "tpu"}
        symbols = {str(side) for aval in program.in_avals for side in aval.shape if not isinstance(side, int)}
        assert symbols == free
        assert not program.disabled_safety_checks


def test_the_weights_are_written_with_the_programs(trained, folder):
    weights, params = load_file(folder / "model.safetensors"), flatten_dict(trained.params, sep="/")
    assert weights.keys() == params.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, params[name])


def test_no_target_logits_are_exported(trained):
    config = ConfigDict(trained.config.to_dict())
    config.decoder.no_target_width = 8
    config.fusion.mode, config.decoder.guidance = "sum", "none"  # quick to export
    network = build_network(config)
    judging = dataclasses.replace(trained, network=network, params=parameter_shapes(network, config), config=config)
    _, ground = export_programs(judging)
    assert [str(aval) for aval in ground.out_avals] == ["float32[b,k,32,32]", "float32[b,k]"]
    assert settings(judging)["functions"]["ground"]["returns"][1] == "no_target_logits float32 [b, k]"


@pytest.mark.parametrize("arguments", [["nowhere.png", "red"], ["image.png", "red", "  "]])
def test_the_script_reports_mistakes(folder, question, tmp_path, arguments):
    Image.fromarray(question.image).save(tmp_path / "image.png")
    done = subprocess.run(
        [sys.executable, folder / "segment.py", *arguments, "--out", "masks"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and ("nowhere.png" in done.stderr or "no words" in done.stderr)
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("too_large", [1, 2, 3])  # files, of the two programs and the weights
def test_a_full_disk_leaves_nothing(trained, folder, tmp_path, monkeypatch, too_large):
    files = [folder / "encode_image.stablehlo", folder / "ground.stablehlo"]
    programs = [export.deserialize(file.read_bytes()) for file in files]
    limit = sorted(file.stat().st_size for file in (*files, folder / "model.safetensors"))[-too_large] - 1
    monkeypatch.setattr(stablehlo, "export_programs", lambda _: programs)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            pytest.raises(UserError, match=r"--out: .*out cannot be written \(.*\); .*give another --out"),
            atomic_folder(tmp_path / "out", "--out") as folder,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            write_stablehlo(trained, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
