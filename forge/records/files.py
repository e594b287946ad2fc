"""The files of a run directory: JSON that is read with care and replaced whole."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from forge.config.moved import with_current_targets
from forge.errors import UserError

Json: TypeAlias = dict[str, Any]  # an object in a JSON file, of whatever keys it has
log = logging.getLogger(__name__)


METADATA, STATE, RESULTS = "run_metadata.json", "training_state.json", "results.json"
TIMINGS = ("seconds", "examples_per_second")  # of an evaluation in it, beside the metrics


EVALUATION = "evaluation.json"  # what a run's model was judged on afterwards, beside its results


class Damaged(UserError, ValueError):
    """A file of Forge's that is not as it was written."""


def now() -> str:
    """This second, UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_json(path: Path) -> Json:
    """The object in a file, or an empty one when there is no such file.

    Its `config`, as a run recorded it, names today's import paths. Raises `Damaged` for what is no
    JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise Damaged(f"{path}: cannot be read, it is damaged ({error})") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path}: cannot be read, it is no JSON object")
    if "config" in content:
        content["config"] = with_current_targets(content["config"])
    return content


def finite(value: Any) -> Any:  # as nested as it was
    """Nested values as JSON has them: no arrays, and null for what is no finite number."""
    if isinstance(value, dict):
        return {key: finite(nested) for key, nested in value.items()}
    if isinstance(value, list | tuple):
        return [finite(nested) for nested in value]
    if hasattr(value, "tolist"):  # of numpy, which is not imported for this
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def readable(path: Path) -> Json:
    """The object in a file that the next attempt writes anew; an empty one for a damaged file."""
    try:
        return read_json(path)
    except Damaged as error:
        log.warning("%s; it will be written anew", error)
        return {}


def new_file_mode() -> int:
    """The permission bits of any new file, by the umask."""
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


def follow_umask(*files: Path) -> None:
    """Give files the mode of any new file; safetensors lets their owner alone read them."""
    for file in files:
        file.chmod(new_file_mode())


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


def write_json(path: Path, value: Mapping[str, object]) -> None:
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
