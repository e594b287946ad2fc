"""Distillation of language models, token by token."""

import json
import logging
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from forge.config.schema import Model, Teacher
from forge.distillation import tokens as distillation_tokens
from forge.distillation.losses import DIST, DKD, KL, MSE, Attention, Hidden, Outputs
from forge.errors import UserError
from forge.inputs.input import IGNORED
from forge.records.files import read_json
from forge.results.statistics import read_answers
from tests.support.commands import launch as launch_alone
from tests.support.runs import history, results, weights
from tests.support.texts import (
    FEW,
    NOTHING_SAVED,
    ROWS,
    SIZES,
    TINY,
    divergence,
    model_of,
    tokenized,
    tokenizer_of,
)


@pytest.fixture
def distiller_of(task_of, tmp_path):
    """A distiller of two random models, the teacher's embeddings padded, and a batch."""
    task, tokenizer = task_of(), tokenizer_of()
    split = tokenized(task, tokenizer, tmp_path)
    student = model_of(tokenizer, task, 0)
    expert = model_of(tokenizer, task, 1, rows=7, hidden_size=32).eval()
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)

    def taught(inputs, watch):
        with torch.no_grad():
            seen = expert(inputs["input_ids"], inputs["attention_mask"], output_hidden_states=True)
        cut = seen.logits[..., : len(tokenizer)]
        return Outputs(cut, seen.hidden_states)

    def make(alpha, **losses):
        for term in losses.values():
            term.bind(student.config, expert.config)
        found = distillation_tokens.TokenDistiller(
            vocabulary=slice(len(tokenizer)), alpha=alpha, losses=losses, teacher=taught,
            task=task, model=student, args=args, data_collator=task.collator(tokenizer, None),
        )  # fmt: skip
        found.current_gradient_accumulation_steps = 1
        batch = found.data_collator(list(split))
        batch.pop("id")
        return found, expert, batch

    return make


@pytest.mark.parametrize("name", ["forward", "reverse", "jsd", "skew"])
def test_loss_and_gradient_are_what_a_computation_by_hand_gives(distiller_of, name):
    distiller, expert, batch = distiller_of(0.25, kl=KL(temperature=3, divergence=name, weight=2))
    student, tokens = distiller.model.train(), 29  # of an accumulation with more parts
    loss = distiller.compute_loss(
        student, dict(batch), num_items_in_batch=torch.tensor(float(tokens))
    )
    loss.backward()
    found = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    total = torch.tensor(0.0)
    for ids, mask, labels in zip(*(batch[k] for k in ("input_ids", "attention_mask", "labels")),
                                 strict=True):  # fmt: skip
        ids = ids[: int(mask.sum())].unsqueeze(0)  # alone, without padding
        ours, theirs = student(ids).logits[0], expert(ids).logits[0].detach()
        for t in range(1, ids.shape[1]):
            if labels[t] == IGNORED:
                continue
            p, q = (x[t - 1, : ours.shape[1]].div(3).softmax(-1) for x in (theirs, ours))
            total = total - 0.75 * ours[t - 1].log_softmax(-1)[labels[t]]
            total = total + 0.25 * 2 * 9 * divergence(p, q, name)
    by_hand = total / tokens
    by_hand.backward()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    for ours, parameter in zip(found, student.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-6)


def test_likeliest_tokens_and_the_rest_are_a_whole_distribution():
    torch.manual_seed(0)
    student, expert = torch.randn(5, 20) * 4, torch.randn(5, 20) * 4
    kl = KL(temperature=3)

    def of(k):
        tokens = expert.topk(k).indices
        seen = [Outputs(distillation_tokens.lumped(x, tokens, 3)) for x in (student, expert)]
        return kl(*seen, {}).item()

    p, q = ((x / 3).softmax(-1) for x in (expert, student))
    assert of(18) <= divergence(p, q, "forward").item() / 5 * 9 + 1e-6
    for k in (1, 4, 18):
        tokens = expert.topk(k).indices
        by_hand = 0.0
        for i in range(5):
            two = [torch.cat([x[i, tokens[i]], 1 - x[i, tokens[i]].sum(0, True)]) for x in (p, q)]
            by_hand += 9 * divergence(*two, "forward").item() / 5
        assert of(k) == pytest.approx(by_hand, rel=1e-4)
    assert of(1) < of(4) < of(18)
    sure = torch.full((1, 20), -1e4).index_fill(1, torch.tensor([3]), 1e4).requires_grad_()
    distillation_tokens.lumped(sure, torch.tensor([[3, 4]]), 1).logsumexp(1).backward()
    assert sure.grad.isfinite().all()


