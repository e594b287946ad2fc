"""The jobs of a submitted sweep: its ledger, what SLURM says of them, the live table."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from forge.config.compose import override
from forge.errors import Failure, UserError, one_line
from forge.launching import sweep
from forge.launching.sealing import read_plain
from forge.records.files import METADATA, RESULTS, STATE, Json, now, read_json

LEDGER = "jobs.jsonl"
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL",
        "OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT", "UNKNOWN"}  # fmt: skip
# Seconds for which a job must be over before it counts: SLURM may be about to start it again, its
# result may be on its way through a network file system.
GRACE = {"NODE_FAIL": 60, "PREEMPTED": 60, "UNKNOWN": 60, "COMPLETED": 15}
MEMORY = re.compile(r"memory limit|oom[-_ ]kill|out of memory", re.I)
RESTING = ("finished", "pending")  # below the others, where a terminal may cut the table
COLUMNS = ("job", "id", "overrides", "state", "step", "headline", "time")
Line: TypeAlias = tuple[str, str, str, str, str, str, str]  # of these


@dataclass
class Job:
    """A line of the ledger."""

    job: str  # SLURM's id, or a process'
    number: int  # in the sweep; below 0 one that trains a teacher first
    overrides: list[str]
    directory: str  # of the run
    folder: str  # of submitit's files
    ranks: int
    cluster: str
    host: str
    submitted: str

    @property
    def results(self) -> list[Path]:
        """What each rank leaves at its end, however it ended."""
        return [Path(self.folder, f"{self.job}_{rank}_result.pkl") for rank in range(self.ranks)]

    @property
    def log(self) -> Path:
        return Path(self.folder, f"{self.job}_0_log.err")


def entered(sweep_dir: Path) -> list[Job]:
    """Every submission, in their order."""
    submissions = []
    file = sweep_dir / LEDGER
    for line in file.read_text().splitlines() if file.is_file() else ():
        with suppress(json.JSONDecodeError):  # a line that was being written
            submissions.append(Job(**json.loads(line)))
    return submissions


def read_ledger(sweep_dir: Path) -> dict[int, Job]:
    """The last submission of each job of a sweep."""
    return {job.number: job for job in entered(sweep_dir)}


def enter(sweep_dir: Path, jobs: Iterable[Job]) -> None:
    """Add submissions to the ledger, on lines of their own whatever was cut before."""
    file = sweep_dir / LEDGER
    cut = file.is_file() and not file.read_bytes().endswith(b"\n")
    with open(file, "a", encoding="utf-8") as ledger:
        ledger.write("\n" * cut + "".join(json.dumps(asdict(job)) + "\n" for job in jobs))
        ledger.flush()
        os.fsync(ledger.fileno())


def states(jobs: Iterable[Job]) -> dict[str, str]:
    """The state of each job as SLURM names it; one call asks for all.

    Raises `Failure` when SLURM does not answer, which says nothing about the jobs.
    """
    jobs = list(jobs)
    processes = {job.job: _process_state(job) for job in jobs if job.cluster == "local"}
    asked = [job.job for job in jobs if job.cluster != "local"]
    known = _sacct(asked) if asked else {}
    if any(job not in known for job in asked):  # no accounts, or not yet in them
        known = _squeue() | known
    return processes | {job: known.get(job, "UNKNOWN") for job in asked}


def _sacct(jobs: list[str]) -> dict[str, str]:
    from submitit.slurm.slurm import SlurmInfoWatcher

    arrays = sorted({job.split("_")[0] for job in jobs})
    text = _run("sacct", "-XP", "-o", "JobID,State", "-j", ",".join(arrays))
    return {job: line["State"] for job, line in SlurmInfoWatcher().read_info(text or "").items()}


def _squeue() -> dict[str, str]:
    text = _run("squeue", "-hr", "-t", "all", "-o", "%i|%T", "-u", getpass.getuser())
    if text is None:
        raise Failure("SLURM does not answer: neither sacct nor squeue says what became of jobs")
    return dict(line.split("|") for line in text.split())


def _run(*command: str) -> str | None:
    """What a command prints; None when it fails."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else None
    return None


