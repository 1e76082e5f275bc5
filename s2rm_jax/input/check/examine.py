"""Examine a folder of REFER data: annotations, masks and images of all datasets in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input.check.annotations import Instances, examine_annotations, load_instances
from s2rm_jax.input.check.files import (
    KNOWN,
    REPORTED,
    Found,
    ImageFile,
    ailments,
    discover,
    where_annotations,
    where_images,
)
from s2rm_jax.input.check.report import Diagnosis, Report
from s2rm_jax.input.progress_bar import progress_bar
from s2rm_jax.input.refer_annotations import ImageFolder, find_image_folder, load_refs, may_be_missing


def examine(
    root: str | Path,
    dataset: str = "",
    split_by: str = "",
    *,
    image_root: str | Path = "",
    quick: bool = False,
    threads: int = 0,
    quiet: bool = False,
) -> Report:
    """Examine every dataset under `root`, or the one that is asked for.

    Args:
      root: the folder of the layout (data/README.md).
      dataset: only this one, such as "refcoco"; "" examines all that are there.
      split_by: only with these splits, such as "unc".
      image_root: where the images are if not under `root`.
      quick: read only the headers of images: finds missing ones and wrong sizes, not truncated ones.
      threads: that decode images; 0 takes one per core.
      quiet: show no progress.

    Raises:
      UserError: there is nothing to examine. What is wrong with data that is there is in the report.
    """
    root = Path(root).expanduser()
    images_root = Path(image_root).expanduser() if image_root else None
    found = discover(root, dataset, split_by)
    seen: dict[ImageFile, tuple[str, str]] = {}  # datasets share images, which are looked at once
    diagnoses = []
    for item in found:
        diagnosis = Diagnosis(item.dataset, item.split_by, str(item.refs))
        diagnoses.append(diagnosis)
        images = _examine_files(diagnosis, item, quiet)
        folder = _find_folder(diagnosis, root, images_root, [image["file_name"] for image in images])
        if folder is None:
            continue
        files = [ImageFile(folder.path_of(p["file_name"]), p["height"], p["width"]) for p in images]
        new = [file for file in dict.fromkeys(files) if file not in seen]
        results = ailments(new, quick, threads)
        seen.update(zip(new, progress_bar(results, f"{item.dataset}: images", len(new), quiet=quiet), strict=True))
        diagnosis.images_checked = len(files)
        _add_ailments(diagnosis, [seen[file] for file in files])
    there = {item.dataset for item in found}
    absent = () if dataset else tuple(name for name in KNOWN if name not in there)
    return Report(str(root), quick, tuple(diagnoses), absent)


def _examine_files(diagnosis: Diagnosis, item: Found, quiet: bool) -> list[dict[str, Any]]:
    """Examine the two annotation files; returns the entries of the images that referents are in."""
    get_again = f"get {where_annotations(item.dataset)}"
    refs, instances = [], Instances({}, {}, (), ())
    try:
        refs = load_refs(item.refs)
        instances = load_instances(item.instances)
    except UserError as error:
        diagnosis.add("annotation files that cannot be read", [str(error)], get_again)
        return []
    ids = examine_annotations(diagnosis, refs, instances, quiet)
    if diagnosis.key in REPORTED:
        diagnosis.notes.append(REPORTED[diagnosis.key])
    return [instances.images[id] for id in ids]


def _find_folder(
    diagnosis: Diagnosis, root: Path, image_root: Path | None, file_names: list[str]
) -> ImageFolder | None:
    """Find the folder that has the first image, or the next one that is anywhere; adds a problem if none is."""
    problem = ""
    for file_name in file_names:
        try:
            folder = find_image_folder(root, diagnosis.dataset, image_root, file_name)
        except UserError as error:
            problem = problem or str(error)
            continue
        diagnosis.images = str(folder.path)
        return folder
    if problem:
        diagnosis.add("no image is there", [problem], f"get {where_images(diagnosis.dataset)}")
    return None


def _add_ailments(diagnosis: Diagnosis, results: list[tuple[str, str]]) -> None:
    cases: dict[str, list[str]] = {}
    for kind, case in results:
        if kind:
            cases.setdefault(kind, []).append(case)
    missing = cases.get("missing images", [])
    known = [name for name in missing if may_be_missing(diagnosis.dataset, name)]
    if known:
        diagnosis.notes.append(f"missing in every known copy: {', '.join(known)}")
        cases["missing images"] = [name for name in missing if name not in known]
    for kind, names in cases.items():
        diagnosis.add(kind, names, f"unpack the archive of the images again, or get {where_images(diagnosis.dataset)}")
