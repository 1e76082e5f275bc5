"""Reading the text of compiled programs: a real one of the TPU compiler, and lines that show one thing each.

v5e_2x2.hlo is what the compiler made, for a slice of 2 x 2 chips as a mesh ("data", "fsdp"), of a shard_map of:

    def step(carry, x_i):                                    # x: 5 x [64, 512] on each chip
        full = all_gather(w, "fsdp", axis=0, tiled=True)     # w: [256, 256] on each chip, whole [512, 256]
        return carry + ppermute(tanh(x_i @ full), "data", [(0, 1), (1, 0)]), None
    total, _ = scan(step, zeros((64, 256)), x)
    g = psum(psum_scatter(total.T @ total, "fsdp", tiled=True), "data")
    return g, psum((total ** 2).sum(), ("data", "fsdp"))

The compiler gathers w in bfloat16, as its matrix units round to that anyway. Settings of its back end were cut out.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from s2rm_jax.measure.compiled_report import (
    ArrayType,
    group_size,
    parse_hlo,
    read_arrays,
    read_collectives,
    read_program,
    readable_place,
    total_by_kind,
)

TPU_PROGRAM = Path(__file__).with_name("v5e_2x2.hlo").read_text(encoding="utf-8")


def test_collectives_have_sizes_devices_and_numbers_of_executions():
    found = read_collectives(parse_hlo(TPU_PROGRAM))
    assert [(one.kind, list(map(str, one.arrays)), one.group, one.times, one.bytes, one.place) for one in found] == [
        ("all-gather", ["bf16[512,256]"], 2, 5, 5 * 512 * 256 * 2, "all_gather"),
        ("collective-permute", ["f32[64,256]"], 4, 5, 5 * 64 * 256 * 4, "ppermute"),
        ("reduce-scatter", ["f32[256,256]"], 2, 1, 256 * 256 * 4, "reduce_scatter"),
        ("all-reduce", ["f32[128,256]"], 2, 1, 128 * 256 * 4, "psum"),
        ("all-reduce", ["f32[]"], 4, 1, 4, "psum"),
    ]
    sent = [one.sent_bytes / one.bytes for one in found]
    assert sent == [0.5, 1, 0.5, 1, 1.5]  # shares of the sizes
    assert total_by_kind(found)["all-reduce"] == (2, 128 * 256 * 4 + 4)


def test_parts_of_an_asynchronous_exchange_are_one():
    gather = (
        "bf16[8,4]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}, "
        'metadata={op_name="jit(f)/net/gather"}'
    )
    text = "\n".join(
        [
            "HloModule m, is_scheduled=true, num_partitions=4",
            *("%start (p: bf16[2,4]) -> bf16[8,4] {", f"  ROOT %a.1 = {gather}", "}"),
            *("%done (p: bf16[2,4]) -> bf16[8,4] {", f"  ROOT %a.2 = {gather}", "}"),
            "ENTRY %main (x: bf16[2,4]) -> bf16[8,4] {",
            "  %x = bf16[2,4]{1,0} parameter(0)",
            "  %f.1 = bf16[8,4]{1,0} fusion(%x), kind=kCustom, calls=%start",
            "  ROOT %f.2 = bf16[8,4]{1,0} fusion(%f.1), kind=kCustom, calls=%done",
            "}",
        ]
    )
    (only,) = read_collectives(parse_hlo(text))
    assert (only.kind, only.bytes, only.group, only.times, only.place) == ("all-gather", 64, 4, 1, "net/gather")


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0), use_global_device_ids=true", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}, to_apply=%add", 8),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=4], device_ids=([4,4]T(1,0)) {'axis_0'}, dimensions={0}", 4),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}, to_apply=%add", 2),
        ("source_target_pairs={{0,1},{1,2},{2,0}}", 3),
        ("replica_groups={}, to_apply=%add", 16),
    ],
)
def test_devices_of_an_exchange(attributes, size):
    assert group_size(attributes, partitions=16) == size


def test_devices_written_in_an_unknown_way_are_not_guessed():
    with pytest.raises(ValueError, match="unknown form of replica groups"):
        group_size("replica_groups=<0,1>, dimensions={0}", partitions=16)


def test_sizes_of_arrays():
    first, second, scalar = read_arrays("(bf16[4,8,5,32]{3,2,1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[3]{0}, f32[])")
    assert (first.bytes, second.bytes) == (4 * 8 * 5 * 32 * 2, 3)
    assert (scalar.shape, scalar.bytes) == ((), 4)
    assert ArrayType("s4", (3,)).bytes == 2


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("jit(train_step)/jvp(Net)/Net.ground/fusion/mix/dot_general", "fusion/mix/dot_general"),
        ("jit(train_step)/transpose(jvp(Net))/Net.ground/fusion/mix/dot_general", "fusion/mix/dot_general, backward"),
        ("jit(f)/transpose(jvp(Net))/a/checkpoint/rematted_computation/tanh", "a/tanh, recomputed"),
        ("jit(f)/jvp(Net)/Net.ground/decoder/decoder/stage1_block/conv", "decoder/stage1_block/conv"),
        ("jit(f)/shard_map/while/body/closed_call/psum", "psum"),
    ],
)
def test_places_read_as_paths_of_modules(name, place):
    assert readable_place(name) == place


def test_a_program_compiled_here_is_read():
    def loop(x):
        return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ carry), None), x, None, length=7)[0]

    compiled = jax.jit(loop).lower(jnp.ones((64, 64))).compile()
    program = read_program(compiled)
    assert program.memory is not None and program.memory.arguments == 64 * 64 * 4 <= program.memory.total
    assert program.collectives == ()
    assert 2 * 64**3 <= program.xla_flops < 2 * 2 * 64**3  # the body of a loop counts once
    assert 7 in parse_hlo(compiled.as_text()).runs.values()


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse_hlo("HloModule nothing\n")
