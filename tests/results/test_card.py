"""The card beside a run's model says what it is, and how to use it."""

import json

import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig

from forge.records.files import read_json
from forge.results import card
from forge.tasks.recorded import recorded_task
from tests.support.runs import SMALL, results, snippet

HUB_KEYS = {"library_name", "pipeline_tag", "metrics", "tags"}


def test_a_classifiers_card(toy_run, capsys):
    run_dir = toy_run("trainer.max_steps=2")
    found = ModelCard.load(run_dir / "model" / "README.md")
    front = found.data.to_dict()
    assert front.keys() >= HUB_KEYS and "license" not in front and "base_model" not in front
    (result,) = found.data.eval_results
    split = results(run_dir)["splits"]["validation"]
    assert result.metric_type == "accuracy" and result.dataset_split == "validation"
    assert result.metric_value == round(split["accuracy"], 4)
    text = found.text
    assert "- 0: entailment\n- 1: neutral" in text and "| validation | 0." in text
    assert "| 150 |" in text and "python launch.py" in text
    assert str(run_dir) not in found.content and "seconds" not in found.content
    exec(snippet(text, run_dir), {})
    said = capsys.readouterr().out
    assert "score" in said and said.split()[-1] in ("entailment", "neutral", "contradiction")


def test_a_regressions_card(launch, jsonl, capsys):
    rows = [{"a": "good " * (i % 5 + 1), "score": i % 5 + 0.5} for i in range(64)]
    path = jsonl("a.jsonl", rows)
    files = (f"task.files.train={path}", f"task.files.validation={path}")
    columns = ("task.text=a", "task.label=score", "trainer.max_steps=3")
    run_dir = launch(*SMALL, "task=files", *files, *columns)
    found = ModelCard.load(run_dir / "model" / "README.md")
    assert {result.metric_type for result in found.data.eval_results} >= {"pearsonr", "mse"}
    assert "It gives one number." in found.text
    exec(snippet(found.text, run_dir), {})
    float(capsys.readouterr().out.split()[-1])


@pytest.fixture
def changed(toy_run):
    """The card of a run whose record says otherwise."""

    def write(**facts):
        run_dir = toy_run("trainer.max_steps=1")
        metadata = read_json(run_dir / "run_metadata.json")
        metadata["config"]["model"] |= facts.pop("model", {})
        (run_dir / "run_metadata.json").write_text(json.dumps(metadata | facts))
        config = AutoConfig.from_pretrained(run_dir / "model")
        card.write(run_dir, recorded_task(metadata, config))
        return ModelCard.load(run_dir / "model" / "README.md")

    return write


def test_a_card_names_its_base_its_teacher_and_its_command(changed):
    found = changed(
        model={"path": "distilbert-base-uncased"},
        overrides=["task=toy", "model.path=a b", "api_key=***"],
        teacher={"paths": ["/home/me/outputs/toy/small/sft/2026/model"], "splits": {}},
        processes=2,
    )
    assert found.data.base_model == "distilbert-base-uncased"
    assert "knowledge-distillation" in found.data.tags
    command = "torchrun --nproc-per-node=2 launch.py task=toy 'model.path=a b' 'api_key=***'"
    assert command in found.text
    assert "teacher: toy/small/sft/2026," in found.text and "/home/me" not in found.content


def test_a_teacher_is_named_as_it_was_given(changed):
    path = "/data/teachers/mine"
    teacher = {"paths": [path], "splits": {"validation": {"accuracy": 0.5}}}
    found = changed(overrides=[f"teacher.path={path}"], teacher=teacher)
    assert f"teacher: {path}," in found.text
    assert "| validation, teacher | 0.5000 |" in found.text
