from itertools import count

import pytest

from s2rm_jax.measure import harness
from s2rm_jax.measure.harness import Timings, time_alternately


def test_each_round_runs_all_and_every_other_one_backwards(monkeypatch):
    ran: list[str] = []
    ticks = count()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: float(next(ticks)))
    timings = time_alternately({name: lambda name=name: ran.append(name) for name in "ab"}, rounds=2)
    assert ran == ["a", "b", "a", "b", "b", "a"]  # the first two to warm up
    assert timings.seconds == {"a": (1.0, 1.0), "b": (1.0, 1.0)}


def test_ratios_are_taken_within_rounds():
    timings = Timings({"ours": (1.0, 4.0, 9.0), "theirs": (2.0, 4.0, 3.0)})
    assert timings.median("ours") == 4.0
    ratio = timings.ratio("ours", "theirs")
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((0.75, 1.0, 2.0))
    assert Timings({"a": (1.0,), "b": (2.0,)}).ratio("a", "b").high == 0.5
