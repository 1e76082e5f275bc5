"""The notebooks run from their first cells to their last, and saved output is up to date."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.input import refer_fixture

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "segment_your_image.ipynb"
TRAINING = ROOT / "docs" / "train_refcoco.ipynb"


def scores_shown(notebook):
    """Return the scores at the end of the third code cell."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = cells[2].outputs[0].data["text/plain"]
    return [float(number) for number in re.search(r"array\(\[(.*?)\]\)", text)[1].split(",")]


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install nbclient")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = scores_shown(notebook)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in data for data in shown) == 2
    np.testing.assert_allclose(
        scores_shown(notebook), kept, atol=0.02, err_msg="the saved output is of another network"
    )
    assert (tmp_path / "mask_3.png").is_file()


def test_the_saved_output_is_small_and_complete():
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install nbclient")
    assert NOTEBOOK.stat().st_size < 500_000
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert '"output_type": "error"' not in text and "Traceback" not in text
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.cell_type != "code" or cell.execution_count, "run the notebook before saving it"


TINY = """
import os

from ml_collections import ConfigDict

from tests.conftest import tiny_config


def get_config():
    config = tiny_config()
    source = {"name": "refer", "root": os.environ["S2RM_DATA"], "dataset": "refcoco", "split_by": "unc"}
    config.input.source = ConfigDict(source)
    config.text.vocab, config.text.vocab_size = os.environ["S2RM_BERT_VOCAB"], 9
    return config
"""


def test_the_notebook_on_training_runs_all_its_steps(tmp_path, monkeypatch):
    """On generated images in the layout of RefCOCO, with a tiny network."""
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install nbclient")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient")
    (tmp_path / "tiny.py").write_text(TINY)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "right", "red", "green", "box")
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    data = refer_fixture.write_refer_layout(tmp_path / "data")
    settings = {"S2RM_DATA": data, "S2RM_BERT_VOCAB": tmp_path / "vocab.txt", "CONFIG": tmp_path / "tiny.py"}
    settings |= {"SPLITS": "val", "WORKDIR": tmp_path / "run", "PACKAGE": "", "PYTHONPATH": ROOT}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    notebook = nbformat.read(TRAINING, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 1
    text = "".join(output.get("text", "") for output in outputs)
    text += "".join(data.get("text/markdown", "") for data in shown)
    for part in ("s2rm_jax.train ", "refcoco, split by unc", "Trained 2 steps", "over 8 expressions of val", "| all |"):
        assert part in text
    names = {path.name for folder in ("eval-val-lavt480", "pytorch") for path in (tmp_path / "run" / folder).iterdir()}
    assert names >= {"index.html", "model.safetensors"}


# Writes the files by which the notebook sees that a step is done; convert refuses a folder that exists.
PYTHON = """#!/bin/sh
echo "$2" >> "$CALLS"
[ "$2" != "$FAIL" ] || exit "$S2RM_STOPPED_STATUS"
case "$2" in
  s2rm_jax.train) sleep 0.05; mkdir -p "$WORKDIR/checkpoints/$TRAINED"; sleep 0.05 ;; # ticks of mtime: 10 ms
  s2rm_jax.evaluate) mkdir -p "$WORKDIR/eval-val-lavt480" && touch "$WORKDIR/eval-val-lavt480/index.html" ;;
  s2rm_jax.convert) mkdir "$7" ;;
esac
"""


def test_the_results_are_those_of_the_latest_state_of_the_run(tmp_path):
    sources = ["".join(cell["source"]) for cell in json.loads(TRAINING.read_text(encoding="utf-8"))["cells"]]
    steps = ("s2rm_jax.train", "s2rm_jax.evaluate", "s2rm_jax.convert")
    cells = [source for source in sources if source.startswith("%%bash") and any(step in source for step in steps)]
    assert len(cells) == 3
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    calls, places = tmp_path / "calls", {"WORKDIR": str(tmp_path / "run"), "CALLS": str(tmp_path / "calls")}

    def run_all(trained, fail=""):
        """Return the steps that were executed; like the notebook, stop at a cell that fails."""
        calls.write_text("")
        environment = os.environ | places | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SPLITS": "val"}
        environment |= {"CONFIG": "refcoco", "TRAINED": trained, "FAIL": fail}
        for cell in cells:
            script = cell.removeprefix("%%bash\n")
            if subprocess.run(["bash"], input=script, text=True, env=environment, check=False).returncode:
                break
        return tuple(calls.read_text().split())

    assert run_all("3", fail="s2rm_jax.train") == steps[:1]  # it was stopped
    assert run_all("3") == steps
    assert run_all("3") == steps[:1]
    assert run_all("6") == steps


def test_a_changed_setting_counts_in_a_living_kernel(monkeypatch):
    sources = ["".join(cell["source"]) for cell in json.loads(TRAINING.read_text(encoding="utf-8"))["cells"]]
    (settings,) = (source for source in sources if "settings = {" in source)
    (sets_data,) = (source for source in sources if source.startswith('os.environ["S2RM_DATA"] ='))
    monkeypatch.setattr(os, "environ", {"PATH": "/bin", "SPLITS": "val"})
    kernel = {}
    for data in ("first", "second"):
        exec(settings.replace('"DATA": "data/downloads"', f'"DATA": "{data}"'), kernel)
        assert (os.environ["DATA"], os.environ["S2RM_DATA"], os.environ["SPLITS"]) == (data, "", "val")
        exec(sets_data, kernel)
        assert os.environ["S2RM_DATA"] == data
    assert os.environ["SPLITS"] == "val"  # which the environment gives


def test_the_notebook_on_training_has_no_output_of_a_tiny_network():
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install nbclient")
    cells = [cell for cell in nbformat.read(TRAINING, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    script = (ROOT / "launch" / "refcoco_on_one_gpu.sh").read_text(encoding="utf-8")
    for command in re.findall(r"-m (s2rm_jax\.\w+)", script):  # the same steps
        assert any(command in cell.source for cell in cells), command
