"""What ran and where it stands: run_metadata.json, training_state.json, the run directory's lock.

`with record(cfg, run_dir) as rec:` is one attempt at a run. The metadata is written before
anything slow starts and appended to by every later attempt; the state follows training.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from forge import cluster
from forge.config import dotted_values
from forge.errors import FULL, USER_ERRORS, UserError

log = logging.getLogger(__name__)
METADATA, STATE, RESULTS = "run_metadata.json", "training_state.json", "results.json"
EVALUATION = "evaluation.json"  # what a run's model was judged on afterwards, beside its results
PACKAGES = ("forge", "torch", "transformers", "datasets", "accelerate", "tokenizers", "trl", "peft")
SECRET = "(token|secret|password|passwd|api_?key|access_key)"
SECRET_KEY = re.compile(rf"(^|[._]){SECRET}$", re.I)
SECRET_ITEM = re.compile(  # of a dict in an override
    rf"(?<![^\W_])({SECRET}['\"]?\s*:\s*)(?!null\b)('[^']*'|\"[^\"]*\"|[^\s,}}]+)", re.I
)
SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=://)[^/@\s]+:[^/@\s]+(?=@)")
MASK = "***"
routed = False  # whether the libraries' logs go where ours go
submitted: dict[str, Any] | None = None  # commit and dirtiness when this run was submitted
NOT_COMPARED = (
    "tracking",
    "cache_dir",
    "launcher",
    "resume",
)  # keys that do not change what a run computes


class Damaged(UserError, ValueError):
    """A file of Forge's that is not as it was written."""


class Record:
    """The two JSON files of a run directory; every write, by rank 0, replaces a file whole."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.metadata = read_json(run_dir / METADATA)
        self.state = _readable(run_dir / STATE)
        self.begun = False  # an attempt of this process

    def note(self, **facts: Any) -> None:
        """Add facts about what ran to run_metadata.json."""
        self.metadata |= facts
        if not cluster.rank():
            write_json(self.run_dir / METADATA, self.metadata)

    def stand(self, **facts: Any) -> None:
        """Update where the run stands in training_state.json."""
        self.state |= facts | {"updated": now()}
        if not cluster.rank():
            write_json(self.run_dir / STATE, self.state)

    @property
    def finished(self) -> bool:
        """Whether an earlier attempt reached the planned end."""
        over = self.state.get("status") == "finished"
        return over and "headline" in _readable(self.run_dir / RESULTS)


@contextmanager
def record(
    cfg: DictConfig, run_dir: Path, composed: dict[str, Any] | None = None
) -> Iterator[Record]:
    """One attempt: locked, recorded, and at its end finished, failed or interrupted.

    `composed` stands for `composition()` in a run that is not Hydra's own. A user's mistake that
    shows before training leaves no run directory behind, or the run that it was. Raises `UserError`
    when another process is at work in the directory or it holds a run of another config. Of several
    ranks the first does all this.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    from forge.signals import Preempted

    with cluster.one_run(), ExitStack() as locked, library_logs():
        cluster.together(lambda: locked.enter_context(_lock(run_dir)) and None)
        rec = Record(run_dir)
        before = deepcopy(rec)
        try:
            found = cluster.together(lambda: _begin(rec, cfg, composed))
            rec.metadata, rec.state = found
            yield rec
            cluster.meet()
            _end_attempt(rec, "finished")
        except USER_ERRORS as error:
            _end_refused(rec, before, str(error))
            raise
        except KeyboardInterrupt:
            _end_attempt(rec, "interrupted")
            raise
        except Preempted:
            _end_attempt(rec, "preempted")
            raise
        except Exception as error:
            cluster.give_up()
            with suppress(OSError):  # a full disk is why it failed
                _end_attempt(rec, "failed", f"{type(error).__name__}: {error}")
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
    rec: Record, cfg: DictConfig, composed: dict[str, Any] | None
) -> tuple[dict[str, Any], ...]:
    """Start another attempt, unless the run is finished as it is; the two files' content."""
    for scratch in rec.run_dir.glob(".*.json.[0-9]*"):  # of an attempt that was killed
        scratch.unlink()
    if rec.finished and _longer(rec, cfg):
        rec.stand(status="extended")
    if rec.finished:
        _refuse_other_config(rec, cfg)
    else:
        _start_attempt(rec, cfg, composed)
    return rec.metadata, rec.state


