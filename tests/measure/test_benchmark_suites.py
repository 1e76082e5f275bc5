"""The suites on the smallest network, and the report of the command."""

import json
import os
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest

from s2rm_jax import benchmark, config
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.evaluator import score_items
from s2rm_jax.evaluation.protocols import PROTOCOLS
from s2rm_jax.measure import many_expressions, startup, training_speed
from s2rm_jax.measure import parts as parts_module
from s2rm_jax.measure.harness import Section, Subject, Timings, describe_machine, format_cell, write_benchmark
from s2rm_jax.measure.many_expressions import _per_image
from s2rm_jax.measure.parts import Floor
from s2rm_jax.training.run import load_run
from tests.command import run_command


def test_the_floor_is_the_longer_of_computing_and_copying():
    floor = Floor({"float32": 100.0}, copied=10.0)
    assert floor.seconds(200.0, 10.0, "float32") == 2.0
    assert floor.seconds(200.0, 50.0, "float32") == 5.0


def test_seconds_of_an_image_with_7_2_expressions_are_summed_per_round():
    seconds = {"encode": (1.0, 2.0), "segment 7": (1.0, 1.0), "segment 8": (2.0, 2.0), "single": (2.0, 3.0)}
    summed = _per_image(Timings(seconds))
    assert summed.seconds["together"] == pytest.approx((1 + 0.8 + 0.4, 2 + 0.8 + 0.4))
    assert summed.seconds["single calls"] == pytest.approx((14.4, 21.6))


def test_a_section_as_a_table(tmp_path):
    section = Section("Title", "Text.", ["", "s"], [["a | b", 0.01234], ["all", 1234.5]], {"all": 1.0})
    assert section.markdown() == "## Title\n\nText.\n\n|  | s |\n| --- | --- |\n| a \\| b | 0.0123 |\n| all | 1,234 |\n"
    write_benchmark(tmp_path, {}, [section])
    (content,) = json.loads((tmp_path / "benchmark.json").read_text())["sections"]
    assert content["figures"] == {"all": 1.0}
    assert [format_cell(value) for value in ("x", 0, 0.5, 3.14159, 100)] == ["x", "0", "0.5", "3.14", "100"]


def use_small_sizes(monkeypatch, tokens):
    small = {"expressions": (1, 2), "image": (32, 64), "tokens": tokens, "batch": (1, 2)}
    monkeypatch.setattr(parts_module, "_SIZES", {one: small[one.name] for one in parts_module._SIZES})


def test_exponents_are_slopes_of_logarithms(subject, monkeypatch):
    def smallest_only(actions, rounds):
        assert jax.tree.leaves(next(iter(actions.values()))())
        return {size: 0.5 * size**1.5 for size in actions}

    forward = (lambda: 1), ()  # whose compilation takes the longest
    monkeypatch.setattr(Subject, "forward", lambda *_: forward)
    monkeypatch.setattr(parts_module, "_seconds", smallest_only)
    use_small_sizes(monkeypatch, tokens=(6, 12))
    (section,) = parts_module.growth(subject, 1)
    assert [row[2] for row in section.rows] == pytest.approx([1.5] * 4)


def test_expressions_that_the_text_encoder_cannot_take_are_not_measured(subject, monkeypatch):
    for name in ("_ground_call", "_text_call"):
        monkeypatch.setattr(parts_module, name, lambda *_: lambda: 1)
    monkeypatch.setattr(Subject, "forward", lambda *_: ((lambda: 1), ()))
    longest = subject.config.text.max_positions
    for tokens, measured in (((2, longest, longest + 1), 4), ((longest, longest + 1), 3)):
        use_small_sizes(monkeypatch, tokens)
        (section,) = parts_module.growth(subject, 1)
        assert len(section.rows) == measured
        assert not any(f"{longest + 1}: " in row[1] for row in section.rows)


