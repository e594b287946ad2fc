"""A tag for each word: how tags are read, judged, learnt, taught and rewarded."""

import json

import numpy as np
import pytest
import torch

from forge.commands.export import export
from forge.commands.predict import predict, prediction_table
from forge.data.toy_tags import tags
from forge.errors import Preempted, UserError
from forge.reinforcement import sequences
from forge.reinforcement.grpo import Rollout, Settings, objective
from forge.results.comparison import side_by_side
from forge.results.run_report import report
from forge.results.statistics import difference, read_answers
from forge.tasks.objective import objective as objective_of
from forge.tasks.tags import Tags, text_tags
from tests.support.runs import results, weights
from tests.support.stopping import RUN, assert_same

TOY = ("task=toy_tags", "task.dataset.train=320", "task.dataset.validation=60", "model=tiny",
       "model.config.num_hidden_layers=1", "model.config.hidden_size=16",
       "model.config.intermediate_size=16", "precision=fp32")  # fmt: skip
FAST = ("trainer.learning_rate=3e-3", "trainer.num_train_epochs=1", "mode.gate=off")
METRICS = {"metrics": ["entity_f1", "word_accuracy"], "headline": "entity_f1"}


def read(rows, labels=None, words=None):
    answer = Tags("tags", labels)
    words = words or [["w"] * len(row or ()) for row in rows]
    return answer, answer.rows({"tags": rows}, {"words": words}, "train")["labels"]


def test_tags_are_read_by_name_by_id_and_from_texts():
    names = ["B-X", "I-X", "O"]
    assert read([["B-X", "I-X"], ["O"], None])[1] == [[0, 1], [2], None]
    assert read([[0, 1], [2]], names)[1] == [[0, 1], [2]]
    assert read(["B-X I-X", "['O']"], names, [["a", "b"], ["c"]])[1] == [[0, 1], [2]]
    assert read([[], ["O", "B-X"]], names)[1] == [None, [2, 0]]


def test_an_entity_that_begins_with_i_begins_with_b():
    answer, rows = read([["I-X", "I-X", "O", "I-Y", "B-Y"]], ["O", "B-X", "I-X", "B-Y", "I-Y"])
    assert rows == [[1, 2, 0, 3, 3]]
    assert answer.notes[-1] == "2 tags I-… that begin an entity are read as B-…"
    answer, _ = read([["B-X", "E-X", "S-X", "O", "I-X"]])  # ends are marked: as it stands
    assert not any("I-" in note for note in answer.notes)


def test_as_many_tags_as_words():
    with pytest.raises(UserError, match="row 1 has 2 tags and 3 words"):
        read([["O"], ["O", "O"]], words=[["a"], ["a", "b", "c"]])
    with pytest.raises(UserError, match="row 0 has a word without a tag"):
        read([["O", None, "B-X"]])


def test_metrics_are_of_entities_where_there_are_some():
    rows = {"train": {"tokens": [["a", "b"]], "tags": [["N", "V"]]}}

    def task(**settings):
        from forge.data import sources

        made = {name: sources.dataset(each) for name, each in rows.items()}
        return text_tags(dataset=lambda: made, evaluation=["train"], **settings)

    with pytest.raises(UserError, match="word_accuracy"):
        task(**METRICS).load()
    accuracy = task(metrics=["word_accuracy"], headline="word_accuracy")
    split = accuracy.load()["train"]
    logits = np.array([[2.0, 1.0], [2.0, 1.0]])
    assert accuracy.judge(logits, accuracy.answer.right(split)) == {"word_accuracy": 0.5}
    with pytest.raises(UserError, match="f1_macro"):
        task(metrics=["f1_macro"], headline="f1_macro")


def test_a_mean_over_words_whatever_rows_they_are_in():
    answer = Tags("tags", ["O", "B-X", "I-X"])
    logits = torch.randn(2, 3, 3)
    labels = torch.tensor([[0, 1, 2], [1, -100, -100]])
    batch = {"labels": labels}
    decisions = answer.decisions(logits, batch)
    loss = answer.loss(decisions) / answer.items(batch)
    packed = torch.cat([logits[0], logits[1, :1]])
    wanted = torch.nn.functional.cross_entropy(packed, torch.tensor([0, 1, 2, 1]))
    assert torch.allclose(loss, wanted)
    assert torch.equal(decisions.packed().logits, packed)


def test_rewards_of_a_row_are_of_its_entities_and_words():
    rows = {
        "completions": [["B-X", "O"], ["O", "O"], ["O"]],
        "label": [["B-X", "B-Y"], ["B-X", "O"], ["O"]],
    }
    assert sequences.entity_f1(**rows) == [pytest.approx(2 / 3), 0, 1]
    assert sequences.word_accuracy(**rows) == [0.5, 0.5, 1]


def test_padding_neither_wins_nor_loses():
    settings = Settings(num_generations=2, temperature=1.0, beta=0.1, epsilon=0.2,
                        epsilon_high=None, num_iterations=1, scale_rewards="none",
                        entropy_coef=0.1)  # fmt: skip
    policy, old = torch.randn(2, 3, 4).log_softmax(-1), torch.randn(2, 3, 4).log_softmax(-1)
    drawn = torch.randint(4, (2, 3, 2))
    advantages = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
    asked = torch.tensor([[True, True, True], [True, False, False]])
    both = objective(policy, Rollout(0, drawn, old, advantages, asked), old, settings)
    spoilt = policy.clone()
    spoilt[1, 1:] = torch.randn(2, 4).log_softmax(-1)
    other = objective(spoilt, Rollout(0, drawn, old, advantages, asked), old, settings)
    assert torch.equal(both[0], other[0])
    assert all(torch.equal(fact, other[1][name]) for name, fact in both[1].items())


