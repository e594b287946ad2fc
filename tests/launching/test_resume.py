"""A stopped run goes on with the same bits."""

import os
import shutil
import signal

import pytest
from omegaconf import OmegaConf

from forge.errors import Preempted, UserError
from forge.launching.resume import resumed_arguments
from forge.records import checkpoints
from forge.records.files import read_json
from forge.results.equality import unequal
from forge.training.signals import Stop, asking, watch
from forge.training.trainer import Trainer
from tests.support.runs import SMALL, TOY, results
from tests.support.stopping import RUN, STEPS, assert_same


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("settings", "step"),
    [
        ((), 3),
        ((), 26),  # in the second epoch
        (("trainer.train_sampling_strategy=random",), 26),
        (("trainer.dataloader_num_workers=2",), 26),
        (("trainer.gradient_accumulation_steps=3",), 9),
        (("precision=bf16",), 25),
        (("mode.class_weights=balanced", "mode.focal_gamma=2"), 25),
    ],
)
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(toy_run, stop_at, settings, step):
    whole = toy_run(*RUN, *settings, at="whole")
    stop_at(step)
    with pytest.raises(Preempted):
        toy_run(*RUN, *settings, at="stopped")
    stopped = next(iter(checkpoints.steps(whole.with_name("stopped")))), step
    assert stopped == (step, step)
    assert read_json(whole.with_name("stopped") / "training_state.json")["status"] == "preempted"
    assert_same(whole, toy_run(*RUN, *settings, at="stopped"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [("mode/loss=kl",), ("mode/loss=[kl,hidden]",), ("mode/loss=kl", "mode.cache=off")]
)
def test_a_stopped_distillation_too(toy_run, stop_at, settings):
    teacher = toy_run(*RUN, "model.config.hidden_size=32", at="teacher")
    kd = (*RUN, "mode=kd", f"teacher.path={teacher}", "mode.gate=off", *settings)
    whole = toy_run(*kd, at="whole")
    stop_at(24)
    with pytest.raises(Preempted):
        toy_run(*kd, at="stopped")
    assert_same(whole, toy_run(*kd, at="stopped"))


@pytest.mark.slow
def test_another_teacher_at_the_same_place_is_said(toy_run, stop_at, caplog):
    untrained = ("trainer.num_train_epochs=0",)
    teacher = toy_run(*untrained, at="teacher")
    kd = (*RUN, "mode=kd", f"teacher.path={teacher}", "mode.gate=off")
    stop_at(9)
    with pytest.raises(Preempted):
        toy_run(*kd)
    shutil.rmtree(teacher)
    toy_run(*untrained, "seed=2", at="teacher")
    toy_run(*kd)
    assert caplog.text.count("its weights are not those that this run began with") == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sft", "kd"])
def test_a_stopped_language_model_too(launch, stop_at, mode):
    """It generates in training, and samples at the end."""
    tiny = ("task=toy_math", "model=tiny_lm", "task.dataset.train=400", "precision=fp32",
            "task.dataset.validation=40", "task.max_new_tokens=12", "task.pass_at=[2]",
            "task.samples=2", "model.config.hidden_size=16", "model.config.intermediate_size=32",
            "trainer.num_train_epochs=2", "trainer.learning_rate=3e-3")  # fmt: skip
    often = ("trainer.eval_strategy=steps", "trainer.save_strategy=steps", "trainer.eval_steps=5",
             "trainer.save_steps=5", "trainer.gradient_accumulation_steps=2",
             "trainer.per_device_train_batch_size=16", "trainer.logging_steps=3",
             "task.headline=perplexity", f"mode={mode}")  # fmt: skip
    if mode == "kd":
        teacher = launch(*tiny, *STEPS, "trainer.save_strategy=no",
                         "trainer.load_best_model_at_end=false", at="teacher")  # fmt: skip
        often += (f"teacher.path={teacher}", "mode.gate=off", "mode/loss=[kl,hidden]")
    whole = launch(*tiny, *often, at="whole")
    stop_at(17)
    with pytest.raises(Preempted):
        launch(*tiny, *often, at="stopped")
    assert_same(whole, launch(*tiny, *often, at="stopped"))


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_found_again(toy_run, stop_at):
    best = ("trainer.num_train_epochs=4", "trainer.save_total_limit=1")
    whole = toy_run(*best, at="whole")
    stop_at(41)
    with pytest.raises(Preempted):
        toy_run(*best, at="stopped")
    again = toy_run(*best, at="stopped")
    assert_same(whole, again)
    states = [read_json(run / "training_state.json") for run in (whole, again)]
    assert states[0]["best_checkpoint"] == states[1]["best_checkpoint"]


TIED = ("trainer.eval_strategy=steps", "trainer.save_strategy=steps", "trainer.learning_rate=1e-7")


@pytest.mark.slow
def test_a_checkpoint_off_the_schedule_is_never_the_best(toy_run, stop_at):
    plan = (*TIED, "trainer.num_train_epochs=2", "trainer.eval_steps=5", "trainer.save_steps=10")
    whole = toy_run(*plan, at="whole")
    stop_at(5)
    with pytest.raises(Preempted):
        toy_run(*plan, at="stopped")
    assert [p.name for p in whole.with_name("stopped").glob("*-5")] == ["preempted-5"]
    assert_same(whole, toy_run(*plan, at="stopped"))
    assert not list(whole.with_name("stopped").glob("preempted-*"))


@pytest.mark.slow
def test_early_stopping_remembers_its_patience(toy_run, stop_at):
    stopping = ("callbacks=early_stopping", "callbacks.early_stopping.early_stopping_patience=3")
    often = ("trainer.eval_steps=6", "trainer.save_steps=6", "trainer.num_train_epochs=8")
    whole = toy_run(*TIED, *stopping, *often, at="whole")
    stop_at(20)
    with pytest.raises(Preempted):
        toy_run(*TIED, *stopping, *often, at="stopped")
    again = toy_run(*TIED, *stopping, *often, at="stopped")
    steps = [results(run)["train"]["steps"] for run in (whole, again)]
    assert steps[0] == steps[1]
    assert_same(whole, again)


@pytest.mark.slow
def test_early_stopping_may_begin_with_a_later_attempt(toy_run, stop_at):
    plan = (*TIED, "trainer.eval_steps=6", "trainer.save_steps=6", "trainer.num_train_epochs=2")
    stop_at(20)
    with pytest.raises(Preempted):
        toy_run(*plan)
    stopping = ("callbacks=early_stopping", "callbacks.early_stopping.early_stopping_patience=2")
    resumed = ("resume=run", *stopping)  # past its look at what changes
    assert results(toy_run(*plan, *resumed))["train"]["steps"] == 30


@pytest.fixture
def dies_in_predict(monkeypatch):
    """The last evaluation dies, once: training is over, results are not written."""

    def die(self, *args, **kwargs):
        raise RuntimeError("the power went off")

    def arrange():
        monkeypatch.setattr(Trainer, "predict", die, raising=False)
        monkeypatch.setattr(checkpoints, "rotate", lambda *args: None)  # dead before that
        return monkeypatch.undo

    return arrange


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        ("trainer.max_steps=25", "trainer.lr_scheduler_type=constant", *RUN),  # cuts an epoch
        ("trainer.max_steps=25", "trainer.eval_strategy=steps", "trainer.save_strategy=steps",
         "trainer.eval_steps=5", "trainer.save_steps=5"),
        ("trainer.num_train_epochs=2", "trainer.save_total_limit=1"),
    ],
)  # fmt: skip
def test_a_run_whose_training_is_over_is_only_judged(toy_run, dies_in_predict, plan):
    whole = toy_run(*plan, at="whole")
    alive = dies_in_predict()
    with pytest.raises(RuntimeError, match="power"):
        toy_run(*plan, at="died")
    alive()
    again = toy_run(*plan, at="died")
    assert_same(whole, again)
    steps = [results(run)["train"]["steps"] for run in (whole, again)]
    assert steps[0] == steps[1]
    assert checkpoints.steps(whole).keys() == checkpoints.steps(again).keys()


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["flip", "delete"])
def test_a_best_checkpoint_that_is_lost_is_said_and_never_loaded(
    toy_run, stop_at, caplog, tmp_path, harm
):
    plan = (*TIED, "trainer.eval_steps=6", "trainer.save_steps=6", "trainer.num_train_epochs=2")
    stop_at(27)
    with pytest.raises(Preempted):
        toy_run(*plan)
    best = tmp_path / "run" / read_json(tmp_path / "run" / "training_state.json")["best_checkpoint"]
    file = best / "model.safetensors"
    if harm == "delete":
        shutil.rmtree(best)
    else:
        content = bytearray(file.read_bytes())
        content[-9] ^= 64
        file.write_bytes(content)
    run_dir = toy_run(*plan)
    assert f"{best.name}, the best so far" in caplog.text
    named = read_json(run_dir / "training_state.json")["best_checkpoint"]
    kept, final = (checkpoints.weights(run_dir / name) for name in (named, "model"))
    assert not list(unequal("weights", kept, final))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_other_signals_ask_for_the_same(toy_run, stop_at, number):
    stop_at(4, number)
    with pytest.raises(Preempted) as stopped:
        toy_run(*RUN)
    assert stopped.value.exit_code == 128 + number


