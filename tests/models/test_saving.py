"""Weights that a checkpoint lacks."""

import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from forge.errors import UserError
from forge.models.saving import require_all
from tests.support.texts import TINY


@pytest.fixture
def model():
    config = LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                         intermediate_size=8, vocab_size=9, tie_word_embeddings=True)  # fmt: skip
    return LlamaForCausalLM(config)


def test_a_tied_weight_may_be_missing_and_no_other(model):
    require_all(model, [])
    require_all(model, ["lm_head.weight"])
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        require_all(model, ["lm_head.weight", "model.norm.weight"])
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    with pytest.raises(UserError, match="lm_head"):
        require_all(model, ["lm_head.weight"])


def test_a_tied_weight_is_not_reported_missing(launch, caplog):
    steps = ("trainer.max_steps=2", "trainer.eval_strategy=steps", "trainer.save_strategy=steps",
             "trainer.eval_steps=1", "trainer.save_steps=1", "task.generate_rows=2")  # fmt: skip
    launch(*TINY, *steps, "model.config.tie_word_embeddings=true", "task.headline=perplexity")
    assert "missing" not in caplog.text  # the best checkpoint has been loaded
