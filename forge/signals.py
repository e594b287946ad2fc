"""What a run does when it is told to stop: finish the step, write a checkpoint, leave.

SIGTERM, SIGUSR1, SIGUSR2 and the first Ctrl-C ask; a second Ctrl-C stops at once. While training
the request waits for the end of a step; at any other time nothing is half-done that a later
attempt would need, and the run stops where it is.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

log = logging.getLogger(__name__)
ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Preempted(BaseException):
    """The run was asked to stop and did, at a point to go on from; not an error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Stop:
    """Whether somebody asked this process to stop, and since when."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.since = 0.0
        self.training = False

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """The signal handler."""
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            return
        self.number, self.since = number, time.monotonic()
        name = signal.Signals(number).name
        if not self.training:
            log.warning("%s: stopping here", name)
            raise Preempted(number)
        log.warning("%s: finishing the step and writing a checkpoint", name)

    def leave(self) -> None:
        """Raise `Preempted` if somebody asked."""
        if self.number is not None:
            log.warning(
                "checkpoint written, %.1f s after the signal", time.monotonic() - self.since
            )
            raise Preempted(self.number)


@contextmanager
def watch() -> Iterator[Stop]:
    """Listen for signals inside the block; outside the main thread there is nothing to hear."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in ASKING}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class AtStepEnd(TrainerCallback):
    """Saves and leaves after the step, or the evaluation, in which a signal came.

    The last step of an epoch leaves after the epoch's own evaluation, so that no result is lost.
    """

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stop.number is not None and state.epoch and state.epoch % 1:
            control.should_save = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stop.number is not None:
            control.should_save = True

    on_epoch_end = on_evaluate

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stop.leave()
