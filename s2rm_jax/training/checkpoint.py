"""Checkpoints: everything that must resume together, saved as one.

The latest two and the best are kept, and those of every config.keep_every steps.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from etils import epath, epy

from s2rm_jax.config import CONFIG_FILE
from s2rm_jax.errors import (
    TemporaryFailure,
    UserError,
    find_fault,
    first_of,
    is_temporary,
    known_storage_error,
    reason_of,
    storage_error,
)
from s2rm_jax.interop.weight_files import NAMES, SAFETENSORS
from s2rm_jax.io import on_bucket, workdir_path, write_atomically
from s2rm_jax.parallel import distributed
from s2rm_jax.training.logging import log
from s2rm_jax.training.state import TrainState

with epy.lazy_imports():  # prediction with a folder of weights needs none of it
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers

CHECKPOINT_DIRECTORY = "checkpoints"
_COMMITTED = "commit_success.txt"  # Orbax marks complete checkpoints with it on buckets, which cannot rename atomically
_POSITION = "examples_seen"  # the name of `rows_seen` in the files
_EPOCH_ROWS = "epoch_rows"
_METRICS = "metrics"  # the item and the file in which Orbax keeps the metrics
_WAITS = (1.0, 4.0, 15.0, 60.0)  # seconds before the attempts after the first, if a failure may be temporary

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """The items that are saved and restored together."""

    step: int
    state: TrainState  # after `step` steps
    rows_seen: int  # position of the input: the rows (input/sampling.py) that all processes have read
    metrics: dict[str, float] | None  # of the evaluation of this state
    epoch_rows: int | None = None  # rows of an epoch of the data; None if it has none, or in files of 0.1.0


class Checkpoints:
    """The checkpoints of one run, in `checkpoints` of its workdir: a folder per step with `state` and `data`.

    A checkpoint appears atomically: one that was being written when the process died is ignored. Every process must
    call every method, and writes the part of the state on its devices. Any number of processes and devices can restore
    a checkpoint.
    """

    def __init__(self, workdir: epath.PathLike, every: int, metric: str, keep_every: int = 0):
        self._directory = epath.Path(workdir) / CHECKPOINT_DIRECTORY
        self._metric = metric

        def score(metrics: dict[str, float]) -> float:
            return metrics.get(metric, -math.inf)

        options = ocp.CheckpointManagerOptions(
            save_decision_policy=checkpoint_managers.AnySavePolicy(
                [checkpoint_managers.FixedIntervalPolicy(steps) for steps in (every, keep_every) if steps]
            ),
            # If only the best were kept, a restart would rewind to it. The latest two are kept, so that an unreadable
            # checkpoint costs one interval and not the run.
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(2),
                    checkpoint_managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
                    *([checkpoint_managers.EveryNSteps(keep_every)] if keep_every else []),
                ]
            ),
            best_fn=score,  # without it Orbax does not write the metrics
        )
        with explaining_storage_errors(f"the checkpoints in {self._directory} cannot be read", self._directory):
            self._scores = _scores(self._directory, metric)
            self._manager = _open(self._directory, ocp.StandardCheckpointHandler(), options)
        self._unwritten: Checkpoint | None = None

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps."""
        return step > 0 and self._manager.should_save(step)

    def save(self, checkpoint: Checkpoint) -> None:
        """Save a checkpoint, or add the metrics to the one of the same step, whose state is the same.

        Return once the state is copied; writing continues in the background until the next save or `close`. After a
        temporary failure, saving is retried with this checkpoint, even if the failure was in writing the previous one.

        Raises:
            UserError: this checkpoint, or the one before it, cannot be written. Earlier ones remain.
        """
        self._write(lambda: self._save(checkpoint))

    def _save(self, checkpoint: Checkpoint) -> None:
        self._manager.wait_until_finished()
        step, metrics = checkpoint.step, checkpoint.metrics
        if step not in self._manager.all_steps():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(checkpoint.state),
                    data=ocp.args.JsonSave({_POSITION: checkpoint.rows_seen, _EPOCH_ROWS: checkpoint.epoch_rows}),
                ),
                metrics=metrics or {},
                force=True,  # also at steps that are not `due`: the last, an evaluation, a stop
            )
            self._unwritten = checkpoint
        elif metrics:
            if distributed.is_first():
                path = self._directory / str(step) / _METRICS / _METRICS
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, json.dumps(metrics))
            distributed.gather(None)
            self._manager.reload()
        if metrics:
            self._scores[step] = metrics[self._metric]

    def _write(self, action: Callable[[], None]) -> None:
        with explaining_storage_errors(self._not_written, self._directory):
            _with_retries(action, self._not_written)

    @property
    def _not_written(self) -> str:
        return f"a checkpoint cannot be written to {self._directory}"

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the best checkpoint, None if none was evaluated."""
        step = _best_step(self._scores)
        return None if step is None else (step, self._scores[step])

    def restore_latest(self, abstract: TrainState) -> Checkpoint | None:
        """Restore the latest checkpoint with the structure, dtypes and shardings of `abstract`; None if there is none.

        Raises:
            UserError: the checkpoint is damaged, or its architecture differs from `abstract`.
        """
        step = self.latest_step
        if step is None:
            return None

        def read() -> Any:
            saved = _saved_tree(self._manager, step)["params"]
            _require_same_parameters(saved, abstract.params, self._directory / str(step))
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
            return self._manager.restore(step, args=args)

        items = _read(read, self._directory, step)
        metrics = self._manager.metrics(step) or None
        return Checkpoint(step, items.state, items.data[_POSITION], metrics, items.data.get(_EPOCH_ROWS))

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            UserError: the last checkpoint cannot be written.
        """
        self._write(self._finish)

    def _finish(self) -> None:
        last = self._unwritten
        if last is not None and last.step not in self._manager.all_steps() and not _is_deleted(last.state):
            self._save(last)  # writing it failed
        self._manager.wait_until_finished()
        self._unwritten = None

    def close(self) -> None:
        """Wait until everything is written, and close the folder."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A process that fails must not wait here for the others, which may be waiting for it elsewhere. Where all
        # processes stop together, they have called `wait` before.
        if kind is None:
            self.close()
        elif distributed.is_alone():
            with explaining_storage_errors(self._not_written, self._directory):
                self._manager.close()


def has_checkpoint(workdir: epath.PathLike) -> bool:
    """Return whether the run in `workdir` has a complete checkpoint."""
    directory = epath.Path(workdir) / CHECKPOINT_DIRECTORY
    with explaining_storage_errors(f"{directory} cannot be read", directory):
        return bool(_complete_steps(directory))


def _complete_steps(directory: epath.Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdigit() and (not on_bucket(path) or (path / _COMMITTED).exists())
    )


def restore_params(
    workdir: epath.PathLike,
    metric: str,
    which: str | int = "best",
    expected: Any | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[int, Any]:
    """Return the step of a checkpoint and its parameters for evaluation: the averaged ones if the run keeps an average.

    Only the parameters are read, not the rest of the state.

    Args:
        workdir: the workdir of the run.
        metric: config.eval.metric of the run, by which a checkpoint is the best.
        which: "best", "latest", or a step; if no checkpoint was evaluated, the latest is the best.
        expected: the parameters of the network or their shapes (`state.parameter_shapes`), which are checked.
        sharding: of every parameter; by default each is on one device of this process.

    Raises:
        UserError: `workdir` has no such checkpoint, or it is damaged, or its architecture differs from `expected`.
    """
    workdir = workdir_path(workdir)
    directory = workdir / CHECKPOINT_DIRECTORY
    if not has_checkpoint(workdir):
        is_export = (workdir / CONFIG_FILE).exists() and not directory.exists()
        other = next((name for name in NAMES if is_export and (workdir / name).exists()), None)
        if other:
            raise UserError(
                f"{workdir} has its weights in {other}: convert it first "
                f"(python -m s2rm_jax.convert from-pytorch --weights {workdir} --workdir NEW)"
            )
        restore = f", or restore {workdir / SAFETENSORS} if this is an exported network" if is_export else ""
        train = f"train first (python -m s2rm_jax.train --workdir {workdir} ...)"
        raise UserError(f"no checkpoint in {directory}: {train}{restore}")
    with explaining_storage_errors(f"the checkpoints in {directory} cannot be read", directory):
        scores, steps = _scores(directory, metric), _complete_steps(directory)
        # Unlike the standard handler, this one reads a part of a tree.
        opened = _open(directory, ocp.PyTreeCheckpointHandler())
    with opened as manager:
        best = _best_step(scores) if which == "best" else None
        step = which if isinstance(which, int) else steps[-1] if best is None else best
        if step not in steps:
            raise UserError(f"{directory} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")

        def read() -> Any:
            tree = _saved_tree(manager, step)
            name = "params" if tree.get("ema_params") is None else "ema_params"
            if expected is not None:
                _require_same_parameters(tree[name], expected, directory / str(step))
            abstract = {name: _placed(tree[name], sharding)}
            restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
            args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
            return manager.restore(step, args=ocp.args.Composite(state=args)).state[name]

        return step, _read(read, directory, step)


def _with_retries(action: Callable[[], T], what: str) -> T:
    """Return `action()`; after a failure that may be temporary, log `what`, wait, and try again.

    Several processes do not try again, because they would have to do so together.
    """
    again = False
    for wait in _WAITS if distributed.is_alone() else ():
        try:
            return action()
        except Exception as error:  # Orbax, TensorStore and the clients of buckets raise many kinds
            # A second attempt may meet files that threads of the first one still write.
            again = is_temporary(error) or (again and isinstance(error, OSError))
            if not again:
                raise
            log(f"{what} ({reason_of(error)}); trying again in {wait:.0f} s")
        time.sleep(wait)
    return action()


@contextmanager
def explaining_storage_errors(what: str, directory: epath.Path) -> Iterator[None]:
    """Raise UserError if a disk or bucket is the cause of an error inside; `what` says what cannot be done."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        explained = None if _is_of_peer(error, directory) else storage_error(what, error)
        if explained is None:
            raise
        raise explained from error


