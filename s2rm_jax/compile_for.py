"""Compile the training step for a TPU slice, on a machine without TPUs, and report its memory and communication.

    python -m s2rm_jax.compile_for --config configs/refcoco.py --topology v5e:4x4 \\
        --config.dtype=bfloat16 --config.batch_size=128   # needs pip install -e '.[tpu]'
    python -m s2rm_jax.compile_for ... --json > step.json 2> step.md

The report shows the memory per chip and whether the step fits, its FLOPs, all collectives, and the scaling predicted
from the published rates of the chip.
A topology has the form CHIP:SHAPE, such as v5e:1x1, v5e:4x4, v5e:16x16, v6e:8x8, v5p:2x2x4 or v4:2x2x4.

The compiler for TPUs runs on any Linux machine: pip install -e '.[tpu]'. For Swin-Base it takes half an hour of one
core and 15 GB; with JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1.0 in the environment, four minutes and 6 GB, for a program
that is less optimized than that of a real run.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.errors import UserError, reason_of

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file("config", None, command_line.CONFIG_HELP, flag_values=FLAGS)
TOPOLOGY = flags.DEFINE_string("topology", None, "the TPU slice, such as v5e:4x4", flag_values=FLAGS)

# Let the compiler run without querying the host for TPUs, and alongside other processes.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_CHIPS_PER_HOST = 4  # by default of the compiler; a smaller slice is a part of a host
_SHOWN = ("batch_size", "dtype", "remat", "input.image_size", "input.expressions_per_image", "optimizer.accumulate")


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any]:
    """Compile the step, print a report of it, and return the report."""
    from s2rm_jax.config import check_config
    from s2rm_jax.measure.compiled_report import StepFacts, as_json, as_markdown, read_program
    from s2rm_jax.parallel.devices import CHIPS
    from s2rm_jax.parallel.mesh import build_mesh
    from s2rm_jax.training.compile import compile_training_step

    config: ConfigDict = CONFIG.value
    topology = TOPOLOGY.value
    assert topology is not None  # required
    check_config(config)
    devices = topology_devices(topology)
    chip = CHIPS.get(devices[0].device_kind)
    if chip is None:
        raise UserError(f"--topology: {devices[0].device_kind} is not listed in s2rm_jax/parallel/devices.py")
    compiled_step = compile_training_step(config, build_mesh(config, devices))
    step = StepFacts(
        topology=topology,
        chip=chip,
        chips=len(devices),
        settings=_settings(config),
        program=read_program(compiled_step.executable),
        flops=compiled_step.flops,
        model_flops=compiled_step.model_flops,
        compile_seconds=compiled_step.seconds,
    )
    print(as_markdown(step))
    return as_json(step)


def topology_devices(name: str) -> list[Any]:
    """Return the devices of a slice, one per chip, which need not exist; call it before any other use of JAX.

    Raises:
        UserError: the compiler for TPUs is not installed, or the slice does not exist.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the compiler for TPUs (libtpu) is not installed: pip install -e '.[tpu]'")
    shape = re.fullmatch(r"(v\d\w*):(\d+(?:x\d+)+)", name)
    if not shape:
        raise UserError(f"--topology is {name!r}; it must be CHIP:SHAPE, such as v5e:4x4 or v5p:2x2x4")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # do not search for TPUs to run on
    sides = [int(side) for side in shape.group(2).split("x")]
    chips = math.prod(sides)
    # The two cores of a v4 chip are one device, as in training.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if shape.group(1) == "v4" else {}
    if chips < _CHIPS_PER_HOST:
        options["chips_per_host_bounds"] = (*sides, 1, 1)[:3]
    try:
        devices = list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except RuntimeError as error:
        raise UserError(f"--topology: slice {name!r} not found: {reason_of(error)}") from error
    if len(devices) != chips:
        raise UserError(
            f"--topology {name}: {len(devices)} devices on {chips} chips; only one device per chip is supported"
        )
    return devices


def _settings(config: ConfigDict) -> dict[str, Any]:
    import jax

    settings = {"config.mesh.fsdp": config.mesh.fsdp, "config.mesh.step": config.mesh.step}
    for field in _SHOWN:
        value: Any = config
        for part in field.split("."):
            value = value[part]
        settings[f"config.{field}"] = value
    effort = jax.config.values["jax_exec_time_optimization_effort"]
    return settings | ({"compiler effort": effort} if effort else {})


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__, required=("config", "topology"))