LOSSES = {
    "kl": KL, "mse": MSE, "dkd": DKD, "dist": lambda: DIST(gamma=0), "hidden": Hidden
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_is_the_sum_of_its_parts_for_every_loss(distiller_of, name):
    torch.manual_seed(0)
    distiller, _, batch = distiller_of(1, **{name: LOSSES[name]()})
    tokens = (batch["labels"] != IGNORED).sum()
    student = distiller.model.train()
    whole = distiller.compute_loss(student, dict(batch), num_items_in_batch=tokens)
    rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(len(ROWS))]
    parts = [distiller.compute_loss(student, row, num_items_in_batch=tokens) for row in rows]
    assert whole.item() > 0
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)


def test_prompts_and_padding_have_no_influence(distiller_of):
    distiller, _, batch = distiller_of(1, kl=KL(), mse=MSE())
    teach = distiller.teacher

    def spoilt(inputs, watch):
        seen = teach(inputs, watch)
        predicts = torch.zeros_like(batch["labels"], dtype=torch.bool)
        predicts[:, :-1] = batch["labels"][:, 1:] != IGNORED
        seen.logits[~predicts] = torch.nan
        return seen

    distiller.teacher = spoilt
    student = distiller.model.train()
    loss = distiller.compute_loss(student, dict(batch), num_items_in_batch=torch.tensor(9))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"attention": Attention()}, "mode/loss=attention: .*use kl or hidden"),
        ({"dist": DIST()}, "mode/loss=dist: .*set mode.loss.dist.gamma=0"),
    ],
)
def test_losses_that_are_no_mean_over_tokens_are_refused(loss, message):
    with pytest.raises(UserError, match=message):
        distillation_tokens.check(loss, None)


def reads(task, ours, student=None):
    """What the checks look at of a run."""
    config = SimpleNamespace(model=student or Model(config=SIZES), teacher=Teacher())
    return SimpleNamespace(task=task, processor=ours, config=config, rows=task.load())


def test_vocabularies_are_compared_token_by_token_and_not_by_size(task_of):
    ours, theirs = tokenizer_of(), tokenizer_of()
    distillation_tokens._check_vocabulary(Model(path="theirs"), theirs, reads(task_of(), ours))
    for tokenizer, extra in ((ours, ["<a>", "<b>"]), (theirs, ["<b>", "<a>"])):
        tokenizer.add_tokens(extra, special_tokens=True)
    assert len(ours) == len(theirs)
    first = len(ours) - 2
    told = rf"2 tokens .*'<a>' is {first} here, {first + 1} there; '<b>' is {first + 1} here"
    for student, way_out in ((None, "model.tokenizer=theirs"), (Model(path="x"), "family")):
        with pytest.raises(UserError, match=f"{told}.*{way_out}") as caught:
            distillation_tokens._check_vocabulary(
                Model(path="theirs"), theirs, reads(task_of(), ours, student)
            )
        assert "\n" not in str(caught.value)
    theirs = tokenizer_of()
    theirs.add_tokens(["<c>"])
    with pytest.raises(UserError, match=r"1 tokens .*'<c>' is absent here, \d+ there"):
        distillation_tokens._check_vocabulary(
            Model(path="t"), theirs, reads(task_of(), tokenizer_of())
        )


def test_texts_must_be_read_alike_their_ends_and_the_chat_included(task_of):
    from transformers import PretrainedConfig

    from tests.support.texts import CHATML

    def check(ours, theirs, **settings):
        task = task_of(**settings)
        task.input.make_ready(ours, PretrainedConfig())
        return task.input.difference(task.load()["train"], ours, theirs)

    assert check(tokenizer_of(), tokenizer_of()) is None
    other = tokenizer_of()
    other.eos_token = "<pad>"
    assert check(tokenizer_of(), other) == "its end-of-text token is '<pad>', the student's '</s>'"
    ours, plain = tokenizer_of(template=CHATML[15:]), tokenizer_of()
    assert check(ours, tokenizer_of(template=CHATML[15:]), chat=True) is None
    assert check(ours, plain, chat=True) == "its chat template is another"
    assert check(ours, plain) is None  # no chat, no template


