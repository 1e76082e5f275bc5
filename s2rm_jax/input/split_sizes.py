"""The published sizes of the splits of the REFER datasets.

Sources. Images and referents: the documentation of TFDS's ref_coco and the code of CRIS (utils/dataset.py), which
agree. Expressions of RefCOCO: FlagEval's documentation. Expressions of RefCOCO+ and RefCOCOg add up to the published
totals of 141,564 (unc), 95,010 (umd) and 95,010 (google).
"""

from __future__ import annotations

from typing import NamedTuple


class SplitSize(NamedTuple):
    """The size of a split; None where no figure is certain."""

    images: int | None
    referents: int | None
    expressions: int | None


# By (dataset, split_by), then by split.
SPLIT_SIZES: dict[tuple[str, str], dict[str, SplitSize]] = {
    ("refcoco", "unc"): {
        "train": SplitSize(16_994, 42_404, 120_624),
        "val": SplitSize(1_500, 3_811, 10_834),
        "testA": SplitSize(750, 1_975, 5_657),
        "testB": SplitSize(750, 1_810, 5_095),
    },
    ("refcoco", "google"): {
        "train": SplitSize(19_213, 40_000, None),
        "val": SplitSize(4_559, 5_000, None),
        "test": SplitSize(4_527, 5_000, None),
    },
    ("refcoco+", "unc"): {
        "train": SplitSize(16_992, 42_278, 120_191),
        "val": SplitSize(1_500, 3_805, 10_758),
        "testA": SplitSize(750, 1_975, 5_726),
        "testB": SplitSize(750, 1_798, 4_889),
    },
    ("refcocog", "umd"): {
        "train": SplitSize(21_899, 42_226, 80_512),
        "val": SplitSize(1_300, 2_573, 4_896),
        "test": SplitSize(2_600, 5_023, 9_602),
    },
    ("refcocog", "google"): {
        "train": SplitSize(24_698, 44_822, 85_474),
        "val": SplitSize(4_650, 5_000, 9_536),
    },
}
