"""The house trainer: a plain trainer's curve, batches of like length, the same bits twice."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forge.training.sampler import ShuffledLengthGroups
from forge.training.trainer import Trainer
from tests.support.runs import losses, results

PLAIN = (
    "trainer.train_sampling_strategy=random",
    "trainer.max_steps=12",
    "trainer.logging_steps=1",
)


def test_length_groups_come_in_random_order_and_hold_every_row_once():
    lengths = [i % 50 for i in range(1000)]
    sampler = ShuffledLengthGroups(20, lengths=lengths, seed=0)
    rows = list(sampler)
    assert sorted(rows) == list(range(1000))
    batches = [[lengths[i] for i in rows[k : k + 20]] for k in range(0, 1000, 20)]
    assert max(batches[0]) == 49  # the longest first
    assert sum(max(b) - min(b) for b in batches) / 50 < 5
    means = [sum(b) / 20 for b in batches]
    falls = sum(a > b for a, b in itertools.pairwise(means[1:]))
    assert 15 < falls < 33  # in order of length nearly all of the 48 would
    assert list(sampler) != rows


def test_the_order_follows_from_seed_and_epoch_alone():
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = ShuffledLengthGroups(4, lengths=list(range(40)), seed=seed)
        torch.rand(seed + epoch)  # the global generator has no say
        sampler.set_epoch(epoch)
        orders[seed, epoch] = list(sampler)
        sampler.set_epoch(epoch)
        assert list(sampler) == orders[seed, epoch]
    assert len(set(map(tuple, orders.values()))) == 3


def test_the_loss_curve_is_that_of_a_plain_trainer_script(composed, toy_run, tmp_path):
    run_dir = toy_run(
        *PLAIN,
        "trainer.save_strategy=steps",
        "trainer.save_steps=12",
        "trainer.eval_strategy=no",
        "trainer.load_best_model_at_end=false",
    )

    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from forge.data.toy_nli import LABELS, nli

    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model")
    rows = nli(train=600, validation=150, seed=0)["train"]
    train = rows.map(
        lambda row: {
            **tokenizer(row["premise"], row["hypothesis"]),
            "labels": LABELS.index(row["label"]),
        },
        remove_columns=rows.column_names,
    )
    set_seed(42)
    config = AutoConfig.from_pretrained(run_dir / "model")
    model = AutoModelForSequenceClassification.from_config(config)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "plain"),
        seed=42,
        max_steps=12,
        logging_steps=1,
        use_cpu=True,
        per_device_train_batch_size=32,
        learning_rate=3e-4,
        warmup_steps=0.06,
        weight_decay=0.01,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    plain = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), train)
    plain.train()
    curve = [row["loss"] for row in plain.state.log_history if "loss" in row]
    assert len(curve) == 12
    assert losses(run_dir) == pytest.approx(curve, abs=1e-6)


@pytest.mark.slow
def test_two_runs_of_one_config_are_the_same_to_the_bit(toy_run):
    settings = ("trainer.num_train_epochs=1", "precision=bf16")
    first, second = (toy_run(*settings, at=name) for name in ("a", "b"))
    weights = [load_file(run / "model" / "model.safetensors") for run in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for split, scores in results(first)["splits"].items():
        other = results(second)["splits"][split]
        assert {k: v for k, v in scores.items() if "second" not in k} == {
            k: v for k, v in other.items() if "second" not in k
        }
    other_seed = toy_run(*settings, "seed=1", at="c")
    assert not torch.equal(
        load_file(other_seed / "model" / "model.safetensors")["classifier.weight"],
        weights[0]["classifier.weight"],
    )


@pytest.mark.slow
def test_gradient_accumulation_gives_the_step_of_the_whole_batch(toy_run):
    """32x1 and 8x4 follow the same curve (dropout off: its noise depends on the batch's shape)."""
    off = (
        "+model.config.hidden_dropout_prob=0",
        "+model.config.attention_probs_dropout_prob=0",
        "trainer.save_strategy=epoch",
        "+trainer.dataloader_drop_last=true",
    )
    whole = toy_run(*PLAIN, *off, at="whole")
    parts = toy_run(
        *PLAIN,
        *off,
        "trainer.per_device_train_batch_size=8",
        "trainer.gradient_accumulation_steps=4",
        at="parts",
    )
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.slow
def test_grouping_by_length_wastes_less_than_shuffling(toy_run):
    shares = [
        results(toy_run(f"trainer.train_sampling_strategy={s}", "trainer.max_steps=18", at=s))[
            "train"
        ]["padding_share"]
        for s in ("group_by_length", "random")
    ]
    assert 0 < shares[0] < shares[1] < 0.6


def test_the_best_is_the_best_of_those_that_were_saved(toy_run, monkeypatch):
    told = iter([0.9, 0.5, 0.6, 0.7, 0.8, 0.4])  # at steps 2, 4 … 12, of which every other saves
    log = Trainer.log

    def scripted(self, logs, *args):
        if "eval_accuracy" in logs:
            logs["eval_accuracy"] = next(told, 0)
        log(self, logs, *args)

    monkeypatch.setattr(Trainer, "log", scripted)
    run_dir = toy_run("trainer.max_steps=12", "trainer.save_strategy=steps", "trainer.save_steps=4",
                      "trainer.eval_strategy=steps", "trainer.eval_steps=2")  # fmt: skip
    state = json.loads((run_dir / "trainer_state.json").read_text())
    assert (Path(state["best_model_checkpoint"]).name, state["best_metric"]) == (
        "checkpoint-8",
        0.7,
    )


def test_no_file_of_a_checkpoint_holds_a_secret(toy_run):
    run_dir = toy_run("trainer.max_steps=1", "+trainer.hub_token=hunter2hunter2")
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert [path for path in files if path.name == "training_args.bin"]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]
