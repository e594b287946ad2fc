"""`python -m forge verify-resume`: does a config resume to the bit? Run, kill, go on, compare."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forge import checkpoints
from forge.errors import Failure, UserError
from forge.record import STATE, read_json

LAUNCH = Path(__file__).resolve().parent.parent / "launch.py"
TIMED = ("runtime", "second", "flos", "step_time")  # parts of the names of what no two runs share


def main(overrides: list[str], steps: int) -> int:
    """Compare a run of `steps` steps with one that is killed at half; 0 when they are equal."""
    if steps < 4:
        raise UserError(f"--steps={steps}: at least 4, for there must be a middle to be killed in")
    half = steps // 2
    plan: dict[str, Any] = {
        "max_steps": steps,
        "logging_steps": 1,
        "save_steps": half,
        "eval_steps": half,
    }
    plan |= {"save_strategy": "steps", "eval_strategy": "steps"}
    words = [*overrides, *(f"trainer.{key}={value}" for key, value in plan.items())]
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch, "whole"), Path(scratch, "killed")
        print(f"run     {steps} steps, undisturbed", flush=True)
        _finish(words, whole)
        print(f"run     the same, killed after the checkpoint of step {half}", flush=True)
        _kill(words, killed, half)
        print("run     the same again, which goes on", flush=True)
        _finish(words, killed)
        differs = next(_differences(whole, killed), None)
    if differs:
        print(f"differ  {differs}")
        return 1
    print(
        "equal   weights, optimizer, scheduler, random states, loss curve and results, to the bit"
    )
    return 0


def _start(words: list[str], run_dir: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A run, and the file that it prints to."""
    command = [sys.executable, str(LAUNCH), *words, f"hydra.run.dir={run_dir}"]
    out = run_dir.with_suffix(".out")
    with open(out, "wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT), out


def _finish(words: list[str], run_dir: Path) -> None:
    process, out = _start(words, run_dir)
    if code := process.wait():
        last = out.read_text().strip().rpartition("\n")[2]
        raise Failure(f"the run ended with {code}: {last}")


def _kill(words: list[str], run_dir: Path, step: int) -> None:
    """Start, and SIGKILL once the checkpoint of `step` is committed."""
    process, _ = _start(words, run_dir)
    marker = run_dir / f"checkpoint-{step}" / checkpoints.MARKER
    while process.poll() is None and not marker.is_file():
        time.sleep(0.01)
    process.kill()  # nothing, when it has ended
    process.wait()
    if read_json(run_dir / STATE).get("status") == "finished":
        raise Failure("the run was too quick to be killed in its middle; give more --steps")


def _differences(one: Path, other: Path) -> Iterator[str]:
    """The first of each kind of thing that differs, in words."""
    import torch

    folders = [next(iter(checkpoints.steps(run_dir).values())) for run_dir in (one, other)]
    for name, places in {
        "weights": [one / "model", other / "model"],
        "last weights": folders,
    }.items():
        yield from _unequal(name, *map(checkpoints.weights, places))
    random_states = sorted(path.name for path in folders[0].glob("rng_state*.pth"))  # of each rank
    for name in ("optimizer.pt", "scheduler.pt", *random_states):
        with torch.serialization.safe_globals(_numpy_globals()):
            states = [torch.load(folder / name, weights_only=True) for folder in folders]
        yield from _unequal(name, *states)
    curves = [json.loads((f / "trainer_state.json").read_text())["log_history"] for f in folders]
    yield from _unequal("loss curve", *curves)
    results = [read_json(run_dir / "results.json")["splits"] for run_dir in (one, other)]
    yield from _unequal("results", *results)


def _numpy_globals() -> list[Any]:
    """What transformers' random state holds beside tensors."""
    import numpy as np

    return [
        np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        np.ndarray,
        np.dtype,
        type(np.dtype(np.uint32)),
    ]


def _unequal(where: str, a: Any, b: Any) -> Iterator[str]:
    """Every place in nested values where the two differ."""
    import numpy as np
    import torch

    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            if not any(word in str(key) for word in TIMED):
                yield from _unequal(f"{where}: {key}", a.get(key), b.get(key))
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b, strict=True)):
            yield from _unequal(f"{where}[{i}]", *pair)
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not torch.equal(a, b):
            yield f"{where}, {int((a != b).sum())} of {a.numel()} numbers"
    elif isinstance(a, np.ndarray):
        if not np.array_equal(a, b):
            yield where
    elif a != b:
        yield f"{where}: {a} and {b}"
