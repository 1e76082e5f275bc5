import json
import signal
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.input.sampling import EpochSize
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints, restore_params
from s2rm_jax.training.interrupt import Interrupted
from s2rm_jax.training.loop import LossNotFinite, train_and_evaluate
from s2rm_jax.training.state import plan_state
from tests.waiting import read_metrics

OF_THE_CLOCK = {f"train/{name}" for name in ("expressions_per_second", "images_per_second", "waiting_for_input")}
MESH = make_mesh(devices=jax.devices()[:1])


def saved(standin, config, workdir) -> Checkpoint:
    """Return the latest checkpoint of a workdir."""
    with Checkpoints(workdir, config.checkpoint_every, config.eval.metric) as checkpoints:
        checkpoint = checkpoints.restore_latest(plan_state(standin.StandIn(), config, MESH).abstract)
    assert checkpoint is not None
    return checkpoint


def kept_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_bitwise_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def scored(scores, seen=None):
    """Return an evaluation that returns the given scores one after the other and records the parameters in `seen`."""
    remaining = iter(scores)

    def evaluate(params, progress):
        progress(1, 1)
        if seen is not None:
            seen.append(jax.device_get(params))
        return {"mean_iou": next(remaining), "precision@0.5": 0.0}

    return evaluate


def test_a_run_ends_with_its_checkpoint_metrics_config_and_a_closing_line(tmp_path, standin, capsys):
    config = standin.make_config()
    metrics = standin.train(config, tmp_path / "new" / "run", standin.make_parts(config), MESH)
    workdir = tmp_path / "new" / "run"
    assert metrics.keys() == {"loss", "grad_norm", "learning_rate", "expressions", "mean_iou"}
    assert saved(standin, config, workdir).rows_seen == 48 and kept_steps(workdir) == [10, 12]
    assert [line["step"] for line in read_metrics(workdir)] == [4, 8, 12]
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last.keys() == OF_THE_CLOCK | {f"train/{name}" for name in metrics} | {"step"}
    assert last["train/learning_rate"] == metrics["learning_rate"]
    assert 0 <= last["train/waiting_for_input"] <= 100
    assert (workdir / "config.json").exists() and (workdir / "vocab.txt").read_text() == "[PAD]\n"
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"Training in {workdir} from step 0 of 12, 4 images a step, 1 x cpu")
    assert out[-1].startswith("Trained 12 steps in 0:00:") and str(workdir) in out[-1]
    assert "ETA 0:00:" in out[-2]


def test_a_run_in_two_parts_equals_one_bitwise(tmp_path, standin):
    config = standin.make_config(optimizer__ema_decay=0.9, optimizer__schedule="cosine")
    straight = standin.train(config, tmp_path / "straight", standin.make_parts(config), MESH)

    def stop_in_the_middle(rows_seen):
        for count, batch in enumerate(standin.make_parts(config).batches(rows_seen)):
            if count == 7:
                raise KeyboardInterrupt
            yield batch

    parts = standin.make_parts(config)
    with pytest.raises(KeyboardInterrupt):
        standin.train(config, tmp_path / "broken", replace(parts, batches=stop_in_the_middle), MESH)
    assert saved(standin, config, tmp_path / "broken").step == 5  # two steps are lost and taken again
    resumed = standin.train(config, tmp_path / "broken", parts, MESH)
    assert resumed == straight
    assert_bitwise_equal(
        saved(standin, config, tmp_path / "broken").state, saved(standin, config, tmp_path / "straight").state
    )
    broken, whole = read_metrics(tmp_path / "broken"), read_metrics(tmp_path / "straight")
    assert [line["step"] for line in broken] == [4, 8, 12]
    assert (broken[0], broken[2]) == (whole[0], whole[2])  # that of step 8 tells the mean of steps 6 to 8, not 5 to 8


def test_a_line_tells_the_mean_of_the_steps_since_the_last_one(tmp_path, standin, capsys):
    config = standin.make_config(steps=6, log_every=3)
    every = standin.make_config(steps=6, log_every=1)
    parts = replace(standin.make_parts(config), epoch=EpochSize(rows=16, expressions=40))
    standin.train(config, tmp_path / "third", parts, MESH)
    out = capsys.readouterr().out
    assert "An epoch shows 40 expressions in 4.0 steps (sampling image)." in out
    assert "step 3/6 (50%) | epoch 0.75 |" in out and "step 6/6 (100%) | epoch 1.50 |" in out
    standin.train(every, tmp_path / "every", parts, MESH)
    singles, thirds = read_metrics(tmp_path / "every"), read_metrics(tmp_path / "third")
    weights = [line["train/expressions"] for line in singles[3:]]
    mean = np.average([line["train/loss"] for line in singles[3:]], weights=weights)
    np.testing.assert_allclose(thirds[1]["train/loss"], mean, rtol=1e-6)
    assert [line["train/epoch"] for line in thirds] == [0.75, 1.5]


