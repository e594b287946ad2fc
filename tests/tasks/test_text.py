"""Language tasks: what is learnt of a row, what is generated, and when it is right."""

import itertools
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from forge.commands.predict import predict
from forge.config.schema import Model
from forge.errors import UserError
from forge.inputs.input import IGNORED
from forge.models import loading
from forge.results.examine import examine
from forge.results.run_report import report
from forge.results.show import shown
from forge.results.statistics import RESAMPLES, difference, read_answers
from forge.tasks.decoding import Reader, generate, losses
from forge.tasks.metrics import pass_at, wilson
from forge.tasks.text import Written
from tests.support.runs import losses as curve
from tests.support.runs import results, write_rows
from tests.support.texts import (
    CHATML,
    NOTHING_SAVED,
    ROWS,
    SIZES,
    TINY,
    tokenized,
    tokenizer_of,
)


@pytest.fixture
def fitted(task_of, tmp_path):
    """A task, its rows, and a trainer of a random model."""
    task, tokenizer = task_of(max_new_tokens=5), tokenizer_of()
    split = tokenized(task, tokenizer, tmp_path)
    torch.manual_seed(0)
    model = Model(config=SIZES | {"hidden_size": 32})
    built = loading.load(
        model, task.head, loading.load_config(model, task.input.fitting(tokenizer))
    )
    torch.nn.init.normal_(built.lm_head.weight)  # answers that differ from row to row
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    args.per_device_eval_batch_size = 2
    collate = task.collator(tokenizer, None)
    return task.written, split, Trainer(built, args, collate, processing_class=tokenizer)


@pytest.mark.parametrize(
    ("settings", "completion", "answer"),
    [
        ({}, " a word\n", "a word"),
        ({"answer": "number"}, "from 3 to 1,200.50.", "1,200.50"),
        ({"answer": "number", "numeric": True}, "from 3 to 1,200.50.", "1200.5"),
        ({"answer": "number", "numeric": True}, "47-38=-9", "-9"),
        ({"answer": "number", "numeric": True}, "47-38", "38"),
        ({"answer": "number", "numeric": True}, "none at all", ""),
        ({"answer": r"####\s*(\S+)", "numeric": True}, "1+1=2 #### 2\n#### $3", "3"),
        ({"answer": r"####\s*(\S+)", "numeric": True}, "#### -0.0", "0"),
        ({"answer": r"####\s*(\S+)", "numeric": True}, "#### two", ""),
        ({"answer": r"####\s*(\S+)", "numeric": True}, "#### 1e999999999", ""),
        ({"answer": r"####\s*(\S+)", "numeric": True}, "#### 100", "100"),
        ({"answer": r"####\s*(\S+)", "numeric": True}, "2", ""),
        ({"answer": "number"}, "It is 7.", "7"),
        ({"answer": "number"}, "7, I think", "7"),
        ({"answer": "number"}, "no. 3 of 4 is 2.5.", "2.5"),
        ({"answer": "number", "numeric": True}, "So x = \u22125", "-5"),
        ({"answer": "number", "numeric": True}, "about 1e3", "1000"),
        ({"answer": "number", "numeric": True}, "2.5E-1 of it", "0.25"),
        ({"answer": "number", "numeric": True}, "they sold 12 000.", "12000"),
        ({"answer": "number", "numeric": True}, "12\u202f000 and 12\u00a0500", "12500"),
        ({"answer": "number", "numeric": True}, "1, 2, 3", "3"),
        ({"answer": "number", "numeric": True}, "3 1234", "1234"),
        ({"answer": r"is (.*)", "numeric": True}, "it is $1,200.00.", "1200"),
        ({"answer": "number", "numeric": True}, "a loss of -$7", "-7"),
        ({"answer": "number", "numeric": True}, "a loss of $-7.50", "-7.5"),
        ({"answer": "number", "numeric": True}, "Fr. 1'000 in all", "1000"),
        ({"answer": "number", "numeric": True}, "soit 1 234,5 euros", "1234.5"),
        ({"answer": "number", "numeric": True}, "also 1.234,50 \u20ac.", "1234.5"),
        ({"answer": "number", "numeric": True}, "1.234.567 and 1_000", "1000"),
        ({"answer": "number", "numeric": True}, "es sind 1,5.", "1.5"),
        ({"answer": "number", "numeric": True}, "0,125", "0.125"),
        ({"answer": "number", "numeric": True}, "one of 1,2,3", "3"),
        ({"answer": "number", "numeric": True}, "the point (3,5)", "5"),
        ({"answer": "number", "numeric": True}, "\u5171\uff17\u4e2a", "7"),
        ({"answer": r"is (.*)", "numeric": True}, "it is 1.234.567,5 \u20ac", "1234567.5"),
        ({"answer": "number"}, "x = \u22127", "-7"),
        ({}, "\u22127 cafe\u0301", "-7 caf\u00e9"),
        ({"answer": "yes|no"}, "yes, no, yes!", "yes"),
    ],
)
def test_answers_are_extracted_in_the_one_form_that_equal_ones_share(settings, completion, answer):
    written = Written(settings.get("answer", "whole"), settings.get("numeric", False))
    assert written.extract(completion) == answer
    assert written.is_right(answer, answer) == bool(answer)


