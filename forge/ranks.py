"""What a process knows of its ranks: several processes that train one model together.

torch's launchers start them (`launcher=ddp`, torchrun) or srun does. What they have to agree on
goes through torch's store, asked again and again from Python: an hour of waiting is no time-out
there, and a signal is heard. Collectives are left to training.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from forge.errors import USER_ERRORS, Failure, UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
P = ParamSpec("P")


PARENT = "FORGE_PARENT"  # environment of a rank that `launch` started: the process that did
COMPOSED = "FORGE_COMPOSED"  # and the file with the config that it composed


@dataclass
class Scope:
    """What the ranks agree on in one run, apart from other runs of the same processes."""

    name: str
    turns: Iterator[int] = field(default_factory=itertools.count)
    runs: Iterator[int] = field(default_factory=itertools.count)  # inside, or in a sweep

    @property
    def gave_up(self) -> str:
        return f"{self.name}/gave_up"


scope = Scope("forge")


def rank() -> int:
    """This process' number; 0 writes records, logs and results."""
    return int(os.environ.get("RANK", 0))


def ranks() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def set_up() -> None:
    """Take over the ranks that srun has started; die with the process that started this one."""
    if parent := os.environ.get(PARENT):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            os.kill(os.getpid(), signal.SIGKILL)
    if int(os.environ.get("RANK", 0)) and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"RANK={os.environ['RANK']} is set in the environment, and WORLD_SIZE is not: unset "
            "RANK, or start the ranks with torchrun, srun or launcher=ddp"
        )
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment, environment_variables

        with environment_variables(SUBMITIT_EXECUTOR="slurm"):  # also where plain srun starts us
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def require_ranks() -> None:
    """Raise `UserError` where SLURM gave room for several ranks and this process is alone."""
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    if tasks > 1 and ranks() == 1:
        raise UserError(
            f"SLURM_NTASKS={tasks}, but this is one process: start it with srun, with --ntasks=1, "
            f"or with launcher=ddp launcher.processes={tasks}"
        )


@cache
def _store() -> Any:  # torch's stubs take text where it takes bytes
    """The store that all ranks share."""
    from torch.distributed.rendezvous import rendezvous

    return next(iter(rendezvous("env://")))[0]


@contextmanager
def one_run() -> Iterator[None]:
    """A rank that fails in this block says so to this run, not to the next of the sweep."""
    global scope
    around, scope = scope, Scope(f"{scope.name}/run{next(scope.runs)}")
    try:
        yield
    finally:
        scope = around


def broadcast(decide: Callable[[], T], key: str = "") -> T:
    """What rank 0 decides, known to all; its exception is raised by all.

    Every rank calls it as often and in the same order, unless a `key` names the decision.
    """
    if ranks() == 1:
        return decide()
    name = f"forge/{key}" if key else f"{scope.name}/{next(scope.turns)}"
    if rank():
        _wait(lambda: _store().check([name]))
        value, error = pickle.loads(_store().get(name))
    else:
        value, error = _try(decide)
        plain = UserError if isinstance(error, USER_ERRORS) else Failure
        _store().set(name, pickle.dumps((value, plain(str(error)) if error else None)))
    if error:
        raise error
    decided: T = value
    return decided


def _try(decide: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return decide(), None
    except Exception as error:
        return None, error


def in_turn(do: Callable[[], T]) -> T:
    """What `do` returns: rank 0 does it first, so that the others find it cached."""
    if ranks() == 1:
        return do()
    mine: list[T] = []
    broadcast(lambda: mine.append(do()))
    return mine[0] if mine else do()


def taking_turns(do: Callable[P, T]) -> Callable[P, T]:
    """A function that rank 0 is through with before the others begin (`in_turn`)."""

    @wraps(do)
    def done(*args: P.args, **kwargs: P.kwargs) -> T:
        return in_turn(partial(do, *args, **kwargs))

    return done


def barrier() -> None:
    """Wait until every rank is here; rank 0, which keeps the store, until all know it."""
    if ranks() == 1:
        return
    name = f"{scope.name}/{next(scope.turns)}"
    here, aware = f"{name}/here", f"{name}/aware"
    _store().add(here, 1)
    _wait(lambda: _store().add(here, 0) == ranks())
    _store().add(aware, 1)
    if not rank():
        _wait(lambda: _store().add(aware, 0) == ranks())


def _wait(over: Callable[[], bool]) -> None:
    import torch

    try:
        while not over():
            if _store().check([scope.gave_up]):
                raise Failure("another rank of this run has failed")
            time.sleep(0.01)
    except torch.distributed.DistError as error:
        raise Failure("another rank of this run has ended") from error


def abort() -> None:
    """Tell ranks that wait for this one that it will not come."""
    if ranks() > 1:
        _store().set(scope.gave_up, "1")


def all_reduce_max(value: int, device: torch.device) -> int:
    """The largest of all ranks' values, in training."""
    import torch

    if ranks() == 1:
        return value
    seen = torch.tensor(value, device=device)
    torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX)
    return int(seen)


def all_reduce_sum(value: float, device: torch.device) -> float:
    """The sum of all ranks' values, in training."""
    import torch

    if ranks() == 1:
        return value
    seen = torch.tensor(value, device=device, dtype=torch.float64)
    torch.distributed.all_reduce(seen)
    return float(seen)


def all_gather(values: list[T]) -> list[list[T]]:
    """The values of every rank, in evaluation."""
    import torch

    shares: list[list[T]] = [values] * ranks()
    if ranks() > 1:
        torch.distributed.all_gather_object(shares, values)
    return shares


def start_time() -> float:
    """Now, seconds since 1970; with several ranks the moment at which rank 0 first asked."""
    return time.time() if ranks() == 1 else _agreed_start()


@cache
def _agreed_start() -> float:
    return broadcast(time.time, "started")


def report_error(line: str) -> None:
    """Leave the line of a rank's error where torch's launcher looks for it."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).write_text(json.dumps({"message": line}))
