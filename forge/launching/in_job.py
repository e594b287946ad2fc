"""A run as it is submitted, and what it does in its job: signals, requeues, truthful exit codes."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from hydra.core.singleton import Singleton
from hydra.core.utils import JobStatus, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from forge import ranks
from forge.config.compose import register
from forge.launching.jobs import Job
from forge.launching.sealing import seal, unseal
from forge.records.environment import Commit, git
from forge.records.secrets import secrets_in

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

BLOCKED = {signal.SIGUSR2, signal.SIGTERM}  # until there are handlers for them
OTHERS = 20  # seconds that a rank waits for rank 0


@dataclass
class Shared:
    """What all runs of a sweep take with them."""

    context: HydraContext
    task_function: Callable[..., float]  # of a config and, by keyword, the commit `submitted`
    singletons: dict[str, object] = field(default_factory=Singleton.get_state)
    submitted: Commit = field(default_factory=git)


class Run:
    """A run as it travels: pickled at submission, called in the job.

    Its config and what it shares are sealed, without their secrets.
    """

    sealed = b""  # in the job

    def __init__(self, config: DictConfig, shared: Shared, at_once: int | None = None) -> None:
        self.config, self.shared = config, shared
        self.at_once = at_once  # of a sweep's processes on this machine
        self.entry: Job | None = None  # in the ledger, without the job's id and folder
        self.secrets: list[str] = []  # of the whole sweep

    def own_secrets(self) -> set[str]:
        """Texts of the config that no file may hold."""
        return secrets_in(OmegaConf.to_container(self.config))

    def __getstate__(self) -> dict[str, object]:
        sealed = self.sealed or seal((self.config, self.shared), self.secrets)
        return {"entry": self.entry, "sealed": sealed, "at_once": self.at_once}

    def __call__(self) -> float:
        """The headline; a run that fails raises, and then SLURM calls its job FAILED."""
        import submitit

        if self.sealed:
            self.config, self.shared = unseal(self.sealed)
        Singleton.set_state(copy.deepcopy(self.shared.singletons))
        setup_globals()
        register()
        here = submitit.JobEnvironment()
        if here.name() == "local":
            os.setsid()  # the terminal's Ctrl-C is not meant for us
            self.turn = _wait_for_turn(here.paths.folder.parent, self.at_once)
        signal.signal(signal.SIGUSR2, once(signal.getsignal(signal.SIGUSR2)))  # submitit's
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
        try:
            ranks.set_up()
            return self._run(here.job_id)
        except BaseException as stopped:
            self._leave(stopped)
            raise
        finally:
            ignore_signals()  # the rest is bookkeeping, in threads of libraries too

    def _run(self, job_id: str) -> float:
        config = copy.deepcopy(self.config)
        with open_dict(config):
            config.hydra.job.id = job_id
        ended = run_job(
            partial(self.shared.task_function, submitted=self.shared.submitted),
            config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.shared.context,
        )
        if ended.status is not JobStatus.COMPLETED:  # Hydra has swallowed the exception
            raise ended._return_value
        return float(ended.return_value)

    def _leave(self, stopped: BaseException) -> None:
        """Requeue a run that USR2 stopped; end as any other signal says."""
        code = getattr(stopped, "exit_code", None)  # forge.errors.Preempted
        if code is None:
            return
        if code == 128 + signal.SIGUSR2:
            requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: rank 0 leaves
            assert callable(requeue)
            requeue(signal.SIGUSR2, None)
            time.sleep(OTHERS)  # rank 0 does it, unless it waits for this one in a collective
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
            time.sleep(OTHERS)  # the other ranks end with the job
        sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _wait_for_turn(folder: Path, at_once: int | None) -> FileLock | None:
    """A lock that at most so many processes hold, until they end in whatever way."""
    places = [FileLock(folder / f"turn-{i}.lock") for i in range(at_once or 0)]
    while places:
        for place in places:
            with suppress(Timeout):
                place.acquire(blocking=False)
                return place
        time.sleep(0.5)
    return None


Handler = Callable[[int, FrameType | None], object]


def ignore_signals() -> None:
    """Ignore the signals that SLURM sends."""
    for number in BLOCKED:
        signal.signal(number, signal.SIG_IGN)


def once(handler: Handler | int | None) -> Handler:
    """A handler that ignores signals while it works: another one in the midst of submitit's would
    find half a checkpoint and fail the job."""
    assert callable(handler)

    def first(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        handler(number, frame)

    return first
