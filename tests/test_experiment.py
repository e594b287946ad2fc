"""One run from config to outputs, and what a second start in its directory does."""

import json
import os
import stat

import pyarrow.parquet as pq
import pytest
import torch

from forge.commands.export import merge
from forge.errors import Failure, UserError
from forge.records.files import read_json
from forge.results.show import shown
from forge.training.trainer import Trainer
from tests.support.runs import SMALL, TOY, launch_in, results, weights
from tests.support.texts import TINY

GENERATE = ("task.generate_rows=4", "task.max_new_tokens=6")


@pytest.fixture
def metadata():
    return lambda run_dir: read_json(run_dir / "run_metadata.json")


def test_a_run_writes_its_outputs(toy_run, metadata, caplog):
    caplog.set_level("INFO")
    run_dir = toy_run("trainer.num_train_epochs=2")
    assert caplog.text.count("of the first epoch") == 1
    for word in ("device  cpu", "precision fp32", "train: 600 rows", f"outputs {run_dir}"):
        assert word in caplog.text
    names = {path.name for path in run_dir.iterdir()}
    assert {"run_metadata.json", "training_state.json", "results.json", "model"} <= names
    found = results(run_dir)
    split = found["splits"]["validation"]
    assert found["headline"] == {
        "metric": "accuracy",
        "split": "validation",
        "value": split["accuracy"],
    }
    assert {"accuracy", "loss", "n", "seconds", "examples_per_second"} <= split.keys()
    assert {"steps", "seconds", "examples_per_second", "tokens_per_second"} <= found["train"].keys()
    assert 0 <= found["train"]["padding_share"] < 0.5

    table = pq.read_table(run_dir / "predictions" / "validation.parquet").to_pydict()
    assert table["id"] == list(range(split["n"]))
    right = sum(p == y for p, y in zip(table["prediction"], table["label"], strict=True))
    assert right / split["n"] == pytest.approx(split["accuracy"])
    assert all(
        max(range(3), key=row.__getitem__) == p
        for row, p in zip(table["logits"], table["prediction"], strict=True)
    )

    state = read_json(run_dir / "training_state.json")
    assert state["status"] == "finished"
    assert state["step"] == state["max_steps"] == found["train"]["steps"]
    assert (run_dir / state["latest_checkpoint"]).is_dir()
    facts = metadata(run_dir)
    assert facts["config"]["trainer"]["seed"] == 42
    assert facts["precision"] == "fp32"
    assert facts["parameters"]["total"] > 1000
    assert facts["data"]["train"]["n"] == 600
    assert [a["status"] for a in facts["attempts"]] == ["finished"]


def test_predictions_belong_to_their_examples(launch, jsonl):
    """Evaluation is sorted by length; the parquet must not be."""
    rows = [{"text": "word " * (1 + i * 7 % 11), "label": i % 2} for i in range(40)]
    path = jsonl("a.jsonl", rows)
    run_dir = launch(
        *SMALL,
        "task=files",
        f"task.files.train={path}",
        f"task.files.validation={path}",
        "task.text=text",
        "trainer.max_steps=1",
    )
    table = pq.read_table(run_dir / "predictions" / "validation.parquet").to_pydict()
    assert table["id"] == list(range(40))
    assert table["label"] == [i % 2 for i in range(40)]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, quick):
    """Runs that only evaluated random weights: a classifier and a language model."""
    launch, zero = launch_in(tmp_path_factory.mktemp("untrained")), "trainer.num_train_epochs=0"
    return {
        "label": launch(*TOY, *SMALL, zero, at="label"),
        "text": launch(*TINY, *GENERATE, zero, at="text"),
    }


@pytest.mark.parametrize("nothing", ["trainer.max_steps=0", "trainer.num_train_epochs=0"])
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("label", ("mode=sft",)),
        ("label", ("mode=kd", "mode.gate=off")),
        ("label", ("mode=rl",)),
        ("text", ("mode=sft",)),
        ("text", ("mode=kd", "mode.gate=off")),
        ("text", ("mode=kd", "mode.gate=off", "mode.on_policy=true", "mode.alpha=1")),
        ("text", ("mode=rl", "mode.gate=off")),
    ],
)
def test_zero_steps_and_zero_epochs_evaluate_only(launch, untrained, kind, mode, nothing):
    task = (*TOY, *SMALL) if kind == "label" else (*TINY, *GENERATE)
    start = untrained[kind]
    named = [f"teacher.path={start}"] if "mode=kd" in mode else []
    judged = launch(*task, *mode, *named, nothing, f"model.path={start}")
    assert results(judged)["train"] == {}
    assert results(judged)["headline"] == results(start)["headline"]
    before, after = weights(start), weights(judged)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(toy_run, metadata):
    run_dir = toy_run("trainer.max_steps=2")
    before = (run_dir / "results.json").stat().st_mtime_ns
    assert toy_run("trainer.max_steps=2") == run_dir
    assert (run_dir / "results.json").stat().st_mtime_ns == before
    assert len(metadata(run_dir)["attempts"]) == 1


