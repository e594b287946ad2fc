"""Tiny language models, their tokenizers and tasks."""

import pytest
import torch
from transformers import PretrainedConfig

from forge.config.schema import Model
from forge.inputs.text import vocabulary
from forge.models import loading
from forge.tasks.kinds import prompt_text
from tests.support.runs import launch_in, write_rows

SIZES = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "vocab_size": 300,
}


TINY = (
    "task=toy_math",
    "model=tiny_lm",
    "task.dataset.train=400",
    "task.dataset.validation=60",
    "task.max_new_tokens=12",
    "model.config.hidden_size=16",
    "model.config.intermediate_size=32",
    "precision=fp32",
)


NOTHING_SAVED = (
    "trainer.eval_strategy=no",
    "trainer.save_strategy=no",
    "trainer.load_best_model_at_end=false",
)


ROWS = [
    {"prompt": "two and two is", "completion": " 4"},
    {"prompt": "a long one: two and two and two is", "completion": " exactly 6"},
    {"prompt": "one", "completion": " 1"},
]


CHATML = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def task_of(tmp_path):
    """A task over rows that are written to files."""

    def make(rows=ROWS, **settings):
        path = str(write_rows(tmp_path / "rows.jsonl", rows))
        return prompt_text(files={"train": path, "validation": path}, **settings)

    return make


def tokenizer_of(begins=False, template=None):
    tokenizer = vocabulary(Model(config=SIZES), [t for r in ROWS for t in r.values()])
    if begins:
        from tokenizers.processors import TemplateProcessing

        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = template
    return tokenizer


def tokenized(task, tokenizer, tmp_path, max_length=64):
    task.input.make_ready(tokenizer, PretrainedConfig())
    return task.encode(task.load()["train"], tokenizer, max_length, str(tmp_path))


FEW = ("trainer.max_steps=4", "trainer.logging_steps=1", "task.headline=perplexity")
LARGER = ("model.config.hidden_size=32", "model.config.num_attention_heads=2")


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory, quick):
    """Little trained, but better than the frequencies of tokens."""
    launch = launch_in(tmp_path_factory.mktemp("teacher"))
    settings = ("trainer.num_train_epochs=6", "trainer.learning_rate=1e-2", "task.generate_rows=2")
    return launch(*TINY, *LARGER, *NOTHING_SAVED, *settings)


@pytest.fixture
def kd(launch, teacher_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # teachers are looked for, and trained, under outputs/
    given = ("mode=kd", f"teacher.path={teacher_run}", *FEW)
    return lambda *overrides, at="run": launch(*TINY, *given, *overrides, at=at)


def model_of(tokenizer, task, seed, rows=0, **sizes):
    torch.manual_seed(seed)
    model = Model(config=SIZES | sizes)
    built = loading.load(
        model, task.head, loading.load_config(model, task.input.fitting(tokenizer))
    )
    torch.nn.init.normal_(built.lm_head.weight, std=0.5)
    if rows:
        built.resize_token_embeddings(len(tokenizer) + rows)
    return built


def divergence(p, q, name):
    """By the textbook, of probabilities."""
    if name == "jsd":
        m = (p + q) / 2
        return (divergence(p, m, "forward") + divergence(q, m, "forward")) / 2
    if name == "skew":
        return divergence(p, 0.1 * p + 0.9 * q, "forward")
    return (q * (q / p).log()).sum() if name == "reverse" else (p * (p / q).log()).sum()
