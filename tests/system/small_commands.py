"""The commands train and evaluate with a network that compiles in a second: `small_commands.py train|evaluate FLAGS`.

Environment variables: GATE, a file with a byte for each batch of training that may be read (`standin.wait_at`);
FAIL_AT, the batch at which reading fails for the process number FAILS.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from s2rm_jax import command_line
from s2rm_jax.evaluation import gallery
from s2rm_jax.input import pipeline
from s2rm_jax.models import network
from s2rm_jax.training import run

spec = importlib.util.spec_from_file_location("standin", Path(__file__).parents[1] / "training" / "standin.py")
assert spec is not None and spec.loader is not None
standin = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = standin
spec.loader.exec_module(standin)
train_batches = pipeline.train_batches


def gated_batches(*arguments, **named):
    for number, batch in enumerate(train_batches(*arguments, **named), start=1):
        if "GATE" in os.environ:
            standin.wait_at(Path(os.environ["GATE"]), number)
        if number == int(os.environ.get("FAIL_AT", "0")) and os.environ["FAILS"] == os.environ["S2RM_PROCESS_ID"]:
            raise OSError("the disk is gone")
        yield batch


def note_explained(folder, sections, explain):
    """Write a list instead of figures, because this network has no attention to draw."""
    assert callable(explain)
    (folder / "explained.txt").write_text(" ".join(sections))


if __name__ == "__main__":
    for module in (network, run):
        module.build_network = lambda config: standin.StandIn(dropout_rate=0.5, words=config.text.vocab_size)
    pipeline.train_batches = gated_batches
    gallery.write_explained_cases = note_explained
    command = importlib.import_module(f"s2rm_jax.{sys.argv.pop(1)}")
    command_line.run_and_exit(command.main, command.FLAGS, command.__doc__, required=("workdir",))
