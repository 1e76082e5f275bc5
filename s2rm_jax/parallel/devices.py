"""Published figures of TPU chips and GPUs, and the memory that a compiled program needs on a device."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

GIB = 2**30
ASSUMED_MFU = 0.4  # the share of the rate of matrix products that training reaches; assumed, not measured

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep the memory that XLA frees on a CPU, for the next step; call this before JAX computes anything.

    XLA frees and allocates hundreds of megabytes at each step. With the default settings of glibc, every page of them
    is mapped anew (docs/training.md has figures). glibc keeps the memory of the main thread only, so JAX's asynchronous
    dispatch on CPUs is switched off: programs then run in that thread, and a call of a jitted function returns when its
    result is there. Nothing changes on machines with an accelerator, with another C library, or if the environment
    selects an allocator (LD_PRELOAD) or its settings (MALLOC_*).
    """
    chosen = any(name == "LD_PRELOAD" or name.startswith("MALLOC_") for name in os.environ)
    accelerator = os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(find_spec, ("jax_plugins", "libtpu")))
    if chosen or accelerator or platform.libc_ver()[0] != "glibc":
        return
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)


@dataclass(frozen=True)
class Chip:
    """Published figures of one TPU chip."""

    name: str  # as in the name of a topology
    hbm: int  # main memory in GiB
    matrix_rate: float  # FLOP/s of bfloat16 matrix products
    links: int  # links to neighbouring chips
    link_rate: float  # bytes/s of one link in each direction


# By `device.device_kind`, from cloud.google.com/tpu/docs. The pages give the rate of all links of a chip together
# (1,600, 2,400, 4,800 and 3,584 Gbit/s), here divided by their number: 4 in a plane of chips, 6 in a cube.
CHIPS = {
    "TPU v5 lite": Chip("v5e", 16, 197e12, 4, 1600e9 / 8 / 4),
    "TPU v4": Chip("v4", 32, 275e12, 6, 2400e9 / 8 / 6),
    "TPU v5": Chip("v5p", 95, 459e12, 6, 4800e9 / 8 / 6),
    "TPU v6 lite": Chip("v6e", 32, 918e12, 4, 3584e9 / 8 / 4),
}

# FLOP/s of dense matrix products in bfloat16 with float32 sums, from NVIDIA's data sheets; of the V100, which has no
# bfloat16, in float16. Variants of a GPU with other rates, such as the H100 PCIe, are not listed.
GPU_MATRIX_RATES = {
    "H100 80GB HBM3": 989.4e12,
    "H200": 989.4e12,
    **dict.fromkeys(("A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB", "A100 80GB PCIe"), 312e12),
    **dict.fromkeys(("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"), 125e12),
    "L4": 121e12,
    "GeForce RTX 4090": 165.2e12,
}


def matrix_rate(device_kind: str) -> float | None:
    """Return the published FLOP/s of matrix products of a kind of device, or None for an unlisted kind."""
    chip = CHIPS.get(device_kind)
    return chip.matrix_rate if chip else GPU_MATRIX_RATES.get(device_kind.removeprefix("NVIDIA "))


@dataclass(frozen=True)
class Memory:
    """Bytes that a program needs on each device; results that reuse memory of arguments count as arguments only."""

    arguments: int
    new_results: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.arguments + self.new_results + self.temporaries + self.code


def read_memory(compiled: Any) -> Memory | None:
    """Return the memory that a `jax.stages.Compiled` needs on each device, or None if the compiler reports none."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        new_results=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )
