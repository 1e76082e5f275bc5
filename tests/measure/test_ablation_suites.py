"""The suites: each variant is a valid configuration, and equal cost is equal cost."""

import copy
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from s2rm_jax.config import check_config
from s2rm_jax.errors import UserError
from s2rm_jax.measure.ablation_runs import plan
from s2rm_jax.measure.ablation_suites import FULL, PLAIN_SUM, SUITES, Variant, apply_variant, variants_of, with_steps
from s2rm_jax.models.cost import network_cost
from s2rm_jax.models.network import build_network
from s2rm_jax.training.state import initial_params
from tests.conftest import tiny_config
from tests.test_configs import load

BASE = load(Path(__file__).parents[2] / "configs/synthetic_benchmark.py").get_config()
CHANGED = [variant for variant in variants_of("all") if variant.changes]


def test_every_suite_begins_with_the_whole_network():
    assert all(variants[0] == FULL for variants in SUITES.values())
    for variants in SUITES.values():
        assert len({variant.name for variant in variants}) == len(variants)
    by_name = {}
    for variant in (variant for variants in SUITES.values() for variant in variants):
        assert by_name.setdefault(variant.name, variant) == variant, "a name is one variant in all suites"


@pytest.mark.parametrize("variant", CHANGED, ids=lambda variant: variant.name)
def test_a_variant_changes_what_it_names_and_nothing_else(variant):
    config = apply_variant(BASE, variant)
    check_config(config)
    sections = ("fusion", "decoder", "loss", "optimizer")
    for section in sections:
        for field, value in config[section].items():
            wanted = variant.changes.get(f"{section}.{field}", BASE[section][field])
            assert value == wanted
        assert any(BASE[section][field] != config[section][field] for field in config[section]) == any(
            name.startswith(f"{section}.") for name in variant.changes
        )
    if variant.expressions:
        config.batch_size, config.input.expressions_per_image = BASE.batch_size, BASE.input.expressions_per_image
    rest = {name: value for name, value in config.to_dict().items() if name not in sections}
    assert rest == {name: value for name, value in BASE.to_dict().items() if name in rest}


def test_a_variant_may_change_any_field_of_any_section():
    changes = {"dtype": "bfloat16", "input.augment.flip": 0.5, "fusion.rotations": [0, 180]}
    config = apply_variant(BASE, Variant("mine", "", changes))
    check_config(config)
    new, old = (flatten_dict(one.to_dict(), sep=".") for one in (config, BASE))
    assert {name: new[name] for name in new if new[name] != old[name]} == changes | {"fusion.rotations": (0, 180)}


def test_an_own_suite_is_a_file_of_variants_compared_with_the_unchanged_configuration(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"sum": {"fusion.mode": "sum"}, "both": {"dtype": "bfloat16", "input.augment.flip": 0.5}}')
    full, *own = variants_of(str(path))
    assert (full.name, full.changes) == ("full", {})
    assert own == [
        Variant("sum", "fusion.mode=sum", {"fusion.mode": "sum"}),
        Variant("both", "dtype=bfloat16, input.augment.flip=0.5", {"dtype": "bfloat16", "input.augment.flip": 0.5}),
    ]
    assert variants_of(str(path), ["both"]) == (own[1],)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.json", None, "mine.json cannot be read: No such file"),
        ("mine.json", "{", "mine.json cannot be read: "),
        ("mine.json", '["sum"]', "mine.json must have the form {"),
        ("mine.json", '{"sum": "fusion.mode"}', "mine.json must have the form {"),
        ("mine.json", '{"full": {"seed": 1}}', "a variant cannot be named 'full'"),
        ("mine.json", '{"a/b": {"seed": 1}}', "a variant cannot be named 'a/b'; use letters, digits and _"),
        ("far.json", '{"sum": {"fusion.mode": "sum"}}', "far.json has the name of a suite of the package; rename it"),
        ("mine", None, "--suite is .*it must be one of: cumulative, .*, all; or FILE.json"),
    ],
)
def test_a_wrong_suite_is_named(tmp_path, name, content, message):
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        variants_of(str(tmp_path / name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion.mod": "sum"}, "config.fusion.mod: there is no such field; did you mean config.fusion.mode"),
        ({"fusoin.mode": "sum"}, "config.fusoin.mode: there is no such field; did you mean config.fusion.mode"),
        ({"fusion": {"mode": "sum"}}, "config.fusion: there is no such field"),
        ({"seed": 3}, "config.seed is set by --seeds; leave it out"),
        ({"fusion.width": "wide"}, "'width'"),
    ],
)
def test_a_field_that_does_not_exist_or_fit_is_named_with_its_variant(tmp_path, changes, message):
    with pytest.raises(UserError, match=f"variant mine: .*{message}"):
        plan([Variant("mine", "", changes)], 1, BASE, tmp_path)