def _start_attempt(rec: Record, cfg: DictConfig, composed: dict[str, Any] | None) -> None:
    if rec.metadata and not cfg.get("resume"):  # which has checked what changes
        _refuse_other_config(rec, cfg)
    if rec.metadata:
        composed = {key: rec.metadata[key] for key in ("choices", "overrides")}
    elif composed is None:
        composed = composition()
        _write_hydra_files(rec.run_dir, cfg)
    attempt = {"started": now(), "command": masked(sys.argv), "pid": os.getpid()}
    attempt |= {"host": socket.gethostname(), "slurm_job": os.environ.get("SLURM_JOB_ID")}
    attempts = [*rec.metadata.get("attempts", ()), attempt | _code()]
    made = {"id": rec.metadata.get("id") or secrets.token_hex(8), "processes": cluster.ranks()}
    if (before := rec.metadata.get("processes", cluster.ranks())) != cluster.ranks():
        raise UserError(
            f"{rec.run_dir}: this run was begun in {before} processes, not in {cluster.ranks()}; "
            f"its batches would be others; add launcher=ddp launcher.processes={before}"
        )
    rec.note(**made, **composed, config=plain(cfg), attempts=attempts)
    rec.begun = True
    rec.stand(status="running")


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
    """Whether a finished run is asked, by `resume=`, for more steps than it has."""
    if not cfg.get("resume"):
        return False
    ours, theirs = cfg.trainer, rec.metadata["config"]["trainer"]
    longer = ours.max_steps > rec.state.get("step", 0) and ours.max_steps != theirs["max_steps"]
    return bool(longer or ours.num_train_epochs > theirs["num_train_epochs"])


def _end_attempt(rec: Record, status: str, error: str | None = None) -> None:
    if rec.begun and "ended" not in rec.metadata["attempts"][-1]:
        rec.metadata["attempts"][-1] |= {"ended": now(), "status": status, "error": error}
        rec.note()
        rec.stand(status=status)