@pytest.mark.parametrize("log_every", [1, 2])
def test_speeds_are_right_where_a_checkpoint_follows_the_line(tmp_path, standin, log_every):
    config = standin.make_config(steps=2, log_every=log_every, checkpoint_every=2)
    parts = standin.make_parts(config)

    def slow_batches(rows_seen):
        for batch in parts.batches(rows_seen):
            time.sleep(0.1)
            yield batch

    for steps in (4, 8):  # the second run resumes the first
        longer = standin.make_config(steps=steps, log_every=log_every, checkpoint_every=2)
        standin.train(longer, tmp_path, replace(parts, batches=slow_batches), MESH)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = [line.get("train/images_per_second") for line in lines]
    assert all(speed is None or 0 < speed < config.batch_size / 0.1 for speed in speeds)
    assert sum(speed is None for speed in speeds) == (2 if log_every == 1 else 0)  # the first step of each start


def test_a_run_that_continues_on_other_data_is_warned(tmp_path, standin, caplog):
    for steps, rows in ((2, 16), (4, 16), (6, 20)):
        config = standin.make_config(steps=steps)
        parts = replace(standin.make_parts(config), epoch=EpochSize(rows=rows, expressions=40))
        caplog.clear()
        standin.train(config, tmp_path, parts, MESH)
        warned = [one for one in caplog.messages if "the data has changed" in one]
        assert len(warned) == (rows == 20)
    assert "had 16 rows when the checkpoint was saved and has 20 now; the rest of the run reads" in warned[0]


def test_evaluations_decide_which_checkpoint_is_best(tmp_path, standin, capsys):
    seen = []
    config = standin.make_config(steps=10, checkpoint_every=100, eval__every=3, optimizer__ema_decay=0.5)
    parts = standin.make_parts(config, evaluate=scored([10.0, 90.0, 30.0, 40.0], seen))
    assert standin.train(config, tmp_path, parts, MESH) == {"mean_iou": 40.0, "precision@0.5": 0.0}
    assert kept_steps(tmp_path) == [6, 9, 10]
    _, averaged = restore_params(tmp_path, "mean_iou", "best")
    assert_bitwise_equal(averaged, seen[1])  # as evaluated
    assert [(line["step"], line["val/mean_iou"]) for line in read_metrics(tmp_path) if "val/mean_iou" in line] == [
        (3, 10.0),
        (6, 90.0),
        (9, 30.0),
        (10, 40.0),
    ]
    closing = capsys.readouterr().out.splitlines()[-1]
    assert "mean_iou on val: 40.00, best 90.00 at step 6" in closing


def test_evaluations_of_the_training_split_have_names_of_their_own(tmp_path, standin):
    config = standin.make_config(steps=4, log_every=4, eval__every=2, eval__split="train")
    parts = standin.make_parts(config, evaluate=scored([10.0, 90.0]))
    standin.train(config, tmp_path, parts, MESH)
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["eval_train/mean_iou"]) for line in lines if "eval_train/mean_iou" in line] == [
        (2, 10.0),
        (4, 90.0),
    ]
    (of_batches,) = [line for line in lines if "train/mean_iou" in line]
    assert "train/loss" in of_batches


def test_evaluating_changes_nothing_of_the_training(tmp_path, standin):
    config = standin.make_config()
    standin.train(config, tmp_path / "without", standin.make_parts(config), MESH)
    evaluated = standin.make_config(eval__every=2)
    standin.train(evaluated, tmp_path / "with", standin.make_parts(evaluated, evaluate=scored([1.0] * 6)), MESH)
    states = [saved(standin, c, tmp_path / d).state for c, d in ((config, "without"), (evaluated, "with"))]
    assert_bitwise_equal(*states)


def test_a_finished_run_has_nothing_to_do_and_can_be_prolonged(tmp_path, standin, capsys):
    config = standin.make_config(eval__every=4)
    standin.train(config, tmp_path, standin.make_parts(config, evaluate=scored([1.0, 2.0, 3.0])), MESH)
    capsys.readouterr()
    assert standin.train(config, tmp_path, standin.make_parts(config, evaluate=scored([])), MESH)["mean_iou"] == 3.0
    out = capsys.readouterr().out
    assert "Trained 0 steps" in out and "compiled" not in out and "and now has" not in out
    longer = standin.make_config(steps=16, eval__every=4)
    assert standin.train(longer, tmp_path, standin.make_parts(longer, evaluate=scored([7.0])), MESH)["mean_iou"] == 7.0
    assert "had 12 steps and now has 16. From step 12 on, the learning rate follows the schedule of a 16-step run" in (
        capsys.readouterr().out
    )
    assert saved(standin, longer, tmp_path).step == 16


