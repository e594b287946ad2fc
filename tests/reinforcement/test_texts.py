"""GRPO of language models: the start, the stops, and what is refused."""

import json
import logging
import os
import sys

import pytest
import torch

from forge.commands.rewards import main
from forge.errors import UserError
from forge.records import samples
from forge.records.files import read_json
from tests.support.commands import ROOT
from tests.support.commands import launch as launch_alone
from tests.support.drawing import (
    ONCE,
    PLAIN,
    RL,
    check_same_bits,
    check_stopped,
    history,
    letters,
)
from tests.support.runs import results
from tests.support.texts import NOTHING_SAVED


def test_results_hold_the_start_and_the_console_shows_the_reward(launch, caplog):
    caplog.set_level(logging.INFO)
    run_dir = launch(*ONCE, "trainer.learning_rate=0", "trainer.max_steps=1")
    found = results(run_dir)
    start = found["start"]
    assert start["splits"]["validation"]["loss"] == found["splits"]["validation"]["loss"]
    assert start["reward"]["n"] == 32 and start["reward"]["frac_reward_zero_std"] < 1
    assert read_json(run_dir / "run_metadata.json")["start"] == start
    line = next(r.message for r in caplog.records if r.message.startswith("step 1/1"))
    for part in (" | reward 0.", "kl 0.0000", "entropy "):
        assert part in line
    assert "loss" not in line and "num_tokens" not in line
    assert not (run_dir / "README.md").exists()  # TRL's card
    (group, *_) = samples.read(run_dir, 0)
    assert len(group["answers"]) == 8 and group["prompt"]["prompt"]
    for answer in group["answers"]:
        share = letters([answer["text"]], prompt=[""], label=[""], id=[0])[0]
        assert answer["reward"] == pytest.approx(share, abs=1e-6) and 0 < answer["length"] <= 6


@pytest.mark.slow
def test_the_first_ratio_is_one_and_the_first_kl_is_zero(launch, monkeypatch):
    from forge.reinforcement.trl_grpo import LanguageGRPO

    seen, real = [], LanguageGRPO._compute_loss

    def spy(self, model, inputs):
        kinds = [
            torch.cat([inputs[f"prompt_{kind}"], inputs[f"completion_{kind}"]], 1)
            for kind in ("ids", "mask")
        ]
        mask, old = inputs["completion_mask"], inputs["old_per_token_logps"]
        now, _, _ = self._get_per_token_logps_and_entropies(model, *kinds, mask.shape[1])
        seen.append(((now - old).abs() * mask).max())
        return real(self, model, inputs)

    monkeypatch.setattr(LanguageGRPO, "_compute_loss", spy)
    run_dir = launch(*ONCE, "mode.num_iterations=2", "mode.temperature=0.7",
                     "+model.config.attention_dropout=0.3", "trainer.learning_rate=1e-2",
                     "trainer.warmup_steps=0")  # fmt: skip
    first, *_, last = history(run_dir)
    assert first["kl"] < 1e-6 < last["kl"]
    assert seen[0] < 1e-5 < seen[1]


