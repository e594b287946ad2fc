"""`python -m forge learn`: the guide's pages in a terminal, and stations on the way through it.

How far a learner is, is read off the runs in outputs/ and multirun/.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from forge import guide
from forge.records.files import Json
from forge.results import index

WIDTH = 100
FOLDERS = (Path("outputs"), Path("multirun"))
Done: TypeAlias = Callable[[list[Json]], str | None]  # the run that shows it, of finished ones


@dataclass(frozen=True)
class Station:
    """Something to do, why, the page about it, and how runs show that it was done."""

    name: str
    command: str
    why: str
    page: str
    done: Done


def _first(fits: Callable[[Json], object]) -> Done:
    return lambda runs: next((run["run"] for run in runs if fits(run)), None)


def _reported(run: Json) -> bool:
    return (Path(run["run"]) / "report.md").is_file()


def _with_control(runs: list[Json]) -> str | None:
    """A distilled run whose task and model have a run at mode.alpha=0 too."""

    def pair(run: Json) -> tuple[object, ...]:
        return run.get("task"), run.get("model"), run.get("seed")

    kd = [run for run in runs if run.get("mode") == "kd"]
    controls = {pair(run) for run in kd if not run.get("mode.alpha")}
    return next((r["run"] for r in kd if r.get("mode.alpha") and pair(r) in controls), None)


def _own(run: Json) -> bool:
    """Whether it called something that is neither Forge's nor a library's."""
    targets = [str(value) for key, value in run.items() if key.endswith("._target_")]
    return any(each.partition(".")[0] not in ("forge", "transformers") for each in targets)


STATIONS = (
    Station(
        "the machine",
        "python -m forge doctor",
        "One line per check; what is missing says what to install. Done once a run has ended here.",
        "start",
        _first(lambda run: True),
    ),
    Station(
        "ten steps",
        "python launch.py experiment=smoke",
        "A task, a model and a mode, composed and trained, offline in seconds.",
        "one-run",
        _first(lambda run: run.get("experiment") == "smoke"),
    ),
    Station(
        "the files they left",
        "python -m forge report {run}",
        "Open results.json and run_metadata.json too; report.md appears beside them.",
        "one-run",
        _first(_reported),
    ),
    Station(
        "explain, and change one value",
        "python launch.py experiment=smoke trainer.learning_rate=1e-3",
        "python -m forge explain experiment=smoke says which file set the rate; a key goes before "
        "it.",
        "config",
        _first(
            lambda run: (
                run.get("experiment") == "smoke" and run.get("trainer.learning_rate") == 1e-3
            )
        ),
    ),
    Station(
        "distillation against its control",
        "python launch.py -m task=toy model=tiny mode=kd mode.alpha=0,0.5",
        "A teacher is trained first, once; then a student from labels alone and one from both.",
        "kd",
        _with_control,
    ),
    Station(
        "a change with its test",
        "python launch.py task=my_rows model=tiny",
        "Rows of your own from a function of your own, and a test of it; the page has both.",
        "add",
        _first(_own),
    ),
)


def progress() -> list[tuple[Station, str | None]]:
    """Each station, with the run that shows it was done."""
    runs: list[Json] = []
    for folder in FOLDERS:
        if folder.is_dir() and index.kept(folder, config=False):
            runs += index.read(folder, config=True)
    finished = [run for run in runs if run["status"] == "finished"]
    return [(station, station.done(finished)) for station in STATIONS]


def stations() -> str:
    """Where the learner is, the next thing to do, and the guide's pages."""
    reached, lines, upcoming = progress(), [], False
    smoke = next((run for station, run in reached if station.name == "ten steps"), None)
    for number, (station, run) in enumerate(reached, 1):
        here = run is None and not upcoming
        upcoming = upcoming or here
        mark = "done" if run else "next" if here else "    "
        command = station.command.format(run=smoke or "RUN")
        lines += [f"{mark}  {number}  {station.name}{f'  ({run})' if run else ''}"]
        if not run:
            lines += [f"         {command}", f"         {station.why}"]
            lines += [f"         page: python -m forge learn {station.page}"]
    if not upcoming:
        lines.append("All done. What else can be added: python -m forge learn add")
    names = ", ".join(name for name in guide.pages() if name != guide.CONTENTS)
    lines += ["", textwrap.fill(f"Pages (python -m forge learn PAGE): {names}", WIDTH)]
    return "\n".join(lines)


def show(name: str) -> None:
    """Print a page: drawn in a terminal, else as it is written."""
    text = guide.page(name)
    if not sys.stdout.isatty():
        print(text.rstrip())
        return
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.theme import Theme

    text = re.sub(r"!\[([^\]]*)\]\([^)]*\)", r"(picture: \1)", text)
    text = re.sub(r"\[([^\]]+)" + guide.LINK.pattern, r"\1 (`learn \2`)", text)
    theme = Theme({"markdown.code": "cyan"})  # whatever colours the terminal has
    console = Console(width=min(WIDTH, Console().width), theme=theme)
    for part in re.split(r"^( *```.*?^ *```\n)", text, flags=re.S | re.M):
        if part.lstrip().startswith("```"):  # a command stays one line, to be copied
            lines = "\n".join(f"    {line}" for line in part.strip("\n").splitlines()[1:-1])
            console.print(
                f"{lines}\n", style="green", markup=False, highlight=False, soft_wrap=True
            )
        else:
            console.print(Markdown(part, hyperlinks=False))
