"""The format of weights is detected from their contents; damaged files and code are refused in one line."""

import argparse
import importlib
import json
import os
import pickle
import struct
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
from safetensors.numpy import save_file

from s2rm_jax.errors import UserError
from s2rm_jax.interop.weight_files import find_weights, read_weights, require_torch_for, write_safetensors

torch = pytest.importorskip("torch")

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2, np.float32)}
TENSORS = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_file(ARRAYS, path),
        lambda path: torch.save(TENSORS, path),
        lambda path: legacy(TENSORS, path),
        lambda path: torch.save({"model": TENSORS, "epoch": 3}, path),
        lambda path: torch.save({"state_dict": TENSORS, "optimizer": {"lr": 0.1}}, path),
        lambda path: write_safetensors(ARRAYS, path),
    ],
    ids=["safetensors", "zip", "legacy", "model", "state_dict", "ours"],
)
@pytest.mark.parametrize("name", ["weights.pth", "pytorch_model.bin", "x.safetensors", "noextension"])
def test_the_format_does_not_depend_on_the_name(tmp_path, write, name):
    write(tmp_path / name)
    found = read_weights(tmp_path / name)
    assert found.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(found[key], array)


@pytest.mark.parametrize("save", [torch.save, importlib.import_module("safetensors.torch").save_file])
def test_other_floating_points_become_float32_and_integers_stay(tmp_path, save):
    kinds = {"half": torch.float16, "brain": torch.bfloat16, "double": torch.float64, "index": torch.int64}
    save({name: torch.tensor([1, 2.5]).to(kind) for name, kind in kinds.items()}, tmp_path / "w")
    found = read_weights(tmp_path / "w")
    assert {name: array.dtype.name for name, array in found.items()} == {
        **dict.fromkeys(("half", "brain", "double"), "float32"),
        "index": "int64",
    }
    for name in ("half", "brain", "double"):
        assert found[name].tolist() == [1, 2.5]


def test_written_files_follow_the_umask(tmp_path):
    (tmp_path / "plain").touch()
    write_safetensors(ARRAYS, tmp_path / "w")
    assert (tmp_path / "w").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_prefers_safetensors(tmp_path):
    with pytest.raises(UserError, match=r"no weights found in the folder .* model\.safetensors or pytorch_model\.bin"):
        find_weights(tmp_path)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert find_weights(tmp_path).name == "pytorch_model.bin"
    save_file(ARRAYS, tmp_path / "model.safetensors")
    assert find_weights(tmp_path).name == "model.safetensors"
    with pytest.raises(UserError, match=r"has model\.safetensors and pytorch_model\.bin, which may differ; remove"):
        find_weights(tmp_path, only_one=True)


def test_weights_of_another_name_in_a_folder(tmp_path):
    torch.save(TENSORS, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"no weights found .*; rename model\.pt to pytorch_model\.bin$"):
        find_weights(tmp_path)
    torch.save(TENSORS, tmp_path / "last.pth")
    for name in ("optimizer.pt", "rng_state_0.pth", "scheduler.pt", "training_args.bin"):  # as transformers stores them
        torch.save(TENSORS, tmp_path / name)
    with pytest.raises(UserError, match=r"; rename last\.pth or model\.pt to pytorch_model\.bin$"):
        find_weights(tmp_path)


def test_weights_in_several_files(tmp_path):
    save_file({"a.weight": ARRAYS["a.weight"]}, tmp_path / "model-1-of-2.safetensors")
    save_file({"a.bias": ARRAYS["a.bias"]}, tmp_path / "model-2-of-2.safetensors")
    parts = {"a.weight": "model-1-of-2.safetensors", "a.bias": "model-2-of-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert read_weights(find_weights(tmp_path)).keys() == ARRAYS.keys()
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match="is not an index of weights"):
        read_weights(find_weights(tmp_path))


@pytest.mark.parametrize("name", ["../../{}", "/{}", "a/../../{}"])
def test_the_parts_of_an_index_lie_beside_it(tmp_path, name):
    """Whatever folder an index names, nothing but the folder of the index is read."""
    (tmp_path / "folder").mkdir()
    save_file({"secret": ARRAYS["a.weight"]}, tmp_path / "other.safetensors")
    index = tmp_path / "folder" / "model.safetensors.index.json"
    named = name.format((tmp_path / "other.safetensors").relative_to("/") if name[0] == "/" else "other.safetensors")
    index.write_text(json.dumps({"weight_map": {"secret": named}}))
    with pytest.raises(UserError, match=r"weights .*/folder/other\.safetensors cannot be read: No such file"):
        read_weights(index)


