"""The end of one of several processes."""

import subprocess
import sys

# Leaves after an error, and receives SIGTERM from the launcher, which has seen another process end.
LEAVE = """
import os, signal, sys, time
from s2rm_jax.parallel import distributed
distributed._joining = "done"
time.sleep = lambda _: os.kill(os.getpid(), signal.SIGTERM)
distributed.leave(75, failed=True)
"""


def test_a_process_that_leaves_ends_with_its_own_status():
    assert subprocess.run([sys.executable, "-c", LEAVE], check=False).returncode == 75