@pytest.mark.slow
def test_another_config_in_the_directory_is_refused_with_the_keys(toy_run):
    toy_run("trainer.max_steps=2")
    with pytest.raises(UserError, match=r"seed=7 \(recorded: 42\)"):
        toy_run("trainer.max_steps=2", "seed=7")


def test_a_run_is_shown(toy_run, tmp_path):
    run_dir = toy_run("trainer.max_steps=2")
    told = dict(shown(run_dir))
    assert told["status"] == "finished, step 2 of 2" and told["attempts"].startswith("1, ")
    assert told["validation"].startswith("accuracy 0.") and "n 150" in told["validation"]
    assert "model" in told["files"] and told["to use"].startswith(f"model.path={run_dir}")
    state = read_json(run_dir / "training_state.json")
    (run_dir / "training_state.json").write_text(json.dumps(state | {"status": "preempted"}))
    assert dict(shown(run_dir))["to go on"] == f"python launch.py resume={run_dir}"
    with pytest.raises(UserError, match="no run in this directory"):
        shown(tmp_path)


def test_an_unfinished_run_goes_on_from_its_checkpoint(toy_run, metadata, monkeypatch):
    settings = (
        "trainer.max_steps=12",
        "trainer.save_strategy=steps",
        "trainer.save_steps=4",
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=4",
    )
    whole = toy_run(*settings, at="whole")
    import transformers

    step = transformers.Trainer.training_step
    seen = []

    def dies_at_ten(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == 10:
            raise RuntimeError("power cut")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", dies_at_ten)
    with pytest.raises(RuntimeError, match="power cut"):
        toy_run(*settings)
    run_dir = toy_run(*settings)
    assert len(seen) == 10 + 4  # from checkpoint-8
    statuses = [a["status"] for a in metadata(run_dir)["attempts"]]
    assert statuses == ["failed", "finished"]
    assert metadata(run_dir)["attempts"][0]["error"] == "RuntimeError: power cut"
    assert results(run_dir)["splits"]["validation"]["loss"] == pytest.approx(
        results(whole)["splits"]["validation"]["loss"], abs=0
    )
    cards = [(folder / "model" / "README.md").read_text() for folder in (whole, run_dir)]
    assert cards[0] == cards[1]


def test_a_mistake_leaves_no_directory_behind(toy_run, tmp_path):
    with pytest.raises(UserError):
        toy_run("task.max_length=4", at="deep/er")
    assert not (tmp_path / "deep").exists()


@pytest.mark.slow
def test_a_mistake_leaves_a_directory_that_was_there(toy_run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError):
        toy_run("task.max_length=4", at="mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("key", ["output_dir", "bf16", "report_to"])
def test_what_forge_sets_in_the_trainer_is_refused_with_the_key_to_use(toy_run, key):
    with pytest.raises(UserError, match=f"trainer.{key}: set by Forge; use"):
        toy_run(f"+trainer.{key}=x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps=abc", r"trainer\.max_steps=abc: .*integer"),
        ("task.headline=acuracy", r"task\.headline=acuracy: .*did you mean accuracy"),
        ("task.labels=[yes,no]", "not among task.labels"),
        ("task.max_length=1", "at least 8 tokens"),
        ("seed=-1", "seed=-1: between 0"),
        ("trainer.gradient_accumulation_steps=0", "gradient_accumulation_steps=0: at least 1"),
        ("trainer.learning_rate=-1", "learning_rate=-1: at least 0"),
        ("+trainer.fsdp=full_shard", "trainer.fsdp: weights are sharded over .* on a CPU"),
        ("trainer.max_steps=-5", "max_steps=-5: 0 or more, or -1 for num_train_epochs"),
        ("trainer.num_train_epochs=-1", "num_train_epochs=-1: at least 0"),
        (
            "trainer.train_sampling_strategy=lenght",
            "train_sampling_strategy=lenght: no such",
        ),
        ("trainer.eval_strategy=no", "load_best_model_at_end=false"),
        ("trainer.save_strategy=best", "save_strategy=best: .*keeps both, the best and the last"),
        ("+callbacks.foo=1", r"callbacks\.foo=1: a node"),
        ("cache_dir=/proc/nope", "cache_dir=/proc/nope"),
        ("task.text=[premis]", r"column premis: not in .*did you mean premise"),
        ("task.evaluation=[test]", "split test: the data has no such split"),
        ("task.dataset.train=99999999", "the grammar gives"),
    ],
)
def test_a_wrong_value_is_one_line(toy_run, override, message):
    with pytest.raises(UserError, match=message) as caught:
        toy_run(override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "words", "told"),
    [
        ("training_step", (), r"batches of 32; try trainer\.per_device_train_batch_size=16 "
         r"trainer\.gradient_accumulation_steps=2, the same optimizer step, or a smaller task"),
        ("training_step", ("trainer.per_device_train_batch_size=1",), "of 1; try a smaller task"),
        ("prediction_step", (), r"of 128; try trainer\.per_device_eval_batch_size=64, or"),
        ("prediction_step", ("trainer.num_train_epochs=0",), "per_device_eval_batch_size=64, or"),
    ],
)  # fmt: skip
def test_exhausted_memory_is_one_line_with_what_to_change(
    toy_run, monkeypatch, method, words, told
):
    def exhausted(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, method, exhausted)
    with pytest.raises(Failure, match=told):
        toy_run("trainer.num_train_epochs=1", *words)


