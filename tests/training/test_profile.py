"""Tracing steps of a run."""

from dataclasses import replace

import jax
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training.profile import parse_profile_steps

MESH = make_mesh(devices=jax.devices()[:1])


def traces(workdir):
    return list((workdir / "profile").rglob("*.xplane.pb"))


# JAX 0.12 gives its events to Python by types without a module, and turning that warning into an error aborts.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


def steps_in(trace):
    """The numbers of the steps that a trace has annotations of."""
    profile = jax.profiler.ProfileData.from_file(str(trace))
    events = (event for plane in profile.planes for line in plane.lines for event in line.events)
    return {dict(event.stats)["step_num"] for event in events if event.name == "train"}


def test_the_steps_asked_for_are_traced_and_no_others(tmp_path, standin, capsys):
    config = standin.make_config(steps=6)
    standin.train(config, tmp_path, standin.make_parts(config), MESH, profile_steps=range(3, 5))
    (trace,) = traces(tmp_path)
    assert steps_in(trace) == {3, 4}
    assert f"traced into {tmp_path / 'profile'}" in capsys.readouterr().out
    longer = standin.make_config(steps=8)
    standin.train(longer, tmp_path, standin.make_parts(longer), MESH, profile_steps=range(3, 5))
    assert "nothing to trace: --profile_steps ends at 4, and the run continues from step 6" in capsys.readouterr().out
    assert traces(tmp_path) == [trace]


def test_a_trace_that_was_begun_is_written_when_the_run_breaks_off(tmp_path, standin):
    config = standin.make_config(steps=6)

    class Broken(Exception):
        pass

    def batches(rows_seen):
        for count, batch in enumerate(standin.make_parts(config).batches(rows_seen), start=1):
            if count == 4:
                raise Broken
            yield batch

    parts = replace(standin.make_parts(config), batches=batches)
    with pytest.raises(Broken):
        standin.train(config, tmp_path, parts, MESH, profile_steps=range(3, 7))
    assert len(traces(tmp_path)) == 1


def test_steps_that_the_run_does_not_have(tmp_path, standin):
    config = standin.make_config(steps=6)
    with pytest.raises(UserError, match="--profile_steps=5:7, but the run has 6 steps"):
        standin.train(config, tmp_path / "run", standin.make_parts(config), MESH, profile_steps=range(5, 8))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "10", "10:", "0:5", "5:4", "a:b", "-1:5", "1:2:3"])
def test_texts_that_are_not_a_range_of_steps_are_refused(text):
    with pytest.raises(UserError, match=r"--profile_steps is '.*'; it must be FIRST:LAST"):
        parse_profile_steps(text)


def test_the_last_step_is_among_them():
    assert list(parse_profile_steps("10:12")) == [10, 11, 12] and list(parse_profile_steps("3:3")) == [3]
