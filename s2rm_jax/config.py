"""The whole configuration with its defaults; every file in configs/ starts from here and changes what differs.

Finds what cannot work in a configuration, before data is read or anything is compiled.

Where the configurations are: beside the package in a clone, in it where it was installed from a wheel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.sampling import SAMPLINGS
from s2rm_jax.models.casg import GUIDANCES, SEMANTICS
from s2rm_jax.models.layers import POLICIES
from s2rm_jax.models.s2rm import BALANCES, LANGUAGES, MODES, PAIRS, RECURRENCES, RESIDUALS, ROTATIONS
from s2rm_jax.training.losses import KINDS


def default_config() -> ConfigDict:
    """Returns every field with its default: Swin-Base and BERT-base at 480 px, the recipe of the LAVT family."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 53_000  # optimizer steps; 0 takes as many as config.epochs needs
    config.epochs = 0.0  # what an epoch shows is said by config.input.sampling; only read where config.steps is 0
    config.batch_size = 32  # images per step, over all devices
    config.dtype = "float32"  # of the computation: float32 | bfloat16; parameters stay float32
    config.remat = "none"  # none | dense | blocks: what is computed twice to save memory; see models/layers.py

    config.input = ConfigDict()
    config.input.source = ConfigDict({"name": ""})  # a name in input/sources.py and the arguments of that source
    config.input.train_split = "train"
    config.input.image_size = (480, 480)  # height, width in pixels
    config.input.expressions_per_image = 4  # K
    config.input.sampling = "image"  # image | sentence | referent: what an epoch shows; see input/sampling.py
    config.input.workers = 0  # input processes; 0 reads in threads of the main process

    config.input.augment = ConfigDict()  # of training images, all off; see input/augment.py
    config.input.augment.flip = 0.0  # probability of a mirrored image with left and right exchanged in its expressions
    config.input.augment.crop = 0.0  # probability of a crop that keeps whole whatever is referred to
    config.input.augment.crop_smallest = 0.6  # share of each side that a crop keeps at least
    config.input.augment.hide_patches = 0.0  # largest share of an image's patches that is replaced by the mean
    config.input.augment.patch = 32  # pixels, the side of such a patch
    config.input.augment.hide_words = 0.0  # share of the words that is replaced by [MASK]

    config.vision = ConfigDict()  # Swin; see models/swin.py
    config.vision.embed_dim = 128
    config.vision.depths = (2, 2, 18, 2)
    config.vision.num_heads = (4, 8, 16, 32)
    config.vision.window_size = 12
    config.vision.drop_path_rate = 0.3
    config.vision.mask_padding = True  # False: padding to whole windows is attended to, as published code does
    config.vision.pretrained = ""  # weights to begin from: a file, a folder or a name on the Hugging Face Hub

    config.text = ConfigDict()  # BERT; see models/bert.py
    config.text.pretrained = ""  # as config.vision.pretrained
    config.text.vocab = ""  # a BERT vocab.txt; empty: that beside the pretrained weights, or that of the source
    config.text.max_tokens = 20  # L, [CLS] and [SEP] included
    config.text.vocab_size = 30_522
    config.text.hidden_size = 768
    config.text.num_layers = 12
    config.text.num_heads = 12
    config.text.intermediate_size = 3072
    config.text.max_positions = 512
    config.text.dropout_rate = 0.1

    config.fusion = ConfigDict()  # S2RM; see models/s2rm.py
    config.fusion.width = 512
    config.fusion.recurrent_width = 256
    config.fusion.num_heads = 8
    config.fusion.language = "words"  # words | sentence (nothing is distributed: the same at every position)
    config.fusion.mode = "s2rm"  # s2rm | sum | product | concat | attention; see models/fusion_baselines.py
    config.fusion.recurrence = "gated"  # gated | linear | none
    config.fusion.rotations = (0, 90, 180, 270)  # degrees; the scanning directions
    config.fusion.pairs = ("language_parses_vision", "vision_parses_language")
    config.fusion.balance = "position"  # position | channel | mean
    config.fusion.residual = "both"  # both | vision; what the fused map keeps beside what was parsed

    config.decoder = ConfigDict()  # CASG; see models/casg.py
    config.decoder.widths = (64, 128, 256, 256)  # D_1 .. D_4, from fine to coarse
    config.decoder.guidance = "full"  # full | maps | none (a plain FPN)
    config.decoder.semantics = ("sentence", "stages")  # what guides: the sentence feature, the referent as seen so far
    config.decoder.no_target_width = 0  # of the head that says "nothing here" (models/casg.py); 0 has no head

    config.loss = ConfigDict()
    config.loss.kind = "bce_dice"  # bce_dice | weighted_ce (0.9 background, 1.1 foreground, as the LAVT family)
    config.loss.coarse_weight = 0.0  # weight of the same loss on each coarser mask
    config.loss.no_target_weight = 0.1  # weight of the loss of the head that says "nothing here", where there is one

    config.optimizer = ConfigDict()  # AdamW
    config.optimizer.learning_rate = 5e-5
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 0.0  # global norm; 0 does not clip
    config.optimizer.schedule = "polynomial"  # polynomial | cosine
    config.optimizer.power = 0.9  # of the polynomial
    config.optimizer.warmup_steps = 0
    config.optimizer.accumulate = 1  # microbatches per step; must divide batch_size
    config.optimizer.ema_decay = 0.0  # 0 keeps no average; else evaluation uses the averaged parameters
    # Groups are regular expressions searched in a parameter path such as "vision/stage3_block0/attention/qkv/kernel".
    config.optimizer.multipliers = ()  # ((pattern, factor), ...) on the learning rate; the first match counts
    config.optimizer.no_decay = ("bias$", "norm", "scale$", "relative_position_bias_table", "embeddings")
    config.optimizer.frozen = ()  # parameters that are not trained

    config.eval = ConfigDict()
    config.eval.split = "val"
    config.eval.every = 2000  # steps; 0 never evaluates during training
    config.eval.batch_size = 16  # images
    config.eval.expressions_per_image = 0  # K of an evaluation; 0 takes that of the training
    config.eval.limit = 0  # images; 0 takes the whole split
    config.eval.protocol = "original"  # how masks become numbers; see evaluation/protocols.py
    config.eval.metric = "mean_iou"  # the metric by which the best checkpoint is chosen

    config.mesh = ConfigDict()  # how the devices share the work; batches are always split over all of them
    config.mesh.fsdp = 1  # devices that keep one state of training between them; 1: every device holds all of it
    config.mesh.step = "jit"  # jit: the compiler places the communication | shard_map: we do (training/step.py)

    config.compilation_cache = ""  # where compiled programs are kept: a folder; empty: in the workdir; off: nowhere
    config.tensorboard = True  # also write metrics as TensorBoard files
    config.wandb_project = ""  # on Weights & Biases, to receive the metrics; empty: none; see training/writers.py
    config.checkpoint_every = 1000  # steps
    config.log_every = 50  # steps
    return config