def test_a_name_alone_tells_no_type_in_the_toy():
    rows = tags(train=2000, validation=20)["train"]
    kinds = {}
    for words, given in zip(rows["tokens"], rows["tags"], strict=True):
        for word, tag in zip(words, given, strict=True):
            kinds.setdefault(word, set()).add(tag[2:] or "O")
    assert kinds["Ada"] == {"PER", "LOC", "ORG", "O"}
    assert tags(train=2000, validation=20)["train"]["tokens"] == rows["tokens"]


def test_distilled_at_alpha_0_is_fine_tuned_and_stored_answers_are_live_ones(launch, tmp_path):
    teacher = launch(*TOY, *FAST[:2], at="teacher")
    taught = (*TOY, *FAST, "mode=kd", f"teacher.path={teacher}")
    zero = weights(launch(*taught, "mode.alpha=0", at="zero"))
    plain = weights(teacher)
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    stored, live = (weights(launch(*taught, f"mode.cache={c}", at=c)) for c in ("true", "false"))
    assert all(torch.allclose(stored[name], live[name], atol=1e-4) for name in stored)
    assert side_by_side([teacher, tmp_path / "true"])["pairs"][0]["n"] == 60
    assert report(teacher)
    assert "[" in (teacher / "report.md").read_text()


def test_a_teacher_with_other_pieces_and_shorter_windows_teaches(launch, tmp_path):
    other = ("model.config.vocab_size=120", "task.max_length=16")
    teacher = launch(*TOY, *FAST[:2], *other, at="teacher")
    taught = (*TOY, *FAST, "mode=kd", f"teacher.path={teacher}")
    stored, live = (weights(launch(*taught, f"mode.cache={c}", at=c)) for c in ("true", "false"))
    assert all(torch.allclose(stored[name], live[name], atol=1e-4) for name in stored)
    assert 0 <= results(teacher)["splits"]["validation"]["entity_f1"] <= 1


def test_a_paired_difference_is_that_of_rows_drawn_again(launch, tmp_path):
    a = launch(*TOY, *FAST[:2], at="a")
    b = launch(*TOY, *FAST[:2], "trainer.learning_rate=1e-2", at="b")
    pair = [read_answers(run / "predictions" / "validation.parquet", "entity_f1") for run in (a, b)]
    apart = difference([pair[0]], [pair[1]], "entity_f1")
    scores = [results(run)["splits"]["validation"]["entity_f1"] for run in (a, b)]
    assert apart.value == pytest.approx(scores[1] - scores[0])
    assert apart.low <= apart.value <= apart.high


def test_predicted_words_are_shown_with_their_entities(launch, tmp_path):
    run = launch(*TOY, *FAST[:2])
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"tokens": ["it", "rained", "in", "Ada", "Falk"]}) + "\n")
    for result in (predict([run], [["it rained in Ada Falk"]]), predict([run], file=file)):
        (answer,) = result["rows"][0]["predictions"]
        assert answer["words"] == ["it", "rained", "in", "Ada", "Falk"]
        assert len(answer["labels"]) == 5
        assert prediction_table(result)[1][0][-1] == answer["shown"]


@pytest.mark.parametrize("reward", ["entity_f1", "word_accuracy", "exact"])
def test_reinforced_by_rewards_of_tags(launch, reward):
    run_dir = launch(*TOY, *FAST, "mode=rl", f"mode/reward={reward}", "trainer.max_steps=2")
    assert 0 <= results(run_dir)["start"]["reward"]["reward"] <= 1


def test_rewards_of_one_label_are_refused(launch):
    with pytest.raises(UserError, match="entity_f1"):
        launch(*TOY, *FAST, "mode=rl", "mode/reward=metric")


def test_an_adapter_an_export_and_a_card(launch):
    base = launch(*TOY, *FAST[:2], at="base")
    small = launch(*TOY[:3], f"model.path={base}", "model.lora.r=2", *FAST[:2], at="lora")
    assert all("lora" in name or "classifier" in name for name in weights(small))
    assert export(base)["difference"] < 1e-4
    card = (base / "model" / "README.md").read_text()
    assert 'pipeline("token-classification"' in card


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("mode=rl", "mode.gate=off", "mode.num_iterations=2",
                                           "mode/reward=entity_f1")])  # fmt: skip
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(launch, stop_at, settings):
    run = (*TOY, *settings, *RUN)
    whole = launch(*run, at="whole")
    stop_at(13)
    with pytest.raises(Preempted):
        launch(*run, at="stopped")
    assert_same(whole, launch(*run, at="stopped"))


def test_class_weights_are_of_tags_and_counted_by_words():
    answer = Tags("tags", ["O", "B-X"])
    labels = [[0, 0, 0], [1]]
    weighed = objective_of(answer, labels, 0.0, "balanced", 0.0)
    assert weighed.weights.tolist() == [pytest.approx(2 / 3), 2]
    batch = {"labels": torch.tensor([[0, 0, 0], [1, -100, -100]])}
    logits = torch.randn(2, 3, 2)
    loss = answer.loss(answer.decisions(logits, batch), weighed)
    loss = loss / weighed.weigh(batch["labels"]).sum()
    packed = answer.decisions(logits, batch).packed()
    wanted = torch.nn.functional.cross_entropy(packed.logits, packed.labels, weighed.weights)
    assert torch.allclose(loss, wanted)
