"""Where curves are sent: context managers that yield a `TrainerCallback`, one per service."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from transformers import TrainerCallback

from forge.record import Record

log = logging.getLogger(__name__)
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # the second since wandb 0.31


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
    from transformers.integrations.integration_utils import WandbCallback

    if mode is None:
        mode = "online" if wandb_key() else "offline"
        mode = os.environ.get("WANDB_MODE", mode)  # type: ignore[assignment]  # wandb checks it
    choices = rec.metadata.get("choices", {})
    rec.note(wandb_id=rec.metadata.get("wandb_id") or secrets.token_hex(4))
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
        tags=[*(tags or ()), *(str(choices[k]) for k in ("task", "model", "mode") if k in choices)],
        notes=notes,
        config=rec.metadata["config"],
    )
    if mode == "offline":
        log.info("tracking: no W&B login, kept offline; send it with: wandb sync %s", run.dir)
    exit_code = 1
    try:
        yield WandbCallback()
        exit_code = 0
    finally:
        run.finish(exit_code)


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