def test_a_run_may_continue_with_another_number_of_microbatches(tmp_path, standin, capsys):
    """Without dropout, nothing but the rounding changes: the steps, the learning rates and the average are the same."""
    whole, split = (standin.make_config(optimizer__accumulate=parts, optimizer__ema_decay=0.9) for parts in (1, 4))
    parts = standin.make_parts(whole, standin.StandIn())

    def stopped_after_six(rows_seen):
        for number, batch in enumerate(parts.batches(rows_seen), start=1):
            if number == 6:
                signal.raise_signal(signal.SIGINT)
            yield batch

    with pytest.raises(Interrupted):
        standin.train(whole, tmp_path / "changed", replace(parts, batches=stopped_after_six), MESH)
    capsys.readouterr()
    standin.train(split, tmp_path / "changed", parts, MESH)
    note = "config.optimizer.accumulate was 1 and now is 4. From step 6 on, gradients differ by rounding, and dropout"
    assert note in capsys.readouterr().out
    standin.train(whole, tmp_path / "straight", parts, MESH)
    assert "optimizer.accumulate" not in capsys.readouterr().out
    states = [saved(standin, config, tmp_path / d).state for config, d in ((split, "changed"), (whole, "straight"))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *states)
    rates = [[line["train/learning_rate"] for line in read_metrics(tmp_path / d)] for d in ("changed", "straight")]
    assert rates[0] == rates[1]


def test_a_stop_during_an_evaluation_breaks_it_off_and_saves_and_the_next_run_makes_up_for_it(tmp_path, standin):
    config = standin.make_config(eval__every=6)

    def asked_to_stop(params, progress):
        signal.raise_signal(signal.SIGTERM)
        progress(1, 100)
        raise AssertionError("the evaluation went on")

    with pytest.raises(Interrupted) as caught:
        standin.train(config, tmp_path, standin.make_parts(config, evaluate=asked_to_stop), MESH)
    assert caught.value.signum == signal.SIGTERM and "after step 6 of 12" in str(caught.value)
    assert saved(standin, config, tmp_path).step == 6 and saved(standin, config, tmp_path).metrics is None
    seen = []
    standin.train(config, tmp_path, standin.make_parts(config, evaluate=scored([80.0, 20.0], seen)), MESH)
    assert len(seen) == 2 and kept_steps(tmp_path) == [6, 10, 12]
    assert_bitwise_equal(restore_params(tmp_path, "mean_iou", "best")[1], seen[0])


@pytest.mark.parametrize("step", [6, 12])
def test_a_failed_evaluation_loses_no_step_and_is_made_up_for(tmp_path, standin, step):
    """At a step of an evaluation alone, and at the last step."""
    config = standin.make_config(eval__every=step)

    def fail(params, progress):
        raise OSError("the validation split cannot be read")

    with pytest.raises(OSError, match="cannot be read"):
        standin.train(config, tmp_path, standin.make_parts(config, evaluate=fail), MESH)
    assert saved(standin, config, tmp_path).step == step and saved(standin, config, tmp_path).metrics is None
    parts = standin.make_parts(config, evaluate=scored([80.0, 90.0]))
    assert standin.train(config, tmp_path, parts, MESH)["mean_iou"] == (90.0 if step == 6 else 80.0)
    evaluated = [line["step"] for line in read_metrics(tmp_path) if "val/mean_iou" in line]
    assert evaluated == list(range(step, 13, step))


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_stop_before_the_first_checkpoint_saves_and_continues(tmp_path, standin, steps_before):
    config = standin.make_config(optimizer__ema_decay=0.9)
    parts = standin.make_parts(config)

    def signalling(rows_seen):
        if steps_before == 0:
            signal.raise_signal(signal.SIGINT)
        return map(signal_at, enumerate(parts.batches(rows_seen), start=1))

    def signal_at(numbered):
        count, batch = numbered
        if count == steps_before:
            signal.raise_signal(signal.SIGINT)
        return batch

    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests were started in the background
    with pytest.raises(Interrupted) as caught:
        standin.train(config, tmp_path / "stopped", replace(parts, batches=signalling), MESH)
    assert caught.value.signum == signal.SIGINT
    assert kept_steps(tmp_path / "stopped") == [steps_before]
    assert signal.getsignal(signal.SIGINT) is before
    standin.train(config, tmp_path / "stopped", parts, MESH)
    standin.train(config, tmp_path / "straight", parts, MESH)
    assert_bitwise_equal(
        saved(standin, config, tmp_path / "stopped").state, saved(standin, config, tmp_path / "straight").state
    )


