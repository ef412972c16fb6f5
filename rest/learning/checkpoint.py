"""Checkpoints of training, kept by Orbax: parameters, optimizer, data position and progress."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from rest import processes
from rest.errors import UserError
from rest.learning.mesh import MachineSettings, own_mesh, shaped

STATE = "state"  # what an optimizer's state is written under: Orbax writes no tree that is empty, as that of plain SGD


def identity_of(parameters: Any, known: str) -> str:
    """Sha256 of what is known of a network and of every parameter with its name."""
    digest = hashlib.sha256(known.encode())
    for path, leaf in jax.tree.leaves_with_path(parameters):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


class State(NamedTuple):
    """Everything that training needs to go on as if it had never stopped. Random keys follow from the step."""

    parameters: Any
    optimizer: Any
    progress: dict[str, Any]  # JSON: position of the data, best score, evaluations so far


def best_of(history: list[tuple[int, float]]) -> tuple[int, float]:
    """The step with the best score, and that; of equals the first, so that what training starts from must be beaten."""
    return max(history, key=lambda entry: entry[1])


class Checkpoints:
    """The latest checkpoints of a training and the best one; a step is whole or absent.

    They are written while training goes on; whoever asks for one waits until it is whole.
    """

    def __init__(self, folder: Path, keep_latest: int = 1) -> None:
        best = preserve.BestN(
            get_metric_fn=lambda metrics: (metrics["score"], -metrics["step"]),  # as `best_of`
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = preserve.AnyPreservationPolicy([preserve.LatestN(keep_latest), best])
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics["score"],
            ),
        )

    def steps(self) -> list[int]:
        """Steps that are kept, rising."""
        self._manager.wait_until_finished()
        return processes.lead(lambda: sorted(map(int, self._manager.all_steps())))

    def save(self, step: int, state: State, score: float) -> None:
        self._manager.save(
            step,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardSave(state.parameters),
                optimizer=ocp.args.StandardSave({STATE: state.optimizer}),
                progress=ocp.args.JsonSave(copy.deepcopy(state.progress)),  # the caller goes on changing it
            ),
            metrics={"score": score, "step": step},
        )

    def restore(self, step: int, like: State) -> State:
        """The state at a step, with the shapes, types and devices of `like`."""
        self._manager.wait_until_finished()
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    parameters=ocp.args.StandardRestore(_abstract(like.parameters)),
                    optimizer=ocp.args.StandardRestore(_abstract({STATE: like.optimizer})),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # Orbax has many ways to say that a file is cut or missing
            folder = self._manager.directory
            what = str(error).strip().partition("\n")[0][:200]
            raise UserError(
                f"{folder}/{step}: the checkpoint cannot be read ({what}); remove {folder} to train from the start"
            ) from error
        return State(restored["parameters"], restored["optimizer"][STATE], restored["progress"])

    def parameters(self, step: int, like: Any) -> Any:
        """Only the parameters at a step."""
        self._manager.wait_until_finished()
        args = ocp.args.Composite(parameters=ocp.args.StandardRestore(_abstract(like)))
        return self._manager.restore(step, args=args)["parameters"]

    def close(self) -> None:
        self._manager.close()


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def save_parameters(folder: Path, parameters: Any) -> None:
    """Write one set of parameters; this process alone does."""
    if jax.process_count() > 1:
        parameters = jax.tree.map(np.asarray, parameters)  # arrays of one of several processes are refused
    with _alone() as checkpointer:
        checkpointer.save(folder.absolute(), parameters, force=True)


def load_parameters(folder: Path, shapes: Any, machine: MachineSettings | None = None) -> Any:
    """Read one set of parameters, of these shapes and types, onto the devices of this process."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no parameters there")
    with _alone() as checkpointer:
        return checkpointer.restore(folder.absolute(), shaped(shapes, own_mesh(machine)))


def _alone() -> ocp.StandardCheckpointer:
    """What reads and writes without waiting for other processes."""
    me = jax.process_index()
    return ocp.StandardCheckpointer(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        )
    )
