"""Checkpoints: everything that must resume together, saved as one. The latest two and the best are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from s2rm_jax.config import CONFIG_FILE
from s2rm_jax.errors import UserError
from s2rm_jax.io import on_bucket, workdir_path
from s2rm_jax.parallel import distributed
from s2rm_jax.training.state import TrainState

CHECKPOINT_DIRECTORY = "checkpoints"
_REPLACED = ".replaced"  # suffix of a checkpoint that is being deleted
_COMMITTED = "commit_success.txt"  # Orbax marks complete checkpoints with it on buckets, which cannot rename atomically


@dataclass(frozen=True)
class Checkpoint:
    """The items that are saved and restored together.

    state          after `step` steps
    examples_seen  position of the input, in images
    metrics        of the evaluation of this state, or None
    """

    step: int
    state: TrainState
    examples_seen: int
    metrics: dict[str, float] | None


class Checkpoints:
    """The checkpoints of one run, in <workdir>/checkpoints/<step>/{state, data}.

    A checkpoint appears atomically: one that was being written when the process died is ignored. Every process must
    call every method, and writes the part of the state on its devices. Any number of processes and devices can restore
    a checkpoint.
    """

    def __init__(self, workdir: epath.PathLike, every: int, metric: str):
        self._directory = epath.Path(workdir) / CHECKPOINT_DIRECTORY
        self._metric = metric

        def score(metrics: dict[str, float]) -> float:
            return metrics.get(metric, -math.inf)

        options = ocp.CheckpointManagerOptions(
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(every),
            # With the best alone, a restart would rewind to it. Of the latest there are two, so that an unreadable
            # checkpoint costs one interval and not the run.
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(2),
                    checkpoint_managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            best_fn=score,  # without it Orbax does not write the metrics
        )
        self._manager = ocp.CheckpointManager(
            _absolute(self._directory), options=options, item_handlers=_handlers(ocp.StandardCheckpointHandler())
        )
        self._scores = _scores(self._manager, metric)
        if distributed.is_first():
            self._clear_replaced()  # left by a process that was killed while deleting

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps."""
        return step > 0 and self._manager.should_save(step)

    def save(self, checkpoint: Checkpoint) -> None:
        """Save a checkpoint, replacing an earlier one of the same step.

        Return once the state is copied; writing continues in the background until the next save or `close`.

        Raises:
            UserError: this checkpoint, or the one before it, cannot be written.
        """
        with _writing(self._directory):
            if checkpoint.step in self._manager.all_steps():
                self._manager.wait_until_finished()
                self._delete(checkpoint.step)
            if checkpoint.metrics:
                self._scores[checkpoint.step] = checkpoint.metrics[self._metric]
            self._manager.save(
                checkpoint.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(checkpoint.state),
                    data=ocp.args.JsonSave({"examples_seen": checkpoint.examples_seen}),
                ),
                metrics=checkpoint.metrics or {},
                force=True,  # also at steps that are not `due`: the last, an evaluation, a stop
            )

    def _delete(self, step: int) -> None:
        """Delete a checkpoint so that a partly deleted one never counts as complete."""
        if distributed.is_first():
            path = self._directory / str(step)
            if on_bucket(path):
                (path / _COMMITTED).unlink(missing_ok=True)
                path.rmtree()
            else:
                path.rename(self._directory / f"{step}{_REPLACED}")
                self._clear_replaced()
        distributed.gather(None)
        self._manager.reload()

    def _clear_replaced(self) -> None:
        if on_bucket(self._directory):
            return  # there, `_delete` renames nothing
        for path in self._directory.iterdir():
            if path.name.endswith(_REPLACED):
                path.rmtree()

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the best checkpoint, None if none was evaluated."""
        return max(self._scores.items(), key=lambda item: item[1], default=None)

    def restore_latest(self, abstract: TrainState) -> Checkpoint | None:
        """Restore the latest checkpoint with the structure, dtypes and shardings of `abstract`; None if there is none.

        Raises:
            UserError: the checkpoint is damaged, or of another architecture.
        """
        step = self.latest_step
        if step is None:
            return None
        with _reading(self._manager, step, self._directory):
            saved = _saved_tree(self._manager, step)["params"]
            _require_same_parameters(saved, abstract.params, self._directory / str(step))
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
            items = self._manager.restore(step, args=args)
        return Checkpoint(step, items.state, items.data["examples_seen"], self._manager.metrics(step) or None)

    def wait(self) -> None:
        """Wait until everything is written."""
        with _writing(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is written, and close the directory."""
        with _writing(self._directory):
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A process that fails must not wait here for the others, which may be waiting for it elsewhere. Where all
        # processes stop together, they have called `wait` before.
        if kind is None or distributed.is_alone():
            self.close()


