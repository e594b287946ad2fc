"""A newcomer's questions are answered by `explain` for every experiment; values name their yaml."""

import subprocess
import sys

import pytest

from forge.commands.explain import explained
from forge.config.compose import CONF
from forge.config.origins import origins
from forge.errors import UserError
from tests.support.runs import options

QUESTIONS = {  # of a newcomer, and the sentences that answer them
    "where do model and data come from?": ("data", "weights"),
    "what are task, model and mode?": ("run", "task", "mode"),
    "what are the stages of a run?": ("stages",),
    "a new config, or resume?": ("again",),
    "which files, and why?": ("files",),
    "when will it stop?": ("stops", "or earlier"),
}


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_answers_a_newcomer(experiment):
    words = [f"experiment={experiment}"]
    needed = {"mode.reward.function": ["mode.reward.function._target_=math.sqrt"]}
    told = explained(words + needed.get(experiment, []))
    about = dict(told.sentences)
    for question, names in QUESTIONS.items():
        assert all(about.get(name) for name in names), question
    assert len(told.sentences) <= 18 and "???" not in told.text()
    fields = {key: by for key, _, by in told.values}  # which fields control it?
    assert all(fields.values()) and {"trainer.learning_rate", "seed"} <= fields.keys()
    teacher = any(key.startswith("teacher.") for key in fields)  # why was it sft and not kd?
    assert ("No teacher is loaded" in about["mode"] or "no teacher" in about["mode"]) != teacher
    assert ("teacher" in about) == teacher
    yaml = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    for key, value, by in told.values:
        if by == f"conf/experiment/{experiment}.yaml":
            assert str(key.split(".")[-1]) in yaml, (key, value)


def test_the_control_of_a_sweep_is_named():
    about = dict(explained(["experiment=kd_study"]).sentences)
    assert "15 runs" in about["sweep"] and "mode.alpha=0 is the control" in about["sweep"]
    assert "mode.alpha=0.25" in about["sweep"] and "0.75 of the task's loss" in about["mode"]
    alone = dict(explained(["experiment=kd_study", "mode.alpha=0", "seed=1"]).sentences)
    assert "no teacher is loaded, this is mode=sft to the bit" in alone["mode"]
    assert "teacher" not in alone


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("task=mnli model=distilbert model.lora.r=4 callbacks=early_stopping tracking=wandb "
         "trainer.gradient_accumulation_steps=4 hydra.run.dir=here",
         {"data": "nyu-mll/glue", "weights": "distilbert/distilbert-base-uncased",
          "files": "wandb/", "or earlier": "no better in 3 evaluations", "a step": "128 rows"}),
        ("task=swag model=distilbert model.from_scratch=true trainer.num_train_epochs=0",
         {"task": "ending0", "weights": "random values", "stops": "Nothing is trained"}),
        ("task=files task.files.train=a.csv task.text=x mode=kd mode.alpha=1 teacher.train=false "
         "trainer.save_strategy=no trainer.load_best_model_at_end=false model=from_teacher",
         {"data": "validation is not given yet", "missing": "task.files.validation=…",
          "saves": "anew", "mode": "no right answers are read", "teacher": "teacher.train=false",
          "weights": "3 layers of its teacher"}),
        ("mode=rl mode/reward=[exact,length] hydra.run.dir=here",
         {"mode": "exact and length", "files": "In here:"}),
    ],
)  # fmt: skip
def test_what_is_set_is_said(words, said):
    about = dict(explained(words.split()).sentences)
    for name, text in said.items():
        assert text in about[name]


def test_each_value_has_the_origin_that_counts(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text((CONF / "task" / "toy.yaml").read_text())
    place = f"hydra.searchpath=['file://{tmp_path}']"
    words = [place, "experiment=demo", "task=mine", "model@teacher=tiny", "+trainer.adam_beta1=0.8",
             "trainer.num_train_epochs=5"]  # fmt: skip
    found = origins(words)
    assert found.of("trainer.num_train_epochs") == "trainer.num_train_epochs=5"
    assert found.of("trainer.adam_beta1") == "+trainer.adam_beta1=0.8"
    assert found.of("trainer.eval_strategy") == "conf/experiment/demo.yaml"
    assert found.of("trainer.warmup_steps") == "conf/trainer/default.yaml"
    assert found.of("task.text") == f"{tmp_path}/task/mine.yaml"
    assert found.of("model.path") == ""
    assert found.of_choice("task") == "task=mine"
    assert found.of_choice("model") == "conf/experiment/demo.yaml"
    assert found.of_choice("trainer") == "conf/config.yaml"


def test_a_run_says_why_it_stopped_and_what_it_found(toy_run):
    run_dir = toy_run("trainer.max_steps=2", "mode=kd", "mode.alpha=0")
    told = explained([str(run_dir)])
    about = dict(told.sentences)
    assert "max_steps=2" in about["stopped"] and "finished, at step 2 of 2" in about["stands"]
    assert "600 rows" in about["splits"] and "model/ (the final weights)" in about["files"]
    assert "samples/" not in about["files"] and "accuracy on validation" in about["found"]
    by = {key: by for key, _, by in told.values}
    assert by["seed"] == "conf/config.yaml"
    goes_on = dict(explained([f"resume={run_dir}", "trainer.max_steps=9"]).sentences)["resume"]
    assert "from checkpoint-2" in goes_on and "trainer.max_steps=9" in goes_on
    with pytest.raises(UserError, match="no run in this directory"):
        explained([str(run_dir / "model")])
    with pytest.raises(UserError, match="neither a run's directory nor an override"):
        explained([str(run_dir / "nope")])


def test_a_mistake_is_one_line():
    with pytest.raises(UserError, match="did you mean distilbert"):
        explained(["model=distilbart"])
    with pytest.raises(UserError, match="max_steps"):
        explained(["trainer.max_step=3"])


def test_it_imports_no_torch():
    code = (
        "import sys; from forge.__main__ import main; main(['explain', 'task=toy', 'mode=kd']);"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
