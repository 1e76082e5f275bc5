"""The cost of S2RM and CASG relative to the backbone, and the counting of FLOPs."""

import jax
import jax.numpy as jnp

from s2rm_jax.config import default_config
from s2rm_jax.describe import format_cost, format_training
from s2rm_jax.models.cost import PartCost, count_flops, network_cost, training_step_flops
from s2rm_jax.models.layers import Conv3x3


def test_counts_products_convolutions_and_scans():
    a, b = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
    assert count_flops(jnp.matmul, a, b) == 2 * 2 * 3 * 5 * 4

    def scanned(x):
        return jax.lax.scan(lambda carry, _: (carry @ jnp.ones((4, 4)), None), x, None, length=7)[0]

    assert count_flops(jax.jit(scanned), jnp.ones((3, 4))) == 7 * 2 * 3 * 4 * 4
    image, kernel = jnp.ones((1, 8, 8, 6)), jnp.ones((3, 3, 3, 10))
    grouped = lambda x, w: jax.lax.conv_general_dilated(  # noqa: E731
        x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    assert count_flops(grouped, image, kernel) == 2 * (4 * 4 * 10) * 9 * 3


def test_counts_one_branch_of_a_choice():
    """As in the gradient of a convolution, which CPUs and other devices compute in different ways."""
    conv, x = Conv3x3(8), jnp.ones((1, 6, 5, 4))
    params = conv.init(jax.random.key(0), x)
    forward = count_flops(conv.apply, params, x)
    assert forward == 2 * 9 * 30 * 4 * 8
    both = count_flops(jax.grad(lambda params, x: conv.apply(params, x).sum(), argnums=(0, 1)), params, x)
    assert both == 3 * forward


def test_fusion_and_decoder_cost_little_compared_with_swin_base_at_480():
    config = default_config()
    assert (config.vision.embed_dim, config.vision.depths, config.input.image_size) == (128, (2, 2, 18, 2), (480, 480))
    costs = network_cost(config)
    ours = (costs["fusion"], costs["decoder"])
    assert sum(cost.parameters for cost in ours) < 20e6
    assert sum(cost.flops_first for cost in ours) < 0.12 * costs["vision"].flops_first
    assert costs["vision"].flops_further == 0
    table = format_cost(config, costs)
    assert "S2RM + CASG" in table
    assert f"{costs['vision'].parameters / 1e6:.2f} M" in table


def test_the_hours_of_training_follow_from_flops_steps_and_peak():
    config = default_config()
    config.batch_size, config.input.expressions_per_image, config.steps = 10, 3, 36_000
    costs = {"vision": PartCost(0, 100_000_000_000, 0), "fusion": PartCost(0, 6_000_000_000, 2_000_000_000)}
    step = training_step_flops(config, costs)
    assert step == 3 * 10 * (100 + 6 + 2 * 2) * 1_000_000_000
    shown = format_training(config, step, mfu=0.5)
    assert "3.3 TFLOPs a step" in shown and "36,000 steps: 1.19e+17 FLOPs" in shown
    assert "A100 0.212," in shown  # 1.188e17 / (312e12 x 0.5) = 761.5 s
    assert "computes in float32, which takes longer; the hours are those with --config.dtype=bfloat16" in shown
    config.dtype = "bfloat16"
    assert "takes longer" not in format_training(config, step, mfu=0.5)
    config.steps = 0
    assert "1,000 steps: 3.30e+15" in format_training(config, step, mfu=0.5)
    assert "--config.steps=N" in format_training(config, step, mfu=0.5)