def _is_of_peer(error: Exception, directory: epath.Path) -> bool:
    return distributed.is_peer_failure(error) and str(directory) not in str(error)


def _read(action: Callable[[], T], directory: epath.Path, step: int) -> T:
    """Return `action()`, which reads a checkpoint.

    Raises:
        TemporaryFailure: the checkpoint cannot be reached now, or was removed meanwhile.
        UserError: permission is denied, or the checkpoint is damaged; its parts are read one by one to find out.
    """
    path = directory / str(step)
    what = f"the checkpoint {path} cannot be read"
    try:
        return _with_retries(action, what)
    except UserError:
        raise
    except Exception as error:
        if _is_of_peer(error, directory):
            raise
        explained = known_storage_error(what, error)
        if explained is not None:
            raise explained from error
        if not path.exists():
            raise TemporaryFailure(
                f"the checkpoint {path} was removed while it was read; a run that is training there keeps the latest "
                "two and the best: run the command again"
            ) from error
        damage = _find_damage(path)
        if damage is None:
            raise
        others = [other for other in _complete_steps(directory) if other != step]
        advice = (
            f"rename it to {step}.damaged to use that of step {others[-1]}"
            if others
            else "there is no other; copy it back from a backup, or train in another --workdir"
        )
        raise UserError(f"the checkpoint {path} is damaged ({damage}): {advice}") from error


