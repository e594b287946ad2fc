"""Rows without answers, of every kind of task: at mode.alpha=1 a student learns from them what it
would learn if they had some."""

from __future__ import annotations

import pytest

from forge.data.toy_choices import choices
from forge.data.toy_tags import tags
from forge.data.toy_topics import topics
from tests.support.runs import results, weights, write_rows

SIZE = ("model.config.num_hidden_layers=1", "model.config.hidden_size=16",
        "model.config.intermediate_size=16", "precision=fp32", "trainer.max_steps=4")  # fmt: skip
KINDS = {
    "labels": (topics, "labels", ("task.text=text",)),
    "tokens": (tags, "tags", ()),
    "choice": (choices, "label", ("task.context=premise",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_answers_teach_as_those_with_them_at_alpha_one(kind, launch, tmp_path):
    toy, answer, words = KINDS[kind]
    rows = toy(train=64, validation=16)
    train, held_out = rows["train"].to_list(), rows["validation"].to_list()
    without = [{name: v for name, v in row.items() if name != answer} for row in train[32:]]
    parts = {"all": train, "half": train[:32], "without": without, "validation": held_out}
    files = {name: write_rows(tmp_path / f"{name}.jsonl", part) for name, part in parts.items()}
    task = (f"task=files_{kind}", *words, f"task.files.validation={files['validation']}")
    every, half, unlabelled = (
        f"task.files.{split}={files[name]}"
        for split, name in (("train", "all"), ("train", "half"), ("unlabelled", "without"))
    )
    teacher = launch(*task, every, *SIZE, "model=tiny", at="teacher")
    kd = (*SIZE[3:], "mode=kd", "mode.gate=off", "mode.alpha=1", f"teacher.path={teacher}",
          f"model.path={teacher}", "trainer.learning_rate=1e-2")  # fmt: skip
    whole = launch(*task, every, *kd, at="whole")
    mixed = launch(*task, half, unlabelled, *kd, at="mixed")
    assert results(mixed)["headline"] == results(whole)["headline"]
    assert weights(mixed).keys() == weights(whole).keys()
    moved = False
    for name, ours in weights(mixed).items():
        assert ours.equal(weights(whole)[name]), name
        moved |= not ours.equal(weights(teacher)[name])
    assert moved
