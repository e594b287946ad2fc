"""Rewards of a run in mode=rl: a step's groups side by side; what rewards do over time."""

from __future__ import annotations

from forge.errors import UserError
from forge.records import samples
from forge.records.files import Json
from forge.records.samples import Group
from forge.results import charts
from forge.results.charts import Line, Plane
from forge.workbench.asked import Asked
from forge.workbench.one_run import logged, series
from forge.workbench.runs import LIVE


def view(asked: Asked) -> Json:
    """Parameters: run, step."""
    ids = asked.chosen[:1]
    title = "Rewards"
    if not ids:
        found = [kept.id for kept in asked.library.kept.values() if '"mode": "rl"' in kept.facts]
        return {"title": title, "run": None, "some": found[:50]}
    run = asked.library.run(ids[0])
    steps, entries = samples.steps(run.path), logged(asked, run)
    every = {step: _groups(asked, ids[0], step) for step in steps}
    step = asked.number("step", steps[-1] if steps else 0)
    if steps and step not in steps:
        raise UserError(
            f"step {step}: its answers were not kept; kept are {steps[0]} to {steps[-1]}"
        )
    place = steps.index(step) if steps else 0
    return {
        "title": title,
        "chosen": ids,
        "run": run,
        "steps": steps,
        "step": step,
        "before": steps[place - 1] if place else None,
        "after": steps[place + 1] if place + 1 < len(steps) else None,
        "groups": every.get(step, []),
        "charts": _charts(entries, every, (run.results.get("headline") or {}).get("metric")),
        "live": LIVE
        if asked.library.facts(asked.library.find(ids[0]))["status"] == "running"
        else 0,
    }


def _groups(asked: Asked, id: str, step: int) -> list[Group]:
    return [g for g in samples.read(asked.library.find(id).path, step) if g.get("answers")]


def _charts(entries: list[Json], every: dict[int, list[Group]], metric: str | None) -> list[Json]:
    x, y = series(entries, "reward")
    held = series(entries, f"eval_{metric}") if metric else ([], [])
    lines = [
        Line("mean reward, training", x, y),
        Line(f"{metric}, held out", *held, colour=1, dots=True),
    ]
    planes = [
        (
            "Reward against the held-out score",
            Plane("optimizer steps", "reward, score", [line for line in lines if line.x]),
        )
    ]
    flat = series(entries, "frac_reward_zero_std")
    shares_of = [samples.dead(groups) for groups in every.values()]
    low, high = ([pair[i] for pair in shares_of] for i in (0, 1))
    steps = [float(step) for step in every]
    shares = [
        Line("no variance, all groups", *flat, colour=7),
        Line("all as bad as can be, kept groups", steps, low, colour=3),
        Line("all as good, kept groups", steps, high, colour=2),
    ]
    planes.append(
        (
            "Groups that teach nothing",
            Plane(
                "optimizer steps", "share of groups", [s for s in shares if s.x], bottom=0, top=1
            ),
        )
    )
    answers = [
        a
        for groups in every.values()
        for g in groups
        for a in g["answers"]
        if a["reward"] is not None
    ]
    if len({a["length"] for a in answers}) > 1:
        some = answers[:: max(1, len(answers) // 600)]
        labels = [f"{a['length']} long, reward {a['reward']}" for a in some]
        x, y = [float(a["length"]) for a in some], [a["reward"] or 0.0 for a in some]
        cloud = Line("answers", x, y, joined=False, dots=True, thin=True, labels=labels)
        planes.append(
            ("Length against reward", Plane("length of the answer, tokens", "reward", [cloud]))
        )
    kl = series(entries, "kl")
    planes.append(
        ("KL to the start", Plane("optimizer steps", "nats", [Line("kl", *kl, colour=4)]))
    )
    made = [(title, charts.svg(plane, 260), charts.numbers(plane)) for title, plane in planes]
    return [{"title": t, "chart": drawn, "rows": rows} for t, drawn, rows in made if drawn]