def _find_damage(path: epath.Path) -> str | None:
    """Read a checkpoint part by part; return the first part that cannot be read and why, or None."""
    path = _absolute(path)
    part, handler = "data", ocp.PyTreeCheckpointHandler()
    with explaining_storage_errors(f"the checkpoint {path} cannot be read", path):
        try:
            ocp.JsonCheckpointHandler().restore(path / part)
            part = "state"
            arrays = _placed(handler.metadata(path / part).tree)
            restore_args = ocp.checkpoint_utils.construct_restore_args(arrays)
            for keys, _ in jax.tree_util.tree_leaves_with_path(arrays):
                part = jax.tree_util.keystr(keys, simple=True, separator="/")
                one = jax.tree_util.tree_map_with_path(lambda k, leaf, keys=keys: leaf if k == keys else ..., arrays)
                handler.restore(path / "state", args=ocp.args.PyTreeRestore(one, restore_args=restore_args))
        except Exception as error:
            if find_fault(error) != "other":
                raise
            return f"{part}: {reason_of(error)}"
    return None


def _open(
    directory: epath.Path, state: ocp.CheckpointHandler, options: ocp.CheckpointManagerOptions | None = None
) -> ocp.CheckpointManager:
    handlers = {"state": state, "data": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(_absolute(directory), options=options, item_handlers=handlers)


def _absolute(path: epath.Path) -> epath.Path:
    """Return the path as Orbax needs it, which refuses relative ones."""
    return path if on_bucket(path) else path.absolute()


def _placed(tree: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Return the arrays of a checkpoint as ShapeDtypeStructs on devices of this process; those it had may not exist."""
    here = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)


def _scores(directory: epath.Path, metric: str) -> dict[int, float]:
    """Return the score of every evaluated checkpoint, by step.

    Raises:
        UserError: the metrics of a checkpoint are damaged.
    """
    found = ((step, _read_metrics(directory / str(step) / _METRICS)) for step in _complete_steps(directory))
    return {step: metrics[metric] for step, metrics in found if metric in metrics}


def _best_step(scores: Mapping[int, float]) -> int | None:
    """Return the step with the highest score, None if there is none; of equal ones, the last, which Orbax keeps."""
    return max(scores, key=lambda step: (scores[step], step), default=None)


def _read_metrics(path: epath.Path) -> dict[str, float]:
    try:
        metrics = json.loads((path / _METRICS).read_text())
        return {name: float(value) for name, value in metrics.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path / _METRICS} is damaged ({reason_of(error)}): rename the folder {path}; the checkpoint itself "
            "remains and counts as not evaluated"
        ) from error


def _saved_tree(manager: ocp.CheckpointManager, step: int) -> Any:
    """Return the shapes and dtypes of a saved state."""
    return manager.item_metadata(step).state.tree


def _require_same_parameters(saved: Any, expected: Any, where: epath.Path) -> None:
    """Raise UserError naming the first parameters in which two trees differ."""
    old, new = _shapes(saved), _shapes(expected)
    differences = [f"{path} is missing in the checkpoint" for path in new.keys() - old.keys()]
    differences += [f"{path} is not in the network" for path in old.keys() - new.keys()]
    differences += [
        f"{path} is {old[path]} in the checkpoint, {new[path]} in the network"
        for path in old.keys() & new.keys()
        if old[path] != new[path]
    ]
    if differences:
        raise UserError(
            f"{where} has a different architecture: {first_of(sorted(differences))}. It was trained with "
            f"{where.parents[1] / CONFIG_FILE}: use that configuration (and `network`, if it was your own), or another "
            "workdir."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(leaf.shape) for keys, leaf in leaves}


def _is_deleted(state: Any) -> bool:
    """Return whether a state was donated to the step after it."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))
