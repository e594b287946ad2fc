"""A part of a text: how answers are read, judged, learnt, taught and rewarded."""

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig

from forge.commands.evaluate import evaluate
from forge.commands.export import export
from forge.commands.predict import predict, prediction_table
from forge.data import sources
from forge.data.toy_spans import spans
from forge.errors import Preempted, UserError
from forge.inputs.input import IGNORED, NULLS, SPANS
from forge.inputs.passages import Passages, words
from forge.reinforcement import spans as rewards
from forge.reinforcement.rewards import exact
from forge.results import answers
from forge.results.comparison import side_by_side
from forge.results.run_report import report
from forge.results.runs import read_run
from forge.tasks.decisions import MASKED, Objective
from forge.tasks.span import Span, span
from tests.support.runs import results, snippet, weights, write_rows
from tests.support.stopping import RUN, assert_same

TEXT = "Ada Falk lives in the old town."
TOY = ("task=toy_spans", "task.dataset.train=320", "task.dataset.validation=60", "model=tiny",
       "model.config.num_hidden_layers=1", "model.config.hidden_size=16", "precision=fp32",
       "model.config.intermediate_size=16", "task.max_length=24")  # fmt: skip
FAST = ("trainer.learning_rate=3e-3", "trainer.num_train_epochs=1", "mode.gate=off")


def read(given, contexts=None, **settings):
    passages = Passages(unanswerable=settings.pop("unanswerable", None))
    answer = Span("answers", passages, **settings)
    contexts = contexts or [TEXT] * len(given)
    inputs = passages.rows({"context": contexts, "question": ["?"] * len(given)}, "train")
    columns = {"answers": given, "at": [4] * len(given)}
    return answer, answer.rows(columns, inputs, "train") | inputs


@pytest.mark.parametrize(
    "cell",
    [
        {"text": ["old town", "town"], "answer_start": [22, 26]},
        "{'text': ['old town', 'town'], 'answer_start': [22, 26]}",
        [{"text": "old town", "answer_start": 22}, {"text": "town"}],
        ["old town", "town"],
        "['old town', 'town']",
    ],
)
def test_answers_are_texts_with_or_without_a_place(cell):
    _, rows = read([cell, "Ada Falk", "", None, [], {"text": [], "answer_start": []}])
    assert rows["answers"] == [["old town", "town"], ["Ada Falk"], [], [], [], []]
    assert rows["labels"] == [[6, 7], [1, 2], *[[0, 0]] * 4]


def test_a_place_says_which_of_two_is_meant_and_one_that_is_off_is_mended():
    context = "an art of party art, art"
    for start, word in ((None, 2), (3, 2), (16, 5), (22, 7), (21, 7), (18, 5)):
        cell = {"text": ["art"], "answer_start": [start]}
        assert read([cell], [context])[1]["labels"] == [[word, word]]
    assert read(["town"], [TEXT], start="at")[1]["labels"] == [[7, 7]]


def test_whole_words_are_learnt_and_what_is_not_there_is_not():
    answer, rows = read(["Fal", "Berlin", "ada"])
    assert rows["labels"] == [[2, 2], [IGNORED, IGNORED], [1, 1]]
    assert answer.read_off == {"unanswerable": False}
    with pytest.raises(UserError, match="row 0 holds"):
        read([{"texts": ["a"]}])


def logits_of(rows, start, end, none=None):
    """[2, C] with 9 at a start and an end; of no answer the given score."""
    made = np.zeros((2, 1 + len(words(TEXT))))
    made[0, start], made[1, end] = 9, 9
    made[:, 0] = MASKED if none is None else none / 2
    return made


def answered(answer, rows, *logits):
    right = [answer.right(rows)[0]] * len(logits)
    return answer.compared(None, right, np.concatenate(logits))[1]


def test_answers_at_the_first_and_last_word_are_given():  # K29
    answer, rows = read(["Ada"])
    count = len(words(TEXT))
    given = [logits_of(rows, *pair) for pair in ((1, 1), (count, count), (1, count))]
    assert answered(answer, rows, *given) == ["Ada", ".", TEXT]


