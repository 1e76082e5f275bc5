"""The recurrent coparsing: causality, rotation, initialization and a single scan. Its equations: test_equations.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.models.s2rm import Coparse, from_slices, to_slices

ROTATIONS = (0, 90, 180, 270)
WIDTH, CHANNELS = 5, 6


def inputs(b=1, k=1, h=3, w=4):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(b, k, h, w, CHANNELS)), jnp.float32) for _ in range(2))


def initialized(pairs, recurrence="gated", rotations=ROTATIONS):
    coparse = Coparse(WIDTH, rotations, recurrence)
    params = jax.jit(coparse.init)(jax.random.key(1), pairs)["params"]
    rng = np.random.default_rng(0)
    return coparse, {name: p + 0.5 * rng.normal(size=p.shape).astype(np.float32) for name, p in params.items()}


def slice_axis_index(rotation, size):
    """Return the axis of the unrotated map [h, w] along which the slices are ordered, and their order."""
    return {0: (0, range(size)), 90: (1, range(size - 1, -1, -1)), 180: (0, range(size - 1, -1, -1))}.get(
        rotation, (1, range(size))
    )


@pytest.mark.parametrize("grid", [(3, 4), (4, 3)])
@pytest.mark.parametrize("recurrence", ["gated", "linear", "none"])
def test_a_slice_depends_on_earlier_slices_only(grid, recurrence):
    generator, parsed = inputs(1, 1, *grid)
    coparse, params = initialized({"pair": (generator, parsed)}, recurrence)

    def group_maps(g):
        return coparse.apply({"params": params}, {"pair": (g, parsed)})["pair"][:, 0, 0]

    jacobian = np.asarray(jax.jit(jax.jacrev(group_maps))(generator))[:, :, :, :, 0, 0]  # [r, h, w, c, h, w, c]
    reached = np.abs(jacobian).sum((3, 6))  # [r, h, w, h, w]
    for r, rotation in enumerate(ROTATIONS):
        axis, order = slice_axis_index(rotation, grid[1] if rotation % 180 else grid[0])
        by_slice = reached[r].sum((1 - axis, 3 - axis))[np.ix_(list(order), list(order))]
        for i in range(len(by_slice)):
            assert (by_slice[i, i + 1 :] == 0).all(), "a slice must not depend on later ones"
            assert by_slice[i, i] > 0
            assert (by_slice[i, :i] > 0).all() == (recurrence != "none") or i == 0
    everywhere = reached.sum(0) > 0
    assert everywhere.all() == (recurrence != "none"), "together the four directions reach every position"


def test_rotating_the_inputs_rotates_the_output():
    generator, parsed = inputs(1, 1, 4, 4)
    coparse, params = initialized({"pair": (generator, parsed)})
    apply = jax.jit(coparse.apply)
    maps = apply({"params": params}, {"pair": (generator, parsed)})["pair"]

    turned = tuple(jnp.rot90(x, 1, axes=(2, 3)) for x in (generator, parsed))
    # Direction r of the turned input meets what direction r + 90 met before.
    cycled = {name: jnp.roll(value, -1, axis=0) for name, value in params.items()}
    turned_maps = apply({"params": cycled}, {"pair": turned})["pair"]
    expected = jnp.rot90(jnp.roll(maps, -1, axis=0), 1, axes=(3, 4))
    np.testing.assert_allclose(turned_maps, expected, atol=1e-5)


@pytest.mark.parametrize("rotations", [(0,), (90,), (0, 180), (90, 270), ROTATIONS])
@pytest.mark.parametrize("grid", [(2, 5), (3, 3)])
def test_from_slices_inverts_to_slices(rotations, grid):
    x = jax.random.normal(jax.random.key(0), (len(rotations), 2, 1, *grid, 3))
    sliced = to_slices(x, rotations)
    np.testing.assert_array_equal(from_slices(sliced, rotations, *grid), x)


def test_all_pairs_and_directions_share_one_scan():
    generator, parsed = inputs()
    pairs = {"a": (generator, parsed), "b": (parsed, generator)}
    coparse, params = initialized(pairs)
    jaxpr = jax.make_jaxpr(lambda p: coparse.apply({"params": p}, pairs))(params)
    assert str(jaxpr).count("scan[") == 1


def test_each_direction_is_initialized_for_its_own_fan_in():
    x = jnp.zeros((1, 1, 2, 3, 64))
    params = jax.jit(Coparse(48).init)(jax.random.key(0), {"pair": (x, x)})["params"]
    for name, value in params.items():
        if not name.endswith("bias"):
            np.testing.assert_allclose(np.std(value, axis=(1, 2)) * np.sqrt(value.shape[1]), 1, atol=0.06, err_msg=name)


def test_an_unknown_recurrence_is_refused():
    generator, parsed = inputs()
    with pytest.raises(ValueError, match="recurrence must be one of"):
        Coparse(WIDTH, recurrence="lstm").init(jax.random.key(0), {"pair": (generator, parsed)})
