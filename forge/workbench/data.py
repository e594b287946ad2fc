"""Data: rows as the model sees them. Tokens come from the run's tokenizer.json, which is data."""

from __future__ import annotations

from typing import Any

from forge.errors import UserError
from forge.records.files import Json, read_json
from forge.results import answers
from forge.results.runs import Run
from forge.workbench.asked import Asked

PAGE, TOKENS = 20, 600


def view(asked: Asked) -> Json:
    """Parameters: run, split, page."""
    ids = asked.chosen[:1]
    if not ids:
        return {"title": "Data", "run": None}
    run = asked.library.run(ids[0])
    facts = run.metadata.get("data", {})
    names = answers.splits(run) or list(facts)
    split = asked.text("split", names[0] if names else "")
    if names and split not in names:
        raise UserError(f"split {split}: this run has {', '.join(names)}")
    table = answers.shown(run, split)
    count = table.num_rows if table is not None else 0
    pages = max(1, -(-count // PAGE))
    page = min(max(1, asked.number("page", 1)), pages)
    some = table.slice((page - 1) * PAGE, PAGE).to_pylist() if table is not None else []
    limit, tokenizer = int(run.metadata.get("max_length") or 0), _tokenizer(run)
    pictured = answers.pictured(run, split)
    rows = []
    for row in some:
        id, texts = row.pop("id"), {name: str(text) for name, text in row.items()}
        given = [] if pictured else list(texts.values())
        rows.append({"id": id, "texts": texts, "tokens": _tokens(tokenizer, given, limit)})
    processor = read_json(run.path / "model" / "preprocessor_config.json")
    return {
        "title": "Data",
        "chosen": ids,
        "run": run,
        "splits": names,
        "split": split,
        "facts": [
            [name, *(_cell(f.get(k)) for k in ("n", "mean_length", "truncated", "fingerprint"))]
            for name, f in facts.items()
        ],
        "notes": run.metadata.get("notes", []),
        "limit": limit,
        "pictured": pictured,
        "processor": [
            (k, str(v))
            for k, v in processor.items()
            if k.startswith(("do_", "size", "image_", "crop", "rescale"))
        ],
        "rows": rows,
        "page": page,
        "pages": pages,
        "count": count,
    }


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _tokenizer(run: Run) -> Any:
    """The run's tokenizer, without transformers; None where it has no such file."""
    file = run.path / "model" / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_file(str(file))
    except Exception as error:  # whatever a damaged file makes it raise
        raise UserError(f"{file.name}: {error}") from error
    made.no_truncation()
    made.no_padding()
    return made


def _tokens(tokenizer: Any, texts: list[str], limit: int) -> list[Json]:
    """A row's tokens; those past the limit are what the model is not given."""
    if tokenizer is None or not texts or len(texts) > 2:
        return []
    found = tokenizer.encode(*texts)
    marks = zip(found.tokens, found.ids, found.special_tokens_mask, found.type_ids, strict=True)
    return [
        {"text": token, "id": id, "kind": "special" if special else "", "part": part,
         "cut": bool(limit) and i >= limit}
        for i, (token, id, special, part) in enumerate(list(marks)[:TOKENS])
    ]  # fmt: skip
