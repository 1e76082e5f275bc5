"""Finds the files of a dataset in the REFER layout, in the variants of folders and names that people have.

ROOT/refcoco/refs(unc).p                  who is referred to, by which sentences, in which split; or refs(unc).json
ROOT/refcoco/instances.json               pictures and masks, in COCO's format
ROOT/images/mscoco/images/train2014/      the pictures; for refclef ROOT/images/saiapr_tc-12/

gRefCOCO's file is ROOT/grefcoco/grefs(unc).json (or .p), with several objects or none for a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s2rm_jax.errors import UserError

_COCO_FOLDERS = (
    "images/mscoco/images/train2014",
    "images/mscoco/train2014",
    "images/train2014",
    "train2014",
    "coco/train2014",
    "images/train2017",
    "train2017",
    "coco/train2017",
)
_CLEF_FOLDERS = ("images/saiapr_tc-12", "saiapr_tc-12")
# Pictures that refclef refers to and that its archive of pictures lacks.
_LOST = {"refclef": frozenset({"17975.jpg", "19575.jpg", "19579.jpg"})}
_HELP = "data/README.md says where to get it"


@dataclass(frozen=True)
class PictureFolder:
    """A folder of pictures; `bare_names` where COCO_train2014_000000000072.jpg is stored as 000000000072.jpg."""

    path: Path
    bare_names: bool

    def path_of(self, file_name: str) -> Path:
        """The path of the picture that `instances.json` calls `file_name`."""
        return self.path / (_bare(file_name) if self.bare_names else file_name)


def find_annotations(root: str | Path, dataset: str, split_by: str) -> tuple[Path, Path]:
    """Returns the paths of `refs(SPLIT_BY).p` (or `.json`, or gRefCOCO's `grefs(SPLIT_BY)`) and `instances.json`.

    Raises:
      UserError: a folder or file is missing; names what is there instead.
    """
    if not str(root):
        raise UserError("the folder of the data is not given; set the source's root to it (data/README.md)")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"the folder of the data, {root}, does not exist; {_HELP}")
    folder = root / dataset
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; {root} has {_listing(root, '*/')}; {_HELP}")
    instances = folder / "instances.json"
    candidates = [folder / f"{stem}({split_by}){suffix}" for stem in ("refs", "grefs") for suffix in (".p", ".json")]
    refs = next((path for path in candidates if path.is_file()), None)
    if refs is None and any(folder.glob("*/*/dataset_info.json")):
        raise UserError(
            f"{folder} is what data/build.py wrote for TFDS, which only the source 'tfds' reads; give the folder of "
            f"the REFER files, with {candidates[0].name} ({_HELP})"
        )
    if refs is None:
        raise UserError(f"{candidates[0]} not found; {folder} has {_listing(folder, '*refs(*')}; {_HELP}")
    if not instances.is_file():
        raise UserError(f"{instances} not found; it comes in the same archive as {refs.name}; {_HELP}")
    return refs, instances


def is_generalised(refs_path: Path) -> bool:
    """Whether a file of referents is in gRefCOCO's format."""
    return refs_path.name.startswith("grefs(")


def may_be_missing(dataset: str, file_name: str) -> bool:
    """Whether a picture is one that the published pictures of a dataset lack."""
    return file_name in _LOST.get(dataset, ())


def find_pictures(root: Path, dataset: str, image_root: Path | None, file_name: str) -> PictureFolder:
    """Returns the folder in which the picture `file_name` lies, as the first that is tried and has it.

    Args:
      root: of the layout.
      dataset: "refclef" has pictures of its own, all others COCO's.
      image_root: where the pictures are if not under `root`: their folder, or one above as in the list of variants.
      file_name: of one picture, as `instances.json` names it.

    Raises:
      UserError: no folder has it; names what was tried.
    """
    variants = _CLEF_FOLDERS if dataset == "refclef" else _COCO_FOLDERS
    folders = [root / variant for variant in variants]
    if image_root is not None:
        folders = [image_root, *(image_root / variant for variant in variants)]
    names = {False: file_name, True: _bare(file_name)}
    for folder in folders:
        for bare_names in names:
            pictures = PictureFolder(folder, bare_names)
            if pictures.path_of(file_name).is_file():
                return pictures
    there = [str(folder) for folder in folders if folder.is_dir()]
    state = f"these folders exist, without it: {', '.join(there)}" if there else "none of these folders exists"
    tried = ", ".join(str(folder) for folder in folders)
    raise UserError(
        f"the picture {file_name} (or {names[True]}) was not found; {state}; tried {tried}; "
        "unpack the pictures into one of them or give their folder as image_root; data/README.md says where to get them"
    )


def _bare(file_name: str) -> str:
    return file_name.rsplit("_", 1)[-1]


def _listing(folder: Path, pattern: str) -> str:
    names = sorted(path.name for path in folder.glob(pattern))
    return ", ".join(names[:8]) if names else f"nothing like {pattern}"
