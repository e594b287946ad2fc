"""What ran and how far it is: run_metadata.json, training_state.json, the run directory's lock.

`with record(cfg, run_dir) as rec:` is one attempt at a run. The metadata is written before
anything slow starts and appended to by every later attempt; the state follows training.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import TypedDict

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from forge import ranks
from forge.config.compose import dotted_values
from forge.config.moved import with_current_targets
from forge.config.schema import Node
from forge.errors import USER_ERRORS, UserError
from forge.records import curve, samples
from forge.records.environment import Commit, git, version
from forge.records.files import (
    METADATA,
    RESULTS,
    STATE,
    Json,
    now,
    read_json,
    readable,
    write_json,
)
from forge.records.logs import library_logs
from forge.records.secrets import masked

log = logging.getLogger(__name__)


NOT_COMPARED = (
    "tracking",
    "cache_dir",
    "launcher",
    "resume",
)  # keys that do not change what a run computes


class Composition(TypedDict):
    """What Hydra composed a run from."""

    choices: dict[str, str]  # the option of each group
    overrides: list[str]


class Record:
    """The two JSON files of a run directory; every write, by rank 0, replaces a file whole."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.metadata = read_json(run_dir / METADATA)
        self.state = readable(run_dir / STATE)
        self.begun = False  # an attempt of this process
        self.reason = ""  # why training ended, in a run that came to its end

    def note(self, **facts: object) -> None:
        """Add facts about what ran to run_metadata.json."""
        self.metadata |= facts
        if not ranks.rank():
            write_json(self.run_dir / METADATA, self.metadata)

    def update_state(self, **facts: object) -> None:
        """Update how far the run is in training_state.json."""
        self.state |= facts | {"updated": now()}
        if not ranks.rank():
            write_json(self.run_dir / STATE, self.state)

    @property
    def finished(self) -> bool:
        """Whether an earlier attempt reached the planned end."""
        over = self.state.get("status") == "finished"
        return over and "headline" in readable(self.run_dir / RESULTS)


@contextmanager
def record(
    cfg: DictConfig,
    run_dir: Path,
    composed: Composition | None = None,
    submitted: Commit | None = None,
) -> Iterator[Record]:
    """One attempt: locked, recorded, and at its end finished, failed or interrupted.

    `composed` stands for `composition()` in a run that is not Hydra's own; `submitted` is the
    commit at which a queue took the run. A user's mistake that
    shows before training leaves no run directory behind, or the run that it was. Raises `UserError`
    when another process is at work in the directory or it holds a run of another config. Of several
    ranks the first does all this.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    from forge.errors import Preempted

    with ranks.one_run(), ExitStack() as locked, library_logs():
        ranks.broadcast(lambda: locked.enter_context(_lock(run_dir)) and None)
        rec = Record(run_dir)
        before = deepcopy(rec)
        try:
            begun = ranks.broadcast(lambda: _begin(rec, cfg, composed, submitted))
            rec.metadata, rec.state = begun
            yield rec
            ranks.barrier()
            _end_attempt(rec, "finished", rec.reason)
        except USER_ERRORS as error:
            _end_refused(rec, before, str(error))
            raise
        except KeyboardInterrupt:
            _end_attempt(rec, "interrupted", "Ctrl-C, at once")
            raise
        except Preempted as signal:
            _end_attempt(rec, "preempted", f"signal {signal}")
            raise
        except Exception as error:
            ranks.abort()
            with suppress(OSError):  # a full disk is why it failed
                _end_attempt(rec, "failed", f"{type(error).__name__}: {error}", failed=True)
            raise


@contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        metadata = read_json(run_dir / METADATA)
        holder = (metadata.get("attempts") or [{}])[-1]
        raise UserError(
            f"{run_dir}: another process is at work in this run directory (process "
            f"{holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')})"
        ) from error
    try:
        yield
    finally:
        (run_dir / ".lock").unlink(missing_ok=True)  # while it is held: nobody else's goes
        lock.release()


def _begin(
    rec: Record, cfg: DictConfig, composed: Composition | None, submitted: Commit | None
) -> tuple[Json, Json]:
    """Start another attempt, unless the run is finished as it is; the two files' content."""
    for scratch in rec.run_dir.glob(".*.json.[0-9]*"):  # of an attempt that was killed
        scratch.unlink()
    if rec.finished and _longer(rec, cfg):
        rec.update_state(status="extended")
    if rec.finished:
        _refuse_other_config(rec, cfg)
    else:
        _start_attempt(rec, cfg, composed, submitted)
    return rec.metadata, rec.state


