"""LoRA: few weights train, a run directory holds those, and whoever reads it gets a whole model."""

import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModelForSequenceClassification

from forge.commands.evaluate import evaluate
from forge.commands.export import merge
from forge.commands.predict import predict
from forge.config.schema import Model
from forge.errors import Preempted, UserError
from forge.models import loading, lora
from forge.models.heads import head_parts
from forge.models.lora import replaced_names
from forge.records import checkpoints
from forge.records.files import read_json
from tests.support.drawing import LETTERS, history
from tests.support.processes import finish, start
from tests.support.runs import SMALL, TOY, launch_in, results, snippet
from tests.support.stopping import OFTEN, STEPS, assert_same
from tests.support.texts import NOTHING_SAVED
from tests.support.texts import TINY as TINY_LM

LAST = "trainer.load_best_model_at_end=false"
RUN = (*TOY, "precision=fp32", *STEPS, *OFTEN, LAST, "trainer.learning_rate=1e-2")
LORA = ("model.lora.r=4", "model.lora.lora_alpha=16")
UNTRAINED = ("trainer.num_train_epochs=0",)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, quick):
    """A classifier and a language model to adapt."""
    launch = launch_in(tmp_path_factory.mktemp("bases"))
    return {
        "classifier": launch(*TOY, *SMALL, *UNTRAINED, at="classifier"),
        "lm": launch(*TINY_LM, "task.max_new_tokens=4", *UNTRAINED, at="lm"),
    }


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, bases):
    """A run with an adapter, of a classifier."""
    launch = launch_in(tmp_path_factory.mktemp("adapted"))
    return launch(*RUN, *LORA, f"model.path={bases['classifier']}")


def logits(run, split="validation"):
    return np.array(pq.read_table(run / "predictions" / f"{split}.parquet")["logits"].to_pylist())


def loaded(run):
    return loading.read(str(run / "model")).state_dict()


def test_only_the_adapter_and_the_head_train_and_are_saved(adapted, bases):
    counts = read_json(adapted / "run_metadata.json")["parameters"]
    for folder in (adapted / "model", next(iter(checkpoints.steps(adapted).values()))):
        saved = checkpoints.weights(folder)
        assert sum(w.numel() for w in saved.values()) == counts["trainable"] < counts["total"] / 8
        assert not list(folder.glob("model*.safetensors"))
        assert {"lora_A", "lora_B", "classifier"} == {
            part for name in saved for part in ("lora_A", "lora_B", "classifier") if part in name
        }
    before, after = loaded(bases["classifier"]), loaded(adapted)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"query", "value", "classifier"}


def test_its_checkpoints_are_as_small_as_they_are_said_to_be(adapted, bases):
    model = loading.read(str(bases["classifier"] / "model"))
    whole = checkpoints.size_of(model)
    found = lora.adapt(model, Model(lora={"r": 4}), "base", head_parts(model), "SEQ_CLS", ())
    said = checkpoints.size_of(found)
    newest = next(iter(checkpoints.steps(adapted).values()))
    files = [newest / name for name in ("adapter_model.safetensors", "optimizer.pt")]
    assert said < whole / 10
    assert said <= sum(file.stat().st_size for file in files) < said + 30_000  # of names


def test_merged_logits_are_the_adapters(adapted, tmp_path):
    """The run judged itself unmerged; what others read is merged."""
    own = logits(adapted)
    judged = evaluate(adapted, [], tmp_path / "again")
    np.testing.assert_allclose(logits(tmp_path / "again"), own, atol=1e-5)
    accuracy = results(adapted)["splits"]["validation"]["accuracy"]
    assert judged["splits"]["validation"]["accuracy"] == accuracy
    folder = tmp_path / "merged"
    merge(adapted, folder)
    assert not lora.is_adapter(folder)
    alone = AutoModelForSequenceClassification.from_pretrained(folder)
    for name, weight in loaded(adapted).items():
        assert torch.equal(weight, alone.state_dict()[name])
    assert predict([adapted], [["dogs run"], ["dogs"]])["rows"]


