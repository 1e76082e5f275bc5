"""A run whose network and data are the caller's own: a module, and the class of a source."""

import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.input.sources import build_source
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel import programs
from s2rm_jax.training import run
from s2rm_jax.training.loop import train_and_evaluate
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def network(standin):
    return standin.StandIn(width=5, words=tiny_config().text.vocab_size)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, network):
    """A run that was stopped after two of three steps and continued."""
    folder, config = tmp_path_factory.mktemp("own"), tiny_config()
    (folder / "my_scenes.py").write_text(
        "from s2rm_jax.input.synthetic import SyntheticSource\n\nclass Scenes(SyntheticSource):\n    pass\n"
    )
    config.input.source.name = "my_scenes:Scenes"
    config.optimizer.ema_decay = 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        assert "mean_iou" in train_and_evaluate(config, folder / "run", network=network)
        config.steps = 3
        assert "mean_iou" in train_and_evaluate(config, folder / "run", network=network)
        yield folder / "run"


def test_it_trains_is_evaluated_continues_and_is_loaded_like_any_other(workdir, network):
    loaded = run.load_run(workdir, "latest", network=network)
    assert loaded.step == 3 and loaded.network == network
    assert loaded.params["head"]["kernel"].shape == (5, 5)
    assert "from step 2 of 3" in (workdir / "log/process_0.jsonl").read_text()


def test_its_configuration_finds_its_source(workdir):
    source = build_source(run.load_config(workdir).input.source, "val")
    assert type(source).__name__ == "Scenes"


def test_without_the_module_the_run_is_refused(workdir):
    with pytest.raises(UserError, match=r"was trained with a network of your own, \w+:StandIn: load it in Python"):
        run.load_run(workdir)
    config = run.load_config(workdir)
    with pytest.raises(UserError, match="network"), config.unlocked():
        config.network, config.steps = "", 4
        train_and_evaluate(config, workdir)


def test_another_module_does_not_fit_its_parameters(workdir):
    with pytest.raises(UserError, match=r"is missing in the checkpoint.*`network`, if it was your own"):
        run.load_run(workdir, network=build_network(tiny_config()))


def test_its_programs_are_not_kept_under_the_configuration(workdir, network, monkeypatch):
    monkeypatch.setattr(run, "open_program_store", lambda config: programs.ProgramStore(workdir, config))
    assert run.load_run(workdir, network=network, keep_programs=True).programs is None
