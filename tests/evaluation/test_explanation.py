"""Explanations: pieces joined to words, and the pairs that remain in other configurations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.evaluation.explain import explanations, reduce
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.models.network import Output, build_network
from tests.models.small import small_config, small_inputs


def test_the_pieces_of_a_word_are_joined():
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "gir", "##aff", "##e", "left"], 8)
    ids, _ = tokenizer.encode("left giraffe left")
    attention = np.random.default_rng(0).dirichlet(np.ones(8), (1, 2, 3, 4)).astype(np.float32)  # heads, h, w, l
    output = Output(jnp.zeros((1, 1, 8, 8)), (), jnp.asarray(attention)[:, None], {}, {})
    (told,) = explanations(jax.device_get(reduce(output)), [ids], tokenizer, (0, 180))
    assert told.words == ("[CLS]", "left", "giraffe", "left", "[SEP]")
    mean = attention[0].mean(0)
    np.testing.assert_allclose(told.word_attention[2], mean[..., 2:5].sum(-1), rtol=1e-6)
    np.testing.assert_allclose(told.word_attention[4], mean[..., 6], rtol=1e-6)
    assert told.directions == ("downwards", "upwards")


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        ({"fusion__mode": "sum"}, 0),
        ({"fusion__balance": "channel"}, 2),
        ({"fusion__balance": "mean", "fusion__rotations": (0, 90)}, 2),
        ({"fusion__pairs": ("vision_parses_language",), "fusion__rotations": (270,)}, 1),
    ],
)
def test_other_configurations(changes, pairs):
    config = small_config(vision__depths=(1, 1, 1), text__num_layers=1, **changes)
    network, inputs = build_network(config), small_inputs(b=1, k=2)
    output = jax.eval_shape(lambda *given: reduce(network.init_with_output(jax.random.key(0), *given)[0]), *inputs)
    rotations = len(changes.get("fusion__rotations", (0, 90, 180, 270)))
    assert len(output.group_maps) == len(output.balance_weights) == pairs
    shapes = {maps.shape for maps in (*output.group_maps.values(), *output.balance_weights.values())}
    assert shapes == ({(2, rotations, 3, 4)} if pairs else set())
    assert output.attention.shape == (2, 6, 3, 4)


def test_the_names_of_the_directions_are_where_the_slices_go():
    """The first slice of a scan that goes leftwards is the right column, and so on."""
    from s2rm_jax.evaluation.explain import DIRECTIONS
    from s2rm_jax.models.s2rm import to_slices

    rows, columns = np.mgrid[:3, :3].astype(np.float32)
    field = {"downwards": rows, "upwards": -rows, "rightwards": columns, "leftwards": -columns}
    for degrees, name in DIRECTIONS.items():
        slices = to_slices(jnp.asarray(field[name])[None, None, None, ..., None], (degrees,))[0, 0, 0, ..., 0]
        assert (np.diff(slices.mean(-1)) > 0).all()