def test_rows_have_a_prompt_a_completion_and_the_reference_answer(task_of):
    task = task_of(template="Q: {prompt}?", answer="number", max_rows=2)
    rows = task.load()["validation"]
    assert rows["prompt"][0] == "Q: two and two is?"
    assert (list(rows["label"]), list(rows["id"])) == (["4", "6"], [0, 1])
    chat = task_of(chat=True).load()["train"]
    assert chat["prompt"][0] == [{"role": "user", "content": "two and two is"}]
    assert task_of([*ROWS]).evaluation == ["validation"]


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "you"}]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"prompt": "a", "completion": None}], {}, "row 0, column completion: no text"),
        ([{"prompt": " ", "completion": "b"}], {}, "row 0, column prompt: no text"),
        (ROWS, {"answer": "####(.*)"}, "split train: row 0: its completion has no answer"),
        (ROWS, {"answer": r"^\s*(\w+)", "numeric": True}, "row 1: .* that is a number"),
        (ROWS, {"answer": "("}, "task.answer=.: whole, number or a regular expression"),
        (ROWS, {"prompt": "promt"}, "column promt: not in .*did you mean prompt"),
        (ROWS, {"template": "Q:"}, r"task.template=Q:: it has no \{prompt\}"),
        (ROWS, {"pass_at": [9]}, "task.samples=8 are too few; at least 9"),
        (ROWS, {"headline": "accuracy"}, "task.headline=accuracy: not one of task.metrics"),
        (ROWS, {"metrics": ["f1"], "headline": "f1"}, "metric f1: it does not judge a generation"),
        ([{"m": CHAT[:1]}], {"messages": "m"}, "row 0: its last message must be the assistant's"),
        ([{"m": "hi"}], {"messages": "m"}, "row 0: not a list of messages"),
        (
            [{"m": [CHAT[0], {"role": "assistant", "content": " "}]}],
            {"messages": "m"},
            "has no text",
        ),
        ([{"m": [{"role": "user", "content": [1]}]}], {"messages": "m"}, "content is not a text"),
        (
            [{"m": [{"role": "user", "content": [{"type": "image", "url": "a"}]}, CHAT[1]]}],
            {"messages": "m"},
            "a part of a message's content is not a text",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(task_of, rows, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        task_of(rows, **settings).load()
    assert "\n" not in str(caught.value)


def test_a_classifiers_metric_is_for_no_text_and_the_other_way_round():
    from forge.tasks.kinds import text_label

    with pytest.raises(UserError, match="metric exact_match: it does not judge a single_label"):
        text_label(
            dataset=dict, text="a", label="b", metrics=["exact_match"], headline="exact_match"
        )


def test_only_the_completion_and_its_end_are_trained_on(task_of, tmp_path):
    task, tokenizer = task_of(), tokenizer_of()
    for row, source in zip(tokenized(task, tokenizer, tmp_path), ROWS, strict=True):
        asked = row["prompt_length"]
        assert row["labels"][:asked] == [IGNORED] * asked
        assert row["labels"][asked:] == row["input_ids"][asked:]
        assert tokenizer.decode(row["input_ids"][:asked]) == source["prompt"]
        assert tokenizer.decode(row["input_ids"][asked:]) == source["completion"] + "</s>"


def test_the_loss_is_that_of_the_next_token_of_each_completion(fitted):
    _, split, trainer = fitted
    model = trainer.model.eval()
    by_hand = []
    for row in split:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        first, ids = row["prompt_length"], row["input_ids"]
        by_hand.append([-float(logits[i - 1, ids[i]]) for i in range(first, len(ids))])
    nll, tokens = losses(Reader.of(trainer), split)
    assert nll == pytest.approx([sum(row) for row in by_hand], rel=1e-5)
    assert tokens == [len(row) for row in by_hand]
    batch = trainer.data_collator(list(split))
    batch.pop("id")
    with torch.no_grad():
        own = model(**batch).loss
    assert float(own) == pytest.approx(sum(map(sum, by_hand)) / sum(tokens), rel=1e-5)


def test_batches_are_padded_on_the_right_and_padding_is_never_learnt(fitted):
    _, split, trainer = fitted
    batch = trainer.data_collator(list(split))
    padded = batch["attention_mask"] == 0
    assert padded[:, -1].tolist() == [True, False, True]
    assert (batch["labels"][padded] == IGNORED).all()
    assert (batch["labels"] == trainer.processing_class.eos_token_id).sum() == len(ROWS)


def test_answers_do_not_depend_on_the_batch(fitted):
    task, split, trainer = fitted
    together = generate(Reader.of(trainer), split, task.greedy())
    alone = [
        generate(Reader.of(trainer), split.select([i]), task.greedy())[0] for i in range(len(split))
    ]
    assert together == alone
    assert len({completion.text for completion in together}) == len(ROWS)


def test_a_prompt_near_the_end_of_the_context_cuts_its_own_answer_only(fitted):
    task, split, trainer = fitted
    reader, context = Reader.of(trainer), trainer.model.config.max_position_embeddings
    row = split[0]
    long = {"input_ids": (row["input_ids"] * context)[: context - 2], "prompt_length": context - 2}
    rows = Dataset.from_list([*({k: row[k] for k in long} for row in split), long])
    written = generate(reader, rows, task.greedy())
    assert written[:-1] == generate(reader, split, task.greedy())
    assert written[-1] == generate(reader, rows.select([len(split)]), task.greedy())[0]
    assert written[-1].cut


def test_generation_goes_on_from_the_prompt_token_by_token(fitted):
    task, split, trainer = fitted
    tokenizer, row = trainer.processing_class, split[0]
    ids = row["input_ids"][: row["prompt_length"]]
    for _ in range(task.max_new_tokens):
        with torch.no_grad():
            ids = [*ids, int(trainer.model.eval()(torch.tensor([ids])).logits[0, -1].argmax())]
    written = ids[row["prompt_length"] :]
    assert tokenizer.eos_token_id not in written
    (found,) = generate(Reader.of(trainer), split.select([0]), task.greedy())
    assert found.text == tokenizer.decode(written, skip_special_tokens=True)
    assert found.cut


def test_a_completion_ends_with_its_end_of_text_token(fitted):
    task, split, trainer = fitted
    with torch.no_grad():  # whatever is read, the end is most likely
        trainer.model.lm_head.weight.zero_()
        trainer.model.lm_head.weight[trainer.processing_class.eos_token_id] = 0
    trainer.model.generation_config.repetition_penalty = 9.0
    own = trainer.model.generation_config
    bias = torch.zeros(len(trainer.processing_class))
    bias[trainer.processing_class.eos_token_id] = 1
    head = trainer.model.lm_head
    hook = head.register_forward_hook(lambda module, args, output: output + bias)
    written = generate(Reader.of(trainer), split, task.greedy())
    assert [(completion.text, completion.cut) for completion in written] == [("", False)] * 3
    hook.remove()
    assert trainer.model.generation_config is own  # put back, and not used


def test_samples_leave_the_random_numbers_of_training_alone(fitted):
    task, split, trainer = fitted
    task.pass_at, task.samples = [1, 2], 2
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found, again = (task.evaluation(Reader.of(trainer), split) for _ in range(2))
    scores, columns = found.scores, found.predictions
    assert torch.equal(torch.get_rng_state(), before)
    assert {"pass@1", "pass@2"} <= scores.keys()
    assert scores["pass@1"] == again.scores["pass@1"]
    assert columns["label"] == ["4", "exactly 6", "1"]
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))


