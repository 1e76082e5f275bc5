"""The Segmenter: segment what expressions refer to, from Python.

Images are encoded once, for any number of expressions, and expressions once for any number of images:

    segmenter = Segmenter.from_checkpoint("runs/refcoco")
    result = segmenter.segment("street.jpg", ["the man in red", "the car behind him"])
    result.masks[0]  # boolean [H, W], of the size of street.jpg

    street = segmenter.encode("https://example.org/street.jpg")  # the larger part of the work
    segmenter.segment(street, "the tree on the left")  # any number of times

    first, second = segmenter.segment(["one.jpg", "two.jpg"], "the man in red")  # images in batches
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from s2rm_jax import default_network
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.calibration import Calibration
from s2rm_jax.evaluation.explain import Explanation, explanations, reduce
from s2rm_jax.evaluation.protocols import mask_and_score, sigmoid
from s2rm_jax.input.images import load_image, resize_image
from s2rm_jax.input.tokens import Tokenizer, remarks
from s2rm_jax.models.network import keep_for_equal_networks
from s2rm_jax.parallel.programs import ProgramStore
from s2rm_jax.training.run import load_run

# The numbers of images, of new expressions and of expressions per image are padded to one of these, so that few
# programs are compiled: at most 5 that encode images, 6 that encode expressions and 20 that segment. A round has at
# most MOST_IMAGES images and BUCKETS[-1] pairs of image and expression, which bounds the memory; more are processed in
# several rounds.
BUCKETS = (1, 2, 4, 8, 16, 32)
MOST_IMAGES = 16
# How many encoded expressions a Segmenter keeps, the most recently used: many images are often asked for the same ones.
# One takes 60 kB with BERT-base and 20 tokens.
EXPRESSIONS_KEPT = 256

ImageSource = str | Path | bytes | np.ndarray | Image.Image
Tokens = tuple[np.ndarray, np.ndarray]  # of an expression: the ids of its tokens and which of them are not padding


@dataclass(frozen=True)
class EncodedImage:
    """An image and its features, for any number of calls of `Segmenter.segment`.

    Attributes:
        image: the original pixels, uint8 [H, W, 3], RGB, upright.
        features: the network's feature maps, on the device of the Segmenter that made them; only that Segmenter can use
            them.
    """

    image: UInt8[np.ndarray, "height width 3"]
    features: tuple[Any, ...]


ImageT = TypeVar("ImageT", bound=EncodedImage | ImageSource)
T = TypeVar("T")


class RecentlyUsed(Generic[T]):
    """The values used most recently, by key, at most `limit` of them; thread-safe."""

    def __init__(self, limit: int):
        self.limit = limit
        self._values: OrderedDict[bytes, T] = OrderedDict()  # the most recently used last
        self._lock = threading.Lock()

    def known(self, keys: Iterable[bytes]) -> dict[bytes, T]:
        """Return the values of those keys that have one; this does not count as use."""
        with self._lock:
            return {key: self._values[key] for key in keys if key in self._values}

    def keep(self, values: Mapping[bytes, T]) -> None:
        """Keep these as the most recently used, in their order."""
        with self._lock:
            for key, value in values.items():
                self._values[key] = value
                self._values.move_to_end(key)
            while len(self._values) > self.limit:
                self._values.popitem(last=False)


@dataclass(frozen=True)
class Result:
    """The masks of k expressions in one image.

    Attributes:
        expressions: the expressions, in the order in which they were given.
        masks: bool [k, H, W], in the original size of the image, upright as a viewer shows it.
        scores: float [k]; 0 for an empty mask. With a calibrated network, the probability that the mask is correct (an
            IoU of at least 0.5); else the mean probability of foreground over the pixels of the mask, in [0.5, 1],
            which ranks masks but can be too high as a probability. `evaluate --calibrate` calibrates a network; the
            bundled network is calibrated.
        no_target: float [k], the probability that an expression refers to nothing; if it exceeds 0.5, the mask is
            empty. None if the network has no such output.
        explanations: one per expression, or None unless `segment` was called with `explain=True`.
    """

    expressions: tuple[str, ...]
    masks: Bool[np.ndarray, "k height width"]
    scores: Float[np.ndarray, " k"]
    no_target: Float[np.ndarray, " k"] | None = None
    explanations: tuple[Explanation, ...] | None = None


class Segmenter:
    """A trained network that takes images and expressions and returns masks.

    Calls make no implicit transfers between host and device, and are thread-safe.

    Args:
        network: the module that `build_network(config)` returns.
        params: its parameters.
        tokenizer: the tokenizer of the training run.
        config: the configuration of the training run.
        programs: where compiled programs are kept for later processes; None: they are not.
    """

    def __init__(
        self,
        network: nn.Module,
        params: Any,
        tokenizer: Tokenizer,
        config: ConfigDict,
        programs: ProgramStore | None = None,
    ):
        self.config = config
        self._tokenizer = tokenizer
        self._params = jax.device_put(params)  # once: NumPy arrays would be transferred again at every call
        jitted = _jitted(network, tuple(config.input.image_size))
        self._encode_images, self._encode_texts, self._ground = map(programs.keep, jitted) if programs else jitted
        self._words: RecentlyUsed[jax.Array] = RecentlyUsed(EXPRESSIONS_KEPT)
        # A lock for each program; two threads with the same new shapes would compile it twice.
        self._tracing: dict[tuple[str | int | bool, ...], threading.Lock] = {}
        self._threads = ThreadPoolExecutor(thread_name_prefix="segmenter")

    @classmethod
    def from_checkpoint(
        cls,
        workdir: str | Path = default_network.FOLDER,
        which: str | int = "best",
        *,
        keep_programs: bool = False,
    ) -> Segmenter:
        """Load a checkpoint of a training run, with its configuration and vocabulary.

        Args:
            workdir: the workdir of a run, a folder that `convert to-pytorch` wrote, or a network on the Hugging Face
                Hub: "user/name", "user/name@revision" or "hf://user/name". A local folder of that name comes first,
                except after "hf://". The default is the network that comes with the package, which is trained on
                generated shapes only.
            which: the checkpoint to load: "best" by config.eval.metric of the run, "latest", or the step of one.
            keep_programs: whether to keep compiled programs in the user's cache folder, where the next process finds
                them (`parallel.programs.open_program_store`); only on CPUs.

        Raises:
            UserError: the folder has no training run or no checkpoint, its vocabulary is missing, its configuration
                does not fit the checkpoint, the network cannot be downloaded, or `which` has another value.
        """
        run = load_run(workdir, which, keep_programs=keep_programs)
        return cls(run.network, run.params, run.tokenizer, run.config, run.programs)

    @overload
    def encode(self, image: ImageSource) -> EncodedImage: ...
    @overload
    def encode(self, image: list[ImageT]) -> list[EncodedImage]: ...
    def encode(self, image: Any) -> Any:
        """Encode an image for any number of calls of `segment`; wait until the device has finished.

        Args:
            image: a file, a URL (http:// or https://), the bytes of a file, an array [H, W, 3] of uint8, or a PIL
                image; it is turned upright according to its EXIF orientation. Or a list of these, which are read in
                threads and encoded in batches.

        Raises:
            UserError: an image cannot be read or downloaded.
        """
        images = image if isinstance(image, list) else [image]
        batches = range(0, len(images), MOST_IMAGES)
        encoded = [one for start in batches for one in self._encode_batch(images[start : start + MOST_IMAGES])]
        jax.block_until_ready([one.features for one in encoded])
        return encoded if isinstance(image, list) else encoded[0]

    @overload
    def segment(
        self, image: EncodedImage | ImageSource, expressions: str | Sequence[str], *, explain: bool = False
    ) -> Result: ...
    @overload
    def segment(
        self, image: list[ImageT], expressions: str | Sequence[str] | Sequence[Sequence[str]], *, explain: bool = False
    ) -> list[Result]: ...
    def segment(self, image: Any, expressions: Any, *, explain: bool = False) -> Any:
        """Segment what each expression refers to; the image is encoded once for all expressions.

        Args:
            image: the result of `encode`, or any image that it accepts; or a list of these, which are processed in
                batches, with the results that they have one by one.
            expressions: one or more expressions; the mask of each does not depend on the others. For a list of images:
                those for every image, or one sequence of expressions per image.
            explain: whether to return explanations of the masks; the images are then processed one by one.

        Raises:
            UserError: an image cannot be read, `expressions` is empty or not one per image, or an expression is not a
                string or has no words.
        """
        images = image if isinstance(image, list) else [image]
        asked = _per_image(expressions, len(images))
        tokenized = [[self._tokenizer.encode(expression) for expression in texts] for texts in asked]
        size = 1 if explain else images_at_once(max(map(len, asked), default=1))
        results: list[Result] = []
        for start in range(0, len(images), size):
            batch = slice(start, start + size)
            results += self._segment_batch(images[batch], asked[batch], tokenized[batch], explain)
        return results if isinstance(image, list) else results[0]

    def _encode_batch(self, images: Sequence[Any]) -> list[EncodedImage]:
        """Encode at most MOST_IMAGES images with one program; do not wait for the device."""
        if not images:
            return []
        originals = self._in_threads(partial(load_image, apply_exif=True), images)
        size = tuple(self.config.input.image_size)
        pixels = _pad(self._in_threads(partial(resize_image, size=size), originals), padded_count(len(images)))
        with self._compiling("images", len(pixels)):
            features = self._encode_images(self._params, jax.device_put(np.stack(pixels)))
        return [EncodedImage(original, maps) for original, maps in zip(originals, features, strict=False)]

    def _segment_batch(
        self,
        images: Sequence[Any],
        asked: Sequence[tuple[str, ...]],
        tokenized: Sequence[list[Tokens]],
        explain: bool,
    ) -> list[Result]:
        """Segment with one program per round of BUCKETS[-1] expressions."""
        new = iter(self._encode_batch([image for image in images if not isinstance(image, EncodedImage)]))
        encoded = [image if isinstance(image, EncodedImage) else next(new) for image in images]
        features = _pad([image.features for image in encoded], padded_count(len(images)))
        logits: list[list[np.ndarray]] = [[] for _ in images]
        no_target: list[list[float]] = [[] for _ in images]
        explained: list[Explanation] = []
        for start in range(0, max(map(len, asked)), BUCKETS[-1]):
            rows = [row[start : start + BUCKETS[-1]] for row in tokenized]
            bucket = padded_count(max(map(len, rows)))
            padded = _pad(
                [_pad(row or whole[:1], bucket) for row, whole in zip(rows, tokenized, strict=True)], len(features)
            )
            words = self._words_of([text for row in padded for text in row])
            token_mask = jax.device_put(np.array([[mask for _, mask in row] for row in padded]))
            with self._compiling("masks", len(features), bucket, explain):
                outputs = self._ground(self._params, features, words, token_mask, explain=explain)
            maps, no_target_logits, reduced = jax.device_get(outputs)
            for index, row in enumerate(rows):
                logits[index] += list(maps[index, : len(row)])
                if no_target_logits is not None:
                    no_target[index] += list(sigmoid(no_target_logits[index, : len(row)]))
            if explain:
                ids = [pieces for pieces, _ in rows[0]]
                explained += explanations(reduced, ids, self._tokenizer, self.config.fusion.rotations)
        result = partial(_result, Calibration.of(self.config))
        results = self._in_threads(result, list(zip(encoded, asked, logits, no_target, strict=True)))
        return [replace(result, explanations=tuple(explained)) for result in results] if explain else results

    def _words_of(self, texts: Sequence[Tokens]) -> list[jax.Array]:
        """Return the word features of at most BUCKETS[-1] expressions; encode those that are not kept."""
        keys = [tokens.tobytes() + mask.tobytes() for tokens, mask in texts]
        words = self._words.known(keys)
        if new := {key: text for key, text in zip(keys, texts, strict=True) if key not in words}:
            words |= zip(new, self._encode_new(list(new.values())), strict=False)
        self._words.keep(words)
        return [words[key] for key in keys]

    def _encode_new(self, texts: list[Tokens]) -> list[jax.Array]:
        padded = _pad(texts, padded_count(len(texts)))
        tokens, token_mask = (jax.device_put(np.array([text[part] for text in padded])) for part in (0, 1))
        with self._compiling("texts", len(padded)):
            words: list[jax.Array] = self._encode_texts(self._params, tokens, token_mask)
        jax.block_until_ready(words)  # so that a failed result is not kept
        return words

    def compile(self, images: int, expressions: int, explain: bool = False) -> None:
        """Compile what `segment` needs for this many images with this many expressions each, by running it.

        Args:
            images: the number of images; 1 if `explain`.
            expressions: expressions per image, of which any number may be new.
            explain: whether `segment` will be called with `explain=True`.
        """
        encoded = self.encode([np.zeros((64, 64, 3), np.uint8)] * images)
        most_new = min(images * expressions, BUCKETS[-1])
        for count in BUCKETS[: BUCKETS.index(padded_count(most_new)) + 1]:
            self._encode_new([self._tokenizer.encode("the image")] * count)
        self.segment(encoded, ["the image"] * expressions, explain=explain)

    def _compiling(self, *program: str | int | bool) -> threading.Lock:
        return self._tracing.setdefault(program, threading.Lock())

    def _in_threads(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self._threads.map(function, items)) if len(items) > 1 else [function(item) for item in items]

    def explain(self, image: EncodedImage | ImageSource, expression: str) -> Explanation:
        """Return the explanation of the mask of one expression; arguments and errors are those of `segment`."""
        result = self.segment(image, expression, explain=True)
        assert result.explanations is not None
        return result.explanations[0]

    def remarks(self, expression: str) -> list[str]:
        """Return remarks on how an expression is tokenized: words that are cut off or not in the vocabulary.

        Raises:
            UserError: the expression is not a string or has no words.
        """
        if not isinstance(expression, str):
            raise UserError(f"an expression must be a string, got {type(expression).__name__}; give one string")
        self._tokenizer.encode(expression)
        return remarks(self._tokenizer, expression)

    def fingerprint(self) -> str:
        """Return a checksum of the parameters, to tell networks apart."""
        checksum = 0
        for leaf in jax.tree.leaves(self._params):
            checksum = zlib.crc32(np.ascontiguousarray(jax.device_get(leaf)).view(np.uint8).data, checksum)
        return f"{checksum:08x}"


def _per_image(expressions: Any, count: int) -> list[tuple[str, ...]]:
    """Return the expressions of each of `count` images; raise UserError if an image has none or others than strings."""
    given = _as_tuple(expressions)
    of_all = all(isinstance(one, str) for one in given)
    asked = [given] * count if of_all else [_as_tuple(one) for one in given]
    if wrong := [one for texts in asked for one in texts if not isinstance(one, str)]:
        kind = type(wrong[0]).__name__
        raise UserError(f"an expression must be a string, got {kind}; give one string or a list of strings")
    if len(asked) != count:
        raise UserError(f"expressions has {len(asked)} sequences for {count} images; give one per image")
    if not all(asked):
        raise UserError("expressions is empty; give at least one expression to segment")
    return asked


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)


@keep_for_equal_networks(4)  # so that segmenters of equal networks trace and compile each program once
def _jitted(network: nn.Module, size: tuple[int, int]) -> tuple[Callable[..., Any], ...]:
    """Return the functions that encode images, encode expressions and segment, for images of this input size."""

    def encode_images(params: Any, images: jax.Array) -> list[Any]:
        maps = network.apply({"params": params}, images, method="encode_image")
        return [jax.tree.map(lambda batch, i=i: batch[i : i + 1], maps) for i in range(len(images))]

    def encode_texts(params: Any, tokens: jax.Array, token_mask: jax.Array) -> list[Any]:
        return list(network.apply({"params": params}, tokens, token_mask, method="encode_text"))

    def ground(params: Any, features: list[Any], words: list[jax.Array], token_mask: jax.Array, explain: bool) -> Any:
        batch = jax.tree.map(lambda *maps: jnp.concatenate(maps), *features)
        stacked = jnp.stack(words).reshape(*token_mask.shape, -1)
        output: Any = network.apply({"params": params}, batch, stacked, token_mask, size, method="fuse_and_decode")
        return output.logits, output.no_target_logits, reduce(output) if explain else None

    return jax.jit(encode_images), jax.jit(encode_texts), jax.jit(ground, static_argnames="explain")


def images_at_once(expressions: int) -> int:
    """Return how many images `Segmenter.segment` computes at once if each has at most this number of expressions."""
    return min(MOST_IMAGES, BUCKETS[-1] // padded_count(expressions))


def padded_count(count: int) -> int:
    """Return the number to which a count of images or expressions is padded; more than BUCKETS[-1] take rounds."""
    return next((size for size in BUCKETS if size >= count), BUCKETS[-1])


def _pad(items: list[Any], count: int) -> list[Any]:
    return items + items[:1] * (count - len(items))


def _result(
    calibration: Calibration, of: tuple[EncodedImage, tuple[str, ...], list[np.ndarray], list[float]]
) -> Result:
    """Return the masks and scores of an image from its logits, without explanations."""
    encoded, expressions, logits, no_target = of
    height, width = encoded.image.shape[:2]
    masks, scores = np.empty((len(logits), height, width), bool), np.empty(len(logits))
    for row, low in enumerate(logits):
        nothing = bool(no_target) and no_target[row] > 0.5
        masks[row], score = (False, 0.0) if nothing else mask_and_score(low, height, width)
        scores[row] = calibration(score)
    return Result(expressions, masks, scores, np.array(no_target) if no_target else None)
