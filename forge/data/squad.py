"""SQuAD's own files: one JSON document of articles, their paragraphs, and the questions on each."""

from __future__ import annotations

from typing import Any


def rows(document: Any) -> list[dict[str, Any]] | None:
    """A row for each question: context, question, id, answers (of SQuAD 2 none for the impossible);
    None for any other document. Fields that a paragraph or a question has beside these stay."""
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        return None
    try:
        paragraphs = [part for article in document["data"] for part in article["paragraphs"]]
        return [
            {k: v for k, v in paragraph.items() if k != "qas"}
            | {k: v for k, v in question.items() if k != "answers"}
            | {"answers": _columns(question.get("answers") or [])}
            for paragraph in paragraphs
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError):
        return None


def _columns(answers: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [one.get(name) for one in answers] for name in ("text", "answer_start")}
