"""What this machine has and lacks: one line per check, each with its way out.

Checks import what they look at, so that a broken package is one FAIL line and not the end.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from forge.errors import one_line

GB = 1e9
LOW, TOO_LOW = 20, 1  # GB


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it."""

    status: Literal["ok", "warn", "FAIL"]
    found: str
    way_out: str = ""


def python() -> Finding:
    detail = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info < (3, 11):  # noqa: UP036  # pip checks it, a bare checkout does not
        return Finding("FAIL", detail, "Forge needs 3.11 or newer: make setup PYTHON=python3.11")
    return Finding("ok", detail)


def torch() -> Finding:
    import torch

    built = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    builds = " ".join(f"{name} {version}" for name, version in built.items() if version)
    return Finding("ok", f"{torch.__version__}, built for {builds or 'CPU'}")


def device() -> Finding:
    import torch

    from forge.records.environment import cpu_name

    if torch.cuda.is_available():
        gpus = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        return Finding("ok", "; ".join(f"{g.name}, {g.total_memory / GB:.0f} GB" for g in gpus))
    if shutil.which("nvidia-smi"):
        way_out = "install a CUDA build of torch that fits the driver (nvidia-smi shows it)"
        return Finding("warn", f"{cpu_name()}; nvidia-smi is here, but torch sees no GPU", way_out)
    other = torch.accelerator.current_accelerator(check_available=True)
    return Finding("ok", f"{other.type}; {cpu_name()}" if other else f"no GPU; {cpu_name()}")


def bf16() -> Finding:
    import torch

    from forge.config.schema import Precision
    from forge.training.arguments import resolve_precision

    on_cpu = not torch.accelerator.is_available()
    if resolve_precision(Precision.auto, on_cpu) is Precision.bf16:
        return Finding("ok", "native; precision=auto trains in bf16")
    detail = "not native; precision=auto trains in fp32"
    return Finding("ok", detail) if on_cpu else Finding("warn", detail, "precision=fp16 is faster")


def package(name: str) -> Finding:
    """Imported, not only looked up: a package can be installed and broken."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return Finding("FAIL", str(error), "make setup, or pip install -e .")
    return Finding("ok", metadata.version(name))


def optional(name: str, way_out: str) -> Finding:
    try:
        return Finding("ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding("warn", "not installed", way_out)


def _folders() -> dict[str, Path]:
    """Where runs write, by the setting that names another place."""
    from forge.data.cache import cache_directory

    cache = cache_directory(os.environ.get("FORGE_CACHE"))
    return {"hydra.run.dir": Path("outputs"), "FORGE_CACHE": cache}


def disk() -> Finding:
    free = {}
    for path in _folders().values():
        exists = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        free[path] = shutil.disk_usage(exists).free / GB
    detail = ", ".join(f"{gigabytes:.1f} GB free at {path}/" for path, gigabytes in free.items())
    if (least := min(free.values())) >= LOW:
        return Finding("ok", detail)
    way_out = "free some, or name other places: hydra.run.dir=DIR, FORGE_CACHE=DIR"
    return Finding("warn" if least >= TOO_LOW else "FAIL", detail, way_out)


def writable() -> Finding:
    for setting, path in _folders().items():
        existed = path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            return Finding("FAIL", str(error), f"name another place: {setting}=DIR")
        if not existed:
            path.rmdir()
    return Finding("ok", " and ".join(f"{path}/" for path in _folders().values()))


def hub() -> Finding:
    from forge import hub

    if hub.reachable():
        return Finding("ok", os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    offline = os.environ.get("HF_HUB_OFFLINE")
    detail = "not reached" + (f": HF_HUB_OFFLINE={offline} is set" if offline else "")
    way_out = "local copies: model.path=DIR task.dataset.path=DIR; task=toy model=tiny needs none"
    return Finding("warn", detail, way_out)


def wandb() -> Finding:
    mode = os.environ.get("WANDB_MODE")
    if mode and mode != "online":
        return Finding("ok", f"WANDB_MODE={mode}: no login needed")
    from forge.tracking.wandb import wandb_key

    if place := wandb_key():
        return Finding("ok", f"key in {place} (not tried)")
    way_out = "wandb login, or tracking.mode=offline and wandb sync later"
    return Finding("warn", "no login", way_out)


def slurm() -> Finding:
    if not shutil.which("sbatch"):
        return Finding("ok", "not here")
    asked = subprocess.run(["sbatch", "-V"], capture_output=True, text=True, timeout=20)
    if asked.returncode == 0:
        return Finding("ok", one_line(asked.stdout))
    reason = (asked.stderr.strip() or "sbatch says nothing").splitlines()[-1]
    way_out = "on a cluster's login node SLURM_CONF says where its slurm.conf is"
    return Finding("warn", f"its tools are here, and no cluster ({one_line(reason)})", way_out)


def training() -> Finding:
    """The toy task for real, in a directory that is gone afterwards."""
    from hydra import compose, initialize_config_dir

    from forge.config import compose as config_compose
    from forge.experiment import run

    start = time.monotonic()
    config_compose.register()
    settings = "task=toy model=tiny mode=sft trainer.max_steps=2"
    rows = "task.dataset.train=300 task.dataset.validation=90"
    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        with initialize_config_dir(str(config_compose.CONF), version_base="1.3"):
            cfg = compose("config", [*settings.split(), *rows.split()])
        cfg.tracking, cfg.cache_dir = None, f"{scratch}/cache"
        run(cfg, f"{scratch}/run")
    return Finding("ok", f"2 steps of task=toy model=tiny, {time.monotonic() - start:.1f} s")


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


CHECKS: list[tuple[str, Callable[[], Finding]]] = [
    ("Python", python),
    ("torch", torch),
    ("device", device),
    ("bf16", bf16),
    *((name, partial(package, name)) for name in ("transformers", "datasets", "evaluate", "wandb")),
    ("trl", partial(optional, "trl", "for reinforcement: pip install 'forge[rl]'")),
    ("peft", partial(optional, "peft", "for LoRA: pip install 'forge[lora]'")),
    ("timm", partial(optional, "timm", "for timm's models: pip install 'forge[timm]'")),
    *(
        (name, partial(optional, name, "for recordings: pip install 'forge[audio]'"))
        for name in ("soundfile", "soxr")
    ),
    ("disk", disk),
    ("writable", writable),
    ("Hub", hub),
    ("W&B login", wandb),
    ("SLURM", slurm),
    ("training", training),
]


def examine() -> Iterator[tuple[str, Finding]]:
    """Each check's finding as soon as it is known; a check that raises is a FAIL."""
    for name, check in CHECKS:
        try:
            yield name, check()
        except Exception as error:
            yield name, Finding("FAIL", f"{type(error).__name__}: {one_line(str(error))}")


def main(as_json: bool = False) -> int:
    """Print the findings; returns the exit code, 1 when something failed."""
    findings = []
    for name, finding in examine():
        findings.append({"name": name, **asdict(finding)})
        if not as_json:
            way_out = f"  -> {finding.way_out}" if finding.way_out else ""
            print(f"{finding.status:<4}  {name:<12}  {finding.found}{way_out}", flush=True)
    if as_json:
        print(json.dumps(findings, indent=2))
    return int(any(f["status"] == "FAIL" for f in findings))
