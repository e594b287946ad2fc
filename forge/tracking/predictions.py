"""The first predictions of a run, as a tracking service shows them."""

from __future__ import annotations

from pathlib import Path

from forge.training.preparation import Prepared

TEXT = 500  # characters of a text


def predicted(run_dir: Path, prepared: Prepared, split: str, limit: int) -> list[dict[str, object]]:
    """The first predictions of a split, with names for labels and, of a classifier, how sure.

    Of a language model also what it was asked and what it wrote.
    """
    import pyarrow.parquet as pq
    from scipy.special import softmax

    labels = prepared.task.head.labels or ()
    names = labels if len(labels) > 1 else None  # a number is its own name
    rows = prepared.rows[split]
    columns = prepared.task.input.shown(rows)
    place = {row: i for i, row in enumerate(rows["id"])}
    predictions = []
    table = pq.read_table(run_dir / "predictions" / f"{split}.parquet").slice(0, limit)
    for row in table.to_pylist():
        shown: dict[str, object] = {"id": row["id"]}
        shown |= {name: str(column[place[row["id"]]])[:TEXT] for name, column in columns.items()}
        shown |= {name: row[name][:TEXT] for name in ("prompt", "completion") if name in row}
        for key in ("label", "prediction"):
            named = names and isinstance(row[key], int)
            shown[key] = names[row[key]] if names and named else _listed(row[key])
        if "probability" in row:
            shown["probability"] = row["probability"]
        elif names and isinstance(row["prediction"], int):
            shown["probability"] = float(softmax(row["logits"])[row["prediction"]])
        predictions.append(shown)
    return predictions


def _listed(value: object) -> object:
    """A list (of tags, of right answers) as a text."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value