_CHOICES: dict[str, Sequence[Any]] = {
    "dtype": ("float32", "bfloat16"),
    "remat": POLICIES,
    "fusion.language": LANGUAGES,
    "fusion.mode": MODES,
    "fusion.recurrence": RECURRENCES,
    "fusion.balance": BALANCES,
    "fusion.residual": RESIDUALS,
    "decoder.guidance": GUIDANCES,
    "loss.kind": KINDS,
    "input.sampling": SAMPLINGS,
    "mesh.step": ("jit", "shard_map"),
}
_SUBSETS: dict[str, Sequence[Any]] = {
    "fusion.rotations": ROTATIONS,
    "fusion.pairs": PAIRS,
    "decoder.semantics": SEMANTICS,
}
_AT_LEAST_ONE = (
    *("batch_size", "log_every", "checkpoint_every", "input.expressions_per_image", "eval.batch_size"),
    *("vision.embed_dim", "vision.window_size", "text.num_layers", "fusion.width", "fusion.recurrent_width"),
    *("text.hidden_size", "text.vocab_size", "optimizer.accumulate", "input.augment.patch", "mesh.fsdp"),
)
_AT_LEAST_ZERO = (
    *("steps", "epochs", "eval.every", "eval.limit", "eval.expressions_per_image", "input.workers"),
    *("decoder.no_target_width", "loss.coarse_weight", "loss.no_target_weight"),
)
_SHARES = tuple(f"input.augment.{field}" for field in ("flip", "crop", "crop_smallest", "hide_patches", "hide_words"))


