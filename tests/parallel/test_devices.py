"""Published rates of devices."""

import pytest

from s2rm_jax.parallel.devices import matrix_rate


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", 989.4e12),
        ("A100-SXM4-40GB", 312e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("TPU v5 lite", 197e12),
        ("cpu", None),
    ],
)
def test_matrix_rate_is_that_of_the_exact_device_kind(kind, rate):
    assert matrix_rate(kind) == rate
