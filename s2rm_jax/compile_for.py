"""Compiles the training step for a slice of TPU chips that need not be there, and says what it needs and sends.

    python -m s2rm_jax.compile_for --config configs/refcoco.py --topology v5e:4x4 \\
        --config.dtype=bfloat16 --config.batch_size=128
    python -m s2rm_jax.compile_for ... --markdown step.md --json step.json

Printed are the memory of a chip and whether the step fits, its FLOPs, everything that chips send to each other, the
largest temporary arrays, and how well the step should scale, predicted from the chip's published rates.
The compiler for TPUs runs on any Linux machine: pip install -e '.[tpu]'. Swin-Base takes it half an hour of a core and
15 GB; with JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1.0 in the environment, four minutes and 6 GB, for a program that is less
optimised than that of a real run.
Topologies are written as v5e:4x4, v5e:16x16, v6e:8x8, v5p:2x2x4 or v4:2x2x4.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.errors import UserError

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a file of configs/, with an argument after a colon where it takes one", flag_values=FLAGS
)
TOPOLOGY = flags.DEFINE_string("topology", None, "the slice, such as v5e:4x4", flag_values=FLAGS)
JSON = flags.DEFINE_string("json", None, "a file to write the numbers to", flag_values=FLAGS)
MARKDOWN = flags.DEFINE_string("markdown", None, "a file to write the report to, as tables", flag_values=FLAGS)
HLO = flags.DEFINE_string("hlo", None, "a file to write the compiled program to, as XLA's text", flag_values=FLAGS)

# The compiler is to ask no machine around it what it is, and to run beside others.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_SHOWN = ("batch_size", "dtype", "remat", "input.image_size", "input.expressions_per_image", "optimizer.accumulate")


def main() -> None:
    """Compiles and reports as the flags say."""
    from s2rm_jax.config import check_config
    from s2rm_jax.measure.chips import find_chip
    from s2rm_jax.measure.compiled_report import StepFacts, as_json, as_markdown, as_text, read_program
    from s2rm_jax.parallel.mesh import build_mesh
    from s2rm_jax.training.compile import compile_training_step

    config: ConfigDict = CONFIG.value
    topology = TOPOLOGY.value
    assert topology is not None  # required
    check_config(config)
    devices = topology_devices(topology)
    chip = find_chip(devices[0].device_kind)
    if chip is None:
        raise UserError(f"--topology: there are no figures of {devices[0].device_kind} in measure/chips.py.")
    ahead = compile_training_step(config, build_mesh(config, devices))
    step = StepFacts(
        topology=topology,
        chip=chip,
        chips=len(devices),
        settings=_settings(config),
        program=read_program(ahead.compiled),
        flops=ahead.flops,
        model_flops=ahead.model_flops,
        compile_seconds=ahead.seconds,
    )
    print(as_text(step))
    if HLO.value:
        Path(HLO.value).write_text(ahead.compiled.as_text(), encoding="utf-8")
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(as_json(step), indent=2) + "\n", encoding="utf-8")
    if MARKDOWN.value:
        Path(MARKDOWN.value).write_text(as_markdown(step), encoding="utf-8")


def topology_devices(name: str) -> list[Any]:
    """Returns the devices of a slice, one for each chip, none of which need exist; must come before other use of JAX.

    Raises:
        UserError: there is no compiler for TPUs here, or no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the compiler for TPUs is not installed: pip install -e '.[tpu]' (or the libtpu it names).")
    shape = re.fullmatch(r"(v\d\w*):(\d+(?:x\d+)+)", name)
    if not shape:
        raise UserError(f"--topology is {name!r}; it must be a chip and a shape, such as v5e:4x4 or v5p:2x2x4.")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # else JAX would look for TPUs to run on
    # Two cores of a v4 chip work as one device, as they do when training.
    options = {"chip_config_name": "megacore"} if shape.group(1) == "v4" else {}
    try:
        devices = list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--topology: there is no slice {name!r}: {reason}") from error
    chips = math.prod(int(side) for side in shape.group(2).split("x"))
    if len(devices) != chips:
        raise UserError(f"--topology {name}: {len(devices)} devices on {chips} chips; only one for each is understood.")
    return devices


def _settings(config: ConfigDict) -> dict[str, Any]:
    settings = {"config.mesh.fsdp": config.mesh.fsdp, "config.mesh.step": config.mesh.step}
    for field in _SHOWN:
        value: Any = config
        for part in field.split("."):
            value = value[part]
        settings[f"config.{field}"] = value
    return settings | _compiler_effort()


def _compiler_effort() -> dict[str, Any]:
    """Says how hard the compiler was told to try, where it is not as hard as usual."""
    import jax

    effort = jax.config.values["jax_exec_time_optimization_effort"]
    return {"compiler effort": effort} if effort else {}


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, required=("config", "topology"))
