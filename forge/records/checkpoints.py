"""Checkpoints that can be trusted: committed last, verified before use, damaged ones set aside.

transformers writes `checkpoint-N/` in place, so a kill leaves a directory that looks whole. A
marker, written last, names the run and every file with its size and hash; a directory without a
marker that fits is renamed, logged, and never loaded.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from forge.errors import FULL, Failure
from forge.records.files import read_json, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)
MARKER = "commit.json"
ASIDE, DOOMED = "set-aside-", ".deleting-"
EXTRA = "preempted-"  # a checkpoint off the schedule: to go on from, never the best


def commit(folder: Path, run_id: str) -> None:
    """Flush every file of a checkpoint to the disk, then write its marker, atomically."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[str(path.relative_to(folder))] = _fingerprint(path)
    write_json(folder / MARKER, {"run": run_id, "files": files})
    for place in (folder, folder.parent):
        _sync_folder(place)
    for old in sorted(folder.parent.glob(f"{ASIDE}*"))[:-1]:  # they would fill the disk
        shutil.rmtree(old, ignore_errors=True)


class Fingerprint(TypedDict):
    """Of a file, as its checkpoint's marker has it."""

    size: int
    xxh128: str


def _fingerprint(path: Path) -> Fingerprint:
    return {"size": path.stat().st_size, "xxh128": digest(path)}


def digest(path: Path) -> str:
    """A hash of a file."""
    import xxhash

    running = xxhash.xxh128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            running.update(block)
    return running.hexdigest()


def seal(path: Path) -> None:
    """Write beside a file, in a .json of its name, what it holds."""
    write_json(path.with_suffix(".json"), {"digest": digest(path)})


def is_sealed(path: Path) -> bool:
    """Whether a file is there as it was sealed."""
    try:
        return read_json(path.with_suffix(".json")).get("digest") == digest(path)
    except (OSError, ValueError):
        return False


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def problem(folder: Path, run_id: str) -> str | None:
    """Why a checkpoint cannot be trusted, or None."""
    try:
        marker = read_json(folder / MARKER)
    except (OSError, ValueError):
        return f"its {MARKER} cannot be read"
    if not marker:
        return "it was not written to its end"
    if marker.get("run") != run_id:
        return "it is another run's"
    wanted = marker.get("files")
    if not wanted or not isinstance(wanted, dict):
        return f"its {MARKER} names no files"
    for name, recorded in wanted.items():
        if not (path := folder / name).is_file():
            return f"{name} is missing"
        try:
            if recorded != _fingerprint(path):
                return f"{name} is not as it was written"
        except OSError as error:  # a block of the disk has gone bad
            return f"{name} cannot be read ({error.strerror})"
    return None


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the .safetensors in a model's directory or a checkpoint."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def steps(run_dir: Path) -> dict[int, Path]:
    """The checkpoint directories by step, newest first, good or not."""
    checkpoints = {
        int(match[1]): path
        for path in sorted(run_dir.glob("*-*"), reverse=True)  # checkpoint-N before preempted-N
        if (match := re.fullmatch(rf"(?:checkpoint-|{EXTRA})(\d+)", path.name))
    }
    return dict(sorted(checkpoints.items(), reverse=True))


def newest(run_dir: Path, run_id: str) -> Path | None:
    """The newest good checkpoint; every damaged one is renamed and logged."""
    for doomed in run_dir.glob(f"{DOOMED}*"):
        shutil.rmtree(doomed, ignore_errors=True)
    good = []
    for path in steps(run_dir).values():
        if reason := problem(path, run_id):
            log.warning("%s: %s; set aside", path.name, reason)
            set_aside(path)
        else:
            good.append(path)
    return good[0] if good else None


def keep_apart(folder: Path) -> None:
    """Rename a checkpoint off the schedule, so that it is never taken for the best."""
    target = folder.with_name(folder.name.replace("checkpoint-", EXTRA))
    if target.exists():
        set_aside(target)
    folder.rename(target)


def set_aside(folder: Path) -> None:
    """Rename a directory so that nothing takes it for a checkpoint."""
    number = 0
    while (target := folder.with_name(f"{ASIDE}{folder.name}-{number}")).exists():
        number += 1
    folder.rename(target)


def rotate(run_dir: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints over `limit`, never the newest and never the best."""
    every = list(steps(run_dir).values())
    extra = [path for path in every[1:] if path.name.startswith(EXTRA)]
    regular = [path for path in every if path not in extra]
    kept = {*regular[:1], *(path for path in regular if best and path.name == Path(best).name)}
    spare = [path for path in reversed(regular) if path not in kept]
    for path in [*extra, *spare[: max(0, len(regular) - max(limit or len(regular), len(kept)))]]:
        doomed = path.with_name(f"{DOOMED}{path.name}")  # gone at once, whatever happens next
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def require_space(run_dir: Path, needed: int) -> None:
    """Raise `Failure` unless the disk has room for a checkpoint of `needed` bytes."""
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise Failure(
            f"{run_dir}: {free / 1e6:,.1f} MB free, a checkpoint takes {needed / 1e6:,.1f} MB; "
            "make room, or choose another place with hydra.run.dir=DIR"
        )


def size_of(model: nn.Module) -> int:
    """Bytes of a checkpoint: the weights, and two moments of AdamW for each that trains.

    Beside an adapter the frozen weights are not saved.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    saved = trained if hasattr(model, "peft_config") else model.parameters()
    weights = sum(p.numel() * p.element_size() for p in saved)
    return int(weights + sum(8 * p.numel() for p in trained))


@contextmanager
def room(run_dir: Path, needed: int, half_written: Path) -> Iterator[None]:
    """Turn a full disk into one line, without what was half-written inside the block."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors say it in their own ways
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if getattr(error, "errno", None) not in FULL and shutil.disk_usage(run_dir).free >= needed:
            raise
        shutil.rmtree(half_written, ignore_errors=True)
        older = next(iter(steps(run_dir).values()), None)
        raise Failure(
            f"{run_dir}: the disk is full; "
            + (f"{older.name} is whole, " if older else "")
            + "make room and give the same command to go on"
        ) from error