def test_a_report_names_the_memory_allocator(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "libtcmalloc_minimal.so.4")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    machine = describe_machine([])
    assert (machine["LD_PRELOAD"], machine["GLIBC_TUNABLES"]) == ("libtcmalloc_minimal.so.4", "none")


def test_a_training_step_is_measured(subject, training, monkeypatch):
    monkeypatch.setattr(training_speed, "training_step", lambda subject: training)
    measured = training_speed.measure_step(subject, rounds=1)
    assert measured.seconds > 0 and measured.compile_seconds > 0 and measured.compiled_bytes > 1e5
    assert measured.device_bytes is None  # a CPU does not tell
    monkeypatch.setattr(training_speed, "measure_step", lambda *_: measured)
    monkeypatch.setattr(training_speed, "measure_floor", lambda rounds: Floor({"float32": 1e9}, 1e9))
    (steps,) = training_speed.training_speed(subject, rounds=1)
    assert [row[:2] for row in steps.rows] == [[2, "none"], [2, "dense"], [2, "blocks"]]
    assert {len(row) for row in steps.rows} == {len(steps.head)}


def test_scoring_is_measured_on_masks_that_overlap(subject, parts, monkeypatch):
    monkeypatch.setattr(training_speed, "_SCORED_IMAGES", 2)
    monkeypatch.setattr(training_speed, "network_parts", lambda *_: parts)
    monkeypatch.setattr(training_speed, "PROTOCOLS", {name: PROTOCOLS[name] for name in ("original", "rela_gref")})
    (section,) = training_speed.scoring(subject, 1)
    assert [row[0] for row in section.rows] == ["original", "rela_gref"]
    for _, processor, per_second, share in section.rows:
        assert 0 < processor < 1000 and per_second > 1 and share > 0
    items, logits = training_speed._scored_batch(2, 120, 160)
    ious = [prediction.score.iou for prediction in score_items(PROTOCOLS["original"], items, logits)]
    assert len(ious) == 6 and min(ious) > 0.7


@pytest.mark.parametrize("found", ["when it is compiled", "when it runs"])
def test_a_step_that_does_not_fit_is_a_row(subject, monkeypatch, found):
    message = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."

    def too_large(*_):
        raise jax.errors.JaxRuntimeError(message)

    if found == "when it is compiled":
        monkeypatch.setattr(jax.stages.Lowered, "compile", too_large)
    else:
        monkeypatch.setattr(training_speed, "measure_step", too_large)
    monkeypatch.setattr(training_speed, "measure_floor", lambda rounds: Floor({"float32": 1e9}, 1e9))
    (steps,) = training_speed.training_speed(subject, rounds=1)
    assert [row[:3] for row in steps.rows] == [[2, policy, "out of memory"] for policy in ("none", "dense", "blocks")]
    assert {len(row) for row in steps.rows} == {len(steps.head)}
    message = "INTERNAL: another error"
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"):
        training_speed.training_speed(subject, rounds=1)


def test_a_step_that_cannot_be_measured_for_another_reason_is_an_error(subject, monkeypatch):
    def refuse(*_):
        raise UserError("config.batch_size cannot be split")

    monkeypatch.setattr(training_speed, "measure_step", refuse)
    monkeypatch.setattr(training_speed, "measure_floor", lambda rounds: Floor({"float32": 1e9}, 1e9))
    with pytest.raises(UserError, match="cannot be split"):
        training_speed.training_speed(subject, rounds=1)


