"""Download a dataset's annotations, or COCO's images, and check them: s2rm_jax/download.py in a clone.

python data/download.py refcoco --root DATA
python data/download.py images --root DATA
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works in a clone without installation

from s2rm_jax import command_line, download
from s2rm_jax.download import COMMANDS, FLAGS

if __name__ == "__main__":
    command_line.run_command(COMMANDS, FLAGS, download.__doc__)
