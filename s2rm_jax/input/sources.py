"""The sources of examples by name, as `config.input.source.name` selects them."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from s2rm_jax.config import did_you_mean, similar_fields
from s2rm_jax.errors import UserError, one_line
from s2rm_jax.input.custom import coco_json_source, find_file, json_lines_source
from s2rm_jax.input.example import Source
from s2rm_jax.input.huggingface import HuggingFaceSource, find_dataset
from s2rm_jax.input.mixture import MixtureSource, combined_source, parse_dataset, parse_split
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.refer_annotations import find_annotations
from s2rm_jax.input.synthetic import SyntheticSource
from s2rm_jax.input.tfds import TfdsSource, newest_version
from s2rm_jax.io import on_bucket


def mixture_source(split: str, *, parts: Any, training: bool = False, on_bad_example: str = "stop") -> Source:
    """Build the sources in `parts` and mix them.

    Args:
        split: the split of every part. "NAME:SPLIT" selects that split of the part NAME alone, without a mixture.
        parts: a ConfigDict of names, each with the settings of a source and its "weight" (default 1).
        training: mix by the weights; otherwise each image of each part occurs once.
        on_bad_example: config.input.on_bad_example.
    """

    def build(name: str) -> Source:
        with _naming_part(name):
            return build_source(_without_weight(parts[name]), split, training=training, on_bad_example=on_bad_example)

    part, split = parse_split(split, parts)
    if part:
        return build(part)
    weights = {name: parts[name].get("weight", 1.0) for name in sorted(parts)}
    return MixtureSource({name: build(name) for name in weights}, weights if training else None)


@contextmanager
def _naming_part(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        error.args = (f"parts.{name}: {error}",)
        raise


SOURCES: dict[str, Any] = {
    "synthetic": SyntheticSource,
    "refer": ReferSource,
    "tfds": TfdsSource,
    "combined": combined_source,
    "coco_json": coco_json_source,
    "json_lines": json_lines_source,
    "hf": HuggingFaceSource,
    "mixture": mixture_source,
}


def names_class(config: ConfigDict) -> bool:
    """Return whether a source, or a part of a mixture, is named "package.module:Class"."""
    parts = config.get("parts")
    inner = parts.values() if isinstance(parts, ConfigDict) else ()
    return ":" in str(config.get("name")) or any(names_class(one) for one in inner if isinstance(one, ConfigDict))


def _find(name: Any) -> Any:
    """Return the source of a name, None if there is none.

    Raises:
        UserError: "package.module:Class" is not a subclass of `Source` that can be imported.
    """
    if not (own := re.fullmatch(r"(\w+(?:\.\w+)*):(\w+)", str(name))):
        return SOURCES.get(str(name))
    module, class_name = own.groups()
    try:
        found = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"config.input.source.name is {name!r}, which cannot be imported ({one_line(error)}); start "
            "python -m s2rm_jax.COMMAND in the folder of the module, or set PYTHONPATH"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, Source)):
        raise UserError(
            f"config.input.source.name is {name!r}, which is not a subclass of Source (s2rm_jax/input/example.py)"
        )
    return found


def build_source(config: ConfigDict, split: str, *, training: bool = False, on_bad_example: str = "stop") -> Source:
    """Build one split of the source `config.name`; the other fields are the arguments of that source.

    The name is one of SOURCES, or "package.module:Class" for a subclass of `Source` outside this package.

    With `training` the length is an epoch of training, in which a mixture repeats images. Otherwise each image occurs
    once, whatever the split. `on_bad_example` is config.input.on_bad_example.

    Raises:
        UserError: unknown name or field, or an error of the source itself.
    """
    name, arguments = _arguments(config, split, training=training, on_bad_example=on_bad_example)
    source: Source = _find(name)(*arguments.args, **arguments.kwargs)
    return source


def describe(config: ConfigDict, split: str) -> dict[str, Any]:
    """Return the settings that `build_source` uses, defaults included, as JSON; its name is under "source".

    Folders on a disk are absolute. A split "PART:SPLIT" of a mixture or of combined datasets gives the settings of that
    part.

    Raises:
        UserError: as `build_source`, for errors that show without reading files.
    """
    name, arguments = _arguments(config, split, training=False)
    arguments.apply_defaults()
    settings = {"source": name} | arguments.arguments
    for field in ("training", "on_bad_example"):  # the same data
        settings.pop(field, None)
    _make_absolute(settings)
    if name == "mixture":
        part, part_split = parse_split(split, settings["parts"])
        if part:
            return describe(_without_weight(settings["parts"][part]), part_split)
        settings["parts"] = settings["parts"].to_dict()
        for one in settings["parts"].values():
            _make_absolute(one)
    if name == "combined":
        split_by = dict(map(parse_dataset, settings["datasets"]))
        part, part_split = parse_split(split, split_by)
        if part:
            del settings["datasets"], settings["held_out"]
            settings |= {"source": "refer", "dataset": part, "split_by": split_by[part], "split": part_split}
    return json.loads(json.dumps(settings, default=str))


def with_defaults(source: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a source and of the parts of a mixture, with the defaults of the fields left out."""
    reader = _find(source.get("name"))
    parameters = inspect.signature(reader).parameters.values() if reader else ()
    given = {name: with_defaults(value) if isinstance(value, dict) else value for name, value in source.items()}
    return {one.name: one.default for one in parameters if one.default is not one.empty} | given


