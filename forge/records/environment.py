"""What a run ran on: commit, versions, device."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TypedDict

PACKAGES = ("forge", "torch", "transformers", "datasets", "accelerate", "tokenizers", "trl", "peft")


class Commit(TypedDict, total=False):
    """A commit, and whether files differ from it; empty outside a checkout."""

    commit: str
    dirty: bool


def git() -> Commit:
    """The commit of this checkout."""
    here = Path(__file__).resolve().parents[2]

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    if not shutil.which("git") or not (commit := ask("rev-parse", "HEAD")):
        return {}
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain"))}


def version(git: Commit) -> str:
    """The commit for a log line, e.g. `0a1b2c3d4e with changes`."""
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
