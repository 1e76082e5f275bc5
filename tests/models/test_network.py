"""The whole network: padding, batching, gradients, ablations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.interop.parameter_names import network_layout
from s2rm_jax.models.casg import ConvBlock
from s2rm_jax.models.network import build_network, normalize
from tests.models.small import draw_parameters, small_config, small_inputs, small_network


@pytest.fixture(scope="module")
def small():
    return small_network()


@pytest.fixture(scope="module")
def encode(small):
    """The jitted encoding of images."""
    network, params, _ = small
    return jax.jit(lambda images: network.apply({"params": params}, images, method="encode_image"))


def test_outputs_have_the_size_of_the_image(small):
    _, params, apply = small
    output = apply(params, *small_inputs())
    assert output.logits.shape == (2, 3, 40, 56)
    assert output.logits.dtype == jnp.float32
    assert [x.shape for x in output.coarse_logits] == [(2, 3, 3, 4), (2, 3, 5, 7)]
    assert output.word_attention.shape == (2, 3, 2, 3, 4, 6)
    assert {pair: x.shape for pair, x in output.group_maps.items()} == {
        "language_parses_vision": (4, 2, 3, 3, 4, 16),
        "vision_parses_language": (4, 2, 3, 3, 4, 16),
    }
    for weights in output.balance_weights.values():
        np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(33, 47), (64, 32), (41, 41)])
def test_any_image_size(small, size):
    network, params, _ = small
    output = jax.eval_shape(lambda *x: network.apply({"params": params}, *x), *small_inputs(1, 2, *size))
    assert output.logits.shape == (1, 2, *size)


def test_a_batch_equals_its_images_and_expressions_one_by_one(small):
    _, params, apply = small
    images, tokens, mask = small_inputs()
    together = apply(params, images, tokens, mask).logits
    for b, k in np.ndindex(2, 3):
        alone = apply(params, images[b : b + 1], tokens[b : b + 1, k : k + 1], mask[b : b + 1, k : k + 1]).logits
        np.testing.assert_allclose(together[b : b + 1, k : k + 1], alone, atol=1e-5)


def test_padding_tokens_change_nothing(small):
    _, params, apply = small
    images, tokens, mask = small_inputs()
    output = apply(params, images, tokens, mask)
    other = apply(params, images, jnp.where(mask, tokens, 13), mask)
    np.testing.assert_allclose(other.logits, output.logits, atol=1e-6)
    assert (np.moveaxis(np.asarray(output.word_attention), -1, 2)[~np.asarray(mask)] == 0).all()


def test_a_padded_expression_changes_nothing_and_stays_finite(small):
    _, params, apply = small
    images, tokens, mask = small_inputs()
    output = apply(params, images, tokens, mask)
    padded = apply(params, images, tokens.at[:, 2].set(0), mask.at[:, 2].set(False))
    np.testing.assert_allclose(padded.logits[:, :2], output.logits[:, :2], atol=1e-6)
    assert np.isfinite(padded.logits).all()


def test_uint8_images_are_normalized_once_and_float_images_not_at_all(encode):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)
    of_bytes, of_floats = encode(pixels), jax.jit(lambda images: encode(normalize(images)))(pixels)
    jax.tree.map(np.testing.assert_array_equal, of_bytes, of_floats)
    other = encode(pixels.astype(np.float32))
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(of_bytes, other, strict=True))


def test_shapes_are_checked_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError):
        normalize(np.zeros((2, 3), np.uint8))


def test_normalize_uses_the_mean_and_deviation_of_imagenet_in_rgb_order():
    expected = [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0 - 0.406) / 0.225]  # those of torchvision
    np.testing.assert_allclose(normalize(np.array([[[255, 51, 0]]], np.uint8)), [[expected]], rtol=1e-6)


def test_an_image_is_encoded_once_for_any_number_of_expressions(small, encode):
    network, params, apply = small
    images, tokens, mask = small_inputs()
    features = encode(images)
    assert [f.shape[0] for f in features] == [2, 2, 2]
    ground = jax.jit(lambda p, *x: network.apply({"params": p}, *x, (40, 56), method="ground"))
    np.testing.assert_allclose(
        ground(params, features, tokens, mask).logits, apply(params, images, tokens, mask).logits, atol=1e-6
    )


def require_gradients(gradients):
    """Every gradient is finite, and none is zero by construction."""
    # A bias of the keys shifts all logits of a softmax alike, so its gradient vanishes by construction.
    ignored = ("key/bias", "qkv/bias")
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(gradient).all(), name
        if name.endswith(ignored):
            continue
        used = np.abs(gradient).max(tuple(range(gradient.ndim - 1)))  # of each output feature
        if "embeddings" in name:  # a word that is not in the batch has no gradient
            used = used.max()
        assert (used > 1e-12).all(), name


def energy(output):
    return (output.logits**2).mean() + sum((x**2).mean() for x in output.coarse_logits)


def test_every_gradient_is_finite_and_none_is_zero_by_construction(small):
    _, params, apply = small
    inputs = small_inputs()
    require_gradients(jax.jit(jax.grad(lambda p: energy(apply(p, *inputs))))(params))


ABLATIONS = (  # changes that do not touch each other share a program
    {"fusion__mode": "sum", "decoder__guidance": "maps"},
    {"fusion__mode": "product", "decoder__guidance": "none"},
    {"fusion__language": "sentence", "fusion__mode": "concat", "decoder__semantics": ("sentence",)},
    {"fusion__mode": "attention", "decoder__semantics": ("stages",)},
    {"fusion__recurrence": "linear", "fusion__rotations": (0,)},
    {"fusion__recurrence": "none", "fusion__rotations": (0, 180)},
    {"fusion__rotations": (90, 270), "fusion__residual": "vision"},
    {"fusion__pairs": ("language_parses_vision",), "fusion__balance": "channel"},
    {"fusion__pairs": ("vision_parses_language",), "fusion__balance": "mean"},
)


def grounding(change):
    """Return init and apply of a changed network on drawn vision maps.

    Vision is the same in every ablation, so its maps are drawn and not computed. Two stages are enough, unless the
    decoder is changed, whose middle stage both gives and takes guidance.
    """
    two_stages = {"vision__depths": (1, 1), "vision__num_heads": (1, 2), "decoder__widths": (8, 12)}
    of_decoder = any(name.startswith("decoder") for name in change)
    network = build_network(small_config(text__num_layers=1, **change if of_decoder else two_stages | change))
    _, tokens, mask = small_inputs(k=2)
    rng = np.random.default_rng(2)
    grids = ((6, 10, 8), (3, 5, 16), (2, 3, 32))  # of the vision maps of images of 24 x 40 pixels
    grids = grids if of_decoder else grids[:2]
    features = tuple(jnp.asarray(rng.normal(size=(2, *grid)), jnp.float32) for grid in grids)
    inputs = features, tokens, mask, (24, 40)
    return (
        lambda: network.init(jax.random.key(0), *inputs, method="ground"),
        lambda params: network.apply({"params": params}, *inputs, method="ground"),
    )


@pytest.mark.parametrize("change", ABLATIONS, ids=str)
def test_every_gradient_of_an_ablation_is_finite_and_none_is_zero_by_construction(change):
    init, ground = grounding(change)
    params = draw_parameters(jax.eval_shape(init)["params"])
    require_gradients(jax.jit(jax.grad(lambda p: energy(ground(p))))(params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion__mode": "convolution"}, "fusion mode must be one of"),
        ({"fusion__language": "letters"}, "fusion language must be one of"),
        ({"decoder__semantics": ()}, "semantics must be among"),
        ({"fusion__pairs": ("vision",)}, "fusion pairs must be among"),
        ({"fusion__balance": "max"}, "balance must be one of"),
        ({"fusion__residual": "language"}, "fusion residual must be one of"),
        ({"decoder__guidance": "half"}, "guidance must be one of"),
    ],
)
def test_an_unknown_choice_is_refused(change, message):
    init, _ = grounding(change)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(init)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": lambda x: x.transpose(0, 3, 1, 2)}, r"images must have .* got \(2, 3, 40, 56\); move the channels"),
        ({"images": lambda x: x[0]}, r"images must have shape \[b, height, width, 3\], got \(40, 56, 3\)"),
        (
            {"images": lambda x: x.astype(int)},
            r"images must be uint8, or float and normalized \(`normalize`\), got int32",
        ),
        ({"images": lambda x: x[:1]}, r"tokens must have shape \[b, k, l\] with b = 1 images, got \(2, 3, 6\)"),
        ({"tokens": lambda x: x[:, 0]}, r"tokens must have shape \[b, k, l\] with b = 2 images, got \(2, 6\)"),
        ({"mask": lambda x: x[..., :1]}, r"token_mask must be bool \(2, 3, 6\), .*, got bool \(2, 3, 1\)"),
        ({"mask": lambda x: jnp.where(x, 0.0, -1e9)}, r"token_mask must be bool .*, got float32 \(2, 3, 6\)"),
    ],
)
def test_inputs_of_wrong_shapes_and_types_are_refused(small, unchecked, change, message):
    network, params, _ = small
    inputs = dict(zip(("images", "tokens", "mask"), small_inputs(), strict=True))
    (name, spoil), *_ = change.items()
    inputs[name] = spoil(inputs[name])
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: network.apply({"params": p}, *inputs.values()), params)


def test_the_parts_refuse_a_mask_that_is_not_bool_too(small, unchecked):
    network, params, _ = small
    tokens, mask = jnp.ones((3, 6), jnp.int32), jnp.ones((3, 6))
    with pytest.raises(ValueError, match=r"token_mask must be bool \(3, 6\)"):
        network.apply({"params": params}, tokens, mask, method="encode_text")
    features = network.apply({"params": params}, small_inputs(1)[0], method="encode_image")
    with pytest.raises(ValueError, match=r"token_mask must be bool \(1, 3, 6\)"):
        words = jnp.ones((1, 3, 6, 16))
        network.apply({"params": params}, features, words, mask[None], (40, 56), method="fuse_and_decode")


class TwoConvolutions(nn.Module):
    """A backbone of two stages that is not a Swin."""

    patch_size: int = 8

    @nn.compact
    def __call__(self, images, train=False):
        fine = nn.Conv(8, (8, 8), (8, 8), "SAME")(images)
        return fine, nn.Conv(16, (2, 2), (2, 2), "SAME")(fine)


def test_another_backbone_segments_and_cannot_be_exported_to_pytorch():
    network = build_network(small_config(decoder__widths=(8, 12))).clone(vision=TwoConvolutions())
    output, variables = jax.eval_shape(lambda *x: network.init_with_output(jax.random.key(0), *x), *small_inputs())
    assert output.logits.shape == (2, 3, 40, 56) and output.coarse_logits[0].shape == (2, 3, 3, 4)
    with pytest.raises(UserError, match=r"the backbone is not a Swin, .* use to-stablehlo"):
        network_layout(variables["params"])


@pytest.mark.parametrize("dtype", ["bf16", "float16"])
def test_another_dtype_is_refused(dtype):
    config = small_config()
    config.dtype = dtype
    with pytest.raises(UserError, match=f"config.dtype is '{dtype}'; it must be one of: float32, bfloat16"):
        build_network(config)


def test_bfloat16_computes_masks_close_to_float32(small):
    _, params, apply = small
    config = small_config()
    config.dtype = "bfloat16"
    inputs = small_inputs()

    def computed(params, *inputs):
        """Return the output, and what the blocks of the decoder return."""
        capture = {"capture_intermediates": lambda module, _: isinstance(module, ConvBlock), "mutable": "intermediates"}
        return build_network(config).apply({"params": params}, *inputs, **capture)

    half, kept = jax.jit(computed)(params, *inputs)
    blocks = jax.tree.leaves(kept["intermediates"]["decoder"])
    assert len(blocks) == len(config.decoder.widths)
    assert {leaf.dtype for leaf in (*blocks, *half.group_maps.values())} == {jnp.dtype("bfloat16")}
    full = apply(params, *inputs)
    assert half.logits.dtype == jnp.float32
    error = np.linalg.norm(half.logits - full.logits) / np.linalg.norm(full.logits)
    assert 0 < error < 0.05
