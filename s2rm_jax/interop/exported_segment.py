"""Segments what expressions refer to in an image, with the network that was exported into the folder of this file.

    python segment.py street.jpg "the man in red" "the car behind him" --out masks

writes mask_1.png, mask_2.png, ...: 8 bits, 0 or 255, the image's own size, upright as a viewer shows it. From Python:

    network = load_network("FOLDER")
    masks = segment(network, load_image("street.jpg"), ["the man in red"])  # boolean [K, height, width]

It needs numpy, pillow and tokenizers; beside torch_model.py also torch and safetensors, beside *.stablehlo files jax,
flatbuffers and safetensors, beside *.onnx files onnxruntime. The package that trained the network is not needed.
Everything that has to be known of images and expressions stands in preprocessing.json, for those who want to do the
same elsewhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import numpy as np
    from PIL import Image, ImageOps
    from tokenizers import Tokenizer
except ImportError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}; it needs: python -m pip install numpy pillow tokenizers")

AT_ONCE = 32  # expressions; more go in several rounds on the same encoded image


class Network(NamedTuple):
    """An exported network: B images, K expressions of each, L tokens an expression.

    encode_image  float32 [B, H, W, 3] -> features, whatever is asked of the images
    ground        features, int32 [B, K, L], bool [B, K, L] -> logits float32 [B, K, H, W]; the mask is logits > 0. Of a
                  network that can say "nothing here" also float32 [B, K], above 0 where an expression refers to nothing
    tokenizer     turns expressions into L token ids and says which are not padding
    settings      the contents of preprocessing.json
    """

    encode_image: Callable[[np.ndarray], Any]
    ground: Callable[[Any, np.ndarray, np.ndarray], Sequence[np.ndarray]]
    tokenizer: Tokenizer
    settings: dict[str, Any]


def load_network(folder: str | Path) -> Network:
    """Loads the network of a folder, for the runtime that it was exported for."""
    folder = Path(folder)
    settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    runtime = {"pytorch": load_pytorch, "stablehlo": load_stablehlo, "onnx": load_onnx}[settings["format"]]
    return Network(*runtime(folder), Tokenizer.from_file(str(folder / "tokenizer.json")), settings)


def load_pytorch(folder: Path) -> tuple[Callable, Callable]:
    """Returns `encode_image` and `ground` as PyTorch computes them, on a GPU where there is one."""
    import torch

    specification = importlib.util.spec_from_file_location("torch_model", folder / "torch_model.py")
    assert specification is not None and specification.loader is not None
    torch_model = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(torch_model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch_model.S2RMModel.from_pretrained(folder).to(device)

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
    """Returns `encode_image` and `ground` as ONNX Runtime computes them."""
    import onnxruntime

    def session(name: str) -> Any:
        return onnxruntime.InferenceSession(str(folder / name), providers=onnxruntime.get_available_providers())

    encoder, grounder = session("encode_image.onnx"), session("ground.onnx")
    names = [item.name for item in grounder.get_inputs()]

    def ground(features: Any, tokens: np.ndarray, token_mask: np.ndarray) -> Sequence[np.ndarray]:
        return grounder.run(None, dict(zip(names, [*features, tokens, token_mask], strict=True)))

    return lambda images: encoder.run(None, {"images": images}), ground


def load_stablehlo(folder: Path) -> tuple[Callable, Callable]:
    """Returns `encode_image` and `ground` as JAX compiles them for the device that is here."""
    import jax
    from jax import export
    from safetensors.numpy import load_file

    weights = jax.device_put(load_file(folder / "model.safetensors"))

    def program(name: str) -> Callable:
        return jax.jit(export.deserialize(bytearray((folder / name).read_bytes())).call)

    encoder, grounder = program("encode_image.stablehlo"), program("ground.stablehlo")

    def ground(features: Any, tokens: np.ndarray, token_mask: np.ndarray) -> Sequence[np.ndarray]:
        # A program is compiled for each number of expressions, so these are filled up to a power of two.
        count = tokens.shape[1]
        spare = (1 << (count - 1).bit_length()) - count
        tokens, token_mask = (np.pad(x, ((0, 0), (0, spare), (0, 0)), "edge") for x in (tokens, token_mask))
        return [np.asarray(x)[:, :count] for x in grounder(weights, features, tokens, token_mask)]

    return lambda images: encoder(weights, images), ground


def load_image(path: str | Path) -> np.ndarray:
    """Returns an image as RGB values uint8 [height, width, 3], upright; transparent parts are laid on white."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode == "F":
        raise ValueError(f"{path} has floating-point values, whose range is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def prepare_image(image: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Resizes, scales and normalises an image: uint8 [height, width, 3] -> float32 [H, W, 3]."""
    height, width = settings["image"]["size"]
    if image.shape[:2] != (height, width):
        image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    mean, std = np.array(settings["image"]["mean"]), np.array(settings["image"]["std"])
    return image * (1 / (255 * std)).astype(np.float32) + (-mean / std).astype(np.float32)


def prepare_expressions(expressions: Sequence[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Turns K expressions into token ids int32 [K, L] and their mask bool [K, L], false where padding is."""
    encoded = tokenizer.encode_batch(list(expressions))
    tokens = np.array([item.ids for item in encoded], np.int32)
    token_mask = np.array([item.attention_mask for item in encoded], bool)
    for expression, count in zip(expressions, token_mask.sum(1), strict=True):
        if count <= 2:  # its beginning and its end
            raise ValueError(f"the expression {expression!r} has no words; say what is to be found")
    return tokens, token_mask


def resize_logits(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes logits float32 [H, W] to an image's own size; the mask is where they exceed 0."""
    return np.asarray(Image.fromarray(logits).resize((width, height), Image.Resampling.BILINEAR))


def segment(network: Network, image: np.ndarray, expressions: Sequence[str]) -> np.ndarray:
    """Returns one mask per expression, bool [K, height, width], in the size of the image uint8 [height, width, 3]."""
    if not expressions:
        raise ValueError("there is no expression; say what is to be found in the image")
    height, width = image.shape[:2]
    tokens, token_mask = prepare_expressions(expressions, network.tokenizer)
    features = network.encode_image(prepare_image(image, network.settings)[None])
    masks = []
    for start in range(0, len(expressions), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        logits, *nothing = (x[0] for x in network.ground(features, tokens[None, some], token_mask[None, some]))
        found = np.stack([resize_logits(one, height, width) > 0 for one in logits])
        masks.append(found & (nothing[0] <= 0)[:, None, None] if nothing else found)
    return np.concatenate(masks)


def main() -> None:
    """Segments as the command line says."""
    parser = argparse.ArgumentParser(description="Segments what expressions refer to in an image.")
    parser.add_argument("image", type=Path, help="an image file")
    parser.add_argument("expressions", nargs="+", metavar="sentence", help='what is to be found: "the man in red"')
    parser.add_argument("--out", type=Path, default=Path("masks"), help="the folder that receives the masks")
    arguments = parser.parse_args()
    try:
        masks = segment(load_network(Path(__file__).parent), load_image(arguments.image), arguments.expressions)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for number, (expression, mask) in enumerate(zip(arguments.expressions, masks, strict=True), start=1):
            file = arguments.out / f"mask_{number}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(file)
            print(f"{file}: {expression!r}, {np.count_nonzero(mask)} pixels")
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
