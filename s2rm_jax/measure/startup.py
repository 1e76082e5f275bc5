"""Start-up time: imports, compilation of the training step, and `predict` in a fresh process.

As a program, `python -m s2rm_jax.measure.startup WHAT [WORKDIR]` prints the seconds of one fresh process as JSON. WHAT
is "import" (what training and prediction import), or "step" (the same, then tracing, lowering and compiling the
training step of the run in WORKDIR, or loading it from the compilation cache of `train`).
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2rm_jax.measure.harness import Cells, Section, Subject

# JAX and the rest of the package are imported inside functions: this module is also the fresh process that measures
# how long importing them takes.


def startup(subject: Subject, rounds: int) -> list[Section]:
    """Measure fresh processes: `rounds` times with cached programs, once without them."""
    from PIL import Image

    from s2rm_jax.measure.harness import Section

    with tempfile.TemporaryDirectory() as folder:
        workdir, image = Path(folder) / "run", Path(folder) / "image.png"
        save_untrained_run(subject, workdir)
        Image.fromarray(subject.image(480, 640)).save(image)
        step = ["s2rm_jax.measure.startup", "step", str(workdir)]
        predict = ["s2rm_jax.predict", f"--workdir={workdir}", f"--image={image}", "--text=thing"]
        predict.append(f"--out={folder}/out")
        caches = Path(folder) / "caches"  # empty, and not those of the user
        cold = json.loads(_run(step, caches))
        cached = [json.loads(_run(step, caches)) for _ in range(rounds)]
        imported = [json.loads(_run([step[0], "import"], caches))["import"] for _ in range(rounds)]
        first = _seconds(predict, caches)
        later = [_seconds(predict, caches) for _ in range(rounds)]
    import_seconds, predict_seconds = median(imported), median(later)
    cached_seconds = median(step["compile"] for step in cached)
    rows: list[Cells] = [
        ["importing the package", import_seconds, "at most 2"],
        ["training step: tracing and lowering", median(step["trace"] + step["lower"] for step in cached), ""],
        ["training step: compilation", cold["compile"], "at most 30"],
        ["training step: loading from the cache", cached_seconds, "at most 5"],
        ["`predict`: first process", first, ""],
        ["`predict`: later process, with kept programs", predict_seconds, "at most 10"],
    ]
    text = (
        f"Fresh processes, random weights, a training step of batch size {subject.config.batch_size}. Medians over "
        f"{rounds} rounds, except of what comes first, with empty caches, which was measured once."
    )
    figures = {
        "import": import_seconds,
        "compile": cold["compile"],
        "compile, cached": cached_seconds,
        "predict, first": first,
        "predict, cached": predict_seconds,
    }
    return [Section("Start-up", text, ["", "seconds", "target"], rows, figures)]


def save_untrained_run(subject: Subject, workdir: Path) -> None:
    """Write a workdir at step 0 with the subject's parameters, from which `predict` can run."""
    from etils import epath

    from s2rm_jax.config import VOCAB_FILE
    from s2rm_jax.parallel.mesh import build_mesh
    from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints
    from s2rm_jax.training.compile import with_fixed_steps
    from s2rm_jax.training.run import save_config
    from s2rm_jax.training.state import plan_state

    config = with_fixed_steps(subject.config)
    plan = plan_state(subject.network, config, build_mesh(config))
    workdir.mkdir()
    subject.tokenizer().save(workdir / VOCAB_FILE)
    save_config(workdir, config)
    with Checkpoints(epath.Path(workdir), config.checkpoint_every, config.eval.metric) as checkpoints:
        checkpoints.save(Checkpoint(0, plan.create(subject.params), rows_seen=0, metrics=None))


def _seconds(arguments: Sequence[str], caches: Path) -> float:
    start = time.perf_counter()
    _run(arguments, caches)
    return time.perf_counter() - start


def _run(arguments: Sequence[str], caches: Path) -> str:
    """Run a module of this package in a fresh process, which caches in the folder `caches`; return what it prints."""
    from s2rm_jax.errors import UserError

    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(caches)
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output on stderr"])[-1]
        raise UserError(f"--suite=startup: {arguments[0]} failed: {last}")
    return done.stdout


def main(what: str, workdir: str = "") -> None:
    """Print the seconds of `what` as JSON."""
    start = time.perf_counter()
    import s2rm_jax.segmenter
    import s2rm_jax.training.loop

    del s2rm_jax
    seconds = {"import": time.perf_counter() - start}
    if what == "step":
        seconds |= _step(workdir)
    print(json.dumps(seconds))


def _step(workdir: str) -> dict[str, float]:
    from etils import epath

    from s2rm_jax.models.network import build_network
    from s2rm_jax.parallel.mesh import build_mesh
    from s2rm_jax.parallel.programs import compilation_cache
    from s2rm_jax.training.compile import abstract_batch
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
