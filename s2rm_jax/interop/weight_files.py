"""Read and write files of weights: safetensors, and PyTorch files without running code from them.

The format is detected from the contents, not from the name.
"""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from s2rm_jax.errors import UserError, first_of, one_line

# The files of a folder in the layout of Hugging Face.
SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
# The first of these that exists is read; safetensors are preferred, because they cannot hold code.
NAMES = (SAFETENSORS, f"{SAFETENSORS}.index.json", TORCH, f"{TORCH}.index.json")

# What training programs store beside parameters: settings, and scores as scalars of NumPy. Nothing reads their values.
_HARMLESS = ("argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")

# What the Trainer of transformers stores beside the weights: the names begin with these.
_OTHER_FILES = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")

_AGAIN = "download or export it again"

# Training programs store the parameters under one of these keys, next to the state of the optimizer.
_INNER = ("model", "state_dict", "model_state_dict", "net", "module")


class _Ignored:
    """Stand-in for a harmless object in a pickle, so that not even its own code runs."""

    def __new__(cls, *_: Any) -> _Ignored:
        """Ignore the arguments."""
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Ignore the state."""


def find_weights(path: Path, *, only_one: bool = False) -> Path:
    """Return the file of weights at `path`, which is that file or a folder in the layout of Hugging Face.

    Of several in a folder, the first of NAMES is returned: on the Hugging Face Hub they hold the same weights.

    Args:
        path: the file or the folder.
        only_one: refuse a folder with several, because they may differ.

    Raises:
        UserError: `path` does not exist, the folder has no weights, or it has several and `only_one` is set.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"weights {path} not found; check the path")
    found = [path / name for name in NAMES if (path / name).is_file()]
    if not found:
        others = sorted(
            file.name
            for file in path.iterdir()
            if file.suffix in (".pt", ".pth", ".bin", ".ckpt") and not file.name.startswith(_OTHER_FILES)
        )
        advice = f"it must contain {SAFETENSORS} or {TORCH}"
        if others:
            advice = f"rename {first_of(others, ' or ')} to {TORCH}"
        raise UserError(f"no weights found in the folder {path}; {advice}")
    if only_one and found[1:]:
        names = " and ".join(file.name for file in found)
        raise UserError(f"{path} has {names}, which may differ; remove those that are not meant")
    return found[0]


def require_torch_for(path: Path) -> None:
    """Raise UserError if a file of weights, or a part that an index names, needs PyTorch and it is not installed."""
    for part in _parts_of(path) if path.name.endswith(".index.json") else [path]:
        if _is_torch(_head(part)) and importlib.util.find_spec("torch") is None:
            raise _needs_torch(part)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Return every array of a checkpoint by its name; floating-point numbers of 16 or 64 bits become float32.

    Reads safetensors files, PyTorch files (`.pth`, `.bin`; these need torch), and the index files (`.index.json`) of
    either, which list several parts.

    Raises:
        UserError: the file is missing, damaged, of another kind, or contains more than arrays.
    """
    head = _head(path)
    if path.name.endswith(".index.json"):
        arrays: dict[str, np.ndarray] = {}
        for part in _parts_of(path):
            arrays |= read_weights(part)
        return arrays
    if _is_safetensors(head):
        return _read_safetensors(path)
    if _is_torch(head):
        return _read_torch(path)
    what = "is empty" if not head else "is neither a safetensors nor a PyTorch file"
    raise UserError(f"{path} {what}; give the file of the weights, or {_AGAIN}")


def write_safetensors(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write arrays by name; raise OSError if the file cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode  # follows the umask; safetensors would make the file private
    try:
        save_file(dict(arrays), path, metadata={"format": "pt"})  # transformers refuses a file without it
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)


def _head(path: Path) -> bytes:
    """Return the first bytes of a file, which tell its format."""
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise UserError(f"weights {path} cannot be read: {error.strerror}; check the path") from error


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{"


def _is_torch(head: bytes) -> bool:
    # The length with which safetensors begin may look like the first bytes of a zip or a pickle.
    return not _is_safetensors(head) and head.startswith((b"PK", b"\x80"))


def _needs_torch(path: Path) -> UserError:
    return UserError(
        f"reading {path} needs PyTorch: pip install -e '.[torch]', or give the same weights as {SAFETENSORS}"
    )


def _parts_of(index: Path) -> list[Path]:
    """Return the files that an index of weights names."""
    try:
        # Parts are read from the folder of the index only, whatever folders it names.
        names = {Path(name).name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{index} is not an index of weights ({error}); {_AGAIN}") from error
    if not names:
        raise UserError(f"the index {index} names no files; {_AGAIN}")
    for name in sorted(names):
        if "\0" in name or name.endswith(".index.json"):
            raise UserError(f"{index} is not an index of weights (it names {name!r} as a part); {_AGAIN}")
    return [index.parent / name for name in sorted(names)]


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: _float32(array) for name, array in load_file(path).items()}
    except AttributeError as error:  # NumPy has no such type: float8 and smaller
        raise UserError(
            f"{path} has arrays of a type that cannot be read ({one_line(error)[:200]}); give the weights as float32, "
            "float16 or bfloat16"
        ) from error
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise _needs_torch(path) from None
    try:
        # weights_only: torch's restricted unpickler, because a pickle from the network can run any code. A file object
        # is given, because torch detects the format of a path from its suffix. Warnings concern unusual pickles.
        harmless = torch.serialization.safe_globals([(_Ignored, name) for name in _HARMLESS])
        with warnings.catch_warnings(action="ignore"), harmless, path.open("rb") as file:
            _require_uncompressed(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of exceptions
        raise _unreadable(path, error) from error

    def is_tensors(value: Any) -> bool:
        return isinstance(value, Mapping) and any(isinstance(item, torch.Tensor) for item in value.values())

    inner = [content, *(content[name] for name in _INNER if name in content)] if isinstance(content, Mapping) else []
    tensors = next(filter(is_tensors, inner), None)
    if tensors is None:
        holds = ", ".join(map(repr, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{path} has no parameters by name (it contains {holds}); give the file of a state_dict")
    named = {str(name): value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    try:
        return {name: _numpy(value) for name, value in named.items()}
    except Exception as error:  # sparse, quantized, or on no device
        raise _unreadable(path, error) from error


def _require_uncompressed(file: IO[bytes]) -> None:
    """Check that a file is not compressed: torch does not compress, and a megabyte can unpack to many."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("its parts are compressed, which torch.save does not do")
    file.seek(0)


def _numpy(tensor: Any) -> np.ndarray:
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"an array of shape {list(tensor.shape)} repeats a few stored numbers")
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()


def _float32(array: np.ndarray) -> np.ndarray:
    # The bfloat16 of ml_dtypes is not a subtype of np.floating.
    is_float = np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"
    return array.astype(np.float32, copy=False) if is_float else array


def _unreadable(path: Path, error: Exception) -> UserError:
    named = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"class ([\w.]+)", str(error))
    if "weights_only" in str(error).lower() or "weights only" in str(error).lower():
        what = f" ({named[1]})" if named else ""
        return UserError(
            f"{path} contains more than arrays{what} and is not loaded, because that could run code: give the weights "
            f"as {SAFETENSORS}, or save their state_dict alone"
        )
    return _damaged(path, error)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or truncated ({one_line(error)[:200]}); {_AGAIN}")
