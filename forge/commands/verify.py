"""`python -m forge verify-resume`: does a config resume to the bit? Run, kill, go on, compare."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from forge.errors import Failure, UserError
from forge.records import checkpoints
from forge.records.files import STATE, read_json
from forge.results.equality import differences

LAUNCH = Path(__file__).resolve().parents[2] / "launch.py"


def main(overrides: list[str], steps: int) -> int:
    """Compare a run of `steps` steps with one that is killed at half; 0 when they are equal."""
    if steps < 4:
        raise UserError(f"--steps={steps}: at least 4, for there must be a middle to be killed in")
    half = steps // 2
    plan: dict[str, int | str] = {
        "max_steps": steps,
        "logging_steps": 1,
        "save_steps": half,
        "eval_steps": half,
    }
    plan |= {"save_strategy": "steps", "eval_strategy": "steps"}
    arguments = [*overrides, *(f"trainer.{key}={value}" for key, value in plan.items())]
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch, "whole"), Path(scratch, "killed")
        print(f"run     {steps} steps, undisturbed", flush=True)
        _finish(arguments, whole)
        print(f"run     the same, killed after the checkpoint of step {half}", flush=True)
        _kill(arguments, killed, half)
        print("run     the same again, which goes on", flush=True)
        _finish(arguments, killed)
        differs = next(differences(whole, killed), None)
    if differs:
        print(f"differ  {differs}")
        return 1
    print(
        "equal   weights, optimizer, scheduler, random states, loss curve and results, to the bit"
    )
    return 0


def _start(overrides: list[str], run_dir: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A run, and the file that it prints to."""
    command = [sys.executable, str(LAUNCH), *overrides, f"hydra.run.dir={run_dir}"]
    out = run_dir.with_suffix(".out")
    with open(out, "wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT), out


def _finish(overrides: list[str], run_dir: Path) -> None:
    process, out = _start(overrides, run_dir)
    if code := process.wait():
        last = out.read_text().strip().rpartition("\n")[2]
        raise Failure(f"the run ended with {code}: {last}")


def _kill(overrides: list[str], run_dir: Path, step: int) -> None:
    """Start, and SIGKILL once the checkpoint of `step` is committed."""
    process, _ = _start(overrides, run_dir)
    marker = run_dir / f"checkpoint-{step}" / checkpoints.MARKER
    while process.poll() is None and not marker.is_file():
        time.sleep(0.01)
    process.kill()  # nothing, when it has ended
    process.wait()
    if read_json(run_dir / STATE).get("status") == "finished":
        raise Failure("the run was too quick to be killed in its middle; give more --steps")
