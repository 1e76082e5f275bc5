"""Evaluate a trained network on every expression of a split, under a named protocol.

    python -m s2rm_jax.evaluate --workdir runs/demo
    python -m s2rm_jax.evaluate --workdir runs/demo --split compositional --gallery 24
    python -m s2rm_jax.evaluate --workdir runs/demo --gallery 4 --explain
    python -m s2rm_jax.evaluate --workdir runs/refcoco --split testA --protocol lavt480   # needs RefCOCO

Prints the protocol's metrics, by kind of expression if the source has kinds, with bootstrap intervals, and, on the
splits that papers report, the published results beside them. Writes a report (index.html) with plots and a gallery of
random, worst and best cases, and the same content in metrics.json, table.md, table.tex, expressions.csv, plots/ and
gallery/.
--coco, --label_studio and --save_masks add the predictions in the formats of other programs (docs/other_tools.md).
--calibrate fits the scores of masks (docs/evaluation.md); the reports of a calibrated network show their reliability.
Several processes share the work if flags or the environment define them, as in training; process 0 writes the report.
The data, the network and the input size are those of the run's configuration; docs/protocols.md defines the protocols.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from s2rm_jax import command_line
from s2rm_jax.config import CONFIG_FILE, ON_BAD_EXAMPLES
from s2rm_jax.errors import UserError, counted
from s2rm_jax.evaluation.exchange_formats import check_address
from s2rm_jax.evaluation.protocols import ORIGINAL, PROTOCOLS, protocol_named
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.devices import keep_freed_memory

if TYPE_CHECKING:
    from s2rm_jax.evaluation.calibration import Judged
    from s2rm_jax.evaluation.evaluator import ImageMasks, Prediction, Report
    from s2rm_jax.evaluation.exchange_formats import Record
    from s2rm_jax.evaluation.gallery import Cases
    from s2rm_jax.evaluation.published import Benchmark

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string("workdir", None, "the workdir of a training run", flag_values=FLAGS)
SPLIT = flags.DEFINE_string("split", None, "the split; by default the one evaluated in training", flag_values=FLAGS)
CHECKPOINT = command_line.define_checkpoint(FLAGS)
PROTOCOL = flags.DEFINE_string(
    "protocol", None, f"the protocol: {', '.join(PROTOCOLS)}; by default that of the run", flag_values=FLAGS
)
GALLERY = flags.DEFINE_integer(
    "gallery",
    12,
    "number of cases to draw in each section (random, worst, best); 0: none",
    lower_bound=0,
    flag_values=FLAGS,
)
EXPLAIN = flags.DEFINE_bool("explain", False, "also draw an explanation for each gallery case", flag_values=FLAGS)
COCO = flags.DEFINE_bool(
    "coco", False, "also write COCO's results and true masks, coco_results.json and coco_truth.json", flag_values=FLAGS
)
LABEL_STUDIO = command_line.define_label_studio(FLAGS)
SAVE_MASKS = flags.DEFINE_bool(
    "save_masks", False, "also write every mask as a PNG, in the layout of CRIS's test, to vis/", flag_values=FLAGS
)
CALIBRATE = flags.DEFINE_bool(
    "calibrate",
    False,
    "also calibrate the scores of masks of the best checkpoint, so that a score is the probability that the mask is "
    "correct; stores the fit in config.json of --workdir, where no run may be training",
    flag_values=FLAGS,
)
LIMIT = flags.DEFINE_integer("limit", 0, "evaluate only the first N images; 0: all", lower_bound=0, flag_values=FLAGS)
DATA = flags.DEFINE_multi_string(
    "data",
    None,
    "evaluate on other data: DIR replaces the folder of the source, and FIELD=VALUE replaces a field: root, "
    "image_root, path, dataset, split_by, overlap or sentence_field (in a mixture: parts.NAME.FIELD); may be repeated",
    flag_values=FLAGS,
)
ON_BAD_EXAMPLE = flags.DEFINE_enum(
    "on_bad_example",
    None,
    ON_BAD_EXAMPLES,
    "stop at an example that cannot be read, or skip it; by default as in training",
    flag_values=FLAGS,
)
join_others = distributed.define_flags(FLAGS)
OUT = flags.DEFINE_string(
    "out",
    None,
    "the folder for the report; by default WORKDIR/eval-SPLIT, followed by the protocol unless it is original, by "
    "`latest` or `step-N` with --checkpoint, by `first-N` with --limit, and by the last part of each value of --data",
    flag_values=FLAGS,
)


def _folder_name(split: str, protocol: str) -> str:
    """Return the name of the report's folder; it differs where the report on the whole split must not be replaced."""
    parts = ["eval", split, *([protocol] if protocol != "original" else [])]
    if CHECKPOINT.value != "best":
        parts += [f"step-{CHECKPOINT.value}" if isinstance(CHECKPOINT.value, int) else CHECKPOINT.value]
    parts += [f"first-{LIMIT.value}"] if LIMIT.value else []
    parts += [re.sub(r"[^\w+.]+", "_", Path(one.rpartition("=")[2]).resolve().name) for one in DATA.value or ()]
    return "-".join(parts)


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any] | None:
    """Evaluate a run; the first process returns the content of metrics.json and the path of the page, others None."""
    keep_freed_memory()
    join_others()
    _check_flags()
    workdir = _find_run()
    with _keeping_weights(workdir):
        return _report(workdir)


