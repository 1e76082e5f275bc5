"""Segment the referents of expressions in an image, with the network exported into the folder of this file.

    python segment.py street.jpg "the man in red" "the car behind him" --out masks

writes mask_1.png, mask_2.png, ...: 8 bits, 0 or 255, in the size of the upright image. From Python:

    network = load_network("FOLDER")
    masks = segment(network, load_image("street.jpg"), ["the man in red"])  # boolean [K, height, width]

It needs numpy, pillow and tokenizers; for torch_model.py also torch and safetensors, for *.stablehlo files jax,
flatbuffers and safetensors, for *.onnx files onnxruntime. The package that trained the network is not needed.
preprocessing.json describes how images and expressions are prepared, for other implementations.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

try:
    import numpy as np
    from PIL import Image, ImageOps
    from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
    from tokenizers import Tokenizer
except ImportError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}; it needs: python -m pip install numpy pillow tokenizers")

MAX_PIXELS = 80_000_000  # a small file can unpack to an enormous image
# Pillow warns of images with more pixels than `load_image` takes. Filters of the user come first.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)
# Pillow's other readers are rare, and the one for EPS starts an external program.
Image.init()
FORMATS: list[str] = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *({"AVIF"} & Image.OPEN.keys())]
AT_ONCE = 32  # expressions per call of `ground`; more take several calls on the same encoded image


class LoadError(ValueError):
    """An image or a network cannot be loaded; the message is one line."""


class Network(NamedTuple):
    """An exported network: B images, K expressions of each, L tokens an expression."""

    encode_image: Callable[[np.ndarray], Any]  # float32 [B, H, W, 3] -> features of the images
    # features, int32 [B, K, L], bool [B, K, L] -> logits float32 [B, K, H, W]; the mask is logits > 0. A network with a
    # no-target head also returns float32 [B, K], positive for an expression without referent.
    ground: Callable[[Any, np.ndarray, np.ndarray], Sequence[np.ndarray]]
    tokenizer: Tokenizer  # of the expressions, with padding to L tokens
    settings: dict[str, Any]  # contents of preprocessing.json


def load_network(folder: str | Path) -> Network:
    """Load the network of a folder, with the runtime that it was exported for.

    Raises:
        LoadError: there is no such folder, or a file in it is missing or damaged.
        ImportError: the runtime is not installed.
    """
    if not folder:
        raise LoadError("the path of the folder is empty; give the folder of an exported network")
    folder = Path(os.path.expanduser(folder))
    if folder.is_file():
        raise LoadError(f"{folder} is a file; give its folder")
    if not folder.is_dir():
        raise LoadError(f"folder {folder} not found; check the path")
    with explaining(f"the network in {folder} cannot be loaded", "export it again"):
        settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
        runtime = {"pytorch": load_pytorch, "stablehlo": load_stablehlo, "onnx": load_onnx}[settings["format"]]
        return Network(*runtime(folder), Tokenizer.from_file(str(folder / "tokenizer.json")), settings)


@contextmanager
def explaining(problem: str, advice: str) -> Iterator[None]:
    """Raise a LoadError of one line for the many kinds of exceptions that libraries raise for damaged files."""
    try:
        yield
    except (LoadError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename:  # Pillow raises OSError without it for damaged files
            raise LoadError(f"{error.filename} cannot be read ({error.strerror}); check the path") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LoadError(f"{problem} ({reason}); {advice}") from error


def load_pytorch(folder: Path) -> tuple[Callable, Callable]:
    """Return `encode_image` and `ground` in PyTorch, on a GPU if there is one."""
    import torch

    specification = importlib.util.spec_from_file_location("torch_model", folder / "torch_model.py")
    assert specification is not None and specification.loader is not None
    torch_model = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(torch_model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = torch_model.S2RMModel.from_pretrained(folder).to(device)
    except torch_model.LoadError as error:
        raise LoadError(str(error)) from error

    @torch.no_grad()
    def encode_image(images: np.ndarray) -> tuple[Any, tuple[int, int]]:
        channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
        return model.encode_image(channels_first), images.shape[1:3]

    @torch.no_grad()
    def ground(features: Any, tokens: np.ndarray, token_mask: np.ndarray) -> Sequence[np.ndarray]:
        maps, size = features
        inputs = torch.from_numpy(tokens).long().to(device), torch.from_numpy(token_mask).to(device)
        output = model.ground(maps, *inputs, size)
        found = (output.logits, output.no_target_logits)
        return [x.float().cpu().numpy() for x in found if x is not None]

    return encode_image, ground


def load_onnx(folder: Path) -> tuple[Callable, Callable]:
    """Return `encode_image` and `ground` in ONNX Runtime."""
    import onnxruntime

    def session(name: str) -> Any:
        return onnxruntime.InferenceSession(str(folder / name), providers=onnxruntime.get_available_providers())

    encoder, grounder = session("encode_image.onnx"), session("ground.onnx")
    names = [item.name for item in grounder.get_inputs()]

    def ground(features: Any, tokens: np.ndarray, token_mask: np.ndarray) -> Sequence[np.ndarray]:
        return grounder.run(None, dict(zip(names, [*features, tokens, token_mask], strict=True)))

    return lambda images: encoder.run(None, {"images": images}), ground


def load_stablehlo(folder: Path) -> tuple[Callable, Callable]:
    """Return `encode_image` and `ground` in JAX, compiled for its default device."""
    import jax
    from jax import export
    from safetensors.numpy import load_file

    weights = jax.device_put(load_file(folder / "model.safetensors"))

    def program(name: str) -> Callable:
        return jax.jit(export.deserialize(bytearray((folder / name).read_bytes())).call)

    encoder, grounder = program("encode_image.stablehlo"), program("ground.stablehlo")

    def ground(features: Any, tokens: np.ndarray, token_mask: np.ndarray) -> Sequence[np.ndarray]:
        # A program is compiled for each number of expressions, so that number is padded to a power of two.
        count = tokens.shape[1]
        padding = (1 << (count - 1).bit_length()) - count
        tokens, token_mask = (np.pad(x, ((0, 0), (0, padding), (0, 0)), "edge") for x in (tokens, token_mask))
        return [np.asarray(x)[:, :count] for x in grounder(weights, features, tokens, token_mask)]

    return lambda images: encoder(weights, images), ground


def decode_image(path: str | Path) -> Image.Image:
    """Return an image as Pillow decodes it, upright."""
    too_large = LoadError(f"{path} has more than {MAX_PIXELS:,} pixels; scale it down")
    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise too_large
            if file.mode == "I" and isinstance(file, TiffImageFile) and file.tag_v2.get(BITSPERSAMPLE) != (16,):
                raise LoadError(f"{path} has 32-bit values of unknown range; save it with 8 or 16 bits")
            return ImageOps.exif_transpose(file)
    except Image.DecompressionBombError:  # of more than 179 million
        raise too_large from None


def load_image(path: str | Path) -> np.ndarray:
    """Return an image as RGB values uint8 [height, width, 3], upright, with transparency on white.

    Raises:
        LoadError: the file is missing, damaged or not an image in one of FORMATS, or has too many pixels or values of
            unknown range.
    """
    path = os.path.expanduser(path)
    with explaining(f"{path} is damaged or of an unsupported kind", "download or copy it again, or convert it"):
        image = decode_image(path)
    if image.mode == "F":
        raise LoadError(f"{path} has floating-point values, whose range is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise LoadError(f"{path} has values that are not from 0 to 65,535; save it with 8 or 16 bits")
        grey = (values.astype(np.uint32) + 128) // 257
        image = Image.fromarray(np.where(values == image.info.get("transparency"), 255, grey).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def prepare_image(image: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Resize, scale and normalize an image: uint8 [height, width, 3] -> float32 [H, W, 3]."""
    height, width = settings["image"]["size"]
    if image.shape[:2] != (height, width):
        image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    mean, std = np.array(settings["image"]["mean"]), np.array(settings["image"]["std"])
    return image * (1 / (255 * std)).astype(np.float32) + (-mean / std).astype(np.float32)


