"""Published results on the benchmarks, and the evaluation protocol behind each.

A figure is listed only if it was read in the named source and the evaluation code behind it is known. The exception is
DeRIS on gRefCOCO, where few methods report; it is marked as not read. Not listed: figures quoted from memory; methods
whose evaluation code was not read (MagNet, LQMFormer, NeMo, DeRIS on RefCOCO, C3VG, OneRef, PixelLLM, GLaMM, MLCD-Seg
and UNINEXT, which also trains on test images); DETRIS's overall IoU (its published code computes only the mean); and
ReMamber (two sources give different figures). No figure of S2RM's own paper is available here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2rm_jax.input.split_sizes import SPLIT_SIZES, SplitSize

# What papers say of datasets whose files have not been counted. gRefCOCO has RefCOCO's 19,994 images; ReferIt's test
# queries are those of the split by Berkeley.
_PAPER_SIZES = {
    "grefcoco": {
        "val": SplitSize(1_500, None, None),
        "testA": SplitSize(750, None, None),
        "testB": SplitSize(750, None, None),
    },
    "refclef": {"test": SplitSize(None, None, 60_103)},
}

SINGLE = "this benchmark"
COMBINED = "RefCOCO/+/g or more"


@dataclass(frozen=True)
class Benchmark:
    """A split as papers name it: the dataset (its REFER folder), the author of the split, and the part."""

    dataset: str
    split_by: str
    split: str

    def __str__(self) -> str:
        return f"{self.dataset} ({self.split_by}) {self.split}"

    def difference(self, images: int, expressions: int) -> str:
        """Return how an evaluation of so many images and expressions differs from the whole split, or ""."""
        found = {"images": images, "expressions": expressions}
        size = (_PAPER_SIZES.get(self.dataset) or SPLIT_SIZES[self.dataset, self.split_by])[self.split]
        known = {name: count for name in found if (count := getattr(size, name)) is not None}
        if all(found[name] == count for name, count in known.items()):
            return ""
        whole, here = (" and ".join(f"{counts[name]:,} {name}" for name in known) for counts in (known, found))
        return f"{self} has {whole}, but {here} were evaluated"


@dataclass(frozen=True)
class Published:
    """One figure, in percent.

    Attributes:
        metric: overall_iou, mean_iou, precision@0.5 ... precision@0.9 or no_target_accuracy
        value: with the decimals of the source
        trained: the training data: SINGLE or COMBINED
        protocol: one of `protocols.PROTOCOLS`, or the name of an evaluation that is not implemented here
        source: where the figure was read; sometimes a third party
    """

    method: str
    benchmark: Benchmark
    metric: str
    value: str
    trained: str
    protocol: str
    source: str


# The splits on which papers report; some have no figure below.
BENCHMARKS = tuple(
    Benchmark(dataset, split_by, split)
    for dataset, split_by, splits in (
        ("refcoco", "unc", ("val", "testA", "testB")),
        ("refcoco+", "unc", ("val", "testA", "testB")),
        ("refcocog", "umd", ("val", "test")),
        ("refcocog", "google", ("val",)),
        ("grefcoco", "unc", ("val", "testA", "testB")),
        ("refclef", "berkeley", ("test",)),
    )
    for split in splits
)
_REFCOCO, _GREFCOCO, _REFERIT = BENCHMARKS[:9], BENCHMARKS[9:12], BENCHMARKS[12:]

_LAVT = "LAVT-RIS README"
_CRIS = "CRIS.pytorch README"
_DETRIS = "DETRIS README"
_MASKRIS = "MaskRIS, Table 1"
_POLYFORMER = "polygon-transformer README"
_RELA = "ReLA README"
_DERIS = "DeRIS README"
_RELA_RERUN = "ReLA issue 15"
_MASK_GROUNDING = "mask-grounding README"
_COPIED = "a third party's table"

# The networks take images letterboxed to 320 px; masks are thresholded at that size and resized to the image's own.
_TF = "own (original size)"
_NOT_READ = "own (code not read)"


def _rows(
    benchmarks: tuple[Benchmark, ...], metric: str, trained: str, *lines: tuple[str, str, str, str]
) -> list[Published]:
    """Each line: method, protocol, source, then one figure per benchmark, "-" for none."""
    return [
        Published(method, benchmark, metric, value, trained, protocol, source)
        for method, protocol, source, values in lines
        for benchmark, value in zip(benchmarks, values.split(), strict=True)
        if value != "-"
    ]


PUBLISHED: tuple[Published, ...] = (
    *_rows(
        _REFCOCO, "overall_iou", SINGLE,
        ("LAVT (Swin-B)", "lavt480", _LAVT, "72.73 75.82 68.79 62.14 68.38 55.10 61.24 62.09 60.50"),
        ("LAVT_one, Dice (Swin-B)", "lavt480", _LAVT, "73.50 75.97 69.33 63.79 69.79 56.49 64.02 64.49 61.31"),
        ("ReLA (Swin-B)", "rela_gref", _MASK_GROUNDING, "73.82 76.48 70.18 66.04 71.02 57.65 65.00 65.97 62.70"),
        ("ReLA, rerun by others", "rela_gref", _RELA_RERUN, "73.29 76.06 69.56 64.65 70.27 56.70 63.57 65.06 60.76"),
        ("CGFormer (Swin-B)", "cgformer", _MASKRIS, "74.75 77.30 70.64 64.54 71.00 57.14 64.68 65.09 -"),
        ("DMMI (Swin-B)", "lavt480", "RIS-DMMI README", "- - - - - - 63.46 - -"),
        ("CARIS (Swin-B), rerun", "caris448", _MASKRIS, "74.67 77.63 71.71 66.17 71.70 57.46 64.66 65.45 -"),
        ("MaskRIS (Swin-B)", "caris448", "a copy of its Table 1", "76.49 78.96 73.96 67.54 74.46 59.39 65.55 66.50 -"),
    ),
    *_rows(
        _REFCOCO, "overall_iou", COMBINED,
        ("PolyFormer-B", "polygons, 512", _POLYFORMER, "74.82 76.64 71.06 67.64 72.89 59.33 67.76 69.05 -"),
        ("PolyFormer-L", "polygons, 512", _POLYFORMER, "75.96 78.29 73.25 69.33 74.56 61.87 69.20 70.19 -"),
        ("CARIS (Swin-B)", "caris448", _COPIED, "76.63 79.40 73.52 68.03 73.70 60.41 67.95 69.75 -"),
        ("MaskRIS (Swin-B)", "caris448", _COPIED, "78.71 80.64 75.10 70.26 75.15 62.83 69.12 71.09 -"),
        ("LISA-7B, fine-tuned", "lisa", _COPIED, "74.9 79.1 72.3 65.1 70.8 58.1 67.9 70.6 -"),
        ("EVF-SAM", "lisa", "unicom README", "82.4 84.2 80.2 76.5 80.0 71.9 78.2 78.3 -"),
    ),
    *_rows(
        _REFCOCO, "mean_iou", SINGLE,
        ("CRIS (R50)", "cris", _CRIS, "69.52 72.72 64.70 61.39 67.10 52.48 59.35 59.39 -"),
        ("CRIS (R101)", "cris", _CRIS, "70.47 73.18 66.10 62.27 68.08 53.68 59.87 60.36 -"),
        ("ETRIS (R101)", "cris", _COPIED, "71.06 74.11 66.66 62.23 68.51 52.79 60.28 60.42 -"),
        ("LAVT (Swin-B)", "lavt480", _LAVT, "74.46 76.89 70.94 65.81 70.97 59.23 63.34 63.62 63.66"),
        ("LAVT_one, Dice (Swin-B)", "lavt480", _LAVT, "75.41 77.31 71.86 67.65 72.53 61.22 67.41 67.45 64.84"),
        ("CGFormer (Swin-B)", "cgformer", _COPIED, "76.93 78.70 73.32 68.56 73.76 61.72 67.57 67.83 -"),
        ("DMMI (Swin-B)", "lavt480", "RIS-DMMI README", "- - - - - - 66.48 - -"),
        ("MaskRIS (Swin-B)", "caris448", _COPIED, "78.35 80.24 76.06 71.68 76.73 64.50 69.31 69.42 -"),
        ("DETRIS-B (DINOv2)", "cris", _DETRIS, "76.0 78.2 73.5 68.9 74.0 61.5 67.9 68.1 65.9"),
        ("DETRIS-L (DINOv2)", "cris", _DETRIS, "77.3 79.0 75.2 70.8 75.3 64.7 69.3 70.2 67.9"),
    ),
    *_rows(
        _REFCOCO, "precision@0.5", SINGLE,
        ("LAVT (Swin-B)", "lavt480", _LAVT, "84.46 88.07 79.12 74.44 80.68 65.66 70.81 71.54 71.16"),
        ("LAVT_one, Dice (Swin-B)", "lavt480", _LAVT, "85.87 88.47 80.20 76.19 82.50 68.03 75.82 76.12 72.57"),
    ),
    *_rows(
        _REFCOCO, "precision@0.6", SINGLE,
        ("LAVT (Swin-B)", "lavt480", _LAVT, "80.90 85.17 74.94 70.91 77.96 61.85 65.28 66.38 67.21"),
        ("LAVT_one, Dice (Swin-B)", "lavt480", _LAVT, "82.13 85.63 76.49 72.27 79.44 63.35 71.06 71.13 68.65"),
    ),
    *_rows(
        _REFCOCO, "precision@0.7", SINGLE,
        ("LAVT (Swin-B)", "lavt480", _LAVT, "75.28 79.90 69.17 65.58 72.90 55.94 58.60 59.00 61.76"),
        ("LAVT_one, Dice (Swin-B)", "lavt480", _LAVT, "76.64 80.57 70.34 66.82 74.00 57.29 63.99 64.58 63.09"),
    ),
    *_rows(
        _REFCOCO, "precision@0.8", SINGLE,
        ("LAVT (Swin-B)", "lavt480", _LAVT, "64.71 68.52 59.37 56.34 62.21 47.56 47.49 48.21 51.98"),
        ("LAVT_one, Dice (Swin-B)", "lavt480", _LAVT, "65.45 68.84 60.12 56.87 63.27 47.92 52.98 53.62 53.33"),
    ),
    *_rows(
        _REFCOCO, "precision@0.9", SINGLE,
        ("LAVT (Swin-B)", "lavt480", _LAVT, "34.30 35.69 34.45 30.23 32.36 27.24 22.73 23.10 27.30"),
        ("LAVT_one, Dice (Swin-B)", "lavt480", _LAVT, "35.30 35.71 34.94 30.15 31.99 26.98 27.31 28.03 28.14"),
    ),
    *_rows(
        _REFCOCO, "mean_iou", COMBINED,
        ("PolyFormer-B", "polygons, 512", _POLYFORMER, "75.96 77.09 73.22 70.65 74.51 64.64 69.36 69.88 -"),
        ("PolyFormer-L", "polygons, 512", _POLYFORMER, "76.94 78.49 74.83 72.15 75.71 66.73 71.15 71.17 -"),
        ("PaliGemma-896", "big_vision", "big_vision README", "76.94 - - 72.18 - - 72.22 - -"),
    ),
    *_rows(
        _REFERIT, "overall_iou", SINGLE,
        ("CMPC", _TF, "CMPC-Refseg README", "65.53"),
        ("LSCM", _TF, "LSCM-Refseg README", "66.57"),
    ),
    *_rows(
        _GREFCOCO, "overall_iou", SINGLE,
        ("ReLA (R50)", "rela_gref", _RELA, "39.53 - -"),
        ("ReLA (Swin-T)", "rela_gref", _RELA, "57.73 - -"),
        ("ReLA (Swin-B)", "rela_gref", _RELA, "62.42 - -"),
        ("DeRIS-B", _NOT_READ, _DERIS, "68.06 71.99 64.65"),
        ("DeRIS-L", _NOT_READ, _DERIS, "72.00 73.73 67.38"),
    ),
    *_rows(
        _GREFCOCO, "mean_iou", SINGLE,
        ("ReLA (R50)", "rela_gref", _RELA, "38.62 - -"),
        ("ReLA (Swin-T)", "rela_gref", _RELA, "56.86 - -"),
        ("ReLA (Swin-B)", "rela_gref", _RELA, "63.60 - -"),
        ("DeRIS-B", _NOT_READ, _DERIS, "74.10 73.72 65.63"),
        ("DeRIS-L", _NOT_READ, _DERIS, "77.67 75.30 67.99"),
    ),
    *_rows(
        _GREFCOCO, "no_target_accuracy", SINGLE,
        ("DeRIS-B", _NOT_READ, _DERIS, "77.03 75.98 63.44"),
        ("DeRIS-L", _NOT_READ, _DERIS, "82.22 78.30 66.81"),
    ),
)  # fmt: skip


def published_on(benchmark: Benchmark) -> list[Published]:
    """Return all figures on a benchmark, in the order of this file."""
    return [figure for figure in PUBLISHED if figure.benchmark == benchmark]


def benchmark_of(settings: Mapping[str, Any]) -> Benchmark | None:
    """Return the published benchmark of which `settings` (`input.sources.describe`) select a split or a part, or None.

    Whether it is the whole split shows in its size, see `Benchmark.difference`.
    """
    if settings["source"] not in ("refer", "tfds"):
        return None
    benchmark = Benchmark(settings["dataset"], settings["split_by"], settings["split"])
    return benchmark if benchmark in BENCHMARKS else None