def _process_state(job: Job) -> str:
    if job.host != socket.gethostname():
        raise UserError(f"job {job.number} is process {job.job} of {job.host}; ask there")
    with suppress(ChildProcessError):
        os.waitpid(int(job.job), os.WNOHANG)  # a child of ours that has ended
    try:
        os.kill(int(job.job), 0)
    except (ProcessLookupError, PermissionError):  # its number may be another user's by now
        return "COMPLETED"
    return "RUNNING"


def is_over(state: str) -> bool:
    """Whether SLURM will not go on with a job in this state."""
    return state.split()[0].rstrip("+") in OVER


@dataclass
class Outcome:
    """How a job ended: with a headline, or with the reason why not."""

    value: float | None = None
    error: str | None = None


def outcome(job: Job) -> Outcome | None:
    """How the job's ranks ended; None unless all have."""
    if not all(path.exists() for path in job.results):
        return None
    values = []
    for path in job.results:
        try:
            match read_plain(path):
                case ("success", float(value)):
                    values.append(value)
                case ("error", str(traceback)):
                    return Outcome(error=_reason(traceback))
                case _:
                    return Outcome(error=f"{path}: no result of a job")
        except UserError as error:
            return Outcome(error=str(error))
    return Outcome(value=values[0])


def _reason(traceback: str) -> str:
    """The exception that a traceback ends with, in one line."""
    last = traceback.rpartition('\n  File "')[2]
    lines = [line for line in last.splitlines()[1:] if line and not line.startswith(" ")]
    line = one_line(lines[0] if lines else traceback)
    name, colon, message = line.partition(": ")
    name = name.rpartition(".")[2]
    return message if name in ("UserError", "Failure") else f"{name}{colon}{message}"


def _death(job: Job, state: str) -> Outcome:
    """Why a job left no result."""
    if read_json(Path(job.directory, STATE)).get("status") == "finished":
        headline = read_json(Path(job.directory, RESULTS)).get("headline", {})
        return Outcome(value=headline.get("value"))
    output = job.log.read_text(errors="replace")[-4000:] if job.log.is_file() else ""
    if state.startswith("OUT_OF_ME") or MEMORY.search(output):
        return Outcome(error="killed for its memory; raise launcher.mem_gb")
    if job.cluster == "local":
        return Outcome(error=f"process {job.job} is gone; see {job.log}")
    reason = "not known to it any more" if state == "UNKNOWN" else state
    return Outcome(error=f"SLURM: {reason}" + (f"; see {job.log}" if output else ""))


class Watcher:
    """Follows jobs until each has ended or SLURM has given it up."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.jobs = sorted(jobs, key=lambda job: job.number)
        self.outcomes: dict[int, Outcome] = {}
        self.states: dict[str, str] = {}
        self.over: dict[str, float] = {}  # since when, of jobs without a result
        self.begun, self.next = time.monotonic(), 0.0

    @property
    def left(self) -> list[Job]:
        return [job for job in self.jobs if job.number not in self.outcomes]

    def poll(self) -> None:
        """Read results; ask SLURM now and then, the longer it takes the less often."""
        failing = False
        for job in self.left:
            ended = outcome(job)
            if ended and not ended.error:
                self.outcomes[job.number] = ended
            failing |= ended is not None
        clock = time.monotonic()
        if not self.left or clock < self.next:
            return
        with suppress(Failure):  # no news
            self.states |= states(self.left)
            self._bury(clock)
        pause = 2 if self.over or failing else min(30, 2 + (clock - self.begun) / 20)
        self.next = time.monotonic() + pause

    def _bury(self, clock: float) -> None:
        """Give up jobs that have been over for long enough.

        An error alone does not end a job: SLURM may have stopped it, and start it again.
        """
        for job in self.left:
            state = self.states[job.job]
            if not is_over(state):
                self.over.pop(job.job, None)
                continue
            since = self.over.setdefault(job.job, clock)
            ended = outcome(job)
            grace = (
                0 if ended and state in ("FAILED", "COMPLETED") else GRACE.get(state.split()[0], 5)
            )
            if clock - since >= grace:
                self.outcomes[job.number] = ended or _death(job, state)

    def lines(self) -> list[Line]:
        """The table's rows."""
        differ = sweep.differing([list(job.overrides) for job in self.jobs])
        shown = [" ".join(own) for own in differ]
        return [self._line(job, own) for job, own in zip(self.jobs, shown, strict=True)]

    def _line(self, job: Job, overrides: str) -> Line:
        run = Path(job.directory)
        state, metadata = read_json(run / STATE), read_json(run / METADATA)
        headline = read_json(run / RESULTS).get("headline")
        steps = f"{state.get('step', 0)}/{state['max_steps']}" if "max_steps" in state else ""
        value = f"{headline['metric']} {headline['value']:.4f}" if headline else ""
        started = (metadata.get("attempts") or [{}])[0].get("started")
        until = state.get("updated") if job.number in self.outcomes else now()
        status, spent = self._status(job, state), _time(started, until)
        number = str(job.number) if job.number >= 0 else f"teacher {-job.number}"
        return number, job.job, overrides, status, steps, value, spent

    def _status(self, job: Job, state: Json) -> str:
        if ended := self.outcomes.get(job.number):
            return "failed" if ended.error else "finished"
        queued = self.states.get(job.job, "submitted").lower()
        return str(state.get("status", "starting")) if queued == "running" else queued


