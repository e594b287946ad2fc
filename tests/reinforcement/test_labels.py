"""GRPO for classifiers: the gradient is the policy's, the start is the start, and it resumes.

What implementers get wrong, and where it is held (here, or in the file named):

1 temperature: the_temperature_divides_in_policy_old_and_reference
2 length normalisation: a label has no length; the loss is the mean over all answers of the batch
3 advantages, ddof 1 and 1e-4 beside it: advantages_are_those_of_trl
4 groups without variance: groups_that_cannot_teach, a_start_without_variance_is_refused; nothing is
   drawn again; batches count examples, so that none has to divide by the number of draws
5 a loss about 0: the_console_shows_the_reward
6 KL: exact, over the labels, inside the loss; its gradient: the_kl_and_its_gradient_are_exact
7 repeated batches, ranks, resume: updates_repeat_whole_batches, a_killed_run…; evaluation draws no
   labels, and what is drawn depends on seed, step and row: draws_follow_from_seed_step_and_row
8 BOS and EOS: nothing is generated
9 sampler and trainer: one forward pass is both, so the first ratio is 1: the_first_ratio_is_one
10 rewards: test_rewards, a_wrong_reward_stops_the_run_in_words, none_does_not_count
11 dropout: the_first_ratio_is_one_and_the_first_kl_is_zero, with dropout in the model's config
12 importance_sampling_level: an answer is one label, so token and sequence are the same
13 the anchor: results_hold_the_start
"""

import itertools
import logging
import os
import signal

import numpy as np
import pytest
import torch

from forge.errors import Preempted, UserError
from forge.records import samples
from forge.records.files import read_json
from forge.reinforcement import grpo
from forge.reinforcement.grpo import Repeated, Rollout, Settings, centred, constant, draw, objective
from forge.training.trainer import Trainer
from tests.support.runs import SMALL, history, results, weights
from tests.support.stopping import assert_same

RL = ("mode=rl", "trainer.max_steps=6", "trainer.logging_steps=1", "trainer.save_total_limit=null")
NONE = float("nan")
TARGET = "mode.reward.function._target_=tests.reinforcement.test_labels"


def settings(**changed):
    plain = {
        "num_generations": 4,
        "temperature": 1.0,
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": None,
        "num_iterations": 1,
        "scale_rewards": "none",
        "entropy_coef": 0.0,
    }
    return Settings(**plain | changed)


# ------------------------------------------------------------------------------------- mathematics


@pytest.mark.parametrize(("right", "advantage"), [(1, 2.474), (4, 0.935), (7, 0.353)])
def test_advantages_are_those_of_trl(right, advantage):
    rewards = np.array([[1.0] * right + [0.0] * (8 - right)])
    assert centred(rewards, "group")[0, 0] == pytest.approx(advantage, abs=1e-3)
    assert centred(rewards, "none")[0, 0] == 1 - right / 8


def test_the_batch_scales_all_groups_alike():
    rewards = np.array([[0.0, 1.0], [0.0, 10.0]])
    std = rewards.std(ddof=1)
    assert centred(rewards, "batch") == pytest.approx(
        np.array([[-0.5, 0.5], [-5, 5]]) / (std + 1e-4)
    )


def test_groups_that_cannot_teach_have_no_advantage():
    rewards = np.array([[0.1, 0.1, 0.1], [NONE, 2.0, NONE], [NONE] * 3, [1.0, NONE, 0.0]])
    assert constant(rewards).tolist() == [True, True, True, False]
    found = centred(rewards, "none")
    assert found.tolist() == [[0] * 3, [0] * 3, [0] * 3, [0.5, 0, -0.5]]
    assert (centred(rewards, "group")[:3] == 0).all()


def test_draws_follow_from_seed_step_and_row():
    likely = np.array([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0], [0.1, 0.1, 0.8]])
    one = draw(likely, [5, 9, 2], step=3, seed=0, count=4000)
    assert (draw(likely[1:2], [9], 3, 0, 4000) == one[1:2]).all()
    assert (draw(likely[1:2], [9], 4, 0, 4000) != one[1:2]).any()
    assert (draw(likely[1:2], [9], 3, 1, 4000) != one[1:2]).any()
    for row, p in zip(one, likely, strict=True):
        assert np.bincount(row, minlength=3) / 4000 == pytest.approx(p, abs=0.03)
    assert (one[1] != 2).all()


