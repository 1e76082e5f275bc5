"""The configuration: every field with its default, the values that it may take, and the files of configs/."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from s2rm_jax.errors import UserError, counted

# A workdir keeps the configuration of its run and the vocabulary of its tokenizer in these files.
CONFIG_FILE = "config.json"
VOCAB_FILE = "vocab.txt"

_T = TypeVar("_T")

# Values that fields may take. `default_config` lists the fields; the modules that it names explain the values.
DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "dense", "blocks")
ON_BAD_EXAMPLES = ("stop", "skip")
SAMPLINGS = ("image", "expression", "referent")
LANGUAGES = ("words", "sentence")
SIMPLER_FUSIONS = ("sum", "product", "concat", "attention")
FUSIONS = ("s2rm", *SIMPLER_FUSIONS)
RECURRENCES = ("gated", "linear", "none")
ROTATIONS = (0, 90, 180, 270)  # degrees
PAIRS = ("language_parses_vision", "vision_parses_language")
BALANCES = ("position", "channel", "mean")
RESIDUALS = ("both", "vision")
GUIDANCES = ("full", "maps", "none")
SEMANTICS = ("sentence", "stages")
LOSSES = ("bce_dice", "weighted_ce")
SCHEDULES = ("polynomial", "cosine")
STEP_FORMS = ("jit", "shard_map")


def default_config() -> ConfigDict:
    """Return every field with its default: Swin-Base and BERT-base at 480 px, not pretrained.

    No field can be added, except to config.input.source, which has the arguments of the source. The recipes of the
    benchmarks are in recipes.py.
    """
    config = ConfigDict()
    config.seed = 0  # seed of the initial parameters, the order of the data, and dropout
    config.steps = 53_000  # optimizer steps; 0 takes as many as config.epochs needs
    config.epochs = 0.0  # read only if config.steps is 0; config.input.sampling defines an epoch
    config.batch_size = 32  # images per step, over all devices
    config.dtype = "float32"  # dtype of the computation, one of DTYPES; parameters stay float32
    config.network = ""  # set by train_and_evaluate(network=...): the class of a network outside this package
    config.remat = "none"  # one of REMAT_POLICIES: what is computed twice to save memory; see models/layers.py

    config.input = ConfigDict()
    config.input.source = ConfigDict({"name": ""})  # a name in input/sources.py, or "module:Class", and its arguments
    config.input.train_split = "train"  # the split that is trained on
    config.input.image_size = (480, 480)  # height, width in pixels
    # K, the largest number of expressions of an image in a batch; LAVT's recipe sets 1
    config.input.expressions_per_image = 4
    config.input.sampling = "image"  # one of SAMPLINGS: what an epoch contains; see input/sampling.py
    config.input.on_bad_example = "stop"  # one of ON_BAD_EXAMPLES: stop, or leave the example out; see docs/own_data.md
    config.input.workers = 0  # input processes; 0 reads in threads of the main process

    config.input.augment = ConfigDict()  # augmentation of training images, off by default; see input/augment.py
    config.input.augment.flip = 0.0  # probability of mirroring; left and right are exchanged in the expressions
    config.input.augment.crop = 0.0  # probability of a crop; it keeps every referent whole
    config.input.augment.crop_smallest = 0.6  # smallest share of each side that a crop keeps
    config.input.augment.hide_patches = 0.0  # largest share of an image's patches replaced by the mean colour
    config.input.augment.patch = 32  # side of a patch in pixels
    config.input.augment.hide_words = 0.0  # share of the words replaced by [MASK]

    config.vision = ConfigDict()  # Swin; see models/swin.py
    config.vision.embed_dim = 128  # channels of the first stage; each later stage has twice as many
    config.vision.depths = (2, 2, 18, 2)  # blocks of each stage
    config.vision.num_heads = (4, 8, 16, 32)  # attention heads of each stage
    config.vision.window_size = 12  # side of an attention window in positions
    config.vision.drop_path_rate = 0.3  # drop path rate of the last block; the rate rises linearly from 0 in the first
    config.vision.mask_padding = True  # False: attend to the padding of windows, as published code does
    config.vision.pretrained = ""  # initial weights: a file, a folder, or USER/NAME[@REVISION] on the Hugging Face Hub

    config.text = ConfigDict()  # BERT; see models/bert.py
    config.text.pretrained = ""  # as config.vision.pretrained
    # a vocab.txt or tokenizer.json; empty: the file next to the pretrained weights, or the vocabulary of the source
    config.text.vocab = ""
    config.text.lower_case = True  # False for cased models
    config.text.max_tokens = 20  # L, tokens of an expression with [CLS] and [SEP]; longer expressions are truncated
    config.text.vocab_size = 30_522  # number of entries of the vocabulary
    config.text.hidden_size = 768  # channels of the hidden states
    config.text.num_layers = 12  # number of layers
    config.text.num_heads = 12  # attention heads of each layer
    config.text.intermediate_size = 3072  # channels inside the MLP of each layer
    config.text.max_positions = 512  # rows of the position embeddings, the largest possible max_tokens
    config.text.dropout_rate = 0.1  # dropout rate of embeddings and layers

    config.fusion = ConfigDict()  # S2RM; see models/s2rm.py
    config.fusion.width = 512  # channels of the fused map
    config.fusion.recurrent_width = 256  # channels of the state of the recurrence
    config.fusion.num_heads = 8  # heads of the attention from positions to words
    # one of LANGUAGES; words: each position attends to the words; sentence: the state of [CLS] at every position
    config.fusion.language = "words"
    config.fusion.mode = "s2rm"  # one of FUSIONS; see models/s2rm.py
    config.fusion.recurrence = "gated"  # recurrence of the scan, one of RECURRENCES
    config.fusion.rotations = ROTATIONS  # degrees by which the map is rotated before each scan
    config.fusion.pairs = PAIRS  # which modality parses the other: one pair or both
    config.fusion.balance = "position"  # what the weights of the directions depend on, one of BALANCES
    config.fusion.residual = "both"  # one of RESIDUALS; both: V + T_dist; vision: V alone (docs/network.md)

    config.decoder = ConfigDict()  # CASG; see models/casg.py
    config.decoder.widths = (64, 128, 256, 256)  # D_1 .. D_4, from fine to coarse
    config.decoder.guidance = "full"  # one of GUIDANCES; full: CASG; maps: unguided mask kernels; none: a plain FPN
    config.decoder.semantics = SEMANTICS  # what guides the decoder: the expression, the earlier stages, or both
    config.decoder.no_target_width = 0  # width of the no-target head (models/casg.py); 0: no head

    config.loss = ConfigDict()
    config.loss.kind = "bce_dice"  # one of LOSSES; see training/losses.py
    config.loss.coarse_weight = 0.0  # weight of the same loss on each coarser mask
    config.loss.no_target_weight = 0.1  # weight of the loss of the no-target head

    config.optimizer = ConfigDict()  # AdamW; see training/optimizer.py
    config.optimizer.learning_rate = 5e-5  # the highest learning rate, reached after the warm-up
    config.optimizer.b1 = 0.9  # decay of the first moment
    config.optimizer.b2 = 0.999  # decay of the second moment
    config.optimizer.weight_decay = 0.01  # decoupled weight decay, which is multiplied by the learning rate
    config.optimizer.clip_norm = 0.0  # the global norm to which gradients are clipped; 0: no clipping
    config.optimizer.schedule = "polynomial"  # schedule of the learning rate after the warm-up, one of SCHEDULES
    config.optimizer.power = 0.9  # exponent of the polynomial
    config.optimizer.warmup_steps = 0  # steps in which the learning rate rises linearly
    config.optimizer.accumulate = 1  # microbatches per step; must divide batch_size
    config.optimizer.ema_decay = 0.0  # final decay of the averaged parameters, which are evaluated; 0: no average
    # Patterns are regular expressions searched in a parameter path such as "vision/stage3_block0/attention/qkv/kernel".
    config.optimizer.multipliers = ()  # ((pattern, factor), ...): factors on the learning rate; the first match applies
    # patterns of parameters without weight decay, as in multipliers
    config.optimizer.no_decay = ("bias$", "norm", "scale$", "relative_position_bias_table", "embeddings")
    config.optimizer.frozen = ()  # patterns of parameters that are not trained, as in multipliers

    config.eval = ConfigDict()
    config.eval.split = "val"  # the split of evaluations during training
    config.eval.every = 2000  # steps between evaluations; 0: no evaluation during training
    config.eval.batch_size = 16  # images of a batch in evaluation, over all devices
    config.eval.expressions_per_image = 0  # K of an evaluation; 0: as in training
    config.eval.limit = 0  # number of images to evaluate, from the first; 0: the whole split
    config.eval.protocol = "original"  # how masks are scored; see evaluation/protocols.py
    config.eval.metric = "mean_iou"  # the metric that selects the best checkpoint
    config.eval.score_scale = 1.0  # scale of the calibrated mask scores (`evaluate --calibrate`)
    config.eval.score_bias = 0.0  # bias of the calibrated mask scores; see evaluation/calibration.py

    config.mesh = ConfigDict()  # how devices share the work; batches are always split over all devices
    config.mesh.fsdp = 1  # devices that share one copy of the training state; 1: every device holds a full copy
    config.mesh.step = "jit"  # one of STEP_FORMS; see training/step.py

    # folder for compiled programs; empty: in the workdir; off: no cache. For `predict` on CPUs see docs/command_line.md
    config.compilation_cache = ""
    config.tensorboard = True  # also write metrics as TensorBoard files
    config.wandb_project = ""  # Weights & Biases project that receives the metrics; empty: none
    config.checkpoint_every = 1000  # steps between checkpoints
    config.keep_every = 0  # steps between checkpoints that are kept permanently; 0: only the latest two and the best
    config.log_every = 50  # steps between lines of the log and the metrics
    config.lock()  # a misspelt field is an error where it is set
    config.input.source.unlock()
    return config


_CHOICES: dict[str, Sequence[Any]] = {
    "dtype": DTYPES,
    "remat": REMAT_POLICIES,
    "fusion.language": LANGUAGES,
    "fusion.mode": FUSIONS,
    "fusion.recurrence": RECURRENCES,
    "fusion.balance": BALANCES,
    "fusion.residual": RESIDUALS,
    "decoder.guidance": GUIDANCES,
    "loss.kind": LOSSES,
    "optimizer.schedule": SCHEDULES,
    "input.sampling": SAMPLINGS,
    "input.on_bad_example": ON_BAD_EXAMPLES,
    "mesh.step": STEP_FORMS,
}
_SUBSETS: dict[str, Sequence[Any]] = {
    "fusion.rotations": ROTATIONS,
    "fusion.pairs": PAIRS,
    "decoder.semantics": SEMANTICS,
}
_AT_LEAST_ONE = (
    *("batch_size", "log_every", "checkpoint_every", "input.expressions_per_image", "eval.batch_size"),
    *("vision.embed_dim", "vision.window_size", "text.num_layers", "fusion.width", "fusion.recurrent_width"),
    *("text.hidden_size", "text.intermediate_size", "text.vocab_size"),
    *("optimizer.accumulate", "input.augment.patch", "mesh.fsdp"),
)
_AT_LEAST_ZERO = (
    *("steps", "epochs", "keep_every", "eval.every", "eval.limit", "eval.expressions_per_image", "input.workers"),
    *("decoder.no_target_width", "loss.coarse_weight", "loss.no_target_weight", "seed"),
    *(f"optimizer.{field}" for field in ("learning_rate", "weight_decay", "power", "clip_norm", "warmup_steps")),
)
# Names that other projects use for fields.
_OTHER_NAMES = {
    "bs": "batch_size",
    "lr": "learning_rate",
    "wd": "weight_decay",
    "warmup": "warmup_steps",
    "grad_clip": "clip_norm",
    "ema": "ema_decay",
    "precision": "dtype",
    "img_size": "image_size",
}
_NETWORK = ("vision", "text", "fusion", "decoder")  # the sections that describe the network
_SHARES = tuple(f"input.augment.{field}" for field in ("flip", "crop", "crop_smallest", "hide_patches", "hide_words"))


def check_types(config: ConfigDict) -> None:
    """Check that every field has a value of the type of its default.

    The arguments of config.input.source are checked by the source.

    Raises:
        UserError: values have wrong types; the message lists all of them.
    """
    if problems := list(_wrong_types(config, default_config(), "")):
        raise UserError(" ".join(problems))


def _wrong_types(config: ConfigDict, defaults: ConfigDict, prefix: str) -> Iterator[str]:
    for name, default in defaults.items():
        value, field = config.get(name, default), f"{prefix}{name}"
        if not _is_like(value, default):
            shown = value.to_dict() if isinstance(value, ConfigDict) else value
            example = f" such as {default}" if default and isinstance(default, tuple) else ""
            yield f"config.{field} is {shown!r:.60}; it must be {_TYPES[type(default)]}{example}."
        elif isinstance(default, ConfigDict):
            yield from _wrong_types(value, default, f"{field}.")


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(_is_like(item, default[0]) for item in value if default)
    if isinstance(default, str) and value is None:  # ml_collections allows it
        return True
    if isinstance(value, bool) or isinstance(default, bool):
        return type(value) is type(default)
    return isinstance(value, int | float) if isinstance(default, float) else isinstance(value, type(default))


_TYPES = {
    **{bool: "true or false", int: "an integer", float: "a number", str: "a string", tuple: "a list"},
    ConfigDict: "a section",
}


def check_config(config: ConfigDict) -> None:
    """Check the values of a configuration and that they are consistent with each other.

    Raises:
        UserError: fields have invalid values; the message lists all of them.
    """
    check_types(config)
    if problems := [*_unknown_fields(config), *(message for _, message in _problems(config))]:
        raise UserError(" ".join(problems))


def check_stored_config(config: ConfigDict) -> None:
    """Check the configuration of a run, except for values that version 0.1.0 did not check: seed and optimizer.

    Fields that are not known are accepted, because the run may be of another version, but not in the sections that
    describe the network: they may change what it computes.

    Raises:
        UserError: fields have invalid values, as in a config.json that was edited by hand, or the network has unknown
            fields; the message lists all of them.
    """
    check_types(config)
    names = _unknown_names(config, field_names(default_config()))
    if unknown := [f"config.{name}" for name in names if name.partition(".")[0] in _NETWORK]:
        raise UserError(
            f"{', '.join(unknown)}: there is no such field in this version of s2rm_jax; update it if a newer version "
            "has trained the network."
        )
    problems = [
        message
        for field, message in _problems(config)
        if field not in ("seed", "steps") and not field.startswith("optimizer.")
    ]
    if problems:
        raise UserError(" ".join(problems))


def choose(field: str, value: Any, table: Mapping[str, _T]) -> _T:
    """Return the entry of a table for the value of a field, also of a configuration that was never checked.

    Raises:
        UserError: the table does not have the value.
    """
    if value not in table:
        raise UserError(f"config.{field} is {value!r}; it must be one of: {', '.join(table)}")
    return table[value]


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """Return the dotted names of all fields and sections."""
    names = []
    for name, value in config.items():
        names.append(prefix + name)
        if isinstance(value, ConfigDict):
            names += field_names(value, f"{prefix}{name}.")
    return names


def leaf_names(config: ConfigDict) -> list[str]:
    """Return the names of all fields, without the sections."""
    return [name for name in field_names(config) if not isinstance(_get(config, name), ConfigDict)]


def similar_fields(name: str, fields: Sequence[str]) -> list[str]:
    """Return the up to three fields that are most likely meant by the name of a field that does not exist."""
    section, dot, leaf = name.rpartition(".")
    known = _OTHER_NAMES.get(leaf, leaf)
    near = [field for field in fields if field.rpartition(".")[2] == known]  # perhaps in another section
    if near and known != leaf:
        same_section = section + dot + known
        return [same_section] if same_section in near else near
    return list(dict.fromkeys([*near, *difflib.get_close_matches(name, fields, n=3, cutoff=0.6)]))[:3]


def _unknown_names(config: ConfigDict, known: Collection[str]) -> Iterator[str]:
    """Yield the fields and sections that are not known, without the arguments of sources."""
    for name in field_names(config):
        if name in known or name.startswith("input.source.") or name.rpartition(".")[0] not in ("", *known):
            continue  # of an unknown section, only its name counts
        yield name


def _unknown_fields(config: ConfigDict) -> Iterator[str]:
    defaults = default_config()
    known = field_names(defaults)
    leaves = leaf_names(defaults)
    for name in _unknown_names(config, known):
        yield unknown_field(name, known if isinstance(_get(config, name), ConfigDict) else leaves)


def did_you_mean(names: Iterable[str], otherwise: str = "remove it (s2rm_jax/config.py has all fields)") -> str:
    """Return "did you mean A or B?", or `otherwise` if there are no names."""
    return f"did you mean {joined}?" if (joined := " or ".join(names)) else otherwise


def unknown_field(name: str, fields: Sequence[str], flag: str = "") -> str:
    """Return the message about a field that does not exist; `fields` are those that may have been meant.

    `flag` is "--" if the field was given as a flag.
    """
    hint = did_you_mean(f"{flag}config.{field}" for field in similar_fields(name, fields))
    return f"{flag}config.{name}: there is no such field; {hint}"


def _problems(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield each field whose value does not fit, and the message that says why."""
    for field, choices in _CHOICES.items():
        yield from _unless(_get(config, field) in choices, config, field, f"one of: {', '.join(map(str, choices))}")
    for field, choices in _SUBSETS.items():
        chosen = _get(config, field)
        fits = len(chosen) > 0 and set(chosen) <= set(choices) and len(set(chosen)) == len(chosen)
        yield from _unless(fits, config, field, f"one or more of: {', '.join(map(str, choices))}")
    for field in _AT_LEAST_ONE:
        yield from _unless(_get(config, field) >= 1, config, field, "at least 1")
    if config.steps == 0 and config.epochs == 0:
        yield "steps", "config.steps and config.epochs are both 0: set one of them."
    for field in _AT_LEAST_ZERO:
        yield from _unless(_get(config, field) >= 0, config, field, "at least 0")
    for field in _SHARES:
        yield from _unless(0 <= _get(config, field) <= 1, config, field, "from 0 to 1")

    size = config.input.image_size
    sides_fit = len(size) == 2 and min(size) >= 8
    yield from _unless(sides_fit, config, "input.image_size", "(height, width) in pixels, each at least 8")
    depths = config.vision.depths
    yield from _unless(
        len(depths) >= 2 and min(depths) >= 1, config, "vision.depths", "two or more stages of at least 1 block"
    )
    for field in ("vision.num_heads", "decoder.widths"):
        expected = f"{counted(len(depths), 'number')}, one per stage of config.vision.depths={tuple(depths)}"
        yield from _unless(len(_get(config, field)) == len(depths), config, field, expected)
    yield from _unless(min(config.decoder.widths, default=1) >= 1, config, "decoder.widths", "at least 1 each")
    for stage, heads in enumerate(config.vision.num_heads):
        yield from _unless_heads(config, "vision.num_heads", heads, config.vision.embed_dim * 2**stage)
    yield from _unless_heads(config, "text.num_heads", config.text.num_heads, config.text.hidden_size)
    yield from _unless_heads(config, "fusion.num_heads", config.fusion.num_heads, config.fusion.width)
    longest = config.text.max_positions
    length_fits = 3 <= config.text.max_tokens <= longest
    yield from _unless(length_fits, config, "text.max_tokens", f"from 3 to config.text.max_positions={longest}")
    yield from _unless(config.eval.score_scale > 0, config, "eval.score_scale", "greater than 0")
    for field in ("optimizer.b1", "optimizer.b2", "optimizer.ema_decay", "vision.drop_path_rate", "text.dropout_rate"):
        yield from _unless(0 <= _get(config, field) < 1, config, field, "at least 0 and less than 1")


