"""Disagreements: two runs, a run and its teacher, or a run and the labels, row by row."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from forge.config.compose import override
from forge.errors import UserError
from forge.records.files import Json
from forge.results import answers
from forge.results.answers import Answers, Mask, Pair
from forge.results.comparison import require_same_rows
from forge.results.runs import Run
from forge.results.statistics import wilson
from forge.workbench.asked import Asked

PAGE, CLASSES, LETTERS = 50, 20, 1_500
FLAGS = Path("workbench-flags")  # where the workbench was started: a user's work is no cache
SORTS = ("id", "confidence", "loss", "difference")


def view(asked: Asked) -> Json:
    """Parameters: run (one or two), against (label, teacher), split, outcome, cell, q, label,
    flagged, sort, page."""
    ids = asked.chosen[:2]
    title = "Disagreements"
    if not ids:
        return {"title": title, "pair": None}
    pair = read(asked, ids)
    outcomes = pair.outcomes()
    base, words = filtered(asked, pair)
    outcome = asked.text("outcome", "all")
    chosen = base & outcomes.get(outcome, outcomes["all"])
    matrix, chosen = _matrix(asked, pair, base, chosen)
    order = pair.ordered(asked.text("sort", "loss" if outcome != "all" else "id"), chosen)
    pages = max(1, -(-len(order) // PAGE))
    page = min(max(1, asked.number("page", 1)), pages)
    flags = flagged(pair.run, pair.split)
    return {
        "title": title,
        "chosen": ids,
        "pair": pair,
        "splits": answers.splits(pair.run),
        "against": asked.text("against", "label"),
        "taught": (pair.run.path / "predictions" / f"teacher_{pair.split}.parquet").is_file(),
        "outcome": outcome,
        "outcomes": {name: int((base & mask).sum()) for name, mask in outcomes.items()},
        "q": asked.text("q"),
        "sort": asked.text("sort"),
        "sorts": [s for s in SORTS if s != "confidence" or pair.one.confidence is not None],
        "slice": _share(pair, base, words),
        "slices": slices(pair, flags),
        "matrix": matrix,
        "count": len(order),
        "page": page,
        "pages": pages,
        "rows": [_row(pair, row, flags) for row in _texts(pair, order[(page - 1) * PAGE :][:PAGE])],
        "pictured": answers.pictured(pair.run, pair.split),
        "flag_text": flag_text(pair.run, pair.split, flags),
    }  # fmt: skip


def read(asked: Asked, ids: list[str]) -> Pair:
    """The answers that an address names, matched by the rows' ids; raises `UserError`."""
    runs = [asked.library.run(id) for id in ids]
    known = answers.splits(runs[0])
    if not known:
        raise UserError(f"{ids[0]}: no predictions here; the run has not finished")
    split = asked.text("split", known[0])
    one, other, names = answers.read(runs[0], split), None, (ids[0], "label")
    if len(runs) > 1:
        require_same_rows(runs, split)
        other, names = answers.read(runs[1], split), (ids[0], ids[1])
    elif asked.text("against") == "teacher":
        other, names = answers.read(runs[0], split, teacher=True), (ids[0], "teacher")
    if other is None:
        at = np.arange(len(one.id))
        return Pair(runs[0], split, one, None, names, at, at)
    _, at, beside = np.intersect1d(one.id, other.id, return_indices=True)
    if one.kind != other.kind or not len(at):
        raise UserError(f"{' and '.join(names)}: they answer other rows of {split}")
    return Pair(runs[0], split, one, other, names, at, beside)