def test_an_end_is_never_before_its_start_nor_too_far():
    answer, rows = read(["Ada"], longest=3)
    backwards, far = logits_of(rows, 5, 2), logits_of(rows, 1, 6)
    far[1, 3] = 1
    assert answered(answer, rows, backwards, far)[1] == "Ada Falk lives"
    first, last = answer.best(backwards)[0][0].tolist()
    assert 1 <= first <= last <= first + 2


def test_no_answer_needs_a_score_above_the_best_spans_by_the_threshold():  # K28
    scores = (17, 19, 23)  # the best span has 18
    for threshold, given in ((0, 1), (4, 2), (-2, 0), (6, 3)):
        answer, rows = read(["Ada", ""], threshold=threshold)
        texts = answered(answer, rows, *(logits_of(rows, 1, 2, none) for none in scores))
        assert texts == ["Ada Falk"] * given + [""] * (3 - given)


def outputs_of(answer, starts, ends, spans_, nulls):
    batch = {SPANS: torch.tensor(spans_), NULLS: torch.tensor(nulls)}
    outputs = {"start_logits": torch.tensor(starts), "end_logits": torch.tensor(ends)}
    return answer.of_rows(outputs, batch)


def test_windows_are_one_distribution_and_the_least_score_of_none_counts():  # K28, K30
    answer, _ = read(["Ada", ""])
    starts, ends = [[3.0, 1.0, 2.0], [1.0, 5.0, 0.5]], [[2.0, 0.0, 7.0], [3.5, 4.0, 1.0]]
    both = [[[-1, 1, 4], [-1, 2, 5]]]  # a word of each window
    logits = outputs_of(answer, starts, ends, both, [[0, 3]])
    assert logits.tolist() == [[[1.0, 1.0, 5.0], [3.5, 7.0, 1.0]]]  # of the second: 4.5 < 5
    padded = outputs_of(answer, starts, ends, [both[0], [[-1, 2, -1]] * 2], [[3, -1], [0, -1]])
    assert padded[0, :, 0].tolist() == [1.0, 3.5]
    assert padded[1].tolist() == [[3.0, 2.0, MASKED], [2.0, 7.0, MASKED]]
    answer, _ = read(["Ada"])
    assert (outputs_of(answer, starts, ends, both, [[0, 3]])[:, :, 0] == MASKED).all()


def test_of_several_right_answers_the_best_counts():  # K31
    task = span(
        dataset=lambda: {"train": rows_of(["Ada", ["town", "the old town"]])},
        metrics=["span_f1", "span_em"], headline="span_f1", evaluation=["train"],
    )  # fmt: skip
    split = task.load()["train"]
    logits = np.concatenate([logits_of(split, 1, 2), logits_of(split, 5, 7)])
    judged = task.judge(logits, task.answer.right(split))
    assert judged == {"span_f1": pytest.approx((2 / 3 + 1) / 2), "span_em": 0.5}
    assert task.baseline(split, split) == pytest.approx(0.5)  # always the first word


def rows_of(given):
    lists = [each if isinstance(each, list) else [each] for each in given]
    columns = {"context": [TEXT] * len(given), "question": ["who?"] * len(given)}
    return sources.dataset({**columns, "answers": lists})


def test_the_loss_is_the_mean_of_start_and_end_over_what_is_there():
    answer, rows = read(["Ada Falk", "", "Berlin"])
    logits = torch.randn(3, 2, 9)
    batch = {"labels": torch.tensor(rows["labels"])}
    decisions = answer.decisions(logits, batch)
    loss = answer.loss(decisions) / answer.items(batch)
    wanted = torch.nn.functional.cross_entropy(logits[:2].view(4, 9), torch.tensor([1, 2, 0, 0]))
    assert torch.allclose(loss, wanted)
    logits[:, :, 5:] = MASKED  # of which no share is given to any
    smoothed = answer.loss(answer.decisions(logits, batch), Objective(0.1)) / 4
    wanted = torch.nn.functional.cross_entropy(
        logits[:2, :, :5].reshape(4, 5), torch.tensor([1, 2, 0, 0]), label_smoothing=0.1
    )
    assert torch.allclose(smoothed, wanted)


