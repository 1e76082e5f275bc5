"""The notebook runs from its first cell to its last, and its saved output is up to date."""

import re
from pathlib import Path

import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "segment_your_image.ipynb"


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