def estimate(logits, labels, rewards, scale="none", **changed):
    """The gradient of the loss in logits [B, C] for labels drawn [B, G]."""
    chosen = settings(num_generations=labels.shape[1], **changed)
    policy = logits.log_softmax(-1)
    advantages = torch.tensor(centred(rewards, scale), dtype=torch.float32)
    rollout = Rollout(0, labels, policy.detach(), advantages)
    loss, _ = objective(policy, rollout, None, chosen)
    return torch.autograd.grad(loss, logits)[0]


def exact_gradient(logits, worth):
    """Of minus the expected reward, with rewards [B, C]."""
    loss = -(logits.softmax(-1) * worth).sum(-1).mean()
    return torch.autograd.grad(loss, logits)[0]


def test_over_all_draws_the_gradient_is_the_policys():
    logits = torch.tensor([[0.3, -0.2, 0.9]], requires_grad=True)
    worth, count = torch.tensor([[1.0, -2.0, 0.5]]), 3
    p, expected = logits.softmax(-1).detach()[0], torch.zeros(1, 3)
    for group in itertools.product(range(3), repeat=count):
        labels = torch.tensor([group])
        chance = p[labels].prod()
        expected += chance * estimate(logits, labels, worth[0, labels].numpy())
    share = (count - 1) / count  # a group's mean holds each answer's own reward
    assert torch.allclose(expected, share * exact_gradient(logits, worth), atol=1e-6)


def test_of_many_draws_the_gradient_is_the_policys_within_sampling_error():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, requires_grad=True)
    worth = torch.randn(3, 4)
    likely, found = logits.softmax(-1).detach().numpy(), []
    for step in range(2000):
        labels = torch.from_numpy(draw(likely, [0, 1, 2], step, 0, 8))
        found.append(estimate(logits, labels, worth.gather(1, labels).numpy()))
    found = torch.stack(found)
    error = found.std(0) / len(found) ** 0.5
    off = (found.mean(0) - 7 / 8 * exact_gradient(logits, worth)).abs() / error
    assert off.max() < 4


def learnt(worth, steps=400, scale="none", **changed):
    """Probabilities [B, C] of a table of logits after GRPO on rewards of label and chance."""
    logits = torch.zeros(worth(0).shape, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=20.0 if scale == "none" else 5.0)
    for step in range(steps):
        likely = logits.softmax(-1).detach().numpy()
        labels = torch.from_numpy(draw(likely, list(range(len(logits))), step, 0, 8))
        logits.grad = estimate(
            logits, labels, worth(step).gather(1, labels).numpy(), scale, **changed
        )
        optimizer.step()
    return logits.softmax(-1).detach()


@pytest.mark.parametrize("scale", ["none", "group"])
def test_rewarded_by_accuracy_the_likelier_label_is_always_said(scale):
    """Labels are 70 : 30 at random: cross-entropy would end at 0.7, the best accuracy is at 1."""
    rng = np.random.default_rng(0)

    def worth(step):
        right = rng.random(8) < np.tile([0.7, 0.3], 4)
        return torch.tensor(np.stack([right, ~right], 1), dtype=torch.float32)

    found = learnt(worth, scale=scale)
    assert (found[::2, 0] > 0.95).all() and (found[1::2, 1] > 0.95).all()


def test_the_entropy_bonus_keeps_the_choice_open():
    """The best of E[r] + coef * H is softmax(r / coef)."""
    worth = torch.tensor([[1.0, 0.5, 0.0]] * 4)
    found = learnt(lambda step: worth, entropy_coef=0.5, steps=300).mean(0)
    # the advantages are 7/8 of the policy's; see the module
    assert found.tolist() == pytest.approx((worth[0] * 7 / 8 / 0.5).softmax(-1).tolist(), abs=0.06)


def test_the_kl_and_its_gradient_are_exact():
    logits = torch.tensor([[0.3, -0.2, 0.9]], requires_grad=True)
    start = torch.tensor([[0.1, 0.4, -0.3]]).log_softmax(-1)
    policy = logits.log_softmax(-1)
    still = Rollout(0, torch.zeros(1, 4, dtype=torch.long), policy.detach(), torch.zeros(1, 4))
    loss, facts = objective(policy, still, start, settings(beta=0.5))
    p = logits.softmax(-1)
    wanted = (p * (p.log() - start)).sum()
    assert facts["kl"] == pytest.approx(wanted.item())
    gradient = torch.autograd.grad(0.5 * wanted, logits)[0]
    assert torch.allclose(torch.autograd.grad(loss, logits)[0], gradient, atol=1e-6)
    assert objective(start, still, start, settings(beta=0.5))[1]["kl"] == 0


