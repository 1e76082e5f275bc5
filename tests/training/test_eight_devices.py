"""Runs on_eight_devices.py. Devices are counted when JAX starts, so this takes a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def test_on_eight_devices(long):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *(["--long"] if long else []),
            str(Path(__file__).with_name("on_eight_devices.py")),
        ],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=3600,  # only reached if something hangs
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