@pytest.mark.parametrize(
    "adapter",
    [
        ("model.lora.target_modules=[q_proj,embed_tokens]",),
        ("model.lora.target_modules=[lm_head]",),
        ("model.lora.target_modules=[q_proj]", "model.lora.modules_to_save=[lm_head]"),
    ],
)
def test_an_adapter_on_tied_weights_is_judged_alike_merged(launch, tmp_path, adapter):
    """Merged into the matrix that embeddings and head share it would change both."""
    fast = (*TINY_LM, *NOTHING_SAVED, "task.headline=perplexity", "trainer.learning_rate=5e-2",
            "task.generate_rows=2")  # fmt: skip
    tied = "model.config.tie_word_embeddings=true"
    start = launch(*fast, tied, "trainer.max_steps=20", "trainer.learning_rate=1e-2", at="base")
    run = launch(*fast, *LORA, *adapter, f"model.path={start}", "trainer.max_steps=20")
    own = results(run)["headline"]["value"]
    assert abs(own - results(start)["headline"]["value"]) > 0.01
    merge(run, tmp_path / "merged")
    chained = launch(*fast, *LORA, *UNTRAINED, f"model.path={run}", at="chained")
    whole = launch(*fast, *UNTRAINED, f"model.path={tmp_path / 'merged'}", at="whole")
    for again in (results(chained), results(whole), *(
        evaluate(path, [], tmp_path / f"{path.name} again") for path in (run, chained)
    )):  # fmt: skip
        assert again["headline"]["value"] == pytest.approx(own, rel=1e-5)


def test_the_card_says_how_to_use_it_with_peft(adapted, bases, capsys):
    found = ModelCard.load(adapted / "model" / "README.md")
    assert found.data.library_name == "peft" and "lora" in found.data.tags
    assert "adapter: LoRA, r 4, lora_alpha 16, on query, value; " in found.text
    base = str(bases["classifier"] / "model")
    assert base not in snippet(found.text, adapted)
    with replaced_names():
        exec(snippet(found.text, adapted).replace("path/to/its/base", base), {})
    assert capsys.readouterr().out.split()[-1] in ("entailment", "neutral", "contradiction")


def test_a_whole_run_has_nothing_to_merge(bases):
    with pytest.raises(UserError, match="its model/ is whole as it is"):
        merge(bases["classifier"])


@pytest.mark.slow
def test_runs_chain_from_fine_tuning_to_distillation_to_reinforcement(launch, adapted):
    kd = launch(*RUN, *LORA, f"model.path={adapted}", "mode=kd", f"teacher.path={adapted}",
                "mode/loss=[kl,hidden,attention]", "mode.gate=off", at="kd")  # fmt: skip
    rl = launch(*RUN, *LORA, f"model.path={kd}", "mode=rl", at="rl")
    full = launch(*RUN, f"model.path={rl}", at="full")
    counts = read_json(full / "run_metadata.json")["parameters"]
    assert counts["total"] == counts["trainable"]
    assert "base_digest" not in read_json(full / "model" / "config.json")
    start = read_json(rl / "run_metadata.json")["start"]["splits"]["validation"]
    assert start["accuracy"] == results(kd)["splits"]["validation"]["accuracy"]
    np.testing.assert_allclose(logits(rl), _asked(rl), atol=1e-5)


def _asked(run):
    evaluate(run, [], run / "again")
    return logits(run / "again")


