"""Flags of commands reach what they set: which checkpoint is loaded, and what the demo is built with."""

import pytest

from s2rm_jax import segmenter as segmenter_module
from s2rm_jax.errors import UserError
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.serving.limits import Limits
from s2rm_jax.training import run
from tests.command import run_command
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("flags", "which"), [((), "best"), (("--checkpoint=latest",), "latest"), (("--checkpoint=6",), 6)]
)
@pytest.mark.parametrize("name", ["evaluate", "predict", "demo", "convert"])
def test_commands_load_the_checkpoint_that_is_asked_for(tmp_path, monkeypatch, name, flags, which):
    if name == "demo":
        pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    loaded = []

    def load(workdir, which="best", *_, **__):
        loaded.append(which)
        raise UserError("the test ends here")

    for module in (run, segmenter_module):
        monkeypatch.setattr(module, "load_run", load)
    run.save_config(tmp_path, tiny_config())
    out = f"--out={tmp_path / 'out'}"
    arguments = {"convert": ("to-pytorch", out), "demo": ("--port=0",), "predict": (out,)}
    done = run_command(name, *arguments.get(name, ()), f"--workdir={tmp_path}", *flags)
    assert "the test ends here" in done.stderr.splitlines()[-1]
    assert loaded == [which]


LIMITS = {
    "--max_megabytes=0.5": {"bytes": 500_000},
    "--max_megapixels=0.25": {"pixels": 250_000},
    "--per_minute=3": {"per_minute": 3},
    "--work_per_minute=5": {"work_per_minute": 5},
    "--waiting=7": {"waiting": 7},
    "--max_seconds=11": {"seconds": 11.0},
    "--connections_per_visitor=13": {"connections_per_visitor": 13},
}


@pytest.mark.parametrize("flags", [(), tuple(LIMITS)], ids=["defaults", "given"])
def test_the_demo_has_the_limits_the_examples_and_the_log_that_are_asked_for(segmenter, tmp_path, monkeypatch, flags):
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    from s2rm_jax.serving import app, page

    built = []

    def build(service, folder, cases, name, *, root_path, access_log):
        built.append((service.limits, cases, root_path))
        if access_log:
            access_log("a request")
        raise UserError("the test ends here")

    monkeypatch.setattr(Segmenter, "from_checkpoint", lambda *_, **__: segmenter)
    monkeypatch.setattr(page, "example_cases", lambda config, folder, count, split: (count, split))
    monkeypatch.setattr(app, "build_app", build)
    log = tmp_path / "access.jsonl"
    others = ("--split=train", "--examples=2", "--root_path=sub/", f"--access_log={log}") if flags else ()
    done = run_command("demo", "--port=0", *flags, *others)
    assert done.stderr.splitlines()[-1] == "error: the test ends here"
    limits = Limits(**{name: value for flag in flags for name, value in LIMITS[flag].items()})
    assert built == [(limits, (2, "train"), "/sub") if flags else (limits, (6, None), "")]
    assert not flags or log.read_text() == "a request\n"


def test_a_split_without_examples_is_refused():
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    done = run_command("demo", "--split=val", "--examples=0")
    assert done.stderr.splitlines()[-1].startswith("error: --split is given with --examples 0")
