"""Check a folder of REFER data: list all problems and how to solve each.

    python data/check.py --root DATA
    python data/check.py --root DATA --dataset refcoco --split_by unc --json_file report.json

Compares the numbers of images, referents and expressions with the published ones; finds images that are missing,
truncated or whose size differs from the annotation, masks that do not fit their boxes, annotations without masks,
expressions without words and duplicate ids. Every image is decoded, on all cores; --quick reads only their headers.

Exit status: 0 no problems, 1 problems, 2 nothing to check.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works in a clone without installation

from absl import flags

from s2rm_jax import command_line

FLAGS = flags.FlagValues()
ROOT = flags.DEFINE_string("root", None, "folder of the data, see data/README.md", flag_values=FLAGS)
DATASET = flags.DEFINE_string("dataset", "", "check only this dataset, e.g. refcoco; by default all", flag_values=FLAGS)
SPLIT_BY = flags.DEFINE_string(
    "split_by", "", "check only the splits by this author, such as unc or umd; by default all", flag_values=FLAGS
)
IMAGE_ROOT = flags.DEFINE_string("image_root", "", "folder of the images if not under --root", flag_values=FLAGS)
QUICK = flags.DEFINE_bool("quick", False, "read only the headers of images", flag_values=FLAGS)
THREADS = flags.DEFINE_integer(
    "threads", 0, "number of threads that decode images; 0: one per core", lower_bound=0, flag_values=FLAGS
)
JSON = flags.DEFINE_string("json_file", "", "file to write the report to as JSON", flag_values=FLAGS)


def main() -> None:
    """Check the data that the flags select."""
    from s2rm_jax.input.check.examine import examine
    from s2rm_jax.input.check.report import format_report
    from s2rm_jax.io import writing

    assert ROOT.value is not None  # required
    report = examine(
        ROOT.value,
        DATASET.value or "",
        SPLIT_BY.value or "",
        image_root=IMAGE_ROOT.value or "",
        quick=bool(QUICK.value),
        threads=THREADS.value or 0,
    )
    print(format_report(report))
    if JSON.value:
        path = Path(JSON.value)
        with writing(path, "--json_file"):
            path.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    if not report.ok:
        raise SystemExit(1)


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__, required=("root",))