def _start_attempt(
    rec: Record, cfg: DictConfig, composed: Composition | None, submitted: Commit | None
) -> None:
    if rec.metadata and not cfg.get("resume"):  # which has checked what changes
        _refuse_other_config(rec, cfg)
    if rec.metadata:
        composed = {
            "choices": rec.metadata["choices"],
            "overrides": rec.metadata["overrides"],
        }
    elif composed is None:
        composed = composition()
        _write_hydra_files(rec.run_dir, cfg)
    attempt = {"started": now(), "command": masked(sys.argv), "pid": os.getpid()}
    attempt |= {"host": socket.gethostname(), "slurm_job": os.environ.get("SLURM_JOB_ID")}
    attempts = [*rec.metadata.get("attempts", ()), attempt | _code(submitted)]
    made = {"id": rec.metadata.get("id") or secrets.token_hex(8), "processes": ranks.ranks()}
    if (before := rec.metadata.get("processes", ranks.ranks())) != ranks.ranks():
        raise UserError(
            f"{rec.run_dir}: this run was begun in {before} processes, not in {ranks.ranks()}; "
            f"its batches would be others; add launcher=ddp launcher.processes={before}"
        )
    rec.note(**made, **composed, config=plain(cfg), attempts=attempts)
    rec.begun = True
    rec.update_state(status="running", reason=None)


def reached(cfg: DictConfig, run_dir: Path) -> float | None:
    """The headline of a directory's run that is finished as `cfg` asks; None for any other.

    Raises `UserError` for a run of another config.
    """
    rec = Record(run_dir)
    if not rec.metadata:
        return None
    asked = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    if not asked.get("resume"):
        _refuse_other_config(rec, asked)
    if not rec.finished or _longer(rec, asked):
        return None
    return float(read_json(run_dir / RESULTS)["headline"]["value"])


def _longer(rec: Record, cfg: DictConfig) -> bool:
    """Whether a finished run is asked, by `resume=`, for more steps or epochs than it has."""
    if not cfg.get("resume"):
        return False
    ours, theirs = cfg.trainer, rec.metadata["config"]["trainer"]
    if ours.max_steps >= 0:  # then epochs do not count
        step = rec.state.get("step", 0)
        return bool(ours.max_steps > step and ours.max_steps != theirs["max_steps"])
    before = theirs["num_train_epochs"]
    if theirs["max_steps"] >= 0:
        before = rec.state.get("epoch") or 0
    return bool(ours.num_train_epochs > before)


def _end_attempt(rec: Record, status: str, reason: str, failed: bool = False) -> None:
    if rec.begun and "ended" not in rec.metadata["attempts"][-1]:
        error = reason if failed else None
        rec.metadata["attempts"][-1] |= {"ended": now(), "status": status, "error": error}
        rec.note()
        rec.update_state(status=status, reason=reason)


def _end_refused(rec: Record, before: Record, error: str) -> None:
    """End an attempt that a user's mistake ended; what was not trained with is not kept."""
    trained = rec.state.get("step") != before.state.get("step")
    if not before.metadata and not trained:
        remove(rec.run_dir)
        return
    _end_attempt(rec, "failed", error, failed=True)
    if rec.begun and not trained:
        rec.note(config=before.metadata["config"])
        if before.finished:
            rec.update_state(status="finished", reason=before.state.get("reason"))


def _refuse_other_config(rec: Record, cfg: DictConfig) -> None:
    ours, theirs = (dict(dotted_values(c)) for c in (plain(cfg), rec.metadata["config"]))
    differ = [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if key.split(".")[0] not in NOT_COMPARED and ours.get(key) != theirs.get(key)
    ]
    if not differ:
        return
    shown = ", ".join(f"{k}={ours.get(k)} (recorded: {theirs.get(k)})" for k in differ[:5])
    raise UserError(
        f"{rec.run_dir}: this directory holds a run of another config: {shown}; "
        "leave hydra.run.dir out for a new directory, or give the recorded values"
    )


def plain(cfg: DictConfig) -> Node:
    """The config as plain JSON values, resolved, without secrets, with today's import paths."""
    values = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in masked(with_current_targets(values)).items()}


def composition() -> Composition:
    """Choices and overrides of this process' Hydra composition; empty lists without one."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {"choices": {}, "overrides": []}
    hydra = HydraConfig.get()
    choices = {k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/")}
    overrides = [each for each in hydra.overrides.task if not each.startswith("resume=")]
    return {"choices": choices, "overrides": masked(overrides)}


def _write_hydra_files(run_dir: Path, cfg: DictConfig) -> None:
    """What Hydra writes of a composition, without secrets."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return
    folder = run_dir / ".hydra"
    folder.mkdir(exist_ok=True)
    composed, overrides = HydraConfig.instance().cfg, HydraConfig.get().overrides.task
    files = {"config": cfg, "hydra": composed, "overrides": overrides}
    for name, node in files.items():
        hidden = masked(OmegaConf.to_container(node))
        OmegaConf.save(OmegaConf.create(hidden), folder / f"{name}.yaml")


def _code(submitted: Commit | None) -> dict[str, object]:
    """The commit now and, of a submitted run, then; warns when they differ."""
    now = git()
    if submitted is None:
        return {**now}
    if submitted != now:
        then, today = version(submitted), version(now)
        log.warning("the code has changed since the submission: %s then, %s now", then, today)
    return {**now, "submitted": submitted}


def remove(run_dir: Path) -> None:
    """Remove what a first attempt wrote, and the folders that are empty then."""
    if ranks.rank():
        return
    for name in (".hydra", samples.FOLDER):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    for name in ("output.log", curve.FILE, METADATA, STATE, ".lock"):
        (run_dir / name).unlink(missing_ok=True)
    for folder in (run_dir, *run_dir.parents):
        if folder == Path.cwd() or any(folder.iterdir()):
            break
        folder.rmdir()
