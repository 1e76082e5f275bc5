"""A run's workdir: its files, its configuration, and loading the trained network from it."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from s2rm_jax.config import CONFIG_FILE, VOCAB_FILE, check_stored_config, default_config
from s2rm_jax.errors import UserError, counted, first_of, known_storage_error, reason_of, storage_error
from s2rm_jax.evaluation.calibration import UNCALIBRATED, Calibration
from s2rm_jax.hub import HUB, accessing_hub, parse_hub_name
from s2rm_jax.input.sources import names_class, with_defaults
from s2rm_jax.input.tokens import Tokenizer, VocabularyError
from s2rm_jax.interop.torch_folder import LoadedRun, read_pytorch
from s2rm_jax.interop.weight_files import SAFETENSORS
from s2rm_jax.io import on_bucket, workdir_path, write_atomically
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.programs import COMPILATION_CACHE_DIRECTORY, open_program_store
from s2rm_jax.training.checkpoint import (
    CHECKPOINT_DIRECTORY,
    Checkpoints,
    explaining_storage_errors,
    has_checkpoint,
    restore_params,
)
from s2rm_jax.training.lock import HOLDER_FILE
from s2rm_jax.training.logging import (
    LOG_DIRECTORY,
    METRICS_FILE,
    TENSORBOARD_DIRECTORY,
    WANDB_DIRECTORY,
    WANDB_ID_FILE,
    log,
)
from s2rm_jax.training.profile import PROFILE_DIRECTORY
from s2rm_jax.training.state import parameter_shapes

# Fields that may change when a run continues: its length, how often it logs, evaluates and saves, where and how it
# reads, on which devices it runs, and how it saves memory: what it computes twice, and the microbatches of a step, on
# which neither the schedule nor, apart from rounding and dropout, the gradient depends.
MAY_CHANGE = (
    *("steps", "epochs", "log_every", "checkpoint_every", "keep_every", "eval.every", "eval.batch_size", "remat"),
    *("compilation_cache", "tensorboard", "wandb_project", "eval.expressions_per_image", "mesh.fsdp", "mesh.step"),
    "optimizer.accumulate",
    *("eval.score_scale", "eval.score_bias"),  # fitted after training
    *("input.workers", "input.on_bad_example", "text.vocab", "input.source.root", "input.source.image_root"),
    *("vision.pretrained", "text.pretrained"),  # read before the first step only; see resolve_config
)
_ROOT_IN_MIXTURE = re.compile(r"input\.source\.parts\..*\.(image_)?root")
_PATH = re.compile(r"input\.source\.(parts\..*\.)?path")  # a folder, which may change, or the name of other data

_RUN_FILES = {
    *(CONFIG_FILE, HOLDER_FILE, VOCAB_FILE, CHECKPOINT_DIRECTORY, METRICS_FILE, TENSORBOARD_DIRECTORY),
    *(COMPILATION_CACHE_DIRECTORY, PROFILE_DIRECTORY, LOG_DIRECTORY, WANDB_DIRECTORY, WANDB_ID_FILE),
}
_JOB_LOGS = {".log", ".out", ".err"}  # which job schedulers often write beside a run


def load_run(
    workdir: epath.PathLike,
    which: str | int = "best",
    sharding: jax.sharding.Sharding | None = None,
    *,
    config: ConfigDict | None = None,
    network: nn.Module | None = None,
    keep_programs: bool = False,
) -> LoadedRun:
    """Load a checkpoint of a training run, with its configuration and vocabulary.

    A folder of weights, as `convert to-pytorch` writes it, is loaded too, and a network on the Hugging Face Hub.

    Args:
        workdir: the folder, or a name on the Hub; see `find_run`.
        which: "best" by config.eval.metric of the run, "latest", or the step of a checkpoint.
        sharding: of the parameters; by default each is on one device of this process.
        config: the result of `load_config(find_run(workdir))`, if the caller has it already.
        network: the module that the run was trained with, if it was given to `train_and_evaluate`.
        keep_programs: whether to keep compiled programs for the next process, if possible.

    Raises:
        UserError: the folder is not the workdir of a run, has no such checkpoint or no vocabulary, or its configuration
            does not fit its parameters; `which` has another value; or as `find_run`.
    """
    if which not in ("best", "latest") and not isinstance(which, int):
        raise UserError(f"which is {which!r}; it must be 'best', 'latest' or a step")
    folder = find_run(workdir)
    with _explaining_damage(workdir, folder):
        config = load_config(folder) if config is None else config
        tokenizer = _load_tokenizer(folder, config)
        own_network = network is not None  # whose programs do not follow from the configuration
        if config.network and not own_network:
            raise UserError(
                f"{folder} was trained with a network of your own, {config.network}: load it in Python, "
                "by load_run(..., network=...)"
            )
        network = build_network(config) if network is None else network
        programs = open_program_store(config) if keep_programs and not own_network else None
        find_shapes = partial(parameter_shapes, network, config)
        shapes = programs.remember("parameter_shapes", find_shapes) if programs else find_shapes()
        step: int | None = None
        if not on_bucket(folder) and (folder / SAFETENSORS).is_file() and not has_checkpoint(folder):
            if isinstance(which, int):
                raise UserError(f"{folder} is a folder of weights, without checkpoints; step {which} cannot be chosen")
            params = read_pytorch(Path(folder) / SAFETENSORS, shapes)
        else:
            step, params = restore_params(folder, config.eval.metric, which, shapes, sharding)
    if sharding is not None:
        params = jax.device_put(params, sharding)
    return LoadedRun(network, params, tokenizer, config, step, programs)


def _load_tokenizer(folder: epath.Path, config: ConfigDict) -> Tokenizer:
    try:
        return Tokenizer(folder / VOCAB_FILE, config.text.max_tokens, config.text.lower_case)
    except VocabularyError as error:
        what_to_do = "restore the file, because the network was trained with its words"
        raise UserError(f"{error.problem}; {what_to_do}") from error


def find_run(workdir: epath.PathLike) -> epath.Path:
    """Return the folder of a trained network, which is downloaded if it is on the Hugging Face Hub.

    Only the files that are needed are downloaded, once, into the cache of huggingface_hub.

    Args:
        workdir: the workdir of a run, on a disk or a bucket, or a folder of weights. "user/name" is a network on the
            Hub if there is no such path here, and "hf://user/name" is one always. Either may end with "@REVISION": a
            branch, a tag or a commit.

    Raises:
        UserError: the Hub does not have the network or refuses it; as `workdir_path`.
        TemporaryFailure: the Hub cannot be reached, and the network is not in the cache.
    """
    if not on_hub(workdir):
        return workdir_path(workdir)
    given = os.fspath(workdir)
    named = parse_hub_name(given)
    if named is None:
        raise UserError(
            f"{given} is not a name on the Hugging Face Hub: give hf://USER/NAME or hf://USER/NAME@REVISION"
        )
    return epath.Path(_download(given, *named))


def on_hub(workdir: epath.PathLike) -> bool:
    """Return whether `find_run` looks for a workdir on the Hugging Face Hub."""
    if not isinstance(workdir, str | os.PathLike):
        raise UserError(f"a workdir must be a path or a name on the Hub, got {type(workdir).__name__}; give a string")
    given = os.fspath(workdir)
    return given.startswith(HUB) or (parse_hub_name(given) is not None and not os.path.exists(given))


def _download(given: str, name: str, revision: str | None) -> Path:
    """Return the folder of a network in the cache of huggingface_hub, after downloading what is missing there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class QuietBar(tqdm):
        """A progress bar on terminals only, which leaves nothing behind."""

        def __init__(self, *arguments: Any, **named: Any):
            super().__init__(*arguments, **named | {"disable": None, "leave": False})

    files = [CONFIG_FILE, VOCAB_FILE, SAFETENSORS]
    may_be_path = not given.startswith(HUB)
    there_is = "there is no such folder, and it " if may_be_path else ""
    with accessing_hub(f"{given}: {there_is}cannot be downloaded from the Hugging Face Hub", may_be_path=may_be_path):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files, tqdm_class=QuietBar))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{given}: the repository on the Hugging Face Hub has no {' and no '.join(missing)}; give one that "
            "convert to-hub has written"
        )
    return folder


