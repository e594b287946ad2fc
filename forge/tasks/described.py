"""What a task's node asks, in words, read off the node and the text of the function that it names;
nothing is imported for it.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

READ = ("text", "tokens", "image", "audio", "context", "question", "options", "prompt", "messages")
UNLABELLED = "unlabelled"  # the split of rows without answers
MISSING = "???"  # in a yaml: to be given
ANSWERS = ("completion", "tags", "label")  # settings that name the columns of right answers


def asks(node: Mapping[str, Any]) -> str:
    """In one clause what goes in and what comes out; "" for a function that does not say it."""
    function = _function(str(node.get("_target_")))
    text = (ast.get_docstring(function) or "") if function else ""
    return re.split(r"[;:.]", re.sub(r"\s*\([^)]*\)", "", text))[0]


def columns(node: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The columns that are read, and those of the right answers, by the setting that names them."""
    given: dict[str, Any] = {}
    if function := _function(str(node.get("_target_"))):
        arguments = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        given = {a.arg: d.value for a, d in arguments if isinstance(d, ast.Constant)}
    given |= node
    if given.get("messages"):  # stands for prompt and completion
        given |= {"prompt": None, "completion": None}
    named = {key: given[key] for key in (*READ, *ANSWERS) if given.get(key)}
    lists = {key: [value] if isinstance(value, str) else [*value] for key, value in named.items()}
    lists = {key: ["(not given yet)" if n == MISSING else n for n in lists[key]] for key in lists}
    return (
        {key: names for key, names in lists.items() if key in READ},
        {key: names for key, names in lists.items() if key in ANSWERS},
    )


def task(node: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """What is asked, in which columns; `record` may have a run's `labels`."""
    asked, (read, answers) = asks(node), columns(node)
    labels = node.get("labels") or record.get("labels")
    lines = [f"{asked}." if asked else f"It is what {node.get('_target_')} makes."]
    if read:
        lines.append(f"It reads {_columns(read)}.")
    if answers:
        lines.append(f"The right answer stands in {_columns(answers)}.")
    if labels and isinstance(labels, list):
        lines.append(f"The {len(labels)} labels are {listed(labels)}.")
    elif "label" in answers and "labels" in node:
        lines.append("Labels are read off the train split when the run starts.")
    return " ".join(lines)


def _columns(named: Mapping[str, list[str]]) -> str:
    parts = [f"{listed(names)} (task.{key})" for key, names in named.items()]
    return f"the column{'s' * (sum(map(len, named.values())) > 1)} {', '.join(parts)}"


def data(node: Mapping[str, Any]) -> str:
    """Where rows come from."""
    if files := node.get("files"):
        known = {split: path for split, path in files.items() if path}
        named = [f"{s} is {'not given yet' if p == MISSING else p}" for s, p in known.items()]
        return f"Rows come from your files (task.files): {', '.join(named)}."
    source = node.get("dataset") or {}
    if path := source.get("path"):
        name = f", configuration {source['name']}" if source.get("name") else ""
        return (
            f"Rows come from {path}{name}: a directory where there is one, else the Hub, kept in "
            "Hugging Face's cache. task.dataset.path=DIR takes local data."
        )
    target = str(source.get("_target_"))
    sizes = {key: source[key] for key in ("train", "validation", "seed") if key in source}
    told = ", ".join(f"{key}={number(value)}" for key, value in sizes.items())
    if target.startswith("forge.data."):
        return f"Rows are made on this machine by {target} ({told}); nothing is downloaded."
    return f"Rows are what {target} returns (task.dataset)."


def splits(node: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Which splits are learnt from and which judge; of a run with their sizes."""
    train, judges = node.get("train") or "train", node.get("evaluation")
    if judges is None:
        given = (node.get("files") or {"validation": "…"}).items()
        judges = [name for name, path in given if path and name not in (train, UNLABELLED)]
    counts = record.get("data") or {}

    def named(split: str) -> str:
        return f"{split} ({counts[split]['n']:,} rows)" if split in counts else split

    text = (
        f"It learns from {named(train)} and is judged on {listed(map(named, judges))}; "
        f"the first of these, {judges[0]}, gives the headline and chooses the best checkpoint."
    )
    if rows := node.get("max_rows"):
        text += f" Of every split only the first {rows:,} rows count (task.max_rows)."
    return text


def judged(node: Mapping[str, Any]) -> str:
    """The headline, and what else is measured."""
    metrics = list(map(str, node.get("metrics") or ()))
    headline = node.get("headline") or (metrics or ["the usual one for its kind of answer"])[0]
    others = [name for name in metrics if name != headline]
    more = f"; also measured: {listed(others)}" if others else ""
    return f"The headline is {headline} (task.headline){more}."


def listed(values: Iterable[object]) -> str:
    """`a, b and c`; of many the first ten."""
    names = list(map(str, values))
    if len(names) > 12:
        names = [*names[:10], f"{len(names) - 10} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def number(value: object) -> str:
    """A number for a reader; anything else as it is."""
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _function(target: str) -> ast.FunctionDef | None:
    """The function at an import path, as it is written."""
    module, _, name = target.rpartition(".")
    try:
        found = importlib.util.find_spec(module) if module else None
        tree = ast.parse(Path(str(found.origin)).read_text(encoding="utf-8")) if found else None
    except (ImportError, OSError, ValueError, SyntaxError):
        return None
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    return None
