"""Print the parameters and FLOPs of a network and the estimated hours of training. Nothing is trained or downloaded.

    python -m s2rm_jax.describe                                   # Swin-Base and BERT-base at 480 pixels
    python -m s2rm_jax.describe --config configs/synthetic.py --json
    python -m s2rm_jax.describe --config configs/refcoco.py --config.steps=53000   # needs no data

The hours are FLOPs divided by the peak of the device in bfloat16 and by --mfu, the share of the peak that training
reaches. They are an estimate, not a measurement. They leave out evaluation, compilation, waiting for data and what
config.remat computes twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.errors import counted
from s2rm_jax.parallel.devices import ASSUMED_MFU, CHIPS, GPU_MATRIX_RATES

if TYPE_CHECKING:
    from s2rm_jax.models.cost import PartCost

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"{command_line.CONFIG_HELP}; by default the values of s2rm_jax/config.py", flag_values=FLAGS
)

MFU = flags.DEFINE_float(
    "mfu", ASSUMED_MFU, "the share of a device's peak FLOPs that training reaches", 0.01, 1.0, flag_values=FLAGS
)

# FLOP/s of dense bfloat16 matrix products.
PEAK_FLOPS = {
    "H100": GPU_MATRIX_RATES["H100 80GB HBM3"],
    "A100": GPU_MATRIX_RATES["A100-SXM4-80GB"],
    "RTX 4090": GPU_MATRIX_RATES["GeForce RTX 4090"],
    "v5e-4": 4 * CHIPS["TPU v5 lite"].matrix_rate,
    "v5e-16": 16 * CHIPS["TPU v5 lite"].matrix_rate,
}

PARTS = {
    "vision": "vision (Swin)",
    "text": "text (BERT)",
    "fusion": "fusion (S2RM)",
    "decoder": "decoder (CASG)",
    "no_target": "no-target head",
}


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any]:
    """Print the cost of the network of --config and of its training; return it by part."""
    from s2rm_jax.config import check_config, default_config
    from s2rm_jax.models.cost import network_cost, training_step_flops

    config = CONFIG.value or default_config()
    check_config(config)
    costs = network_cost(config)
    step_flops = training_step_flops(config, costs)
    print(format_cost(config, costs))
    print(format_training(config, step_flops, MFU.value))
    return {part: asdict(cost) for part, cost in costs.items()} | {"training": {"step_flops": step_flops}}


def format_cost(config: ConfigDict, costs: Mapping[str, PartCost]) -> str:
    """Return a table of the costs from `network_cost`, and what S2RM and CASG add to the vision backbone."""
    rows = [f"{'part':<16}{'parameters':>14}{'GFLOPs, first expression':>27}{'GFLOPs, each further':>23}"]
    rows += [
        f"{PARTS[part]:<16}{cost.parameters / 1e6:>12.2f} M"
        f"{cost.flops_first / 1e9:>27.2f}{cost.flops_further / 1e9:>23.2f}"
        for part, cost in costs.items()
    ]
    height, width = config.input.image_size
    parameters = costs["fusion"].parameters + costs["decoder"].parameters
    share = (costs["fusion"].flops_first + costs["decoder"].flops_first) / costs["vision"].flops_first
    rows.append(
        f"S2RM + CASG: {parameters / 1e6:.2f} M parameters, {100 * share:.1f} % of the vision backbone's FLOPs "
        f"per expression, at {width} x {height} pixels and {config.text.max_tokens} tokens."
    )
    return "\n".join(rows)


def format_training(config: ConfigDict, step_flops: int, mfu: float) -> str:
    """Return the FLOPs of the training of `config`, and the hours on each of PEAK_FLOPS at the share `mfu` of it.

    If `config.steps` is 0, the hours are per 1,000 steps.
    """
    steps = config.steps or 1000
    total = steps * step_flops
    expressions = counted(config.input.expressions_per_image, "expression")
    images = f"{counted(config.batch_size, 'image')} with {expressions} each"
    rows = [
        f"Training: {step_flops / 1e12:.3g} TFLOPs a step of {images}; {steps:,} steps: {total:.2e} FLOPs.",
        f"Estimated hours at {100 * mfu:.0f} % of the peak in bfloat16: "
        + ", ".join(f"{name} {total / (peak * mfu) / 3600:.3g}" for name, peak in PEAK_FLOPS.items())
        + ".",
    ]
    if config.dtype != "bfloat16":
        rows.append(
            f"This configuration computes in {config.dtype}, which takes longer; the hours are those with "
            "--config.dtype=bfloat16."
        )
    if not config.steps:
        rows.append("The number of steps depends on the data; give it with --config.steps=N.")
    return "\n".join(rows)


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__)