def test_startup_runs_fresh_processes(subject, monkeypatch):
    commands, caches = [], set()

    def answer(command, env, **_):
        commands.append(command[2:4])
        caches.add((env["XDG_CACHE_HOME"], env.get("JAX_COMPILATION_CACHE_DIR")))
        seconds = {"import": 1.0, "trace": 2.0, "lower": 3.0, "compile": 40.0 if len(commands) == 1 else 4.0}
        return subprocess.CompletedProcess(command, 0, json.dumps(seconds), "")

    monkeypatch.setattr(startup.subprocess, "run", answer)
    monkeypatch.setattr(startup, "save_untrained_run", lambda *_: None)
    (section,) = startup.startup(subject, rounds=2)
    assert section.figures["import"] == 1.0
    assert (section.figures["compile"], section.figures["compile, cached"]) == (40.0, 4.0)
    assert [arguments[0] for arguments in commands] == ["s2rm_jax.measure.startup"] * 5 + ["s2rm_jax.predict"] * 3
    assert [row[0] for row in section.rows[-2:]] == [
        "`predict`: first process",
        "`predict`: later process, with kept programs",
    ]
    ((cache, of_jax),) = caches
    assert of_jax is None and cache != os.environ.get("XDG_CACHE_HOME")
    assert tempfile.gettempdir() in cache and not os.path.exists(cache), "a temporary folder, which is removed"


def test_a_fresh_process_measures_its_imports(tmp_path):
    seconds = json.loads(startup._run(["s2rm_jax.measure.startup", "import"], tmp_path))["import"]
    assert 0 < seconds < 600
    imported = "import sys, s2rm_jax.measure.startup; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", imported], check=True)  # else there is nothing left to measure


def test_a_run_that_was_never_trained_can_be_loaded(subject, tmp_path):
    startup.save_untrained_run(subject, tmp_path / "run")
    trained = load_run(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, trained.params, subject.params)
    assert trained.tokenizer.vocabulary == subject.tokenizer().vocabulary


@pytest.fixture
def quick(subject, parts, segmenter, monkeypatch):
    """Use the programs compiled for other tests, and a Segmenter with a network that compiles quickly."""
    monkeypatch.setattr(parts_module, "network_parts", lambda *_: parts)
    monkeypatch.setattr(parts_module, "measure_floor", lambda rounds: Floor({"float32": 1e9}, 1e9))
    monkeypatch.setattr(config, "default_config", subject.config.copy_and_resolve_references)
    monkeypatch.setattr(Subject, "segmenter", lambda _: segmenter)


def test_the_command_writes_a_report(quick, tmp_path):
    asked = [f"--suite={name}" for name in ("parts", "expressions", "programs", "parts")]
    done = run_command("benchmark", "--rounds=1", f"--out={tmp_path / 'out'}", *asked)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "out" / "benchmark.md").read_text()
    assert done.stdout == report + "\n"
    for said in ("processor:", "load average", "jax 0.", "Floor", "Parts and their floors", "7.2 single calls"):
        assert said in report
    assert "[3/3] programs" in done.stderr
    sections = json.loads((tmp_path / "out" / "benchmark.json").read_text())["sections"]
    (programs,) = [s["figures"]["programs"] for s in sections if "programs" in s["figures"]]
    assert programs <= 5  # for images, and for 1, 2, 4 and 8 expressions


def test_what_was_measured_is_printed_where_a_later_suite_fails(quick, monkeypatch):
    def fail(*_):
        raise UserError("not here")

    monkeypatch.setattr(many_expressions, "serving_programs", fail)
    done = run_command("benchmark", "--suite=parts", "--suite=programs", "--rounds=1", "--out=")
    assert done.returncode == 2
    assert "## Parts and their floors" in done.stdout and done.stderr.endswith("error: not here\n")


@pytest.mark.parametrize(
    ("flags", "images"),
    [((), 1), (("--batch_size=4",), 4), (("--config={}",), 3), (("--config={}", "--batch_size=4"), 4)],
)
def test_the_batch_is_that_of_the_configuration_unless_a_flag_says_otherwise(tmp_path, monkeypatch, flags, images):
    measured = []
    monkeypatch.setattr(parts_module, "part_floors", lambda subject, rounds: measured.append(subject) or [])
    monkeypatch.setattr(Subject, "from_config", lambda config: config)
    path = tmp_path / "three.py"
    path.write_text(
        "from s2rm_jax.config import default_config\n\ndef get_config():\n    config = default_config()\n"
        "    config.batch_size = 3\n    return config\n"
    )
    done = run_command("benchmark", "--suite=parts", "--out=", *(flag.format(path) for flag in flags))
    assert done.returncode == 0, done.stderr
    assert [config.batch_size for config in measured] == [images]


