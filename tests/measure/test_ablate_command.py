"""The command from its flags to its tables, with a small stand-in network: every run once, also after a stop."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import pytest

from s2rm_jax import ablate
from s2rm_jax.errors import UserError
from s2rm_jax.input import pipeline
from s2rm_jax.measure import ablation_runs
from s2rm_jax.models import network
from s2rm_jax.models.cost import PartCost
from s2rm_jax.training import run as training_run
from s2rm_jax.training.interrupt import Interrupted
from s2rm_jax.training.loop import LossNotFinite
from tests.input.refer_fixture import write_refer_layout

# ml_collections still loads configuration files with load_module.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")

TINY = """
from ml_collections import ConfigDict
from s2rm_jax.config import default_config


def get_config():
    config = default_config()
    config.steps, config.batch_size, config.log_every, config.checkpoint_every = 4, 2, 1, 2
    config.input.source = ConfigDict({"name": "synthetic", "length": 3, "image_size": (32, 32)})
    config.input.image_size = (8, 8)
    config.text.vocab_size = 64
    config.eval.update(every=2, batch_size=2, limit=2)
    return config
"""
VARIANTS = ("full", "width_64", "width_256")


@pytest.fixture(scope="module", autouse=True)
def small_programs(tmp_path_factory):
    """A network of a few layers, compiled with less effort and equal ones once."""
    path = Path(__file__).parents[1] / "training" / "standin.py"
    spec = importlib.util.spec_from_file_location("standin_of_ablations", path)
    standin = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = standin
    spec.loader.exec_module(standin)
    values = {"jax_disable_most_optimizations": True, "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: jax.config.values[name] for name in values}
    with pytest.MonkeyPatch.context() as patch:
        for module in (network, training_run):
            patch.setattr(module, "build_network", lambda config: standin.StandIn(words=config.text.vocab_size))
        patch.setattr(ablation_runs, "network_cost", lambda config: {"all": PartCost(1000, 2_000_000, 1_000_000)})
        patch.setattr("s2rm_jax.parallel.programs.WORTH_KEEPING", 0.0)
        for name, value in values.items():
            jax.config.update(name, value)
        yield
        for name, value in before.items():
            jax.config.update(name, value)


def run(folder, *flags):
    config = folder / "tiny.py"
    config.write_text(TINY)
    ablate_with(f"--config={config}", "--suite=width", "--seeds=2", f"--out={folder / 'out'}", *flags)


def run_without_config(*flags):
    for name in ("config", "steps"):
        ablate.FLAGS[name].unparse()
    ablate_with(*flags)


def ablate_with(*arguments):
    for name in ("collect", "splits", "variants"):
        ablate.FLAGS[name].unparse()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ablate", *arguments])  # in which ml_collections looks for --config.FIELD
        ablate.FLAGS(sys.argv)
    ablate.main()


@pytest.fixture(scope="module")
def stopped_and_continued(tmp_path_factory):
    """A folder in which a suite was stopped in its second run and continued, its first table, and the second log."""
    folder = tmp_path_factory.mktemp("suite")
    batches, seen = pipeline.train_batches, 0

    def stop_at_the_fourth(*arguments, **named):
        nonlocal seen
        for batch in batches(*arguments, **named):
            seen += 1
            if seen == 4:  # the second step of the second run
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train_batches", stop_at_the_fourth)
        with pytest.raises(Interrupted):
            run(folder, "--steps=3")
    table_before = (folder / "out/width/ablations.md").read_text(encoding="utf-8")
    output = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2rm_jax.training.logging.print", lambda *words, **_: output.append(words[0]), raising=False)
        run(folder, "--steps=3")
    return folder, table_before, "\n".join(output)


def test_a_stopped_suite_continues(stopped_and_continued):
    folder, table_before, output = stopped_and_continued
    assert "| full |" in table_before and "width\\_64" not in table_before
    assert "6 runs of 3 steps, 5 left: full, width_64, width_256" in output
    assert "== run 1/6" not in output, "the first run was finished"
    assert "== run 2/6 of width: width_64, seed 0 | ETA of the suite unknown" in output
    assert "width_64-seed-0 from step 1 of 3" in output
    assert "== run 6/6 of width: width_256, seed 1 | ETA of the suite 0:00:" in output
    table = (folder / "out/width/ablations.md").read_text(encoding="utf-8")
    assert all(f"| {name.replace('_', chr(92) + '_')} |" in table for name in VARIANTS)


def test_every_run_is_scored_on_whole_splits(stopped_and_continued):
    folder, _, _ = stopped_and_continued
    content = json.loads((folder / "out/width/ablations.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in content["variants"]] == list(VARIANTS)
    for one in content["variants"]:
        assert [found["seed"] for found in one["runs"]] == [0, 1]
        for found in one["runs"]:
            assert (found["parameters"], found["gflops"]) == (
                1000,
                0.005,
            )  # the first expression and three further ones
            assert {split: score["expressions"] for split, score in found["scores"].items()} == {
                "test": 12,
                "compositional": 12,
            }
            assert [step for step, _ in found["curve"]] == [2, 3]


def test_the_curve_of_the_training_split_is_that_of_the_evaluations(tmp_path):
    run(tmp_path, "--steps=3", "--variants=full", "--seeds=1", "--config.eval.split=train")
    (found,) = json.loads((tmp_path / "out/width/ablations.json").read_text(encoding="utf-8"))["variants"][0]["runs"]
    assert found["curve_split"] == "train" and [step for step, _ in found["curve"]] == [2, 3]


def test_what_another_process_trains_is_waited_for(stopped_and_continued, tmp_path, monkeypatch, capsys):
    """Another process has the reference run and finishes it while this one waits."""
    folder, _, _ = stopped_and_continued
    run_of_other = tmp_path / "out/runs/full-seed-0"
    run_of_other.mkdir(parents=True)
    table = tmp_path / "out/width/ablations.md"
    held = contextlib.ExitStack()
    held.enter_context(ablation_runs.lock(run_of_other))

    def finish(_: float) -> None:
        assert not table.exists(), "there is nothing to compare with yet"
        shutil.copytree(folder / "out/runs/full-seed-0", run_of_other, dirs_exist_ok=True)
        held.close()

    def carry_out(run):
        shutil.copytree(folder / "out/runs" / run.workdir.name, run.workdir)

    monkeypatch.setattr(ablation_runs, "carry_out", carry_out)
    monkeypatch.setattr(ablation_runs.time, "sleep", finish)
    run(tmp_path, "--steps=3", "--seeds=1")
    output = capsys.readouterr().out
    assert "another process is training full-seed-0" in output and "run 1/3" not in output and "run 3/3" in output
    assert all(f"| {name.replace('_', chr(92) + '_')} |" in table.read_text(encoding="utf-8") for name in VARIANTS)


def test_nothing_is_trained_twice(stopped_and_continued, monkeypatch):
    folder, _, _ = stopped_and_continued
    monkeypatch.setattr(ablation_runs, "carry_out", lambda *_: pytest.fail("trained again"))
    before = (folder / "out/width/ablations.md").read_text(encoding="utf-8")
    run(folder, "--steps=3")
    assert (folder / "out/width/ablations.md").read_text(encoding="utf-8") == before


def test_the_report_has_all_finished_runs_of_the_suite(stopped_and_continued, tmp_path, monkeypatch):
    """Also those that --variants and --seeds leave out; the first variant with a result is the reference."""
    folder, _, _ = stopped_and_continued
    report = tmp_path / "out/width"

    def carry_out(run):
        shutil.copytree(folder / "out/runs" / run.workdir.name, run.workdir)

    def reported():
        content = json.loads((report / "ablations.json").read_text(encoding="utf-8"))
        return {one["name"]: [found["seed"] for found in one["runs"]] for one in content["variants"]}

    monkeypatch.setattr(ablation_runs, "carry_out", carry_out)
    run(tmp_path, "--steps=3", "--variants=width_256")
    assert reported() == {"width_256": [0, 1]}
    run(tmp_path, "--steps=3", "--variants=width_64", "--seeds=1")
    assert reported() == {"width_64": [0], "width_256": [0, 1]}
    assert "| difference from width\\_64, test |" in (report / "ablations.md").read_text(encoding="utf-8")
    run(tmp_path, "--steps=3", "--seeds=1")
    assert reported() == {"full": [0], "width_64": [0], "width_256": [0, 1]}


def test_a_run_whose_loss_becomes_nan_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    take = pipeline.train_batches

    def steps_of_one_variant(source, tokenizer, config, **named):
        if config.fusion.width == 64 and config.seed == 0:
            raise LossNotFinite("step 3: the loss is nan")
        return take(source, tokenizer, config, **named)

    monkeypatch.setattr(pipeline, "train_batches", steps_of_one_variant)
    with pytest.raises(UserError) as caught:
        run(tmp_path, "--steps=3")
    message = str(caught.value)
    assert message.startswith(
        "1 run of suite width failed: width_64-seed-0. The first failure: step 3: the loss is nan. "
    )
    assert message.endswith("and give another --out.") and "--workdir" not in message
    output = capsys.readouterr().out
    assert "width_64-seed-0 failed: step 3: the loss is nan; the suite goes on without it" in output
    content = json.loads((tmp_path / "out/width/ablations.json").read_text(encoding="utf-8"))
    assert [len(one["runs"]) for one in content["variants"]] == [2, 1, 2]


def test_without_a_finished_run_there_is_no_report(tmp_path, monkeypatch):
    def carry_out(_):
        raise LossNotFinite("step 1: the loss is inf")

    monkeypatch.setattr(ablation_runs, "carry_out", carry_out)
    with pytest.raises(UserError, match="6 runs of suite width failed: full-seed-0, width_64-seed-0, "):
        run(tmp_path, "--steps=3")
    assert not list((tmp_path / "out/width").iterdir())


def test_an_own_suite_trains_its_variants_and_has_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "mine.json").write_text('{"flipped": {"input.augment.flip": 0.5}}')
    trained = {}

    def carry_out(run):
        trained[run.variant.name] = run.config.input.augment.flip
        raise LossNotFinite("step 1: the loss is inf")

    monkeypatch.setattr(ablation_runs, "carry_out", carry_out)
    with pytest.raises(UserError, match="2 runs of suite mine failed: full-seed-0, flipped-seed-0"):
        run(tmp_path, "--steps=3", f"--suite={tmp_path / 'mine.json'}", "--seeds=1")
    assert trained == {"full": 0.0, "flipped": 0.5}
    assert (tmp_path / "out/mine").is_dir()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps=2",), "has 3 steps, not 2; give another --out, or --steps=3"),
        (
            ("--steps=3", "--config.optimizer.learning_rate=0.5"),
            "started with a different configuration: optimizer.learning",
        ),
        (
            ("--steps=3", "--splits=test,val"),
            r"full-seed-0/result.json has the scores of test, compositional, not of val",
        ),
        (("--steps=3", "--config.steps=3"), "--steps and --config.steps are both given"),
        (("--steps=3", "--config.seed=5"), "--config.seed: ablate itself sets the seeds 0, 1, "),
    ],
)
def test_another_setting_is_refused(stopped_and_continued, flags, message):
    folder, _, _ = stopped_and_continued
    with pytest.raises(UserError, match=message):
        run(folder, *flags)


def test_finished_runs_are_collected_without_training(stopped_and_continued, tmp_path, monkeypatch):
    """The runs of a suite on the benchmark, here of another configuration under its name."""
    folder, _, _ = stopped_and_continued
    monkeypatch.setattr(ablation_runs, "carry_out", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(ablate, "find_config", lambda name: {"synthetic_benchmark": str(folder / "tiny.py")}[name])
    path = tmp_path / "runs.json"
    flags = ("--steps=3", "--suite=width", f"--collect={path}")
    run_without_config(f"--out={folder / 'out'}", "--seeds=2", *flags)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [(row["variant"], row["seed"]) for row in rows] == [
        (name, seed) for name in sorted(VARIANTS) for seed in (0, 1)
    ]
    assert {(row["benchmark"], row["steps"]) for row in rows} == {("synthetic_benchmark", 3)}
    path.unlink()
    run_without_config(f"--out={folder / 'out'}", "--seeds=1", "--variants=full", *flags)
    assert json.loads(path.read_text(encoding="utf-8")) == rows
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="has no finished run of suite width with 3 steps"):
        run_without_config(f"--out={tmp_path / 'new'}", *flags)
    mistyped = tmp_path / "mistyped"
    with pytest.raises(UserError, match=r"--out: .*mistyped does not exist"):
        run_without_config(f"--out={mistyped}", *flags)
    monkeypatch.setattr(ablation_runs, "plan", lambda *_: pytest.fail("planned"))
    with pytest.raises(UserError, match="--collect adds the scores of all splits; leave out --splits"):
        run_without_config(f"--out={folder / 'out'}", "--splits=test", *flags)
    with pytest.raises(UserError, match="leave out --config"):
        run(folder, "--steps=3", f"--collect={path}", f"--out={mistyped}")
    assert not mistyped.exists()


def test_the_suite_far_needs_an_out_of_its_own(stopped_and_continued, tmp_path, monkeypatch):
    folder, _, _ = stopped_and_continued
    other = tmp_path / "far.py"
    other.write_text(TINY.replace('"length": 3', '"length": 3, "grid": 5'))
    monkeypatch.setattr(ablate, "find_config", lambda name: {"synthetic_benchmark:far": str(other)}[name])
    with pytest.raises(UserError, match=r"--out: the run in .*full-seed-0 has other data; .* The suites far and"):
        run_without_config("--suite=far", "--steps=3", f"--out={folder / 'out'}")


def test_the_suite_far_is_about_the_far_setting(tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(ablation_runs, "plan", lambda variants, seeds, base, *_: planned.append(base) or [])
    with pytest.raises(UserError, match="has no finished run of suite far with 2,000 steps"):
        run_without_config("--suite=far", f"--out={tmp_path}", f"--collect={tmp_path / 'runs.json'}")
    assert planned[0].input.source.grid == 5 and planned[0].input.image_size == (160, 160)


def test_a_batch_that_does_not_split_among_the_devices_is_found_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(UserError, match=r"variant full: config\.batch_size=2 cannot be split evenly .* on 3 devices"):
        run(tmp_path, "--steps=3")
    assert not list(tmp_path.glob("out/runs/*"))


REFER = """
import importlib.util
from ml_collections import ConfigDict

