"""What a run does when it is asked to stop: finish the step, write a checkpoint, leave.

SIGTERM, SIGUSR1, SIGUSR2, a connection that closes (SIGHUP, unless nohup has it ignored) and the
first Ctrl-C ask; a second Ctrl-C stops at once. While training
the request waits for the end of a step, the same one in all ranks; at any other time nothing is
half-done that a later attempt would need, and the run stops where it is. SLURM's SIGTERM comes
before a kill, and a job that left by itself would not run again: there the checkpoint is written
and the run goes on.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from forge import ranks
from forge.errors import Preempted

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


LAST = 60  # seconds that a loader's worker outlives a SIGTERM to all processes of a job


class Stop:
    """Whether somebody asked this process to stop, and since when."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.since = 0.0
        self.training = self.writing = False
        self.raised = False  # `Preempted`, from wherever the run was
        self.pid = os.getpid()
        self.extra = False  # the checkpoint to come is for this alone

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """The signal handler, which a loader's worker inherits and leaves to us."""
        if os.getpid() != self.pid:
            return
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            return
        self.number, self.since = number, time.monotonic()
        if number == signal.SIGHUP:
            leave_terminal()
        name = signal.Signals(number).name
        if self.training:
            log.warning("%s: finishing the step and writing a checkpoint", name)
        elif goes_on(number):
            self.number = None
            log.warning("%s: going on until SLURM ends this process", name)
        elif self.writing:
            log.warning("%s: stopping once the results are written", name)
        else:
            log.warning("%s: stopping here", name)
            self.raised = True
            raise Preempted(number)

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """A signal waits until the block is over, so that no file stays half-written."""
        self.writing = True
        try:
            yield
        finally:
            self.writing = False
        if self.number is not None:
            self.raised = True
            raise Preempted(self.number)

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was asked, which all learn at the same point of training."""
        number = ranks.all_reduce_max(self.number or 0, device)
        if number and self.number is None:
            self.number, self.since = number, time.monotonic()
        return bool(number)

    def leave(self, device: torch.device) -> None:
        """Raise `Preempted` if somebody asked, unless SLURM is to end this process."""
        if not self.agreed(device):
            return
        assert self.number is not None
        ranks.barrier()
        log.warning("checkpoint written, %.1f s after the signal", time.monotonic() - self.since)
        if not goes_on(self.number):
            raise Preempted(self.number)
        log.warning("going on until SLURM ends this process")
        self.number = None


class InWorker:
    """Called in a loader's worker: signals to all processes of a job are not meant for it, since
    the step under way needs its batch. torch's own handler would end it at once."""

    def __init__(self, also: Callable[[int], None] | None) -> None:
        self.also = also

    def __call__(self, worker: int) -> None:
        for number in ASKING:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST))  # whose default is to end it
        if self.also:
            self.also(worker)


def asking() -> list[signal.Signals]:
    """The signals that ask this process: SIGHUP does not where nohup has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in ASKING if not (ignored and number == signal.SIGHUP)]


def leave_terminal() -> None:
    """Print nowhere from now on, where the terminal is gone: each write would raise."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def goes_on(number: int) -> bool:
    """Whether a signal only announces a kill, after which SLURM starts the job again."""
    return number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ


@contextmanager
def held() -> Iterator[None]:
    """Signals that ask wait until the block is over; a process started in it never gets them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def watch() -> Iterator[Stop]:
    """Listen for signals inside the block; outside the main thread there is nothing to hear.

    Libraries turn an exception in their midst into one of theirs (a module that is being imported
    into an ImportError): whatever ends the block once somebody has asked is `Preempted`.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in asking()}
    try:
        yield stop
    except Exception as error:
        if stop.number is None or not stop.raised:
            raise
        raise Preempted(stop.number) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class AtStepEnd(TrainerCallback):
    """Saves and leaves after the step, or the evaluation, in which a signal came.

    At the last step of an epoch saving waits for the epoch's own evaluation, with or without a
    signal: a run that goes on from there would leave it out.
    """

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.postponed = False  # a save at an epoch's last step

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        self.stop.extra = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        epoch_ends = not (state.epoch or 0) % 1
        if epoch_ends and control.should_save and args.eval_strategy == IntervalStrategy.EPOCH:
            control.should_save, self.postponed = False, True  # after the epoch's evaluation
        if self.stop.agreed(args.device) and not epoch_ends:
            self._save(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.postponed:
            control.should_save, self.postponed = True, False
        if self.stop.agreed(args.device):
            self._save(control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.stop.agreed(args.device):
            self._save(control)

    def _save(self, control: TrainerControl) -> None:
        self.stop.extra = self.stop.extra or not control.should_save
        control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.stop.leave(args.device)
