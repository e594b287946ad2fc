"""`python -m forge runs`: many run directories as one table.

What was read of them is kept in an index, which is only a cache: it lies in the cache directory,
never in a run's, and whatever is wrong with it costs time alone.
"""

from __future__ import annotations

import csv
import json
import operator
import os
import re
import shlex
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import TypeAlias

from forge.config.compose import dotted_values, override
from forge.config.schema import Config
from forge.data import cache
from forge.errors import UserError, did_you_mean
from forge.records.files import METADATA, RESULTS, STATE, Json
from forge.results import runs as results_runs
from forge.results import tables

FILES = (METADATA, STATE, RESULTS)
INSIDE = re.compile(r"(checkpoint|preempted)-\d+|model|predictions|wandb")  # hold no runs
FACTS = ("run", *results_runs.WHAT, "seed", "status", "step", "max_steps", "metric", "headline",
         "updated", "age", "resume")  # fmt: skip
TABLE = ("run", "task", "model", "mode", "status", "step", "headline", "age", "to go on")
SILENT = 300  # seconds; a run that trains or evaluates is heard of every 30
SHOWN = 200  # lines in a terminal: drawing takes a millisecond a line
Comparable: TypeAlias = float | str
TESTS: dict[str, Callable[[Comparable, Comparable], bool]] = {
    "=": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
    ">=": operator.ge, "<=": operator.le,
}  # fmt: skip
CONDITION = re.compile(r"([^=<>!]+)([<>!]=|[=<>])(.*)", re.S)


def listing(
    folder: Path, where: str = "", sort: str = "age", full: bool = False
) -> tuple[list[str], list[Json]]:
    """Keys that were asked for beside `FACTS`, and a dict for each run that fits (`select`).

    Raises `UserError` for a key that no run has, or when there is no run. With `full` every metric
    is among the keys, and what the configs differ in.
    """
    asked = keys_of(where, sort)
    runs = read(folder, full or bool(asked))
    require_keys(asked, {key for run in runs for key in run}, str(folder))
    runs = select(runs, where, sort)
    if full:
        names = dict.fromkeys(key for run in runs for key in run if key not in FACTS)
        asked = list(dict.fromkeys([*asked, *(k for k in names if _tells(k, runs))]))
    return asked, runs


def keys_of(where: str, sort: str) -> list[str]:
    """The keys that are asked for beside `FACTS`; raises `UserError` for no conditions."""
    named = [*(condition[0] for condition in _conditions(where)), sort.removeprefix("-")]
    return [key for key in dict.fromkeys(named) if key not in FACTS]


def require_keys(asked: Iterable[str], known: Collection[str], place: str) -> None:
    """Raise `UserError` for a key that no run has."""
    for name in asked:
        if name not in known:
            hint = did_you_mean(name, known, listed=False)
            raise UserError(f"{name}: no run in {place} has such a key{hint}")


def select(runs: list[Json], where: str, sort: str) -> list[Json]:
    """The runs that fit, in order.

    `where` holds conditions such as `task=mnli mode.alpha>=0.5 validation.accuracy>0.8`; `sort` is
    a key, with a minus in front for the largest first.
    """
    conditions, key = _conditions(where), sort.removeprefix("-")
    runs = [run for run in runs if all(_fits(run, *condition) for condition in conditions)]
    valued = [run for run in runs if run.get(key) is not None]
    valued.sort(key=lambda run: _order(run[key]), reverse=sort.startswith("-"))
    return valued + [run for run in runs if run.get(key) is None]


def _conditions(where: str) -> list[tuple[str, str, str]]:
    try:
        return [_condition(text) for text in shlex.split(where)]
    except ValueError as error:
        raise UserError(f"--where {where}: {error}".lower()) from error


def _tells(key: str, runs: list[Json]) -> bool:
    """Whether a key is a metric's, or one of the config that is not the same in all runs."""
    configured = key.split(".")[0] in (each.name for each in fields(Config))
    return not configured or len({_text(run.get(key)) for run in runs}) > 1


def _condition(text: str) -> tuple[str, str, str]:
    if not (parts := CONDITION.fullmatch(text)):
        raise UserError(f"--where {text}: not of the form key=value, key!=value, key>value …")
    return parts[1], parts[2], parts[3]


