"""What follows training: the console, and the run's training_state.json."""

from __future__ import annotations

import logging
import sys
import textwrap
import time
from pathlib import Path

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback, TrainerCallback

from forge import ranks
from forge.errors import Failure, UserError
from forge.records import checkpoints, curve, samples
from forge.records.record import Record
from forge.training.trainer import Trainer

log = logging.getLogger(__name__)


DETAILS = {"num_tokens", "step_time", "policy_loss", "entropy_coef"}  # of TRL
WIDTH = 100  # of a line
LEAST = (
    "grad_norm",
    "reward_std",
    "clip_ratio",
    "rewards/",
    "gradient_share_",
    "completions/",
    "frac_reward_zero_std",
    "epoch",
    "left",
)  # what a full line leaves out first; logged it is
SHORT = {"learning_rate": "lr", "completions/mean_length": "completion_length"}
TIMED = ("runtime", "samples_per_second", "steps_per_second")
PARTS = ("clip_ratio/", "completions/")  # of which the mean is enough
HEARTBEAT = 30  # seconds


class Console(ProgressCallback):
    """One readable line per log step and evaluation; a progress bar in a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.bars = sys.stderr.isatty()
        self.started = (0.0, 0)  # seconds, step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *a: object, **k: object
    ) -> None:
        self.started = (time.monotonic(), state.global_step)
        if self.bars:
            super().on_train_begin(args, state, *a, **k)  # type: ignore[no-untyped-call]

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        if self.training_bar is not None:
            super().on_step_end(*args, **kwargs)

    def on_train_end(self, *args: object, **kwargs: object) -> None:
        if self.training_bar is not None:
            super().on_train_end(*args, **kwargs)

    def on_prediction_step(self, *args: object, **kwargs: object) -> None:
        if self.bars:
            super().on_prediction_step(*args, **kwargs)  # type: ignore[no-untyped-call]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        logs = logs or {}
        if "train_runtime" in logs or any(key.startswith("test_") for key in logs):
            return  # the table at the end says it
        if self.training_bar is not None:
            self.training_bar.clear()
        if any(key.startswith("eval_") for key in logs):
            log.info("%s", _evaluated(state, logs))
        else:
            log.info("%s", _fitting(self._parts(args, state, logs)))

    def _parts(
        self, args: TrainingArguments, state: TrainerState, logs: dict[str, float]
    ) -> dict[str, str]:
        """What a line says, by name."""
        hidden = {key for key in logs if key in DETAILS or key.startswith(PARTS)}
        hidden -= {"completions/mean_length", "clip_ratio/region_mean"}
        if "reward" in logs:
            hidden.add("loss")  # of GRPO: about 0, whatever is learnt
            each = [key for key in logs if key.startswith("rewards/")]
            hidden.update(key for key in each if len(each) == 2 or key.endswith("/std"))
            logs = {
                key: logs[key] for key in sorted(logs, key=lambda k: not k.startswith("reward"))
            }
        if not logs.get("learning_rate", 1):
            hidden.add("learning_rate")  # of warming up, before the first step
        parts = _begun(state, logs)
        for key, value in logs.items():
            if key not in hidden and key != "epoch" and isinstance(value, int | float):
                digits = ".2e" if key == "learning_rate" else ".4f"
                name = key.removesuffix("/region_mean")
                name = SHORT.get(name, name)
                parts[key] = f"{name} {value:{digits}}"
        if "learning_rate" in logs:
            begun, step = self.started
            seconds, steps = max(time.monotonic() - begun, 1e-9), state.global_step - step
            rows = steps * args.train_batch_size * args.world_size
            rows *= args.gradient_accumulation_steps
            parts["speed"] = f"{rows / seconds:,.0f} examples/s"
            if steps and state.global_step < state.max_steps:
                left = (state.max_steps - state.global_step) * seconds / steps
                parts["left"] = f"{duration(left)} left"
        return parts


def _begun(state: TrainerState, logs: dict[str, float]) -> dict[str, str]:
    """The place of a line: step and epoch."""
    parts = {"step": f"step {state.global_step}/{state.max_steps}"}
    return parts | ({"epoch": f"epoch {float(logs['epoch']):.2f}"} if "epoch" in logs else {})


def _evaluated(state: TrainerState, logs: dict[str, float]) -> str:
    """The metrics of an evaluation; more of them than fit a line go on in the next."""
    names = {key.removeprefix("eval_"): logs[key] for key in logs if key.startswith("eval_")}
    scores = [
        f"{name} {value:.4f}"
        for name, value in names.items()
        if name not in TIMED and isinstance(value, int | float)
    ]
    line = " | ".join([*_begun(state, logs).values(), f"evaluation {', '.join(scores)}"])
    return "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def _fitting(parts: dict[str, str]) -> str:
    """A line of the parts, without the least of them where they are too many."""
    for least in LEAST:
        if len(" | ".join(parts.values())) <= WIDTH:
            break
        parts = {name: part for name, part in parts.items() if not name.startswith(least)}
    return " | ".join(parts.values())


def duration(seconds: float) -> str:
    """So many seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Padding(TrainerCallback):
    """Says once, after the first epoch, what share of the batches was padding."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.reported = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        share = self.trainer.padding_share
        if (
            share is not None
            and not self.reported
            and state.epoch is not None
            and state.epoch < 1.5
        ):
            log.info("padding %.1f %% of the first epoch", 100 * share)
        self.reported = True


class NanGuard(TrainerCallback):
    """Stops a run whose loss is not a number for `patience` steps, naming what it was fed.

    A step's loss is read when the next one begins, so that no device has to be waited for.
    """

    def __init__(self, patience: int = 3) -> None:
        if patience < 1:
            raise UserError(f"callbacks.nan_guard.patience={patience}: at least 1")
        self.patience, self.bad = patience, 0
        self.trainer: Trainer | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.trainer is None or self.trainer.last_loss is None:
            return
        if not self._spoilt(args):
            self.bad = 0
            return
        self.bad += 1
        if self.bad < self.patience:
            return
        saved = checkpoints.steps(Path(str(args.output_dir)))
        first = state.global_step - self.bad + 1
        ranks.barrier()
        for step in [step for step in saved if step >= first - 1]:  # whose update spoilt the next
            spoilt = saved.pop(step)
            if state.is_world_process_zero:
                checkpoints.set_aside(spoilt)
        newest = next(iter(saved.values()), None)
        raise Failure(
            f"the loss was {float(self.trainer.last_loss)} for {self.bad} steps, from step {first} "
            f"on (training rows of the last: {_ids(self.trainer)}); the last checkpoint before: "
            f"{newest.name if newest else 'none'}; lower trainer.learning_rate, or look at these "
            "rows"
        )

    on_train_end = on_step_begin

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """No checkpoint of a spoilt step: it would push out a good one."""
        if control.should_save and self.trainer is not None and self.trainer.last_loss is not None:
            control.should_save = not self._spoilt(args)

    on_epoch_end = on_step_end

    def _spoilt(self, args: TrainingArguments) -> bool:
        """Whether the last loss of any rank is no number."""
        assert self.trainer is not None and self.trainer.last_loss is not None
        spoilt = not bool(torch.isfinite(self.trainer.last_loss))
        return bool(ranks.all_reduce_max(int(spoilt), args.device))


def _ids(trainer: Trainer) -> str:
    ids = [] if trainer.last_ids is None else trainer.last_ids.tolist()
    return ", ".join(map(str, ids)) or "unknown"


class State(TrainerCallback):
    """Keeps training_state.json: step, epoch, newest and best checkpoint, best value; and the
    curve. Between logs, and in an evaluation, the time in it is renewed: a heartbeat."""

    def __init__(self, rec: Record, trainer: Trainer) -> None:
        self.rec, self.trainer, self.beaten = rec, trainer, time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.is_world_process_zero:
            curve.rewind(self.rec.run_dir, state.global_step, state.log_history)
            samples.rewind(self.rec.run_dir, state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        newest = next(iter(checkpoints.steps(self.rec.run_dir).values()))
        self._write(state, latest_checkpoint=newest.name)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        self._write(state)
        if state.is_world_process_zero:
            done = {"seconds": round(self.trainer.seconds, 3), "tokens": int(self.trainer.tokens)}
            curve.append(self.rec.run_dir, {"step": state.global_step} | done | (logs or {}))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._write(state)

    def on_step_end(self, *_: object, **__: object) -> None:
        if time.monotonic() - self.beaten > HEARTBEAT:
            self.beaten = time.monotonic()
            self.rec.update_state()

    on_prediction_step = on_step_end

    def _write(self, state: TrainerState, **facts: object) -> None:
        if not state.is_world_process_zero:
            return
        best = state.best_model_checkpoint
        self.rec.update_state(
            step=state.global_step,
            max_steps=state.max_steps,
            epoch=state.epoch,
            best_checkpoint=best.rpartition("/")[2] if best else None,
            best_value=state.best_metric,
            **facts,
        )