def test_a_threshold_is_tuned_to_the_best_headline_and_kept():
    answer, rows = read(["Ada Falk", ""], threshold="tuned")
    logits = np.concatenate([logits_of(rows, 1, 2, 20), logits_of(rows, 1, 2, 24)])
    right, config = answer.right(rows), BertConfig()

    def score():
        given = answer.compared(None, right, logits)
        return np.mean([rewards.f1([a], label=[r])[0] for r, a in zip(*given, strict=True)])

    assert score() == 0.5
    assert answer.tune(score, config, logits) and score() == 1
    assert 2 <= config.threshold < 6


def test_drawn_words_are_texts_and_only_none_is_none():
    answer, rows = read(["Ada Falk", ""])
    drawn = [(1, 2), (0, 0), (3, 1), (0, 2), (2, 0), (4, 40)]
    texts = [answer.completion(each, [TEXT]) for each in drawn]
    assert texts == ["Ada Falk", "", "lives", "Falk", "Falk", "in the old town."]
    right = answer.references(rows)
    assert rewards.f1(["Falk", ""], label=right) == [pytest.approx(2 / 3), 1]
    assert rewards.exact(["the Ada Falk", "a word"], label=right) == [1, 0]
    assert exact(["Ada Falk", ""], label=right) == [1, 1]


def test_neither_question_nor_place_tells_the_answer_of_the_toy():
    rows = spans(train=800, validation=20)["train"]
    assert rows.to_list() == spans(train=800, validation=20)["train"].to_list()
    pairs = zip(rows["context"], rows["answers"], strict=True)
    texts = [(c, a["text"], a["answer_start"]) for c, a in pairs]
    assert all(c[s[0] : s[0] + len(t[0])] == t[0] for c, t, s in texts if t)
    assert 0.1 < np.mean([not t for _, t, _ in texts]) < 0.2
    asked = {}
    for (context, text, start), question in zip(texts, rows["question"], strict=True):
        clause = context[: start[0]].count(".") if text else None
        asked.setdefault(question, set()).add(clause)
    assert len(asked) == 3 and all({0, 1, 2, None} <= places for places in asked.values())
    noisy = spans(train=800, validation=20, label_noise=0.5)["train"]["answers"]
    changed = [a != b for a, b in zip(rows["answers"], noisy, strict=True)]
    assert 0.3 < np.mean(changed) < 0.6


def test_squads_own_files_are_rows(tmp_path):
    right = [{"text": "Ada Falk", "answer_start": 0}]
    asked = [{"id": "1", "question": "who?", "answers": right},
             {"id": "2", "question": "why?", "answers": [], "is_impossible": True}]  # fmt: skip
    document = {"version": "2", "data": [{"paragraphs": [{"context": TEXT, "qas": asked}]}]}
    file = tmp_path / "squad.json"
    file.write_text(json.dumps(document, indent=1))
    task = span(files={"train": str(file), "validation": str(file)}, metrics=["span_f1"],
                headline="span_f1")  # fmt: skip
    rows = task.load()["train"]
    assert list(rows["labels"]) == [[1, 2], [0, 0]] and list(rows["question"]) == ["who?", "why?"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, quick):
    from tests.support.runs import launch_in

    return launch_in(tmp_path_factory.mktemp("teacher"))(*TOY, *FAST[:2])


