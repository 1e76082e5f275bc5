"""Eight devices give what one gives. Devices are counted when JAX starts, so this takes a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training.checkpoint import Checkpoints, restore_params
from s2rm_jax.training.state import plan_state

CHECK = """
import importlib.util, sys
import jax, numpy as np
from jax.sharding import PartitionSpec
spec = importlib.util.spec_from_file_location("training_standin", sys.argv[1])
standin = importlib.util.module_from_spec(spec); sys.modules[spec.name] = standin; spec.loader.exec_module(standin)
from pathlib import Path
from s2rm_jax.parallel.mesh import make_mesh, put_batch
from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints
from s2rm_jax.training.run_config import save_config
from s2rm_jax.training.state import plan_state
from s2rm_jax.training.step import make_train_step, split_microbatches

assert jax.device_count() == 8
batches = [standin.make_batch(seed, 16) for seed in range(3)]
per_device = batches[0].valid.sum(1).reshape(8, 2).sum(1)
assert len(set(per_device)) > 1, "the valid expressions must lie unevenly"

def train(devices, parts):
    mesh = make_mesh(devices=jax.devices()[:devices])
    config = standin.make_config(batch_size=16, optimizer__accumulate=parts, optimizer__clip_norm=0.1)
    network = standin.StandIn(dropout_rate=0.3)
    plan = plan_state(network, config, mesh)
    step, state, losses = make_train_step(network, plan, config, mesh), plan.create(), []
    with jax.transfer_guard("disallow"):
        for batch in batches:
            state, metrics = step(state, put_batch(batch, mesh))
            losses.append(float(jax.device_get(metrics["loss"])))
    for leaf in jax.tree.leaves(state.params):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == devices
    if devices == 8 and parts == 1:
        workdir = Path(sys.argv[2])
        save_config(workdir, config)
        with Checkpoints(workdir, 5, "mean_iou") as checkpoints:
            checkpoints.save(Checkpoint(3, state, 48, None), config)
    return losses, jax.device_get(state.params)

for parts in (1, 2):
    losses, params = train(8, parts)
    expected_losses, expected_params = train(1, parts)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), params, expected_params)

mesh = make_mesh()
batch = put_batch(batches[0], mesh)
split = jax.jit(lambda b: split_microbatches(b, 2, mesh))
parts = split(batch)
assert parts.images.sharding.spec == PartitionSpec(None, "data"), parts.images.sharding
np.testing.assert_array_equal(parts.images[1], batches[0].images[1::2])
hlo = split.lower(batch).compile().as_text()
for moved in ("all-to-all", "all-gather", "collective-permute", "all-reduce"):
    assert moved not in hlo, f"splitting into microbatches moves pictures between devices: {moved}"
print("equal on 8 devices")
"""


def test_eight_devices_equal_one_and_their_checkpoint_moves_to_one(standin, quick_compilation, tmp_path):
    environment = (
        os.environ
        | quick_compilation
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    )
    done = subprocess.run(
        [sys.executable, "-c", CHECK, standin.__file__, str(tmp_path)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "equal on 8 devices" in done.stdout

    config = standin.make_config(batch_size=16, optimizer__clip_norm=0.1)
    plan = plan_state(standin.StandIn(), config, make_mesh(devices=jax.devices()[:1]))
    with Checkpoints(tmp_path, 5, "mean_iou") as checkpoints:
        restored = checkpoints.restore_latest(plan.abstract)
    assert restored is not None and restored.state.step == 3
    jax.tree.map(np.testing.assert_array_equal, restore_params(tmp_path), restored.state.params)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(restored.state))
