"""How large the benchmarks are known to be, and where people report to find their files.

Pictures and referents: the documentation of TFDS's ref_coco and the code of CRIS (utils/dataset.py) agree on them.
Sentences: those of RefCOCO as documented by FlagEval; of RefCOCO+ and RefCOCOg only the totals are certain.
"""

from __future__ import annotations

from typing import NamedTuple


class Counts(NamedTuple):
    """How many there are of each; None where no figure is known for certain."""

    pictures: int | None
    referents: int | None
    sentences: int | None


PUBLISHED: dict[tuple[str, str], dict[str, Counts]] = {
    ("refcoco", "unc"): {
        "train": Counts(16_994, 42_404, 120_624),
        "val": Counts(1_500, 3_811, 10_834),
        "testA": Counts(750, 1_975, 5_657),
        "testB": Counts(750, 1_810, 5_095),
    },
    ("refcoco", "google"): {
        "train": Counts(19_213, 40_000, None),
        "val": Counts(4_559, 5_000, None),
        "test": Counts(4_527, 5_000, None),
    },
    ("refcoco+", "unc"): {
        "train": Counts(16_992, 42_278, None),
        "val": Counts(1_500, 3_805, None),
        "testA": Counts(750, 1_975, None),
        "testB": Counts(750, 1_798, None),
    },
    ("refcocog", "umd"): {
        "train": Counts(21_899, 42_226, None),
        "val": Counts(1_300, 2_573, None),
        "test": Counts(2_600, 5_023, None),
    },
    ("refcocog", "google"): {
        "train": Counts(24_698, 44_822, None),
        "val": Counts(4_650, 5_000, None),
    },
}

PUBLISHED_SENTENCES = {
    ("refcoco", "unc"): 142_210,
    ("refcoco+", "unc"): 141_564,
    ("refcocog", "umd"): 95_010,
    ("refcocog", "google"): 95_010,
}

# Said, but not a reason to call a copy damaged: the files were renumbered in August 2023.
REPORTED = {
    ("grefcoco", "unc"): (
        "its authors report 278,232 sentences over 19,994 pictures, of which their file has 259,859: "
        "https://github.com/henghuiding/gRefCOCO/issues/6"
    ),
}

_ARCHIVE = "https://web.archive.org/web/{stamp}/https://bvisionweb1.cs.unc.edu/licheng/referit/data/{file}"
_STAMPS = {
    "refcoco": "20220413011718",
    "refcoco+": "20220413011656",
    "refcocog": "20220413012904",
    "refclef": "20220413011817",
}
_WORKING = "reported working in December 2025 in https://github.com/lichengunc/refer/issues/26"


def where_annotations(dataset: str) -> str:
    """Says where the annotations of a dataset have been found; none of these places is ours."""
    if dataset == "grefcoco":
        return "grefs(unc).json and instances.json: https://github.com/henghuiding/gRefCOCO"
    if dataset in _STAMPS:
        return f"{dataset}.zip: {_ARCHIVE.format(stamp=_STAMPS[dataset], file=f'{dataset}.zip')} ({_WORKING})"
    return f"{dataset} is no published dataset known here; take its files from where they came"


def where_pictures(dataset: str) -> str:
    """Says where the pictures of a dataset have been found."""
    if dataset == "refclef":
        archive = "https://web.archive.org/web/20220515000000/http://bvisionweb1.cs.unc.edu/licheng/referit/data/images"
        return f"saiapr_tc-12.zip: {archive}/saiapr_tc-12.zip ({_WORKING})"
    return (
        "train2014.zip (13 GB) from https://cocodataset.org/#download; train2017.zip has the same pictures, and more, "
        "under bare names"
    )
