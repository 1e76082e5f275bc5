"""Evaluates a trained network on every sentence of a split, at the original resolution of the pictures.

    python -m s2rm_jax.evaluate --workdir runs/synthetic
    python -m s2rm_jax.evaluate --workdir runs/synthetic --split compositional --gallery 24

Prints overall IoU, mean IoU and precision, by kind of expression where the source knows kinds, and writes metrics.json,
sentences.csv (one line per sentence) and, with --gallery N, pictures of N examples (PNG, and index.html with them all).
The data, the network and the input size are those of the run's own configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from absl import flags

from s2rm_jax import command_line
from s2rm_jax.errors import UserError

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string("workdir", None, "the directory of a training run", flag_values=FLAGS)
SPLIT = flags.DEFINE_string("split", None, "the split; by default the one evaluated in training", flag_values=FLAGS)
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "which checkpoint", flag_values=FLAGS)
GALLERY = flags.DEFINE_integer("gallery", 0, "examples to draw; 0 draws none", lower_bound=0, flag_values=FLAGS)
LIMIT = flags.DEFINE_integer("limit", 0, "pictures to evaluate; 0 takes them all", lower_bound=0, flag_values=FLAGS)
DATA = flags.DEFINE_string("data", None, "the folder of the data, if it has moved since", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "where results go; by default WORKDIR/eval-SPLIT", flag_values=FLAGS)


def main() -> None:
    """Evaluates as the flags say."""
    import jax

    from s2rm_jax.evaluation.evaluator import Evaluator
    from s2rm_jax.evaluation.gallery import Chosen, write_gallery
    from s2rm_jax.evaluation.output_files import make_output_folder
    from s2rm_jax.evaluation.report import table, write_csv, write_json
    from s2rm_jax.input.pipeline import build_tokenizer
    from s2rm_jax.input.sources import build_source
    from s2rm_jax.models.network import build_network
    from s2rm_jax.training.checkpoint import restore_params
    from s2rm_jax.training.progress import report_evaluation, say
    from s2rm_jax.training.run_config import load_config
    from s2rm_jax.training.state import parameter_shapes

    assert WORKDIR.value is not None  # required
    workdir = Path(WORKDIR.value)
    which = cast(Literal["best", "latest"], CHECKPOINT.value)
    config = load_config(workdir)
    config.eval.limit = LIMIT.value
    if DATA.value:
        if "root" not in config.input.source:
            raise UserError(f"--data: the source {config.input.source.name!r} of this run reads no files.")
        config.input.source.root = DATA.value
    split = SPLIT.value or config.eval.split
    source = build_source(config.input.source, split)
    network = build_network(config)
    params = jax.device_put(restore_params(workdir, which, parameter_shapes(network, config)))
    out = make_output_folder(OUT.value or workdir / f"eval-{split}")

    pictures = min(len(source), LIMIT.value or len(source))
    say(f"evaluating the {which} checkpoint of {workdir} on {pictures:,} pictures of {split}")
    chosen = Chosen(pictures, GALLERY.value)
    evaluator = Evaluator(network, build_tokenizer(config, source), config)
    report = evaluator(params, source, progress=report_evaluation(split, stopping=lambda: None), observe=chosen)

    say(table(report))
    write_json(report, out / "metrics.json", split=split, checkpoint=which, pictures=pictures)
    write_csv(report, out / "sentences.csv")
    written = "metrics.json and sentences.csv"
    if chosen.examples:
        title = f"{workdir.resolve().name}: {split}, {which} checkpoint"
        *_, page = write_gallery(out / "gallery", chosen.examples, report, title)
        written = f"metrics.json, sentences.csv and the pictures of {len(chosen.examples)} examples ({page})"
    values = report.metrics
    say(
        f"mean IoU {values['mean_iou']:.2f} and overall IoU {values['overall_iou']:.2f} over "
        f"{report.total.sentences:,} sentences of {split}; {written} are in {out}"
    )


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, required=("workdir",))