@pytest.mark.parametrize("text", ["two", "<s>two"])
def test_a_text_begins_once(task_of, tmp_path, text):
    task, tokenizer = task_of([{"prompt": text, "completion": " x"}] * 2), tokenizer_of(begins=True)
    row = tokenized(task, tokenizer, tmp_path)[0]
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1
    assert row["input_ids"][0] == tokenizer.bos_token_id


def test_a_beginning_that_is_written_out_stays(task_of, tmp_path):
    """For a tokenizer that has such a token and adds it to nothing."""
    task, tokenizer = task_of([{"prompt": "<s>two", "completion": " x"}]), tokenizer_of()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    (row,) = tokenized(task, tokenizer, tmp_path)
    assert row["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.decode(row["input_ids"]) == "<s>two x</s>"


def test_a_chat_is_written_by_its_template_and_begins_and_ends_once(task_of, tmp_path):
    turns = [{"role": "system", "content": "be"}, *CHAT]
    task = task_of([{"m": turns}], messages="m")
    tokenizer = tokenizer_of(begins=True, template=CHATML)
    (row,) = tokenized(task, tokenizer, tmp_path)
    asked = row["prompt_length"]
    read, written = (tokenizer.decode(row["input_ids"][part]) for part in
                     (slice(asked), slice(asked, None)))  # fmt: skip
    assert read == "<s><system>be</s>\n<user>hi</s>\n<assistant>"
    assert written == "you</s>"
    assert row["labels"][asked:] == row["input_ids"][asked:]


TOOLS = (
    "{% if tools %}[{{ tools[0].name }}]{% endif %}{% for m in messages %}<{{ m.role }}>"
    "{% if m.name is defined %}({{ m.name }}){% endif %}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}"
    "{{ m.content or '' }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_chat_keeps_its_tools_calls_and_names(task_of, tmp_path, caplog):
    def call(**arguments):
        return {"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}

    asked = {"role": "user", "content": "sum", "name": "ann"}
    called = {"role": "assistant", "content": None, **call(a=1, b=None)}
    given = {"role": "tool", "content": "3"}
    final = {"role": "assistant", "content": "three", "thinking": "hm"}
    other = [CHAT[0], {**CHAT[1], **call(x="y")}]
    rows = [{"m": [asked, called, given, final], "tools": [{"name": "f"}]}, {"m": other}]
    task, tokenizer = task_of(rows, messages="m"), tokenizer_of(template=TOOLS)
    texts = list(map(tokenizer.decode, tokenized(task, tokenizer, tmp_path, 200)["input_ids"]))
    end = tokenizer.eos_token
    asked = f'[f]<user>(ann)sum{end}<assistant>{{"a": 1, "b": null}}{end}<tool>3{end}'
    assert texts[0] == f"{asked}<assistant>three{end}"
    assert texts[1] == f'<user>hi{end}<assistant>{{"x": "y"}}you{end}'
    assert "leaves out the messages' field thinking in 1 of 1" in caplog.text
    assert not [w for w in ("field name", "field tool_calls", "out tools") if w in caplog.text]


def test_what_a_template_leaves_out_is_said_once_for_all_chats(task_of, tmp_path, caplog):
    turns = [CHAT[0], {**CHAT[1], "tool_calls": [{"a": 1}], "name": ""}]
    rows = [{"m": turns, "tools": '[{"name": "f"}]'}] * 3 + [{"m": CHAT}]
    tokenized(task_of(rows, messages="m"), tokenizer_of(template=CHATML), tmp_path)
    said = [r.getMessage() for r in caplog.records if "leaves out" in r.getMessage()]
    assert len(said) == 2
    assert "field tool_calls in 3 of 3" in said[0] and "tools in 3 of 3" in said[1]


def test_a_field_that_some_messages_lose_is_said_whatever_the_last_chat_has(
    task_of, tmp_path, caplog
):
    """A template may write the reasoning of the last message alone."""
    last = "{% if loop.last and m.thinking is defined %}{{ m.thinking }}{% endif %}{{ m.content }}"
    template = CHATML.replace("{{ m.content }}", last)
    answer = {**CHAT[1], "thinking": "hm"}
    rows = [{"m": [CHAT[0], answer, CHAT[0], answer]}, {"m": [CHAT[0], answer]}]
    tokenized(task_of(rows, messages="m"), tokenizer_of(template=template), tmp_path)
    assert "leaves out the messages' field thinking in 1 of 3" in caplog.text


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": "so"}])
def test_tool_calls_are_learnt_and_judged_as_the_template_writes_them(task_of, tmp_path, content):
    task, tokenizer = (
        task_of([{"m": [CHAT[0], CALL | content]}], messages="m"),
        tokenizer_of(template=TOOLS),
    )
    (row,) = tokenized(task, tokenizer, tmp_path)
    written = f'{{"a": 1}}{content.get("content") or ""}'
    learnt = tokenizer.decode([token for token in row["labels"] if token != IGNORED])
    assert learnt == written + tokenizer.eos_token
    assert task.written.is_right(task.written.extract(written), row["label"])


def test_tool_calls_alone_need_a_template_that_writes_them(task_of, tmp_path):
    task = task_of([{"m": [CHAT[0], CALL]}], messages="m")
    with pytest.raises(UserError, match="row 0: its last message is tool calls alone"):
        tokenized(task, tokenizer_of(template=CHATML), tmp_path)


PARTS = CHATML.replace(
    "{{ m.content }}", "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
)


@pytest.mark.parametrize("template", [CHATML, PARTS])
@pytest.mark.parametrize("parts", [False, True])
def test_contents_are_texts_or_parts_whatever_the_template_knows(
    task_of, tmp_path, template, parts
):
    chat = [
        {**m, "content": [{"type": "text", "text": part} for part in m["content"]]} for m in CHAT
    ]
    task, tokenizer = (
        task_of([{"m": chat if parts else CHAT}], messages="m"),
        tokenizer_of(template=template),
    )
    (row,) = tokenized(task, tokenizer, tmp_path)
    end = tokenizer.eos_token
    assert tokenizer.decode(row["input_ids"]) == f"<user>hi{end}\n<assistant>you{end}"
    assert row["label"] == "you"


def test_a_chat_may_be_written_as_json_and_a_tool_may_give_an_object(task_of, tmp_path):
    chat = [CHAT[0], {"role": "tool", "content": {"é": 1}}, CHAT[1]]
    tokenizer = tokenizer_of(template=CHATML)
    (row,) = tokenized(task_of([{"m": json.dumps(chat)}], messages="m"), tokenizer, tmp_path)
    assert '<tool>{"é": 1}' in tokenizer.decode(row["input_ids"])


def test_the_header_of_a_template_without_an_open_prompt_is_not_learnt(task_of, tmp_path):
    closed = CHATML.partition("{% if add_generation_prompt")[0]
    task, tokenizer = task_of([{"m": CHAT}], messages="m"), tokenizer_of(template=closed)
    (row,) = tokenized(task, tokenizer, tmp_path)
    learnt = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(learnt) == f"you{tokenizer.eos_token}"
    assert tokenizer.decode(row["input_ids"][: row["prompt_length"]]).endswith("<assistant>")


def test_an_answer_may_begin_with_a_line_break(task_of, tmp_path):
    """Though its template's header ends with one, and a token may hold both."""
    chats = [[CHAT[0], {"role": "assistant", "content": f"{breaks}you"}] for breaks in ("\n", "")]
    template = CHATML.replace("<assistant>", "<assistant>\n").replace("}}>{{", "}}>\n{{")
    tokenizer = tokenizer_of(template=template)
    tokenizer.add_tokens(["\n\n"])
    rows = tokenized(task_of([{"m": m} for m in chats], messages="m"), tokenizer, tmp_path)
    written = [tokenizer.decode([t for t in row["labels"] if t != IGNORED]) for row in rows]
    assert written == [f"\nyou{tokenizer.eos_token}", f"you{tokenizer.eos_token}"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template"),
        (
            "{{ raise_exception('no system') }}",
            r"row 0: chat \[user\]: .* takes no such one \(no system",
        ),
        (
            "{% for m in messages %}{{ messages|length }}{{ m.content }}{% endfor %}",
            "row 0: .*differently",
        ),
    ],
)
def test_a_chat_template_that_will_not_do_is_refused(task_of, tmp_path, template, message):
    with pytest.raises(UserError, match=message):
        tokenized(task_of(chat=True), tokenizer_of(template=template), tmp_path)


def test_a_prompt_that_leaves_no_room_is_named_and_cut_completions_are_counted(task_of, tmp_path):
    rows, tokenizer = [{"prompt": "abc", "completion": " x"}, *ROWS], tokenizer_of()
    lengths = tokenized(task_of(rows), tokenizer, tmp_path)["length"]
    longest = max(lengths)
    split = tokenized(task_of(rows), tokenizer, tmp_path, longest - 1)
    assert list(split["truncated"]) == [n == longest for n in lengths]
    asked = max(split["prompt_length"])
    with pytest.raises(UserError, match=rf"row 2: its prompt has {asked} tokens, .* is {asked}"):
        tokenized(task_of(rows), tokenizer, tmp_path, asked)


def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    right = [True, False, True, False, False]
    for k in (1, 2, 4):
        drawn = [any(draw) for draw in itertools.combinations(right, k)]
        assert pass_at(k, 5, [2]) == pytest.approx(np.mean(drawn))
    assert pass_at(2, 4, [0, 4]) == 0.5


def test_the_interval_is_wilsons():
    low, high = wilson(10, 20)  # centre 0.5, half of it 1.96 / sqrt(20 + 1.96^2) / 2
    half = 1.959964 / math.sqrt(20 + 1.959964**2) / 2
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert wilson(0, 5)[0] == 0


@pytest.mark.parametrize("begins", [False, True])
def test_prompts_alone_are_read_as_those_with_completions(task_of, tmp_path, begins):
    task, tokenizer = task_of(template="Q: {prompt}\n"), tokenizer_of(begins)
    encoded = tokenized(task, tokenizer, tmp_path)
    asked = task.questions({"prompt": [r["prompt"] for r in ROWS]}, "rows", tokenizer, 64)
    assert asked["input_ids"] == [row["input_ids"][: row["prompt_length"]] for row in encoded]
    with pytest.raises(UserError, match=r"row 1: its prompt has \d+ tokens, the limit .* is 24"):
        task.questions({"prompt": ["one", "one " * 40]}, "rows", tokenizer, 24)


def test_a_chat_is_asked_with_or_without_its_answer_and_a_text_is_a_users(task_of, tmp_path):
    turns = [{"role": "user", "content": "one and one"}, {"role": "assistant", "content": "two"}]
    task, tokenizer = task_of([{"m": turns}], messages="m"), tokenizer_of(template=CHATML)
    (row,) = tokenized(task, tokenizer, tmp_path)
    given = {"m": [turns, turns[:1], "one and one"]}
    asked = task.questions(given, "rows", tokenizer, 64)["input_ids"]
    assert asked == [row["input_ids"][: row["prompt_length"]]] * 3
    for wrong in ([], turns[1:], [{"text": "a"}], 3):
        with pytest.raises(UserError, match="rows: row 0: no"):
            task.questions({"m": [wrong]}, "rows", tokenizer, 64)


def test_a_run_ends_with_answers_that_can_be_compared(launch, monkeypatch, tmp_path):
    monkeypatch.setitem(RESAMPLES, "other", 5)
    settings = (
        "trainer.max_steps=3",
        "task.generate_rows=20",
        "task.samples=2",
        "trainer.num_train_epochs=1",
    )
    first = launch(*TINY, *settings, "task.pass_at=[2]", at="a")
    scores = results(first)["splits"]["validation"]
    assert scores["n"] == 60 and scores["exact_match_interval"][0] == 0
    assert {"exact_match", "perplexity", "loss", "pass@2"} <= scores.keys()
    file = first / "predictions" / "validation.parquet"
    rows = pq.read_table(file).to_pylist()
    assert [row["id"] for row in rows] == list(range(60))
    assert all(row["completion"] != "" and row["prompt"].endswith("now?\n") for row in rows)
    nll, tokens = (sum(row[name] for row in rows) for name in ("nll", "tokens"))
    assert scores["loss"] == pytest.approx(nll / tokens)
    prompts = [row["prompt"].removesuffix("\n") for row in rows]
    answered = [row["predictions"][0] for row in predict([first], [prompts])["rows"]]
    assert [answer["completion"] for answer in answered] == [row["completion"] for row in rows]
    assert [answer["answer"] for answer in answered] == [row["prediction"] for row in rows]
    found = examine(first)["splits"]["validation"]
    assert (found["n"], found["wrong"]) == (60, 60) and len(found["errors"]) == 10
    assert found["none"] == sum(not row["prediction"] for row in rows)
    assert all(error["texts"][0].endswith("now?\n") for error in found["errors"])
    text = report(first, tmp_path / "report")[1]
    assert "60 of 60 answers are wrong" in text and "now?" in text
    said = [value for name, value in shown(first) if "python -m forge" in value]
    assert ["predict" in said[0], "evaluate" in said[1]] == [True, True] and len(said) == 2
    assert not [note for note in examine(first)["notes"] if "Texts" in note]
    second = launch(*TINY, *settings, "seed=1", at="b")
    sides = [[read_answers(run / file.relative_to(first), m)] for run, m in
             ((first, "exact_match"), (second, "exact_match"), (first, "perplexity"),
              (second, "perplexity"))]  # fmt: skip
    assert difference(sides[0], sides[1], "exact_match").p_value == 1
    found = difference(sides[2], sides[3], "perplexity")
    ours, theirs = (results(run)["splits"]["validation"]["perplexity"] for run in (first, second))
    assert found.value == pytest.approx(theirs - ours, rel=1e-6)
    again = launch(*TINY, f"model.path={first}", "trainer.num_train_epochs=0", at="c")
    assert results(again)["splits"]["validation"]["loss"] == pytest.approx(scores["loss"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.init=teacher",), "students from a teacher's layers are classifiers so far"),
        (("model=tiny",), "model bert: bert has no head that generates text"),
        (("model.new_head=true",), "a language model's head is its vocabulary"),
        (
            ("task.max_length=20",),
            "split train: row .*: its prompt has .* tokens, the limit .* is 20",
        ),
        (("+task.chat=true",), "the tokenizer has no chat template"),
        (("task.max_new_tokens=0",), "task.max_new_tokens=0: .*greater than or equal to 1"),
    ],
)
def test_what_cannot_run_is_one_line_before_training(launch, overrides, message):
    with pytest.raises(UserError, match=message):
        launch(*TINY, *overrides)


@pytest.mark.slow
def test_accumulated_steps_weigh_every_token_alike(launch):
    """32x1 and 8x4 follow the same curve, though the parts have unequal numbers of tokens."""
    plan = (
        *TINY,
        "trainer.train_sampling_strategy=random",
        "trainer.max_steps=8",
        "trainer.logging_steps=1",
        "trainer.save_strategy=epoch",
        "+trainer.dataloader_drop_last=true",
    )
    whole = launch(*plan, at="whole")
    parts = launch(
        *plan,
        "trainer.per_device_train_batch_size=8",
        "trainer.gradient_accumulation_steps=4",
        at="parts",
    )
    assert curve(parts) == pytest.approx(curve(whole), abs=1e-5)


@pytest.mark.slow
def test_a_chat_file_is_learnt_from(launch, tmp_path):
    chats = [{"chat": CHAT}] * 8
    files = [f"task.files.{s}={write_rows(tmp_path / f'{s}.jsonl', chats)}" for s in
             ("train", "validation")]  # fmt: skip
    base = launch(*TINY, "trainer.num_train_epochs=0", at="base")
    place = base / "model" / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"chat_template": CHATML[15:]}))
    run = launch(
        "task=files_lm",
        *files,
        *NOTHING_SAVED,
        "task.messages=chat",
        "task.max_length=64",
        "task.max_new_tokens=8",
        f"model.path={base}",
        "precision=fp32",
        "trainer.learning_rate=0.02",
        "trainer.num_train_epochs=80",
    )
    assert results(run)["headline"]["value"] == 1
