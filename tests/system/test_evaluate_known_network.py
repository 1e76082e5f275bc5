"""The command evaluate with the colour network, whose masks are known, on JSON lines."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation import calibration
from s2rm_jax.interop.torch_folder import LoadedRun
from s2rm_jax.training import run
from tests.command import run_command
from tests.input.own_data_fixture import write_json_lines


@pytest.fixture
def evaluate(colour_world, tmp_path, monkeypatch):
    """Run the command on the JSON lines in a folder; the report is in `tmp_path`/report."""
    network, _, params, tokenizer, config = colour_world
    loaded = LoadedRun(network, params, tokenizer, config, step=1)
    monkeypatch.setattr(run, "load_run", lambda *_, **__: loaded)

    def evaluate(root, *flags):
        config.input.source = ConfigDict({"name": "json_lines", "root": str(root)})
        (tmp_path / "run").mkdir(exist_ok=True)
        run.save_config(tmp_path / "run", config)
        flags = (f"--workdir={tmp_path / 'run'}", "--gallery=0", f"--out={tmp_path / 'report'}", *flags)
        return run_command("evaluate", *flags)

    return evaluate


def test_bad_examples_stop_an_evaluation_unless_it_is_told_to_skip_them(evaluate, tmp_path):
    damaged = write_json_lines(tmp_path / "data") / "images/0.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    done = evaluate(tmp_path / "data", "--split=train")
    assert done.returncode == 2 and "0.png is damaged" in done.stderr.splitlines()[-1]
    done = evaluate(tmp_path / "data", "--split=train", "--on_bad_example=skip")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert (metrics["left_out"], metrics["all"]["expressions"]) == (4, 4)  # of the first image, of the second


def test_a_mask_is_right_from_an_iou_of_a_half_on(evaluate, tmp_path, monkeypatch):
    entries, fitted = [], []
    for count in (31, 32, 33):  # of the 64 pixels that the network finds
        mask = np.where(np.arange(64).reshape(8, 8) < count, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / f"{count}.png")
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"image_{count}.png")
        entry = {"image": f"image_{count}.png", "mask": f"{count}.png", "expressions": ["red"], "split": "val"}
        entries.append(json.dumps(entry))
    (tmp_path / "data.jsonl").write_text("\n".join(entries))

    def fit(judged):
        fitted.extend(right for _, right in judged)
        raise UserError("the test ends here")

    monkeypatch.setattr(calibration, "fit", fit)
    assert "the test ends here" in evaluate(tmp_path, "--calibrate").stderr
    assert fitted == [False, True, True]
