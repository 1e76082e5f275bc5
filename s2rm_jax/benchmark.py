"""Measures how fast the network is on this machine, beside what the machine can do and beside PyTorch.

    python -m s2rm_jax.benchmark --out speed                         # Swin-Base and BERT-base at 480 px, random weights
    python -m s2rm_jax.benchmark --suite torch --suite train --rounds 9
    python -m s2rm_jax.benchmark --config configs/synthetic.py --config.dtype=bfloat16

Needs neither data nor weights. Every ratio is of two things measured in turn, round by round; times are medians.
The report is printed and, with --out, written as benchmark.md and benchmark.json with its plots.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.errors import UserError
from s2rm_jax.measure.suites import DEFAULT, SUITES

if TYPE_CHECKING:
    from s2rm_jax.measure.section import Section

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a file of configs/; without it the default configuration is measured", flag_values=FLAGS
)
SUITE = flags.DEFINE_multi_enum("suite", DEFAULT, list(SUITES), "what to measure; may be repeated", flag_values=FLAGS)
ROUNDS = flags.DEFINE_integer("rounds", 5, "how often everything is timed", lower_bound=1, flag_values=FLAGS)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "images of a training step; by default 1 without --config, else that of the configuration",
    lower_bound=1,
    flag_values=FLAGS,
)
OUT = flags.DEFINE_string("out", None, "a folder to write the report to", flag_values=FLAGS)


def main() -> None:
    """Measures and reports as the flags say."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory of the same GPU
    from s2rm_jax.config import check_config, default_config
    from s2rm_jax.measure.section import as_markdown
    from s2rm_jax.measure.subject import Subject
    from s2rm_jax.measure.timing import describe_machine

    config = default_config() if CONFIG.value is None else copy.deepcopy(CONFIG.value)
    config.batch_size = BATCH_SIZE.value or (1 if CONFIG.value is None else config.batch_size)
    check_config(config)
    machine = describe_machine(sys.argv[1:])
    subject = Subject.of(config)
    sections: list[Section] = []
    names = list(dict.fromkeys(SUITE.value))
    expected = sum(SUITES[name].seconds for name in names)
    began, done = time.monotonic(), 0
    try:
        for number, name in enumerate(names, start=1):
            passed = time.monotonic() - began
            left = (expected - done) * (passed / done if done else 1)
            _tell(f"[{number}/{len(names)}] {name}; {passed / 60:.1f} min passed, about {left / 60:.1f} to go")
            sections += SUITES[name].run(subject, ROUNDS.value)
            done += SUITES[name].seconds
            if OUT.value:
                _write(Path(OUT.value), machine, sections)
    finally:  # so that nothing is lost where a later suite fails
        if sections:
            print(as_markdown(machine, sections))


def _write(folder: Path, machine: Mapping[str, str], sections: Sequence[Section]) -> None:
    from s2rm_jax.measure.section import write_report

    try:
        write_report(folder, machine, sections)
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be written ({error}); name another folder.") from error


def _tell(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
