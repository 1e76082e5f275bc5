"""Convert a dataset in the REFER layout to a TFDS dataset in ArrayRecord files, without TensorFlow.

    python -m data.build --dataset refcoco --root DATA --out RECORDS
    python -m data.build --dataset refcocog --split_by google --root DATA --out RECORDS

Run it in a clone of the repository, with the extra installed: pip install -e '.[tfds]'. To train on the result, set
--config.input.source.name=tfds --config.input.source.root=RECORDS; dataset and split_by are as for the files.

Images are copied byte for byte; masks stay polygons or RLEs. A dataset in RECORDS is always complete: an interrupted
build leaves nothing under the final name, and the same command starts it again.
"""

from __future__ import annotations

import importlib
import io
import shutil
import tempfile
from contextlib import redirect_stdout, suppress
from pathlib import Path

from absl import flags

from s2rm_jax import command_line
from s2rm_jax.errors import UserError
from s2rm_jax.input.refer_annotations import find_annotations
from s2rm_jax.input.tfds import BUILDER_NAMES

DEFAULT_SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "refclef": "berkeley", "grefcoco": "unc"}

FLAGS = flags.FlagValues()
DATASET = flags.DEFINE_enum("dataset", None, list(DEFAULT_SPLIT_BY), "the dataset", flag_values=FLAGS)
SPLIT_BY = flags.DEFINE_string(
    "split_by",
    "",
    "who made the splits, such as unc or umd; by default the usual choice for the dataset",
    flag_values=FLAGS,
)
ROOT = flags.DEFINE_string("root", None, "folder of the files, see data/README.md", flag_values=FLAGS)
IMAGE_ROOT = flags.DEFINE_string("image_root", "", "folder of the images if not under --root", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "folder of prepared datasets (data_dir in TFDS)", flag_values=FLAGS)


def main() -> None:
    """Build the dataset that the flags select."""
    assert DATASET.value and ROOT.value and OUT.value  # required
    folder = build(
        DATASET.value, ROOT.value, OUT.value, split_by=SPLIT_BY.value or "", image_root=IMAGE_ROOT.value or ""
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:,.1f} MB")


def build(
    dataset: str,
    root: str | Path,
    out: str | Path,
    *,
    split_by: str = "",
    image_root: str | Path = "",
    quiet: bool = False,
) -> Path:
    """Build one dataset and return its folder, OUT/DATASET/SPLIT_BY/VERSION.

    Raises:
        UserError: TFDS is not installed, the dataset exists already, or its files are incomplete.
    """
    try:
        import importlib_resources  # noqa: F401  TFDS 4.9.10 needs it for builders in a package, and does not declare it
        import tensorflow_datasets as tfds

        from data.refer_dataset import ReferConfig
    except ImportError as error:
        raise UserError(f"building needs TFDS ({error}); install it with: pip install -e '.[tfds]'") from error
    tfds.disable_progress_bar()
    name = BUILDER_NAMES.get(dataset, dataset)
    builder_class = importlib.import_module(f"data.{name}.{name}_dataset_builder").Builder
    split_by = split_by or DEFAULT_SPLIT_BY[dataset]
    root, out = Path(root).expanduser(), Path(out).expanduser()
    if not root.is_dir():
        raise UserError(f"--root: the folder {root} does not exist; data/README.md describes its contents")
    find_annotations(root, dataset, split_by)  # before TFDS creates folders
    is_new = not out.exists()
    config = split_by if split_by in builder_class.builder_configs else ReferConfig(split_by)
    builder = builder_class(config=config, data_dir=out, file_format="array_record")
    folder = Path(builder.data_path)
    if (folder / "dataset_info.json").is_file():
        raise UserError(f"{folder} exists already; remove it to build it again")
    builder.image_root, builder.quiet = str(image_root), quiet
    try:
        # TFDS would print a message about a download that does not happen and leave an empty folder in --out.
        with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
            download_config = tfds.download.DownloadConfig(manual_dir=root)
            builder.download_and_prepare(download_dir=downloads, download_config=download_config)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {folder}: {reason}; free space there, or give another --out") from error
    finally:
        _remove_empty(folder, out if is_new else None)
    return folder


def _remove_empty(folder: Path, out: Path | None) -> None:
    """Remove the empty parents of `folder` that TFDS leaves after a failed build."""
    with suppress(OSError):  # not empty, or never created
        folder.parent.rmdir()
        dataset = folder.parents[1]
        if [path.name for path in dataset.iterdir()] == [".config"]:
            shutil.rmtree(dataset)
        if out:
            out.rmdir()


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__, required=("dataset", "root", "out"))