def test_the_ratio_is_clipped_where_it_would_go_on():
    old = torch.tensor([[0.5, 0.5]]).log()
    policy = torch.tensor([[0.8, 0.2]]).log().requires_grad_()  # ratios 1.6 and 0.4
    for advantages, clipped in ([[1.0, -1.0]], 1.0), ([[-1.0, 1.0]], 0.0), ([[1.0, 1.0]], 0.5):
        rollout = Rollout(0, torch.tensor([[0, 1]]), old, torch.tensor(advantages))
        loss, facts = objective(policy, rollout, None, settings())
        assert facts["clip_ratio/region_mean"] == clipped
        assert (torch.autograd.grad(loss, policy)[0] == 0).all() == (clipped == 1)
    rollout = Rollout(0, torch.tensor([[0, 0]]), old, torch.ones(1, 2))
    loss, _ = objective(policy, rollout, None, settings(epsilon_high=0.5))
    assert loss.item() == pytest.approx(-1.5)


def test_updates_repeat_whole_batches():
    assert list(Repeated(range(7), 2, 3)) == [0, 1] * 3 + [2, 3] * 3 + [4, 5] * 3
    assert len(Repeated(range(7), 2, 3)) == 18


# --------------------------------------------------------------------------------------------- runs


def test_a_groups_deviation_scales_away_what_an_error_costs():
    """Of two labels; so mode=rl scales by the batch, where a dear error counts more."""
    said = np.array([[0, 1, 1, 0], [0, 0, 1, 1]])
    rewards = -said * np.array([[5.0], [1.0]])
    assert centred(rewards, "group")[0] == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-3)
    assert abs(centred(rewards, "group")[1]) == pytest.approx([0.866] * 4, abs=1e-3)
    dear, cheap = abs(centred(rewards, "batch"))
    assert dear == pytest.approx(5 * cheap)


@pytest.fixture
def seen(monkeypatch):
    """What every call of the objective was given: policy, rollout, start."""
    calls, real = [], grpo.objective

    def spy(policy, rollout, start, chosen):
        calls.append((policy.detach().clone(), rollout, start))
        return real(policy, rollout, start, chosen)

    monkeypatch.setattr(grpo, "objective", spy)
    return calls


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_ratio_is_one_and_the_first_kl_is_zero(toy_run, seen, precision):
    run_dir = toy_run(*RL, f"precision={precision}", "+model.config.hidden_dropout_prob=0.1",
                      "trainer.max_steps=3", "trainer.learning_rate=1e-2")  # fmt: skip
    for policy, rollout, _ in seen:  # one update for each draw
        assert torch.equal(policy, rollout.old)
    assert torch.equal(seen[0][0], seen[0][2]) and not torch.equal(seen[-1][0], seen[-1][2])
    first, *_, last = history(run_dir)
    assert first["kl"] == 0 and last["kl"] > 0
    assert first["clip_ratio/region_mean"] == last["clip_ratio/region_mean"] == 0


def test_the_temperature_divides_in_policy_old_and_reference(toy_run, seen):
    one = (*RL, "trainer.max_steps=1", "trainer.save_strategy=no", "mode.gate=off")
    toy_run(*one, "trainer.load_best_model_at_end=false", at="plain")
    toy_run(*one, "trainer.load_best_model_at_end=false", "mode.temperature=0.5", at="cold")
    (plain, _, _), (cold, rollout, start) = seen
    wanted = (2 * plain).log_softmax(-1)
    for found in (cold, rollout.old, start):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_results_hold_the_start(toy_run, caplog):
    caplog.set_level(logging.INFO)
    run_dir = toy_run(*RL, "mode/reward=[exact,metric]", "mode.reward.metric.name=accuracy",
                      "mode.reward_weights={metric:0.5}", "trainer.learning_rate=0")  # fmt: skip
    found = results(run_dir)
    start, reward = found["start"], found["start"]["reward"]
    assert start["splits"]["validation"]["accuracy"] == pytest.approx(
        found["splits"]["validation"]["accuracy"]
    )
    assert reward["rewards/exact/mean"] == pytest.approx(reward["rewards/metric/mean"], abs=1e-6)
    assert reward["reward"] == pytest.approx(1.5 * reward["rewards/exact/mean"], abs=1e-6)
    assert read_json(run_dir / "run_metadata.json")["start"] == start
    assert "reinforcement from a random or collapsed head is slow" in caplog.text


