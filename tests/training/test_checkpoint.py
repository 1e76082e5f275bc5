import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training import run
from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints, restore_params
from s2rm_jax.training.run import load_run, save_config
from s2rm_jax.training.state import parameter_shapes, plan_state

MESH = make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def run_of(standin):
    """A configuration with an average and frozen parts, its plan, and its state after any number of steps."""
    config = standin.make_config(optimizer__ema_decay=0.5, optimizer__frozen=("^text",), checkpoint_every=10)
    plan = plan_state(standin.StandIn(), config, MESH)
    begin = plan.create()

    def state_after(step):
        return begin.replace(
            step=jnp.int32(step),
            params=jax.tree.map(lambda p: p + step, begin.params),
            ema_params=jax.tree.map(lambda p: p - step, begin.params),
        )

    return config, plan, state_after


def save_all(workdir, run_of, scores):
    """Saves a checkpoint for each (step, score), as one run would."""
    config, _, state_after = run_of
    workdir.mkdir(exist_ok=True)
    save_config(workdir, config)
    with Checkpoints(workdir, config.checkpoint_every, "mean_iou") as checkpoints:
        for step, score in scores:
            metrics = None if score is None else {"mean_iou": score, "overall_iou": 0.0}
            checkpoints.save(Checkpoint(step, state_after(step), 4 * step, metrics))


def kept_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_everything_comes_back_as_it_was(tmp_path, run_of):
    config, plan, state_after = run_of
    save_all(tmp_path, run_of, [(10, 30.0)])
    with Checkpoints(tmp_path, config.checkpoint_every, "mean_iou") as checkpoints:
        restored = checkpoints.restore_latest(plan.abstract)
    assert restored is not None
    assert (restored.step, restored.rows_seen) == (10, 40)
    assert restored.metrics == {"mean_iou": 30.0, "overall_iou": 0.0}
    assert jax.tree.structure(restored.state) == jax.tree.structure(plan.abstract)
    assert_equal(restored.state, state_after(10))
    for leaf, planned in zip(jax.tree.leaves(restored.state), jax.tree.leaves(plan.abstract), strict=True):
        assert (leaf.dtype, leaf.sharding) == (planned.dtype, planned.sharding)


def test_the_latest_two_and_the_best_are_kept_and_a_restart_takes_the_latest(tmp_path, run_of):
    config, plan, state_after = run_of
    save_all(tmp_path, run_of, [(10, 1.0), (20, 9.0), (30, 2.0), (35, None), (40, 3.0), (50, None)])
    assert kept_steps(tmp_path) == [20, 40, 50]
    with Checkpoints(tmp_path, config.checkpoint_every, "mean_iou") as checkpoints:
        assert checkpoints.best == (20, 9.0)
        restored = checkpoints.restore_latest(plan.abstract)
        assert restored is not None and restored.step == 50 and restored.metrics is None
    for which, expected in {"best": 20, "latest": 50}.items():
        step, params = restore_params(tmp_path, "mean_iou", which)
        assert step == expected
        assert_equal(params, state_after(step).ema_params)


def test_those_of_every_keep_every_steps_are_kept_too_and_any_can_be_loaded(tmp_path, run_of):
    config, _, state_after = run_of
    save_config(tmp_path, config)
    with Checkpoints(tmp_path, 10, "mean_iou", keep_every=15) as checkpoints:
        steps = [step for step in range(1, 61) if checkpoints.due(step)]
        assert steps == [10, 15, 20, 30, 40, 45, 50, 60]
        for step in steps:
            checkpoints.save(Checkpoint(step, state_after(step), 4 * step, {"mean_iou": -float(step)}))
    assert kept_steps(tmp_path) == [10, 15, 30, 45, 50, 60]
    step, params = restore_params(tmp_path, "mean_iou", 30)
    assert step == 30
    assert_equal(params, state_after(30).ema_params)
    with pytest.raises(UserError, match=r"checkpoints has no checkpoint of step 20; it has 10, 15, 30, 45, 50, 60$"):
        restore_params(tmp_path, "mean_iou", 20)


def test_of_equal_scores_the_last_is_the_best_as_on_disk(tmp_path, run_of):
    config, _, state_after = run_of
    scores = [(10, 0.0), (20, 5.0), (30, 5.0), (40, 1.0), (50, 1.0)]
    with Checkpoints(tmp_path, config.checkpoint_every, "mean_iou") as checkpoints:
        for step, score in scores:
            checkpoints.save(Checkpoint(step, state_after(step), 4 * step, {"mean_iou": score}))
        assert checkpoints.best == (30, 5.0)
    assert kept_steps(tmp_path) == [30, 40, 50]
    with Checkpoints(tmp_path, config.checkpoint_every, "mean_iou") as reopened:
        assert reopened.best == (30, 5.0)
    save_config(tmp_path, config)
    assert restore_params(tmp_path, "mean_iou", "best")[0] == 30


@pytest.mark.parametrize(("which", "step"), [("best", 10), ("latest", 20), (10, 10), (20, 20)])
def test_a_run_is_loaded_from_the_checkpoint_that_is_asked_for(tmp_path, run_of, standin, monkeypatch, which, step):
    _, _, state_after = run_of
    save_all(tmp_path, run_of, [(10, 9.0), (20, 1.0)])
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    monkeypatch.setattr(run, "build_network", lambda config: standin.StandIn())
    loaded = load_run(tmp_path, which)
    assert loaded.step == step
    assert_equal(loaded.params, state_after(step).ema_params)