def _report(workdir: epath.Path) -> dict[str, Any] | None:
    """Evaluate the run in `workdir`, write the report and calibrate as the flags say; the result is that of `main`."""
    from s2rm_jax.evaluation.calibration import reliability
    from s2rm_jax.evaluation.evaluator import Evaluator
    from s2rm_jax.evaluation.gallery import Cases, write_explained_cases
    from s2rm_jax.evaluation.report import as_screen_text, require_own_report, write_report
    from s2rm_jax.input.pipeline import require_images
    from s2rm_jax.input.sources import build_source, describe
    from s2rm_jax.io import make_output_folder, writing
    from s2rm_jax.parallel.mesh import make_mesh, on_this_process, replicated
    from s2rm_jax.prediction.files import require_no_prediction
    from s2rm_jax.segmenter import Segmenter
    from s2rm_jax.training.logging import log
    from s2rm_jax.training.run import load_run

    assert WORKDIR.value is not None  # required
    which = command_line.describe_checkpoint(CHECKPOINT.value)
    config = _load_config(workdir)
    protocol, split = protocol_named(config.eval.protocol), config.eval.split
    data = describe(config.input.source, split)
    source = build_source(config.input.source, split, on_bad_example=config.input.on_bad_example)
    require_images(source, config, config.eval.limit)
    out = OUT.value or workdir / _folder_name(split, protocol.name)
    require_no_prediction(Path(out))
    require_own_report(Path(out), data | {"split": split})
    out = make_output_folder(out)
    mesh = make_mesh()
    run = load_run(workdir, CHECKPOINT.value, replicated(mesh), config=config)  # last: restoring takes longest
    log(
        f"evaluating the {which} of {WORKDIR.value} on "
        f"{counted(min(len(source), LIMIT.value or len(source)), 'image')} of {split}"
    )
    cases = Cases(GALLERY.value)
    evaluator = Evaluator(run.network, run.tokenizer, config, protocol, mesh)
    report, judged = _evaluate(partial(evaluator, run.params, source), config, out, cases)
    sections = Cases.merge(distributed.gather(cases)).sections()
    if not distributed.is_first():
        return None

    about, benchmark = _about(data, split, report, run.step)
    log(as_screen_text(report, benchmark, about))
    with writing(out):
        page = write_report(
            out,
            report,
            sections,
            title=f"{Path(WORKDIR.value).resolve().name}: {split}, {which}, protocol {protocol.name}",
            benchmark=benchmark,
            reliability=reliability(judged),
            **about,
        )
    if CALIBRATE.value:
        _calibrate(workdir, split, judged)
    if EXPLAIN.value:
        log("drawing an explanation for each gallery case")
        # With the parameters that are loaded already: Orbax would wait for the other processes to restore them again.
        segmenter = Segmenter(run.network, on_this_process(run.params), run.tokenizer, config)
        write_explained_cases(out / "gallery", sections, segmenter.explain)
    values = [f"{title} {report.metrics[name]:.2f}" for name, title in protocol.columns.items() if name.endswith("iou")]
    over = f"over {counted(report.total.expressions, 'expression')} of {split}"
    log(f"{' and '.join(values)} {over}; the report is {page}")
    return {"page": str(page)} | json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def _evaluate(
    evaluate: Callable[..., Report], config: ConfigDict, out: Path, cases: Cases
) -> tuple[Report, list[Judged]]:
    """Evaluate, keep the cases of the gallery, and write the files for other programs.

    Returns:
        The report, and for --calibrate or a calibrated network the judged masks of all processes, else none. They are
        the masks of the protocol `original`, which `predict` returns.
    """
    from s2rm_jax.evaluation.calibration import CORRECT_IOU, UNCALIBRATED, Calibration
    from s2rm_jax.evaluation.evaluation_files import EvaluationFiles
    from s2rm_jax.training.logging import report_evaluation

    coco, label_studio, save_masks = bool(COCO.value), LABEL_STUDIO.value or "", bool(SAVE_MASKS.value)
    judged: list[Judged] = []
    show = report_evaluation(config.eval.split)
    calibrated = Calibration.of(config) != UNCALIBRATED
    judges = bool(CALIBRATE.value) or (calibrated and config.eval.protocol == ORIGINAL.name)
    with EvaluationFiles(out, coco=coco, label_studio=label_studio, save_masks=save_masks) as files:

        def record(prediction: Prediction, masks: ImageMasks) -> Record | None:
            if judges and masks.predicted.any():
                judged.append((masks.score, (prediction.score.iou or 0) >= CORRECT_IOU))
            return files.record(prediction, masks)

        needs_masks = judges or coco or label_studio or save_masks
        report = evaluate(progress=show, observe=cases, record=record if needs_masks else None)
        files.write(report.records)
    # Sorted, so that the numbers do not depend on the order of threads and processes.
    return report, sorted(one for share in distributed.gather(judged) for one in share)


