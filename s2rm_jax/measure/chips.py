"""What a TPU chip or a GPU can do, as its maker publishes it.

How well a step should scale, predicted from what it sends and computes and from the chip's published rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from s2rm_jax.measure.collectives import Collective

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Published figures of one TPU chip.

    name          as in the name of a topology
    hbm           main memory in GiB
    matrix_rate   FLOP/s of bfloat16 matrix products
    memory_rate   bytes/s of the main memory
    links         links to neighbouring chips
    link_rate     bytes/s that one link carries in each direction
    source        where Google says so
    """

    name: str
    hbm: int
    matrix_rate: float
    memory_rate: float
    links: int
    link_rate: float
    source: str


# By the name that JAX gives the kind of a device. The sources are pages of cloud.google.com/tpu/docs. They give the
# rate of all links of a chip together (1,600, 2,400, 4,800 and 3,584 Gbit/s), here divided by their number: 4 where
# chips form a plane, 6 where they form a cube.
CHIPS = {
    "TPU v5 lite": Chip("v5e", 16, 197e12, 819e9, 4, 1600e9 / 8 / 4, "TPU v5e"),
    "TPU v4": Chip("v4", 32, 275e12, 1200e9, 6, 2400e9 / 8 / 6, "TPU v4"),
    "TPU v5": Chip("v5p", 95, 459e12, 2765e9, 6, 4800e9 / 8 / 6, "TPU v5p"),
    "TPU v6 lite": Chip("v6e", 32, 918e12, 1640e9, 4, 3584e9 / 8 / 4, "TPU v6e (Trillium)"),
}


def find_chip(device_kind: str) -> Chip | None:
    """Returns the figures of a kind of device (`device.device_kind`), or None where they are not known here."""
    return CHIPS.get(device_kind)


# FLOP/s of matrix products in bfloat16 with sums in float32, nothing sparse, from NVIDIA's data sheets; of the V100,
# which has no bfloat16, in float16. Forms of the same GPU that differ in rate, such as the H100 PCIe, are not listed.
GPU_MATRIX_RATES = {
    "H100 80GB HBM3": 989.4e12,
    "H200": 989.4e12,
    **dict.fromkeys(("A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB", "A100 80GB PCIe"), 312e12),
    **dict.fromkeys(("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"), 125e12),
    "L4": 121e12,
    "GeForce RTX 4090": 165.2e12,
}


def matrix_rate(device_kind: str) -> float | None:
    """Returns the FLOP/s of matrix products of a kind of device, TPU or GPU; None where it is not known here."""
    chip = find_chip(device_kind)
    return chip.matrix_rate if chip else GPU_MATRIX_RATES.get(device_kind.removeprefix("NVIDIA "))


ASSUMED_UTILISATION = 0.4  # of the matrix units; an assumption, nothing was measured
RING_LINKS = 2  # a ring through all chips sends to both sides; it fits into every slice, a torus or not


@dataclass(frozen=True)
class Scaling:
    """A prediction for one step, in seconds of a chip.

    compute     FLOPs of a chip / (matrix rate x assumed utilisation)
    ring        to send what must be sent over one ring in both directions, the slower way
    all_links   the same over all links of the chip at once, the best that can be
    """

    compute: float
    ring: float
    all_links: float

    def efficiency(self, sending: float, overlapped: bool) -> float:
        """Returns the time of a step without sending, divided by that with it.

        Args:
            sending: `ring` or `all_links`.
            overlapped: whether all is sent while something else is computed, or nothing is.
        """
        return self.compute / (max(self.compute, sending) if overlapped else self.compute + sending)


def predict_scaling(
    chip: Chip, flops: float, collectives: Sequence[Collective], utilisation: float = ASSUMED_UTILISATION
) -> Scaling:
    """Predicts a step from the FLOPs of one chip and its exchanges; latencies are left out."""
    sent = sum(one.sent_bytes for one in collectives)
    return Scaling(
        compute=flops / (chip.matrix_rate * utilisation),
        ring=sent / (RING_LINKS * chip.link_rate),
        all_links=sent / (chip.links * chip.link_rate),
    )
