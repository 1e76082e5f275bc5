"""Examine a folder of REFER data and says whether it is whole, and if not, what to do.

    python data/check.py --root DIR
    python data/check.py --root DIR --dataset refcoco --split-by unc --json report.json

Compares the counts of images, referents and expressions with the published ones; finds images that are missing,
truncated or of another size than annotated, masks that do not fit their boxes, annotations without masks, expressions
without words and ids that occur twice. Every image is decoded, on all cores; --quick reads only their headers.

Exit status: 0 all is well, 1 there are problems, 2 there is nothing to examine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works in a clone without installation

from absl import flags

from s2rm_jax import command_line

FLAGS = flags.FlagValues()
ROOT = flags.DEFINE_string("root", None, "the folder of the data, see data/README.md", flag_values=FLAGS)
DATASET = flags.DEFINE_string(
    "dataset", "", "only this one, e.g. refcoco; by default all that is there", flag_values=FLAGS
)
SPLIT_BY = flags.DEFINE_string("split-by", "", "only with these splits, e.g. unc", flag_values=FLAGS)
IMAGE_ROOT = flags.DEFINE_string("image-root", "", "the folder of the images, if not under --root", flag_values=FLAGS)
QUICK = flags.DEFINE_bool("quick", False, "read only the headers of images", flag_values=FLAGS)
THREADS = flags.DEFINE_integer("threads", 0, "that decode; 0: one per core", lower_bound=0, flag_values=FLAGS)
JSON = flags.DEFINE_string("json", "", "a file that receives the report for programs", flag_values=FLAGS)


def main() -> None:
    """Examine as the flags say."""
    from s2rm_jax.errors import UserError
    from s2rm_jax.input.check.examine import examine
    from s2rm_jax.input.check.report import show

    assert ROOT.value is not None  # required
    report = examine(
        ROOT.value,
        DATASET.value or "",
        SPLIT_BY.value or "",
        image_root=IMAGE_ROOT.value or "",
        quick=bool(QUICK.value),
        threads=THREADS.value or 0,
    )
    print(show(report))
    if JSON.value:
        try:
            Path(JSON.value).write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json: cannot write {JSON.value}: {error.strerror}") from error
    if not report.well:
        raise SystemExit(1)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, required=("root",))
