import json
import sys
from types import SimpleNamespace

import pytest

from s2rm_jax.config import default_config
from s2rm_jax.training.logging import (
    METRICS_FILE,
    TENSORBOARD_DIRECTORY,
    Averages,
    MetricsWriter,
    Progress,
    hours_minutes_seconds,
    report_evaluation,
)

METRICS = {"loss": 1.25, "mean_iou": 12.34, "learning_rate": 3e-4, "grad_norm": 1.0}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, "0:00:00"), (59.6, "0:01:00"), (3599.0, "0:59:59"), (90061.0, "25:01:01")]
)
def test_durations(seconds, shown):
    assert hours_minutes_seconds(seconds) == shown


def test_rates_wait_and_time_left():
    clock = Clock()
    progress = Progress(last_step=1000, clock=clock)
    clock.now += 60  # compiling: in no rate and not in the time left
    progress.finish_step(1, expressions=10, images=4)
    for step in range(2, 12):
        with progress.waiting_for_input():
            clock.now += 0.5
        clock.now += 1.5
        progress.finish_step(step, expressions=10, images=4)
    line = progress.line(11, METRICS, progress.speed())
    assert line == (
        "step 11/1000 (1%) | loss 1.2500 | mIoU 12.3 | lr 3.00e-04 | 5.0 expressions/s, 2.0 images/s | "
        "25% waiting for input | ETA 0:32:58"
    )


def test_the_speed_is_of_the_steps_since_the_last_line():
    clock = Clock()
    progress = Progress(last_step=1000, clock=clock)
    assert progress.speed() == {}
    progress.finish_step(1, 10, 4)
    for seconds in (4.0, 1.0):
        with progress.waiting_for_input():
            clock.now += 1
        clock.now += seconds
        progress.finish_step(2, 10, 4)
        speed = progress.speed()
        assert speed == {
            "expressions_per_second": 10 / (seconds + 1),
            "images_per_second": 4 / (seconds + 1),
            "waiting_for_input": 100 / (seconds + 1),
        }
        progress.line(2, METRICS, speed)
    assert "| epoch 1.26 |" in progress.line(3, METRICS | {"epoch": 1.257}, {})


def test_the_utilization_is_the_share_that_a_step_would_take_at_the_peak():
    clock = Clock()
    progress = Progress(last_step=1000, seconds_at_peak=0.5, clock=clock)
    progress.finish_step(1, 10, 4)
    for step in (2, 3):
        clock.now += 2
        progress.finish_step(step, 10, 4)
    with progress.pause():
        clock.now += 80  # an evaluation is no work of the step
    speed = progress.speed()
    assert speed["model_flops_utilization"] == 25
    assert "| 0% waiting for input | MFU 25.0% | ETA" in progress.line(3, METRICS, speed)


def test_means_weigh_by_expressions_what_speaks_of_expressions():
    averages = Averages()
    averages.add({"loss": 1.0, "mean_iou": 10.0, "grad_norm": 2.0, "learning_rate": 0.2, "expressions": 1.0})
    averages.add({"loss": 3.0, "mean_iou": 50.0, "grad_norm": 4.0, "learning_rate": 0.1, "expressions": 3.0})
    expected = {"loss": 2.5, "mean_iou": 40.0, "grad_norm": 3.0, "learning_rate": 0.1, "expressions": 2.0}
    assert averages.take() == expected
    averages.add({"loss": 7.0, "expressions": 0.0})
    assert averages.take() == {"loss": 0.0, "expressions": 0.0}


def test_pauses_are_out_of_the_rates_but_in_the_time_left():
    clock = Clock()
    progress = Progress(last_step=21, clock=clock)
    progress.finish_step(1, 10, 4)
    for step in range(2, 12):
        clock.now += 2
        progress.finish_step(step, 10, 4)
    with progress.pause():
        clock.now += 80
    line = progress.line(11, METRICS, progress.speed())
    assert "5.0 expressions/s" in line and line.endswith("ETA 0:01:40")