def _end_refused(rec: Record, before: Record, error: str) -> None:
    """End an attempt that a user's mistake ended; what was not trained with is not kept."""
    trained = rec.state.get("step") != before.state.get("step")
    if not before.metadata and not trained:
        remove(rec.run_dir)
        return
    _end_attempt(rec, "failed", error)
    if rec.begun and not trained:
        rec.note(config=before.metadata["config"])
        if before.finished:
            rec.stand(status="finished")


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


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain JSON values, resolved, without secrets."""
    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    masked_plain: dict[str, Any] = masked(plain)
    return masked_plain


def composition() -> dict[str, Any]:
    """Choices and overrides of this process' Hydra composition; empty lists without one."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {"choices": {}, "overrides": []}
    hydra = HydraConfig.get()
    choices = {k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/")}
    return {"choices": choices, "overrides": masked(list(hydra.overrides.task))}


def _write_hydra_files(run_dir: Path, cfg: DictConfig) -> None:
    """What Hydra writes of a composition, without secrets; also in the sweep's multirun.yaml."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return
    hydra: Any = HydraConfig.instance().cfg
    folder, swept = run_dir / ".hydra", run_dir.parent / "multirun.yaml"
    folder.mkdir(exist_ok=True)
    files = {"config": cfg, "hydra": hydra, "overrides": hydra.hydra.overrides.task}
    for name, node in files.items():
        hidden = masked(OmegaConf.to_container(node))
        OmegaConf.save(OmegaConf.create(hidden), folder / f"{name}.yaml")
    if swept.is_file():
        found = OmegaConf.to_container(OmegaConf.load(swept))
        if masked(found) != found:
            OmegaConf.save(OmegaConf.create(masked(found)), swept)


def masked(value: Any, key: str = "") -> Any:
    """A copy of nested lists, dicts and `key=value` strings with secrets as ***."""
    if isinstance(value, dict):
        return {k: masked(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [masked(v) for v in value]
    if value and isinstance(value, str):
        name, equals, given = value.partition("=")
        if SECRET_KEY.search(key):
            return MASK
        if equals and SECRET_KEY.search(name):
            return f"{name}={MASK}"
        if given.startswith(("{", "[")):
            value = SECRET_ITEM.sub(rf"\1{MASK}", value)
        return SECRET_VALUE.sub(MASK, value)
    return value


def _code() -> dict[str, Any]:
    """The commit now and, of a job, when it was submitted; says so when they differ."""
    found = git()
    if submitted is None:
        return found
    if submitted != found:
        then, today = _version(submitted), _version(found)
        log.warning("the code has changed since the submission: %s then, %s now", then, today)
    return found | {"submitted": submitted}


def git() -> dict[str, Any]:
    """Commit of this checkout and whether files differ from it; nothing outside a checkout."""
    here = Path(__file__).resolve().parent.parent

    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    if not shutil.which("git") or not (commit := ask("rev-parse", "HEAD")):
        return {}
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain"))}


def _version(git: dict[str, Any]) -> str:
    changed = " with changes" if git.get("dirty") else ""
    return f"{git['commit'][:10]}{changed}" if git else "no commit"


def environment() -> dict[str, Any]:
    """Versions and device of this attempt."""
    import torch

    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": {"python": platform.python_version(), **found},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "devices": max(torch.cuda.device_count(), 1),
    }


def cpu_name() -> str:
    """The processor's name and its cores, e.g. `AMD EPYC, 2 cores`."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    return f"{named[1] if named else platform.machine()}, {os.cpu_count()} cores"


@contextmanager
def library_logs() -> Iterator[None]:
    """Warnings and library logs go where ours go; their bars show in a terminal only."""
    global routed
    if routed:  # by the run around this one, which trains its teacher
        yield
        return
    import datasets
    import datasets.utils.logging as datasets_logging
    import transformers.utils.logging as transformers_logging

    logging.captureWarnings(True)
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    for library in (transformers_logging, datasets_logging):
        library.enable_propagation()
    transformers_logging.disable_default_handler()
    routed = True
    try:
        yield
    finally:
        routed = False
        logging.captureWarnings(False)
        transformers_logging.enable_default_handler()
        for library in (transformers_logging, datasets_logging):
            library.disable_propagation()


class LogFile(logging.FileHandler):
    """output.log; on a full disk lines are lost, and the run says why it ends."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not (isinstance(error, OSError) and error.errno in FULL):
            super().handleError(record)


class Readable(logging.Filter):
    """The console shows what Forge says, and errors of libraries; output.log holds all."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name.split(".")[0] in ("forge", "hydra", "__main__")
        return ours or record.levelno >= logging.ERROR


def remove(run_dir: Path) -> None:
    """Remove what a first attempt wrote, and the folders that are empty then."""
    if cluster.rank():
        return
    shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
    for name in ("output.log", METADATA, STATE, ".lock"):
        (run_dir / name).unlink(missing_ok=True)
    for folder in (run_dir, *run_dir.parents):
        if folder == Path.cwd() or any(folder.iterdir()):
            break
        folder.rmdir()


def now() -> str:
    """This second, UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, or an empty one when there is no such file.

    Raises `Damaged` for what is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise Damaged(f"{path}: cannot be read, it is damaged ({error})") from error
    if not isinstance(found, dict):
        raise Damaged(f"{path}: cannot be read, it is no JSON object")
    return found


def _readable(path: Path) -> dict[str, Any]:
    """The object in a file that the next attempt writes anew; an empty one for a damaged file."""
    try:
        return read_json(path)
    except Damaged as error:
        log.warning("%s; it will be written anew", error)
        return {}


def require_place(folder: Path, marker: str) -> None:
    """Raise `UserError` for a folder that is there and not an earlier one, with `marker` in it."""
    if folder.exists() and not (folder / marker).is_file():
        raise UserError(f"{folder}: it is there already, with no {marker}; name a new directory")


@contextmanager
def whole(folder: Path, marker: str) -> Iterator[Path]:
    """A scratch folder that takes the place of `folder` at the end, and is gone after an error.

    Raises `UserError` as `require_place` does.
    """
    folder = folder.absolute()
    require_place(folder, marker)
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            folder.rename(old)
            scratch.rename(folder)
            shutil.rmtree(old)
        else:
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace the file atomically: a reader sees the old content or the new, never half of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
