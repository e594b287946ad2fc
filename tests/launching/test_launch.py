"""The command line: a user's mistake is one line and exit code 2; help reads as documentation."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from forge.records.files import read_json
from tests.support.commands import LAUNCH, forge, launch
from tests.support.runs import SMALL, TOY


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=mnlii", r"task=mnlii: no such option; did you mean mnli"),
        ("model=distilbart", r"model=distilbart: no such option; did you mean .*distilbert"),
        ("mode=stf", r"mode=stf: no such option; did you mean sft\?"),
        ("experiment=smok", r"experiment=smok: no such option; did you mean smoke\?"),
        ("modle=tiny", r"modle: no such key; did you mean .*model"),
        ("model.pth=x", r"model\.pth: no such key; did you mean path\?"),
        ("trainer.lerning_rate=1", r"trainer\.lerning_rate: no such key; did you mean learning_ra"),
        ("precision=bf17", r"precision: invalid value 'bf17', expected one of \[auto, fp32, bf16"),
        ("seed=abc", r"seed: value 'abc'"),
        ("model.from_scratch=maybe", r"model\.from_scratch: value 'maybe' is not a valid bool"),
        ("task=[", r"task: Hydra reads \[ as"),
        ("task.label=a=b", r'task\.label: .* "task\.label=\'a=b\'"'),
        ("--config-name=nope", r"--config-name=nope: no such config"),
        ("+launcher.nodes=2", r"a key below a null: choose an option"),
        ("tracking=null", r"null is no option of a group"),
        ("hydra.run.dir=/proc/nowhere", r"run directory: .*hydra\.run\.dir=DIR"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(tmp_path, override, message):
    done = launch(tmp_path, override)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run" / "output.log").mkdir(parents=True)
    done = launch(tmp_path, "task=toy", "hydra.run.dir=run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(r"run directory: .*output\.log.*hydra\.run\.dir=DIR", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=files"], r"files\.train, task\.files\.validation, task\.text have no value: give"),
        (["+trainer.adam_beta_1=0.8"], r"trainer\.adam_beta_1: .*did you mean adam_beta1"),
    ],
)
def test_a_mistake_in_a_node_is_one_line_and_leaves_no_directory(tmp_path, overrides, message):
    done = launch(tmp_path, *overrides)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert re.search(message, done.stderr), done.stderr
    assert len(errors) == 1, done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_typo_in_a_users_yaml_is_one_line(tmp_path):
    mine = tmp_path / "conf" / "task"
    mine.mkdir(parents=True)
    text = (LAUNCH.parent / "conf" / "task" / "toy.yaml").read_text()
    (mine / "mine.yaml").write_text(text.replace("headline:", "headlin:"))
    (mine / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "work").mkdir()
    for task, message in (("mine", r"task\.headlin: .*did you mean headline"), ("broken", "yaml")):
        done = launch(tmp_path / "work", "--config-dir", str(tmp_path / "conf"), f"task={task}")
        assert done.returncode == 2
        assert re.search(message, done.stderr), done.stderr
        assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "work").iterdir())


def test_the_traceback_is_there_for_who_asks(tmp_path):
    done = launch(tmp_path, "seed=abc", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_help_names_groups_options_and_examples(tmp_path):
    done = launch(tmp_path, "--help")
    assert done.returncode == 0
    for word in ("distilbert", "mnli", "sft", "trainer", "experiment", "launcher", "tracking"):
        assert word in done.stdout
    assert done.stdout.count("python launch.py") >= 6


def test_showing_the_config_imports_nothing_heavy(tmp_path):
    script = (
        "import sys, runpy; sys.argv = ['launch.py', '--cfg', 'job']\n"
        f"runpy.run_path({str(LAUNCH)!r}, run_name='__main__')\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(LAUNCH.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "per_device_train_batch_size: 32" in done.stdout


@pytest.mark.slow
def test_a_sweep_writes_one_directory_per_run_and_survives_a_failing_one(tmp_path):
    done = launch(
        tmp_path, "-m", *TOY, *SMALL, "trainer.max_steps=2", "task.max_length=16,4", "seed=1,2"
    )
    assert done.returncode == 2
    assert "task.max_length=4: at least 8 tokens" in done.stderr
    (sweep,) = (tmp_path / "multirun" / "toy" / "tiny" / "sft").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}Z", sweep.name)
    runs = sorted(path.parent.name for path in sweep.glob("*/results.json"))
    assert runs == ["0", "1"]
    assert "output.log" in {path.name for path in (sweep / "0").iterdir()}
    assert not (sweep / "2").exists()
    table = (sweep / "sweep.csv").read_text().splitlines()
    assert table[0].startswith("job,task,task.dataset.train,") and len(table) == 5
    assert "task.max_length,seed,status,validation.accuracy," in table[0]
    assert sum(",finished,0." in line for line in table) == 2
    assert sum("task.max_length=4: at least" in line for line in table) == 2
    assert "2 jobs of the sweep did not finish; go on with python launch.py resume=" in done.stderr
    assert "report  " in done.stdout


@pytest.mark.slow
def test_a_run_is_logged_named_and_free_of_secrets(tmp_path):
    done = launch(
        tmp_path, *TOY, *SMALL, "trainer.max_steps=2", "+model.from_pretrained.token=hf_" + "a" * 20
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "outputs" / "toy" / "tiny" / "sft").iterdir()
    assert "accuracy" in done.stdout and str(run_dir) in done.stdout
    log = (run_dir / "output.log").read_text()
    assert "accuracy" in log and "padding" in log
    for path in run_dir.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".yaml", ".log"):
            assert "hf_aaaa" not in path.read_text(), path


@pytest.mark.slow
def test_a_job_is_the_same_alone_and_third_in_a_sweep_that_goes_on(tmp_path):
    run = (*TOY, *SMALL, "trainer.max_steps=6")
    assert launch(tmp_path, *run, "seed=3", "hydra.run.dir=alone").returncode == 0
    swept = ("-m", *run, "seed=1,2,3", "hydra.sweep.dir=sweep")
    assert launch(tmp_path, *swept).returncode == 0
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("alone", "sweep/2")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    for path in (tmp_path / "sweep" / "2", tmp_path / "sweep" / "report.png"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = launch(tmp_path, "resume=sweep")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("this run is finished; its result is returned") == 2
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (tmp_path / "sweep" / "report.png").is_file()


@pytest.mark.slow
def test_a_run_goes_on_by_name_with_what_it_recorded(tmp_path):
    run = (*TOY, *SMALL, "trainer.max_steps=6", "hydra.run.dir=run")
    assert launch(tmp_path, *run).returncode == 0
    before = (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    done = launch(tmp_path, "resume=run", "trainer.max_steps=9", "precision=fp32")
    assert done.returncode == 0, done.stderr
    assert "resume  trainer.max_steps=9 (recorded: 6)" in done.stdout
    assert "resume  checkpoint-6" in done.stdout and "trained 9 steps" in done.stdout
    assert (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text() == before
    again = launch(tmp_path, "resume=run")
    assert "this run is finished" in again.stdout and "conf/ has changed" not in again.stdout
    longer = launch(tmp_path, "resume=run", "trainer.num_train_epochs=1")  # though steps decided
    assert "trainer.max_steps=-1 (recorded: 9), so that the epochs decide" in longer.stdout
    assert "resume  checkpoint-9" in longer.stdout and "trained 19 steps" in longer.stdout
    for override, message in (
        ("trainer.learning_rate=1", "a change would touch what its finished part computed"),
        ("model=small", "model: the run was made with another"),
        ("model@teacher=bert", "model@teacher: the run was made with another"),
        ("experiment=toy_math", "experiment: the run was made with another (None)"),
        ("trainer.max_steps=2", "19 steps are done; a run can only be extended"),
        ("trainer.num_train_epochs=0.1", "1.0 epochs are done; a run can only be extended"),
        ("hydra.run.dir=other", "the run goes on in its own directory"),
    ):
        refused = launch(tmp_path, "resume=run", override)
        assert refused.returncode == 2 and message in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    (tmp_path / "run").rename(tmp_path / "sweep")  # a word of Forge's, and a name like any other
    again = launch(tmp_path, "resume=sweep")
    assert "this run is finished" in again.stdout and not (tmp_path / "outputs").exists()
    missing = launch(tmp_path, "resume=nowhere")
    assert missing.returncode == 2 and "no run and no sweep" in missing.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_a_signal_ends_with_its_exit_code_and_the_same_command_goes_on(tmp_path):
    run = (*TOY, *SMALL, "trainer.num_train_epochs=400", "hydra.run.dir=run")
    with open(tmp_path / "out", "w") as out:
        process = subprocess.Popen([sys.executable, str(LAUNCH), *run], cwd=tmp_path, stdout=out)
        while not list(tmp_path.glob("run/checkpoint-*/commit.json")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    printed = (tmp_path / "out").read_text()
    assert "finishing the step" in printed and "to go on: python launch.py resume=run\n" in printed
    listed = forge("runs", str(tmp_path))
    assert "preempted" in listed.stdout and f"resume={tmp_path / 'run'}" in listed.stdout


@pytest.mark.slow
def test_a_search_looks_for_the_best_headline(tmp_path):
    few = ("trainer.max_steps=2", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=sweep",
           "hydra.sweeper.storage=sqlite:///trials.db")  # fmt: skip
    done = launch(tmp_path, "experiment=search", *TOY, *SMALL, *few)
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    assert "best_value" in found
    shutil.rmtree(tmp_path / "sweep" / "0")
    again = launch(tmp_path, "resume=sweep")
    assert again.returncode == 0 and again.stdout.count("this run is finished") == 1, again.stderr
    assert (tmp_path / "sweep" / "optimization_results.yaml").read_text() == found


@pytest.mark.slow
def test_ctrl_c_leaves_jobs_in_the_background_alone_and_one_comes_back(tmp_path):
    """And no file of theirs holds a secret that they got."""
    secret = "+callbacks.note={_target_:tests.support.runs.Note,password:'open,sesame'}"
    words = (*TOY, *SMALL, "trainer.max_steps=4", "seed=1,2", "launcher=background",
             "launcher.array_parallelism=1", secret)  # fmt: skip
    driver = subprocess.Popen(
        [sys.executable, str(LAUNCH), *words, "hydra.sweep.dir=sweep"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    first = driver.stdout.readline()
    assert "2 jobs submitted" in first and "runs --watch sweep" in first
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    rest, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "the jobs go on; come back" in rest, errors
    watched = subprocess.run(
        [sys.executable, "-m", "forge", "runs", "--watch", str(tmp_path / "sweep")],
        cwd=LAUNCH.parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert watched.returncode == 0, watched.stderr
    table = (tmp_path / "sweep" / "sweep.csv").read_text()
    assert table.count(",finished,") == 2
    records = [tmp_path / "sweep" / seed / "run_metadata.json" for seed in "01"]
    attempts = [read_json(record)["attempts"][0] for record in records]
    first, second = sorted((attempt["started"], attempt["ended"]) for attempt in attempts)
    assert first[1] <= second[0]  # one at a time
    assert [(tmp_path / "sweep" / run / "length").read_text() for run in "01"] == ["11", "11"]
    files = [path for path in (tmp_path / "sweep").rglob("*") if path.is_file()]
    assert len(files) > 20 and not [path for path in files if b"open,sesame" in path.read_bytes()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["launcher=background", "+launcher.mem_gb=3"],
            r"launcher\.mem_gb: no such setting; known:",
        ),
        (["launcher=background", "launcher.array_parallelism=0"], r"array_parallelism=0: a number"),
        (["launcher=ddp", "+launcher.nodes=2"], r"launcher\.nodes: the processes of launcher=ddp"),
    ],
)
def test_a_launcher_knows_its_settings(tmp_path, words, message):
    done = launch(tmp_path, "seed=1,2" if "background" in words[0] else "seed=1", *words)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_rank_of_nobody_is_refused(tmp_path):
    alone = launch(tmp_path, "task=toy", RANK="1")
    assert alone.returncode == 2 and "RANK=1 is set in the environment" in alone.stderr


@pytest.mark.slow
def test_a_sweep_whose_output_nobody_reads_on_runs_to_its_end(tmp_path):
    words = ["-m", *TOY, *SMALL, "trainer.max_steps=1", "seed=1,2", "hydra.sweep.dir=sweep"]
    command = [sys.executable, str(LAUNCH), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        assert process.stderr.read() == "" and process.wait(timeout=120) == 141
    assert (tmp_path / "sweep" / "sweep.csv").read_text().count(",finished,") == 2
