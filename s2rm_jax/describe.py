"""Print the parameters and FLOPs of each part of a network; nothing is trained or downloaded.

python -m s2rm_jax.describe                                   # Swin-Base and BERT-base at 480 pixels
python -m s2rm_jax.describe --config configs/synthetic.py
python -m s2rm_jax.describe --config configs/synthetic.py --json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line

if TYPE_CHECKING:
    from s2rm_jax.models.cost import PartCost

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a file of configs/; without one, the defaults of s2rm_jax/config.py", flag_values=FLAGS
)

PARTS = {
    "vision": "vision (Swin)",
    "text": "text (BERT)",
    "fusion": "fusion (S2RM)",
    "decoder": "decoder (CASG)",
    "no_target": "no-target head",
}


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any]:
    """Print the cost of the network of --config, and return it by part."""
    from s2rm_jax.config import check_config, default_config
    from s2rm_jax.models.cost import network_cost

    config = CONFIG.value or default_config()
    check_config(config)
    costs = network_cost(config)
    print(format_cost(config, costs))
    return {part: asdict(cost) for part, cost in costs.items()}


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


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
