"""The head is the task's: by name, never silently another."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PretrainedConfig

from forge.config.schema import Model
from forge.errors import UserError
from forge.inputs.text import Text, vocabulary
from forge.models import layers, loading
from forge.tasks import kinds
from forge.tasks.text import HEAD

SIZES = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "vocab_size": 60,
}
TEXTS = ["the cat sat", "a dog ran away", "the cat ran", "a dog sat"] * 2


def task(*labels):
    return kinds.text_label(
        dataset=dict,
        text="text",
        label="label",
        labels=list(labels),
        metrics=["accuracy"],
        headline="accuracy",
    )


def load(model, for_task):
    rows = Dataset.from_dict({"text_0": TEXTS, "prompt": TEXTS, "completion": TEXTS})
    tokenizer = for_task.input.load_processor(model, rows)
    config = loading.load_config(model, for_task.input.fitting(tokenizer))
    for_task.check(model, tokenizer, config, "model")
    return loading.load(model, for_task.head, config), tokenizer


@pytest.fixture
def saved(tmp_path):
    """A trained classifier of three named labels, in a run directory."""
    torch.manual_seed(0)
    model, tokenizer = load(Model(config=SIZES), task("yes", "maybe", "no"))
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def logits(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS[:2], return_tensors="pt", padding=True)).logits


def test_from_nothing_the_vocabulary_is_the_tasks_own_and_deterministic():
    first, second = (vocabulary(Model(config=SIZES), TEXTS) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("The CAT ran") == ["the", "cat", "ran"]
    pair = first("the cat", "a dog")
    assert first.decode(pair["input_ids"]) == "[CLS] the cat [SEP] a dog [SEP]"


def test_the_task_names_the_labels():
    model, _ = load(Model(config=SIZES), task("yes", "no"))
    assert model.config.id2label == {0: "yes", 1: "no"}
    assert model.config.label2id == {"yes": 0, "no": 1}
    assert model.config.problem_type == "single_label_classification"


def test_a_run_directory_is_a_model(saved):
    model, tokenizer = load(Model(path=str(saved)), task("yes", "maybe", "no"))
    other, _ = load(Model(path=str(saved / "model")), task("yes", "maybe", "no"))
    assert torch.equal(logits(model, tokenizer), logits(other, tokenizer))
    assert tokenizer.tokenize("the cat") == ["the", "cat"]


def test_a_permuted_head_is_put_into_the_tasks_order_and_said(saved, caplog):
    caplog.set_level("INFO")
    same, tokenizer = load(Model(path=str(saved)), task("yes", "maybe", "no"))
    permuted, _ = load(Model(path=str(saved)), task("No", "yes", "MAYBE"))
    expected = logits(same, tokenizer)[:, [2, 0, 1]]
    torch.testing.assert_close(logits(permuted, tokenizer), expected)
    assert permuted.config.id2label == {0: "No", 1: "yes", 2: "MAYBE"}
    assert "labels put into the task's order: No, yes, MAYBE" in caplog.text


def test_labels_that_differ_by_case_only_are_matched_exactly(tmp_path):
    model, tokenizer = load(Model(config=SIZES), task("A", "a", "b"))
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    permuted, _ = load(Model(path=str(tmp_path)), task("b", "A", "a"))
    expected = logits(model, tokenizer)[:, [2, 0, 1]]
    torch.testing.assert_close(logits(permuted, tokenizer), expected)


@pytest.mark.parametrize("labels", [("good", "fair", "bad"), ("yes", "no")])
def test_a_head_for_other_labels_is_refused_with_both_lists(saved, labels):
    with pytest.raises(UserError, match=r"\[yes, maybe, no\].*\[.*\].*model\.new_head=true"):
        load(Model(path=str(saved)), task(*labels))


@pytest.mark.parametrize("labels", [("good", "fair", "bad"), ("yes", "no"), ("yes", "maybe", "no")])
def test_a_new_head_keeps_the_encoder_and_is_said(saved, labels, caplog):
    caplog.set_level("INFO")
    old, _ = load(Model(path=str(saved)), task("yes", "maybe", "no"))
    new, _ = load(Model(path=str(saved), new_head=True), task(*labels))
    for name, weight in old.base_model.state_dict().items():
        assert torch.equal(weight, new.base_model.state_dict()[name]), name
    assert new.classifier.weight.shape == (len(labels), 16)
    if len(labels) == 3:
        assert not torch.equal(old.classifier.weight, new.classifier.weight)
    assert "new, from random values: dropout, classifier" in caplog.text


def test_unnamed_labels_are_taken_in_order_with_a_warning(saved, caplog):
    import json

    path = saved / "model" / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(3)}
    config["label2id"] = {f"LABEL_{i}": i for i in range(3)}
    path.write_text(json.dumps(config))
    model, _ = load(Model(path=str(saved)), task("a", "b", "c"))
    assert model.config.id2label[0] == "a"
    assert "its labels are unnamed (LABEL_0, LABEL_1, LABEL_2)" in caplog.text


def test_an_encoder_gets_a_head_and_it_is_said(saved, caplog):
    from transformers import AutoModel

    caplog.set_level("INFO")
    AutoModel.from_pretrained(saved / "model").save_pretrained(saved / "encoder")
    model = Model(path=str(saved / "encoder"), tokenizer=str(saved / "model"))
    load(model, task("a", "b"))
    assert "new, from random values: classifier.bias, classifier.weight" in caplog.text


def test_from_scratch_takes_architecture_and_tokenizer_but_no_weights(saved):
    labels = task("yes", "maybe", "no")
    trained, tokenizer = load(Model(path=str(saved)), labels)
    fresh, same = load(Model(path=str(saved), from_scratch=True), labels)
    assert same.get_vocab() == tokenizer.get_vocab()
    assert fresh.config.hidden_size == 16
    weights = [m.bert.encoder.layer[0].output.dense.weight for m in (trained, fresh)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "electra"])
def test_other_architectures_start_from_nothing_too(kind):
    sizes = (
        {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2} if kind == "distilbert" else {}
    )
    model, tokenizer = load(Model(config={**SIZES, **sizes, "model_type": kind}), task("a", "b"))
    batch = tokenizer(TEXTS[:2], return_tensors="pt", padding=True)
    inputs = {k: v for k, v in batch.items() if k in tokenizer.model_input_names}
    assert model(**inputs).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model(), "name a Hub model, a directory or a run"),
        (Model(config={"model_type": "brt"}), "did you mean bert"),
        (Model(config={**SIZES, "num_attention_heads": 3}), r"model\.config: .*multiple"),
        (Model(path="/no/such/place"), "no such directory"),
        (Model(path="tests/model"), r"tests/model: no such directory; did you mean models"),
        (Model(path="no-such/model"), r"Hub is unreachable .*model\.path=DIR"),
    ],
)
def test_a_path_that_is_no_model_is_named(model, message):
    with pytest.raises(UserError, match=message) as caught:
        load(model, task("a", "b"))
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.path=.*: no config\.json and no finished run"):
        loading.resolve(str(tmp_path))


def test_a_broken_model_directory_is_one_line(saved):
    (saved / "model" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="model"):
        load(Model(path=str(saved)), task("yes", "maybe", "no"))


def test_max_length_is_held_against_the_models_limit():
    model, tokenizer = load(Model(config=SIZES), task("a", "b"))
    assert Text(None, ["text"]).limit(tokenizer, model.config) == 32
    assert Text(20, ["text"]).limit(tokenizer, model.config) == 20
    assert Text(33, ["text"]).limit(tokenizer, model.config) == 32
    with pytest.raises(UserError, match="at least 8 tokens"):
        Text(7, ["text"]).limit(tokenizer, model.config)


def test_a_tokenizer_larger_than_the_model_is_refused(saved, tmp_path):
    words = vocabulary(Model(config=SIZES), [*TEXTS, "zebra xylophone quartz"] * 3)
    words.save_pretrained(tmp_path / "words")
    model = Model(path=str(saved), tokenizer=str(tmp_path / "words"))
    with pytest.raises(UserError, match="name the tokenizer that the model was trained with"):
        load(model, task("yes", "maybe", "no"))


def test_regression_has_a_head_of_one():
    source = {"train": Dataset.from_list([{"text": "a", "label": 0.5}])}
    regression = kinds.text_number(
        dataset=lambda: source, text="text", label="label", metrics=["mse"], headline="mse"
    )
    model, _ = load(Model(config=SIZES), regression)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert regression.answer.predict(np.zeros((2, 1))).shape == (2,)


@pytest.mark.parametrize(
    "kind", ["bert", "distilbert", "roberta", "electra", "deberta-v2", "mpnet"]
)
def test_a_shallower_model_has_the_chosen_layers_and_survives_saving(kind, tmp_path):
    from forge.models.layers import shallower

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if kind == "distilbert":
        names = ("dim", "n_layers", "n_heads", "hidden_dim")
    sizes = dict(zip(names, (16, 4, 2, 32), strict=True))
    config = CONFIG_MAPPING[kind](vocab_size=40, num_labels=3, **sizes)
    source = AutoModelForSequenceClassification.from_config(config)
    student = shallower(source, [0, 3], AutoModelForSequenceClassification).eval()
    kept = {name: tensor for name, tensor in student.state_dict().items() if "layer.1." in name}
    assert kept
    for name, tensor in kept.items():
        assert torch.equal(tensor, source.state_dict()[name.replace("layer.1.", "layer.3.")])
    student.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(student(ids).logits, again(ids).logits)


def test_a_number_of_layers_is_spread_over_the_depth():
    from forge.models.layers import _choose_layers

    assert _choose_layers(3, 12) == [0, 6, 11]
    assert _choose_layers(1, 12) == [0] and _choose_layers(None, 2) == [0, 1]


DECODER = {
    **{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 300},
    **{"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32},
}


def test_a_decoders_vocabulary_gives_any_text_back_and_spells_numbers():
    texts = ["Ann has 12 cups.", "Ben has 12 cups."] * 3
    first, second = (vocabulary(Model(config=DECODER), texts) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("12 cups.")[:2] == ["1", "2"]
    for text in (*texts, "  naïve 12,5\n\tπ 😀"):
        ids = first(text)["input_ids"]
        assert first.decode(ids) == text
    assert (first.pad_token_id, first.eos_token_id) == (0, 1)


def test_a_language_model_knows_its_ends_and_is_made_shallower():
    task, model = kinds.prompt_text(), Model(config=DECODER)
    built, tokenizer = load(model, task)
    assert built.config.eos_token_id == tokenizer.eos_token_id
    assert type(built).__name__ == "LlamaForCausalLM"
    fewer = layers.shallower(built, [0, 2], task.head.auto_class)
    assert torch.equal(fewer.model.layers[1].mlp.up_proj.weight,
                       built.model.layers[2].mlp.up_proj.weight)  # fmt: skip


def test_a_classifier_is_no_language_model(saved):
    with pytest.raises(UserError, match="BertForSequenceClassification has no head that generates"):
        load(Model(path=str(saved)), kinds.prompt_text())


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("LlamaForCausalLM", True),
        ("GPT2LMHeadModel", True),
        ("MyOwnForCausalLM", True),
        ("LlamaModel", False),
        ("BertForMaskedLM", False),
        ("T5ForConditionalGeneration", False),
    ],
)
def test_which_saved_models_write(name, writes):
    assert HEAD.is_trained(PretrainedConfig(architectures=[name])) is writes
