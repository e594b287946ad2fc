"""The jobs of a sweep: what each one's overrides are, as they were given, and where its run is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from forge.records.files import read_json, write_json

FILE = "sweep.json"


@dataclass(frozen=True)
class Job:
    """A job that a sweep is to run."""

    number: int
    overrides: list[str]  # without secrets
    directory: str  # in the sweep's


def read(folder: Path) -> dict[int, Job]:
    """The jobs of the sweep in a folder, by number; none where no plan was written."""
    return {job["number"]: Job(**job) for job in read_json(folder / FILE).get("jobs", ())}


def write(folder: Path, jobs: dict[int, Job]) -> None:
    """Write the plan of a sweep."""
    write_json(folder / FILE, {"jobs": [asdict(jobs[number]) for number in sorted(jobs)]})


def is_job(run_dir: Path) -> bool:
    """Whether a run is a job of a sweep."""
    return run_dir.name.isdecimal() or (run_dir.parent / FILE).is_file()


def directories(folder: Path) -> dict[int, Path]:
    """Where the runs of a sweep are or will be, by number, also of one without a plan."""
    named = {int(path.name): path for path in folder.iterdir() if path.name.isdecimal()}
    planned = {number: folder / job.directory for number, job in read(folder).items()}
    return {n: path for n, path in named.items() if path.is_dir()} | planned