def test_the_first_line_of_all_promises_nothing():
    clock = Clock()
    progress = Progress(last_step=10, clock=clock)
    clock.now += 60
    progress.finish_step(1, 10, 4)
    assert progress.line(1, METRICS, progress.speed()) == "step 1/10 (10%) | loss 1.2500 | mIoU 12.3 | lr 3.00e-04"


def test_evaluation_says_how_far_it_is_and_can_be_stopped(capsys):
    asked = []
    clock = Clock()
    report = report_evaluation("val", stopping=lambda: asked.append(1), every=0.0, clock=clock)
    clock.now += 100  # compilation
    report(1, 4)
    assert capsys.readouterr().out == "evaluating val: batch 1/4 (25%)\n"
    clock.now += 7
    report(2, 4)
    assert capsys.readouterr().out == "evaluating val: batch 2/4 (50%) | ETA 0:00:14\n"
    report_evaluation("val", stopping=lambda: asked.append(1), every=60.0)(1, 4)
    assert capsys.readouterr().out == "" and len(asked) == 3


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]


def test_lines_are_json_and_tensorboard_files_are_there(tmp_path):
    with MetricsWriter(tmp_path, default_config()) as writer:
        writer.write(5, "train", {"loss": 1.5})
        assert lines_of(tmp_path) == [{"step": 5, "train/loss": 1.5}]  # at once, not when it is closed
        writer.write(5, "val", {"mean_iou": 50.0})
    assert lines_of(tmp_path)[1] == {"step": 5, "val/mean_iou": 50.0}
    assert list((tmp_path / TENSORBOARD_DIRECTORY).glob("events.*"))


def test_tensorboard_files_have_the_values_of_each_step_and_those_of_later_steps_become_void(tmp_path, monkeypatch):
    purged, written = [], []

    class Recorder:
        """A SummaryWriter that records its arguments."""

        def __init__(self, folder, *, purge_step):
            purged.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Recorder))
    with MetricsWriter(tmp_path, default_config(), step=12) as writer:
        writer.write(15, "train", {"loss": 1.5, "learning_rate": 0.25})
        writer.write(20, "val", {"mean_iou": 50.0})
    assert purged == [(str(tmp_path / TENSORBOARD_DIRECTORY), 13)]
    of_training = [("train/loss", 1.5, 15), ("train/learning_rate", 0.25, 15)]
    assert written == [*of_training, ("val/mean_iou", 50.0, 20), "closed"]


def test_tensorboard_can_be_switched_off(tmp_path):
    config = default_config()
    config.tensorboard = False
    with MetricsWriter(tmp_path, config) as writer:
        writer.write(5, "train", {"loss": 1.5})
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


def test_a_resumed_run_takes_back_an_evaluation_that_it_repeats(tmp_path):
    with MetricsWriter(tmp_path, default_config()) as writer:
        for step in (5, 10):
            writer.write(step, "train", {"loss": float(step)})
            writer.write(step, "val", {"mean_iou": float(step)})
    with MetricsWriter(tmp_path, default_config(), step=10, repeats="val") as writer:
        writer.write(10, "val", {"mean_iou": -1.0})
    found = [(line["step"], line.get("train/loss"), line.get("val/mean_iou")) for line in lines_of(tmp_path)]
    assert found == [(5, 5, None), (5, None, 5), (10, 10, None), (10, None, -1)]


def test_a_resumed_run_takes_back_later_lines_and_a_torn_one(tmp_path):
    with MetricsWriter(tmp_path, default_config()) as writer:
        for step in (5, 10, 15, 20):
            writer.write(step, "train", {"loss": float(step)})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 25, "train/lo')
    with MetricsWriter(tmp_path, default_config(), step=12) as writer:
        writer.write(15, "train", {"loss": -1.0})
    assert [(line["step"], line["train/loss"]) for line in lines_of(tmp_path)] == [(5, 5), (10, 10), (15, -1)]
