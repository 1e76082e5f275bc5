"""Layouts: all mistakes are reported at once, and a round trip changes no bit."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from s2rm_jax.errors import UserError
from s2rm_jax.interop.parameter_names import (
    Entry,
    WeightsMismatch,
    export_arrays,
    fill,
    network_layout,
    prefixed,
    resize_bias_table,
)
from s2rm_jax.models.network import build_network
from tests.models.small import small_config, small_inputs

LAYOUT = [
    Entry("joined/kernel", ("q.weight", "k.weight"), "dense"),
    Entry("joined/bias", ("q.bias", "k.bias")),
    Entry("conv/kernel", ("conv.weight",), "conv"),
    Entry("table", ("table",), "bias_table"),
    Entry("norm/scale", ("norm.weight",), optional=True),
]
SHAPES = {
    "joined": {"kernel": (3, 4), "bias": (4,)},
    "conv": {"kernel": (2, 5, 3, 4)},
    "table": (9, 2),
    "norm": {"scale": (4,)},
}
STORED = {
    "q.weight": (2, 3),
    "k.weight": (2, 3),
    "q.bias": (2,),
    "k.bias": (2,),
    "conv.weight": (4, 3, 2, 5),
    "table": (9, 2),
    "norm.weight": (4,),
}


def shapes(**changes):
    tree = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in flatten_dict(SHAPES, sep="/").items()}
    return {**tree, **changes}


def source(**changes):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in STORED.items()}
    arrays |= {name.replace("__", "."): array for name, array in changes.items()}
    return {name: array for name, array in arrays.items() if array is not None}


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def filled(arrays):
    return flatten_dict(fill(LAYOUT, arrays, shapes(), "FILE").params, sep="/")


def mistakes(arrays, layout=LAYOUT, wanted=None):
    with pytest.raises(WeightsMismatch) as caught:
        fill(layout, arrays, wanted or shapes(), "FILE")
    assert isinstance(caught.value, UserError)
    told = str(caught.value)
    assert told.startswith("FILE does not fit this network: ") and "\n" not in told
    assert told.endswith(". Give the weights of a network with this configuration.")
    return caught.value.mistakes


def test_every_form_is_transposed_correctly():
    arrays = source()
    params = filled(arrays)
    np.testing.assert_array_equal(params["joined/kernel"], np.concatenate([arrays["q.weight"], arrays["k.weight"]]).T)
    np.testing.assert_array_equal(params["joined/bias"], [*arrays["q.bias"], *arrays["k.bias"]])
    for (out, inner, row, column), number in np.ndenumerate(arrays["conv.weight"]):
        assert params["conv/kernel"][row, column, inner, out] == number
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in params.values())


def test_all_mistakes_are_reported_at_once():
    broken = source(
        q__weight=zeros(2, 7),  # 7 inputs instead of 3, and so not to be joined with the keys
        k__bias=None,
        conv__weight=zeros(4, 3, 2, 5, dtype=np.int64),
        table=np.full((9, 2), np.nan, np.float32),
        head__weight=zeros(10),
    )
    layout = [*LAYOUT, Entry("table", ("head.weight", "norm.weight")), Entry("nowhere", ("head.weight",))]
    assert mistakes({**broken, "idle": zeros(1)}, layout, shapes(alone=jax.ShapeDtypeStruct((1,), np.float32))) == {
        "unused array": ("idle",),
        "unfilled parameter": ("joined/bias (no k.bias)", "alone"),
        "unknown parameter": ("nowhere",),
        "repeated name": ("table", "head.weight", "norm.weight"),
        "wrong array": (
            "q.weight and k.weight (2, 7) and (2, 3) cannot fill joined/kernel (3, 4)",
            "conv.weight holds int64, not floating-point numbers",
            "table holds NaN or infinity",
            "head.weight and norm.weight (10,) and (4,) cannot fill table (9, 2)",
        ),
    }


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("q.weight", zeros(3, 2)),  # not transposed
        ("q.weight", zeros(6)),
        ("conv.weight", zeros(2, 5, 3, 4)),
        ("conv.weight", zeros(4, 30)),
        ("norm.weight", zeros(1, 4)),  # could be broadcast, but is another
        ("norm.weight", np.array(1, np.float32)),
        ("table", zeros(9, 3)),  # other heads
        ("table", zeros(16, 2)),  # the table of no window: 2w - 1 is odd
        ("table", zeros(24, 2)),
        ("table", zeros(0, 2)),
        ("table", zeros(9, 2, dtype=bool)),
        ("norm.weight", np.array([1, 2, np.inf, 4], np.float32)),
        ("norm.weight", zeros(4, dtype=np.complex64)),
    ],
)
def test_an_array_that_does_not_fit_is_named(name, array):
    found = mistakes(source() | {name: array})
    assert found.keys() == {"wrong array"}
    assert len(found["wrong array"]) == 1 and name in found["wrong array"][0]


def test_the_message_is_short_and_the_error_has_all_mistakes():
    extra = {f"extra{i}": zeros(1) for i in range(12)}
    with pytest.raises(WeightsMismatch, match=r"12 unused arrays: extra0, .* and 7 more") as caught:
        fill(LAYOUT, source() | extra, shapes(), "FILE")
    assert set(caught.value.mistakes["unused array"]) == set(extra)


def test_optional_parameters_may_be_missing_and_are_reported():
    result = fill(LAYOUT, source(norm__weight=None), shapes(), "FILE")
    assert result.left_out == ("norm/scale",)
    assert "norm" not in result.params
    assert fill(LAYOUT, source(), shapes(), "FILE").left_out == ()


def test_a_table_of_another_window_is_resized_and_reported():
    table = np.random.default_rng(1).standard_normal((25, 2), np.float32)
    result = fill(LAYOUT, source(table=table), shapes(), "FILE")
    assert result.resized == ("table",)
    np.testing.assert_array_equal(result.params["table"], resize_bias_table(table, 9))


def test_a_table_of_the_same_window_keeps_its_bits():
    result = fill(LAYOUT, source(), shapes(), "FILE")
    assert result.resized == ()
    assert result.params["table"].tobytes() == source()["table"].tobytes()


def test_numbers_of_another_precision_become_float32():
    half = source()["conv.weight"].astype(np.float16)
    np.testing.assert_array_equal(filled(source(conv__weight=half))["conv/kernel"], half.transpose(2, 3, 1, 0))


def test_a_round_trip_changes_no_bit():
    arrays = source()
    there = export_arrays(LAYOUT, fill(LAYOUT, arrays, shapes(), "FILE").params)
    assert there.keys() == arrays.keys()
    assert all(there[name].tobytes() == arrays[name].tobytes() for name in arrays)


def test_a_layout_of_other_parameters_is_refused():
    params = fill(LAYOUT, source(), shapes(), "FILE").params
    with pytest.raises(ValueError, match="does not list these parameters exactly once"):
        export_arrays(LAYOUT[:-1], params)
    with pytest.raises(ValueError, match="does not list these parameters exactly once"):
        export_arrays([*LAYOUT, LAYOUT[0]], params)


def test_prefixes_are_added_to_every_name():
    entry = prefixed([Entry("table", ("q", "k"), "bias_table", optional=True)], "vision/", "swin.")[0]
    assert entry == Entry("vision/table", ("swin.q", "swin.k"), "bias_table", optional=True)


def test_the_whole_network_goes_to_pytorch_and_back():
    shapes = jax.eval_shape(build_network(small_config()).init, jax.random.key(0), *small_inputs())["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    layout = network_layout(params)
    arrays = export_arrays(layout, params)
    assert {name.split(".")[0] for name in arrays} == {"vision", "text", "fusion", "decoder"}
    assert arrays["vision.encoder.layers.1.blocks.1.attention.self.key.weight"].shape == (16, 16)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays.values())

    back = fill(layout, arrays, params, "the export")
    assert (back.left_out, back.resized) == ((), ())
    there, here = flatten_dict(back.params, sep="/"), flatten_dict(params, sep="/")
    assert there.keys() == here.keys()
    for path, array in here.items():
        assert there[path].shape == array.shape and there[path].tobytes() == array.tobytes(), path
