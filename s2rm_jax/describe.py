"""Prints what a configuration's network costs: parameters and FLOPs of each part; nothing is trained or downloaded.

python -m s2rm_jax.describe                                   # Swin-Base and BERT-base at 480 pixels
python -m s2rm_jax.describe --config configs/synthetic.py
python -m s2rm_jax.describe --config configs/synthetic.py --json
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a file of configs/; without one, the defaults of s2rm_jax/config.py", flag_values=FLAGS
)


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any]:
    """Describes the network that the flags name."""
    from s2rm_jax.config import check_config, default_config
    from s2rm_jax.models.cost import format_cost, network_cost

    config = CONFIG.value or default_config()
    check_config(config)
    costs = network_cost(config)
    print(format_cost(config, costs))
    return {part: asdict(cost) for part, cost in costs.items()}


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
