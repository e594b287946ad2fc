"""The kinds of task, each an input and an answer put together; a task's yaml names one of these."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, TypeAlias

from pydantic import Field

from forge.data import sources
from forge.data.sources import UNLABELLED
from forge.errors import UserError, did_you_mean
from forge.inputs.prompt import Prompt
from forge.inputs.text import Text
from forge.tasks.answer import Answer
from forge.tasks.label import Label
from forge.tasks.labels import Labels, Threshold
from forge.tasks.number import Number, fractional
from forge.tasks.numerals import DecimalSign
from forge.tasks.task import Task
from forge.tasks.text import Written

log = logging.getLogger(__name__)
Data: TypeAlias = Callable[[], sources.Source]
Count: TypeAlias = Annotated[int, Field(ge=1)]


def text_label(
    *,
    dataset: Data,
    text: list[str] | str,
    label: str,
    metrics: list[str],
    headline: str,
    labels: list[str | int] | None = None,
    train: str = "train",
    evaluation: list[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
    unlabelled_split: str | None = None,
) -> Task:
    """One or two texts in, one of several labels out; without `labels` they are read off train."""
    return _of_text(
        Label(label, labels),
        text,
        max_length,
        dataset=dataset,
        metrics=metrics,
        headline=headline,
        train=train,
        evaluation=evaluation,
        max_rows=max_rows,
        unlabelled_split=unlabelled_split,
    )


def text_number(
    *,
    dataset: Data,
    text: list[str] | str,
    label: str,
    metrics: list[str],
    headline: str,
    unlabelled: float | None = None,
    standardize: list[float] | None = None,
    decimal: DecimalSign | None = None,
    train: str = "train",
    evaluation: list[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
    unlabelled_split: str | None = None,
) -> Task:
    """One or two texts in, a number out; `unlabelled` is the value that marks a row without one."""
    return _of_text(
        Number(label, unlabelled, standardize, decimal),
        text,
        max_length,
        dataset=dataset,
        metrics=metrics,
        headline=headline,
        train=train,
        evaluation=evaluation,
        max_rows=max_rows,
        unlabelled_split=unlabelled_split,
    )


def text_labels(
    *,
    dataset: Data | None = None,
    files: dict[str, str | None] | None = None,
    text: list[str] | str,
    label: list[str] | str = "labels",
    metrics: list[str],
    headline: str,
    labels: list[str | int] | None = None,
    separator: str | None = None,
    threshold: Threshold = 0.5,
    train: str = "train",
    evaluation: list[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
    unlabelled_split: str | None = None,
) -> Task:
    """One or two texts in, any number of labels out (`Labels`); `files` stand for a dataset."""
    source, judging, unlabelled = sources.chosen(
        dataset, files, evaluation, train, unlabelled_split
    )
    return _of_text(
        Labels([label] if isinstance(label, str) else label, labels, separator, threshold),
        text,
        max_length,
        dataset=source,
        metrics=metrics,
        headline=headline,
        train=train,
        evaluation=judging,
        max_rows=max_rows,
        unlabelled_split=unlabelled,
    )


def _of_text(
    answer: Answer,
    text: list[str] | str,
    max_length: int | None,
    *,
    dataset: Data,
    metrics: list[str],
    headline: str,
    train: str = "train",
    evaluation: list[str] | None,
    max_rows: int | None,
    unlabelled_split: str | None,
) -> Task:
    return Task(
        input=Text(max_length, [text] if isinstance(text, str) else list(text)),
        answer=answer,
        auto="SequenceClassification",
        pipeline="text-classification",
        peft_type="SEQ_CLS",
        dataset=dataset,
        metrics=metrics,
        headline=headline,
        train=train,
        evaluation=["validation"] if evaluation is None else evaluation,
        max_rows=max_rows,
        unlabelled_split=unlabelled_split,
    )


def text_files(
    *,
    files: dict[str, str | None],
    text: list[str] | str,
    label: str = "label",
    labels: list[str | int] | None = None,
    problem_type: str | None = None,
    standardize: list[float] | None = None,
    decimal: DecimalSign | None = None,
    metrics: list[str] | None = None,
    headline: str | None = None,
    evaluation: list[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
) -> Task:
    """One or two texts of your own files in, one of several labels or a number out.

    `problem_type` is classification or regression; when it is not given, a train column with a
    number that is not whole means regression. Metrics default to those usual for the problem.
    """
    source = sources.of_files(files)
    doubtful = problem_type is None
    if problem_type is None:
        values = sources.read(source, "train", [label])[label]
        numbers = labels is None and fractional(values)
        problem_type = "regression" if numbers else "classification"
        log.info("problem type, read off %s: %s", label, problem_type)
    usual = {
        "classification": ["accuracy", "f1_macro"],
        "regression": ["pearson", "spearman", "mse"],
    }
    if problem_type not in usual:
        raise UserError(
            f"task.problem_type={problem_type}: no such kind{did_you_mean(problem_type, usual)}"
        )
    chosen = [headline] if headline else []
    metrics = metrics or list(dict.fromkeys([*chosen, *usual[problem_type]]))
    answer: Answer = Label(label, labels, doubtful)
    if problem_type == "regression":
        answer = Number(label, standardize=standardize, decimal=decimal)
    return _of_text(
        answer,
        text,
        max_length,
        dataset=lambda: source,
        metrics=metrics,
        headline=headline or metrics[0],
        evaluation=sources.judged(source, evaluation),
        max_rows=max_rows,
        unlabelled_split=UNLABELLED if UNLABELLED in source else None,
    )


def prompt_text(
    *,
    dataset: Data | None = None,
    files: dict[str, str | None] | None = None,
    prompt: str = "prompt",
    completion: str = "completion",
    messages: str | None = None,
    template: str = "{prompt}",
    chat: bool = False,
    answer: str = "whole",
    numeric: bool = False,
    metrics: list[str] | None = None,
    headline: str = "exact_match",
    train: str = "train",
    evaluation: list[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
    padding_free: bool | None = None,
    max_new_tokens: Count = 128,
    generate_rows: Count | None = 200,
    pass_at: list[Count] | None = None,
    samples: Count = 8,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
) -> Task:
    """A prompt in, a text out (`Prompt`, `Written`); `files` stand for a dataset, one per split."""
    source, judging, _ = sources.chosen(dataset, files, evaluation, train)
    return Task(
        input=Prompt(
            max_length=max_length,
            prompt=prompt,
            completion=completion,
            messages=messages,
            template=template,
            chat=chat,
            padding_free=padding_free,
        ),
        answer=Written(
            answer, numeric, max_new_tokens, generate_rows, pass_at or [], samples, temperature
        ),
        auto="CausalLM",
        pipeline="text-generation",
        peft_type="CAUSAL_LM",
        dataset=source,
        metrics=["exact_match", "perplexity"] if metrics is None else metrics,
        headline=headline,
        train=train,
        evaluation=judging,
        max_rows=max_rows,
    )
