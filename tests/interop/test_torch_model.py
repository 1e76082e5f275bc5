"""Outputs and gradients of the PyTorch network match those of the JAX network."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from s2rm_jax.models import bert, swin
from tests.models.small import small_config, small_inputs

torch = pytest.importorskip("torch")

from tests.interop import twins  # noqa: E402  needs torch

PART, WHOLE = 1e-5, 1e-4  # relative errors

# What is compared: a part, changes of the small configuration, the image's size and K. Every switch of the
# configuration is met, and so are sizes that divide by nothing, and a side that is shorter than a window. Cases share a
# network where they can, because drawing parameters needs a trace of all of it.
TWO_STAGES = {
    "vision__depths": (1, 2),
    "vision__num_heads": (1, 2),
    "text__num_layers": 1,
    "decoder__widths": (8, 12),
    "decoder__no_target_width": 8,
}
THREE_STAGES = {"vision__depths": (1, 1, 1), "text__num_layers": 1}
PUBLISHED_PADDING = TWO_STAGES | {
    "vision__mask_padding": False,
    "fusion__balance": "channel",
    "fusion__rotations": (0, 90, 180),
    "decoder__guidance": "maps",
}
LARGER_WINDOW = TWO_STAGES | {
    "vision__window_size": 6,
    "fusion__recurrence": "none",
    "fusion__rotations": (90, 270),
    "fusion__pairs": ("vision_parses_language",),
    "fusion__balance": "mean",
    "decoder__guidance": "none",
}
ONE_DIRECTION = {"fusion__rotations": (270,), "fusion__pairs": ("language_parses_vision",)}
CASES = {
    "vision": ("vision", TWO_STAGES, (40, 56), 1),
    "vision, published padding": ("vision", PUBLISHED_PADDING, (33, 47), 1),
    "vision, short side": ("vision", LARGER_WINDOW, (72, 23), 1),
    "text": ("text", {}, (32, 32), 3),
    "fusion": ("fusion", TWO_STAGES, (20, 28), 3),
    "fusion, channel": ("fusion", PUBLISHED_PADDING, (28, 20), 1),
    "fusion, no recurrence": ("fusion", LARGER_WINDOW, (21, 21), 2),
    "fusion, one direction": ("fusion", THREE_STAGES | ONE_DIRECTION, (40, 56), 2),
    "fusion, vision residual": ("fusion", THREE_STAGES | {"fusion__residual": "vision"}, (40, 56), 2),
    "fusion, sum": ("fusion", THREE_STAGES | {"fusion__mode": "sum"}, (40, 56), 2),
    "fusion, product": ("fusion", THREE_STAGES | {"fusion__mode": "product"}, (40, 56), 2),
    "decoder": ("decoder", THREE_STAGES | {"fusion__mode": "sum"}, (33, 56), 3),
    "decoder, maps": ("decoder", PUBLISHED_PADDING, (40, 47), 1),
    "decoder, none": ("decoder", LARGER_WINDOW, (40, 47), 2),
    "no target": ("no_target", TWO_STAGES, (17, 28), 3),
    "whole": ("whole", TWO_STAGES | {"decoder__no_target_width": 0}, (33, 47), 3),
}

JAX = {
    "vision": lambda network, params, x: network.vision.apply({"params": params["vision"]}, x["images"]),
    "text": lambda network, params, x: network.text.apply({"params": params["text"]}, x["tokens"][0], x["mask"][0]),
    "fusion": lambda network, params, x: vars(
        network.fusion.apply({"params": params["fusion"]}, x["maps"][-1], x["words"], x["mask"])
    ),
    "decoder": lambda network, params, x: network.decoder.apply(
        {"params": params["decoder"]}, x["fused"], x["maps"], x["sentence"]
    ),
    "no_target": lambda network, params, x: network.no_target.apply(
        {"params": params["no_target"]}, x["sentence"], x["fused"], x["coarsest"], x["finest"]
    ),
    "whole": lambda network, params, x: vars(network.apply({"params": params}, x["images"], x["tokens"], x["mask"])),
}
TORCH = {
    "vision": lambda model, x: model.vision(x["images"].permute(0, 3, 1, 2)),
    "text": lambda model, x: model.text(x["tokens"][0], x["mask"][0]),
    "fusion": lambda model, x: dict(
        zip(
            ("features", "word_attention", "balance_weights"),
            model.fusion(x["maps"][-1], x["words"], x["mask"]),
            strict=True,
        )
    ),
    "decoder": lambda model, x: tuple(model.decoder(x["fused"], x["maps"], x["sentence"])),
    "no_target": lambda model, x: model.no_target(x["sentence"], x["fused"], x["coarsest"], x["finest"]),
    "whole": lambda model, x: model(x["images"].permute(0, 3, 1, 2), x["tokens"], x["mask"])._asdict(),
}


def inputs(part, config, size, k):
    """Return the inputs of a part by name: arrays with channels last, tokens and their mask."""
    images, tokens, mask = small_inputs(2, k, *size)
    strides = [4 * 2**stage for stage in range(len(config.vision.depths))]
    maps = [(2, *(-(-side // stride) for side in size), config.vision.embed_dim * stride // 4) for stride in strides]
    rng = np.random.default_rng(2)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    everything = {
        "images": np.array(images),
        "tokens": np.array(tokens, np.int64),
        "mask": np.array(mask),
        "maps": tuple(normal(*one) for one in maps),
        "words": normal(2, k, tokens.shape[-1], config.text.hidden_size),
        "fused": normal(2, k, *maps[-1][1:3], config.fusion.width),
        "sentence": normal(2, k, config.text.hidden_size),
        "coarsest": normal(2, k, *maps[-1][1:3]),
        "finest": normal(2, k, *maps[0][1:3]),
    }
    read = {
        "vision": ("images",),
        "text": ("tokens", "mask"),
        "fusion": ("maps", "words", "mask"),
        "decoder": ("fused", "maps", "sentence"),
        "no_target": ("sentence", "fused", "coarsest", "finest"),
        "whole": ("images", "tokens", "mask"),
    }
    return {name: everything[name] for name in read[part]}


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def product_with_random_numbers(outputs):
    """The scalar to differentiate: the sum of all outputs times fixed random numbers."""
    rng = np.random.default_rng(3)
    return sum((leaves(outputs)[name] * like(rng, leaf)).sum() for name, leaf in leaves(outputs).items())


def like(rng, leaf):
    numbers = rng.normal(size=tuple(leaf.shape)).astype(np.float32)
    return torch.from_numpy(numbers) if isinstance(leaf, torch.Tensor) else numbers


def in_jax(part, network, params, x):
    """Outputs, gradients of parameters by PyTorch's names, and gradients of inputs."""
    floats = {name: value for name, value in x.items() if name not in ("tokens", "mask")}
    others = {name: value for name, value in x.items() if name in ("tokens", "mask")}

    def scalar(params, floats, others):
        outputs = JAX[part](network, params, floats | others)
        if isinstance(outputs, dict):
            outputs.pop("group_maps")  # which the network in PyTorch keeps to itself
        return product_with_random_numbers(outputs), outputs

    gradients, outputs = jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))(params, floats, others)
    of_params = {n: g for n, g in twins.named(gradients[0]).items() if part == "whole" or n.startswith(f"{part}.")}
    return leaves(outputs), of_params, leaves(gradients[1])