@contextmanager
def _explaining_damage(given: epath.PathLike, folder: epath.Path) -> Iterator[None]:
    """Add how to download a network of the Hub again to errors of its files, because their cache hides them."""
    try:
        yield
    except UserError as error:
        if not _in_hub_cache(folder):
            raise
        name, cache = f"{given}: " if on_hub(given) else "", folder.parent.parent
        raise UserError(f"{name}{str(error).rstrip('.')}. To download it again, delete {cache}.") from error


def _in_hub_cache(folder: epath.Path) -> bool:
    return folder.parent.name == "snapshots" and str(folder.parent.parent.name).startswith("models--")


def save_config(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Write the resolved configuration to `config.json` of the workdir, atomically."""
    write_atomically(epath.Path(workdir) / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")


def save_calibration(workdir: epath.PathLike, calibration: Calibration) -> None:
    """Write a calibration to `config.json` of the workdir, atomically; the other fields stay as they are.

    Raises:
        UserError: the file cannot be written.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    with explaining_storage_errors(f"{path} cannot be written", path.parent):
        content = json.loads(path.read_text())
        content["eval"] |= calibration.fields()
        write_atomically(path, json.dumps(content, indent=2) + "\n")


def load_config(workdir: epath.PathLike) -> ConfigDict:
    """Return the configuration of the run in `workdir`, locked; config.text.vocab is the run's own vocabulary.

    Fields that are missing, because they were added after the run, have their defaults.

    Raises:
        UserError: `workdir` is not the workdir of a run, or its config.json cannot be read or has wrong values.
    """
    workdir = workdir_path(workdir)
    path = workdir / CONFIG_FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(_describe_missing(workdir)) from None
    except NotADirectoryError:
        file = next(one for one in (workdir, *workdir.parents) if one.exists())
        raise UserError(f"{file} is a file; give the folder of a training run") from None
    except Exception as error:  # clients of buckets raise many kinds
        explained = known_storage_error(f"{path} cannot be read", error)
        if explained is None and isinstance(error, OSError | ValueError | RecursionError):
            explained = UserError(f"{path} cannot be read ({error}): restore it, or train into another --workdir")
        if explained is None:
            raise
        raise explained from error
    defaults = default_config().to_dict()
    sections = [name for name, value in defaults.items() if isinstance(value, dict)]
    if not (isinstance(content, dict) and all(isinstance(content.get(name), dict) for name in sections)):
        raise UserError(f"{path} is not a configuration of s2rm_jax: {workdir} is not the workdir of a run")
    config = ConfigDict(_completed(content, defaults))
    vocab = workdir / VOCAB_FILE
    if vocab.exists():
        config.text.vocab = str(vocab)
    if _in_hub_cache(workdir) and names_class(config.input.source):
        config.input.source = ConfigDict({"name": ""})  # a network from the Hub must not choose what is imported
    try:
        check_stored_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error} Restore the file, or train into another --workdir.") from None
    return config.lock()


