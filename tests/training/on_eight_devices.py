"""Tests on eight devices; test_eight_devices.py runs this file in a process that has them.

One of them alone: JAX_NUM_CPU_DEVICES=8 python -m pytest tests/training/on_eight_devices.py -k NAME

Every form of the step, on every shape of mesh, must give what one device gives.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from s2rm_jax.evaluation.evaluator import Evaluator
from s2rm_jax.input.example import Batch
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel import mesh
from s2rm_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh, per_device_key, put_batch
from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints
from s2rm_jax.training.state import plan_state
from s2rm_jax.training.step import interleave, make_train_step
from tests.conftest import tiny_config

STEPS, BATCH = 20, 16
FORMS = ["jit", "shard_map"]


@pytest.fixture(autouse=True)
def share_small_arrays_too(monkeypatch):
    assert jax.device_count() == 8
    monkeypatch.setattr(mesh, "SMALL", 16)


def uneven_batch(standin, seed):
    """Return a batch whose devices have different numbers of valid expressions, and the first has none."""
    batch = standin.make_batch(seed, BATCH)
    valid = batch.valid & (np.arange(BATCH) >= BATCH // 8)[:, None]
    per_device = valid.sum(1).reshape(8, -1).sum(1)
    assert per_device[0] == 0 and len(set(per_device)) >= 3
    # The mean of the devices' means is not the mean, so counts are added up before anything is divided.
    losses = np.random.default_rng(0).random(valid.shape)
    sums, counts = ((x * valid).reshape(8, -1).sum(1) for x in (losses, np.ones_like(losses)))
    assert abs((sums / np.maximum(counts, 1)).mean() / (sums.sum() / counts.sum()) - 1) > 0.05
    return batch._replace(valid=valid, has_target=valid, targets=batch.targets * valid[..., None, None])


class Run:
    """A run of the stand-in network that shows the gradient of every step.

    With b1 = 0 Adam's first moment is the gradient (clipped to a norm of 0.1, while the metrics have its norm).
    """

    def __init__(self, standin, devices=8, **changes):
        settings = {"batch_size": BATCH, "steps": STEPS, "optimizer__ema_decay": 0.9} | changes
        self.config = standin.make_config(**settings, optimizer__b1=0.0, optimizer__clip_norm=0.1)
        self.mesh = make_mesh(self.config.mesh.fsdp, jax.devices()[:devices])
        self.standin, network = standin, standin.StandIn(dropout_rate=0.3, judges=True)
        self.plan = plan_state(network, self.config, self.mesh)
        self.step = make_train_step(network, self.plan, self.config, self.mesh)

    def trace(self, batches, state=None):
        """Returns metrics and gradient of every step, and the last state."""
        if state is None:  # not `plan.create`, which would be compiled for every mesh
            state = jax.device_put(first_state(self.standin), jax.tree.map(lambda x: x.sharding, self.plan.abstract))
        trace = []
        for batch in batches:
            with jax.transfer_guard("disallow"):
                state, metrics = self.step(state, put_batch(batch, self.mesh))
            trace.append(jax.device_get((metrics, optax.tree.get(state.opt_state, "mu"))))
        return trace, state


run_of = functools.cache(Run)  # tracing a step takes most of the time, and several tests use the same one


@functools.cache
def first_state(standin):
    return jax.device_get(run_of(standin, devices=1).plan.create())


@functools.cache
def on_one_device(standin, parts):
    batches = [uneven_batch(standin, seed) for seed in range(STEPS)]
    return batches, run_of(standin, devices=1, optimizer__accumulate=parts).trace(batches)[0]


def assert_close(found, expected):
    """Allows each array a deviation of 1e-5 of its largest value."""

    def compare(path, a, b):
        deviation, size = np.abs(a - b).max(), np.abs(b).max()
        assert deviation <= 1e-5 * size, f"{jax.tree_util.keystr(path)}: {deviation} of {size}"

    jax.tree_util.tree_map_with_path(compare, found, expected)


def long_case(*values):
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.mark.parametrize(
    ("fsdp", "parts"), [(1, 1), long_case(1, 2), long_case(2, 1), (2, 2), long_case(4, 1), long_case(8, 2)]
)
@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_are_those_of_one_device(standin, form, fsdp, parts):
    batches, expected = on_one_device(standin, parts)
    run = run_of(standin, mesh__step=form, mesh__fsdp=fsdp, optimizer__accumulate=parts)
    trace, state = run.trace(batches)
    assert_close(trace, expected)
    for leaf, planned in zip(jax.tree.leaves(state), jax.tree.leaves(run.plan.abstract), strict=True):
        assert leaf.sharding == planned.sharding
    shared = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
    assert bool(shared) == (fsdp > 1)


def test_the_whole_network_gives_what_it_gives_on_one_device(standin):
    config = tiny_config()
    config.batch_size, config.optimizer.b1 = 8, 0.0
    config.vision.update({"depths": (1, 4), "num_heads": (1, 2), "drop_path_rate": 0.5})
    config.input.image_size, config.decoder.widths, config.text.max_tokens = (16, 16), (8, 8), 4
    config.fusion.rotations = (0, 90)
    network = build_network(config)
    plan = plan_state(network, config, make_mesh(devices=jax.devices()[:1]))
    begin = jax.device_get(plan.create())
    batch = batch_for_network(standin, config)

    def first_gradient(plan, mesh):
        state = jax.device_put(begin, jax.tree.map(lambda x: x.sharding, plan.abstract))
        state, metrics = make_train_step(network, plan, config, mesh)(state, put_batch(batch, mesh))
        gradient = flatten_dict(jax.device_get(optax.tree.get(state.opt_state, "mu")))
        # Biases of keys have none but rounding: the softmax takes no notice of them.
        return jax.device_get(metrics), {path: x for path, x in gradient.items() if path[-2:] != ("key", "bias")}

    expected = first_gradient(plan, make_mesh(devices=jax.devices()[:1]))
    config.mesh.step = "shard_map"
    assert_close(first_gradient(plan_state(network, config, make_mesh(2)), make_mesh(2)), expected)


def batch_for_network(standin, config):
    rng, shape = np.random.default_rng(0), (config.batch_size, config.input.expressions_per_image)
    words = (*shape, config.text.max_tokens)
    valid = np.arange(shape[0] * shape[1]).reshape(shape) % 3 > 0
    return Batch(
        images=rng.integers(0, 256, (shape[0], *config.input.image_size, 3), dtype=np.uint8),
        tokens=rng.integers(1, config.text.vocab_size, words, dtype=np.int32),
        token_mask=np.ones(words, bool),
        targets=standin.pack((rng.random((*shape, *config.input.image_size)) < 0.3) & valid[..., None, None]),
        valid=valid,
        has_target=valid,
    )


@pytest.mark.parametrize("form", FORMS)
def test_frozen_parts_stay_as_they_are(standin, form):
    run = run_of(standin, mesh__step=form, mesh__fsdp=2, optimizer__frozen=("^text",))
    begin = run.plan.create()
    before = jax.device_get(begin.params)  # the step consumes the state
    ((metrics, _),), state = run.trace([uneven_batch(standin, 0)], begin)
    np.testing.assert_array_equal(state.params["text"]["embedding"], before["text"]["embedding"])
    assert not np.array_equal(state.params["head"]["kernel"], before["head"]["kernel"])
    whole, _ = on_one_device(standin, 1)[1][0]
    assert 0 < metrics["grad_norm"] < whole["grad_norm"]


def test_the_step_consumes_the_state(standin):
    for form in FORMS:
        run = run_of(standin, mesh__step=form, mesh__fsdp=4)
        state = run.plan.create()
        run.step(state, put_batch(uneven_batch(standin, 0), run.mesh))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


# What becomes of a gradient that is meant to be the mean over 8 devices, as a multiple of that mean. None: no multiple.
# A change of the first line would be a change of JAX, and training/step.py would have to be thought through again.
WAYS = [
    ("average the gradients", True, 8.0),
    ("average the gradients", False, 1.0),
    ("let each device have its own parameters, average the gradients", True, 1.0),
    ("average the loss", True, 1.0),
    ("average the loss", False, None),
]


@pytest.mark.parametrize(("way", "check_vma", "factor"), WAYS)
def test_the_wrong_ways_of_averaging_gradients_stay_wrong(way, check_vma, factor):
    inputs = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    params = jnp.array([1.0, -2.0, 0.5])

    def loss(params, x):
        return ((x @ params - 1) ** 2).mean()

    def on_each(params, x):
        if way == "average the loss":
            return jax.grad(lambda p: jax.lax.pmean(loss(p, x), BATCH_AXES))(params)
        if way.startswith("let each"):
            params = jax.lax.pcast(params, BATCH_AXES, to="varying")
        return jax.lax.pmean(jax.grad(loss)(params, x), BATCH_AXES)

    specs = {"in_specs": (PartitionSpec(), PartitionSpec(BATCH_AXES)), "out_specs": PartitionSpec()}
    mapped = jax.shard_map(on_each, mesh=make_mesh(), check_vma=check_vma, **specs)
    found, right = jax.jit(mapped)(params, inputs), jax.grad(loss)(params, inputs)
    if factor is None:
        assert np.ptp(found / right) > 0.1
    else:
        np.testing.assert_allclose(found, factor * right, rtol=1e-5)


def test_each_device_draws_its_part_of_what_one_device_draws():
    key, mesh = jax.random.key(3), make_mesh(2)

    def on_each(key_data):
        key = per_device_key(jax.random.wrap_key_data(key_data), jax.lax.axis_index(BATCH_AXES))
        first, second = jax.random.split(jax.random.fold_in(key, 7))
        return jax.random.bernoulli(first, 0.5, (2, 1, 1)), jax.random.normal(second, (3, 5))

    specs = {"in_specs": PartitionSpec(), "out_specs": PartitionSpec(BATCH_AXES)}
    kept, noise = jax.jit(jax.shard_map(on_each, mesh=mesh, **specs))(jax.random.key_data(key))
    first, second = jax.random.split(jax.random.fold_in(key, 7))
    np.testing.assert_array_equal(kept, jax.random.bernoulli(first, 0.5, (16, 1, 1)))
    np.testing.assert_array_equal(noise, jax.random.normal(second, (24, 5)))


def test_dealing_out_microbatches_moves_no_image(standin):
    batch, sharding_of_parts = uneven_batch(standin, 0), batch_sharding(make_mesh(), axis=1)
    dealt = jax.jit(lambda b: jax.lax.with_sharding_constraint(interleave(b, 2), sharding_of_parts))
    there = put_batch(batch, make_mesh())
    np.testing.assert_array_equal(dealt(there).images[1], batch.images[1::2])
    program = dealt.lower(there).compile().as_text()
    for moved in ("all-to-all", "all-gather", "collective-permute", "all-reduce"):
        assert moved not in program


def bytes_on_first_device(state):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))


def test_a_device_holds_its_share_of_the_state_only(standin):
    config = standin.make_config(optimizer__ema_decay=0.9)
    mesh = make_mesh(4)
    state = plan_state(standin.StandIn(width=32), config, mesh).create()
    # Of parameters, both moments and average, all is shared but three biases or scales of 32 and a kernel of 3 x 32.
    assert 0.25 <= bytes_on_first_device(state) / sum(leaf.nbytes for leaf in jax.tree.leaves(state)) < 0.27
    kernel = state.params["head"]["kernel"]
    assert kernel.shape == (32, 32) and {shard.data.shape for shard in kernel.addressable_shards} == {(8, 32)}


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((768, 3072), 4, PartitionSpec(None, "fsdp")),  # the longest
        ((1024, 1024), 8, PartitionSpec("fsdp")),  # the first of equals
        ((30522, 768), 4, PartitionSpec(None, "fsdp")),  # the longest does not divide
        ((3, 3, 1001, 64), 8, PartitionSpec(None, None, None, "fsdp")),
        ((30522, 771), 4, PartitionSpec()),  # none divides
        ((4096,), 4, PartitionSpec()),  # small
        ((), 4, PartitionSpec()),
        ((768, 3072), 1, PartitionSpec()),
    ],
)
def test_the_rule(shape, fsdp, spec, monkeypatch):
    monkeypatch.undo()  # small is what the program takes for small
    assert mesh.state_spec(shape, make_mesh(fsdp)) == spec


def test_a_state_is_the_same_however_it_is_shared(standin):
    states = [jax.device_get(run_of(standin, mesh__fsdp=fsdp).plan.create()) for fsdp in (1, 8)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_given_parameters_go_to_each_device_in_pieces(standin):
    run = run_of(standin, mesh__fsdp=8)
    given = {"text": {"embedding": np.arange(96, dtype=np.float32).reshape(16, 6)}}
    embedding = run.plan.create(given).params["text"]["embedding"]
    assert {shard.data.shape for shard in embedding.addressable_shards} == {(2, 6)}
    np.testing.assert_array_equal(embedding, given["text"]["embedding"])


@pytest.mark.parametrize("moves", [((8, 1), (4, 1)), ((8, 2), (8, 1), (8, 2)), ((8, 8), (4, 2))])
def test_a_run_continues_from_a_checkpoint_of_other_devices(standin, tmp_path, moves):
    batches, expected = on_one_device(standin, 1)
    state, done, trace = None, 0, []
    for devices, fsdp in moves:
        run = run_of(standin, devices, mesh__fsdp=fsdp)
        with Checkpoints(tmp_path, 1, "mean_iou") as checkpoints:
            if done:
                state = checkpoints.restore_latest(run.plan.abstract).state
                assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(state))
            found, state = run.trace(batches[done : done + 3], state)
            trace, done = trace + found, done + 3
            checkpoints.save(Checkpoint(done, state, done * BATCH, None))
    assert_close(trace, expected[:done])


def test_evaluation_takes_parameters_as_they_are_shared(standin, colour_world, source_of, make_example):
    _, _, _, tokenizer, config = colour_world
    source = source_of([make_example(f"{i}", ["the red part", "blue"]) for i in range(3)])
    expressions = []
    for devices, fsdp in ((1, 1), (8, 4)):
        run = run_of(standin, devices, mesh__fsdp=fsdp)
        evaluator = Evaluator(standin.StandIn(judges=True), tokenizer, config, mesh=run.mesh)
        expressions.append(evaluator(run.plan.create().eval_params, source).expressions)
    assert expressions[0] == expressions[1]