def filtered(asked: Asked, pair: Pair) -> tuple[Mask, str]:
    """Rows that hold the words that are searched for, or are flagged; and what that is called."""
    mask, words = np.ones(len(pair.at), bool), []
    if q := asked.text("q").strip():
        mask &= np.isin(pair.id, _holding(pair, q))
        words.append(f"with “{q}”")
    if asked.text("flagged"):
        mask &= np.isin(pair.id, list(flagged(pair.run, pair.split)))
        words.append("flagged")
    if label := asked.text("label"):
        named = (
            {pair.one.named(v): v for v in np.unique(pair.one.label)}
            if pair.one.kind == "label"
            else {}
        )
        if label in named:
            mask &= pair.one.label[pair.at] == named[label]
            words.append(f"of label {label}")
    return mask, ", ".join(words)


def _holding(pair: Pair, q: str) -> NDArray[np.int64]:
    """Ids of the rows whose texts hold some words, whatever their case; an id holds itself."""
    table = answers.shown(pair.run, pair.split)
    found = [int(q)] if q.isdecimal() and len(q) < 19 else []
    if table is not None:
        hits = np.zeros(table.num_rows, bool)
        for name in table.column_names[1:]:
            fits = pc.match_substring(table[name], q, ignore_case=True).fill_null(False)
            hits |= fits.to_numpy()
        return np.concatenate([table["id"].to_numpy()[hits], np.array(found, int)])
    return np.array(found, int)


def _matrix(asked: Asked, pair: Pair, base: Mask, chosen: Mask) -> tuple[Json | None, Mask]:
    """How often each answer meets each label (or other answer), and the rows of a chosen cell."""
    names = pair.one.classes
    if pair.other is not None:
        names = max(names, pair.other.classes, key=len)
    if not names or len(names) > CLASSES:
        return None, chosen
    columns = pair.one.answer[pair.at]
    lines = pair.one.label[pair.at] if pair.other is None else pair.other.answer[pair.beside]
    counts = np.zeros((len(names), len(names)), int)
    inside = base & (lines >= 0) & (columns >= 0)
    np.add.at(counts, (lines[inside], columns[inside]), 1)
    cell = asked.text("cell")
    if fits := re.fullmatch(r"(\d{1,6}),(\d{1,6})", cell):
        chosen = base & (lines == int(fits[1])) & (columns == int(fits[2]))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = [
        [
            {"n": int(n), "at": f"{i},{j}", "shade": int(np.ceil(shares[i, j] * 5)),
             "chosen": cell == f"{i},{j}"}
            for j, n in enumerate(line)
        ]
        for i, line in enumerate(counts)
    ]  # fmt: skip
    return {"names": names, "cells": cells}, chosen


def _share(pair: Pair, mask: Mask, name: str) -> list[str]:
    """A slice: name, rows, how many each side has right."""
    n, (right, other) = int(mask.sum()), pair.right
    if pair.one.kind == "number":
        loss = pair.one.loss
        off = f"{loss[pair.at][mask].mean():.4g} off" if n and loss is not None else ""
        return [name or "all rows", f"{n:,}", off]
    line = [name or "all rows", f"{n:,}", wilson(int(right[mask].sum()), n)]
    return line if other is None else [*line, wilson(int(other[mask].sum()), n)]


def slices(pair: Pair, flags: set[int]) -> list[list[str]]:
    """By label, by length of the texts, the flagged; each with n and an interval."""
    parts = [("all rows", np.ones(len(pair.at), bool))]
    if pair.one.kind == "label" and len(pair.one.classes) <= CLASSES:
        label = pair.one.label[pair.at]
        parts += [(f"label {pair.one.named(v)}", label == v) for v in np.unique(label)]
    table = (
        answers.shown(pair.run, pair.split) if not answers.pictured(pair.run, pair.split) else None
    )
    if table is not None:
        lengths = sum(
            pc.utf8_length(table[name]).fill_null(0).to_numpy() for name in table.column_names[1:]
        )
        known = dict(
            zip(table["id"].to_numpy().tolist(), np.asarray(lengths).tolist(), strict=True)
        )
        length = np.array([known.get(id, -1) for id in pair.id.tolist()])
        low, high = np.quantile(length, [1 / 3, 2 / 3])
        parts += [
            (f"up to {low:.0f} characters", length <= low),
            (f"{low:.0f} to {high:.0f} characters", (length > low) & (length <= high)),
            (f"over {high:.0f} characters", length > high),
        ]
    if flags:
        parts.append(("flagged", np.isin(pair.id, list(flags))))
    return [_share(pair, mask, name) for name, mask in parts]