def test_a_closed_connection_does_not_ask_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watch():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.SIGHUP not in asking()
    finally:
        signal.signal(signal.SIGHUP, before)
    with watch() as stop, pytest.raises(Preempted):
        assert signal.SIGHUP in asking()
        signal.raise_signal(signal.SIGHUP)
    assert stop.number == signal.SIGHUP


def test_the_second_ctrl_c_stops_at_once():
    stop = Stop()
    stop.training = True
    stop.ask(signal.SIGINT)
    stop.ask(signal.SIGTERM)  # the launcher's, beside the terminal's
    with pytest.raises(KeyboardInterrupt):
        stop.ask(signal.SIGINT)


@pytest.mark.slow
def test_a_signal_while_results_are_written_leaves_nothing_by_halves(
    toy_run, monkeypatch, tmp_path
):
    whole, save = toy_run(*RUN, at="whole"), Trainer.save_model

    def save_model(self, *args, **kwargs):
        if not kwargs:  # of a checkpoint
            os.kill(os.getpid(), signal.SIGTERM)
        save(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_model", save_model)
        with pytest.raises(Preempted):
            toy_run(*RUN)
    run_dir = tmp_path / "run"
    assert read_json(run_dir / "training_state.json")["status"] == "preempted"
    assert_same(whole, run_dir)
    assert_same(whole, toy_run(*RUN))


TINY = ("task=toy_math", "model=tiny_lm", "task.dataset.train=64", "task.dataset.validation=16",
        "task.max_new_tokens=4", "precision=fp32", "model.config.hidden_size=16",
        "trainer.per_device_train_batch_size=16")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        (*TOY, *SMALL, "mode=rl", "mode.gate=off"),
        TINY,
        (*TINY, "mode=rl", "mode.gate=off", "mode/reward=length", "mode.reward.length.limit=2"),
    ],
)
def test_a_run_is_the_same_first_and_third_in_one_process(launch, words):
    few = ("trainer.max_steps=4", "trainer.save_strategy=no", "trainer.eval_strategy=no",
           "trainer.load_best_model_at_end=false")  # fmt: skip
    first = launch(*words, *few, "seed=3", at="first")
    launch(*words, *few, "seed=1", at="second")
    third = launch(*words, *few, "seed=3", at="third")
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (first, third)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_before_slurms_kill_a_checkpoint_is_written_and_the_run_goes_on(
    toy_run, stop_at, monkeypatch, caplog
):
    whole = toy_run(*RUN, at="whole")
    stop_at(9)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert_same(whole, toy_run(*RUN))
    written = caplog.text.index("checkpoint written")
    assert "going on until SLURM ends this process" in caplog.text[written:]


