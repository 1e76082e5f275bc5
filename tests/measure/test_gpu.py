"""The suite for GPUs on the smallest network, and how its parts end."""

import time

import jax
import pytest

from s2rm_jax import recipes
from s2rm_jax.errors import UserError
from s2rm_jax.input.sampling import EpochSize, steps_for
from s2rm_jax.input.split_sizes import SPLIT_SIZES
from s2rm_jax.measure import against_torch, training_speed
from s2rm_jax.measure.gpu import RECIPE_IMAGES, CaseTable, Sizes, _tables, gpu, measure_table
from s2rm_jax.measure.parts import Floor

SMALLEST = Sizes((1,), ((2, "none"),), (), 1, (1,), (1,), 2)


def table_of(seconds=0, **cases):
    return CaseTable("Title", "Text.", ("s", "images/s"), seconds, cases)


def test_a_case_that_fails_is_a_row_and_the_next_goes_on():
    def fail(error):
        raise error

    section = measure_table(
        table_of(
            large=lambda: fail(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile allocating")),
            absent=lambda: fail(UserError("unavailable: no PyTorch")),
            broken=lambda: fail(RuntimeError("a | b\nc")),
            good=lambda: [0.5, "unknown"],
        ),
        time.monotonic() + 60,
    )
    assert section.rows == [
        ["large", "out of memory", ""],
        ["absent", "unavailable: no PyTorch", ""],
        ["broken", "failed: RuntimeError: a | b", ""],
        ["good", 0.5, "unknown"],
    ]
    assert section.figures == {"good: s": 0.5}


def test_a_case_begins_only_if_it_can_be_expected_to_end_in_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def take(seconds):
        now[0] += seconds
        return [seconds, 1]

    table = table_of(10, first=lambda: take(40), second=lambda: take(20), third=lambda: take(1))
    late = ["not measured: no time left", ""]
    assert measure_table(table, end=90.0).rows == [["first", 40, 1], ["second", 20, 1], ["third", *late]]
    assert measure_table(table, end=now[0] + 9).rows == [[name, *late] for name in ("first", "second", "third")]


@pytest.fixture
def known(segmenter, training, monkeypatch):
    """Use programs compiled for other tests, and a rate that is not measured."""
    for module in (against_torch, training_speed):
        monkeypatch.setattr(module, "training_step", lambda _: training)
    monkeypatch.setattr(training_speed, "measure_floor", lambda rounds: Floor({"bfloat16": 1e9}, 1e9))
    monkeypatch.setattr("s2rm_jax.measure.harness.Subject.segmenter", lambda _: segmenter)


def test_every_table_is_measured(subject, known):
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    sections = list(gpu(subject, 1, 8.0, SMALLEST))
    rows = {(section.title, row[0]): row[1:] for section in sections for row in section.rows}
    assert {len(row) + 1 for row in rows.values()} <= {len(section.head) for section in sections}
    attention = [row for (title, _), row in rows.items() if title.startswith("Window attention")]
    assert [row[0] for row in attention] == ["unavailable: cuDNN needs an NVIDIA GPU"] * 2
    for key, row in rows.items():
        if "attention" not in key[0]:
            assert isinstance(row[0], float) and row[0] > 0, (key, row)
    step = rows["Training step", "2 images, remat none"]
    assert step[6] == pytest.approx(RECIPE_IMAGES / step[1] / 3600)
    assert rows["PyTorch and torch.compile", "forward, 1 image"][2] == "needs a GPU"
    assert "expected at 40%" in sections[0].text


def test_the_images_of_the_recipe_are_those_of_its_configuration():
    recipe, referents = recipes.recipe({"name": "refer"}), SPLIT_SIZES["refcoco", "unc"]["train"].referents
    steps = steps_for(recipe.epochs, EpochSize(referents, referents), recipe.batch_size)
    assert steps * recipe.batch_size == RECIPE_IMAGES


def test_the_most_valuable_comes_first_and_nothing_begins_without_time(subject, known):
    sections = list(gpu(subject, 1, 0.0))
    assert [section.title for section in sections][:3] == [
        "Forward pass",
        "Training step",
        "Window attention: einsum and cuDNN",
    ]
    assert {row[1] for section in sections for row in section.rows} == {"not measured: no time left"}


def test_a_pytorch_without_the_gpu_is_not_compared(subject, known, monkeypatch):
    table = next(table for table in _tables(subject, 1, SMALLEST) if table.title.startswith("PyTorch"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(against_torch.TorchTwin, "__init__", lambda self, _: setattr(self, "on_gpu", False))
    section = measure_table(table, time.monotonic() + 600)
    assert {row[1] for row in section.rows} == {"unavailable: this PyTorch has no CUDA"}
