import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s2rm_jax.config import SCHEDULES
from s2rm_jax.errors import UserError
from s2rm_jax.training import optimizer
from s2rm_jax.training.optimizer import build_optimizer, describe_groups, learning_rate_schedule


@pytest.fixture
def params():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "vision": {"dense": {"kernel": draw(3, 4), "bias": draw(4)}, "norm1": {"scale": draw(4)}},
        "text": {"word_embeddings": {"embedding": draw(5, 2)}, "dense": {"kernel": draw(2, 2)}},
        "head": {"kernel": draw(4, 1)},
    }


def gradients_like(params, scale=1.0):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(scale * rng.standard_normal(p.shape), jnp.float32), params)


def updates_of(config, params, gradients):
    optimizer = build_optimizer(config, params)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def test_is_adamw_of_optax_where_nothing_is_special(standin, params):
    settings = {"b1": 0.8, "b2": 0.9, "weight_decay": 0.1}
    changes = {f"optimizer__{name}": value for name, value in settings.items()}
    config = standin.make_config(optimizer__no_decay=(), **changes)
    ours = build_optimizer(config, params)
    reference = optax.adamw(learning_rate_schedule(config), **settings)
    our_params, their_params, our_state, their_state = params, params, ours.init(params), reference.init(params)
    for step in range(3):
        gradients = gradients_like(params, 1.0 + step)
        updates, our_state = ours.update(gradients, our_state, our_params)
        our_params = optax.apply_updates(our_params, updates)
        updates, their_state = reference.update(gradients, their_state, their_params)
        their_params = optax.apply_updates(their_params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), our_params, their_params)


def test_multipliers_scale_the_whole_update_and_the_first_match_counts(standin, params):
    plain = updates_of(standin.make_config(), params, gradients_like(params))
    multipliers = (("text/word", 0.25), ("^text", 0.5), ("^vision", 2.0))
    scaled = updates_of(standin.make_config(optimizer__multipliers=multipliers), params, gradients_like(params))
    ratio = jax.tree.map(lambda a, b: a / b, scaled, plain)
    for part, factor in (
        (ratio["vision"], 2.0),
        (ratio["text"]["word_embeddings"], 0.25),
        (ratio["text"]["dense"], 0.5),
        (ratio["head"], 1.0),
    ):
        for leaf in jax.tree.leaves(part):
            np.testing.assert_array_equal(leaf, factor)  # powers of two: exact


def test_only_what_may_decay_decays_by_rate_times_decay(standin, params):
    config = standin.make_config(optimizer__weight_decay=0.5, optimizer__warmup_steps=0)
    updates = updates_of(config, params, jax.tree.map(jnp.zeros_like, params))
    rate = config.optimizer.learning_rate
    for path in (("vision", "dense", "kernel"), ("text", "dense", "kernel"), ("head", "kernel")):
        update, param = updates, params
        for key in path:
            update, param = update[key], param[key]
        np.testing.assert_allclose(update, -rate * 0.5 * param, rtol=1e-6)
    for leaf in jax.tree.leaves(
        [updates["vision"]["dense"]["bias"], updates["vision"]["norm1"], updates["text"]["word_embeddings"]]
    ):
        assert not leaf.any()


def test_frozen_parameters_have_no_update_no_moments_and_no_decay(standin, params):
    config = standin.make_config(optimizer__frozen=("^text", "norm"), optimizer__weight_decay=0.5)
    optimizer = build_optimizer(config, params)
    state = optimizer.init(params)
    updates, _ = optimizer.update(gradients_like(params), state, params)
    for leaf in jax.tree.leaves([updates["text"], updates["vision"]["norm1"]]):
        assert not leaf.any()
    assert updates["head"]["kernel"].all()
    trained = sum(p.size for p in jax.tree.leaves([params["vision"]["dense"], params["head"]]))
    moments = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
    assert moments == 2 * trained