def test_an_index_without_files(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(UserError, match=r"the index .* names no files; download or export it again$"):
        read_weights(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize(
    "content",
    [
        '{"weight_map": {"a": "model.safetensors.index.json"}}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": null, "b": "c"}}',
        '{"weight_map": {"a": "b\\u0000"}}',
        '{"weight_map": []}',
        "[" * 100_000,
    ],
)
def test_an_index_that_leads_nowhere(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match="is not an index of weights"):
        read_weights(tmp_path / "model.safetensors.index.json")


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path):
    """What torch.save writes is never compressed, and no array is larger than what is stored of it."""
    torch.save({"a": torch.zeros(1000)}, tmp_path / "plain.pth")
    packed = zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, packed:
        for part in plain.namelist():
            packed.writestr(part, plain.read(part))
    with pytest.raises(UserError, match="its parts are compressed"):
        read_weights(tmp_path / "packed.pth")
    torch.save({"a": torch.zeros(1, dtype=torch.float16).expand(10**12)}, tmp_path / "repeated.pth")
    with pytest.raises(UserError, match=r"shape \[1000000000000\] repeats"):
        read_weights(tmp_path / "repeated.pth")


def test_parameters_are_read_as_their_values(tmp_path):
    torch.save({"a": torch.nn.Parameter(torch.tensor([1.0, 2]))}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")["a"].tolist() == [1, 2]


@pytest.mark.parametrize("value", [torch.zeros(3).to_sparse(), torch.zeros(3, device="meta")])
def test_arrays_of_kinds_that_weights_do_not_have(tmp_path, value):
    torch.save({"a": value}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth is damaged or truncated"):
        read_weights(tmp_path / "w.pth")


def test_a_safetensors_file_of_a_type_that_numpy_does_not_have(tmp_path):
    header = b'{"a":{"dtype":"F8_E5M2","shape":[4],"data_offsets":[0,4]}}'
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(
        UserError, match=r"w has arrays of a type that cannot be read \(.*\); give the weights as float32"
    ):
        read_weights(tmp_path / "w")


@pytest.mark.parametrize("write", [lambda p: save_file(ARRAYS, p), lambda p: torch.save(TENSORS, p)])
@pytest.mark.parametrize("kept", [0.2, 0.9, 0.99])
def test_a_truncated_file(tmp_path, write, kept):
    path = tmp_path / "weights"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"weights is damaged or truncated \(.*download or export it again"):
        read_weights(path)


@pytest.mark.parametrize("write", [torch.save, legacy, lambda c, p: p.write_bytes(pickle.dumps(c, 4))])
@pytest.mark.parametrize("content", [{"model": TENSORS, "x": RunsCode()}, RunsCode()], ids=["inside", "alone"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch, write, content):
    monkeypatch.chdir(tmp_path)
    write(content, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth contains more than arrays.*is not loaded"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("write", [torch.save, legacy])
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=1, betas=(0.9, 0.95), nested=argparse.Namespace(name="swin")),
        np.float64(0.73),
        np.float32(0.73),
        np.int64(12),
        np.bool_(True),
        {"epoch": np.int64(3), "args": argparse.Namespace(best=np.float32(0.5))},
    ],
    ids=["namespace", "float64", "float32", "int64", "bool", "all"],
)
def test_settings_and_scalars_beside_weights_are_harmless(tmp_path, write, beside):
    write({"model": TENSORS, "beside": beside}, tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    assert found.keys() == ARRAYS.keys()
    np.testing.assert_array_equal(found["a.weight"], ARRAYS["a.weight"])


def test_scalars_of_the_first_numpy_are_harmless(tmp_path):
    """NumPy 1 names its module numpy.core."""
    torch.save({"model": TENSORS, "best": np.float64(0.73)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for part in new.namelist():
            old.writestr(part, new.read(part).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert b"cnumpy.core.multiarray\nscalar\n" in (tmp_path / "old.pth").read_bytes()
    assert read_weights(tmp_path / "old.pth").keys() == ARRAYS.keys()


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (PurePosixPath("a"), f"{PurePosixPath.__module__}.PurePosixPath"),  # pathlib._local in Python 3.13
        (argparse.Namespace(out=PurePosixPath("a")), f"{PurePosixPath.__module__}.PurePosixPath"),
        (argparse.ArgumentParser, "argparse.ArgumentParser"),
        (np.ones(3), "numpy._core.multiarray._reconstruct"),
        (torch.nn.ReLU(), "torch.nn.modules.activation.ReLU"),
    ],
)
def test_other_objects_beside_weights_are_refused_and_named(tmp_path, beside, named):
    torch.save({"model": TENSORS, "args": beside}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"contains more than arrays \({named}\).*save their state_dict alone"):
        read_weights(tmp_path / "w.pth")


def test_code_in_settings_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": TENSORS, "args": argparse.Namespace(lr=RunsCode())}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="contains more than arrays"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>Not found</html>" * 9, "is neither a safetensors nor a PyTorch file"),
        (None, "cannot be read: "),
    ],
)
def test_a_file_of_another_kind(tmp_path, content, message):
    if content is not None:
        (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "w.pth")


def test_a_file_without_names(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"has no parameters by name \(it contains list\)"):
        read_weights(tmp_path / "w.pth")


def test_without_torch_the_error_names_the_package(tmp_path, monkeypatch):
    torch.save(TENSORS, tmp_path / "w.pth")
    save_file(ARRAYS, tmp_path / "w.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert read_weights(tmp_path / "w.safetensors").keys() == ARRAYS.keys()
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "w.safetensors", "b": "w.pth"}}')
    for function in (read_weights, require_torch_for):
        for name in ("w.pth", "pytorch_model.bin.index.json"):
            with pytest.raises(UserError, match=r"w\.pth needs .*\[torch\]', or give the same weights as model"):
                function(tmp_path / name)


@pytest.mark.parametrize("length", [128, int.from_bytes(b"PK", "little")])
def test_safetensors_of_any_length_need_no_torch(tmp_path, monkeypatch, length):
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.ljust(length)
    (tmp_path / "w").write_bytes(length.to_bytes(8, "little") + header + np.float32(2.5).tobytes())
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    require_torch_for(tmp_path / "w")
    assert read_weights(tmp_path / "w")["a"].tolist() == [2.5]
