"""A tokenizer and its model fit each other: a text in a padded batch reads as alone."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EsmConfig,
    PreTrainedTokenizerFast,
    XLNetConfig,
)

from forge.commands.predict import predict
from forge.errors import UserError
from forge.models.tokenizers import positions
from forge.records.files import read_json
from forge.reinforcement.rewards import Classifier

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 66, "vocab_size": 40, "id2label": {0: "0", 1: "1"},
}  # fmt: skip
WORDS = ["the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "away", "home", "today"]
PARTS = {"unk_token": "<unk>", "eos_token": "</s>", "sep_token": "</s>", "bos_token": "<s>"}
GPT2 = {"model_type": "gpt2", "pad_token_id": None}
ROBERTA = {"model_type": "roberta", "pad_token_id": 1, "type_vocab_size": 1}
XLNET = {
    "model_type": "xlnet",
    "max_position_embeddings": None,
    "d_inner": 16,
    "d_head": 8,
    "pad_token_id": 1,
}
T5 = {"model_type": "t5", "d_kv": 8, "d_ff": 16, "decoder_start_token_id": 1}
RUN = ("task=files", "task.max_length=16", "task.label=label", "precision=fp32",
       "trainer.per_device_eval_batch_size=4", "trainer.train_sampling_strategy=random",
       "trainer.per_device_train_batch_size=8")  # fmt: skip


def write(folder, config, pad=None, types=False):
    """A model with random weights, and a tokenizer of words beside it."""
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if config["model_type"] not in ("gpt2", "t5"):
        ends = [("<s>", 0), ("</s>", 2)]
        words.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", "<s> $A </s> $B:1 </s>:1", special_tokens=ends
        )
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=pad, model_input_names=names, **PARTS
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    settings = {k: v for k, v in (SIZES | config).items() if v or k == "pad_token_id"}
    model = AutoModelForSequenceClassification.from_config(
        CONFIG_MAPPING[settings.pop("model_type")](**settings)
    )
    names = ("score", "logits_proj", "classifier", "classification_head")
    head = next(getattr(model, name) for name in names if hasattr(model, name))
    torch.nn.init.normal_(getattr(head, "out_proj", head).weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def rows(jsonl):
    """Rows of many lengths."""
    return jsonl("rows.jsonl", [
        {"first": " ".join(WORDS[: 1 + i % 9]), "second": WORDS[i % 11], "label": i % 2}
        for i in range(24)
    ])  # fmt: skip


@pytest.fixture
def run(launch, rows):
    """Start from a model that is written; evaluate after some steps."""

    def start(path, *overrides, text="first", steps=2, at="run"):
        files = [f"task.files.{split}={rows}" for split in ("train", "validation")]
        return launch(*RUN, *files, f"task.text={text}", f"model.path={path}",
                      f"trainer.max_steps={steps}", *overrides, at=at)  # fmt: skip

    return start


def logits(run_dir):
    table = pq.read_table(run_dir / "predictions" / "validation.parquet")
    return np.array(table["logits"].to_pylist())


def alone(run_dir, texts):
    """What transformers says of each text by itself."""
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model")
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "model").eval()
    with torch.no_grad():
        read = [model(**tokenizer(*text, return_tensors="pt")).logits[0] for text in texts]
    return torch.stack(read).numpy()


def texts_of(rows, *columns):
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    return [[row[column] for column in columns] for row in found]


@pytest.mark.parametrize(
    ("config", "pad", "types"),
    [
        (GPT2, None, False),
        (GPT2, "<pad>", False),  # which the config does not know
        (GPT2 | {"pad_token_id": 5}, "<pad>", False),  # nor here: it is a word
        ({"model_type": "llama", "pad_token_id": None}, None, False),
        (XLNET, "<pad>", False),
        (T5, "<pad>", False),
        (T5, None, False),
        (T5, "</s>", False),
        (ROBERTA, "<pad>", False),
        (ROBERTA | {"pad_token_id": None}, "<pad>", False),
        ({"model_type": "bert", "pad_token_id": None, "type_vocab_size": 1}, "<pad>", True),
        ({"model_type": "bert", "pad_token_id": 1, "type_vocab_size": 2}, "<pad>", True),
    ],
)
@pytest.mark.parametrize(("columns", "steps"), [(("first",), 0), (("first", "second"), 2)])
def test_a_text_in_a_batch_reads_as_alone(run, rows, tmp_path, config, pad, types, columns, steps):
    path = write(tmp_path / "start", config, pad, types)
    done = run(path, text=f"[{','.join(columns)}]", steps=steps)
    texts = texts_of(rows, *columns)
    np.testing.assert_allclose(logits(done), alone(done, texts), atol=1e-5)


def test_a_teacher_without_a_padding_token_answers_each_text_as_alone(run, rows, tmp_path):
    student = write(tmp_path / "student", {"model_type": "bert", "pad_token_id": 1}, "<pad>")
    teacher = write(tmp_path / "teacher", GPT2)
    taught = ("mode=kd", "mode.gate=off", f"teacher.path={teacher}", f"cache_dir={tmp_path}/cache")
    done = run(student, *taught)
    stored = pq.read_table(done / "predictions" / "teacher_validation.parquet")
    own = alone(run(teacher, steps=0, at="own"), texts_of(rows, "first"))
    np.testing.assert_allclose(np.array(stored["logits"].to_pylist()), own, atol=1e-5)


def test_stored_answers_are_those_of_the_config_too(run, tmp_path):
    """The same weights answer otherwise with another activation, or padding token."""
    student = write(tmp_path / "student", {"model_type": "bert", "pad_token_id": 1}, "<pad>")
    for activation in ("gelu_new", "relu"):
        teacher = write(tmp_path / "teacher", GPT2 | {"activation_function": activation})
        run(student, "mode=kd", "mode.gate=off", f"teacher.path={teacher}",
            f"cache_dir={tmp_path}/cache", at=activation)  # fmt: skip
    assert len(list(tmp_path.glob("cache/teacher/*.safetensors"))) == 2  # splits share a file


def test_a_reward_model_reads_texts_and_pairs_as_alone(tmp_path):
    texts = [["cat", "a dog"], ["the dog ran away today", "home"], ["bird", "a"]]
    for name, config, pad, types in (
        ("gpt2", GPT2, None, False),
        ("bert", {"model_type": "bert", "type_vocab_size": 1}, "<pad>", True),
    ):
        path = write(tmp_path / name, config, pad, types)
        reward = Classifier(str(path), ["prompt", "completion"], "0")
        reward.bind(None)
        prompts, completions = map(list, zip(*texts, strict=True))
        together = reward(completions, prompt=prompts)
        each = [reward([second], prompt=[first])[0] for first, second in texts]
        assert together == pytest.approx(each, abs=1e-5)
        assert len(set(together)) == 3


def test_a_text_without_a_token_is_read_as_padding(run, tmp_path, jsonl):
    path = write(tmp_path / "start", GPT2)
    jsonl("rows.jsonl", [{"first": " ".join(WORDS[: i % 9]), "label": i % 2} for i in range(24)])
    one = "trainer.per_device_eval_batch_size=1"
    together, each = run(path, steps=0), run(path, one, steps=0, at="one")
    np.testing.assert_allclose(logits(together), logits(each), atol=1e-5)
    reward = Classifier(str(path), label="0")
    reward.bind(None)
    empty, dog = reward(["", "dog"])
    assert [empty, dog] == pytest.approx([reward([text])[0] for text in ("", "dog")], abs=1e-5)
    assert logits(each)[0] == pytest.approx(alone(each, [["</s>"]])[0], abs=1e-5)


@pytest.mark.parametrize("model", [ROBERTA, {"model_type": "bert", "pad_token_id": 1}])
def test_long_texts_are_cut_at_the_positions_that_a_model_has(run, rows, tmp_path, jsonl, model):
    path = write(tmp_path / "start", model, "<pad>")
    most = 64 if model is ROBERTA else 66  # RoBERTa counts from the padding token on
    jsonl("rows.jsonl", [{"first": "cat " * 60 * (1 + i % 2), "label": i % 2} for i in range(16)])
    done = run(path, "task.max_length=null")
    assert read_json(done / "run_metadata.json")["max_length"] == most
    assert predict([done], [["dog " * 100]])["rows"]
    longer = run(path, f"task.max_length={most + 1}", at="longer")
    assert read_json(longer / "run_metadata.json")["max_length"] == most


def test_a_reward_model_of_fewer_tokens_than_its_tokenizer_is_refused(tmp_path):
    path = write(tmp_path / "small", {"model_type": "bert", "vocab_size": 10}, "<pad>")
    with pytest.raises(UserError, match="it has 15 tokens, the model 10"):
        Classifier(str(path), label="0").bind(None)


def test_a_model_that_says_minus_one_has_no_limit_of_positions():
    assert positions(XLNetConfig()) == 10**9


def test_positions_that_start_after_padding_are_fewer_than_the_table():
    config = EsmConfig(vocab_size=33, max_position_embeddings=66, pad_token_id=1)
    assert positions(config) == 64
