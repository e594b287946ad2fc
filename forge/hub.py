"""The Hugging Face Hub, on machines that reach it and on those that do not."""

from __future__ import annotations

import logging
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from forge.errors import UserError, did_you_mean, one_line

log = logging.getLogger(__name__)
TIMEOUT = 5  # seconds
OURS = ("outputs", "multirun")  # where runs are, of no owner on the Hub


def looks_like_name(path: str) -> bool:
    """Whether `path` could be a Hub name (`name` or `owner/name`) rather than a local path."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) is not None


@cache
def reachable() -> bool:
    """Whether the Hub answers within five seconds; False when HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=TIMEOUT)
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
    return True


def offline_unless_reachable() -> None:
    """Before a Hub library asks: when the Hub is out of reach, use what was downloaded before."""
    if reachable():
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:  # imported already: it read the environment then
            sys.modules[module].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def no_directory(key: str, path: str) -> UserError:
    """That there is no directory of this path, with what is there of a like name."""
    folder = Path(path).expanduser().parent
    beside = os.listdir(folder) if folder.is_dir() else []
    near = did_you_mean(Path(path).name, beside, listed=False)
    return UserError(f"{key}={path}: no such directory{near}")


@contextmanager
def access(kind: str, path: str, way_out: str) -> Iterator[None]:
    """Turn a library's errors about `path`, local or on the Hub, into one line with a way out."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    what = f"{kind} {path}"
    local = Path(path).exists()
    if not local:
        offline_unless_reachable()
    try:
        yield
    except (
        OSError, ValueError, ImportError, RuntimeError, SafetensorError, StrictDataclassError
    ) as error:  # fmt: skip
        if "trust_remote_code" in str(error):
            owner = "teacher" if way_out.startswith("teacher") else "model"
            raise UserError(
                f"{what}: it brings code of its own, which is run only when you trust it with "
                f"+{owner}.from_pretrained.trust_remote_code=true"
            ) from error
        folder = Path(path).parts[0]
        if not local and (Path(folder).is_dir() or folder in OURS):
            raise no_directory(way_out.partition("=")[0], path) from error
        if local or reachable():
            raise UserError(f"{what}: {one_line(str(error))[:300]}") from error
        raise UserError(
            f"{what}: the Hub is unreachable and no downloaded copy is here; "
            f"give a local one with {way_out}, or download it where there is a network"
        ) from error
