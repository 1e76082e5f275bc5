"""A process killed at any moment of a save leaves no incomplete checkpoint that counts as one."""

import os
import subprocess
import sys
from pathlib import Path


def test_no_moment_of_a_save_leaves_half_a_checkpoint(tmp_path, long):
    lives = 50 if long else 10
    program = Path(__file__).with_name("save_and_die.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(lives), "7"],
        env=os.environ | {"PYTHONPATH": str(program.parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cut_short, last_step = map(int, done.stdout.split())
    assert cut_short >= lives // 3  # most died within a save
    assert last_step >= lives // 4  # and yet the run went on
