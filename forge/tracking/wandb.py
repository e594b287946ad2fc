"""Where curves are sent. A tracking node gives a context manager, called with the record and what
is trained on, that yields a `TrainerCallback`; nothing that a service does stops a run."""

from __future__ import annotations

import importlib.util
import json
import logging
import netrc
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict
from urllib.parse import urlsplit

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    rewrite_logs,
)

from forge.config.schema import Node
from forge.errors import Preempted, UserError, one_line
from forge.records import plan
from forge.records.files import RESULTS, read_json
from forge.records.record import Record
from forge.records.secrets import masked
from forge.tracking.curves import Curves, error_line, following
from forge.tracking.predictions import predicted
from forge.training import signals

if TYPE_CHECKING:
    from wandb import Run

    from forge.training.preparation import Prepared

log = logging.getLogger(__name__)
Track: TypeAlias = Callable[..., AbstractContextManager[TrainerCallback]]
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # the second since wandb 0.31
# Keys that forge/dashboard.py shows
HEADLINE, TEACHER, CURVE = "headline", "teacher/headline", "eval/headline"
SPEED = ("train/examples_per_second", "train/tokens_per_second")
LEAVING = 15.0  # seconds for a goodbye in a run that was stopped
FINISHING = 10.0  # seconds on top of W&B's own limit


def tensorboard() -> Track:
    """TensorBoard, through transformers' callback; files in tensorboard/ of the run directory."""
    _require("tensorboard", "pip install 'forge[tensorboard]'")

    def start(rec: Record, prepared: Prepared) -> AbstractContextManager[TrainerCallback]:
        service = TensorBoardCallback()
        service.logging_dir = str(rec.run_dir / "tensorboard")
        return following(Curves(rec, "tensorboard", service))

    return start


def _require(package: str, command: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"tracking={package}: {package} is not installed; {command}")


@contextmanager
def wandb(
    *,
    rec: Record,
    prepared: Prepared,
    project: str | None = None,
    entity: str | None = None,
    mode: Literal["online", "offline", "disabled"] | None = None,
    tags: list[str] | None = None,
    notes: str | None = None,
    table_rows: int = 100,
    log_model: bool = False,
    settings: Node | None = None,
) -> Iterator[TrainerCallback]:
    """One W&B run per Forge run; its id is kept in run_metadata.json, so a resume continues it.

    W&B's environment variables count where no key says otherwise. `settings` are `wandb.Settings`.
    Raises `UserError` for one that W&B does not know.
    """
    import wandb

    try:
        wandb.Settings(project=project, entity=entity, **settings or {})
    except (ValueError, wandb.errors.UsageError) as error:
        raise UserError(f"tracking: {one_line(str(error))}") from error
    sent = mode or os.environ.get("WANDB_MODE", "online")
    if sent == "online" and not wandb_key():
        sent = "offline"
    about = _about(rec, tags or [], project)
    about |= {"entity": entity, "notes": notes}
    rec.note(wandb_id=about["id"])
    curves = WandbRun(rec, about, sent, settings or {}, prepared.task.headline)
    with following(curves):
        try:
            yield curves
        except Preempted:
            curves.preempted()
            raise
        curves.end()
        curves.results(prepared, table_rows, log_model)


class About(TypedDict, total=False):
    """Arguments of `wandb.init`: how W&B files the run."""

    id: str
    name: str
    group: str
    job_type: str | None
    tags: list[str]
    config: Node
    project: str
    entity: str | None
    notes: str | None