def test_what_a_resumed_sweep_cannot_change_is_refused(tmp_path):
    words = {"task": ["seed=1,2", "model=tiny", "+x.token=***"], "hydra": []}
    recorded = {"hydra": {"overrides": words, "sweeper": {"params": {"mode.alpha": "0,1"}}}}
    recorded["hydra"]["verbose"] = False
    folder = tmp_path / 'a sweep, it\'s = "so"'
    folder.mkdir()
    OmegaConf.save(OmegaConf.create(recorded), folder / "multirun.yaml")
    on_top = ["trainer.max_steps=9", "+x.token=y"]
    quoted = "'{}'".format(str(folder).replace("'", "\\'"))
    for named in (folder, quoted):
        assert resumed_arguments([f"resume={named}", *on_top]) == [
            "-m", "seed=1,2", "model=tiny", *on_top, "resume=sweep", f"hydra.sweep.dir={quoted}"
        ]  # fmt: skip
    for key in ("seed", "mode.alpha"):
        with pytest.raises(UserError, match=rf"{key}: the sweep in .* is over it"):
            resumed_arguments([f"resume={folder}", f"{key}=0", *on_top])
    with pytest.raises(
        UserError, match=r"x\.token: a secret, which is not recorded; give it again"
    ):
        resumed_arguments([f"resume={folder}"])