def _fits(run: Json, key: str, test: str, wanted: str) -> bool:
    if key not in run:
        return test == "!="
    ours, theirs = results_runs.number(_text(run[key])), results_runs.number(wanted)
    if ours is not None and theirs is not None:
        return TESTS[test](ours, theirs)
    return test in ("=", "!=") and TESTS[test](_text(run[key]), _text(wanted))


def _text(value: object) -> str:
    """As one writes it on a command line: null, true, [a,b]."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\s'\"]", "", text)


def _order(value: object) -> tuple[bool, float, str]:
    return results_runs.sortable(_text(value))


def read(folder: Path, config: bool = False) -> list[Json]:
    """`FACTS` (age in seconds) and metrics (`validation.accuracy`) of runs, the youngest first.

    With `config` every dotted key of it too. Raises `UserError` when there is no run.
    """
    root = os.path.realpath(folder)
    found = kept(folder, config)
    if not found:
        raise UserError(f"{folder}: no run in it" if os.path.isdir(root) else
                        f"{folder}: no such directory")  # fmt: skip
    runs = []
    for path, (_, facts, values) in found.items():
        shown = os.path.normpath(os.path.join(folder, path[len(root) :].lstrip(os.sep)))
        runs.append(live(json.loads(facts), shown) | (json.loads(values) if config else {}))
    return youngest_first(runs)


def youngest_first(runs: list[Json]) -> list[Json]:
    """Runs by age, those of one age as a person numbers them."""
    return sorted(runs, key=lambda run: (run["age"] is None, run["age"] or 0, natural(run["run"])))


def kept(folder: Path, config: bool) -> dict[str, tuple[str, str, str]]:
    """Stamp, facts and config (JSON) of each run at or below a folder, by its real path."""
    root = os.path.realpath(folder)
    stamps, known = dict(_find(root)), _load(root, config)
    new = {p: _digest(p, s) for p, s in stamps.items() if p not in known or known[p][0] != s}
    _store(new, known.keys() - stamps.keys())
    return {path: (new if path in new else known)[path] for path in stamps}


def natural(path: str) -> list[int | str]:
    """Sorts job 2 before job 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]


def _find(root: str) -> Iterator[tuple[str, str]]:
    """Path and stamp of each run; the stamp is another when one of its JSON files is."""
    waiting = [root]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                here = {entry.name: entry for entry in entries}
        except OSError:  # not ours to read, or gone
            continue
        if METADATA in here:
            files = [here[name].stat() for name in FILES if name in here]
            stamp = " ".join(f"{f.st_ino}:{f.st_mtime_ns}:{f.st_size}" for f in files)
            yield os.path.dirname(here[METADATA].path), stamp
        for name, entry in here.items():
            passed = name.startswith(".") or (METADATA in here and INSIDE.fullmatch(name))
            if not passed and entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)


def _digest(path: str, stamp: str) -> tuple[str, str, str]:
    """Stamp, facts and config of a run, as the index keeps them."""
    try:
        facts, values = _facts(results_runs.read_run(Path(path)))
        return stamp, json.dumps(facts), json.dumps(values)
    except (UserError, AttributeError, TypeError, ValueError, LookupError):  # not Forge's
        return stamp, json.dumps({"status": "unreadable"}), "{}"


def _facts(run: results_runs.Run) -> tuple[Json, Json]:
    """What is kept of a run, and the rest of its config by dotted key."""
    last = (run.metadata.get("attempts") or [{}])[-1]
    headline = run.results.get("headline") or {}
    value = headline.get("value")
    config = run.metadata.get("config", {})
    facts = results_runs.what(run) | {
        "seed": config.get("seed"),
        "status": str(run.state.get("status", "not started")),
        "step": run.state.get("step", 0),
        "max_steps": run.state.get("max_steps"),
        "metric": headline.get("metric"),
        "headline": None if value is None else float(value),
        "updated": _time(run.state.get("updated")),
        "process": [last.get("host"), int(last.get("pid") or 0) or None],
        "slurm_job": last.get("slurm_job"),
    }
    facts |= results_runs.scores_by_name(run.results)
    return facts, {key: value for key, value in dotted_values(config) if key not in facts}


