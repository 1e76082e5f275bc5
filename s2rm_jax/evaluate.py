"""Evaluates a trained network on every expression of a split, as a named protocol says.

    python -m s2rm_jax.evaluate --workdir runs/synthetic
    python -m s2rm_jax.evaluate --workdir runs/synthetic --split compositional --gallery 24
    python -m s2rm_jax.evaluate --workdir runs/synthetic --gallery 4 --explain
    python -m s2rm_jax.evaluate --workdir runs/refcoco --split testA --protocol lavt480   # needs RefCOCO

Prints the protocol's numbers, by kind of expression where the source knows kinds, with bootstrap intervals, and, on the
splits that papers report, the published figures beside them. Writes a report (index.html) with figures and a gallery of
random, worst and best cases, and the same as metrics.json, table.md, table.tex, expressions.csv, plots/ and gallery/.
Several processes share the work where flags or the environment log so, as in training; the first writes.
The data, the network and the input size are those of the run's own configuration; docs/evaluation.md has the protocols.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, cast

from absl import flags

from s2rm_jax import command_line
from s2rm_jax.evaluation.protocols import PROTOCOLS, protocol_named
from s2rm_jax.parallel import distributed

if TYPE_CHECKING:
    from s2rm_jax.evaluation.gallery import Cases
    from s2rm_jax.evaluation.published import Benchmark
    from s2rm_jax.evaluation.report import Report
    from s2rm_jax.training.run import LoadedRun

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string("workdir", None, "the directory of a training run", flag_values=FLAGS)
SPLIT = flags.DEFINE_string("split", None, "the split; by default the one evaluated in training", flag_values=FLAGS)
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "which checkpoint", flag_values=FLAGS)
PROTOCOL = flags.DEFINE_string(
    "protocol", None, f"how masks become numbers: {', '.join(PROTOCOLS)}; by default as in training", flag_values=FLAGS
)
GALLERY = flags.DEFINE_integer(
    "gallery", 12, "cases to draw of each sort: random, worst, best; 0 draws none", lower_bound=0, flag_values=FLAGS
)
EXPLAIN = flags.DEFINE_bool(
    "explain", False, "also draw, for each case of the gallery, how the network came to it", flag_values=FLAGS
)
LIMIT = flags.DEFINE_integer("limit", 0, "images to evaluate; 0 takes them all", lower_bound=0, flag_values=FLAGS)
DATA = flags.DEFINE_multi_string(
    "data",
    None,
    "the folder of the data, if it has moved since; where there are several, once for each, as FIELD=DIR: "
    "image_root=DIR, or in a mixture parts.NAME.root=DIR",
    flag_values=FLAGS,
)
join_others = distributed.define_flags(FLAGS)
OUT = flags.DEFINE_string(
    "out",
    None,
    "where results go; by default WORKDIR/eval-SPLIT, and behind it the protocol unless it is original, and --limit",
    flag_values=FLAGS,
)


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any] | None:
    """Evaluates as the flags log; returns the content of metrics.json and the path of the page, on one process."""
    from s2rm_jax.evaluation.evaluator import Evaluator
    from s2rm_jax.evaluation.gallery import Cases
    from s2rm_jax.evaluation.published import benchmark_of
    from s2rm_jax.evaluation.report_files import write_report
    from s2rm_jax.input.sources import build_source, with_folders
    from s2rm_jax.io import make_output_folder, workdir_path
    from s2rm_jax.parallel.mesh import make_mesh, replicated
    from s2rm_jax.training.logging import counted, log, report_evaluation
    from s2rm_jax.training.run import load_run

    join_others()
    assert WORKDIR.value is not None  # required
    workdir = workdir_path(WORKDIR.value)
    which = cast(Literal["best", "latest"], CHECKPOINT.value)
    mesh = make_mesh()
    trained = load_run(workdir, which, replicated(mesh))
    config = trained.config
    protocol = protocol_named(PROTOCOL.value or config.eval.protocol)
    config.eval.limit = LIMIT.value
    if DATA.value:
        config.input.source = with_folders(config.input.source, DATA.value)
    split = SPLIT.value or config.eval.split
    source = build_source(config.input.source, split)
    suffix = "" if protocol.name == "original" else f"-{protocol.name}"
    suffix += f"-first-{LIMIT.value}" if LIMIT.value else ""  # beside the report on the whole split, not in its place
    out = make_output_folder(OUT.value or workdir / f"eval-{split}{suffix}")

    images = min(len(source), LIMIT.value or len(source))
    log(f"evaluating the {which} checkpoint of {workdir} on {counted(images, 'image')} of {split}")
    cases = Cases(GALLERY.value)
    evaluator = Evaluator(trained.network, trained.tokenizer, config, protocol, mesh)
    report = evaluator(trained.params, source, progress=report_evaluation(split), observe=cases)
    cases = Cases.together(distributed.gather(cases))
    if not distributed.is_first():
        return None

    benchmark = benchmark_of(config.input.source, split, LIMIT.value)
    _say_figures(report, benchmark)
    page = write_report(
        out,
        report,
        cases.sections(),
        title=f"{workdir.resolve().name}: {split}, {which} checkpoint, protocol {protocol.name}",
        benchmark=benchmark,
        split=split,
        checkpoint=which,
        images=images,
    )
    if EXPLAIN.value and GALLERY.value:
        _explain(out / "gallery", cases, trained)
    values = [f"{title} {report.metrics[name]:.2f}" for name, title in protocol.columns.items() if name.endswith("iou")]
    expressions = counted(report.total.expressions, "expression")
    log(f"{' and '.join(values)} over {expressions} of {split}; the report is {page}")
    return {"page": str(page)} | json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def _say_figures(report: Report, benchmark: Benchmark | None) -> None:
    """Prints the table of a report, and published figures where there are any for the split."""
    from s2rm_jax.evaluation.published import comparison
    from s2rm_jax.evaluation.report import table
    from s2rm_jax.evaluation.tables import as_text, without
    from s2rm_jax.training.logging import log

    log(table(report))
    if benchmark:
        beside = comparison(report, benchmark)
        log(f"\n{beside.caption}\n{as_text(without(beside, 'source'))}\n")


def _explain(folder: Path, cases: Cases, trained: LoadedRun) -> None:
    """Draws on this process alone; so nothing is restored again, for which Orbax would wait for the others."""
    from s2rm_jax.evaluation.explain import write_explained_cases
    from s2rm_jax.parallel.mesh import on_this_process
    from s2rm_jax.segmenter import Segmenter
    from s2rm_jax.training.logging import log

    log("drawing how the network came to the cases of the gallery")
    params = on_this_process(trained.params)
    segmenter = Segmenter(trained.network, params, trained.tokenizer, trained.config)
    write_explained_cases(folder, cases.sections(), segmenter.explain)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, required=("workdir",))
