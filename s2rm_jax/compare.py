"""Compare two evaluations of the same split: differences with paired intervals, and the expressions that changed most.

    python -m s2rm_jax.compare runs/a/eval-val runs/b/eval-val
    python -m s2rm_jax.compare runs/a/eval-val runs/b/eval-val --out compared

Prints each metric of the protocol for both, the difference B - A with its 95 % bootstrap interval over images, the mean
IoU by kind of expression if the data has kinds, and the expressions whose IoU rises and falls most. Both folders must
be reports of `evaluate` on the same expressions under the same protocol. --out writes the tables (comparison.md) and
the change of every expression (changes.csv).
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from absl import flags

from s2rm_jax import command_line
from s2rm_jax.errors import counted
from s2rm_jax.evaluation.bootstrap import LEVEL, RESAMPLES
from s2rm_jax.evaluation.paired import Difference, Evaluation, by_kind, changes, differences, pair, read_evaluation
from s2rm_jax.evaluation.tables import Table, as_markdown, as_text
from s2rm_jax.io import make_output_folder, write_atomically, writing

FLAGS = flags.FlagValues()
EVAL_A = flags.DEFINE_string(
    "eval_a", None, "the first argument: a folder that evaluate wrote, such as runs/a/eval-val", flag_values=FLAGS
)
EVAL_B = flags.DEFINE_string(
    "eval_b", None, "the second argument: the folder to compare with it, such as runs/b/eval-val", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "also write the comparison into this folder", flag_values=FLAGS)

_SHOWN = 5  # expressions that gain most, and as many that lose most
_LONGEST = 60  # characters of an expression in a table
_WIDTH = 118  # columns of the screen
_NOTE = (
    f"All values are in percent. Intervals of B - A: {LEVEL} % bootstrap intervals from {RESAMPLES:,} resamples of the "
    "images, the same for A and B. A difference is significant if its interval excludes 0; of 20 rows without a true "
    "difference, about one is significant by chance. The intervals do not cover the variation between training seeds."
)


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any]:
    """Compare the two evaluations; return all numbers."""
    assert EVAL_A.value is not None and EVAL_B.value is not None  # required
    a, b = (read_evaluation(Path(folder)) for folder in (EVAL_A.value, EVAL_B.value))
    pairs = pair(a, b)
    out = make_output_folder(OUT.value) if OUT.value else None
    total, groups = differences(pairs, a.protocol), by_kind(pairs)
    kinds = {kind: differences(group, a.protocol) for kind, group in groups.items()}
    changed = changes(pairs)
    gains = [row for row in changed[::-1][:_SHOWN] if row["change"] > 0]
    losses = [row for row in changed[:_SHOWN] if row["change"] < 0]
    images = len({score.image_identity for score, _ in pairs})

    of_all = f"Protocol {a.protocol.name}, {counted(len(pairs), 'expression')} of {counted(images, 'image')}"
    columns, mean = a.protocol.columns, a.protocol.mean_name
    tables = [_differences_table(of_all, {columns[name]: one for name, one in total.items()})]
    if kinds:
        means = {f"{kind or '(no kind)'} ({len(groups[kind]):,})": one["mean_iou"] for kind, one in kinds.items()}
        tables.append(_differences_table(f"{mean} by kind (number of expressions)", means))
    for title, rows in (("Largest gains", gains), ("Largest losses", losses)):
        tables += [_changes_table(f"{title}, IoU in percent", rows)] if rows else []
    sides = [_about("A", a), _about("B", b)]
    print("\n".join([*sides, *(f"\n{table.caption}\n\n{as_text(table)}" for table in tables)]))
    print(f"\n{textwrap.fill(_NOTE, _WIDTH)}")
    if out:
        with writing(out):
            parts = [*sides, *map(as_markdown, tables), _NOTE]
            write_atomically(out / "comparison.md", "\n\n".join(parts) + "\n", errors="backslashreplace")
            write_atomically(out / "changes.csv", _as_csv(changed), errors="backslashreplace")
        print(f"comparison.md and changes.csv are in {out}")
    result = {"a": EVAL_A.value, "b": EVAL_B.value, "protocol": a.protocol.name, "split": a.about.get("split")}
    return result | {
        "images": images,
        "expressions": len(pairs),
        "all": {name: asdict(one) for name, one in total.items()},
        "by_kind": {
            kind: {"expressions": len(groups[kind])} | {name: asdict(one) for name, one in found.items()}
            for kind, found in kinds.items()
        },
        "gains": gains,
        "losses": losses,
    }


def _about(name: str, evaluation: Evaluation) -> str:
    known = {field: evaluation.about.get(field) for field in ("workdir", "checkpoint", "step")}
    parts = [f"{field} {value}" for field, value in known.items() if value is not None]
    return f"{name}: {', '.join([str(evaluation.folder), *parts])}"


def _differences_table(caption: str, found: Mapping[str, Difference]) -> Table:
    rows = []
    for name, one in found.items():
        interval = " to ".join(f"{end:+.2f}" for end in one.interval_95)
        significant = "yes" if one.significant else "no"
        rows.append((name, f"{one.a:.2f}", f"{one.b:.2f}", f"{one.difference:+.2f}", interval, significant))
    return Table(caption, ("", "A", "B", "B - A", f"{LEVEL} % interval", "significant"), tuple(rows))


def _changes_table(caption: str, changed: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for row in changed:
        values = (f"{100 * row['iou_a']:.1f}", f"{100 * row['iou_b']:.1f}", f"{100 * row['change']:+.1f}")
        rows.append((textwrap.shorten(row["expression"], _LONGEST, placeholder=" ..."), row["id"], *values))
    return Table(caption, ("expression", "id", "A", "B", "B - A"), tuple(rows), text_columns=2)


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__, required=("eval_a", "eval_b"), positional=True)
