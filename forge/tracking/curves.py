"""A run's curve, sent to a service: every step once and whole, whatever the service does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from itertools import takewhile
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from forge.errors import one_line
from forge.records.record import Record

log = logging.getLogger(__name__)


class Curves(TrainerCallback):
    """Gives a service each step's row of the log once over all attempts, whole and in order.

    A row is whole when the next step begins. Rows come from `TrainerState.log_history`, which
    checkpoints hold: what a killed attempt could not send, the next one does. An error of the
    service is logged once, and training goes on without it.
    """

    def __init__(self, rec: Record, name: str, service: TrainerCallback | None = None) -> None:
        self.rec, self.name, self.service = rec, name, service
        self.sent: int = rec.state.get("tracked", {}).get(name, -1)  # the last step
        self.working = True
        self.ended: tuple[TrainingArguments, TrainerState, TrainerControl] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.service is not None:
            begin = self.service.on_train_begin
            self._try(lambda: begin(args, state, control, **kwargs))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._try(partial(self._send, args, state, control))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.ended = (args, state, control)

    def end(self) -> None:
        """Send the last row, which the end of training added to."""
        if self.ended:
            self._try(partial(self._send, *self.ended))

    def finish(self, exit_code: int) -> None:
        if self.service is not None and self.ended:
            self._try(partial(self.service.on_train_end, *self.ended))

    def _send(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        rows: dict[int, dict[str, float]] = {}
        fresh = takewhile(lambda entry: entry["step"] > self.sent, reversed(state.log_history))
        for entry in reversed(list(fresh)):
            rows.setdefault(int(entry["step"]), {}).update(entry)
        for step, row in rows.items():
            then = copy(state)
            then.global_step = step
            del row["step"]
            self._log(row, args, then, control)
            self.sent = step

    def _log(
        self,
        row: dict[str, float],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        assert self.service is not None
        self.service.on_log(args, state, control, logs=row)
        tracked = self.rec.state.get("tracked", {}) | {self.name: state.global_step}
        self.rec.update_state(tracked=tracked)

    def _try(self, action: Callable[[], None]) -> None:
        while self.working:
            try:
                return action()
            except Exception as error:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.working = False
        log.warning(
            "tracking: %s takes no more of the curve after step %d (%s); training goes on, and the "
            "newest checkpoint's trainer_state.json has every row",
            self.name, max(self.sent, 0), error_line(error),
        )  # fmt: skip


@contextmanager
def following(curves: Curves) -> Iterator[Curves]:
    exit_code = 1
    try:
        yield curves
        curves.end()
        exit_code = 0
    finally:
        curves.finish(exit_code)


def error_line(error: Exception) -> str:
    """A service's error, short enough for a warning."""
    return one_line(f"{type(error).__name__}: {error}")[:200]
