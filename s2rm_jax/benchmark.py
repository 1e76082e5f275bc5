"""Measure the speed of the network on this machine, compared with what the machine can do and with PyTorch.

    python -m s2rm_jax.benchmark --out speed                         # Swin-Base and BERT-base at 480 px, random weights
    python -m s2rm_jax.benchmark --suite torch --suite train --rounds 9
    python -m s2rm_jax.benchmark --config configs/synthetic.py --config.dtype=bfloat16
    python -m s2rm_jax.benchmark --suite gpu --minutes 8 --out gpu    # needs a GPU
    python -m s2rm_jax.benchmark --suite lavt --lavt DIR --rounds 5   # DIR: a checkout of github.com/yz93/LAVT-RIS

No data and no weights are needed. Times are medians. Alternatives are timed in turn, round by round, and a ratio is
taken within each round. Each table is printed as soon as it is measured and, with --out, written to benchmark.md and
benchmark.json.

Suites: parts (time of each part and its floor), expressions (several expressions on one image), fusion (share of S2RM),
programs (what repeated requests compile), growth (time by size), scoring (work of the host in `evaluate`), train (the
training step by batch size and config.remat), startup (of training and prediction), torch (against PyTorch), lavt
(against LAVT's code), serving (the demo under load), gpu (forward pass, training step, attention, PyTorch and predict
on a GPU, within --minutes). docs/results/speed.md and docs/results/serving.md have results.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.errors import UserError
from s2rm_jax.parallel.devices import keep_freed_memory

if TYPE_CHECKING:
    from s2rm_jax.measure.harness import Section


class Suite(NamedTuple):
    """A function "MODULE.FUNCTION" of s2rm_jax.measure, imported only if the suite runs.

    `seconds` is its duration with the default network and 5 rounds on two idle cores, for the estimate of the rest.
    `flags` are the flags whose values the function takes by name.
    """

    path: str
    seconds: int
    flags: tuple[str, ...] = ()

    def load(self) -> Callable[..., Iterable[Section]]:
        """Return the function, which takes the subject and the number of rounds."""
        module, function = self.path.split(".")
        return getattr(importlib.import_module(f"s2rm_jax.measure.{module}"), function)


SUITES = {
    "parts": Suite("parts.part_floors", 50),
    "expressions": Suite("many_expressions.many_expressions", 65),
    "fusion": Suite("parts.fusion_share", 50),
    "gpu": Suite("gpu.gpu", 480, ("minutes",)),
    "growth": Suite("parts.growth", 220),
    "lavt": Suite("many_expressions.against_lavt", 120, ("lavt",)),
    "programs": Suite("many_expressions.serving_programs", 80),
    "scoring": Suite("training_speed.scoring", 60),
    "serving": Suite("serving_load.serving", 150),
    "startup": Suite("startup.startup", 200),
    "train": Suite("training_speed.training_speed", 200),
    "torch": Suite("against_torch.against_torch", 280),
}
DEFAULT_SUITES = ("parts", "expressions", "fusion", "programs")  # a few minutes, no optional dependencies

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"{command_line.CONFIG_HELP}; by default Swin-Base and BERT-base at 480 px", flag_values=FLAGS
)
SUITE = flags.DEFINE_multi_enum(
    "suite", DEFAULT_SUITES, list(SUITES), "what to measure; may be repeated", flag_values=FLAGS
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "timed runs of each alternative", lower_bound=1, flag_values=FLAGS)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "images of a training step; defaults to that of --config, or to 1 without --config",
    lower_bound=1,
    flag_values=FLAGS,
)
MINUTES = flags.DEFINE_float("minutes", 8.0, "time for --suite=gpu", lower_bound=0.0, flag_values=FLAGS)
LAVT = flags.DEFINE_string("lavt", None, "a checkout of LAVT's code, for --suite=lavt", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "a folder to write the report to", flag_values=FLAGS)


def main() -> None:
    """Run the suites and report their results."""
    keep_freed_memory()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory of the same GPU
    from s2rm_jax.config import check_config, default_config
    from s2rm_jax.io import writing
    from s2rm_jax.measure.harness import Subject, describe_machine, report_markdown, write_benchmark

    for flag in dict.fromkeys(flag for suite in SUITES.values() for flag in suite.flags):
        readers = [name for name, suite in SUITES.items() if flag in suite.flags]
        if FLAGS[flag].present and not {*readers} & {*SUITE.value}:
            raise UserError(f"--{flag} is read by --suite {' and '.join(readers)} only")
    if BATCH_SIZE.value and "batch_size" in command_line.given_fields(FLAGS):
        raise UserError("--batch_size and --config.batch_size are both given; give one of them")
    config = default_config() if CONFIG.value is None else copy.deepcopy(CONFIG.value)
    config.batch_size = BATCH_SIZE.value or (1 if CONFIG.value is None else config.batch_size)
    check_config(config)
    machine = describe_machine(sys.argv[1:])
    subject = Subject.from_config(config)
    sections: list[Section] = []
    names = list(dict.fromkeys(SUITE.value))
    expected = sum(SUITES[name].seconds for name in names)
    start, done = time.monotonic(), 0
    print(report_markdown(machine, sections))
    for number, name in enumerate(names, start=1):
        passed = time.monotonic() - start
        left = (expected - done) * (passed / done if done else 1)
        progress = f"[{number}/{len(names)}] {name}; {passed / 60:.1f} min elapsed, about {left / 60:.1f} min left"
        print(progress, file=sys.stderr, flush=True)
        suite = SUITES[name]
        for section in suite.load()(subject, ROUNDS.value, **{flag: FLAGS[flag].value for flag in suite.flags}):
            print(section.markdown(), flush=True)
            sections.append(section)
            if OUT.value:
                with writing(Path(OUT.value)):
                    write_benchmark(Path(OUT.value), machine, sections)
        done += suite.seconds


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__)