def _time(started: str | None, until: str | None) -> str:
    if not started or not until:
        return ""
    spent = datetime.fromisoformat(until) - datetime.fromisoformat(started)
    seconds = max(0, int(spent.total_seconds()))  # clocks of machines differ
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def follow(jobs: Iterable[Job]) -> dict[int, Outcome]:
    """Show the jobs until none is left: a live table in a terminal, else a line for each change."""
    watcher = Watcher(jobs)
    with _display() as show, _interrupts() as interrupts:
        while True:
            watcher.poll()
            show(watcher.lines())
            if not watcher.left:
                break
            if interrupts:
                raise KeyboardInterrupt
            time.sleep(0.5)
    untaught = [n for n, ended in watcher.outcomes.items() if n < 0 and ended.error]
    for ended in watcher.outcomes.values():
        if untaught and (ended.error or "").startswith("SLURM: CANCELLED"):
            ended.error = "not started: its teacher's job failed"
    return watcher.outcomes


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Each Ctrl-C so far. Raised wherever it comes, Python drops it in a destructor."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: numbers.append(number))
    try:
        yield numbers
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _display() -> Iterator[Callable[[list[Line]], None]]:
    from rich import box
    from rich.live import Live
    from rich.table import Table

    shown: dict[str, str] = {}

    def lines(rows: list[Line]) -> None:
        for number, job, overrides, state, steps, value, _ in rows:
            if shown.get(number) != state:
                new = (number, job, state, steps, value, "" if number in shown else overrides)
                shown[number] = state
                print("job", "  ".join(filter(None, new)), flush=True)

    if not sys.stdout.isatty():
        yield lines
        return
    with Live(refresh_per_second=2) as live:

        def table(rows: list[Line]) -> None:
            counts = Counter(row[3] for row in rows)
            title = ", ".join(f"{count} {state}" for state, count in counts.items())
            drawn = Table(*COLUMNS, title=title, box=box.SIMPLE_HEAD)
            for row in sorted(rows, key=lambda row: row[3] in RESTING):  # else in their order
                drawn.add_row(*row)
            live.update(drawn)

        yield table


def watch(sweep_dir: Path) -> int:
    """Come back to a submitted sweep: follow it, then its table; 1 when jobs did not finish."""
    jobs = read_ledger(sweep_dir)
    if not jobs:
        raise UserError(f"{sweep_dir}: no {LEDGER} in it: no sweep was submitted from there")
    try:
        outcomes = follow(jobs.values())
    except KeyboardInterrupt:
        print(f"\nthe jobs go on; {how_to_come_back(sweep_dir)}")
        return 130
    return 1 if sweep.sum_up(sweep_dir, failures(jobs, outcomes)) else 0


def failures(jobs: dict[int, Job], outcomes: dict[int, Outcome]) -> sweep.Jobs:
    """Why jobs failed; a teacher's failure that cost no run is past."""
    lost = any(ended.error for number, ended in outcomes.items() if number >= 0)
    return {
        number: (jobs[number].overrides, ended.error)
        for number, ended in outcomes.items()
        if ended.error and (number >= 0 or lost)
    }


def way_out(sweep_dir: Path) -> str:
    return f"go on with python launch.py {override('resume', str(sweep_dir))}"


def how_to_come_back(sweep_dir: Path) -> str:
    return f"come back with python -m forge runs --watch {shlex.quote(str(sweep_dir))}"