def test_a_base_that_is_gone_or_other_is_refused_in_a_line(adapted, bases, tmp_path, launch):
    base = shutil.copytree(bases["classifier"], tmp_path / "base")
    run = launch(*RUN, *LORA, *UNTRAINED, f"model.path={base}")
    file = base / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 64
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"the base of its adapter, .* has other weights now"):
        predict([run], [["a"], ["b"]])
    shutil.move(base, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is gone; write where that is into") as refused:
        launch(*RUN, f"model.path={run}", at="next")
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "step"), [((), 26), (("mode=kd", "mode/loss=[kl,hidden]"), 24), (("mode=rl",), 10)]
)
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(
    launch, stop_at, bases, adapted, mode, step
):  # fmt: skip
    run = (*RUN, *LORA, "model.lora.lora_dropout=0.1", f"model.path={bases['classifier']}", *mode)
    if "mode=kd" in mode:
        run += (f"teacher.path={adapted}", "mode.gate=off")
    whole = launch(*run, at="whole")
    stop_at(step)
    with pytest.raises(Preempted):
        launch(*run, at="stopped")
    assert_same(whole, launch(*run, at="stopped"))


@pytest.mark.slow
def test_a_run_does_not_go_on_over_another_base(launch, stop_at, bases, tmp_path):
    base = shutil.copytree(bases["classifier"], tmp_path / "base")
    run = (*RUN, *LORA, f"model.path={base}")
    stop_at(9)
    with pytest.raises(Preempted):
        launch(*run)
    shutil.rmtree(base)
    launch(*TOY, *SMALL, *UNTRAINED, "seed=2", at="base")
    with pytest.raises(UserError, match=rf"-9: the base of its adapter, {base}.*, has other wei"):
        launch(*run)


@pytest.mark.slow
def test_the_best_checkpoint_is_taken_at_the_end(launch, bases):
    plan = (*TOY, "precision=fp32", *LORA, f"model.path={bases['classifier']}",
            "trainer.num_train_epochs=3", "trainer.learning_rate=3e-2")  # fmt: skip
    run = launch(*plan)
    best = read_json(run / "training_state.json")["best_checkpoint"]
    kept, final = (checkpoints.weights(run / name) for name in (best, "model"))
    assert all(torch.equal(weight, final[name]) for name, weight in kept.items())


@pytest.mark.parametrize("settings", [(), ("model.lora.use_dora=true",)])
def test_reinforcement_starts_at_ratio_1_and_kl_0(launch, adapted, settings):
    run = launch(*RUN, *LORA, *settings, "mode=rl", f"model.path={adapted}", "trainer.max_steps=8",
                 "mode.num_iterations=2", "trainer.logging_steps=1")  # fmt: skip
    rows = history(run)
    first, last = rows[0], rows[-1]
    tolerance = 1e-6 if settings else 0  # DoRA takes a weight to pieces and puts it together
    assert abs(first["kl"]) <= tolerance < last["kl"]
    assert first["clip_ratio/region_mean"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [(), ("mode=rl", *LETTERS, "trainer.per_device_train_batch_size=16"), ("mode=kd",)],
)  # fmt: skip
def test_a_stopped_language_model_too(launch, stop_at, bases, mode):
    run = (*TINY_LM, *LORA, f"model.path={bases['lm']}", "task.max_new_tokens=4", LAST,
           "task.dataset.validation=20", "trainer.eval_strategy=no", "trainer.max_steps=8",
           "trainer.save_total_limit=null", "trainer.learning_rate=1e-2", "trainer.logging_steps=1",
           *mode)  # fmt: skip
    if "mode=kd" in mode:
        run += (f"teacher.path={bases['lm']}", "mode.gate=off", "mode/loss=[kl,hidden]")
    whole = launch(*run, at="whole")
    assert not list((whole / "model").glob("model*.safetensors"))
    stop_at(4)
    with pytest.raises(Preempted):
        launch(*run, at="stopped")
    stopped = launch(*run, at="stopped")
    for name, weight in checkpoints.weights(whole / "model").items():
        assert torch.equal(weight, checkpoints.weights(stopped / "model")[name]), name
    if "mode=rl" in mode:
        assert history(whole)[0]["kl"] == 0 < history(whole)[-1]["kl"]
    merge(whole)
    assert loading.read(str(whole / "merged")).generation_config is not None


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        ("bert", {"classifier"}),
        ("distilbert", {"pre_classifier", "classifier"}),
        ("roberta", {"classifier"}),
        ("electra", {"classifier"}),
        ("deberta-v2", {"pooler", "classifier"}),
        ("modernbert", {"head", "classifier"}),
    ],
)
def test_every_head_trains_in_full(kind, whole):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
             "intermediate_size": 32, "pad_token_id": 0}  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes)
    base = AutoModelForSequenceClassification.from_config(config)
    found = lora.adapt(base, Model(lora={"r": 2}), "base", head_parts(base), "SEQ_CLS", ())
    trained = [name for name, p in found.named_parameters() if p.requires_grad]
    assert {name.split(".")[2] for name in trained if "lora_" not in name} == whole
    assert any("lora_A" in name for name in trained)