def _describe_missing(workdir: epath.Path) -> str:
    """Return why a workdir has no config.json, and what to do."""
    if not workdir.exists():
        return f"folder {workdir} not found; check the path"
    if any((workdir / name).exists() for name in ("encode_image.onnx", "encode_image.stablehlo")):
        return f"{workdir} is an export; give the workdir of its run, or use segment.py in it"
    return (
        f"{workdir / CONFIG_FILE} not found; give the workdir of a run, or a folder that convert to-pytorch has written"
    )


def _completed(value: Any, default: Any = None) -> Any:
    """Return a value of config.json with the defaults of missing fields, and with tuples for lists."""
    if isinstance(value, dict):
        defaults = default if isinstance(default, dict) else {}
        return defaults | {name: _completed(item, defaults.get(name)) for name, item in value.items()}
    return tuple(map(_completed, value)) if isinstance(value, list) else value


def resolve_config(config: ConfigDict, began: ConfigDict | None) -> ConfigDict:
    """Return a copy of `config` with the pretrained weights, the vocabulary and the calibration that the run uses.

    A run that continues keeps those in its stored configuration, `began`.

    Raises:
        UserError: config.text.vocab and the vocabulary of the run that is continued have different words.
    """
    config = copy.deepcopy(config)
    if began is not None:
        for part in ("vision", "text"):
            given, kept = config[part].pretrained, began[part].pretrained
            config[part].pretrained = kept
            if given not in ("", kept):
                log(f"ignored: config.{part}.pretrained={given}, because the run continues from its checkpoint")
        config.text.vocab = _same_vocabulary(config.text.vocab, began.text.vocab, config.text.lower_case)
        config.eval.update(Calibration.of(began).fields())
    return config


def _same_vocabulary(given: str, kept: str, lower_case: bool) -> str:
    if not (given and kept) or given == kept:
        return kept or given
    given_words, kept_words = (Tokenizer(path, lower_case=lower_case).vocabulary for path in (given, kept))
    if given_words != kept_words:
        raise UserError(
            f"config.text.vocab: {given} differs in words or their order from {kept}, the vocabulary of the run: "
            "leave the field empty, or give another --workdir"
        )
    return kept


def require_same_config(workdir: epath.PathLike, began: ConfigDict, config: ConfigDict) -> None:
    """Check that the run in `workdir`, which began with the configuration `began`, can continue with `config`.

    Raises:
        UserError: a field other than those in MAY_CHANGE differs.
    """
    old, new = _flatten(began), _flatten(config)
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    moved = {name for name in differing if _ROOT_IN_MIXTURE.fullmatch(name)}
    moved |= {name for name in differing if _PATH.fullmatch(name) and _has_moved(old.get(name), new.get(name))}
    refused = [name for name in differing if name not in MAY_CHANGE and name not in moved]
    if refused:
        shown = first_of([f"{name} (was {old.get(name)!r}, now {new.get(name)!r})" for name in refused], ", ")
        raise UserError(
            f"the run in {workdir} was started with a different configuration: {shown}. "
            "Give another --workdir, or the same configuration to continue this run."
        )