def _about(
    data: dict[str, Any], split: str, report: Report, step: int | None
) -> tuple[dict[str, Any], Benchmark | None]:
    """Return what was evaluated, and the benchmark whose published results are comparable."""
    from s2rm_jax.evaluation.published import benchmark_of

    about = data | {"split": split, "images": report.images, "limit": LIMIT.value or None}
    about |= {"checkpoint": CHECKPOINT.value, "step": step, "workdir": WORKDIR.value}
    benchmark = benchmark_of(data)  # whose split is that of the part, if `split` is PART:SPLIT
    if benchmark and (difference := benchmark.difference(report.images, report.total.expressions)):
        about["published_results"] = f"none, because {difference}"
        benchmark = None
    return about, benchmark


def _calibrate(workdir: epath.Path, split: str, judged: list[Judged]) -> None:
    """Fit the scores of masks and keep the fit in the configuration of the run."""
    from s2rm_jax.evaluation.calibration import expected_calibration_error, fit, reliability
    from s2rm_jax.training.logging import log
    from s2rm_jax.training.run import save_calibration

    calibration = fit(judged)
    save_calibration(workdir, calibration)
    fitted = [(calibration(score), correct) for score, correct in judged]
    before, after = (100 * expected_calibration_error(reliability(some)) for some in (judged, fitted))
    log(
        f"scores fitted on {counted(len(judged), 'mask')} of {split}, {CHECKPOINT.value} checkpoint: expected "
        f"calibration error {before:.1f} % before, {after:.1f} % after, on these masks; the fit is in "
        f"{workdir / CONFIG_FILE}"
    )


def _check_flags() -> None:
    """Check flags that do not depend on the run."""
    check_address(LABEL_STUDIO.value)
    if EXPLAIN.value and not GALLERY.value:
        raise UserError("--explain is given with --gallery 0; it draws the cases of the gallery")
    if CALIBRATE.value and (COCO.value or LABEL_STUDIO.value):
        raise UserError("--calibrate: run it alone first; --coco and --label_studio then write calibrated scores")
    if CALIBRATE.value and CHECKPOINT.value != "best":
        raise UserError(
            "--calibrate fits the scores of the best checkpoint, which predict uses: leave out --checkpoint "
            f"{CHECKPOINT.value}"
        )


def _find_run() -> epath.Path:
    """Return the folder of the run; a run on the Hub needs --out and cannot be calibrated."""
    from s2rm_jax.training.run import find_run, on_hub

    assert WORKDIR.value is not None  # required
    workdir = find_run(WORKDIR.value)
    where = f"{WORKDIR.value} is on the Hugging Face Hub"
    if OUT.value is None and on_hub(WORKDIR.value):
        raise UserError(f"--out is missing: {where}; give a folder for the report")
    if CALIBRATE.value and on_hub(WORKDIR.value):
        raise UserError(f"--calibrate: {where}, where the fit cannot be stored; give the workdir of a run")
    return workdir


@contextmanager
def _keeping_weights(workdir: epath.Path) -> Iterator[None]:
    """Keep runs from training in `workdir` while its scores are calibrated: the fit belongs to the weights evaluated.

    Raises:
        UserError: a run is training there.
    """
    from s2rm_jax.training.checkpoint import has_checkpoint
    from s2rm_jax.training.lock import lock_workdir

    if not (CALIBRATE.value and has_checkpoint(workdir)):  # a folder of weights does not change
        yield
        return
    with lock_workdir(workdir):
        yield


def _load_config(workdir: epath.Path) -> ConfigDict:
    """Return the configuration of the run with the changes that the flags make."""
    from s2rm_jax.evaluation.calibration import UNCALIBRATED
    from s2rm_jax.input.sources import with_data
    from s2rm_jax.training.run import load_config

    config = load_config(workdir)
    config.eval.protocol = PROTOCOL.value or config.eval.protocol
    config.eval.split = SPLIT.value or config.eval.split
    config.eval.limit = LIMIT.value
    if DATA.value:
        config.input.source = with_data(config.input.source, DATA.value)
    if ON_BAD_EXAMPLE.value:
        config.input.on_bad_example = ON_BAD_EXAMPLE.value
    if CALIBRATE.value:
        if config.eval.protocol != ORIGINAL.name:
            raise UserError("--calibrate fits the scores of the masks that predict returns: add --protocol original")
        config.eval.update(UNCALIBRATED.fields())
    return config


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__, required=("workdir",))
