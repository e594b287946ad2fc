"""`python -m forge show`: what ran, where it stands, how to use it."""

from __future__ import annotations

import shlex
from pathlib import Path

from forge.config.compose import override
from forge.errors import UserError
from forge.records.files import RESULTS, read_json
from forge.results.runs import Run, live, read_run, what
from forge.results.tables import cell


def _why(run: Run, status: str) -> str:
    """Why a run stopped; "" for one that runs, and for a finished one of an earlier version."""
    if status != run.state.get("status"):
        return "its process is gone without a word: killed, or out of memory"
    return run.state.get("reason") or run.metadata["attempts"][-1].get("error") or ""


def shown(path: Path) -> list[tuple[str, str]]:
    """Name and value of what one asks first of a run; raises `UserError` when there is none."""
    run = read_run(path)
    if "attempts" not in run.metadata:
        raise UserError(f"{path}: no run in this directory; python -m forge runs DIR lists runs")
    data, state, attempts = run.metadata, run.state, run.metadata["attempts"]
    host, pid = (attempts[-1].get(key) for key in ("host", "pid"))
    status = live(state.get("status", "not started"), host, pid)
    where = f" on {host}" if status == "running" else ""
    steps = f"step {state.get('step', 0)} of {state.get('max_steps', '?')}"
    files = [p.name for p in sorted(path.iterdir()) if not p.name.startswith(".")]
    code = attempts[-1].get("commit", "unknown")[:10]
    lines = [
        ("what", " ".join(f"{key}={value}" for key, value in what(run).items() if value)),
        ("overrides", " ".join(data["overrides"])),
        ("status", f"{status}{where}, {steps}"),
        ("attempts", f"{len(attempts)}, the last began {attempts[-1]['started']}"),
        ("stopped", _why(run, status)),
        ("device", f"{data.get('device', '?')}, precision {data.get('precision', '?')}"),
        ("code", code + (" with changes" if attempts[-1].get("dirty") else "")),
        ("teacher", ", ".join(data.get("teacher", {}).get("paths", []))),
    ]
    for split, scores in run.results.get("splits", {}).items():
        values = (f"{name} {cell(score)}" for name, score in scores.items())
        lines.append((split, ", ".join(values)))
    for file in sorted(path.glob(f"evaluations/*/{RESULTS}")):
        judged = read_json(file)["headline"]
        lines.append(
            ("evaluated", f"{file.parent.name}: {judged['metric']} {cell(judged['value'])}")
        )
    lines.append(("files", ", ".join(files)))
    if status == "finished" and "model" in files:
        keys = " or ".join(override(key, str(path)) for key in ("model.path", "teacher.path"))
        lines.append(("to use", f"{keys}, or transformers with"))
        lines.append(("", str(path / "model")))
        asked = [("predict", "--text …"), ("evaluate", "task.…"), ("export", "--onnx")]
        for verb, more in asked if "text" in data["config"].get("task", {}) else asked[:2]:
            lines.append(("", f"python -m forge {verb} {shlex.quote(str(path))} {more}"))
    elif status not in ("finished", "running"):
        lines.append(("to go on", f"python launch.py {override('resume', str(path))}"))
    return [(name, value) for name, value in lines if value]
