"""Finds pretrained weights by a path or by their name on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from s2rm_jax.errors import UserError
from s2rm_jax.interop.weight_files import SAFETENSORS, TORCH, find_weights

VOCABULARY = "vocab.txt"


def locate(path_or_name: str, field: str) -> Path:
    """Returns the file of weights that a person means: a file, one in a folder, or one of the Hub, fetched once.

    Args:
        path_or_name: what the person wrote. What lies on the disk goes before what the Hub has.
        field: the field of the configuration in which it stands, for the error.

    Raises:
        UserError: there is no such path, or the Hub cannot be reached or has no such weights.
    """
    path = Path(path_or_name).expanduser()
    if path.exists() or not _is_hub_name(path_or_name):
        try:
            return find_weights(path)
        except UserError as error:
            raise UserError(f"config.{field}: {error}") from error
    return _fetch(path_or_name, field)


def find_vocabulary(path_or_name: str) -> Path | None:
    """Returns the `vocab.txt` that lies beside weights, or None if there is none; see `locate` for the argument."""
    beside = locate(path_or_name, "text.pretrained").parent / VOCABULARY
    return beside if beside.is_file() else None


def _is_hub_name(name: str) -> bool:
    looks_like_one = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None
    return looks_like_one and Path(name).suffix not in (".pth", ".pt", ".bin", ".safetensors", ".json")


def _fetch(name: str, field: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    def fetch(file: str) -> Path | None:
        """Returns the file in the cache, or None if the repository has none of this name."""
        try:
            return Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError:  # the Hub was not reached; a subclass of the error below
            raise
        except EntryNotFoundError:
            return None

    logging.set_verbosity_error()  # its warnings of every try; the outcome is told of below
    try:
        weights = fetch(SAFETENSORS) or fetch(TORCH)
        if weights is not None:
            fetch(VOCABULARY)  # for `find_vocabulary`; only text has one
            return weights
        reason = f"it has neither {SAFETENSORS} nor {TORCH}"
    except Exception as error:  # no network, no such repository, not allowed: the library raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise UserError(
        f"config.{field}={name} is no path here and was not fetched from the Hugging Face Hub ({reason}): put "
        f"{SAFETENSORS} or {TORCH} (and, for text, {VOCABULARY}) from https://huggingface.co/{name}/tree/main into a "
        f"folder and set config.{field}=FOLDER"
    )