@pytest.mark.slow
def test_it_learns_what_is_rewarded(launch):
    run_dir = launch(*ONCE, "trainer.max_steps=25", "trainer.learning_rate=1e-2", "mode.beta=0",
                     "trainer.per_device_train_batch_size=64")  # fmt: skip
    rewards = [row["reward"] for row in history(run_dir)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert "kl" not in history(run_dir)[0]


def test_the_bench_looks_at_texts(quick, capsys):
    settings = [w for w in RL if not w.startswith("mode=")]
    assert main(settings, None, True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["start"]["reward"]["n"] == 32
    assert 0 < told["start"]["reward"]["reward"] < 1
    assert {f["input"] for f in told["findings"]} >= {"empty", "unicode"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "step"),
    [
        ((), 2),
        (("task.dataset.train=16",), 11),  # in the second epoch of 8 steps
        (("mode.num_iterations=2", "trainer.logging_steps=4"), 2),  # with drawn answers left
        (("mode.steps_per_generation=4", "trainer.gradient_accumulation_steps=2"), 4),
    ],
)
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(launch, stop_after, words, step):
    run = (*RL, "trainer.eval_strategy=no", "trainer.load_best_model_at_end=false",
           "trainer.save_total_limit=null", "trainer.learning_rate=1e-3", "trainer.max_steps=14",
           *words)  # fmt: skip
    check_stopped(launch, stop_after, step, *run)


def noted(completions, *, id, **columns):
    """As `letters`; what a rank was asked goes into its own file."""
    values = letters(completions, id=id, **columns)
    with open(f"{os.environ['NOTES']}-{os.environ.get('RANK', 0)}", "a") as notes:
        notes.write(json.dumps([list(id), values]) + "\n")
    return values


@pytest.mark.slow
def test_two_ranks_hold_whole_groups_and_go_on_with_the_same_bits(tmp_path):
    """A group may lie on both; every answer is rewarded once, and counts once."""
    run = (*RL, "mode.reward.function._target_=tests.reinforcement.test_texts.noted",
           "launcher=ddp",
           "trainer.per_device_train_batch_size=12", "mode.num_iterations=2",
           "trainer.lr_scheduler_type=constant", "trainer.warmup_steps=0",
           "trainer.save_strategy=steps", "trainer.save_steps=3", "trainer.eval_strategy=no",
           "trainer.load_best_model_at_end=false")  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for words in ((f"hydra.run.dir={whole}", "trainer.max_steps=6"),
                  (f"hydra.run.dir={parts}", "trainer.max_steps=3"),
                  (f"resume={parts}", "trainer.max_steps=6")):  # fmt: skip
        more = () if words[0].startswith("resume") else run
        notes = str(tmp_path / words[0].rpartition("/")[2])
        done = launch_alone(tmp_path, *more, *words, NOTES=notes, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
    rows = history(whole)
    read = [(tmp_path / f"whole-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert [len(lines) for lines in read] == [4, 4]  # the first looked at the start
    for drawn, (mine, theirs) in enumerate(zip(*(lines[1:] for lines in read), strict=True)):
        ids, values = (a + b for a, b in zip(json.loads(mine), json.loads(theirs), strict=True))
        groups = [set(ids[i : i + 8]) for i in (0, 8, 16)]
        assert [len(group) for group in groups] == [1, 1, 1] and len(set.union(*groups)) == 3
        assert rows[2 * drawn]["reward"] == pytest.approx(sum(values) / 24, abs=1e-6)
    check_same_bits(whole, parts)


def test_the_verdict_is_the_tasks():
    from forge.reinforcement.texts import verdict
    from forge.tasks.kinds import prompt_text

    task = prompt_text(answer=r"####\s*(\S+)", numeric=True)
    texts = ["1+1=2 #### 2.0", "#### 3", "2", ""]
    assert verdict(task, texts, label=["2"] * 4, id=[0] * 4) == [1, 0, 0, 0]


def short(completions, **columns):
    return [1.0] * (len(completions) - 1)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("mode.num_generations=1",), "mode.num_generations=1: input should be greater than or"),
        (("mode.num_generations=5",), "the 16 answers drawn at once are no whole groups"),
        (("task.dataset.train=1",), "not one whole batch of 2 prompts in 1 rows"),
        (("mode.reward.function._target_=tests.reinforcement.test_texts.short",),
         "mode/reward=function, examples .* it returned 255 values for 256 completions"),
        (("mode/reward=exact",), "no two answers to an example differ in reward, so GRPO cannot"),
        (("mode/reward=metric",), "mode/reward=metric: it is of labels, and this task's answers"),
        (("task.max_new_tokens=250",), "task.max_new_tokens=250 is more than the model's context"),
        (("trainer.label_smoothing_factor=0.1",), "mode=rl has no cross-entropy to smooth"),
        (("model=tiny",), "has no head that generates text"),
        (("model.config.model_type=gpt2", "+model.config.n_positions=256"),
         "gpt2: it reads a prompt otherwise behind padding"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_a_line(launch, words, problem):
    with pytest.raises(UserError, match=problem) as refused:
        other = any(word.startswith("mode/reward=") for word in words)
        launch(*(PLAIN if other else RL), *NOTHING_SAVED, *words)
    assert "\n" not in str(refused.value)


def test_what_does_not_fit_is_refused_before_anything_is_written(launch, quick, monkeypatch):
    monkeypatch.setattr("forge.tasks.decoding.generate", lambda *args: pytest.fail("too late"))
    with pytest.raises(UserError, match="not one whole batch of 2 prompts in 1 rows"):
        launch(*RL, *NOTHING_SAVED, "task.dataset.train=1")
    settings = [w for w in RL if not w.startswith("mode=")]
    with pytest.raises(UserError, match="is more than the model's context"):
        main([*settings, "task.max_new_tokens=250"], None, True)


def test_without_trl_the_way_out_is_said(launch, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("trl.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trl", None)
    for name in ("forge.reinforcement.trl_grpo", "forge.training.trl"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)
    with pytest.raises(UserError, match=r"trl is not installed; pip install 'forge\[rl\]'"):
        launch(*ONCE)
