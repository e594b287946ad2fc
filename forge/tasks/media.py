"""Kinds of task over pictures and recordings."""

from __future__ import annotations

from forge.data import folders, sources
from forge.data.sources import UNLABELLED
from forge.inputs.audio import Audio
from forge.inputs.augment import Augment
from forge.inputs.image import Image
from forge.inputs.input import Input
from forge.tasks.answer import Answer
from forge.tasks.kinds import Data
from forge.tasks.label import Label
from forge.tasks.task import Task


def image_label(
    *,
    dataset: Data,
    image: str = "image",
    label: str = "label",
    labels: list[str | int] | None = None,
    metrics: list[str] | None = None,
    headline: str | None = None,
    train: str = "train",
    evaluation: list[str] | None = None,
    max_rows: int | None = None,
    augment: Augment | None = None,
    unlabelled_split: str | None = None,
) -> Task:
    """A picture in (bytes, a path, a `datasets.Image`), one of several labels out."""
    return _of_files(
        Image([image], augment),
        Label(label, labels),
        "ImageClassification",
        "image-classification",
        dataset=dataset,
        metrics=metrics,
        headline=headline,
        train=train,
        evaluation=evaluation,
        max_rows=max_rows,
        unlabelled_split=unlabelled_split,
    )


def image_files(
    *,
    files: dict[str, str | None],
    image: str = "image",
    label: str = "label",
    labels: list[str | int] | None = None,
    metrics: list[str] | None = None,
    headline: str | None = None,
    evaluation: list[str] | None = None,
    max_rows: int | None = None,
    augment: Augment | None = None,
) -> Task:
    """A picture of your own in, one of several labels out: folders of classes, or tables of paths.

    Without `labels` they are those of train, in sorted order; others' splits may lack some.
    """
    source = sources.of_files(files)
    return image_label(
        dataset=lambda: folders.read(source, image, label, UNLABELLED, Image.suffixes),
        image=image,
        label=label,
        labels=labels,
        metrics=metrics,
        headline=headline,
        evaluation=sources.judged(source, evaluation),
        max_rows=max_rows,
        augment=augment,
        unlabelled_split=UNLABELLED if UNLABELLED in source else None,
    )


def audio_label(
    *,
    dataset: Data,
    seconds: float,
    audio: str = "audio",
    label: str = "label",
    labels: list[str | int] | None = None,
    group: str | None = None,
    metrics: list[str] | None = None,
    headline: str | None = None,
    train: str = "train",
    evaluation: list[str] | None = None,
    max_rows: int | None = None,
    unlabelled_split: str | None = None,
) -> Task:
    """A recording in (bytes, a path, a `datasets.Audio`), one of several labels out.

    Models read its first `seconds`. No value of the column `group`, such as a speaker, may be both
    in what is learnt from and in a split that judges.
    """
    judging = ["validation"] if evaluation is None else evaluation
    sides = [[train, unlabelled_split or train], *([split] for split in judging if split != train)]
    return _of_files(
        Audio(seconds, [audio]),
        Label(label, labels),
        "AudioClassification",
        "audio-classification",
        dataset=lambda: folders.apart(dataset(), group, sides),
        metrics=metrics,
        headline=headline,
        train=train,
        evaluation=judging,
        max_rows=max_rows,
        unlabelled_split=unlabelled_split,
    )


def audio_files(
    *,
    files: dict[str, str | None],
    seconds: float,
    audio: str = "audio",
    label: str = "label",
    labels: list[str | int] | None = None,
    group: str | None = None,
    metrics: list[str] | None = None,
    headline: str | None = None,
    evaluation: list[str] | None = None,
    max_rows: int | None = None,
) -> Task:
    """A recording of your own in, one of several labels out; `group` is a column of tables."""
    source = sources.of_files(files)
    return audio_label(
        dataset=lambda: folders.read(source, audio, label, UNLABELLED, Audio.suffixes, group),
        seconds=seconds,
        audio=audio,
        label=label,
        labels=labels,
        group=group,
        metrics=metrics,
        headline=headline,
        evaluation=sources.judged(source, evaluation),
        max_rows=max_rows,
        unlabelled_split=UNLABELLED if UNLABELLED in source else None,
    )


def _of_files(
    source: Input,
    answer: Answer,
    auto: str,
    pipeline: str,
    *,
    dataset: Data,
    metrics: list[str] | None,
    headline: str | None,
    train: str,
    evaluation: list[str] | None,
    max_rows: int | None,
    unlabelled_split: str | None,
) -> Task:
    chosen = [headline] if headline else []
    metrics = metrics or list(dict.fromkeys([*chosen, "accuracy", "f1_macro"]))
    return Task(
        input=source,
        answer=answer,
        auto=auto,
        pipeline=pipeline,
        dataset=dataset,
        metrics=metrics,
        headline=headline or metrics[0],
        train=train,
        evaluation=["validation"] if evaluation is None else evaluation,
        max_rows=max_rows,
        unlabelled_split=unlabelled_split,
    )