def _make_absolute(settings: dict[str, Any]) -> None:
    for field in _FOLDERS:
        value = str(settings.get(field) or "")
        is_name = field == "path" and not Path(value).expanduser().exists()  # of a dataset on the Hub
        if value and "://" not in value and not is_name:
            settings[field] = str(Path(value).expanduser().absolute())


_FOLDERS = ("root", "image_root", "path")
_GIVEN_FIELDS = (*_FOLDERS, "dataset", "split_by", "sentence_field", "overlap")
_GIVEN = re.compile(rf"((?:[\w+-]+\.)*(?:{'|'.join(_GIVEN_FIELDS)}))=(.*)")


def with_data(source: ConfigDict, given: Sequence[str]) -> ConfigDict:
    """Return the settings of a source for other data, or for data that moved after a run was trained.

    Args:
        source: the section config.input.source.
        given: each DIR, the new root of a source that has one, or FIELD=VALUE, where FIELD is root, image_root, path,
            dataset, split_by, sentence_field, overlap or, in a mixture, one of them after the name of the part, such as
            parts.mine.root.

    Raises:
        UserError: there is no such field, or DIR is ambiguous; names the available folders.
    """
    fields = source.to_dict()
    folders = _folder_fields(fields)
    main = [name for name in folders if not name.endswith("image_root")]
    for one in given:
        match = _GIVEN.fullmatch(one)
        if not match and (misspelt := re.match(r"([\w.+-]+)=", one)) and not Path(one).exists():
            raise UserError(f"--data {one}: {misspelt[1]!r} is not one of {', '.join(_GIVEN_FIELDS)}")
        name, value = match.groups() if match else ("root", one)
        if not match and "root" not in folders and len(main) == 1:
            (name,) = main
        field = name.rpartition(".")[2]
        if field in _FOLDERS and name not in folders:
            available = ", ".join(f"--data {folder}=DIR" for folder in folders)
            advice = f"use one of: {available}" if available else "it reads no files"
            raise UserError(f"--data {one}: the source {source.name!r} of this run has no folder {name!r}; {advice}")
        section = folders[name] if field in _FOLDERS else _section(fields, name)
        if section is None:
            raise UserError(
                f"--data {one}: the source {source.name!r} of this run has no field {name!r}; leave it out, or "
                "give the folder of other data"
            )
        section[field] = os.path.expanduser(value) if field in _FOLDERS else value  # shells do not, behind "="
    return ConfigDict(fields)


def _section(fields: Any, name: str) -> dict[str, Any] | None:
    """Return the settings of the source that has a field, given by its dotted name; None if there is none."""
    *sections, field = name.split(".")
    section = reduce(lambda tree, key: tree.get(key) if isinstance(tree, dict) else None, sections, fields)
    kind = _find(section.get("name")) if isinstance(section, dict) else None
    return section if kind and field in inspect.signature(kind).parameters else None


