"""Where curves are sent: context managers that yield a `TrainerCallback`, one per service."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import WandbCallback, rewrite_logs

from forge import signals
from forge.record import RESULTS, Record, read_json

log = logging.getLogger(__name__)
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # the second since wandb 0.31


class Curves(WandbCallback):
    """transformers' callback with the optimizer step as W&B's own, each sent once: what a killed
    run sent after the checkpoint from which it goes on is not sent again."""

    def __init__(self, rec: Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rec, self.before = rec, dict(rec.state.get("tracked", {}))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs, step = logs or {}, state.global_step
        kind = "evaluation" if any(key.startswith("eval_") for key in logs) else "training"
        if step <= self.before.get(kind, -1):
            return
        if not self._initialized:
            self.setup(args, state, model)  # type: ignore[no-untyped-call]
        named = rewrite_logs(logs)
        self._wandb.log({**named, "train/global_step": step}, step=step)
        self.rec.stand(tracked=self.rec.state.get("tracked", {}) | {kind: step})


@contextmanager
def wandb(
    *,
    rec: Record,
    project: str = "forge",
    entity: str | None = None,
    mode: Literal["online", "offline", "disabled"] | None = None,
    tags: list[str] | None = None,
    notes: str | None = None,
) -> Iterator[TrainerCallback]:
    """One W&B run per Forge run; its id is kept in run_metadata.json, so a resume continues it."""
    import wandb

    if mode is None:
        mode = "online" if wandb_key() else "offline"
        mode = os.environ.get("WANDB_MODE", mode)  # type: ignore[assignment]  # wandb checks it
    choices = rec.metadata.get("choices", {})
    rec.note(wandb_id=rec.metadata.get("wandb_id") or secrets.token_hex(4))
    known = [str(choices[key]) for key in ("task", "model", "mode") if key in choices]
    with signals.held():  # SLURM's go to all processes of a job, W&B's own among them
        run = wandb.init(
            id=rec.metadata["wandb_id"],
            resume="allow",
            dir=rec.run_dir,
            project=project,
            entity=entity,
            mode=mode,
            name="/".join(rec.run_dir.parts[-4:]),
            group=str(rec.run_dir.parent) if rec.run_dir.name.isdecimal() else None,
            job_type=choices.get("mode"),
            tags=[*(tags or ()), *known],
            notes=notes,
            config=rec.metadata["config"],
        )
    if mode == "offline":
        place = f"{rec.run_dir}/wandb/offline-run-*"  # one for each attempt
        log.info("tracking: no W&B login, kept offline; send it with: wandb sync %s", place)
    exit_code = 1
    try:
        yield Curves(rec)
        run.summary.update(_summary(read_json(rec.run_dir / RESULTS)))
        exit_code = 0
    finally:
        run.finish(exit_code)


def _summary(results: dict[str, Any]) -> dict[str, float]:
    """The headline and every metric of every split."""
    found = {
        f"{split}/{name}": value
        for split, scores in results["splits"].items()
        for name, value in scores.items()
    }
    return {"headline": results["headline"]["value"], **found}


def wandb_key() -> str:
    """Where a key is, without asking the server as `wandb.login` does."""
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    base = os.environ.get("WANDB_BASE_URL")
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    known = netrc.netrc(file).hosts if file.is_file() else {}
    if any(host in known for host in ((urlsplit(base).netloc,) if base else WANDB_HOSTS)):
        return str(file)
    import wandb

    return "wandb's settings" if wandb.setup().settings.api_key else ""