def test_alpha_zero_is_sft_to_the_bit_without_a_teacher(launch):
    few = (*TINY, *FEW, "task.generate_rows=2")
    sft = launch(*few, at="sft")
    kd = launch(*few, "mode=kd", "mode.alpha=0", "teacher.path=/nowhere", at="kd")
    assert all(torch.equal(weights(sft)[name], tensor) for name, tensor in weights(kd).items())
    assert [row["loss"] for row in history(sft)] == [row["loss"] for row in history(kd)]
    assert results(sft)["headline"] == results(kd)["headline"]
    assert "teacher" not in read_json(kd / "run_metadata.json")


def test_the_blend_is_logged_and_the_teacher_recorded(kd, caplog):
    caplog.set_level(logging.INFO)
    parts = ("trainer.gradient_accumulation_steps=2", "trainer.per_device_train_batch_size=16")
    run_dir = kd("mode.alpha=0.25", *parts)
    assert "0.75 * task loss + 0.25 * (1 * kl(temperature 2" in caplog.text
    assert "averaged over the tokens of the completions" in caplog.text
    assert "shares of the gradient norm in the first batch: task" in caplog.text
    for row in history(run_dir):
        assert row["loss"] == pytest.approx(row["loss_task"] + row["loss_kl"], abs=1e-4)
    recorded = read_json(run_dir / "run_metadata.json")["teacher"]
    scores = recorded["splits"]["validation"]
    assert scores["perplexity"] < recorded["baseline"]
    assert scores["n"] == 60 and "seconds" not in scores
    ours, theirs = (read_answers(run_dir / "predictions" / f"{name}.parquet", "perplexity")
                    for name in ("validation", "teacher_validation"))  # fmt: skip
    assert list(ours.id) == list(theirs.id)
    rows = pq.read_table(run_dir / "predictions" / "teacher_validation.parquet").to_pylist()
    nll, tokens = (sum(row[name] for row in rows) for name in ("nll", "tokens"))
    assert scores["loss"] == pytest.approx(nll / tokens)
    caplog.clear()
    kd("mode.alpha=1", at="again")
    assert "examined" not in caplog.text  # it is stored
    assert "shares of the gradient norm in the first batch: kl 100%" in caplog.text


@pytest.mark.slow
def test_alpha_one_takes_nothing_from_the_labels(kd):
    assert "loss_task" not in history(kd("mode.alpha=1"))[0]


@pytest.mark.slow
def test_accumulated_steps_weigh_every_token_alike(kd):
    """32x1 and 8x4 follow the same curve, though the parts have unequal numbers of tokens."""
    plan = ("trainer.train_sampling_strategy=random", "trainer.max_steps=8",
            "trainer.save_strategy=epoch", "+trainer.dataloader_drop_last=true")  # fmt: skip
    whole = kd(*plan, at="whole")
    parts = kd(*plan, "trainer.per_device_train_batch_size=8",
               "trainer.gradient_accumulation_steps=4", at="parts")  # fmt: skip
    for name in ("loss", "loss_task", "loss_kl"):
        curves = [[row[name] for row in history(run)] for run in (whole, parts)]
        assert curves[1] == pytest.approx(curves[0], abs=1e-5)