def _has_moved(old: str | None, new: str | None) -> bool:
    """Return whether a new path is probably that of the same files: it exists and has the same name."""
    return bool(old and new) and Path(str(new)).expanduser().exists() and Path(str(new)).name == Path(str(old)).name


def _flatten(config: ConfigDict) -> dict[str, Any]:
    """Return the fields by their dotted names, with the values that JSON gives them.

    A field of the source that was left out has its default, so a run continues when a recipe names one more field.
    """
    fields = config.to_dict()
    fields["input"]["source"] = with_defaults(fields["input"]["source"])
    flat: dict[str, Any] = flatten_dict(json.loads(json.dumps(fields, default=str)), sep=".")
    return flat


def require_workdir(workdir: epath.PathLike) -> None:
    """Check that a run can begin or continue in `workdir`: a new or empty folder, that of a run, or of a failed start.

    Raises:
        UserError: it is a file, or a folder with other files.
    """
    workdir = workdir_path(workdir)
    try:
        exists = workdir.exists()
    except Exception as error:  # clients of buckets raise many kinds: no credentials, no such bucket, no network
        what = f"--workdir {workdir} cannot be reached"
        raise storage_error(what, error) or UserError(f"{what}: {reason_of(error)}") from error
    if exists and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; give a folder: a new one, or that of a run to be continued")
    if not workdir.is_dir() or has_checkpoint(workdir):
        return
    names = [path.name for path in workdir.iterdir() if path.suffix not in _JOB_LOGS]
    foreign = sorted(name for name in names if name not in _RUN_FILES and not name.startswith("."))
    if not foreign:
        return
    try:
        load_config(workdir)  # a run may have other files beside its own
    except UserError:
        raise UserError(
            f"--workdir {workdir} holds files that do not belong to a run, such as {foreign[0]}; give a new folder, "
            "or that of a run to be continued"
        ) from None


@contextmanager
def open_workdir(
    workdir: epath.Path, config: ConfigDict, began: ConfigDict | None, save_vocab: Callable[[epath.Path], None]
) -> Iterator[Checkpoints]:
    """Open the checkpoints of a new run or of one that began with `began`; write config.json and vocab.txt.

    The caller holds the lock of the workdir (`lock.lock_workdir`).

    Raises:
        UserError: the workdir cannot be used, or the run in it was started with a different configuration.
    """
    writes = distributed.is_first()
    shared = "must be one folder that all processes share"
    # Buckets have no empty folders, and are shared by nature.
    distributed.require_everywhere(lambda: on_bucket(workdir) or workdir.is_dir(), f"--workdir {workdir} {shared}")
    with Checkpoints(workdir, config.checkpoint_every, config.eval.metric, config.keep_every) as checkpoints:
        step = checkpoints.latest_step
        if distributed.gather(step) != [step] * distributed.process()[1]:
            raise UserError(f"--workdir {workdir} {shared}, but the processes see different checkpoints there")
        if (began is None) != (step is None):
            raise UserError(f"--workdir {workdir} has changed since this command was started: run it again")
        with explaining_storage_errors(f"--workdir {workdir} cannot be used", workdir):
            if began is not None and step is not None:
                _prepare_to_continue(workdir, config, began, step)
            elif writes:  # no checkpoint depends on these files yet
                save_vocab(workdir / VOCAB_FILE)
            if writes:
                save_config(workdir, config)
        yield checkpoints


def _prepare_to_continue(workdir: epath.Path, config: ConfigDict, began: ConfigDict, step: int) -> None:
    """Check that the run can continue from `step` with `config`, and log what this changes."""
    require_same_config(workdir, began, config)
    if step > config.steps:
        raise UserError(
            f"config.steps is {config.steps:,}, but the run in {workdir} has taken {counted(step, 'step')}: "
            f"give at least --config.steps={step} or as many epochs, or another --workdir"
        )
    if Calibration.of(began) != UNCALIBRATED and step < config.steps:
        config.eval.update(UNCALIBRATED.fields())
        log("The weights will change, so scores are no longer calibrated: run evaluate --calibrate again.")
    if began.steps != config.steps and step < config.steps:
        log(
            f"The run had {counted(began.steps, 'step')} and now has {config.steps:,}. From step {step:,} on, "
            f"the learning rate follows the schedule of a {config.steps:,}-step run."
        )
    parts = config.optimizer.accumulate
    if began.optimizer.accumulate != parts and step < config.steps:
        log(
            f"config.optimizer.accumulate was {began.optimizer.accumulate} and now is {parts}. From step {step:,} on, "
            "gradients differ by rounding, and dropout, if any, draws other random numbers."
        )