def test_all_is_every_suite_on_the_same_scenes(monkeypatch):
    monkeypatch.setitem(SUITES, "far", (FULL, Variant("of_far", "")))
    monkeypatch.setitem(SUITES, "width", (FULL, Variant("of_width", "")))
    names = [variant.name for variant in variants_of("all")]
    assert "of_width" in names and "of_far" not in names
    assert len(names) == len(set(names))


def test_some_variants_of_a_suite():
    chosen = variants_of("fusion_by_decoder", ["plain_sum", "full"])
    assert [variant.name for variant in chosen] == ["full", "plain_sum"], "in the order of the suite"
    with pytest.raises(UserError, match=r"suite width has no variant plain_sum, sun; it has full, width_64"):
        variants_of("width", ["full", "plain_sum", "sun"])


def test_references_are_variants_of_the_suite():
    for variants in SUITES.values():
        names = [variant.name for variant in variants]
        assert all(one.reference in names for one in variants if one.reference)


def test_fewer_expressions_per_image_cost_the_same():
    def cost(config):
        further = config.input.expressions_per_image - 1
        return config.batch_size * sum(part.flops_first + further * part.flops_further for part in parts)

    base = copy.deepcopy(BASE)
    base.batch_size = 32
    base.vision.update(depths=(1, 1), num_heads=(3, 6))
    base.decoder.widths = (16, 32)
    base.text.num_layers = 1
    parts = network_cost(base).values()  # of each part, for the first expression and for each further one
    whole = cost(base)
    for variant in (*SUITES["expressions"][1:], SUITES["recipe"][-1]):
        config = apply_variant(base, variant)
        assert config.input.expressions_per_image == variant.expressions
        assert cost(config) == pytest.approx(whole, rel=0.05)


def test_another_budget_keeps_the_shares():
    config = with_steps(BASE, 400)
    assert (config.steps, config.optimizer.warmup_steps) == (400, 12)
    assert (config.eval.every, config.checkpoint_every, config.log_every) == (100, 100, 20)
    assert with_steps(BASE, BASE.steps).to_dict() == BASE.to_dict()
    assert with_steps(BASE, 2).log_every == 1
    never = copy.deepcopy(BASE)
    never.eval.every = 0
    assert with_steps(never, 400).eval.every == 0
    epochs = with_steps(BASE, 10)
    epochs.steps = 0
    with pytest.raises(UserError, match=r"give --config\.steps=N"):
        with_steps(epochs, 10)


def test_variants_of_one_seed_share_initial_parameters():
    """Differences between runs of one seed are paired for this reason."""

    def initial(variant):
        config = apply_variant(tiny_config(), variant)
        params = jax.jit(functools.partial(initial_params, build_network(config), config))(jax.random.key(3))
        return {path: np.asarray(leaf) for path, leaf in flatten_dict(params).items()}

    full, other = initial(FULL), initial(PLAIN_SUM)
    common = {path for path in full.keys() & other.keys() if full[path].shape == other[path].shape}
    assert {path[0] for path in common} == {"vision", "text", "fusion", "decoder"}
    assert len(common) < len(full)
    for path in common:
        np.testing.assert_array_equal(full[path], other[path], err_msg="/".join(path))