def test_clipping_is_by_the_global_norm(standin, params):
    gradients = gradients_like(params)
    norm = float(optax.tree.norm(gradients))
    clipped = build_optimizer(standin.make_config(optimizer__clip_norm=0.5 * norm), params)
    _, state = clipped.update(gradients, clipped.init(params), params)
    first_moments = [x for x in jax.tree.leaves(state) if x.ndim][: len(jax.tree.leaves(params))]
    np.testing.assert_allclose(float(optax.tree.norm(first_moments)), (1 - 0.9) * 0.5 * norm, rtol=1e-5)


def test_clipping_leaves_small_gradients_alone(standin, params):
    gradients = gradients_like(params, 1e-3)
    loose = updates_of(standin.make_config(optimizer__clip_norm=100.0), params, gradients)
    none = updates_of(standin.make_config(), params, gradients)
    jax.tree.map(np.testing.assert_array_equal, loose, none)


@pytest.mark.parametrize("power", [0.9, 2.0])
def test_polynomial_schedule(standin, power):
    schedule = learning_rate_schedule(standin.make_config(steps=100, optimizer__power=power))
    for step in (0, 1, 50, 99):
        np.testing.assert_allclose(schedule(step), 0.01 * (1 - step / 100) ** power, rtol=1e-5)
    assert schedule(100) == 0


def test_warm_up_rises_in_equal_steps_and_then_falls(standin):
    schedule = learning_rate_schedule(standin.make_config(steps=20, optimizer__warmup_steps=4))
    np.testing.assert_allclose([schedule(s) for s in range(5)], 0.01 * np.array([0.2, 0.4, 0.6, 0.8, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(schedule(12), 0.01 * 0.5**0.9, rtol=1e-6)


def test_cosine_schedule(standin):
    schedule = learning_rate_schedule(standin.make_config(steps=100, optimizer__schedule="cosine"))
    np.testing.assert_allclose([schedule(0), schedule(50), schedule(100)], [0.01, 0.005, 0.0], atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__multipliers": (("^visoin", 0.1),)}, r"multipliers: '\^visoin' matches no parameter.*vision"),
        ({"optimizer__frozen": ("bert",)}, r"frozen: 'bert' matches no parameter"),
        ({"optimizer__frozen": ("*text",)}, r"frozen holds '\*text', which is not a regular expression"),
        ({"optimizer__multipliers": ("vision", 0.1)}, r"must be pairs"),
        (
            {"optimizer__multipliers": (("^vision", -1.0),)},
            r"multipliers: the factor of '\^vision' is -1\.0; it must be",
        ),
        ({"optimizer__multipliers": (("^vision", float("nan")),)}, r"the factor of '\^vision' is nan; it must be"),
        ({"optimizer__multipliers": (("^vision", float("inf")),)}, r"the factor of '\^vision' is inf; it must be"),
        ({"optimizer__multipliers": (("^vision", "0.1"),)}, r"the factor of '\^vision' is '0\.1'; it must be"),
        ({"optimizer__frozen": (".",)}, r"nothing is left to train"),
        ({"optimizer__warmup_steps": 12}, r"warmup_steps=12 must be less than config.steps=12"),
        ({"optimizer__schedule": "constant"}, r"schedule is 'constant'; it must be one of: polynomial, cosine"),
    ],
)
def test_mistakes_are_named(standin, params, changes, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(standin.make_config(**changes), params)


def test_every_schedule_of_the_configuration_exists():
    assert tuple(optimizer._SCHEDULES) == SCHEDULES


def test_unmatched_no_decay_patterns_are_fine(standin, params):
    build_optimizer(standin.make_config(optimizer__no_decay=("relative_position_bias_table",)), params)


def test_table_of_groups_counts_every_parameter_once(standin, params):
    config = standin.make_config(optimizer__frozen=("^text",), optimizer__multipliers=(("^vision", 0.1),))
    table = describe_groups(config, params).splitlines()
    assert [line.split() for line in table[1:]] == [
        ["0.01", "0.01", "1", "4"],
        ["0.001", "0.01", "1", "12"],
        ["0.001", "0", "2", "8"],
        ["frozen", "0", "2", "14"],
    ]