def prepare_expressions(expressions: str | Sequence[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the token ids int32 [K, L] of K expressions and their mask bool [K, L], false for padding."""
    expressions = [expressions] if isinstance(expressions, str) else list(expressions)
    if not expressions:
        raise ValueError("no expression given; describe an object in the image")
    for expression in expressions:
        if any("\ud800" <= letter <= "\udfff" for letter in expression):
            raise ValueError(f"expression {expression!r} is not valid Unicode; write it in UTF-8")
    encoded = tokenizer.encode_batch(expressions)
    tokens = np.array([item.ids for item in encoded], np.int32)
    token_mask = np.array([item.attention_mask for item in encoded], bool)
    for expression, count in zip(expressions, token_mask.sum(1), strict=True):
        if count <= 2:  # [CLS] and [SEP]
            raise ValueError(f"expression {expression!r} has no words; describe an object")
    return tokens, token_mask


def remarks(expression: str, tokenizer: Tokenizer) -> list[str]:
    """Return what the network cannot read of an expression: it is truncated, or has words outside the vocabulary."""
    encoded = tokenizer.encode(expression)
    found = [f"{expression!r:.80} is truncated to {len(encoded.ids)} tokens"] if encoded.overflowing else []
    places = [place for token, place in zip(encoded.tokens, encoded.offsets, strict=True) if token == "[UNK]"]
    if places:
        unknown = ", ".join(dict.fromkeys(f"{expression[start:end]!r:.80}" for start, end in places))
        found.append(f"not in the vocabulary, so ignored or misread: {unknown}")
    return found


def resize_logits(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize logits float32 [H, W] to the size of an image; the mask is logits > 0."""
    # A copy of evaluation.protocols.resize_logits on purpose: this file must run without the package.
    return np.asarray(Image.fromarray(logits).resize((width, height), Image.Resampling.BILINEAR))


def segment(network: Network, image: np.ndarray, expressions: str | Sequence[str]) -> np.ndarray:
    """Return one mask per expression, bool [K, height, width], for an image uint8 [height, width, 3].

    Raises:
        ValueError: the image has another shape or type, or an expression has no words or is not valid Unicode.
    """
    is_array = isinstance(image, np.ndarray)
    if not (is_array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size):
        got = f"{image.dtype} {list(image.shape)}" if is_array else type(image).__name__
        raise ValueError(
            f"an image must be an array uint8 [height, width, 3], got {got}; load it with load_image(path)"
        )
    height, width = image.shape[:2]
    tokens, token_mask = prepare_expressions(expressions, network.tokenizer)
    features = network.encode_image(prepare_image(image, network.settings)[None])
    masks = []
    for start in range(0, len(tokens), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        logits, *no_target = (x[0] for x in network.ground(features, tokens[None, part], token_mask[None, part]))
        found = np.stack([resize_logits(one, height, width) > 0 for one in logits])
        masks.append(found & (no_target[0] <= 0)[:, None, None] if no_target else found)
    return np.concatenate(masks)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Segment the referents of expressions in an image.")
    parser.add_argument("image", type=Path, help="an image file")
    parser.add_argument("expressions", nargs="+", metavar="EXPRESSION", help='an object: "the man in red"')
    parser.add_argument("--out", type=Path, default=Path("masks"), help="the folder for the masks")
    arguments = parser.parse_args()
    try:
        network = load_network(Path(__file__).parent)
        masks = segment(network, load_image(arguments.image), arguments.expressions)
        for expression in arguments.expressions:
            for remark in remarks(expression, network.tokenizer):
                print(f"warning: {remark}", file=sys.stderr)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for number, (expression, mask) in enumerate(zip(arguments.expressions, masks, strict=True), start=1):
            file = arguments.out / f"mask_{number}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(file)
            print(f"{file}: {expression!r}, {np.count_nonzero(mask)} pixels")
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