def test_distilled_at_alpha_0_is_fine_tuned_and_stored_answers_are_live_ones(
    teacher, launch, tmp_path
):
    taught = (*TOY, *FAST, "mode=kd", f"teacher.path={teacher}")
    plain, zero = weights(teacher), weights(launch(*taught, "mode.alpha=0", at="zero"))
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    stored, live = (weights(launch(*taught, f"mode.cache={c}", at=c)) for c in ("true", "false"))
    assert all(torch.allclose(stored[name], live[name], atol=1e-4) for name in stored)
    assert side_by_side([teacher, tmp_path / "true"])["pairs"][0]["n"] == 60
    shown = report(tmp_path / "true") and (tmp_path / "true" / "report.md").read_text()
    assert "| an answer |" in shown and "Student and teacher" in shown


def test_a_teacher_with_another_tokenizer_teaches(teacher, launch):
    other = launch(*TOY, *FAST[:2], "model.config.vocab_size=150", "task.max_length=32", at="other")
    for cache in ("true", "false"):
        taught = (*TOY, *FAST, "mode=kd", f"teacher.path={other}", f"mode.cache={cache}")
        run = launch(*taught, "mode/loss=[kl,mse,dkd]", at=cache)
        assert 0 <= results(run)["headline"]["value"] <= 1


def test_a_run_is_used(teacher, launch, tmp_path):
    rows = spans(train=1, validation=6)["validation"].to_list()
    file = write_rows(tmp_path / "asked.jsonl", [{**row, "other": 1} for row in rows])
    typed = predict([teacher], [[rows[0]["context"]], [rows[0]["question"]]])
    read_rows = predict([teacher], file=file)
    answer, again = (each["rows"][0]["predictions"][0] for each in (typed, read_rows))
    assert answer == again | {"probability": pytest.approx(again["probability"])}
    start = answer["start"]
    assert start == -1 or rows[0]["context"][start:].startswith(answer["answer"])
    assert prediction_table(read_rows)[0][-3:] == ["answer", "start", "probability"]
    judged = evaluate(teacher, [f"task.dataset.validation={60}"])
    assert judged["headline"] == results(teacher)["headline"]
    page, scores = answers.read(read_run(teacher), "validation"), results(teacher)["splits"]
    assert page.kind == "text" and page.right.mean() == scores["validation"]["span_em"]
    assert export(teacher)["outputs"] == ["start_logits", "end_logits"]
    card = (teacher / "model" / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    exec(snippet(card, teacher), {"print": lambda text: None})


def test_an_adapter_starts_from_a_head_and_a_tuned_threshold_is_kept(teacher, launch):
    tuned = (*TOY[:3], "task.max_length=24", "precision=fp32", "task.threshold=tuned")
    run = launch(*tuned, f"model.path={teacher}", "model.lora.r=2", *FAST[:2])
    assert any("lora" in name for name in weights(run))
    threshold = json.loads((run / "model" / "config.json").read_text())["threshold"]
    assert isinstance(threshold, float)
    assert evaluate(run, [])["headline"] == results(run)["headline"]


@pytest.mark.parametrize("reward", ["span_f1", "exact"])
def test_reinforced_by_rewards_of_spans(teacher, launch, reward):
    run = launch(*TOY, *FAST, "mode=rl", f"mode/reward={reward}", "trainer.max_steps=2")
    assert 0 <= results(run)["start"]["reward"]["reward"] <= 1
    drawn = json.loads(next(iter(sorted((run / "samples").glob("*.json")))).read_text())
    assert drawn


def test_what_does_not_fit_is_refused(launch):
    with pytest.raises(UserError, match="span_f1"):
        launch(*TOY, *FAST, "mode=rl", "mode/reward=metric")
    with pytest.raises(UserError, match="no mamba finds answers"):
        launch("task=toy_spans", "model=tiny", "model.config.model_type=mamba")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("mode=rl", "mode.gate=off", "mode.num_iterations=2",
                                           "mode/reward=span_f1")])  # fmt: skip
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(launch, stop_at, settings):
    run = (*TOY, *settings, *RUN)
    whole = launch(*run, at="whole")
    stop_at(13)
    with pytest.raises(Preempted):
        launch(*run, at="stopped")
    assert_same(whole, launch(*run, at="stopped"))