def _texts(pair: Pair, places: NDArray[np.int64]) -> list[Json]:
    """The texts of some rows, in their order."""
    table = answers.shown(pair.run, pair.split)
    wanted = pair.id[places]
    texts: dict[int, dict[str, str]] = {}
    if table is not None:
        some = table.filter(pc.is_in(table["id"], value_set=_array(wanted)))
        texts = {
            row.pop("id"): {k: str(v)[:LETTERS] for k, v in row.items()} for row in some.to_pylist()
        }
    return [
        {"place": int(p), "id": int(id), "texts": texts.get(int(id), {})}
        for p, id in zip(places, wanted, strict=True)
    ]


def _array(values: NDArray[np.int64]) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.int64())


def _row(pair: Pair, row: Json, flags: set[int]) -> Json:
    i, one = pair.at[row["place"]], pair.one
    sides = [_side(one, int(i))]
    if pair.other is not None:
        sides.append(_side(pair.other, int(pair.beside[row["place"]])))
    return row | {
        "label": one.named(one.label[i]),
        "sides": sides,
        "loss": f"{one.loss[i]:.3f}" if one.loss is not None else "",
        "flagged": row["id"] in flags,
    }


def _side(found: Answers, i: int) -> Json:
    sure = f"{found.confidence[i]:.3f}" if found.confidence is not None else ""
    kind = "" if found.kind == "number" else "right" if found.right[i] else "wrong"
    return {"text": found.named(found.answer[i])[:LETTERS], "sure": sure, "kind": kind}


def picture(asked: Asked) -> tuple[bytes, str] | None:
    """A row's picture and its media type. Parameters: run, split, row."""
    return answers.picture(
        asked.library.run(asked.chosen[0]), asked.text("split"), asked.number("row", -1)
    )


def flag_file(run: Run, split: str) -> Path:
    """Where the flags of a split's rows are; the same for all runs over these rows."""
    facts = run.metadata.get("data", {}).get(split, {})
    task = run.metadata.get("choices", {}).get("task") or "task"
    name = f"{task}-{split}-{str(facts.get('fingerprint', ''))[:8]}"
    return FLAGS / (re.sub(r"[^\w.-]", "_", name).lstrip(".") + ".txt")


def flagged(run: Run, split: str) -> set[int]:
    file = flag_file(run, split)
    lines = file.read_text().split() if file.is_file() else []
    return {int(line) for line in lines if line.lstrip("-").isdecimal()}


def flag_text(run: Run, split: str, flags: set[int]) -> str:
    """How many rows are flagged, and the file of their ids."""
    if not flags:
        return "No row is flagged."
    file = override("task.rows", os.path.abspath(flag_file(run, split)))
    run_dir = shlex.quote(os.path.relpath(run.path))
    return f"{len(flags)} flagged; judged alone by: python -m forge evaluate {run_dir} {file}"


def flag(asked: Asked, given: Json) -> Json:
    """Flag a row, or no longer. Parameters: run, split; given: id, flagged."""
    pair = read(asked, asked.chosen[:1])
    flags, id = flagged(pair.run, pair.split), int(given["id"])
    if id not in pair.one.id:
        raise UserError(f"{id}: no such row")
    flags = flags | {id} if given.get("flagged") else flags - {id}
    file = flag_file(pair.run, pair.split)
    try:
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"{each}\n" for each in sorted(flags)))
    except OSError as error:
        raise UserError(
            f"{file}: {error.strerror}; start the workbench where you may write"
        ) from error
    return {"text": flag_text(pair.run, pair.split, flags)}
