"""The report of a compiled step and the scaling predicted from it."""

import json

import pytest

from s2rm_jax.measure.compiled_report import (
    ArrayType,
    Collective,
    Program,
    StepFacts,
    as_json,
    as_markdown,
    predict_scaling,
)
from s2rm_jax.parallel.devices import CHIPS, GIB, Memory

GRADIENT = Collective(
    "all-reduce", (ArrayType("f32", (1000, 1000)), ArrayType("f32", (250_000, 1000))), 16, 1, "vision/mlp_in, backward"
)
LOSS = Collective("all-reduce", (ArrayType("f32", ()),), 16, 3, "reduce_sum")


def make_step(temporaries=4 * GIB):
    return StepFacts(
        topology="v5e:4x4",
        chip=CHIPS["TPU v5 lite"],
        chips=16,
        settings={"config.batch_size": 128, "config.dtype": "bfloat16"},
        program=Program(
            Memory(arguments=3 * GIB, new_results=0, temporaries=temporaries, code=GIB // 4),
            xla_flops=4.9e12,
            collectives=(GRADIENT, LOSS),
        ),
        flops=int(16 * 7.88e12),
        model_flops=int(16 * 5e12),
        compile_seconds=300.0,
    )


def test_the_prediction_is_bytes_and_flops_over_published_rates():
    chip = CHIPS["TPU v5 lite"]
    assert chip.links * chip.link_rate == 200e9  # 1,600 Gbit/s a chip
    # 1.004 GB, of which 2 x 15/16 must be sent; 7.88 TFLOP at 40 % of 197 TFLOP/s.
    scaling = predict_scaling(chip, 7.88e12, GRADIENT.sent_bytes)
    assert scaling.compute == pytest.approx(0.1)
    assert scaling.ring == pytest.approx(1.004e9 * 2 * 15 / 16 / 100e9)
    assert scaling.all_links == pytest.approx(scaling.ring / 2)
    assert scaling.efficiency(scaling.ring, overlapped=False) == pytest.approx(0.1 / (0.1 + scaling.ring))
    assert scaling.efficiency(scaling.ring, overlapped=True) == 1.0
    assert scaling.efficiency(0.4, overlapped=True) == pytest.approx(0.25)


def test_the_report_has_memory_communication_and_prediction():
    page = as_markdown(make_step())
    assert page.startswith("## v5e:4x4, 128 images\n")
    assert "| memory per chip | 7.25 of 16 GiB: **fits** |" in page
    assert "126.1 T on all chips, 7.88 T per chip (5.00 T without recomputation" in page
    assert "4 per step, 1,004.00 MB" in page
    assert "all-reduce of 16 | 1,004.00 MB | f32[250000,1000] and 1 more | vision/mlp_in, backward" in page
    assert "smaller: 3 all-reduce" in page
    assert "7.88 TFLOP / (197 TFLOP/s x 40%, assumed) = 100.0 ms" in page
    assert "1.883 GB per chip / (2 links x 50 GB/s, ring) = 18.8 ms" in page
    assert "84 % over a ring, 91 % over all links" in page
    assert "DOES NOT FIT" in as_markdown(make_step(temporaries=13 * GIB))
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {3, 5}


def test_json_reports_the_same():
    numbers = json.loads(json.dumps(as_json(make_step())))
    assert numbers["fits"] is True and numbers["memory"]["total"] == 7.25 * GIB
    assert numbers["collectives"][1] == {
        **{"kind": "all-reduce", "bytes": 12, "times": 3, "devices": 16, "arrays": ["f32[]"], "from": "reduce_sum"}
    }
    assert numbers["predicted"]["compute"] == pytest.approx(0.1)