LAVT = {
    "bert/configuration_bert.py": "class BertConfig: pass",
    "bert/modeling_bert.py": """
import torch
class BertModel(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
    def forward(self, tokens, attention_mask):
        return (torch.zeros(*tokens.shape, 8),)
""",
    "lib/segmentation.py": """
import torch
from timm.models.layers import DropPath, to_2tuple, trunc_normal_
from mmseg.utils import get_root_logger
from .mmcv_custom import load_checkpoint
class Network(torch.nn.Module):
    def forward(self, images, words, l_mask):
        assert images.shape == (1, 3, 32, 32) and words.shape == (1, 8, 16) and l_mask.shape == (1, 16, 1)
        return DropPath(0.1)(images)
def lavt(pretrained, args):
    print("Window size 12!")
    return Network()
""",
}


@pytest.fixture
def lavt(tmp_path, monkeypatch):
    """A folder laid out as LAVT's code, whose imports are undone after the test."""
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    for path, content in LAVT.items():
        (tmp_path / "lavt" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lavt" / path).write_text(content)
    yield tmp_path / "lavt"
    for name in [name for name in sys.modules if name.split(".")[0] in ("bert", "lib")]:
        del sys.modules[name]


def test_lavt_is_measured_beside_ours(quick, lavt, monkeypatch):
    monkeypatch.setattr(many_expressions, "default_config", config.default_config)
    before = set(sys.modules)
    done = run_command("benchmark", "--suite=lavt", f"--lavt={lavt}", "--rounds=1", "--out=")
    assert done.returncode == 0, done.stderr
    assert "| LAVT |" in done.stdout and "Window size" not in done.stdout
    assert "ours, 7.2 expressions together" in done.stdout
    assert not {name for name in set(sys.modules) - before if name.startswith(("timm", "mmseg"))}, "stand-ins stay"
    assert str(lavt) not in sys.path


def test_lavt_needs_a_checkout_and_its_sizes(subject, quick, lavt, monkeypatch):
    with pytest.raises(UserError, match="needs the default encoders and image size"):
        many_expressions.against_lavt(subject, 1, str(lavt))
    monkeypatch.setattr(many_expressions, "default_config", config.default_config)
    for checkout in (None, str(lavt / "lib")):
        with pytest.raises(UserError, match=r"--lavt: .*LAVT-RIS"):
            many_expressions.against_lavt(subject, 1, checkout)
    (lavt / "bert" / "modeling_bert.py").write_text("import a_package_that_is_missing")
    with pytest.raises(UserError, match=r"--lavt: .*a_package_that_is_missing"):
        many_expressions.against_lavt(subject, 1, str(lavt))


def test_a_report_that_cannot_be_written(quick, tmp_path):
    (tmp_path / "file").touch()
    done = run_command("benchmark", "--suite=parts", "--rounds=1", f"--out={tmp_path / 'file'}")
    assert done.returncode == 2
    assert "give another --out" in done.stderr


def test_the_share_of_fusion(quick, subject, monkeypatch):
    monkeypatch.setattr(parts_module, "_EXPRESSIONS", (2,))
    (share,) = parts_module.fusion_share(subject, 1)
    assert share.figures["2 expressions"] > 0
    assert share.rows[0][0] == "2 expressions" and share.rows[0][1] > 0


def test_every_suite_can_be_loaded():
    assert set(benchmark.DEFAULT_SUITES) <= set(benchmark.SUITES)
    for suite in benchmark.SUITES.values():
        assert callable(suite.load())
