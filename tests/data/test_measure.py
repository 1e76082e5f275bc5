"""The measurement of the two ways to store a dataset: it runs, and tells both."""

import pytest


def test_both_ways_and_every_form_of_a_mask_are_told(capsys):
    pytest.importorskip("tensorflow_datasets", reason="the extra 'tfds' is not installed")
    from data import measure

    measure.FLAGS(["test", "--images=3"])
    measure.main()
    told = capsys.readouterr().out
    assert told.startswith("3 images")
    assert "| images as files |" in told and "| ArrayRecord |" in told and "| form of a mask |" in told
