"""Takes a trained network to PyTorch and back, and to other runtimes.

    python -m s2rm_jax.convert to-pytorch   --workdir runs/mine --out mine_torch
    python -m s2rm_jax.convert from-pytorch --weights mine_torch --workdir runs/back
    python -m s2rm_jax.convert to-stablehlo --workdir runs/mine --out mine_stablehlo
    python -m s2rm_jax.convert to-onnx      --workdir runs/mine --out mine_onnx

Each writes a new folder, whole or not at all; those of to-... hold a program, segment.py, that uses the network without
this package. to-pytorch and from-pytorch need no torch; to-onnx needs pip install "s2rm-jax[onnx]". Pretrained Swin and
BERT come in by another way, at the start of training: --config.vision.pretrained=PATH_OR_NAME
--config.text.pretrained=PATH_OR_NAME. docs/weights.md tells all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

from absl import flags
from etils import epath

from s2rm_jax import command_line

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "the directory of a training run; of from-pytorch, the one to be made", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "the folder to be made", flag_values=FLAGS)
WEIGHTS = flags.DEFINE_string("weights", None, "a folder that to-pytorch made", flag_values=FLAGS)
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "which checkpoint", flag_values=FLAGS)


def to_pytorch() -> None:
    """Writes a run's network as a folder that PyTorch reads."""
    from s2rm_jax.interop.torch_folder import write_pytorch

    with _new_folder() as (workdir, folder):
        write_pytorch(workdir, _checkpoint(), folder)
    print(_standalone("PyTorch", "numpy pillow safetensors tokenizers torch"))
    print(f"From Python: S2RMModel.from_pretrained({OUT.value!r}), of the torch_model.py in it")


def from_pytorch() -> None:
    """Makes a workdir of a folder that PyTorch reads."""
    from s2rm_jax.interop.torch_folder import write_workdir
    from s2rm_jax.io import atomic_folder

    assert WEIGHTS.value is not None and WORKDIR.value is not None  # required
    with atomic_folder(WORKDIR.value, "--workdir") as folder:
        write_workdir(Path(WEIGHTS.value), folder)
    print(
        f"{WORKDIR.value} holds the network at step 0. Next: python -m s2rm_jax.predict --workdir {WORKDIR.value} ..."
    )


def to_stablehlo() -> None:
    """Writes a run's network as programs for every platform of JAX."""
    from s2rm_jax.interop.stablehlo import write_stablehlo
    from s2rm_jax.training.run import load_run

    with _new_folder() as (workdir, folder):
        write_stablehlo(load_run(workdir, _checkpoint()), folder)
    print(_standalone("StableHLO", "jax flatbuffers numpy pillow safetensors tokenizers"))


def to_onnx() -> None:
    """Writes a run's network as ONNX."""
    from s2rm_jax.interop.onnx import write_onnx
    from s2rm_jax.training.run import load_run

    with _new_folder() as (workdir, folder):
        error = write_onnx(load_run(workdir, _checkpoint()), folder)
    print(f"ONNX Runtime's logits differ from JAX's by {error:.1e} of their norm")
    print(_standalone("ONNX", "numpy onnxruntime pillow tokenizers"))


@contextmanager
def _new_folder() -> Iterator[tuple[epath.Path, Path]]:
    """The workdir, and the folder that becomes --out."""
    from s2rm_jax.io import atomic_folder, workdir_path

    assert WORKDIR.value is not None and OUT.value is not None  # required
    with atomic_folder(OUT.value, "--out") as folder:
        yield workdir_path(WORKDIR.value), folder


def _checkpoint() -> Literal["best", "latest"]:
    return cast(Literal["best", "latest"], CHECKPOINT.value)


def _standalone(form: str, packages: str) -> str:
    return (
        f"{OUT.value} holds the network for {form}, and a program that needs nothing of this package, but "
        f'{packages}: python {OUT.value}/segment.py IMAGE "the man in red" --out masks'
    )


COMMANDS = {
    "to-pytorch": command_line.Command(to_pytorch, required=("workdir", "out")),
    "from-pytorch": command_line.Command(from_pytorch, required=("weights", "workdir")),
    "to-stablehlo": command_line.Command(to_stablehlo, required=("workdir", "out")),
    "to-onnx": command_line.Command(to_onnx, required=("workdir", "out")),
}

if __name__ == "__main__":
    command_line.run_command(COMMANDS, FLAGS, __doc__)
