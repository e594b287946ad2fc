"""Runs side by side: configs, metrics, and a paired test of each pair."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TypedDict

from forge.config.compose import dotted_values
from forge.config.schema import Node
from forge.errors import UserError
from forge.records.files import TIMINGS, Json
from forge.records.record import NOT_COMPARED
from forge.results import statistics as results_statistics
from forge.results.runs import Run, read_run
from forge.results.statistics import Difference
from forge.results.tables import Score, cell, drawn


class Comparison(TypedDict):
    """Runs side by side; a list has a value for each of them."""

    runs: list[str]
    config: dict[str, list[object]]
    metrics: dict[str, list[Score]]
    pairs: list[Json]  # a `Difference` each: of which runs, split and metric, and its verdict


def side_by_side(paths: Sequence[Path]) -> Comparison:
    """Finished runs compared: where their configs differ, their metrics, and a test of each pair.

    The test is of the headline, on every split that both have judged; several are corrected for
    their number. Of a metric that is not Forge's own there is none. Raises `UserError` for a run
    that is not finished, other headlines or other examples.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("the same run is named twice; there is nothing to compare")
    runs = [read_run(path) for path in paths]
    for run in runs:
        if run.state.get("status") != "finished" or not run.results:
            raise UserError(f"{run.path}: no finished run in this directory")
    headlines = {run.results["headline"]["metric"] for run in runs}
    if len(headlines) > 1:
        raise UserError(f"{', '.join(sorted(headlines))}: runs of different headlines")
    judged = [run.results["splits"] for run in runs]
    names = dict.fromkeys((s, name) for splits in judged for s in splits for name in splits[s])
    return {
        "runs": [str(path) for path in paths],
        "config": differing([run.metadata["config"] for run in runs]),
        "metrics": {
            f"{split} {name}": [splits.get(split, {}).get(name) for splits in judged]
            for split, name in names
            if name not in TIMINGS
        },
        "pairs": _tests(runs, *headlines),
    }


def differing(configs: list[Node]) -> dict[str, list[object]]:
    """The values of each key that changes what a run computes and is not the same in all."""
    flat = [dict(dotted_values(config)) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: [values.get(key) for values in flat] for key in keys}
    return {
        key: row
        for key, row in rows.items()
        if key.split(".")[0] not in NOT_COMPARED and any(value != row[0] for value in row)
    }


def settings(runs: dict[str, Run]) -> dict[str, list[str]]:
    """Runs that differ in nothing but their seed, by where their settings differ."""
    differ = differing([run.metadata["config"] for run in runs.values()])
    differ = {
        key: row
        for key, row in differ.items()
        if key.split(".")[-1] != "seed" and key != "trainer.output_dir"
    }
    groups: dict[str, list[str]] = {}
    marks: dict[str, str] = {}
    for i, id in enumerate(runs):
        values = {key: row[i] for key, row in differ.items()}
        mark = json.dumps(values, sort_keys=True, default=str)
        short = ", ".join(
            f"{key.split('.', 1)[-1]}={_short(v)}" for key, v in list(values.items())[:3]
        )
        name = marks.setdefault(mark, short or "all seeds")
        if name in groups and mark != next(m for m, n in marks.items() if n == name):
            name = marks[mark] = f"{name} ({id})"
        groups.setdefault(name, []).append(id)
    return groups


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _tests(runs: list[Run], metric: str) -> list[Json]:
    """A test of each pair on each split that both have judged; raises `UserError` for a pair
    without any."""
    if not results_statistics.is_own(metric):
        return []
    tests: list[tuple[Json, Difference]] = []
    for a, b in combinations(runs, 2):
        splits = [split for split in a.results["splits"] if split in b.results["splits"]]
        if not splits:
            raise UserError(f"{a.path} and {b.path} have judged no split in common")
        for split in splits:
            about = {"reference": str(a.path), "run": str(b.path), "split": split, "metric": metric}
            tests.append((about, _difference(a, b, split, metric)))
    results_statistics.correct([test for _, test in tests])
    return [about | asdict(test) | {"verdict": test.verdict} for about, test in tests]


def _difference(a: Run, b: Run, split: str, metric: str) -> Difference:
    files = [run.path / "predictions" / f"{split}.parquet" for run in (a, b)]
    answers = [results_statistics.read_answers(file, metric) for file in files]
    try:
        require_same_rows([a, b], split)
        return results_statistics.difference(answers[:1], answers[1:], metric)
    except UserError as error:
        raise UserError(f"{a.path} and {b.path}, {split}: {error}") from error


def require_same_rows(runs: Sequence[Run], split: str) -> None:
    """Raises `UserError` where the same ids stand for other texts, as rows of another file do.

    Runs that read other columns record other fingerprints of the same rows, which says nothing.
    """
    prints: dict[str, set[str]] = {}
    for run in runs:
        if fingerprint := run.metadata.get("data", {}).get(split, {}).get("fingerprint"):
            columns = str(run.metadata["config"].get("task", {}).get("text"))
            prints.setdefault(columns, set()).add(fingerprint)
    if any(len(different) > 1 for different in prints.values()):
        raise UserError(results_statistics.OTHER)


def comparison_text(compared: Comparison) -> str:
    """The same for a reader."""
    letters = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(compared["runs"]))]
    named = dict(zip(compared["runs"], letters, strict=True))
    lines = [f"{letter}  {path}" for path, letter in named.items()]
    config = [[key, *map(str, values)] for key, values in compared["config"].items()]
    table = drawn(["differs", *letters], config) if config else "\nthe configs are the same"
    lines.append(table)
    metrics = [[name, *map(cell, row)] for name, row in compared["metrics"].items()]
    lines += [drawn(["metric", *letters], metrics), ""]
    lines += [_pair_text(pair, named) for pair in compared["pairs"]]
    if not compared["pairs"]:
        lines.append("no test: the headline's code is not Forge's own, and not run to compare")
        return "\n".join(lines)
    lines.append(
        "One run a side: the 95 % intervals are over the examples, not over seeds. The smallest "
        "difference: one that shows four times in five (80 % power)."
    )
    if len(compared["pairs"]) > 1:
        lines.append(f"{len(compared['pairs'])} tests; p is corrected for their number (Holm).")
    return "\n".join(lines)


def _pair_text(pair: Json, named: dict[str, str]) -> str:
    metric, p_value = pair["metric"], ""
    if pair["p_value"] is not None:
        of = "" if metric == "accuracy" else " of accuracy"
        p_value = f", McNemar p{of} {pair['p_value']:.2g}"
    corrected = "" if pair["corrected"] is None else f", p {pair['corrected']:.2g}"
    by = " by McNemar's test" if pair["doubted"] else ""
    return (
        f"{named[pair['run']]} against {named[pair['reference']]}, {pair['split']} {metric}: "
        f"{pair['verdict']}{by}, {pair['value']:+.4f} [{pair['low']:+.4f}, {pair['high']:+.4f}]"
        f"{corrected}{p_value}, n {pair['n']:,}; "
        "the smallest difference that so many examples show: "
        + (f"{pair['smallest']:.4f}" if pair["smallest"] == pair["smallest"] else "unknown")
    )
