"""Evaluates a trained network on every sentence of a split, as a named protocol says.

    python -m s2rm_jax.evaluate --workdir runs/synthetic
    python -m s2rm_jax.evaluate --workdir runs/synthetic --split compositional --gallery 24
    python -m s2rm_jax.evaluate --workdir runs/synthetic --gallery 4 --explain
    python -m s2rm_jax.evaluate --workdir runs/refcoco --split testA --protocol lavt480

Prints the protocol's numbers, by kind of expression where the source knows kinds, with bootstrap intervals, and, on the
splits that papers report, the published figures beside them. Writes a report (index.html) with figures and a gallery of
random, worst and best cases, and the same as metrics.json, table.md, table.tex, sentences.csv, plots/ and gallery/.
The data, the network and the input size are those of the run's own configuration; docs/evaluation.md has the protocols.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from absl import flags

from s2rm_jax import command_line
from s2rm_jax.evaluation.protocols import PROTOCOLS, protocol_named

if TYPE_CHECKING:
    from s2rm_jax.evaluation.cases import Cases
    from s2rm_jax.segmenter import Segmenter

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
LIMIT = flags.DEFINE_integer("limit", 0, "pictures to evaluate; 0 takes them all", lower_bound=0, flag_values=FLAGS)
DATA = flags.DEFINE_multi_string(
    "data",
    None,
    "the folder of the data, if it has moved since; where there are several, once for each, as FIELD=DIR: "
    "image_root=DIR, or in a mixture parts.NAME.root=DIR",
    flag_values=FLAGS,
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "where results go; by default WORKDIR/eval-SPLIT, and behind it the protocol unless it is original, and --limit",
    flag_values=FLAGS,
)


def main() -> None:
    """Evaluates as the flags say."""
    import jax

    from s2rm_jax.evaluation.cases import Cases
    from s2rm_jax.evaluation.comparison import benchmark_of, comparison
    from s2rm_jax.evaluation.evaluator import Evaluator
    from s2rm_jax.evaluation.output_files import make_output_folder
    from s2rm_jax.evaluation.report import table
    from s2rm_jax.evaluation.report_folder import write_report
    from s2rm_jax.evaluation.tables import as_text, without
    from s2rm_jax.input.moved import with_folders
    from s2rm_jax.input.pipeline import build_tokenizer
    from s2rm_jax.input.sources import build_source
    from s2rm_jax.models.network import build_network
    from s2rm_jax.segmenter import Segmenter
    from s2rm_jax.training.checkpoint import restore_params
    from s2rm_jax.training.progress import counted, report_evaluation, say
    from s2rm_jax.training.run_config import load_config
    from s2rm_jax.training.state import parameter_shapes

    assert WORKDIR.value is not None  # required
    workdir = Path(WORKDIR.value)
    which = cast(Literal["best", "latest"], CHECKPOINT.value)
    config = load_config(workdir)
    protocol = protocol_named(PROTOCOL.value or config.eval.protocol)
    config.eval.limit = LIMIT.value
    if DATA.value:
        config.input.source = with_folders(config.input.source, DATA.value)
    split = SPLIT.value or config.eval.split
    source = build_source(config.input.source, split)
    network = build_network(config)
    params = jax.device_put(restore_params(workdir, which, parameter_shapes(network, config)))
    suffix = "" if protocol.name == "original" else f"-{protocol.name}"
    suffix += f"-first-{LIMIT.value}" if LIMIT.value else ""  # beside the report on the whole split, not in its place
    out = make_output_folder(OUT.value or workdir / f"eval-{split}{suffix}")

    pictures = min(len(source), LIMIT.value or len(source))
    say(f"evaluating the {which} checkpoint of {workdir} on {counted(pictures, 'picture')} of {split}")
    cases = Cases(GALLERY.value)
    tokenizer = build_tokenizer(config, source)
    evaluator = Evaluator(network, tokenizer, config, protocol)
    report = evaluator(params, source, progress=report_evaluation(split, stopping=lambda: None), observe=cases)

    say(table(report))
    benchmark = benchmark_of(config.input.source, split, LIMIT.value)
    if benchmark:
        beside = comparison(report, benchmark)
        say(f"\n{beside.caption}\n{as_text(without(beside, 'source'))}\n")
    page = write_report(
        out,
        report,
        cases.sections(),
        title=f"{workdir.resolve().name}: {split}, {which} checkpoint, protocol {protocol.name}",
        benchmark=benchmark,
        split=split,
        checkpoint=which,
        pictures=pictures,
    )
    if EXPLAIN.value and GALLERY.value:
        _explain(out / "gallery", cases, Segmenter(network, params, tokenizer, config))
    values = [f"{title} {report.metrics[name]:.2f}" for name, title in protocol.columns.items() if name.endswith("iou")]
    sentences = counted(report.total.sentences, "sentence")
    say(f"{' and '.join(values)} over {sentences} of {split}; the report is {page}")


def _explain(folder: Path, cases: Cases, segmenter: Segmenter) -> None:
    from s2rm_jax.evaluation.explained_cases import write_explained_cases
    from s2rm_jax.training.progress import say

    say("drawing how the network came to the cases of the gallery")
    write_explained_cases(folder, cases.sections(), segmenter.explain)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, required=("workdir",))
