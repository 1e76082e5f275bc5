"""Prints what a configuration's network costs: parameters and FLOPs of each part; nothing is trained or downloaded.

python -m s2rm_jax.describe                                   # Swin-Base and BERT-base at 480 pixels
python -m s2rm_jax.describe --config configs/synthetic.py
"""

from __future__ import annotations

from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a file of configs/; without one, the defaults of s2rm_jax/config.py", flag_values=FLAGS
)


def main() -> None:
    """Describes the network that the flags name."""
    from s2rm_jax.config import default_config
    from s2rm_jax.config_check import check_config
    from s2rm_jax.cost import format_cost

    config = CONFIG.value or default_config()
    check_config(config)
    print(format_cost(config))


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
