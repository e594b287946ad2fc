"""`python -m forge show`: what ran, where it stands, how to use it."""

from __future__ import annotations

import shlex
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from forge.config.compose import dotted_values, override
from forge.errors import UserError
from forge.records import checkpoints
from forge.records.files import RESULTS, Json, read_json
from forge.records.recorded import key_of
from forge.results.runs import Run, live, read_run, what
from forge.results.tables import cell


def why_stopped(run: Run, status: str) -> str:
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
        ("stopped", why_stopped(run, status)),
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


def attempts(run: Run, status: str) -> list[Json]:
    """Each start of the run: when, where, how it ended, and the checkpoints written in it."""
    saved = {}
    for step, folder in checkpoints.steps(run.path).items():
        with suppress(OSError):
            saved[step] = (folder / checkpoints.MARKER).stat().st_mtime
    made = []
    for attempt in run.metadata.get("attempts", []):
        begun, ended = _moment(attempt.get("started")), _moment(attempt.get("ended"))
        inside = [
            f"step {s}" for s, t in sorted(saved.items()) if begun and begun <= t <= (ended or t)
        ]
        length = f"{(ended - begun) / 60:,.1f} min" if begun and ended else ""
        made.append(
            {
                "started": attempt.get("started", ""),
                "length": length,
                "status": attempt.get("status") or "no end recorded",
                "error": attempt.get("error") or "",
                "where": f"{attempt.get('host', '')} ({attempt.get('pid', '')})",
                "job": attempt.get("slurm_job") or "",
                "commit": str(attempt.get("commit", ""))[:10]
                + (" with changes" if attempt.get("dirty") else ""),
                "checkpoints": ", ".join(inside),
            }
        )
    if made and status == "running":
        made[-1]["status"] = "running"
    return made


def _moment(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def origins(run: Run) -> list[tuple[str, object, str]]:
    """Key, value and origin of all of a config: the command line, an option of a group, conf/."""
    given = {key_of(each).replace("/", "."): each for each in run.metadata.get("overrides", ())}
    chosen = run.metadata.get("choices", {})
    groups = {
        key.partition("@")[2] or key.replace("/", "."): f"{key}={value}"
        for key, value in chosen.items()
        if value
    }
    made = []
    for key, value in dotted_values(run.metadata["config"]):
        above = [key[:i] for i in [*(j for j, c in enumerate(key) if c == "."), len(key)]][::-1]
        own = next((given[k] for k in above if k in given and k not in groups), None)
        group = next((groups[k] for k in above if k in groups), "conf/config.yaml")
        made.append((key, value, "command line" if own else group))
    return made


def commands(run: Run, status: str) -> list[tuple[str, str]]:
    """What one does next with a run."""
    place = shlex.quote(str(run.path))
    made: list[tuple[str, str]] = []
    if status not in ("finished", "running"):
        made.append(("go on", f"python launch.py {override('resume', str(run.path))}"))
    if status == "finished":
        text = "text" in (run.metadata["config"].get("task") or {})
        made.append(
            ("predict", f"python -m forge predict {place} {'--text …' if text else '--file …'}")
        )
        made.append(("evaluate", f"python -m forge evaluate {place} task.evaluation=[test]"))
        made.append(("report", f"python -m forge report {place}"))
        for key in ("model.path", "teacher.path"):
            made.append((f"as {key}", override(key, str(run.path))))
    made.append(("make it again", run.command))
    made.append(("reproduce", f"python -m forge reproduce {place}"))
    return made
