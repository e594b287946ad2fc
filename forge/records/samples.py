"""What a run in mode=rl drew, samples/: of some steps, some prompts with all their answers."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from forge.records.files import finite, read_json, write_json

FOLDER = "samples"
STEPS, GROUPS, LETTERS = 50, 8, 4_000  # of a run, of a step, of a text


class Answer(TypedDict):
    """One of a group."""

    text: str
    rewards: dict[str, float | None]  # None: it does not apply
    reward: float | None  # weighted, together
    advantage: float
    length: int  # tokens; of labels, how many there are
    kl: float | None  # to the model that training started from, in nats; None where not computed


class Group(TypedDict):
    """A prompt and the answers that were drawn for it."""

    id: int
    prompt: dict[str, str]  # what the model was shown, by column
    label: str
    answers: list[Answer]


def due(run_dir: Path, step: int, max_steps: int) -> bool:
    """Whether what is drawn at this step is kept: the first of each of `STEPS` stretches."""
    stretch = max(1, -(-max_steps // STEPS))
    return all(each // stretch != step // stretch for each in steps(run_dir))


def write(run_dir: Path, step: int, groups: list[Group]) -> None:
    """Keep a step's answers; of more than `GROUPS` prompts evenly spaced ones."""
    kept = groups[:: max(1, -(-len(groups) // GROUPS))]
    (run_dir / FOLDER).mkdir(exist_ok=True)
    write_json(run_dir / FOLDER / f"{step}.json", {"step": step, "groups": finite(kept)})


def steps(run_dir: Path) -> list[int]:
    """The steps of which answers are kept."""
    return sorted(int(f.stem) for f in run_dir.glob(f"{FOLDER}/*.json") if f.stem.isdecimal())


def read(run_dir: Path, step: int) -> list[Group]:
    """What was drawn at a step; raises `Damaged`."""
    groups: list[Group] = read_json(run_dir / FOLDER / f"{step}.json").get("groups", [])
    return groups


def rewind(run_dir: Path, step: int) -> None:
    """Forget what was drawn from this step on, from which training goes on."""
    for late in [each for each in steps(run_dir) if each >= step]:
        (run_dir / FOLDER / f"{late}.json").unlink()


def dead(groups: list[Group]) -> tuple[float, float]:
    """The shares of groups whose answers are all worth the same: the least there is, the most."""
    values = [[a["reward"] for a in g["answers"] if a["reward"] is not None] for g in groups]
    known = [v for group in values for v in group]
    if not known:
        return 0.0, 0.0
    low, high = min(known), max(known)
    flat = [group[0] for group in values if group and max(group) == min(group)]
    poor = sum(v < high and v <= low for v in flat)
    return poor / len(groups), (len(flat) - poor) / len(groups)