def _time(text: str | None) -> str | None:
    """The same, when it is one with its zone."""
    return text and datetime.fromisoformat(text).astimezone(UTC).isoformat()


def live(facts: Json, path: str) -> Json:
    """`FACTS` and metrics of what is kept of a run, with what changes though no file does: whether
    the process is there, and time."""
    status = results_runs.live(facts["status"], *facts.pop("process", (None, None)))
    over = status in ("finished", "running", "unreadable")
    run = dict.fromkeys(FACTS) | {"run": path} | facts
    if run["updated"]:
        since = datetime.now(UTC) - datetime.fromisoformat(run["updated"])
        seconds = int(since.total_seconds())
        run["age"] = max(0, seconds)  # clocks of machines differ
    run["status"] = status
    return run | {"resume": None if over else resume(path)}


def resume(path: str) -> str:
    """The command that goes on with a run."""
    return f"python launch.py {override('resume', path)}"


@contextmanager
def _index() -> Iterator[sqlite3.Connection]:
    """The index, made anew when it is damaged."""
    file = cache.cache_directory(os.environ.get("FORGE_CACHE")) / "runs-2.sqlite"  # its format
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file, timeout=2)) as base, base:
        try:
            base.execute(
                "create table if not exists runs (path text primary key, stamp, facts, config)"
            )
            yield base
        except sqlite3.DatabaseError as error:
            if not isinstance(error, sqlite3.OperationalError):  # locked, or not to be written
                file.unlink(missing_ok=True)
            raise


def _load(root: str, config: bool) -> dict[str, tuple[str, str, str]]:
    """What the index has at or below a directory; nothing when it cannot be read."""
    values = "config" if config else "''"
    below = os.path.join(root, "")
    asked = f"select path, stamp, facts, {values} from runs where path = ? or path between ? and ?"
    with suppress(sqlite3.Error, OSError), _index() as base:
        rows = base.execute(asked, (root, below, below + "\U0010ffff"))
        return {path: tuple(rest) for path, *rest in rows}
    return {}


def _store(new: dict[str, tuple[str, str, str]], gone: set[str]) -> None:
    if not new and not gone:
        return
    with suppress(sqlite3.Error, OSError), _index() as base:
        base.executemany("delete from runs where path = ?", [(path,) for path in gone])
        base.executemany(
            "replace into runs values (?, ?, ?, ?)", [(path, *kept) for path, kept in new.items()]
        )


def cells(runs: list[Json], asked: list[str]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table."""
    lines = []
    for run in runs:
        score = run["headline"]
        shown = {
            "step": f"{run['step'] or 0}/{run['max_steps'] or '?'}",
            "headline": "" if score is None else f"{run['metric']} {score:.4f}",
            "status": run["status"] + silence(run),
            "age": ago(run["age"]),
            "to go on": run["resume"],
        }
        values = [(run | shown).get(name) for name in (*TABLE, *asked)]
        lines.append(["" if value is None else _flat(value) for value in values])
    return [*TABLE, *asked], lines


def _flat(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else _text(value)


def silence(run: Json) -> str:
    """What a running run that has not been heard of for long is said to be, else nothing."""
    quiet = run["status"] == "running" and (run["age"] or 0) > SILENT
    return f", silent for {ago(run['age'])}" if quiet else ""


def ago(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def show(runs: list[Json], asked: list[str], as_csv: bool = False) -> None:
    """Print the table: drawn in a terminal, else a line for each run, tabs between."""
    if as_csv:
        writer = csv.DictWriter(sys.stdout, [*FACTS, *asked], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(runs)
    elif not sys.stdout.isatty():
        tables.print_table(*cells(runs, asked))
    elif runs:
        header, lines = cells(runs[:SHOWN], asked)
        filled = [any(column) for column in zip(*lines, strict=True)]
        lines = [list(compress(line, filled)) for line in lines]
        tables.print_table(list(compress(header, filled)), lines)
        if len(runs) > SHOWN:
            print(f"… and {len(runs) - SHOWN:,} more: --where narrows, --csv lists all")
    else:
        print("no run fits")