def test_early_stopping_without_evaluation_is_refused(toy_run):
    with pytest.raises(UserError, match="callbacks=early_stopping: it needs"):
        toy_run(
            "callbacks=early_stopping",
            "trainer.load_best_model_at_end=false",
            "trainer.eval_strategy=no",
        )


def test_a_run_of_no_steps_is_not_finished(toy_run):
    with pytest.raises(UserError, match="not one whole batch of 32 in 8 rows"):
        toy_run("task.max_rows=8", "+trainer.dataloader_drop_last=true")


@pytest.mark.slow
def test_the_best_checkpoint_is_the_headlines(toy_run):
    run_dir = toy_run("trainer.num_train_epochs=3", "trainer.learning_rate=3e-3")
    state = read_json(run_dir / "training_state.json")
    newest = max(run_dir.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    best = max(row["eval_accuracy"] for row in history if "eval_accuracy" in row)
    assert state["best_value"] == best == results(run_dir)["headline"]["value"]


def test_regression_runs_from_files(launch, jsonl):
    rows = [{"a": "good " * (i % 5 + 1), "b": "dog", "score": i % 5 + 0.5} for i in range(64)]
    path = jsonl("a.jsonl", rows)
    run_dir = launch(
        *SMALL,
        "task=files",
        f"task.files.train={path}",
        f"task.files.validation={path}",
        "task.text=[a,b]",
        "task.label=score",
        "trainer.max_steps=3",
    )
    found = results(run_dir)
    assert found["headline"]["metric"] == "pearson"
    assert {"pearson", "spearman", "mse"} <= found["splits"]["validation"].keys()


def test_every_file_follows_the_umask(toy_run, untrained, tmp_path):
    """safetensors lets the owner alone read what it writes."""
    kd = ("mode=kd", "mode.gate=off", f"teacher.path={untrained['label']}", "trainer.max_steps=2")
    wider = ("model.config.hidden_size=32", "mode/loss=[kl,hidden]")  # trains a projection
    before = os.umask(0o027)
    try:
        toy_run(*kd, f"cache_dir={tmp_path}/cache", at="stored")
        toy_run(*kd, *wider, at="beside")
        adapted = toy_run("trainer.max_steps=2", f"model.path={untrained['label']}",
                          "model.lora.r=2", at="adapted")  # fmt: skip
        merge(adapted)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    names = {path.name for path in modes}
    assert {"model.safetensors", "adapter_model.safetensors", "losses.safetensors"} <= names
    assert list(tmp_path.glob("cache/teacher/*.safetensors"))
    assert not {p: oct(m) for p, m in modes.items() if m != (0o750 if p.is_dir() else 0o640)}