def test_what_is_drawn_is_kept(toy_run):
    run_dir = toy_run(*RL, "trainer.per_device_train_batch_size=16", "mode.num_generations=4")
    assert samples.steps(run_dir) == [0, 1, 2, 3, 4, 5]
    first, last = samples.read(run_dir, 0), samples.read(run_dir, 5)
    assert len(first) == samples.GROUPS and {*first[0]["prompt"]} == {"premise", "hypothesis"}
    for group in first + last:
        answers = group["answers"]
        right = [float(answer["text"] == group["label"]) for answer in answers]
        assert [answer["rewards"]["exact"] for answer in answers] == right
        assert [answer["reward"] for answer in answers] == right
        assert sum(answer["advantage"] for answer in answers) == pytest.approx(0, abs=1e-4)
    assert {answer["kl"] for group in first for answer in group["answers"]} == {0}
    assert any(answer["kl"] for group in last for answer in group["answers"])


def test_the_console_shows_the_reward(toy_run, caplog):
    caplog.set_level(logging.INFO)
    toy_run(*RL)
    line = next(r.message for r in caplog.records if r.message.startswith("step 1/6"))
    assert " | reward 0." in line and "kl 0.0000" in line and "loss" not in line


def drilled(completions, *, label, **columns):
    """Whatever is right, neutral is to be said."""
    return [float(completion == "neutral") for completion in completions]


def test_it_learns_what_is_rewarded_and_not_the_labels(toy_run):
    run_dir = toy_run(*RL, "trainer.max_steps=30", "trainer.learning_rate=2e-2", "mode.beta=0",
                      "mode/reward=function",
                      f"{TARGET}.drilled")  # fmt: skip
    rows = history(run_dir)
    assert rows[0]["reward"] < 0.5 and rows[-1]["reward"] > 0.95
    assert results(run_dir)["splits"]["validation"]["accuracy"] == pytest.approx(1 / 3)
    assert rows[-1]["frac_reward_zero_std"] > 0.5 and "kl" not in rows[0]


def test_accumulation_gives_the_step_of_the_whole_batch(toy_run):
    """But for what is of a batch by definition: its deviation, and metrics."""
    one = (*RL, "mode.scale_rewards=group", "trainer.max_steps=2",
           "trainer.train_sampling_strategy=random",
           "trainer.learning_rate=1e-3", "trainer.lr_scheduler_type=constant",
           "trainer.warmup_steps=0", "mode.scale_rewards=group")  # fmt: skip
    whole = toy_run(*one, at="whole")
    parts = toy_run(*one, "trainer.per_device_train_batch_size=8",
                    "trainer.gradient_accumulation_steps=4", at="parts")  # fmt: skip
    for a, b in zip(history(whole), history(parts), strict=True):
        for name in ("reward", "entropy", "grad_norm", "loss"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), name


def test_evaluation_changes_nothing_of_what_is_drawn(toy_run):
    plain = (*RL, "trainer.save_strategy=no", "trainer.load_best_model_at_end=false")
    often = toy_run(*plain, "trainer.eval_strategy=steps", "trainer.eval_steps=1", at="often")
    never = toy_run(*plain, "trainer.eval_strategy=no", at="never")
    assert all(torch.equal(w, weights(never)[name]) for name, w in weights(often).items())


def test_several_updates_share_their_draws(toy_run, seen):
    run_dir = toy_run(*RL, "mode.num_iterations=3", "trainer.learning_rate=5e-2",
                      "trainer.gradient_accumulation_steps=2",
                      "trainer.per_device_train_batch_size=8",
                      "trainer.lr_scheduler_type=constant", "trainer.warmup_steps=0")  # fmt: skip
    assert len(seen) == 12  # 6 steps of 2
    for first in (0, 1, 6, 7):
        policy, rollout, _ = seen[first]
        assert torch.equal(policy, rollout.old)
        for later in (first + 2, first + 4):
            assert seen[later][1] is rollout and not torch.equal(seen[later][0], rollout.old)
    assert any(row["clip_ratio/region_mean"] > 0 for row in history(run_dir))
    assert "reward" not in history(run_dir)[1]  # told once, when it was given


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "step"),
    [
        ((), 3),
        (("mode.num_iterations=3", "trainer.train_sampling_strategy=random"), 17),
        (("mode.num_iterations=2", "mode/reward=metric", "trainer.logging_steps=3",
          "trainer.gradient_accumulation_steps=2", "trainer.per_device_train_batch_size=8"), 8),
    ],
)  # fmt: skip
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(toy_run, monkeypatch, words, step):
    run = ("mode=rl", "trainer.num_train_epochs=2", "trainer.logging_steps=1", *words,
           "trainer.learning_rate=1e-3", "mode.gate=off")  # fmt: skip
    whole, train, sent = toy_run(*run, at="whole"), Trainer.training_step, []

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step and not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    with pytest.raises(Preempted):
        toy_run(*run, at="stopped")
    assert_same(whole, toy_run(*run, at="stopped"))