def test_an_evaluation_is_added_to_a_checkpoint_whose_state_stays_untouched(tmp_path, run_of):
    config, plan, _ = run_of
    save_all(tmp_path, run_of, [(20, None)])  # the only one

    def state_files():
        state = tmp_path / "checkpoints" / "20" / "state"
        return {path: path.stat().st_mtime_ns for path in state.rglob("*") if path.is_file()}

    before = state_files()
    save_all(tmp_path, run_of, [(20, 5.0)])
    assert state_files() == before
    with Checkpoints(tmp_path, config.checkpoint_every, "mean_iou") as checkpoints:
        restored = checkpoints.restore_latest(plan.abstract)
        assert restored is not None and restored.metrics is not None
        assert restored.metrics["mean_iou"] == 5.0 and checkpoints.best == (20, 5.0)


def test_a_checkpoint_that_an_evaluation_makes_the_best_is_kept(tmp_path, run_of):
    save_all(tmp_path, run_of, [(10, 1.0), (20, None), (20, 5.0), (30, 2.0), (40, None), (50, None)])
    assert kept_steps(tmp_path) == [20, 40, 50]


def test_due_is_the_interval(tmp_path, run_of):
    with Checkpoints(tmp_path, 10, "mean_iou") as checkpoints:
        assert [step for step in range(31) if checkpoints.due(step)] == [10, 20, 30]


def test_params_for_inference_without_an_average_and_without_any_evaluation(tmp_path, standin):
    config = standin.make_config()
    state = plan_state(standin.StandIn(), config, MESH).create()
    save_config(tmp_path, config)
    with Checkpoints(tmp_path, 5, "mean_iou") as checkpoints:
        checkpoints.save(Checkpoint(5, state, 20, None))
    expected = parameter_shapes(standin.StandIn(), config)
    assert_equal(restore_params(tmp_path, "mean_iou", "best", expected)[1], state.params)


def test_half_written_checkpoints_are_ignored(tmp_path, run_of):
    config, plan, _ = run_of
    save_all(tmp_path, run_of, [(10, 1.0)])
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp-3" / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, config.checkpoint_every, "mean_iou") as checkpoints:
        restored = checkpoints.restore_latest(plan.abstract)
    assert restored is not None and restored.step == 10


def test_items_that_are_no_longer_saved_do_not_matter(tmp_path, run_of):
    config, plan, state_after = run_of
    save_all(tmp_path, run_of, [(10, 1.0)])
    shutil.copytree(tmp_path / "checkpoints" / "10" / "data", tmp_path / "checkpoints" / "10" / "meta")
    with Checkpoints(tmp_path, config.checkpoint_every, "mean_iou") as checkpoints:
        restored = checkpoints.restore_latest(plan.abstract)
    assert restored is not None and restored.rows_seen == 40
    assert_equal(restored.state, state_after(10))
    assert_equal(restore_params(tmp_path, "mean_iou")[1], state_after(10).ema_params)


def test_nothing_there_is_said_clearly(tmp_path, standin):
    with pytest.raises(UserError, match=r"not found; give the workdir of a run"):
        load_run(tmp_path)
    save_config(tmp_path, standin.make_config())
    with pytest.raises(UserError, match=r"no checkpoint in .*checkpoints: train first"):
        restore_params(tmp_path, "mean_iou")
    with Checkpoints(tmp_path, 5, "mean_iou") as checkpoints:
        assert checkpoints.latest_step is None and checkpoints.best is None


def test_another_architecture_is_named_by_its_parameters(tmp_path, run_of, standin):
    _, plan, _ = run_of
    save_all(tmp_path, run_of, [(10, 1.0)])
    params = dict(plan.abstract.params)
    params["decoder"] = params.pop("vision")
    params["head"] = {"kernel": jax.ShapeDtypeStruct((6, 7), jnp.float32), "bias": params["head"]["bias"]}
    with pytest.raises(UserError) as caught:
        restore_params(tmp_path, "mean_iou", "latest", expected=params)
    message = str(caught.value)
    assert "checkpoints/10 has a different architecture" in message
    assert "decoder/kernel is missing in the checkpoint" in message
    assert "vision/bias is not in the network" in message
    assert "head/kernel is (6, 6) in the checkpoint, (6, 7) in the network" in message
    assert str(tmp_path / "config.json") in message and "\n" not in message
    with (
        Checkpoints(tmp_path, 10, "mean_iou") as checkpoints,
        pytest.raises(UserError, match="different architecture"),
    ):
        checkpoints.restore_latest(plan.abstract.replace(params=params))


def test_at_most_five_differences_are_listed(tmp_path, run_of):
    save_all(tmp_path, run_of, [(10, 1.0)])
    many = {f"block{i}": {"kernel": jax.ShapeDtypeStruct((1,), jnp.float32)} for i in range(9)}
    with pytest.raises(UserError) as caught:
        restore_params(tmp_path, "mean_iou", "latest", expected=many)
    assert str(caught.value).count("is missing") + str(caught.value).count("is not in") == 5
    assert "more. It was trained with" in str(caught.value)
