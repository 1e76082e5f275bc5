"""Devices exchange gradients and scalars only, no images and no feature maps."""

import json
import math
import os

# Devices are counted when JAX starts, so this takes a process of its own.
COMPILE = """
import json
import jax
from s2rm_jax.measure.compiled_report import read_program
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel.mesh import build_mesh
from s2rm_jax.training.compile import compile_training_step
from s2rm_jax.training.state import parameter_shapes
from tests.models.small import small_config

config = small_config(input__image_size=(24, 40), input__expressions_per_image=3, decoder__no_target_width=8)
config.vision.update(depths=(1, 2), num_heads=(1, 2), drop_path_rate=0.2)
config.text.update(num_layers=1, dropout_rate=0.1, max_positions=6)
config.decoder.widths = (8, 12)
config.batch_size = 56  # 7 on each device, a number that no parameter has for a side
config.optimizer.clip_norm = 1.0
config.loss.coarse_weight = 0.2
config.remat = "dense"
mesh = build_mesh(config)
assert mesh.size == 8
program = read_program(compile_training_step(config, mesh).executable)
shapes = [leaf.shape for leaf in jax.tree.leaves(parameter_shapes(build_network(config), config))]
exchanges = [[one.kind, one.times, one.group, [array.shape for array in one.arrays]] for one in program.collectives]
assert not any({7, 56} & set(shape) for shape in shapes)
positions = config.vision.window_size**2
biases = [(heads, positions, positions) for heads in config.vision.num_heads]
print(json.dumps({"parameters": shapes, "biases": biases, "exchanges": exchanges}))
"""


def test_only_gradients_and_scalars_cross_devices(warm):
    done = warm.run("-c", COMPILE, env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"})
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert {kind for kind, *_ in seen["exchanges"]} == {"all-reduce"}, seen["exchanges"]
    assert {group for _, _, group, _ in seen["exchanges"]} == {8}

    # Gradients may be summed transposed, those of position biases flat and before they are added up in their tables,
    # those of convolutions row by row of their kernels, and those of the recurrence at each of its steps.
    biases = [[math.prod(shape)] for shape in seen["biases"]]
    kernel_rows = [[shape[2], 3 * shape[3]] for shape in seen["parameters"] if shape[:2] == [3, 3]]
    gradients = {_regardless_of_order(shape) for shape in seen["parameters"] + seen["biases"] + biases + kernel_rows}
    sent = [(shape, times) for _, times, _, shapes in seen["exchanges"] for shape in shapes]
    assert {_regardless_of_order(shape) for shape, _ in sent} <= gradients | {()}
    assert sum(times for shape, times in sent if shape == []) < 20
    assert sum(times * math.prod(shape) for shape, times in sent) >= sum(map(math.prod, seen["parameters"]))


def _regardless_of_order(shape):
    return tuple(sorted(size for size in shape if size > 1))
