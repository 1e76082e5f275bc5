"""Checkpoints: everything that must resume together, saved as one; the latest two and the best are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

import s2rm_jax
from s2rm_jax.errors import UserError
from s2rm_jax.io import on_bucket, workdir_path
from s2rm_jax.parallel import distributed
from s2rm_jax.training.run import CONFIG_FILE, load_config
from s2rm_jax.training.state import TrainState

CHECKPOINT_DIRECTORY = "checkpoints"
_REPLACED = ".replaced"  # behind the name of a checkpoint that is being deleted
_WHOLE_ON_BUCKET = "commit_success.txt"  # by which Orbax marks a checkpoint, where nothing can be renamed at once


@dataclass(frozen=True)
class Checkpoint:
    """What is saved and restored together.

    state          after `step` steps
    examples_seen  the position of the input, in images
    metrics        of the evaluation of this state, None if it was not evaluated
    """

    step: int
    state: TrainState
    examples_seen: int
    metrics: dict[str, float] | None


class Checkpoints:
    """The checkpoints of one run, in <workdir>/checkpoints/<step>/{state, data, meta}.

    A checkpoint appears whole or not at all: one that was being written when the process died is ignored. Of several
    processes each writes what of the state lies on its devices, and all must call: any number of processes and devices
    may restore it.
    """

    def __init__(self, workdir: epath.PathLike, every: int, metric: str):
        self._directory = epath.Path(workdir) / CHECKPOINT_DIRECTORY
        self._metric = metric

        def score(metrics: dict[str, float]) -> float:
            return metrics.get(metric, -math.inf)

        options = ocp.CheckpointManagerOptions(
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(every),
            # LatestN beside BestN: with the best alone, a restart would rewind to it. Two latest, so that a checkpoint
            # which turns out unreadable costs one interval and not the run.
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(2),
                    checkpoint_managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            best_fn=score,  # without it Orbax does not even write the metrics
        )
        self._manager = ocp.CheckpointManager(
            _absolute(self._directory), options=options, item_handlers=_handlers(ocp.StandardCheckpointHandler())
        )
        self._scores = _scores(self._manager, metric)
        if distributed.is_first():
            self._clear_replaced()  # of a process that was killed while it did so

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Says whether the interval asks for a checkpoint after `step` steps."""
        return step > 0 and self._manager.should_save(step)

    def save(self, checkpoint: Checkpoint, config: ConfigDict) -> None:
        """Saves a checkpoint, replacing an earlier one of the same step.

        Returns when the state has been copied; writing goes on in the background until the next save or `close`.

        Raises:
            UserError: this checkpoint, or the one before it, cannot be written.
        """
        with _writing(self._directory):
            self._save(checkpoint, config)

    def _save(self, checkpoint: Checkpoint, config: ConfigDict) -> None:
        if checkpoint.step in self._manager.all_steps():
            self._manager.wait_until_finished()
            self._delete(checkpoint.step)
        if checkpoint.metrics:
            self._scores[checkpoint.step] = checkpoint.metrics[self._metric]
        best_score = max(self._scores.values(), default=None)
        meta = {"config": config.to_dict(), "best_score": best_score, "version": s2rm_jax.__version__}
        self._manager.save(
            checkpoint.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(checkpoint.state),
                data=ocp.args.JsonSave({"examples_seen": checkpoint.examples_seen}),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics=checkpoint.metrics or {},
            force=True,  # the loop has asked `due`, and saves at other steps too: the last, an evaluation, a stop
        )

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint, at no moment of which what is left of it may be taken for whole."""
        if distributed.is_first():
            path = self._directory / str(step)
            if on_bucket(path):
                (path / _WHOLE_ON_BUCKET).unlink(missing_ok=True)
                path.rmtree()
            else:
                path.rename(self._directory / f"{step}{_REPLACED}")
                self._clear_replaced()
        distributed.gather(None)
        self._manager.reload()

    def _clear_replaced(self) -> None:
        if on_bucket(self._directory):
            return  # there, nothing is replaced by this name
        for path in self._directory.iterdir():
            if path.name.endswith(_REPLACED):
                path.rmtree()

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the best checkpoint, None if none was evaluated."""
        return max(self._scores.items(), key=lambda item: item[1], default=None)

    def restore_latest(self, abstract: TrainState) -> Checkpoint | None:
        """Restores the latest checkpoint into the structure, dtypes and shardings of `abstract`; None if there is none.

        Raises:
            UserError: the checkpoint is of another architecture.
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
        """Waits until everything is on disk."""
        with _writing(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk, and lets go of the directory."""
        with _writing(self._directory):
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Of several processes, one that fails must not wait here for the others, which may be waiting for it elsewhere.
        # Where all stop at once, they have called `wait` before.
        if kind is None or distributed.is_alone():
            self.close()