@pytest.mark.parametrize(("bad", "value"), [(8, np.nan), (7, np.inf), (11, np.nan), (8, 1.0), (10, 1.0)])
def test_nan_stops_the_run_names_the_step_and_is_never_saved(tmp_path, standin, bad, value):
    """Also where the bad step is one at which a checkpoint is due (10 would be saved two steps after 8).

    With the value 1, only the gradient is not finite.
    """
    config = standin.make_config(checkpoint_every=2 if bad == 8 else 5)

    class Poisonable(standin.StandIn):
        def __call__(self, images, *rest, **options):
            output, white = super().__call__(images, *rest, **options), (images > 2.2).all()
            root = jnp.sqrt(0 * output.logits + jnp.where(white, 0.0, 1.0))  # its gradient at 0 is infinite
            return output.replace(logits=output.logits * jnp.where(white, value, 1.0) + root)

    parts = standin.make_parts(config, Poisonable(dropout_rate=0.5))

    def poisoned(rows_seen):
        for count, batch in enumerate(parts.batches(rows_seen), start=1):
            yield batch._replace(images=np.full_like(batch.images, 255)) if count == bad else batch

    with pytest.raises(LossNotFinite) as caught:
        standin.train(config, tmp_path, replace(parts, batches=poisoned), MESH)
    assert isinstance(caught.value, UserError)
    message = str(caught.value)
    good = {8: 6, 7: 5, 11: 10, 10: 5}[bad]
    assert message.startswith(f"step {bad}: the loss is ") and f"the checkpoint of step {good} is kept" in message
    assert ("the loss is nan" in message or "the loss is inf" in message) == (value != 1.0)
    assert "learning_rate" in message and "\n" not in message
    assert max(kept_steps(tmp_path)) == good
    for leaf in jax.tree.leaves(saved(standin, config, tmp_path).state):
        assert np.isfinite(leaf).all()


def test_a_workdir_is_not_continued_with_another_configuration(tmp_path, standin):
    config = standin.make_config(steps=5)
    standin.train(config, tmp_path, standin.make_parts(config), MESH)
    other = standin.make_config(steps=5, optimizer__learning_rate=0.5)
    with pytest.raises(UserError, match=r"optimizer.learning_rate \(was 0.01, now 0.5\)"):
        standin.train(other, tmp_path, standin.make_parts(other), MESH)


def test_a_workdir_in_which_nothing_was_saved_may_change_its_configuration(tmp_path, standin):
    config = standin.make_config(steps=5)
    parts = standin.make_parts(config)

    def killed(rows_seen):
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        standin.train(config, tmp_path, replace(parts, batches=killed), MESH)
    other = standin.make_config(steps=5, optimizer__learning_rate=0.5)
    standin.train(other, tmp_path, standin.make_parts(other), MESH)
    assert saved(standin, other, tmp_path).step == 5


def test_a_workdir_that_cannot_be_written_is_named(tmp_path, standin):
    (tmp_path / "file").write_text("")
    config = standin.make_config()
    with pytest.raises(UserError, match=r"--workdir .*file/run cannot be used"):
        standin.train(config, tmp_path / "file" / "run", standin.make_parts(config), MESH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "config.steps and config.epochs are both 0"),
        ({"steps": -1}, "config.steps is -1; it must be at least 0"),
        ({"log_every": 0}, "config.log_every is 0; it must be at least 1"),
        ({"checkpoint_every": 0}, "config.checkpoint_every is 0; it must be at least 1"),
        ({"optimizer__accumulate": 3}, "config.batch_size=4 cannot be split"),
        ({"optimizer__schedule": "step"}, "config.optimizer.schedule"),
        ({"eval__every": 1, "eval__metric": "iou"}, "config.eval.metric is 'iou'; it must be one of: overall_iou"),
        ({"loss__kind": "focal"}, "config.loss.kind is 'focal'"),
        ({"dtype": "float61"}, "config.dtype is 'float61'; it must be one of: float32, bfloat16"),
    ],
)
def test_mistakes_in_the_configuration_are_found_before_anything_is_written(tmp_path, standin, changes, message):
    with pytest.raises(UserError, match=message):
        train_and_evaluate(standin.make_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_number_of_examples_that_were_left_out_is_logged_at_the_end(tmp_path, standin, capsys):
    config = standin.make_config(input__on_bad_example="skip")
    parts = replace(standin.make_parts(config), left_out={"a.jpg is damaged", "b.jpg is missing"})
    standin.train(config, tmp_path, parts, MESH)
    assert (
        "Since this start, 2 examples could not be read and were skipped." in capsys.readouterr().out.splitlines()[-1]
    )
