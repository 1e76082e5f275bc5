"""The benchmark of the input pipeline runs and reports every stage and the whole."""

import importlib.util
import json
from itertools import chain

import pytest

from data import input_speed
from s2rm_jax.errors import UserError


def test_every_stage_and_the_whole_are_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(input_speed, "WORKERS", (0,))
    monkeypatch.setattr(input_speed, "BATCH_SIZE", 2)
    input_speed.FLAGS(["test", "--images=3", "--rounds=1", "--batches=2", f"--json_file={tmp_path / 'speed.json'}"])
    input_speed.main()
    results = json.loads((tmp_path / "speed.json").read_text())
    times, shares = results["milliseconds"], results["share_of_limit"]
    assert results["images"] == 3
    assert {"resizing the image", "making the masks", "the whole, no workers"} < set(times)
    if importlib.util.find_spec("pyarrow"):
        assert {"opening hf, unpacking the images", "opening hf", "reading the file by hf"} < set(times)
    assert all(time > 0 for time in times.values())
    assert shares[results["limit"]] == 1
    assert shares["the whole, no workers"] == times[results["limit"]] / times["the whole, no workers"]
    assert times["the whole, no workers"] > times["resizing the image"]
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in times)


def test_a_json_file_that_cannot_be_written_is_an_error_of_the_flag(tmp_path, monkeypatch):
    monkeypatch.setattr(input_speed, "WORKERS", (0,))
    monkeypatch.setattr(input_speed, "_round", lambda _, __, *measured: dict.fromkeys(chain(*measured), 1.0))
    input_speed.FLAGS(["test", "--images=1", "--rounds=1", f"--json_file={tmp_path}"])
    with pytest.raises(UserError, match=r"^--json_file: .* cannot be written"):
        input_speed.main()