def in_torch(part, model, x):
    x = jax.tree.map(lambda array: torch.tensor(array, requires_grad=array.dtype == np.float32), x)
    outputs = TORCH[part](model, x)
    product_with_random_numbers(outputs).backward()
    of_params = {name: p.grad for name, p in model.named_parameters() if part == "whole" or p.grad is not None}
    of_inputs = {name: tensor.grad for name, tensor in leaves(x).items() if tensor.requires_grad}
    return {name: tensor.detach() for name, tensor in leaves(outputs).items()}, of_params, of_inputs


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_match_jax(case):
    part, changes, size, k = CASES[case]
    config = small_config(**changes)
    network, params, model = twins.twins(config)
    x = inputs(part, config, size, k)
    outputs, of_params, of_inputs = in_torch(part, model, x)
    outputs_, of_params_, of_inputs_ = in_jax(part, network, params, x)

    assert outputs.keys() == outputs_.keys() and of_params.keys() == of_params_.keys()
    errors = {name: twins.relative_error(outputs[name], outputs_[name]) for name in outputs_}
    tolerance = WHOLE if part == "whole" else PART
    for name, gradient in of_params_.items():
        # A bias of the keys shifts all logits of a softmax alike, so that its gradient is zero but for rounding. It is
        # held against the gradient of the bias of the queries.
        scale = np.linalg.norm(of_params_[name.replace("key.bias", "query.bias")])
        assert np.linalg.norm(gradient) < tolerance * scale or not name.endswith("key.bias")
        errors[f"gradient of {name}"] = twins.relative_error(of_params[name], gradient, scale)
    for name, gradient in of_inputs_.items():
        if of_inputs[name] is None:  # not read: of the vision maps, say, the decoder leaves the last to the fusion
            assert not np.any(gradient), name
        else:
            errors[f"gradient of {name}"] = twins.relative_error(of_inputs[name], gradient)
    assert {name: error for name, error in errors.items() if not error <= tolerance} == {}


