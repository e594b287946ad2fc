"""A split's predictions as the pages need them, whatever was asked: labels, numbers or texts.

Columns are read as arrays, never as Python lists, of up to `MOST` rows; what is shown of a row is
read for the rows of a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forge.errors import UserError
from forge.results.predictions import Calibration, calibration, labels_of, name_of
from forge.results.runs import Run
from forge.tasks import overlap

MOST = 500_000  # rows of a split
PICTURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif",
            b"RIFF": "image/webp"}  # fmt: skip
Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass
class Answers:
    """Labels and answers of a split [n]; as texts for a reader by `named`."""

    kind: str  # label, labels (any number of them), number, text
    total: int  # rows of the file, which may be more than are read
    id: Array
    label: Array
    answer: Array
    right: Array  # bool; of numbers always false
    names: list[str] = field(default_factory=list)  # of labels
    confidence: Array | None = None  # the probability of the answer
    loss: Array | None = None  # of the label, in nats; of numbers how far the answer is off
    place: Path | None = None  # of the predictions

    def named(self, value: Any) -> str:
        """A label or an answer in words."""
        if self.kind == "label":
            return name_of(self.names, int(value))
        if self.kind == "labels":
            return ", ".join(name_of(self.names, int(i)) for i in np.flatnonzero(value)) or "none"
        return f"{value:.4g}" if self.kind == "number" else str(value)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the labels that are given or answered, for a matrix; none of other kinds."""
        if self.kind != "label":
            return []
        count = int(max(self.label.max(initial=0), self.answer.max(initial=0))) + 1
        return [name_of(self.names, i) for i in range(max(count, len(self.names)))]

    def calibration(self) -> Calibration | None:
        if self.confidence is None or not np.isfinite(self.confidence).any():
            return None
        usable = np.isfinite(self.confidence)
        return calibration(self.confidence[usable], self.right[usable])


@dataclass
class Pair:
    """A run's answers beside others, on the rows that both have; `other` None: the labels."""

    run: Run
    split: str
    one: Answers
    other: Answers | None
    names: tuple[str, str]
    at: NDArray[np.int64]  # places of the rows in `one`
    beside: NDArray[np.int64]  # in `other`

    @property
    def id(self) -> NDArray[np.int64]:
        return np.asarray(self.one.id[self.at])

    @property
    def right(self) -> tuple[Mask, Mask | None]:
        """Who is right, on each row."""
        other = self.other
        return self.one.right[self.at], None if other is None else other.right[self.beside]

    def same(self) -> Mask:
        """Where both answer alike; beside labels, where the answer is right."""
        if self.other is None:
            return self.right[0]
        a, b = self.one.answer[self.at], self.other.answer[self.beside]
        return np.asarray((a == b).all(-1) if a.ndim > 1 else a == b)

    def outcomes(self) -> dict[str, Mask]:
        """Which rows are of each outcome."""
        right, other = self.right
        every = np.ones(len(self.at), bool)
        if self.one.kind == "number":
            return {"all": every} | ({} if other is None else {"differ": ~self.same()})
        if other is None:
            return {"all": every, "wrong": ~right, "right": right}
        return {
            "all": every,
            "differ": ~self.same(),
            "only A right": right & ~other,
            "only B right": other & ~right,
            "both wrong": ~right & ~other,
            "both right": right & other,
        }

    def ordered(self, sort: str, chosen: Mask) -> NDArray[np.int64]:
        """Places of the chosen rows by `sort`: id, or the largest confidence, loss or difference
        between both first."""
        places, one, other = np.flatnonzero(chosen), self.one, self.other
        value = None
        if sort == "confidence" and one.confidence is not None:
            value = one.confidence[self.at]
        elif sort == "loss" and one.loss is not None:
            value = one.loss[self.at]
        elif sort == "difference" and one.loss is not None:
            theirs = 0 if other is None or other.loss is None else other.loss[self.beside]
            value = np.abs(one.loss[self.at] - theirs)
        by = -np.nan_to_num(value[places], nan=-np.inf) if value is not None else self.id[places]
        return np.asarray(places[np.argsort(by, kind="stable")])


def splits(run: Run) -> list[str]:
    """The splits that a run has predictions of, the judged ones first."""
    files = {f.stem for f in (run.path / "predictions").glob("*.parquet")}
    judged = [split for split in run.results.get("splits", {}) if split in files]
    own = sorted(files - {*judged} - {f"teacher_{split}" for split in files})
    return [*judged, *own]


def read(run: Run, split: str, teacher: bool = False) -> Answers:
    """A split's predictions; `split` is one of `splits`. Raises `UserError` for none."""
    place = run.path / "predictions" / f"{'teacher_' * teacher}{split}.parquet"
    if split not in splits(run) or not place.is_file():
        whose = "teacher's " * teacher
        raise UserError(f"{run.path.name}: no {whose}predictions of {split or 'a split'} here")
    file = pq.ParquetFile(place, memory_map=True)
    asked = ("id", "label", "prediction", "logits", "nll", "tokens", "probability")
    names = [name for name in asked if name in file.schema_arrow.names]
    if {"id", "label", "prediction"} - {*names}:
        raise UserError(f"{place.name}: it has no columns id, label and prediction")
    return _answers(_first(file, names), file.metadata.num_rows, labels_of(run), place)