def test_what_starts_from_random_values_inside_the_encoder_trains_too():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
             "intermediate_size": 32}  # fmt: skip
    base = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **sizes))
    fresh = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight")
    found = lora.adapt(base, Model(lora={"r": 2}), "base", head_parts(base), "SEQ_CLS", fresh)
    trained = [name for name, p in found.named_parameters() if p.requires_grad]
    assert any("bert.pooler.dense.modules_to_save" in name for name in trained)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("model.lora.rank=4",), r"model.lora.rank: peft.LoraConfig has no such .* known: r,|rank"),
        (("model.lora.lora_alhpa=4",), r"model.lora.lora_alhpa: .*; did you mean lora_alpha"),
        (("model.lora.r=many",), "model.lora.r=many: input should be a valid integer"),
        (("model.lora.r=0",), "model.lora.r=0: from 1 to"),
        (("model.lora.lora_dropout=2",), "model.lora.lora_dropout=2: from 0 to"),
        (("model.lora.task_type=CAUSAL_LM",), "model.lora.task_type: set by Forge"),
        (("model.lora.init_lora_weights=pissa",), "has to start as no change of its base"),
        (("model.lora.target_modules=[query,quary]",),
         "model.lora.target_modules: the model has no module quary; did you mean query"),
        (("model.lora.r=4", "model.lora.modules_to_save=[poolr]"),
         "model.lora.modules_to_save: the model has no module poolr; did you mean pooler"),
        (("model.lora.r=4", "model.layers=1"), "and layers=1 makes other weights"),
        (("model.lora.r=4", "model.path=null", "model=tiny"), "and path=null makes other"),
        (("model.lora.bias=all", "mode=rl"), "model.lora.bias=all: biases stay changed"),
        (("teacher.lora.r=4", "mode=kd", "teacher.path=${model.path}"), "is trained already"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(launch, bases, words, problem):
    with pytest.raises(UserError, match=f"(?i){problem}") as refused:
        launch(*RUN, f"model.path={bases['classifier']}", *words)
    assert "\n" not in str(refused.value)


def test_without_peft_the_way_out_is_said(launch, adapted, monkeypatch):
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    for words in (("model.lora.r=4", "model.path=anything"), (f"model.path={adapted}",)):
        with pytest.raises(UserError, match=r"peft is not installed; pip install 'forge\[lora\]'"):
            launch(*RUN, *words)


@pytest.mark.slow
def test_two_processes_train_one_adapter_and_a_killed_run_goes_on(bases, tmp_path):
    """With beta, so that the adapter is switched off within a model that is wrapped."""
    words = (*LORA, f"model.path={bases['classifier']}", "launcher=ddp", "mode=rl")
    code, _, err = finish(tmp_path / "whole", *words)
    assert code == 0, err
    process = start(tmp_path / "run", *words)
    while process.poll() is None and not (tmp_path / "run/checkpoint-4/commit.json").is_file():
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    code, out, err = finish(tmp_path / "run", *words)
    assert code == 0 and "resume  checkpoint-" in out, err
    files = [tmp_path / run / "model" / "adapter_model.safetensors" for run in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert history(tmp_path / "whole")[0]["kl"] == 0
