"""Distillation: alpha=0 is sft to the bit, and a teacher is checked before it teaches."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from forge.errors import UserError
from forge.record import read_json
from tests.conftest import SMALL, results

FEW = ("trainer.max_steps=6", "trainer.logging_steps=1")


@pytest.fixture
def easy(launch, jsonl):
    """Runs on a task that an epoch or two learn: a word says the label, in 8 rows of 9."""
    words = ("good", "fair", "bad")
    rows = [
        {
            "text": f"a {words[i % 3]} thing {'indeed ' * (i % 5)}",
            "label": words[(i + (i % 9 == 0)) % 3],
        }
        for i in range(320)
    ]
    train, validation = jsonl("train.jsonl", rows[:256]), jsonl("validation.jsonl", rows[200:])
    files = (f"task.files.train={train}", f"task.files.validation={validation}")
    labels = "task.labels=[good,fair,bad]"

    def start(*overrides, at="run"):
        return launch(*SMALL, "task=files", *files, "task.text=text", labels, *overrides, at=at)

    return start


@pytest.fixture
def teacher_run(easy):
    return easy(
        "trainer.num_train_epochs=4",
        "trainer.learning_rate=5e-3",
        "model.config.hidden_size=32",
        at="teacher",
    )


@pytest.fixture
def kd(easy, teacher_run):
    def start(*overrides, at="run"):
        return easy("mode=kd", f"teacher.path={teacher_run}", *FEW, *overrides, at=at)

    return start


def weights(run_dir):
    return load_file(run_dir / "model" / "model.safetensors")


def history(run_dir):
    newest = max(run_dir.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    return [
        row
        for row in json.loads((newest / "trainer_state.json").read_text())["log_history"]
        if "loss" in row
    ]


def test_alpha_zero_is_sft_to_the_bit_without_a_teacher(toy_run):
    sft = toy_run(*FEW, at="sft")
    kd = toy_run(*FEW, "mode=kd", "mode.alpha=0", "teacher.path=/nowhere", at="kd")
    assert all(torch.equal(weights(sft)[name], tensor) for name, tensor in weights(kd).items())
    assert [row["loss"] for row in history(sft)] == [row["loss"] for row in history(kd)]
    assert results(sft)["headline"] == results(kd)["headline"]


def test_the_blend_is_what_the_formula_says(kd, caplog):
    caplog.set_level(logging.INFO)
    run_dir = kd("mode.alpha=0.25", "mode.loss.kl.temperature=3")
    assert "0.25 * (1 kl(temperature 3" in caplog.text and "times T^2" in caplog.text
    for row in history(run_dir):
        assert row["loss"] == pytest.approx(row["loss_task"] + row["loss_kl"], abs=1e-5)
        shares = [value for key, value in row.items() if key.startswith("gradient_share_")]
        assert sum(shares) == pytest.approx(1)
        assert all(share > 0 for share in shares)
    recorded = read_json(run_dir / "run_metadata.json")["teacher"]
    assert recorded["value"] > recorded["baseline"]


@pytest.mark.slow
def test_alpha_one_takes_nothing_from_the_labels(kd, teacher_run):
    row = history(kd("mode.alpha=1"))[0]
    assert row["loss_task"] == 0 and row["gradient_share_task"] == 0


@pytest.mark.slow
def test_the_teacher_is_asked_once_for_all_runs(kd, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    own = f"cache_dir={tmp_path / 'cache'}"
    kd("mode.alpha=0.5", own, at="a")
    assert "asked about 256 training rows" in caplog.text
    caplog.clear()
    kd("mode.alpha=0.75", "seed=3", own, at="b")
    assert "found in the cache" in caplog.text
    assert "asked about" not in caplog.text


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew(kd, cache, caplog):
    first = kd("mode.alpha=0.5", at="a")
    for path in (cache / "teacher").glob("*.safetensors"):
        path.write_bytes(b"broken")
    second = kd("mode.alpha=0.5", at="b")
    assert "damaged" in caplog.text
    assert history(first)[-1]["loss"] == history(second)[-1]["loss"]


def relabel(run_dir, names, rows):
    """Give the saved head other names, its rows in another order."""
    from safetensors.torch import save_file

    tensors = weights(run_dir)
    for key in ("classifier.weight", "classifier.bias"):
        tensors[key] = tensors[key][rows].clone()
    save_file(tensors, run_dir / "model" / "model.safetensors", metadata={"format": "pt"})
    path = run_dir / "model" / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    path.write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.parametrize("names", [("Bad", "GOOD", "fair"), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_a_teacher_of_another_order_teaches_the_same(kd, teacher_run, names, caplog):
    caplog.set_level(logging.INFO)
    first = kd("mode.alpha=0.5", at="a")
    relabel(teacher_run, names, [2, 0, 1])
    second = kd("mode.alpha=0.5", at="b")
    said = "matched by trial" if names[0].startswith("LABEL") else "put into the task's order"
    assert said in caplog.text
    curves = [[row["loss"] for row in history(run)] for run in (first, second)]
    np.testing.assert_allclose(*curves, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode.alpha=1.5"], r"mode\.alpha=1\.5: a share between 0"),
        (["mode.loss.kl.temperature=0"], r"mode: .*temperature"),
        (["mode.loss.kl.divergence=backward"], r"mode: .*divergence"),
        (["+mode.loss.kl.temprature=2"], r"mode\.loss\.kl\.temprature: .*did you mean temperature"),
        (["teacher.path=null"], "no trained teacher; train one with python launch.py"),
        (["teacher.path=/nowhere"], r"teacher\.path=/nowhere: no such directory"),
        (["mode/loss=hidden", "model.config.vocab_size=30"], "different vocabularies"),
        (["task.labels=[a,b,c]"], "not among task.labels"),
    ],
)
def test_what_cannot_teach_is_refused_in_one_line(kd, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        kd(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_teacher_of_other_labels_or_without_a_head_is_refused(kd, teacher_run):
    relabel(teacher_run, ("yes", "maybe", "no"), [0, 1, 2])
    with pytest.raises(UserError, match=r"teacher\.path=.*\[yes, maybe, no\]"):
        kd()
    path = teacher_run / "model" / "config.json"
    path.write_text(path.read_text().replace("BertForSequenceClassification", "BertModel"))
    with pytest.raises(UserError, match="no head trained for this task"):
        kd()


@pytest.mark.slow
def test_a_teacher_that_knows_nothing_is_stopped_at_the_gate(easy):
    untrained = easy("trainer.num_train_epochs=0", at="untrained")
    settings = ("mode=kd", f"teacher.path={untrained}", *FEW)
    with pytest.raises(UserError, match=r"no better than always giving the commonest answer"):
        easy(*settings, at="gated")
    assert results(easy(*settings, "mode.gate=false", at="open"))["headline"]


@pytest.mark.slow
def test_hidden_states_and_attention_are_distilled_live(kd):
    run_dir = kd("mode/loss=[kl,hidden,attention]", "mode.loss.hidden.weight=0.1")
    row = history(run_dir)[-1]
    assert {"loss_kl", "loss_hidden", "loss_attention"} <= row.keys()
    assert row["gradient_share_hidden"] > 0 and row["gradient_share_attention"] > 0
    assert (run_dir / "checkpoint-6" / "losses.safetensors").is_file()  # widths 16 and 32
    assert not any("teacher" in name or "losses" in name for name in weights(run_dir))


@pytest.mark.slow
def test_two_vocabularies_share_a_teacher_of_logits(kd):
    assert history(kd("model.config.vocab_size=30"))[-1]["loss_kl"] > 0


@pytest.mark.slow
def test_gradient_accumulation_gives_the_step_of_the_whole_batch(kd):
    off = (
        "+model.config.hidden_dropout_prob=0",
        "+model.config.attention_probs_dropout_prob=0",
        "trainer.train_sampling_strategy=random",
    )
    parts = ("trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=4")
    curves = [
        [row["loss"] for row in history(kd(*off, *settings, at=name))]
        for name, settings in (("whole", ()), ("parts", parts))
    ]
    np.testing.assert_allclose(*curves, atol=1e-5)