def _first(file: pq.ParquetFile, names: Sequence[str]) -> pa.Table:
    """Up to `MOST` rows."""
    batches, rows = [], 0
    for batch in file.iter_batches(batch_size=65_536, columns=list(names)):
        batches.append(batch.slice(0, MOST - rows))
        rows += len(batches[-1])
        if rows >= MOST:
            break
    return pa.Table.from_batches(batches, batches[0].schema if batches else pa.schema([]))


def _answers(table: pa.Table, total: int, names: list[str], place: Path) -> Answers:
    if not table.num_rows:
        raise UserError(f"{place.name}: it has no rows")
    logits = _matrix(table["logits"]) if "logits" in table.column_names else None
    label, answer = table["label"], table["prediction"]
    id = table["id"].to_numpy()
    right: Mask | None = None
    if pa.types.is_list(label.type) and pa.types.is_string(answer.type):  # parts of a text
        rows = label.to_pylist()  # of right ones
        pairs = zip(rows, answer.to_pylist(), strict=True)
        right = np.array([overlap.exact(own, given) > 0 for own, given in pairs], bool)
        label = pa.chunked_array([pa.array(map(" | ".join, rows), pa.string())])
    elif pa.types.is_list(label.type) and pa.types.is_string(label.type.value_type):
        label, answer = (_joined(column) for column in (label, answer))  # tags of words
    if pa.types.is_list(label.type) or pa.types.is_large_list(label.type):
        truth, given = _matrix(label), _matrix(answer)
        if truth is None or given is None:
            raise UserError(f"{place.name}: rows of different lengths")
        made = Answers("labels", total, id, truth, given, (truth == given).all(-1), names)
        if logits is not None:
            sure = 1 / (1 + np.exp(-np.where(given > 0, logits, -logits)))
            made.confidence = sure.prod(-1)
            margin = np.where(truth > 0, logits, -logits)
            made.loss = np.logaddexp(0, -margin).sum(-1)
    elif pa.types.is_string(label.type) or pa.types.is_large_string(label.type):
        truth, given = (c.to_numpy(zero_copy_only=False) for c in (label, answer))
        made = Answers("text", total, id, truth, given, truth == given if right is None else right)
        if "probability" in table.column_names:
            made.confidence = table["probability"].to_numpy()
        if {"nll", "tokens"} <= {*table.column_names}:
            nll, tokens = (table[name].to_numpy() for name in ("nll", "tokens"))
            made.loss = nll / np.maximum(tokens, 1)
    elif pa.types.is_floating(answer.type) or (logits is not None and logits.shape[1] == 1):
        truth, given = (c.to_numpy().astype(float) for c in (label, answer))
        made = Answers("number", total, id, truth, given, np.zeros(len(id), bool))
        made.loss = np.abs(truth - given)
    else:
        truth, given = label.to_numpy().astype(int), answer.to_numpy().astype(int)
        made = Answers("label", total, id, truth, given, truth == given, names)
        if logits is not None:
            shares = logits - logits.max(-1, keepdims=True)
            shares -= np.log(np.exp(shares).sum(-1, keepdims=True))
            row = np.arange(len(id))
            made.confidence = np.exp(shares[row, given])
            made.loss = -shares[row, truth.clip(0, shares.shape[1] - 1)]
    made.place = place
    return made


def _joined(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists of names as texts."""
    return pa.chunked_array([pc.binary_join(chunk, " ") for chunk in column.chunks], pa.string())


def _matrix(column: pa.ChunkedArray) -> Array | None:
    """A column of lists of one length as [rows, length]; None for any other."""
    values = column.combine_chunks()
    values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
    flat = values.flatten().to_numpy(zero_copy_only=False)
    if not len(values) or len(flat) % len(values):
        return None
    width = len(flat) // len(values)
    lengths = pc.list_value_length(values)
    return flat.reshape(-1, width) if pc.all(pc.equal(lengths, width)).as_py() else None


def shown(run: Run, split: str, columns: Sequence[str] | None = None) -> pa.Table | None:
    """What a reader is shown of a split's rows, by id; None for a run that kept nothing."""
    place = run.path / "rows" / f"{split}.parquet"
    own = run.path / "predictions" / f"{split}.parquet"
    for file, wanted in ((place, None), (own, ("prompt", "completion"))):
        if file.is_file():
            names = pq.read_schema(file).names
            asked = [n for n in names if n not in ("id", "picture") and n in (wanted or names)]
            asked = asked if columns is None else [n for n in columns if n in names]
            if asked and "id" in names:
                return _first(pq.ParquetFile(file, memory_map=True), ["id", *asked])
    return None


def pictured(run: Run, split: str) -> bool:
    """Whether a split's rows have pictures."""
    place = run.path / "rows" / f"{split}.parquet"
    return place.is_file() and "picture" in pq.read_schema(place).names


def picture(run: Run, split: str, id: int) -> tuple[bytes, str] | None:
    """A row's picture and its media type; None where there is none of a known kind."""
    if split not in splits(run) or not pictured(run, split):
        return None
    found = pq.read_table(
        run.path / "rows" / f"{split}.parquet", columns=["picture"], filters=[("id", "=", id)]
    )
    data = found["picture"][0].as_py() if found.num_rows else None
    kinds = (kind for start, kind in PICTURES.items() if data and data.startswith(start))
    kind = next(kinds, None)
    return (data, kind) if data and kind else None
