"""The files of the PyTorch network: self-contained, read strictly, with parts that transformers reads."""

import ast
import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from s2rm_jax.interop.weight_files import write_safetensors
from s2rm_jax.training.run import save_config
from tests.models.small import small_config, small_inputs

torch = pytest.importorskip("torch")

from s2rm_jax.interop import torch_model  # noqa: E402  needs torch
from tests.interop import twins  # noqa: E402


def test_the_file_imports_only_torch_and_safetensors():
    tree = ast.parse(Path(torch_model.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    named = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    used = {name.split(".")[0] for name in named} - sys.stdlib_module_names
    assert used == {"torch", "safetensors", "huggingface_hub"}
    at_import = {node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {"safetensors", "huggingface_hub"} & at_import


@pytest.fixture(scope="module")
def small():
    """The small network in PyTorch, and its weights as arrays."""
    config = small_config(vision__mask_padding=False)
    model = twins.twins(config)[2]
    return config, model, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.fixture
def folder(small, tmp_path):
    config, _, weights = small
    save_config(tmp_path, config)
    write_safetensors(weights, tmp_path / "model.safetensors")
    return tmp_path


def load(folder):
    return torch_model.S2RMModel.from_pretrained(folder)


@torch.no_grad()
def test_a_folder_is_loaded_completely(small, folder):
    model = load(str(folder))
    assert not model.training
    images, tokens, mask = (torch.tensor(np.array(x)) for x in small_inputs())
    images = images.permute(0, 3, 1, 2)
    torch.testing.assert_close(model(images, tokens, mask), small[1](images, tokens, mask), atol=0, rtol=0)


def refused(folder, message):
    with pytest.raises(torch_model.LoadError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, r"lacks model\.safetensors; write it with safetensors\.torch\.save_file\(model\.state_dict\(\), '")
    (folder / "config.json").unlink()
    refused(folder, r"lacks config\.json and model\.safetensors; export the network again\.$")


def test_another_path_than_that_of_an_export(folder, tmp_path, monkeypatch):
    refused(tmp_path / "nowhere", r"^folder '.*/nowhere' not found; check the path\.$")
    refused("nowhere", r"^folder 'nowhere' not found; check the path\.$")
    refused("", r"^folder '' not found; check the path\.$")
    refused(folder / "config.json", r"config\.json is a file; give its folder\.$")
    monkeypatch.setenv("HOME", str(folder.parent))
    load(f"~/{folder.name}")
    (folder / "encode_image.onnx").touch()
    refused(folder, r" is an ONNX or StableHLO export; use segment\.py in it\.$")


INPUT_MISTAKES = {
    "channels last": lambda images, tokens, mask: (images.permute(0, 2, 3, 1), tokens, mask),
    "image of bytes": lambda images, tokens, mask: (images.byte(), tokens, mask),
    "no axis of expressions": lambda images, tokens, mask: (images, tokens[:, 0], mask[:, 0]),
    "no expressions": lambda images, tokens, mask: (images, tokens[:, :0], mask[:, :0]),
    "mask of integers": lambda images, tokens, mask: (images, tokens, mask.long()),
    "mask of another shape": lambda images, tokens, mask: (images, tokens, mask[:, :, 1:]),
    "tokens of another batch": lambda images, tokens, mask: (images, tokens[:1], mask[:1]),
    "tokens of floats": lambda images, tokens, mask: (images, tokens.float(), mask),
}


@pytest.mark.parametrize("mistake", INPUT_MISTAKES)
def test_inputs_of_another_shape_or_type_are_refused(small, mistake):
    images, tokens, mask = (torch.tensor(np.array(x)) for x in small_inputs())
    changed = INPUT_MISTAKES[mistake](images.permute(0, 3, 1, 2), tokens, mask)
    message = r"^images, tokens and token_mask must be float32 \[B, 3, H, W\], .*; got \w+ \["
    with pytest.raises(ValueError, match=message):
        small[1](*changed)


@pytest.mark.parametrize("token", [-1, 30])
def test_tokens_outside_the_vocabulary_are_refused(small, token):
    images, tokens, mask = (torch.tensor(np.array(x)) for x in small_inputs())
    tokens[0, 0, 1] = token
    with pytest.raises(
        ValueError, match=rf"^tokens must be from 0 to 29, got .*{token}.*; use the tokenizer of the run"
    ):
        small[1](images.permute(0, 3, 1, 2), tokens, mask)


@torch.no_grad()
def test_outputs_are_float32_under_autocast():
    model = twins.twins(small_config(decoder__no_target_width=8))[2]
    images, tokens, mask = (torch.tensor(np.array(x)) for x in small_inputs())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images.permute(0, 3, 1, 2), tokens, mask)
    everything = [output.logits, *output.coarse_logits, output.word_attention, output.no_target_logits]
    assert {x.dtype for x in [*everything, *output.balance_weights.values()]} == {torch.float32}


def test_parameters_of_half_precision_are_refused(small):
    images, tokens, mask = (torch.tensor(np.array(x)) for x in small_inputs())
    model = copy.deepcopy(small[1]).half()
    with pytest.raises(ValueError, match=r"^the parameters are float16; keep them float32 and use torch\.autocast$"):
        model(images.permute(0, 3, 1, 2).half(), tokens, mask)


@pytest.mark.parametrize("part", [0.0, 1e-4, 0.5, 0.999])
def test_truncated_weights_are_refused(folder, part):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refused(folder, r"model\.safetensors cannot be read \(.*\); ")


def test_all_that_is_wrong_with_the_weights_is_reported_at_once(small, folder):
    weights = dict(small[2])
    del weights["text.embeddings.LayerNorm.bias"], weights["fusion.mix.weight"]
    weights["vision.layernorm.weight"] = np.zeros(32, np.float32)
    weights["decoder.stage1_mask.kernel.bias"] = np.zeros(3, np.float32)
    weights["decoder.stage1_block.norm.bias"] = np.zeros(8, np.int64)
    weights["decoder.stage2_block.norm.bias"] = np.full(12, np.nan, np.float32)
    write_safetensors(weights, folder / "model.safetensors")
    told = refused(folder, r"model\.safetensors does not fit the config\.json next to it: ")
    for mistake in (
        "text.embeddings.LayerNorm.bias is missing",
        "fusion.mix.weight is missing",
        "vision.layernorm.weight is unexpected",
        "decoder.stage1_mask.kernel.bias is (3,) but must be (1,)",
        "decoder.stage1_block.norm.bias holds int64, not floating-point numbers",
        "decoder.stage2_block.norm.bias holds NaN or infinity",
    ):
        assert mistake in told


CONFIG_MISTAKES = {
    "no JSON": lambda config: "{",
    "no sections": lambda config: [],
    "no vision": lambda config: {name: section for name, section in config.items() if name != "vision"},
    "no depths": lambda config: config["vision"].pop("depths") and config,
    "unknown mode": lambda config: config["fusion"].update(mode="concat") or config,
    "unknown pair": lambda config: config["fusion"].update(pairs=["vision"]) or config,
    "skew rotation": lambda config: config["fusion"].update(rotations=[45]) or config,
    "no rotation": lambda config: config["fusion"].update(rotations=[]) or config,
    "width for nothing": lambda config: config["decoder"].update(widths=[8, 12]) or config,
    "text for a number": lambda config: config["vision"].update(embed_dim="8") or config,
}


@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_a_wrong_configuration_is_refused(folder, mistake):
    path = folder / "config.json"
    changed = CONFIG_MISTAKES[mistake](json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    refused(folder, r"config\.json does not describe a network \(.*\); ")


def part(weights, prefix):
    """Return the part of a state dict with a prefix, without the norms of outputs, which only backbones have."""
    names = [name for name in weights if name.startswith(prefix) and "hidden_states_norms" not in name]
    return {name.removeprefix(prefix): weights[name] for name in names}


def from_folder(kind, config, weights, folder):
    """Load a model of transformers from a folder; return it and the names that its class did not find."""
    config.save_pretrained(folder)
    write_safetensors(weights, folder / "model.safetensors")
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not told["unexpected_keys"] and not told["mismatched_keys"]
    return model.eval(), set(told["missing_keys"])


def test_the_vision_part_is_a_swin_of_transformers(small, tmp_path):
    transformers = pytest.importorskip("transformers")
    config, model, weights = small
    vision = config.vision
    theirs = transformers.SwinConfig(
        image_size=80,
        embed_dim=vision.embed_dim,
        depths=list(vision.depths),
        num_heads=list(vision.num_heads),
        window_size=vision.window_size,
    )
    swin, missing = from_folder(transformers.SwinModel, theirs, part(weights, "vision."), tmp_path)
    assert missing == {"layernorm.weight", "layernorm.bias"}  # of the classifier's last output

    ours: list = []
    norms = model.vision.hidden_states_norms.values()
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: ours.append(inputs[0])) for norm in norms]
    # No grid is as small as a window: transformers would shrink the window then, which its bias tables do not fit.
    images = torch.randn(2, 3, 72, 88, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.vision(images)
        found = swin(images, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    for hook in hooks:
        hook.remove()
    assert len(ours) == len(config.vision.depths)
    for stage, expected in zip(ours, found.reshaped_hidden_states[1:], strict=True):
        assert twins.relative_error(stage, expected.permute(0, 2, 3, 1)) < 1e-6


def test_the_text_part_is_a_bert_of_transformers(small, tmp_path):
    transformers = pytest.importorskip("transformers")
    config, model, weights = small
    theirs = transformers.BertConfig(
        vocab_size=config.text.vocab_size,
        hidden_size=config.text.hidden_size,
        num_hidden_layers=config.text.num_layers,
        num_attention_heads=config.text.num_heads,
        intermediate_size=config.text.intermediate_size,
        max_position_embeddings=config.text.max_positions,
    )
    bert, missing = from_folder(transformers.BertModel, theirs, part(weights, "text."), tmp_path)
    assert missing == {"pooler.dense.weight", "pooler.dense.bias"}
    _, tokens, mask = (torch.tensor(np.array(x)) for x in small_inputs())
    tokens, mask = tokens.flatten(0, 1), mask.flatten(0, 1)
    with torch.no_grad():
        expected = bert(tokens, mask).last_hidden_state
        assert twins.relative_error(model.text(tokens, mask)[mask], expected[mask]) < 1e-6


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("fusion", "language", "sword"), ("decoder", "semantics", ["stages"]), ("decoder", "semantics", 3)],
)
def test_variants_that_pytorch_lacks_are_named(folder, section, field, value):
    content = json.loads((folder / "config.json").read_text())
    content[section][field] = ["stages", "sentence"] if field == "semantics" else "words"
    (folder / "config.json").write_text(json.dumps(content))
    load(folder)
    content[section][field] = value
    (folder / "config.json").write_text(json.dumps(content))
    assert "PyTorch has" in refused(folder, rf"{section}\.{field} is ")
