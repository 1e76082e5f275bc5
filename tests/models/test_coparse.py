"""The recurrent coparsing: causality, rotation, and equality with a plain loop."""

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


def initialised(pairs, recurrence="gated", rotations=ROTATIONS):
    coparse = Coparse(WIDTH, rotations, recurrence)
    params = jax.jit(coparse.init)(jax.random.key(1), pairs)["params"]
    rng = np.random.default_rng(0)
    return coparse, {name: p + 0.5 * rng.normal(size=p.shape).astype(np.float32) for name, p in params.items()}


def slice_axis_index(rotation, size):
    """Return the axis of the unrotated map [h, w] along which the slices are ordered, and their order."""
    return {0: (0, range(size)), 90: (1, range(size - 1, -1, -1)), 180: (0, range(size - 1, -1, -1))}.get(
        rotation, (1, range(size))
    )


def plain_loop(params, pair, generator, parsed, rotation_index, rotation):
    """One pair, one direction, one image in NumPy float64; slice after slice, position after position."""
    p = {n.removeprefix(f"{pair}_"): np.asarray(v, np.float64)[rotation_index] for n, v in params.items() if pair in n}
    generator, parsed = (np.rot90(np.asarray(x, np.float64), rotation // 90) for x in (generator, parsed))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    out = np.zeros_like(parsed)
    h = np.zeros((generator.shape[1], WIDTH))
    for i in range(generator.shape[0]):
        for m in range(generator.shape[1]):
            x = generator[i, m] @ p["gates_kernel"] + p["gates_bias"]
            gate = sigmoid(x[: 2 * WIDTH] + h[m] @ p["update_reset"])
            z, r = gate[:WIDTH], gate[WIDTH:]
            h[m] = (1 - z) * h[m] + z * np.tanh(x[2 * WIDTH :] + (r * h[m]) @ p["candidate"])
        keys, values = h @ p["key"], h @ p["value"]
        for m in range(generator.shape[1]):
            logits = keys @ (parsed[i, m] @ p["query"]) / np.sqrt(WIDTH)
            weights = np.exp(logits - logits.max())
            out[i, m] = weights / weights.sum() @ values
    return np.rot90(out, -rotation // 90)


@pytest.mark.parametrize("grid", [(3, 4), (4, 4), (5, 2)])
def test_batched_scan_matches_a_plain_loop(grid):
    language, vision = inputs(2, 3, *grid)
    vision = vision[:, :1]  # an image is seen by its three expressions
    pairs = {"to_vision": (language, vision), "to_language": (vision, language)}
    coparse, params = initialised(pairs)
    maps = jax.jit(coparse.apply)({"params": params}, pairs)
    for pair, (generator, parsed) in pairs.items():
        assert maps[pair].shape == (4, 2, 3, *grid, CHANNELS)
        for r, rotation in enumerate(ROTATIONS):
            for b in range(2):
                for k in range(3):
                    g = generator[b, min(k, generator.shape[1] - 1)]
                    p = parsed[b, min(k, parsed.shape[1] - 1)]
                    expected = plain_loop(params, pair, g, p, r, rotation)
                    np.testing.assert_allclose(maps[pair][r, b, k], expected, atol=1e-5)


def test_a_linear_recurrence_matches_its_formula():
    generator, parsed = inputs()
    coparse, params = initialised({"pair": (generator, parsed)}, "linear", (0,))
    kernel, bias = (np.asarray(params[f"pair_gates_{name}"], np.float64)[0] for name in ("kernel", "bias"))
    gates = np.asarray(generator, np.float64)[0, 0] @ kernel + bias  # [s, m, 2 x width]
    z, candidate = 1 / (1 + np.exp(-gates[..., :WIDTH])), np.tanh(gates[..., WIDTH:])
    states = [np.zeros_like(z[0])]
    for i in range(len(z)):
        states.append((1 - z[i]) * states[-1] + z[i] * candidate[i])
    keys, values = (
        np.stack(states[1:]) @ np.asarray(params[f"pair_{name}"], np.float64)[0] for name in ("key", "value")
    )
    queries = np.asarray(parsed, np.float64)[0, 0] @ np.asarray(params["pair_query"], np.float64)[0]
    logits = np.einsum("smd,snd->smn", queries, keys) / np.sqrt(WIDTH)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    maps = coparse.apply({"params": params}, {"pair": (generator, parsed)})["pair"]
    np.testing.assert_allclose(maps[0, 0, 0], np.einsum("smn,snc->smc", weights, values), atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 4), (4, 3)])
@pytest.mark.parametrize("recurrence", ["gated", "linear", "none"])
def test_a_slice_depends_on_earlier_slices_only(grid, recurrence):
    generator, parsed = inputs(1, 1, *grid)
    coparse, params = initialised({"pair": (generator, parsed)}, recurrence)

    def group_maps(g):
        return coparse.apply({"params": params}, {"pair": (g, parsed)})["pair"][:, 0, 0]

    jacobian = np.asarray(jax.jit(jax.jacrev(group_maps))(generator))[:, :, :, :, 0, 0]  # [r, h, w, c, h, w, c]
    reached = np.abs(jacobian).sum((3, 6))  # [r, h, w, h, w]
    for r, rotation in enumerate(ROTATIONS):
        axis, order = slice_axis_index(rotation, grid[1] if rotation % 180 else grid[0])
        by_slice = reached[r].sum((1 - axis, 3 - axis))[np.ix_(list(order), list(order))]
        for i in range(len(by_slice)):
            assert (by_slice[i, i + 1 :] == 0).all(), "a later slice must not be heard"
            assert by_slice[i, i] > 0
            assert (by_slice[i, :i] > 0).all() == (recurrence != "none") or i == 0
    everywhere = reached.sum(0) > 0
    assert everywhere.all() == (recurrence != "none"), "together the four directions reach every position"


def test_rotating_the_inputs_rotates_the_output():
    generator, parsed = inputs(1, 1, 4, 4)
    coparse, params = initialised({"pair": (generator, parsed)})
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
    coparse, params = initialised(pairs)
    jaxpr = jax.make_jaxpr(lambda p: coparse.apply({"params": p}, pairs))(params)
    assert str(jaxpr).count("scan[") == 1


def test_each_direction_is_initialised_for_its_own_fan_in():
    x = jnp.zeros((1, 1, 2, 3, 64))
    params = jax.jit(Coparse(48).init)(jax.random.key(0), {"pair": (x, x)})["params"]
    for name, value in params.items():
        if not name.endswith("bias"):
            np.testing.assert_allclose(np.std(value, axis=(1, 2)) * np.sqrt(value.shape[1]), 1, atol=0.06, err_msg=name)


def test_an_unknown_recurrence_is_refused():
    generator, parsed = inputs()
    with pytest.raises(ValueError, match="recurrence must be one of"):
        Coparse(WIDTH, recurrence="lstm").init(jax.random.key(0), {"pair": (generator, parsed)})