def test_a_sweep_with_runs_goes_on_with_their_settings(tmp_path):
    words = {"task": ["seed=1,2", "+x.token=***", "trainer.max_steps=4"], "hydra": []}
    recorded = {"hydra": {"overrides": words, "sweeper": {"params": None}, "verbose": False}}
    OmegaConf.save(OmegaConf.create(recorded), tmp_path / "multirun.yaml")
    on_top = [f"resume={tmp_path}", "+x.token=y", "hydra.verbose=true", "launcher=background"]
    same = ["trainer.max_steps=4", "trainer.save_steps=2"]
    for other in ("task=cola", "trainer.learning_rate=1", "model@teacher=bert"):
        assert other in resumed_arguments([*on_top, other])  # nothing has run yet
        (tmp_path / "0").mkdir(exist_ok=True)
        (tmp_path / "0" / "run_metadata.json").write_text("{}")
        with pytest.raises(UserError, match=rf"the runs in .* are not of {other}"):
            resumed_arguments([*on_top, other])
        (tmp_path / "0" / "run_metadata.json").unlink()
    (tmp_path / "0" / "run_metadata.json").write_text("{}")
    assert set(same) < set(resumed_arguments([*on_top, *same]))


@pytest.mark.parametrize("content", ["", "hydra", "hydra: {a: b}", "a: ["])
def test_a_sweeps_record_that_is_cut_short_is_said(tmp_path, content):
    (tmp_path / "multirun.yaml").write_text(content)
    with pytest.raises(UserError, match=r"multirun\.yaml: .*give the sweep's command again with"):
        resumed_arguments([f"resume={tmp_path}"])


def test_a_checkpoint_is_no_run_but_its_run_is_named(tmp_path):
    (tmp_path / "run_metadata.json").write_text("{}")
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(UserError, match=rf"its run is resume={tmp_path}$"):
        resumed_arguments([f"resume={tmp_path / 'checkpoint-5'}"])


def test_a_signal_outside_training_stops_at_once(toy_run, monkeypatch, tmp_path):
    from forge.training import preparation

    def encode(*args, **kwargs):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:  # as an import does to what comes in its midst
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(preparation, "encode", encode)
    with pytest.raises(Preempted):
        toy_run(*RUN)
    assert read_json(tmp_path / "run" / "training_state.json")["status"] == "preempted"
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
