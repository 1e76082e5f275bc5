"""Convert a trained network to PyTorch and back, or export it to other runtimes.

    python -m s2rm_jax.convert to-pytorch   --workdir runs/mine --out mine_torch
    python -m s2rm_jax.convert from-pytorch --weights mine_torch --workdir runs/back
    python -m s2rm_jax.convert to-stablehlo --workdir runs/mine --out mine_stablehlo
    python -m s2rm_jax.convert to-onnx      --workdir runs/mine --out mine_onnx

Each command writes a new folder, completely or not at all. The folders of to-... contain a program, segment.py, that
uses the network without this package. to-pytorch and from-pytorch do not need torch; to-onnx needs
pip install "s2rm-jax[onnx]". Pretrained Swin and BERT are not converted but loaded at the start of training:
--config.vision.pretrained=PATH_OR_NAME --config.text.pretrained=PATH_OR_NAME. See docs/weights.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from absl import flags
from etils import epath

from s2rm_jax import command_line

if TYPE_CHECKING:
    from s2rm_jax.interop.torch_folder import TrainedNetwork

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "the workdir of a run; with from-pytorch, the one to create", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "the folder to create", flag_values=FLAGS)
WEIGHTS = flags.DEFINE_string("weights", None, "a folder that to-pytorch wrote", flag_values=FLAGS)
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "which checkpoint", flag_values=FLAGS)


def to_pytorch() -> None:
    """Write the network of a run as a folder that PyTorch reads."""
    from s2rm_jax.interop.torch_folder import write_pytorch
    from s2rm_jax.training.run import CONFIG_FILE

    with _export() as (trained, workdir, folder):
        write_pytorch(trained, workdir / CONFIG_FILE, folder)
    print(_usage("PyTorch", "numpy pillow safetensors tokenizers torch"))
    print(f"From Python: S2RMModel.from_pretrained({OUT.value!r}), of the torch_model.py in it")


def from_pytorch() -> None:
    """Write a folder that PyTorch reads as the workdir of a run."""
    from s2rm_jax.io import atomic_folder

    assert WEIGHTS.value is not None and WORKDIR.value is not None  # required
    with atomic_folder(WORKDIR.value, "--workdir") as folder:
        write_workdir(Path(WEIGHTS.value), folder)
    print(
        f"{WORKDIR.value} holds the network at step 0. Next: python -m s2rm_jax.predict --workdir {WORKDIR.value} ..."
    )


def to_stablehlo() -> None:
    """Write the network of a run as programs for every platform of JAX."""
    from s2rm_jax.interop.stablehlo import write_stablehlo

    with _export() as (trained, _, folder):
        write_stablehlo(trained, folder)
    print(_usage("StableHLO", "jax flatbuffers numpy pillow safetensors tokenizers"))


def to_onnx() -> None:
    """Write the network of a run as ONNX."""
    from s2rm_jax.interop.onnx import write_onnx

    with _export() as (trained, _, folder):
        error = write_onnx(trained, folder)
    print(f"ONNX Runtime's logits differ from JAX's by {error:.1e} of their norm")
    print(_usage("ONNX", "numpy onnxruntime pillow tokenizers"))


def write_workdir(weights: Path, workdir: Path) -> None:
    """Write a folder of `to-pytorch`, perhaps trained further in PyTorch, as the workdir of a run at step 0.

    The run can be evaluated and used for prediction; training continues from its weights with a fresh optimizer.

    Args:
        weights: the folder; its weights may also be a pytorch_model.bin, which needs torch.
        workdir: an empty folder.

    Raises:
        UserError: a file is missing or damaged, or the weights do not fit the config.json next to them.
        OSError: the workdir cannot be written to.
    """
    import jax

    from s2rm_jax.errors import UserError
    from s2rm_jax.interop.torch_folder import read_pytorch
    from s2rm_jax.io import require_space
    from s2rm_jax.models.network import build_network
    from s2rm_jax.parallel.mesh import make_mesh
    from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints
    from s2rm_jax.training.run import CONFIG_FILE, VOCAB_FILE, load_config
    from s2rm_jax.training.state import plan_state

    for name in (CONFIG_FILE, VOCAB_FILE):
        if not (weights / name).is_file():
            raise UserError(f"{weights / name} not found; --weights must be a folder that to-pytorch wrote")
    config = load_config(weights)
    plan = plan_state(build_network(config), config, make_mesh())
    params = read_pytorch(weights, plan.abstract.params)
    # Checked first, because Orbax reports a full disk in a thousand lines.
    require_space(workdir, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plan.abstract)))
    for name in (CONFIG_FILE, VOCAB_FILE):
        (workdir / name).write_bytes((weights / name).read_bytes())
    with Checkpoints(workdir, config.checkpoint_every, config.eval.metric) as checkpoints:
        checkpoints.save(Checkpoint(0, plan.create(params), examples_seen=0, metrics=None))


@contextmanager
def _export() -> Iterator[tuple[TrainedNetwork, epath.Path, Path]]:
    """Load the network of --workdir and give it, its workdir, and the folder that becomes --out."""
    from s2rm_jax.io import atomic_folder, workdir_path
    from s2rm_jax.training.run import load_run

    assert WORKDIR.value is not None and OUT.value is not None  # required
    with atomic_folder(OUT.value, "--out") as folder:
        workdir = workdir_path(WORKDIR.value)
        yield load_run(workdir, cast(Literal["best", "latest"], CHECKPOINT.value)), workdir, folder


def _usage(form: str, packages: str) -> str:
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
