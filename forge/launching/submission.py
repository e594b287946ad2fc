"""What submitit is asked to start, and the lines for what it refuses."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from forge.config.schema import Node
from forge.errors import UserError, one_line
from forge.launching import jobs
from forge.launching.in_job import Run
from forge.launching.sealing import SECRETS, read_plain
from forge.records.secrets import masked

if TYPE_CHECKING:
    from submitit import AutoExecutor

COMMON = ("name", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb")
OURS = ("cluster", "wait", "time", "max_num_timeout", "python", *COMMON)
CHECKOUT = Path(__file__).resolve().parents[2]
FILES = ".submitit"  # submitit's folder in a sweep's


def submit(
    settings: Node,
    sweep_dir: Path,
    runs: dict[int, Run],
    numbered: dict[int, list[str]],
) -> dict[int, jobs.Job]:
    """Submit runs as arrays that SLURM takes, each entered in the ledger; jobs by number."""
    from submitit.core.utils import FailedJobError

    if not runs:
        return {}
    sweep_dir.mkdir(parents=True, exist_ok=True)
    try:
        executor = _executor(settings, sweep_dir)
    except (AssertionError, TypeError, ValueError) as error:
        raise _misfit(error) from error
    numbers, size = list(runs), _array_size(settings["cluster"])
    secrets = sorted(set().union(*(run.own_secrets() for run in runs.values())))
    submitted: dict[int, jobs.Job] = {}
    for start in range(0, len(numbers), size):
        chunk = numbers[start : start + size]
        for number in chunk:
            runs[number].secrets = secrets
            runs[number].entry = _entry(settings, sweep_dir, runs[number], number, numbered[number])
        with _outside(settings["cluster"], secrets):
            try:
                sent = executor.submit_array([runs[n] for n in chunk])
            except FailedJobError as error:
                raise _refusal(error, sweep_dir) from error
            except (AssertionError, TypeError, ValueError) as error:
                raise _misfit(error) from error
        for number, job in zip(chunk, sent, strict=True):
            submitted[number] = _as_job(runs[number], job.job_id, job.paths.folder)
        jobs.enter(sweep_dir, [submitted[n] for n in chunk])
    return submitted


def _entry(
    settings: Node, sweep_dir: Path, run: Run, number: int, overrides: list[str]
) -> jobs.Job:
    """A run's line in the ledger before its job has an id and a folder."""
    return jobs.Job(
        job="",
        number=number,
        overrides=masked(overrides),
        directory=str(sweep_dir.absolute() / str(run.config.hydra.sweep.subdir)),
        folder="",
        ranks=(settings.get("nodes") or 1) * (settings.get("tasks_per_node") or 1),
        cluster=settings["cluster"],
        host=socket.gethostname(),
        submitted=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _as_job(run: Run, job_id: str, folder: Path) -> jobs.Job:
    assert run.entry is not None
    return replace(run.entry, job=job_id, folder=str(folder))


def complete(sweep_dir: Path) -> None:
    """Enter what was submitted by a process that was killed before it could, from submitit's
    files. A job whose file is not in its place yet ends by itself, without a run."""
    from submitit.core.utils import DelayedSubmission

    known = {job.job for job in jobs.entered(sweep_dir)}
    for file in sorted((sweep_dir / FILES).glob("*/*_submitted.pkl")):
        job_id = file.name.removesuffix("_submitted.pkl")
        if job_id not in known:
            submission = read_plain(file, DelayedSubmission, Run, jobs.Job)
            run = getattr(submission, "function", None)
            if not isinstance(run, Run):
                raise UserError(f"{file}: no run that Forge submitted; remove the file")
            jobs.enter(sweep_dir, [_as_job(run, job_id, file.parent.absolute())])


def _executor(settings: Node, sweep_dir: Path) -> AutoExecutor:
    """submitit's executor with our settings under its names."""
    import submitit

    name = settings["cluster"]
    start = {"python": _python(settings), "max_num_timeout": settings.get("max_num_timeout", 1000)}
    executor = submitit.AutoExecutor(
        folder=sweep_dir / FILES / "%j",
        cluster=name,
        **{f"{name}_{key}": value for key, value in start.items()},
    )
    given = {
        k: v for k, v in settings.items() if k in COMMON or (k not in OURS and name == "slurm")
    }
    if given.get("teardown"):  # the batch script's exit code is its last command's
        given["teardown"] = ["forge_code=$?", *given["teardown"], "exit $forge_code"]
    executor.update_parameters(
        timeout_min=settings["time"],
        **{k if k in COMMON else f"slurm_{k}": v for k, v in given.items()},
    )
    return executor


def _python(settings: Node) -> str:
    """What starts Python: signals wait for their handlers, a checkout's modules are found."""
    command = ["env"]
    if settings["cluster"] == "slurm":
        block = (
            "--block-signal=USR2,TERM"  # coreutils 8.31; without it a moment too early is lethal
        )
        if subprocess.run(["env", block, "true"], capture_output=True).returncode == 0:
            command.append(block)
    elif not settings.get("gpus_per_node"):  # submitit would hide them all
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        command += (
            ["-u", "CUDA_VISIBLE_DEVICES"] if shown is None else [f"CUDA_VISIBLE_DEVICES={shown}"]
        )
    if (CHECKOUT / "launch.py").is_file():
        path = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command.append(f"PYTHONPATH={path}")
    return f"{shlex.join(command)} {settings.get('python') or shlex.quote(sys.executable)}"


def _array_size(name: str) -> int:
    """How many jobs one array may hold."""
    if name != "slurm":
        return sys.maxsize
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    limit = re.search(r"MaxArraySize\s*= (\d+)", shown.stdout)
    return max(1, int(limit[1])) if limit else 1000


@contextmanager
def _outside(name: str, secrets: list[str]) -> Iterator[None]:
    """As if submitted from outside of any job, and of this terminal; jobs inherit the secrets."""
    from submitit import helpers

    kept = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or k.startswith("SBATCH_")}
    ignored = (signal.SIGINT, signal.SIGHUP) if name == "local" else ()
    with ExitStack() as stack:
        stack.enter_context(helpers.clean_env())
        stack.enter_context(redirect_stderr(io.StringIO()))  # sbatch's, which the error repeats
        os.environ |= {**kept, SECRETS: json.dumps(secrets)}
        stack.callback(os.environ.pop, SECRETS)
        for number in ignored:  # by the processes to start; what they are asked to do, they catch
            stack.callback(signal.signal, number, signal.signal(number, signal.SIG_IGN))
        yield


def _misfit(error: Exception) -> UserError:
    """submitit's message for a setting that it cannot take."""
    return UserError(
        f"launcher: a setting does not fit ({one_line(str(error)) or 'unknown reason'})"
    )


def _refusal(error: Exception, sweep_dir: Path) -> UserError:
    """sbatch's message in one line."""
    lines = re.sub(r"sbatch: ((error|fatal): )?|^Try .*", "", str(error), flags=re.M).split("\n")
    message = "; ".join(filter(None, lines))
    there = len(jobs.read_ledger(sweep_dir))
    some = f"; {there} jobs went in before, {jobs.way_out(sweep_dir)}" if there else ""
    return UserError(f"sbatch refused: {message} (its options come from launcher.*){some}")
