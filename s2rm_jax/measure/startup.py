"""How long a person waits before anything happens: imports, compilation, and a prediction from a cold process.

What a fresh process does; it prints the seconds as JSON: `python -m s2rm_jax.measure.startup WHAT [WORKDIR]`.

WHAT is import (the package, all that trains and predicts), or step (import, then the training step of the run in
WORKDIR traced, lowered and compiled, or found where `train` keeps programs).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from etils import epath
from PIL import Image

from s2rm_jax.config import VOCAB_FILE
from s2rm_jax.errors import UserError
from s2rm_jax.measure.section import Row, Section
from s2rm_jax.measure.subject import Subject
from s2rm_jax.measure.training_speed import with_steps
from s2rm_jax.parallel.mesh import build_mesh
from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints
from s2rm_jax.training.run import save_config
from s2rm_jax.training.state import plan_state


def startup(subject: Subject, rounds: int) -> list[Section]:
    """Measures fresh processes, each started `rounds` times, but for those that find no compiled program once."""
    with tempfile.TemporaryDirectory() as folder:
        workdir, image = Path(folder) / "run", Path(folder) / "image.png"
        save_untrained_run(subject, workdir)
        Image.fromarray(subject.image(480, 640)).save(image)
        step = ["s2rm_jax.measure.startup", "step", str(workdir)]
        predict = ["s2rm_jax.predict", f"--workdir={workdir}", f"--image={image}", "--text=thing"]
        predict.append(f"--out={folder}/out")
        cold = json.loads(_run(step))
        cached = [json.loads(_run(step)) for _ in range(rounds)]
        imported = [json.loads(_run([step[0], "import"]))["import"] for _ in range(rounds)]
        first = _seconds(predict)
        later = [_seconds(predict) for _ in range(rounds)]
    found = median(step["compile"] for step in cached)
    traced = median(step["trace"] + step["lower"] for step in cached)
    rows: list[Row] = [
        ["importing the package", median(imported), "at most 2"],
        ["training step: traced and lowered", traced, ""],
        ["training step: compiled", cold["compile"], "at most 30"],
        ["training step: found in the cache", found, "at most 5"],
        ["`predict` from a cold process, nothing in the cache", first, ""],
        ["`predict` from a cold process, programs in the cache", median(later), "at most 10"],
    ]
    text = (
        f"Fresh processes, the training step of a batch of {subject.config.batch_size}, random weights; medians over "
        f"{rounds}, but for what is compiled with nothing in the cache, which was done once."
    )
    figures = {
        "import": median(imported),
        "compile": cold["compile"],
        "compile, cached": found,
        "predict, cached": median(later),
    }
    return [Section("Start-up", text, ["", "seconds", "wanted"], rows, figures)]


def save_untrained_run(subject: Subject, workdir: Path) -> None:
    """Writes a run at step 0 with the subject's parameters, from which `predict` can be started."""
    config = with_steps(subject.config)
    plan = plan_state(subject.network, config, build_mesh(config))
    workdir.mkdir()
    subject.tokenizer().save(workdir / VOCAB_FILE)
    save_config(workdir, config)
    with Checkpoints(epath.Path(workdir), config.checkpoint_every, config.eval.metric) as checkpoints:
        checkpoints.save(Checkpoint(0, plan.create(subject.params), examples_seen=0, metrics=None))


def _seconds(arguments: Sequence[str]) -> float:
    began = time.perf_counter()
    _run(arguments)
    return time.perf_counter() - began


def _run(arguments: Sequence[str]) -> str:
    """Returns what a program of this package printed."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UserError(f"--suite=startup: {arguments[0]} failed: {last}")
    return done.stdout


def main(what: str, workdir: str = "") -> None:
    """Does it and prints the seconds."""
    began = time.perf_counter()
    import s2rm_jax.segmenter
    import s2rm_jax.training.loop

    del s2rm_jax
    seconds = {"import": time.perf_counter() - began}
    if what == "step":
        seconds |= _step(workdir)
    print(json.dumps(seconds))


def _step(workdir: str) -> dict[str, float]:
    from typing import Any

    from etils import epath

    from s2rm_jax.models.network import build_network
    from s2rm_jax.parallel.mesh import build_mesh
    from s2rm_jax.training.compile import abstract_batch, compilation_cache
    from s2rm_jax.training.run import load_config
    from s2rm_jax.training.state import plan_state
    from s2rm_jax.training.step import make_train_step

    config = load_config(workdir)
    marks = [time.perf_counter()]
    network, mesh = build_network(config), build_mesh(config)
    plan = plan_state(network, config, mesh)
    step: Any = make_train_step(network, plan, config, mesh)
    traced = step.trace(plan.abstract, abstract_batch(config, mesh))
    marks.append(time.perf_counter())
    lowered = traced.lower()
    marks.append(time.perf_counter())
    with compilation_cache(config, epath.Path(workdir)):
        lowered.compile()
    marks.append(time.perf_counter())
    trace, lower, compile_ = (after - before for before, after in itertools.pairwise(marks))
    return {"trace": trace, "lower": lower, "compile": compile_}


if __name__ == "__main__":
    main(*sys.argv[1:])