def check_config(config: ConfigDict) -> None:
    """Checks the values of a configuration, and that those of different sections fit each other.

    Raises:
        UserError: names the first field that cannot work, its value, and what it must be.
    """
    for field, choices in _CHOICES.items():
        _require(_get(config, field) in choices, config, field, f"one of: {', '.join(map(str, choices))}")
    for field, choices in _SUBSETS.items():
        chosen = _get(config, field)
        fits = len(chosen) > 0 and set(chosen) <= set(choices) and len(set(chosen)) == len(chosen)
        _require(fits, config, field, f"one or more of: {', '.join(map(str, choices))}")
    for field in _AT_LEAST_ONE:
        _require(_get(config, field) >= 1, config, field, "at least 1")
    if config.steps == 0 and config.epochs == 0:
        raise UserError("config.steps and config.epochs are both 0: say how long to train by one of them.")
    for field in _AT_LEAST_ZERO:
        _require(_get(config, field) >= 0, config, field, "at least 0")
    for field in _SHARES:
        _require(0 <= _get(config, field) <= 1, config, field, "from 0 to 1")

    size = config.input.image_size
    sides_fit = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)
    _require(sides_fit and min(size) >= 8, config, "input.image_size", "(height, width) in pixels, each at least 8")
    depths = config.vision.depths
    _require(len(depths) >= 2 and min(depths) >= 1, config, "vision.depths", "two or more stages of at least 1 block")
    for field in ("vision.num_heads", "decoder.widths"):
        wanted = f"{len(depths)} numbers, one per stage of config.vision.depths={tuple(depths)}"
        _require(len(_get(config, field)) == len(depths), config, field, wanted)
    for stage, heads in enumerate(config.vision.num_heads):
        _require_heads(config, "vision.num_heads", heads, config.vision.embed_dim * 2**stage)
    _require_heads(config, "text.num_heads", config.text.num_heads, config.text.hidden_size)
    _require_heads(config, "fusion.num_heads", config.fusion.num_heads, config.fusion.width)
    longest = config.text.max_positions
    words_fit = 3 <= config.text.max_tokens <= longest
    _require(words_fit, config, "text.max_tokens", f"from 3 to config.text.max_positions={longest}")
    for field in ("optimizer.ema_decay", "vision.drop_path_rate", "text.dropout_rate"):
        _require(0 <= _get(config, field) < 1, config, field, "at least 0 and less than 1")


def _get(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def _require(condition: bool, config: ConfigDict, field: str, wanted: str) -> None:
    if not condition:
        raise UserError(f"config.{field} is {_get(config, field)!r}; it must be {wanted}.")


def _require_heads(config: ConfigDict, field: str, heads: int, width: int) -> None:
    _require(heads >= 1 and width % heads == 0, config, field, f"such that {width} channels divide by {heads} heads")


_PACKAGE = Path(__file__).parent


def shipped_configs() -> Path:
    """Returns the folder of the configurations that come with this package."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_config(given: str) -> str:
    """Returns the file that --config means, with the argument that may stand behind a colon.

    A file that is there is taken as it is. Otherwise `synthetic`, `synthetic.py` and `configs/synthetic.py` name one of
    those that come with the package, so that the same command works in a clone and anywhere else.

    Raises:
        UserError: there is no such configuration.
    """
    name, colon, argument = given.partition(":")
    path = Path(name)
    if path.is_file() and path.suffix == ".py":
        return given
    shipped = shipped_configs() / f"{path.stem}.py"
    if path.parent in (Path(), Path("configs")) and path.suffix in ("", ".py") and shipped.is_file():
        return f"{shipped}{colon}{argument}"
    raise UserError(f"--config: {path} {_what_is_wrong(path)}.")


def _what_is_wrong(path: Path) -> str:
    """Says it of a path, and what could be named instead: what lies there, else what comes with the package."""
    wrong = "is no configuration, which is a Python file" if path.is_file() else "does not exist"
    folder, wrong = (path, "is a folder; name a file in it") if path.is_dir() else (path.parent, wrong)
    others = [] if folder == Path() else [str(other) for other in folder.glob("*.py")]
    shipped = [other.stem for other in shipped_configs().glob("*.py")]
    there = f"there are: {', '.join(sorted(others))}" if others else f"there are by name: {', '.join(sorted(shipped))}"
    return f"{wrong}; {there}"