# -------------------------------------------------------------------------------------- bad inputs


def short(completions, **columns):
    return [1.0] * (len(completions) - 1)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("mode.num_generations=1",), "mode.num_generations=1: input should be greater than or"),
        (("mode.temperature=0",), "mode.temperature=0: input should be greater than 0"),
        (("mode.scale_rewards=std",), "mode.scale_rewards=std: input should be 'group', 'batch'"),
        (("mode.epsilon=2",), "mode.epsilon=2: input should be less than 1"),
        (("mode/reward=[]",), "no reward is chosen"),
        (("mode.reward_weights={exakt:1}",), "mode.reward_weights.exakt: no such reward"),
        (("mode/reward=costs", "mode.reward.costs.matrix={neutral:{entails:1}}"),
         "the task has no label entails; did you mean entailment"),
        (("mode/reward=function", f"{TARGET}.short"),
         "mode/reward=function, examples .* it returned 255 values for 256 completions"),
        (("mode/reward=format", "mode.reward.format.pattern='[a-z]+'"),
         "no two answers to an example differ in reward, so GRPO cannot learn from them"),
        (("mode.num_iterations=2", "trainer.per_device_train_batch_size=999"),
         "mode.num_iterations=2: not one whole batch of 999 in 600 rows"),
        (("trainer.label_smoothing_factor=0.1",), "mode=rl has no cross-entropy to smooth"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_a_line(toy_run, words, problem):
    with pytest.raises(UserError, match=problem) as refused:
        toy_run(*RL, *words)
    assert "\n" not in str(refused.value)


def test_a_regression_has_no_labels_to_draw(launch, jsonl):
    rows = [{"text": f"a {i}", "score": i / 7} for i in range(20)]
    files = [
        f"task.files.{split}={jsonl(f'{split}.jsonl', rows)}" for split in ("train", "validation")
    ]
    with pytest.raises(UserError, match="mode=rl: it draws labels, and a regression has none"):
        launch("task=files", *files, "task.text=text", "task.label=score", *RL)


def test_a_column_that_rewards_are_given_anyway_is_refused(launch, jsonl):
    rows = [{"id": f"a {i}", "label": "xy"[i % 2]} for i in range(20)]
    files = [
        f"task.files.{split}={jsonl(f'{split}.jsonl', rows)}" for split in ("train", "validation")
    ]
    with pytest.raises(UserError, match="a column id itself; rename"):
        launch("task=files", *files, "task.text=id", *RL)


@pytest.mark.slow
def test_f1_rises_where_fine_tuning_never_says_the_rare_label(launch, jsonl):
    """P(rare) is below 0.5 for every text: cross-entropy ends at never, F1 at the likelier half."""
    rng, chances = np.random.default_rng(0), (0.02, 0.05, 0.1, 0.4)
    files = []
    for split, count in (("train", 1024), ("validation", 512)):
        kinds = rng.integers(0, 4, count)
        rare = rng.random(count) < np.take(chances, kinds)
        rows = [
            {"text": f"a {'wxyz'[k]} thing", "label": ("usual", "rare")[int(r)]}
            for k, r in zip(kinds, rare, strict=True)
        ]
        files.append(f"task.files.{split}={jsonl(f'{split}.jsonl', rows)}")
    task = ("task=files", *files, "task.text=text", "task.labels=[usual,rare]", *SMALL,
            "task.metrics=[f1,accuracy]", "trainer.eval_strategy=no", "trainer.save_strategy=no",
            "trainer.load_best_model_at_end=false", "trainer.learning_rate=5e-3")  # fmt: skip
    start = launch(*task, "trainer.num_train_epochs=4", at="start")
    assert results(start)["headline"]["value"] == 0
    run_dir = launch(*task, f"model.path={start}", "mode=rl", "mode/reward=metric",
                     "mode.reward.metric.name=f1", "trainer.num_train_epochs=4",
                     "trainer.per_device_train_batch_size=64", at="rl")  # fmt: skip
    assert results(run_dir)["headline"]["value"] > 0.3
