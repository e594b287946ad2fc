"""What a run ran on: commit, versions, device."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from forge.errors import one_line

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("forge", "torch", "transformers", "datasets", "accelerate", "tokenizers", "trl", "peft")


class Commit(TypedDict, total=False):
    """A commit, and whether files differ from it; empty outside a checkout."""

    commit: str
    dirty: bool
    unreadable: str  # why the commit of a checkout is not known


def git(here: Path = CHECKOUT) -> Commit:
    """The commit of this checkout, also where another user owns it."""
    if not (here / ".git").exists():
        return {}
    try:
        commit, status = (
            subprocess.run(
                ["git", "-c", f"safe.directory={here}", "-C", str(here), *arguments],
                capture_output=True, text=True, check=True,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )  # fmt: skip
    except OSError as error:
        return {"unreadable": f"git: {error.strerror}"}
    except subprocess.CalledProcessError as error:
        return {"unreadable": one_line(error.stderr)[:200]}
    return {"commit": commit, "dirty": bool(status)}


def version(git: Commit) -> str:
    """The commit for a log line, e.g. `0a1b2c3d4e with changes`."""
    if "unreadable" in git:
        return f"a commit that cannot be read ({git['unreadable']})"
    changed = " with changes" if git.get("dirty") else ""
    return f"{git['commit'][:10]}{changed}" if git else "no commit"


class Environment(TypedDict):
    """Versions of packages, the device's name, and how many there are."""

    versions: dict[str, str]
    device: str
    devices: int


def environment() -> Environment:
    """Versions and device of this attempt."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "devices": max(torch.cuda.device_count(), 1),
    }


def cpu_name() -> str:
    """The processor's name and its cores, e.g. `AMD EPYC, 2 cores`."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    return f"{named[1] if named else platform.machine()}, {os.cpu_count()} cores"