@pytest.mark.slow
def test_stored_likeliest_tokens_teach_as_the_live_teacher_does(kd, caplog):
    caplog.set_level(logging.INFO)
    live = kd("mode.alpha=0.5", at="live")
    nearly_all = kd("mode.alpha=0.5", "mode.top_k=360", at="nearly_all")  # of 369
    few = [kd("mode.alpha=0.5", "mode.top_k=4", at=name) for name in ("few", "again")]
    curves = [[row["loss_kl"] for row in history(run)] for run in (live, nearly_all, *few)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert 0 < curves[2][0] < curves[0][0]
    assert curves[2] == curves[3]
    assert caplog.text.count("teacher: asked about 400 train rows, once") == 2
    assert caplog.text.count("answers to 400 train rows found in the cache") == 1


@pytest.mark.slow
def test_two_ranks_weigh_every_token_alike(kd, teacher_run, tmp_path):
    plan = ("trainer.train_sampling_strategy=random", "task.generate_rows=2",
            "trainer.save_strategy=epoch", "+trainer.dataloader_drop_last=true")  # fmt: skip
    whole, parts = kd(*plan, at="whole"), tmp_path / "parts"
    words = (*TINY, *FEW, *plan, "mode=kd", f"teacher.path={teacher_run}", "launcher=ddp",
             "trainer.per_device_train_batch_size=16", f"hydra.run.dir={parts}")  # fmt: skip
    done = launch_alone(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    for name in ("loss", "loss_task", "loss_kl"):
        curves = [[row[name] for row in history(run)] for run in (whole, parts)]
        assert curves[1] == pytest.approx(curves[0], abs=1e-4)


@pytest.mark.slow
def test_the_teacher_is_frozen_and_stays_out_of_optimizer_and_checkpoint(kd, teacher_run):
    before = weights(teacher_run)
    often = ("trainer.eval_strategy=steps", "trainer.eval_steps=2", "task.generate_rows=2",
             "trainer.save_strategy=steps", "trainer.save_steps=2")  # fmt: skip
    run_dir = kd("mode/loss=[kl,hidden]", *often)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(teacher_run).items())
    state = torch.load(run_dir / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    projections = load_file(run_dir / "checkpoint-4" / "losses.safetensors")
    assert len(state) == len(weights(run_dir)) + len(projections) and projections
    again = kd("mode/loss=[kl,hidden]", "trainer.eval_strategy=no", "trainer.save_strategy=no",
               "trainer.load_best_model_at_end=false", at="unjudged")  # fmt: skip
    last = load_file(run_dir / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(again).items())


@pytest.mark.slow
def test_a_teacher_that_knows_nothing_is_stopped_at_the_gate(kd, launch):
    untrained = launch(*TINY, *NOTHING_SAVED, "trainer.num_train_epochs=0", at="untrained")
    message = r"perplexity [\d.]+ on validation is no better than the commonest answer.*[\d.]+"
    with pytest.raises(UserError, match=message):
        kd(f"teacher.path={untrained}", at="gated")
    with pytest.raises(UserError, match=r"exact_match 0.0000 on validation is no better"):
        kd(f"teacher.path={untrained}", "task.headline=exact_match", at="exact")
    assert results(kd(f"teacher.path={untrained}", "mode.gate=off", at="open"))["headline"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("teacher.path=null",), "teacher bert: bert has no head that generates text"),
        (("teacher.path=null", "model@teacher=small_lm", "teacher.train=off"),
         "teacher llama-256: .* train one with python launch.py mode=sft task="),
        (("model.config.vocab_size=300",), r"tokens of its vocabulary .* model\.tokenizer="),
        (("teacher.path=[a,b]",), "2 teachers are named; a language model takes one"),
        (("mode.top_k=369",), "mode.top_k=369: of 369 tokens at most 367 leave a rest"),
        (("mode.top_k=4", "mode/loss=[kl,hidden]"), "what is stored is for kl at one temperature"),
        (("mode/loss=attention",), "its relations are those of an encoder"),
    ],
)  # fmt: skip
def test_what_cannot_teach_is_refused_in_one_line(kd, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        kd(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_teacher_that_reads_too_little_is_refused(kd, teacher_run, tmp_path):
    import shutil

    short = shutil.copytree(teacher_run, tmp_path / "short")
    path = short / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 40}))
    with pytest.raises(UserError, match=r"reads at most 40 tokens, the longest row has \d+"):
        kd(f"teacher.path={short}")


@pytest.mark.slow
def test_a_missing_teacher_is_trained_first(launch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ("teacher.config.hidden_size=32", "teacher.config.intermediate_size=32",
             "teacher.config.vocab_size=512", "teacher.trainer.num_train_epochs=6",
             "teacher.trainer.learning_rate=1e-2", "teacher.trainer.eval_strategy=no",
             "teacher.trainer.save_strategy=no",
             "teacher.trainer.load_best_model_at_end=false")  # fmt: skip
    run_dir = launch(*TINY, *FEW, "mode=kd", "model@teacher=small_lm", *sizes)
    (trained,) = tmp_path.glob("outputs/*/*/sft/teacher-*/results.json")
    recorded = read_json(run_dir / "run_metadata.json")["teacher"]
    assert recorded["paths"] == [str(trained.parent / "model")]