def _about(rec: Record, tags: list[str], project: str | None) -> About:
    """How W&B files the run; it takes at most 64 characters of a tag, 128 of a name.

    What an environment variable says is left to W&B, which reads it.
    """
    tags = [*tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(","))]
    choices, folder = rec.metadata.get("choices", {}), rec.run_dir
    model = rec.metadata["config"]["model"]["path"]
    described = [choices.get("task"), _name(Path(model)) if model else choices.get("model")]
    described.append(choices.get("mode"))
    for path in map(Path, rec.metadata.get("teacher", {}).get("paths", ())):
        chosen = None if rec.metadata["config"]["teacher"]["path"] else choices.get("model@teacher")
        chosen = chosen or _name(path.parent if path.name == "model" else path)
        described.append(f"teacher:{chosen}")
    in_sweep = plan.is_job(folder)  # of Forge, whose jobs share an environment
    own_id = None if in_sweep else os.environ.get("WANDB_RUN_ID")
    about: About = {
        "id": rec.metadata.get("wandb_id") or own_id or secrets.token_hex(4),
        "project": project or os.environ.get("WANDB_PROJECT") or "forge",
        "tags": list(dict.fromkeys(tag[:64] for tag in [*tags, *described] if tag)),
        "config": rec.metadata["config"],
    }
    if not os.environ.get("WANDB_NAME"):
        about["name"] = _name(folder)
    if in_sweep and not os.environ.get("WANDB_RUN_GROUP"):
        about["group"] = _name(folder.parent)
    if not os.environ.get("WANDB_JOB_TYPE"):
        about["job_type"] = choices.get("mode")
    return about


def _name(path: Path) -> str:
    """`<task>/<model>/<mode>/<time>` of a run or sweep, with the number of a sweep's job."""
    parts = [part for part in path.parts if part not in ("/", ".", "..")]
    return "/".join(parts[-5 if plan.is_job(path) else -4 :])[-128:]


