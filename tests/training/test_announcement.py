"""What is said of the data before training, and of the answers after it."""

import logging

import pytest
from datasets import Dataset

from forge.tasks import kinds
from forge.tasks.labels import Labels
from forge.tasks.number import Number
from forge.training.announcement import seen_in_training
from tests.support.runs import SMALL, TOY, results
from tests.support.texts import TINY


@pytest.fixture
def task(jsonl):
    texts = ["a", "b", "c", "d", "e"]
    names = ["no", "yes", "no", "no", "yes"]
    rows = [{"text": t, "label": n} for t, n in zip(texts, names, strict=True)]
    files = {
        "train": str(jsonl("train.jsonl", rows)),
        "validation": str(jsonl("validation.jsonl", [*rows[1:3], {"text": "f", "label": "no"}])),
        "test": str(jsonl("test.jsonl", [{"text": "g", "label": "yes"}])),
    }
    return kinds.text_files(files=files, text="text")


def test_rows_that_are_in_train_too_are_counted(task):
    assert seen_in_training(task, task.load()) == {"validation": 2}


def test_of_a_prompt_the_completion_does_not_matter(jsonl):
    files = {
        name: str(jsonl(f"{name}.jsonl", [{"prompt": prompt, "completion": name}]))
        for name, prompt in (("train", "a"), ("validation", "a"), ("test", "b"))
    }
    task = kinds.prompt_text(files=files)
    assert seen_in_training(task, task.load()) == {"validation": 1}


def test_labels_are_counted_the_commonest_first(task):
    assert task.answer.summary(task.load()["train"]) == "no 3, yes 2"
    label = kinds.Label("label", [f"a label of a long name, {i}" for i in range(40)])
    many = Dataset.from_dict({"labels": [*range(40), 7, 7, 8]})
    assert label.summary(many) == (
        "a label of a long name, 7 3, a label of a long name, 8 2, 38 labels more"
    )


def test_of_several_labels_and_of_numbers_there_is_as_much_to_say():
    topics = Labels(["topics"], ["tide", "wind"])
    rows = Dataset.from_dict({"labels": [[1, 0], [1, 1], [0, 0]]})
    assert topics.summary(rows) == "tide 2, wind 1, none 1"
    assert (
        topics.described([1, 1]) == "tide, wind"
        and topics.described([0, 0]) == "none of the labels"
    )
    assert Number("x").summary(Dataset.from_dict({"labels": [1, 2.5, 7]})) == "1 to 7, mean 3.5"


KINDS = {  # what gives one answer, and the score of the commonest
    "label": (*TOY, *SMALL),
    "labels": ("task=toy_topics", "task.dataset.train=64", "task.dataset.validation=30", *SMALL),
    "image": ("task=toy_shapes", "task.dataset.train=32", "task.dataset.validation=30",
              "model=tiny_vit", "model.config.hidden_size=16", "precision=fp32"),
    "text": (*TINY, "task.dataset.validation=8"),
    "words": ("task=toy_tags", "task.dataset.train=64", "task.dataset.validation=30", *SMALL),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_says_what_always_giving_one_answer_scores(kind, launch, caplog):
    """And when the model does just that."""
    with caplog.at_level(logging.INFO):
        run = launch(*KINDS[kind], "trainer.num_train_epochs=0")
    found = results(run)
    assert 0 <= found["baseline"]["validation"] < 0.6
    if kind == "label":
        assert found["baseline"]["validation"] == pytest.approx(50 / 150)
    said = [r for r in caplog.records if "one answer" in r.message]
    if kind != "words":  # random weights give words all kinds of tags
        assert [r.levelno for r in said] == [logging.WARNING]


def test_numbers_are_compared_with_their_mean(launch, jsonl, caplog):
    rows = [{"a": "good " * (i % 7), "label": i % 7 / 2} for i in range(40)]
    files = (f"task.files.{s}={jsonl(f'{s}.jsonl', rows)}" for s in ("train", "validation"))
    with caplog.at_level(logging.INFO):
        run = launch("task=files", *files, "task.text=a", *SMALL, "trainer.max_steps=1")
    assert results(run)["baseline"]["validation"] == 0
    assert any("pearson of always giving the mean: 0.0000" in r.message for r in caplog.records)
    assert any("40 of its rows are in train too" in r.message for r in caplog.records)
