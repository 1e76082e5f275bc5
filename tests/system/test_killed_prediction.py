"""A job on many images that is killed at any moment continues: every image is done once."""

import itertools
import json
import os
import random
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROGRAM = Path(__file__).with_name("predict_with_standin.py")
COUNT = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def start(images, warm):
    """Starts the job, and returns the process when it has begun."""
    numbers = itertools.count()

    def start(out, share):
        flags = [
            f"--images={images}",
            f"--out={out}",
            f"--shard={share}",
            "--text=the bright part",
            "--text=it",
            "--quiet",
        ]
        other_hashes = next(numbers) % 2  # of strings than the process before
        process = warm(PROGRAM, *flags, env=os.environ | {"READY": "1"}, server=other_hashes)
        assert process.stdout.readline() == "ready\n"
        return process

    return start


def records(part):
    """The complete lines."""
    text = part.read_bytes() if part.exists() else b""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.mark.parametrize("share", ["0/1", "1/2"])
def test_a_killed_job_continues(start, images, tmp_path, long, share):
    kills, rng, index, number = (25 if long else 2), random.Random(share), *map(int, share.split("/"))
    out = tmp_path / "out"
    part = out / f"part-{index}-of-{number}.jsonl"
    rounds = 0
    while kills:
        with start(out, share) as process:
            try:
                process.wait(rng.uniform(0, 0.3))
            except subprocess.TimeoutExpired:
                process.kill()
                kills -= 1
        done = [record["image"] for record in records(part)]
        assert len(done) == len(set(done))
        if process.returncode == 0:  # it was faster
            check(out, part, number, images)
            out = tmp_path / f"out{(rounds := rounds + 1)}"
            part = out / part.name
    with start(out, share) as process:
        assert process.wait() == 0
    check(out, part, number, images)


def check(out, part, number, images):
    """Every image of the share has one record, and the files that it names."""
    done = json.loads((out / "result.json").read_text())["images"] if number == 1 else records(part)
    assert max(Counter(record["image"] for record in done).values()) == 1
    assert {record["image"] for record in done} <= {str(path) for path in images.iterdir()}
    assert len(done) == COUNT // number
    assert part.exists() == (number > 1)
    for record in done:
        for name in ("overlay.png", *(entry["file"] for entry in record["results"])):
            with Image.open(out / record["folder"] / name) as image:
                image.load()