spec = importlib.util.spec_from_file_location("tiny", "FOLDER/tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def get_config():
    config = tiny.get_config()
    config.input.source = ConfigDict({"name": "refer", "root": "FOLDER", "dataset": "refcoco", "split_by": "unc"})
    config.text.vocab = "FOLDER/vocab.txt"
    config.eval.protocol = "cris"
    return config
"""


@pytest.fixture
def on_refcoco(tmp_path):
    """Run the suite width, one seed, on images in the layout of RefCOCO."""
    write_refer_layout(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "right")))
    config = tmp_path / "refer.py"
    config.write_text(REFER.replace("FOLDER", str(tmp_path)))

    def scores(*flags):
        run(tmp_path, f"--config={config}", "--steps=3", "--seeds=1", "--variants=full,width_64", *flags)
        content = json.loads((tmp_path / "out/width/ablations.json").read_text(encoding="utf-8"))
        return [one["runs"][0]["scores"] for one in content["variants"]]

    return scores


def test_other_data_is_scored_on_its_evaluation_split(on_refcoco, tmp_path):
    """Under the protocol of the configuration, which has no overall IoU; the report has it nevertheless."""
    of_full, of_narrow = on_refcoco()
    assert list(of_full) == list(of_narrow) == ["val"]
    assert of_full["val"]["expressions"] == 8
    assert of_full["val"]["overall_iou"] > 0 and of_full["val"]["by_kind"] == of_full["val"]["by_distance"] == {}
    table = (tmp_path / "out/width/ablations.md").read_text(encoding="utf-8")
    assert "| mIoU val | oIoU val |" in table and "kind of expression" not in table
    with pytest.raises(
        UserError, match=r"result\.json has the scores of val, not of testA; give --splits=val, or delete"
    ):
        on_refcoco("--splits=testA")


def test_bad_examples_are_skipped_in_the_splits_to_score_too(tmp_path, on_refcoco):
    (tmp_path / "images/mscoco/images/train2014/COCO_train2014_000000000102.jpg").write_bytes(b"")  # the first of val
    with pytest.raises(UserError, match=r"COCO_train2014_000000000102\.jpg"):
        on_refcoco()
    shutil.rmtree(tmp_path / "out")
    config = tmp_path / "refer.py"
    skipping = 'config.input.on_bad_example = "skip"\n    return config'
    config.write_text(config.read_text().replace("return config", skipping))
    assert on_refcoco()[0]["val"]["expressions"] == 4


def test_the_splits_to_score_are_read_before_training(on_refcoco, tmp_path):
    with pytest.raises(UserError, match="testC"):
        on_refcoco("--splits=testA,testC")
    assert not list(tmp_path.glob("out/runs/*"))
    assert list(on_refcoco("--splits=testB,testA")[0]) == ["testB", "testA"]


def test_a_damaged_result_is_named(stopped_and_continued):
    folder, _, _ = stopped_and_continued
    path = folder / "out/runs/full-seed-0/result.json"
    text = path.read_text()
    path.write_text(text[:50])
    with pytest.raises(UserError, match=r"result.json cannot be read .*; delete it"):
        run(folder, "--steps=3")
    path.write_text(text)