class WandbRun(Curves):
    """The W&B run of this attempt: online, else kept offline for `wandb sync`, else given up."""

    opened: Run | None = None

    def __init__(self, rec: Record, about: About, mode: str, settings: Node, headline: str) -> None:
        super().__init__(rec, "W&B")
        self.about, self.settings, self.headline = about, settings, f"eval_{headline}"
        self.mode, self.fell_back = mode, False
        self.place = f"{rec.run_dir}/wandb"
        self._try(lambda: None)
        if self.working and mode == "offline" and not self.fell_back:
            log.info("tracking: W&B offline; send it later with: wandb sync %s", self.place)
        elif self.working and not self.run.offline and self.run.url:  # not of mode=disabled
            log.info("tracking: %s", self.run.url)

    def _try(self, action: Callable[[], None]) -> None:
        def connected() -> None:
            if self.opened is None:
                self._open()
            action()

        super()._try(connected)

    @property
    def run(self) -> Run:
        """The W&B run, which the first thing that is sent opens."""
        assert self.opened is not None
        return self.opened

    def _open(self) -> None:
        import wandb

        before = list(self.rec.run_dir.glob(f"wandb/*run-*/run-{self.about['id']}.wandb"))
        quiet = {"silent": True, "finish_timeout_raises": True, "reinit": "finish_previous"}
        settings = wandb.Settings(**quiet | self.settings)  # type: ignore[arg-type]
        argv, sys.argv = sys.argv, masked(sys.argv)  # W&B records it
        try:
            with signals.held():  # those to all processes of a job are not for W&B's
                self.opened = wandb.init(
                    **self.about,
                    mode=self.mode,  # type: ignore[arg-type]  # W&B checks it
                    resume="allow",
                    dir=self.rec.run_dir,
                    settings=settings,
                )
        finally:
            sys.argv = argv
        if self.run.id != self.about["id"]:  # W&B's sweep agent gives its runs their ids
            self.about["id"] = self.run.id
            self.rec.note(wandb_id=self.run.id)
        if self.run.offline:
            self.sent = max((_last_step(file) for file in before), default=-1)
        else:
            self.sent = self.run.starting_step - 1  # W&B's own count

    def _log(
        self,
        row: dict[str, float],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        step = state.global_step
        if self.headline in row:
            row["eval_headline"] = row[self.headline]
        self.run.log({**rewrite_logs(row), "train/global_step": step}, step=step)

    def _failed(self, error: Exception) -> None:
        if self.fell_back:
            return super()._failed(error)
        import wandb

        log.warning(
            "tracking: W&B failed after step %d (%s); from there the curve goes on offline; send "
            "it later with: wandb sync %s",
            max(self.sent, 0), error_line(error), self.place,
        )  # fmt: skip
        self.fell_back, self.mode, self.opened = True, "offline", None
        _within(LEAVING, wandb.teardown)  # it holds on to the run's id

    def results(self, prepared: Prepared, table_rows: int, log_model: bool) -> None:
        """The summary: headline, every metric, predictions; and, when asked for, the model."""
        summary = _summary(read_json(self.rec.run_dir / RESULTS), self.rec.metadata)
        self._try(lambda: self.run.summary.update(summary))
        if table_rows:
            self._extra("predictions", lambda: self._log_tables(prepared, table_rows))
        if log_model:
            self._extra("model", self._log_model)

    def _extra(self, what: str, action: Callable[[], None]) -> None:
        if self.working:
            try:
                action()
            except Exception as error:
                place = f"{self.rec.run_dir}/{what}"
                log.warning("tracking: W&B has not taken %s (%s)", place, error_line(error))

    def _log_tables(self, prepared: Prepared, limit: int) -> None:
        """Per evaluation split its first rows, the same in every run."""
        import wandb

        for split in prepared.task.evaluation:
            rows = predicted(self.rec.run_dir, prepared, split, limit)
            values = [list(row.values()) for row in rows]
            table = wandb.Table(columns=list(rows[0]), data=values)
            self.run.summary.update({f"predictions/{split}": table})

    def _log_model(self) -> None:
        import wandb

        model = wandb.Artifact(f"model-{self.about['id']}", type="model")
        model.add_dir(str(self.rec.run_dir / "model"), policy="immutable")  # no second copy
        self.run.log_artifact(model, aliases=["final_model"])

    def preempted(self) -> None:
        self._try(lambda: self.run.mark_preempting())

    def finish(self, exit_code: int) -> None:
        if not self.working:
            return
        limit = self.run.settings.finish_timeout + FINISHING if exit_code == 0 else LEAVING
        if error := _within(limit, partial(self.run.finish, exit_code)):
            # What an online attempt had sent already may then be there twice.
            online = "" if self.run.offline else " --include-online"
            log.warning(
                "tracking: W&B did not end well (%s); this run's results are whole; if W&B lacks "
                "the end of the curve: wandb sync%s %s",
                error_line(error), online, self.place,
            )  # fmt: skip


def _within(seconds: float, action: Callable[[], object]) -> Exception | None:
    """Do it, for so long at most; the error if there was one."""
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            action()
        except Exception as error:
            errors.append(error)

    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return TimeoutError(f"no answer within {seconds:.0f} s")
    return errors[0] if errors else None


def _last_step(file: Path) -> int:
    """The last step in a .wandb file; what a killed process had not written is not there."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:  # killed before there was anything; such a file cannot be sent either
        return -1
    return int((json.loads(done.stdout).get("summary") or {}).get("_step", -1))


def _summary(results: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, float]:
    """The headline, the teacher's, and every metric of every split."""
    headline = results["headline"]
    summary = {
        f"{split}/{name}": value
        for split, scores in results["splits"].items()
        for name, value in scores.items()
    }
    summary |= {f"train/{name}": v for name, v in results["train"].items() if v is not None}
    taught = metadata.get("teacher", {}).get("splits", {}).get(headline["split"], {})
    if headline["metric"] in taught:
        summary[TEACHER] = taught[headline["metric"]]
    return {HEADLINE: headline["value"], **summary}


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

    settings = wandb.setup().settings
    return "wandb's settings" if settings.api_key or settings.identity_token_file else ""
