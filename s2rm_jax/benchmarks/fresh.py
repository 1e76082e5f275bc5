"""What a fresh process does; it prints the seconds as JSON: `python -m s2rm_jax.benchmarks.fresh WHAT [WORKDIR]`.

WHAT is import (the package, all that trains and predicts), or step (import, then the training step of the run in
WORKDIR traced, lowered and compiled, or found where `train` keeps programs).
"""

from __future__ import annotations

import itertools
import json
import sys
import time


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
    from s2rm_jax.training.ahead_of_time import abstract_batch
    from s2rm_jax.training.compilation_cache import compilation_cache
    from s2rm_jax.training.run_config import load_config
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
