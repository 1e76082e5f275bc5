"""The benchmark of the two ways to store a dataset runs and reports both."""

import pytest


def test_both_ways_and_every_form_of_a_mask_are_reported(capsys):
    pytest.importorskip("tensorflow_datasets", reason="the extra 'tfds' is not installed")
    from data import measure

    measure.FLAGS(["test", "--images=3"])
    measure.main()
    output = capsys.readouterr().out
    assert output.startswith("3 images")
    assert "| images as files |" in output and "| ArrayRecord |" in output and "| form of a mask |" in output