def test_the_no_target_head_matches_jax():
    config = small_config(**TWO_STAGES)
    network, params, model = twins.twins(config)
    x = inputs("whole", config, (33, 47), 2)
    expected = jax.jit(network.apply)({"params": params}, x["images"], x["tokens"], x["mask"]).no_target_logits
    with torch.no_grad():
        found = TORCH["whole"](model, jax.tree.map(torch.tensor, x))["no_target_logits"]
    assert found.shape == (2, 2) and twins.relative_error(found, expected) <= WHOLE


def test_norms_have_the_epsilon_of_jax():
    """The comparison would not detect this everywhere: at a variance of 1, outputs differ by rounding only."""
    epsilons = {"vision": swin.EPSILON, "text": bert.EPSILON, "fusion": nn.LayerNorm.epsilon}
    epsilons["decoder"] = epsilons["fusion"]
    norms = {name: m for name, m in twins.twins(small_config())[2].named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert {name: norm.eps for name, norm in norms.items()} == {name: epsilons[name.split(".")[0]] for name in norms}


@torch.no_grad()
def test_an_image_is_encoded_once_for_any_number_of_expressions():
    _, _, model = twins.twins(small_config())
    images, tokens, mask = (torch.tensor(np.array(x)) for x in small_inputs())
    images = images.permute(0, 3, 1, 2)
    together = model(images, tokens, mask).logits
    features = model.encode_image(images)
    for k in range(tokens.shape[1]):
        alone = model.ground(features, tokens[:, k : k + 1], mask[:, k : k + 1], (40, 56)).logits
        torch.testing.assert_close(alone, together[:, k : k + 1], atol=1e-5, rtol=0)


def test_too_many_tokens_are_refused():
    _, _, model = twins.twins(small_config())
    with pytest.raises(ValueError, match="9 tokens, but only 8 positions"):
        model.text(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.bool))


@torch.no_grad()
def test_dropout_and_drop_path_in_training_only():
    config = small_config(vision__drop_path_rate=0.5, text__dropout_rate=0.5)
    _, _, model = twins.twins(config)
    images, tokens, mask = (torch.tensor(np.array(x)) for x in small_inputs(1, 1))
    images = images.permute(0, 3, 1, 2)
    torch.testing.assert_close(model(images, tokens, mask), model(images, tokens, mask), atol=0, rtol=0)
    model.train()
    assert not torch.equal(model(images, tokens, mask).logits, model(images, tokens, mask).logits)
    never = twins.twins(small_config())[2]
    rest = model.state_dict()
    never.load_state_dict(rest)
    torch.testing.assert_close(never.train()(images, tokens, mask), model.eval()(images, tokens, mask), atol=0, rtol=0)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    config = small_config(vision__drop_path_rate=0.6)
    blocks = [block for layer in twins.twins(config)[2].vision.encoder.layers for block in layer.blocks]
    assert [block.drop_rate for block in blocks] == pytest.approx(np.linspace(0, 0.6, 5))
    block = blocks[3].train()
    x = torch.randn(4000, 2, 2, block.layernorm_before.normalized_shape[0])
    torch.manual_seed(0)
    with torch.no_grad():
        block.output.dense.weight.zero_()  # leaves the branch of attention
        block.output.dense.bias.zero_()
        branch = block(x, 0, None) - x
        plain = block.eval()(x, 0, None) - x
    dropped = (branch == 0).all(-1).all(-1).all(-1)
    assert dropped.float().mean() == pytest.approx(0.45, abs=0.03)
    torch.testing.assert_close(branch[~dropped], plain[~dropped] / 0.55, atol=1e-4, rtol=1e-4)


def test_dropout_of_words_keeps_the_mean():
    model = twins.twins(small_config(text__dropout_rate=0.3))[2].train()
    layer = model.text.encoder.layer[0]
    torch.manual_seed(0)
    with torch.no_grad():
        layer.output.LayerNorm = torch.nn.Identity()
        layer.attention.output.LayerNorm = torch.nn.Identity()
        layer.output.dense.weight.zero_()
        layer.output.dense.bias.zero_()
        x = torch.randn(1, 6, 16).expand(20_000, -1, -1)
        mask = torch.arange(6).expand(20_000, -1) < 4
        noisy, plain = layer(x, mask) - x, layer.eval()(x[:1], mask[:1]) - x[:1]
    assert (noisy == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    assert twins.relative_error(noisy.mean(0), plain[0]) < 0.03
