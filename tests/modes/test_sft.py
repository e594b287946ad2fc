"""Batches without padding: the same loss and gradients, and no row sees another."""

import logging

import pytest
import torch

from forge.config.schema import Model
from forge.errors import UserError
from forge.inputs.prompt import Flattened
from forge.models import loading
from forge.training.trainer import Trainer
from tests.support.drawing import check_stopped, history
from tests.support.runs import results
from tests.support.texts import NOTHING_SAVED, SIZES, TINY, tokenized, tokenizer_of

FLAT = (*TINY, "task.padding_free=true", "trainer.train_sampling_strategy=random",
        "task.generate_rows=2", "trainer.logging_steps=1")  # fmt: skip


@pytest.fixture
def read(task_of, tmp_path):
    """A random model, and the rows of a few lengths as one padded batch and as one flattened."""
    task, tokenizer = task_of(), tokenizer_of()
    rows = list(tokenized(task, tokenizer, tmp_path))

    def make(attention):
        torch.manual_seed(0)
        model = Model(config=SIZES | {"hidden_size": 32, "num_hidden_layers": 2})
        fitting = task.input.fitting(tokenizer)
        built = loading.load(model, task.head, loading.load_config(model, fitting))
        built.set_attn_implementation(attention)
        torch.nn.init.normal_(built.lm_head.weight, std=0.5)
        built.config.use_cache = False  # as the trainer sets it
        return built, dict(task.collator(tokenizer, 8)(rows)), Flattened()(rows), rows

    return make


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_are_those_of_the_padded_batch(read, attention):
    model, padded, flat, rows = read(attention)
    assert flat["input_ids"].shape == (1, sum(row["length"] for row in rows))
    assert flat["id"].tolist() == padded["id"].tolist()
    found = []
    for batch in (padded, flat):
        batch.pop("id")
        model.zero_grad()
        loss = model(**batch, num_items_in_batch=torch.tensor(11)).loss
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for flattened, by_row in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(flattened, by_row, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_row_sees_another(read, attention):
    model, _, flat, rows = read(attention)
    first = rows[0]["length"]
    ids, positions = flat["input_ids"], flat["position_ids"]
    other = ids.clone()
    other[:, :first] = other[:, :first].flip(1)
    seen = [model(input_ids=x, position_ids=positions).logits[:, first:] for x in (ids, other)]
    assert torch.equal(*seen)


def test_a_run_counts_rows_and_tokens_without_padding(launch, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    seen, step = [], Trainer.training_step

    def spy(self, *args, **kwargs):
        found = step(self, *args, **kwargs)
        seen.append((self.examples, int(self.tokens), self.last_ids.tolist()))
        return found

    monkeypatch.setattr(Trainer, "training_step", spy)
    few = ("trainer.max_steps=4", "trainer.gradient_accumulation_steps=2", *NOTHING_SAVED)
    runs = [launch(*FLAT, *few, f"task.padding_free={word}", at=word) for word in ("true", "null")]
    assert "batches one sequence each" in caplog.text
    flat, padded = seen[:8], seen[8:]
    assert flat == padded
    shares = [results(run)["train"]["padding_share"] for run in runs]
    assert shares[0] == 0 < shares[1]
    curves = [[row["loss"] for row in history(run)] for run in runs]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    (one, other) = (results(run)["splits"]["validation"]["loss"] for run in runs)
    assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(launch, stop_after):
    run = (*FLAT, "trainer.max_steps=16", "trainer.eval_strategy=no",
           "trainer.load_best_model_at_end=false")  # fmt: skip
    check_stopped(launch, stop_after, 14, *run)  # in the second epoch


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("+trainer.use_cache=true",), "llama with sdpa attention does not keep rows apart"),
        (("model.config.model_type=mamba", "+model.config.state_size=4"),
         "mamba with .* attention does not keep rows apart"),
        (("mode=kd", "teacher.path=x"), "task.padding_free=true: it is for mode=sft"),
        (("mode=rl",), "task.padding_free=true: it is for mode=sft"),
    ],
)  # fmt: skip
def test_what_cannot_be_flattened_is_refused_in_a_line(launch, words, problem):
    with pytest.raises(UserError, match=problem) as refused:
        launch(*FLAT, *NOTHING_SAVED, *words)
    assert "\n" not in str(refused.value)