def _folder_fields(fields: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Return the sections that have folders, by the dotted name of each field for a folder."""
    names: list[str] = [name for name in ("path", "root") if name in fields]
    kind = _find(fields.get("name"))
    names += ["image_root"] if kind and "image_root" in inspect.signature(kind).parameters else []
    found = {f"{prefix}{name}": fields for name in names}
    for name, value in fields.items():
        if isinstance(value, dict):
            found |= _folder_fields(value, f"{prefix}{name}.")
    return found


def find_source(config: ConfigDict, split: str) -> None:
    """Check quickly that the first files that `build_source` reads exist.

    Raises:
        UserError: as `build_source`, for errors that show without reading the files.
    """
    name, arguments = _arguments(config, split, training=True)
    arguments.apply_defaults()
    fields = arguments.arguments
    match name:
        case "refer":
            find_annotations(fields["root"], fields["dataset"], fields["split_by"])
        case "tfds":
            newest_version(fields["root"], fields["dataset"], fields["split_by"])
        case "combined":
            for dataset in fields["datasets"]:
                find_annotations(fields["root"], *parse_dataset(dataset))
        case "coco_json" | "json_lines":
            find_file(fields["root"], fields["file"], split)
        case "hf":
            find_dataset(fields["path"])
        case "mixture":
            part, split = parse_split(split, fields["parts"])
            for one, settings in fields["parts"].items():
                if part in ("", one):
                    with _naming_part(one):
                        find_source(_without_weight(settings), split)
        case _:
            pass  # "synthetic" reads no files; without a case here, missing files are found later, by `build_source`


def _arguments(config: ConfigDict, split: str, **common: Any) -> tuple[str, inspect.BoundArguments]:
    """Return the name of the source and its arguments; raise a UserError if they do not match its signature.

    The `common` ones are added for the sources that take them.
    """
    fields = dict(config)
    name = fields.pop("name", "")
    source = _find(name)
    if source is None:
        raise UserError(
            f"config.input.source.name is {name!r}; it must be one of: {', '.join(sorted(SOURCES))}; or "
            "'package.module:Class'"
        )
    if name == "mixture":
        parts = fields.get("parts")
        if not isinstance(parts, ConfigDict) or not all(isinstance(part, ConfigDict) for part in parts.values()):
            raise UserError(
                "the parts of a mixture must be a ConfigDict {name: {'name': SOURCE, 'weight': 1.0, ...}, ...}"
            )
    if name == "tfds":
        fields.pop("image_root", None)  # of S2RM_IMAGES; its records contain the images
    signature = inspect.signature(source)
    # None is a path that is not set, as by os.environ.get.
    paths = {field for field, argument in signature.parameters.items() if argument.default == ""}
    fields = {field: value for field, value in fields.items() if value is not None or field not in paths}
    _check_fields(name, signature, fields)
    for field in _FOLDERS:
        if on_bucket(fields.get(field) or ""):
            raise UserError(
                f"the {field} of the source {name!r} is {fields[field]}, but data is read from disks only; mount the "
                "bucket (with gcsfuse), or copy the data; a dataset on the Hugging Face Hub is USER/NAME"
            )
    fields |= {field: value for field, value in common.items() if field in signature.parameters}
    return name, signature.bind(split, **fields)


# Of the annotations of a source's arguments: whether a value is right, and what the error says.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (lambda value: isinstance(value, int) and not isinstance(value, bool), "an integer"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "str | Path": (lambda value: isinstance(value, str | os.PathLike), "a path"),
    "Sequence[str]": (
        lambda value: isinstance(value, list | tuple) and all(isinstance(one, str) for one in value),
        "a list of strings",
    ),
}
_ANY: tuple[Callable[[Any], bool], str] = (lambda _: True, "")
_NOT_FIELDS = ("split", "training", "on_bad_example")  # arguments that `build_source` gives


def _check_fields(name: str, signature: inspect.Signature, fields: Mapping[str, Any]) -> None:
    """Raise UserError if a field is unknown or missing, or if its value has another type than the source expects."""
    arguments = {field: one for field, one in signature.parameters.items() if field not in _NOT_FIELDS}
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in arguments.values()):
        return  # it checks its fields itself
    for field, value in fields.items():
        if field not in arguments:
            hint = did_you_mean(similar_fields(field, list(arguments)), f"it has {', '.join(arguments)}")
            raise UserError(f"config.input.source.{field}: the source {name!r} has no such field; {hint}")
        kind = arguments[field].annotation  # a string in modules that postpone the evaluation of annotations
        is_right, what = _KINDS.get(kind if isinstance(kind, str) else inspect.formatannotation(kind), _ANY)
        if not is_right(value):
            raise UserError(f"config.input.source.{field} is {value!r:.60}; it must be {what}")
    for field, argument in arguments.items():
        if argument.default is inspect.Parameter.empty and field not in fields:
            raise UserError(f"config.input.source has no field {field!r}, which the source {name!r} needs")


def _without_weight(part: ConfigDict) -> ConfigDict:
    return ConfigDict({field: value for field, value in part.items() if field != "weight"})