def has_checkpoint(workdir: epath.PathLike) -> bool:
    """Return whether the run in `workdir` has a complete checkpoint."""
    directory = epath.Path(workdir) / CHECKPOINT_DIRECTORY
    if not directory.is_dir():
        return False
    return any(
        path.name.isdigit() and (not on_bucket(path) or (path / _COMMITTED).exists()) for path in directory.iterdir()
    )


def checkpoint_step(workdir: epath.PathLike, metric: str, which: Literal["best", "latest"] = "best") -> int | None:
    """Return the step of the checkpoint that `restore_params` reads, or None if there is none."""
    if not has_checkpoint(workdir):
        return None
    handlers = _handlers(ocp.PyTreeCheckpointHandler())
    with ocp.CheckpointManager(
        _absolute(workdir_path(workdir) / CHECKPOINT_DIRECTORY), item_handlers=handlers
    ) as manager:
        return _chosen_step(manager, _scores(manager, metric), which)


def _chosen_step(manager: ocp.CheckpointManager, scores: dict[int, float], which: str) -> int:
    return max(scores, key=scores.__getitem__) if scores and which == "best" else manager.latest_step()


def restore_params(
    workdir: epath.PathLike,
    metric: str,
    which: Literal["best", "latest"] = "best",
    expected: Any | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Any:
    """Return the parameters of a run for evaluation and prediction: the averaged ones if the run keeps an average.

    Only the parameters are read, not the rest of the state.

    Args:
        workdir: of the run.
        metric: config.eval.metric of the run, by which a checkpoint is the best.
        which: "best" or "latest"; if no checkpoint was evaluated, the latest is the best.
        expected: the parameters of the network or their shapes (`state.parameter_shapes`), which are checked.
        sharding: of every parameter; by default each is on one device of this process.

    Raises:
        UserError: `workdir` has no checkpoint, or it is damaged or of another architecture than `expected`.
    """
    workdir = workdir_path(workdir)
    directory = workdir / CHECKPOINT_DIRECTORY
    if not has_checkpoint(workdir):
        raise UserError(
            f"no checkpoint in {directory}: train first (python -m s2rm_jax.train --workdir {workdir} ...)."
        )
    handlers = _handlers(ocp.PyTreeCheckpointHandler())  # unlike the standard handler, it reads a part of a tree
    with ocp.CheckpointManager(_absolute(directory), item_handlers=handlers) as manager:
        step = _chosen_step(manager, _scores(manager, metric), which)
        with _reading(manager, step, directory):
            tree = _saved_tree(manager, step)
            name = "params" if tree.get("ema_params") is None else "ema_params"
            if expected is not None:
                _require_same_parameters(tree[name], expected, directory / str(step))
            # The devices of the training may not exist here.
            here = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            abstract = {name: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree[name])}
            restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
            args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
            return manager.restore(step, args=ocp.args.Composite(state=args)).state[name]


@contextmanager
def _writing(directory: epath.Path) -> Iterator[None]:
    """Raise UserError if a checkpoint cannot be written (no space, no permission); earlier ones remain."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # of the system, TensorStore, and Orbax's threads
        if distributed.is_peer_failure(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"a checkpoint cannot be written to {directory} ({reason}): make room there and run the command again."
        ) from error


@contextmanager
def _reading(manager: ocp.CheckpointManager, step: int, directory: epath.Path) -> Iterator[None]:
    """Raise UserError naming the damaged checkpoint if reading it fails."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        if distributed.is_peer_failure(error):
            raise
        others = sorted(set(manager.all_steps()) - {step})
        advice = f"delete it to continue from step {others[-1]}" if others else "there is no other, train again"
        raise UserError(
            f"the checkpoint {directory / str(step)} cannot be read ({type(error).__name__}): {advice}."
        ) from error


def _absolute(directory: epath.Path) -> epath.Path:
    return directory if on_bucket(directory) else directory.absolute()


def _handlers(state: ocp.CheckpointHandler) -> dict[str, ocp.CheckpointHandler]:
    return {"state": state, "data": ocp.JsonCheckpointHandler()}


def _scores(manager: ocp.CheckpointManager, metric: str) -> dict[int, float]:
    """Return the score of every evaluated checkpoint, by step."""
    found = ((step, manager.metrics(step)) for step in manager.all_steps())
    return {step: metrics[metric] for step, metrics in found if metrics}


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
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise UserError(
            f"{where} is of another architecture: {'; '.join(sorted(differences)[:5])}{more}. It was trained with "
            f"{where.parents[1] / CONFIG_FILE}: use that configuration, or another workdir."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(leaf.shape) for keys, leaf in leaves}