def has_checkpoint(workdir: epath.PathLike) -> bool:
    """Says whether a run in `workdir` has saved anything; one that was being written when it died does not count."""
    directory = epath.Path(workdir) / CHECKPOINT_DIRECTORY
    if not directory.is_dir():
        return False
    return any(
        path.name.isdigit() and (not on_bucket(path) or (path / _WHOLE_ON_BUCKET).exists())
        for path in directory.iterdir()
    )


def restore_params(
    workdir: epath.PathLike,
    which: Literal["best", "latest"] = "best",
    expected: Any | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Any:
    """Returns the parameters of a run for evaluation and prediction: the averaged ones where the run kept an average.

    Only they are read, not the rest of the state. "best" means by config.eval.metric of the run, and the latest where
    no kept checkpoint was evaluated.

    Args:
        workdir: of the run.
        which: "best" or "latest".
        expected: the parameters of the network to be filled, or their shapes (`state.parameter_shapes`), to be checked.
        sharding: where each parameter goes, by default whole to one device of this process.

    Raises:
        UserError: there is no run or no checkpoint in `workdir`, or it is of another architecture than `expected`.
    """
    workdir = workdir_path(workdir)
    metric = load_config(workdir).eval.metric
    directory = workdir / CHECKPOINT_DIRECTORY
    if not has_checkpoint(workdir):
        raise UserError(
            f"no checkpoint in {directory}: train first (python -m s2rm_jax.train --workdir {workdir} ...)."
        )
    handlers = _handlers(ocp.PyTreeCheckpointHandler())  # which, unlike the standard one, reads a part of a tree
    with ocp.CheckpointManager(_absolute(directory), item_handlers=handlers) as manager:
        scores = _scores(manager, metric)
        step = max(scores, key=scores.__getitem__) if scores and which == "best" else manager.latest_step()
        with _reading(manager, step, directory):
            tree = _saved_tree(manager, step)
            name = "params" if tree.get("ema_params") is None else "ema_params"
            if expected is not None:
                _require_same_parameters(tree[name], expected, directory / str(step))
            # One device, whatever the run was trained on: the devices it used may not exist here.
            here = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            abstract = {name: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree[name])}
            restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
            args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
            return manager.restore(step, args=ocp.args.Composite(state=args)).state[name]


@contextmanager
def _writing(directory: epath.Path) -> Iterator[None]:
    """Says that there is no room, or no permission, if a checkpoint cannot be written; those before it stand."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # of the system, of TensorStore, of Orbax's threads
        if distributed.is_peer_failure(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"a checkpoint cannot be written to {directory} ({reason}): make room there and run the command again."
        ) from error


@contextmanager
def _reading(manager: ocp.CheckpointManager, step: int, directory: epath.Path) -> Iterator[None]:
    """Says which checkpoint is damaged, and what to do, if reading it fails."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds, none of which a person can act on
        if distributed.is_peer_failure(error):
            raise
        others = sorted(set(manager.all_steps()) - {step})
        advice = f"delete it to go on from step {others[-1]}" if others else "there is no other, train again"
        raise UserError(
            f"the checkpoint {directory / str(step)} cannot be read ({type(error).__name__}): {advice}."
        ) from error


def _absolute(directory: epath.Path) -> epath.Path:
    return directory if on_bucket(directory) else directory.absolute()


def _handlers(state: ocp.CheckpointHandler) -> dict[str, ocp.CheckpointHandler]:
    return {"state": state, "data": ocp.JsonCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}


def _scores(manager: ocp.CheckpointManager, metric: str) -> dict[int, float]:
    """Returns the score of every checkpoint that was evaluated, by step."""
    found = ((step, manager.metrics(step)) for step in manager.all_steps())
    return {step: metrics[metric] for step, metrics in found if metrics}


def _saved_tree(manager: ocp.CheckpointManager, step: int) -> Any:
    """Returns shapes and dtypes of everything in a saved state."""
    return manager.item_metadata(step).state.tree


def _require_same_parameters(saved: Any, expected: Any, where: epath.Path) -> None:
    """Raises UserError naming the first parameters in which two trees differ."""
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