def _get(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def _unless(condition: bool, config: ConfigDict, field: str, expected: str) -> Iterator[tuple[str, str]]:
    if not condition:
        yield field, f"config.{field} is {_get(config, field)!r}; it must be {expected}."


def _unless_heads(config: ConfigDict, field: str, heads: int, width: int) -> Iterator[tuple[str, str]]:
    if heads < 1 or width % heads:
        expected = f"the number of heads must divide {width} channels evenly; {heads} does not"
        yield field, f"config.{field} is {_get(config, field)!r}; {expected}."


def shipped_configs() -> Path:
    """Return the folder of the configurations that come with this package: in it (wheel) or beside it (clone)."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(given: str) -> str:
    """Return the file that --config names, followed by the variant after the colon if there is one.

    An existing file is returned as it is. Otherwise `synthetic`, `synthetic.py` and `configs/synthetic.py` name a
    configuration of the package, so that the same command works in a clone and anywhere else.

    Raises:
        UserError: the configuration does not exist.
    """
    name, colon, argument = given.partition(":")
    path = Path(name)
    if path.is_file() and path.suffix == ".py":
        return given
    shipped = shipped_configs() / f"{path.stem}.py"
    if path.parent in (Path(), Path("configs")) and path.suffix in ("", ".py") and shipped.is_file():
        return f"{shipped}{colon}{argument}"
    raise UserError(f"--config: {path} {_explain_missing(path)}")


def _explain_missing(path: Path) -> str:
    """Return why `path` is not a configuration, and the configurations in its folder or else of the package."""
    problem = "is not a Python file" if path.is_file() else "does not exist"
    folder, problem = (path, "is a folder; name a file in it") if path.is_dir() else (path.parent, problem)
    others = [] if folder == Path() else [str(other) for other in folder.glob("*.py")]
    shipped = [other.stem for other in shipped_configs().glob("*.py")]
    return f"{problem}; available: {', '.join(sorted(others or shipped))}"
