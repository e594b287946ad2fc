"""One run: metrics, curves, calibration, attempts, config with where each value came from, files,
commands."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from forge.errors import UserError
from forge.records import checkpoints
from forge.records.files import Json, read_json
from forge.results import answers, charts, show
from forge.results.charts import Line, Plane, Rule
from forge.results.runs import Run
from forge.results.tables import metrics_cells
from forge.workbench.asked import Asked
from forge.workbench.runs import LIVE
from forge.workbench.runs import shown as value_shown

USELESS = ("step", "epoch", "seconds", "tokens")
APART = ("files", "to use", "", "to go on", "overrides")


def view(asked: Asked) -> Json:
    """Parameters: run."""
    ids = asked.chosen
    if not ids:
        newest = asked.library.listing()
        if not newest:
            raise UserError("no run in these directories yet")
        ids = [newest[0]["run"]]
    id = ids[0]
    run, facts = asked.library.run(id), asked.library.facts(asked.library.find(id))
    told = [
        (n, v)
        for n, v in show.shown(run.path)
        if n not in APART and n not in run.results.get("splits", {})
    ]
    entries = logged(asked, run)
    return {
        "title": id,
        "chosen": [id],
        "run": run,
        "status": facts["status"] + facts["silence"],
        "state": "silent" if facts["silence"] else facts["status"],
        "progress": (facts["step"] or 0, facts["max_steps"] or 0),
        "facts": told,
        "metrics": metrics_cells(run) if run.results.get("splits") else None,
        "charts": curves(run, entries),
        "splits": [_split(run, split) for split in answers.splits(run)],
        "attempts": show.attempts(run, facts["status"]),
        "config": [(key, value_shown(v), origin) for key, v, origin in show.origins(run)],
        "files": _files(run.path),
        "commands": show.commands(run, facts["status"]),
        "samples": (run.path / "samples").is_dir(),
        "live": LIVE if facts["status"] == "running" else 0,
    }


def logged(asked: Asked, run: Run) -> list[Json]:
    """The curve: of a run of an earlier version from transformers' own file."""
    if entries := asked.library.curve(run.path):
        return entries
    for folder in (run.path, *checkpoints.steps(run.path).values()):
        with suppress(UserError):
            history = read_json(folder / "trainer_state.json").get("log_history")
            if isinstance(history, list) and history:
                return [
                    e for e in history if isinstance(e, dict) and isinstance(e.get("step"), int)
                ]
    return []


def series(entries: list[Json], key: str, x: str = "step") -> tuple[list[float], list[float]]:
    """The places and the values of a key."""
    kept = [e for e in entries if isinstance(e.get(key), int | float) and x in e]
    return [float(e[x]) for e in kept], [float(e[key]) for e in kept]


def judged(key: str) -> bool:
    """Whether a logged value is a metric of an evaluation."""
    return key.startswith("eval_") and not key.endswith(("loss", "runtime", "per_second"))


def curves(run: Run, entries: list[Json]) -> list[Json]:
    """Loss, the headline, and what mode=rl is about, each with its numbers."""
    headline = run.results.get("headline") or {}
    metric = headline.get("metric") or next((k[5:] for e in entries for k in e if judged(k)), None)
    wanted = [("loss", ["loss", "eval_loss"]), (metric or "", [f"eval_{metric}"])]
    wanted += [("reward", ["reward"]), ("KL to the start", ["kl"])]
    made = []
    for title, keys in wanted:
        lines = []
        for i, key in enumerate(keys):
            x, y = series(entries, key)
            name = {"loss": "training", "eval_loss": "evaluation"}.get(key, key)
            if x:
                colour = 1 if key.startswith("eval_") else i
                lines.append(Line(name, x, y, colour=colour, dots=len(x) < 30))
        rules = []
        taught = run.metadata.get("teacher", {}).get("splits", {}).get(headline.get("split"), {})
        if title == metric and isinstance(taught.get(metric), int | float):
            rules.append(Rule("teacher", taught[metric]))
        drawn = charts.svg(Plane("optimizer steps", title, lines, rules), 250) if lines else ""
        if drawn:
            rows = [
                (f"{x:g}", line.name, f"{y:.6g}")
                for line in lines
                for x, y in zip(line.x, line.y, strict=True)
            ]
            made.append({"title": title, "chart": drawn, "rows": rows})
    return made


def _split(run: Run, split: str) -> Json:
    """A split's answers in short; what cannot be read is said."""
    try:
        found = answers.read(run, split)
    except (UserError, OSError, ValueError, TypeError, LookupError) as error:
        return {"name": split, "problem": str(error)[:200]}
    facts: Json = {"name": split, "n": found.total, "kind": found.kind}
    facts["wrong"] = int((~found.right).sum()) if found.kind != "number" else None
    sure = found.calibration()
    if sure:
        table = sure["table"]
        labels = [f"{b['n']} rows, {b['accuracy']:.1%} right" for b in table]
        x, y = ([b[key] for b in table] for key in ("confidence", "accuracy"))
        line = Line("accuracy", x, y, dots=True, labels=labels)
        ideal = Line("calibrated", [0, 1], [0, 1], dashed=True, colour=7)
        plane = Plane("confidence", "accuracy", [ideal, line], bottom=0, top=1)
        facts |= {"ece": sure["ece"], "chart": charts.svg(plane, 260)}
        facts["rows"] = [
            (
                f"{b['from']:.2f} .. {b['to']:.2f}",
                f"{b['n']:,}",
                f"{b['confidence']:.4f}",
                f"{b['accuracy']:.4f}",
            )
            for b in table
        ]
    return facts


def _files(folder: Path) -> list[tuple[str, str]]:
    """Names and sizes of what is in the directory."""
    made = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        with suppress(OSError):
            inside = [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]
            size = sum(f.stat().st_size for f in inside)
            name = f"{path.name}/ ({len(inside)} files)" if path.is_dir() else path.name
            made.append((name, f"{size / 1e6:,.2f} MB" if size > 1e5 else f"{size / 1e3:,.1f} kB"))
    return made
