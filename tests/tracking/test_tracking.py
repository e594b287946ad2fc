"""One W&B run per Forge run, offline too, read back with W&B's own reader; no failure stops one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import util
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import wandb
from transformers import TrainerCallback, TrainerState

from forge import ranks
from forge.commands import dashboard
from forge.config.check import build
from forge.config.schema import to_config
from forge.errors import UserError
from forge.records.files import read_json, write_json
from forge.records.record import Record
from forge.tracking import tracker
from forge.tracking import wandb as tracking_wandb
from forge.training.trainer import Trainer
from tests.support.commands import launch as start
from tests.support.runs import SMALL, TOY, results
from tests.support.texts import TINY

STEPS = ("trainer.max_steps=8", "trainer.logging_steps=1", "trainer.save_strategy=steps",
         "trainer.save_steps=4", "trainer.eval_strategy=steps", "trainer.eval_steps=2")  # fmt: skip
SHORT = ("trainer.max_steps=3", "trainer.logging_steps=1", "trainer.save_strategy=no",
         "trainer.eval_strategy=no", "trainer.load_best_model_at_end=false")  # fmt: skip
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Dies(TrainerCallback):
    """Kills this process once, after it has written `flag`."""

    def __init__(self, flag: str) -> None:
        self.flag = Path(flag)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6 and not self.flag.exists():
            time.sleep(2)  # W&B writes its file every second
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def inspect(file, *words):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *words, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def steps_and_run(file):
    found = [json.loads(line) for line in inspect(file).splitlines()]
    steps = [int(r["history"]["step"]["num"]) for r in found if r["type"] == "history"]
    return steps, next(r["run"] for r in found if r["type"] == "run")


@pytest.mark.slow
def test_a_sweep_killed_and_resumed_is_one_whole_curve_per_job(tmp_path):
    """Job 0 dies by kill -9 at step 6, after checkpoint 4; job 1 starts in the second attempt."""
    dies = f"+callbacks.dies={{_target_:tests.tracking.test_tracking.Dies,flag:{tmp_path}/flag}}"
    words = ("-m", *TOY, *SMALL, *STEPS, "tracking=wandb", "tracking.tags=[mine]", dies, "seed=1,2")
    assert start(tmp_path, *words, "hydra.sweep.dir=a/sweep").returncode == -signal.SIGKILL
    done = start(tmp_path, "resume=a/sweep")
    assert done.returncode == 0, done.stderr
    assert "resume  checkpoint-4" in done.stdout
    assert f"wandb sync {tmp_path}/a/sweep/0/wandb" in done.stdout
    ids = set()
    for job, attempts in ((0, 2), (1, 1)):
        run_dir = tmp_path / "a" / "sweep" / str(job)
        wandb_id = read_json(run_dir / "run_metadata.json")["wandb_id"]
        files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
        assert [file.name for file in files] == [f"run-{wandb_id}.wandb"] * attempts
        found = [steps_and_run(file) for file in files]
        assert [step for steps, _ in found for step in steps] == [1, 2, 3, 4, 5, 6, 7, 8]
        for steps, run in found:
            assert steps  # of the first attempt too: what it wrote counts
            assert run["run_group"].endswith("a/sweep") and run["job_type"] == "sft"
            assert run["display_name"].endswith(f"a/sweep/{job}")
            assert (run["tags"], run["project"]) == (["mine", "toy", "tiny", "sft"], "forge")
        told = json.loads(inspect(files[-1], "--summary"))
        value = results(run_dir)["headline"]["value"]
        summary = told["summary"]
        assert summary["headline"] == summary["validation/accuracy"] == pytest.approx(value)
        assert summary["_step"] == 8 and summary["validation/n"] == 150
        assert told["state"].startswith("finished") and told["config"]["seed"] == job + 1
        table = json.loads(next(files[-1].parent.rglob("*.table.json")).read_text())
        assert len(table["data"]) == 100 and "premise" in table["columns"]
        ids.add(wandb_id)
    assert len(ids) == 2
    with server() as (url, arrived):
        command = [sys.executable, "-m", "wandb", "sync", "a/sweep/0/wandb"]
        login = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40}
        subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | login,
            capture_output=True,
            check=True,
            timeout=60,
        )
    assert arrived == list(enumerate(range(1, 9)))


@contextmanager
def server():
    """As much of W&B's server as `wandb sync` needs; yields its address and, of every row of the
    curve that arrives, its place and its step."""
    arrived = []
    project = {"id": "UA==", "name": "forge", "entity": {"id": "RQ==", "name": "me"}}
    artifact = {"id": "QQ==", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}

    def answer(name, variables):
        bucket = {
            "id": "Qg==",
            "name": "run",
            "displayName": "run",
            "description": "",
            "config": "{}",
            "historyLineCount": len(arrived),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "eventsTail": "[]",
            "summaryMetrics": "{}",
            "wandbConfig": '{"t": 1}',
            "historyTail": json.dumps([json.dumps({"_step": s}) for _, s in arrived[-1:]]),
        }
        files = [{"name": f, "uploadUrl": f"{url}/{f}"} for f in variables.get("files", ())]
        return {
            "Viewer": {"viewer": {"id": "VQ==", "entity": "me", "username": "me", "flags": "{}"}},
            "RunResumeStatus": {"model": {**project, "bucket": bucket} if arrived else None},
            "UpsertBucket": {"upsertBucket": {"bucket": {**bucket, "project": project}}},
            "CreateRunFiles": {"createRunFiles": {"uploadHeaders": [], "files": files}},
            "CreateArtifact": {"createArtifact": {"artifact": artifact}},
        }.get(name, {})  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            told = json.loads(body) if self.command == "POST" else {}
            found = {}
            if self.path.endswith("/graphql"):
                name = re.search(r"(?:query|mutation)\s+(\w+)", told["query"])[1]
                found = {"data": answer(name, told.get("variables", {}))}
            elif rows := (told.get("files") or {}).get("wandb-history.jsonl"):
                steps = [json.loads(line)["_step"] for line in rows["content"]]
                arrived.extend(enumerate(steps, rows["offset"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        do_PUT = do_POST

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        url = f"http://127.0.0.1:{listening.server_port}"
        Thread(target=listening.serve_forever, daemon=True).start()
        yield url, arrived
        listening.shutdown()


class Service:
    """Stands for W&B: a run that remembers, and breaks where a test says."""

    def __init__(self, breaks=(), times=99):
        self.breaks, self.times, self.steps, self.keys = breaks, times, [], set()
        self.modes, self.asked, self.codes = [], [], []
        self.agent = None  # the id that a sweep's agent gives
        self.starting_step = 0
        self.url = "https://wandb.example.org/run"
        self.settings = SimpleNamespace(finish_timeout=0.1)
        self.summary = self

    def _maybe(self, point):
        if point in self.breaks and self.times > 0:
            self.times -= 1
            raise ConnectionError(f"{point} broke")

    def init(self, mode, **asked):
        self.modes.append(mode)
        self.asked.append(asked)
        self.id = self.agent or asked["id"]
        self.offline = mode == "offline"
        self._maybe("init")
        return self

    def log(self, row, step):
        self._maybe("log")
        self.steps.append(step)
        self.keys |= row.keys()

    def update(self, values):
        self._maybe("table" if "predictions/validation" in values else "summary")
        self.keys |= values.keys()

    def mark_preempting(self):
        self._maybe("preempting")

    def finish(self, exit_code):
        if "hang" in self.breaks:
            time.sleep(60)
        self._maybe("finish")
        self.codes.append(exit_code)


@pytest.fixture
def service(monkeypatch):
    """Put a service in W&B's place, with a login."""

    def put(*breaks, times=99):
        fake = Service(breaks, times)
        monkeypatch.setattr(wandb, "init", fake.init)
        monkeypatch.setattr(wandb, "teardown", lambda: None)
        monkeypatch.setattr(tracking_wandb, "LEAVING", 0.2)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.delenv("WANDB_MODE")
        return fake

    return put


@pytest.fixture(scope="module")
def weights():
    """Of the undisturbed run; the first to ask makes it."""
    return {}


@pytest.mark.parametrize(
    ("breaks", "times", "modes", "steps", "said"),
    [
        ([], 0, ["online"], [1, 2, 3], []),
        (["init"], 1, ["online", "offline"], [1, 2, 3], ["goes on offline"]),
        (["init"], 9, ["online", "offline"], [], ["goes on offline", "takes no more"]),
        (["log"], 1, ["online", "offline"], [1, 2, 3], ["goes on offline"]),
        (["log"], 9, ["online", "offline"], [], ["goes on offline", "takes no more"]),
        (["summary"], 1, ["online", "offline"], [1, 2, 3], ["goes on offline"]),
        (["table"], 1, ["online"], [1, 2, 3], ["has not taken"]),
        (["finish"], 1, ["online"], [1, 2, 3], ["did not end well"]),
        (["hang"], 1, ["online"], [1, 2, 3], ["no answer within"]),
    ],
)
def test_wandb_never_stops_a_run(
    toy_run, service, weights, monkeypatch, caplog, breaks, times, modes, steps, said
):
    monkeypatch.setattr(tracking_wandb, "FINISHING", 0.2)
    fake = service(*breaks, times=times)
    words = (*SHORT, "tracking=wandb", "task.dataset.train=96", "task.dataset.validation=30")
    run_dir = toy_run(*words, "tracking.table_rows=1")
    model = (run_dir / "model" / "model.safetensors").read_bytes()
    assert weights.setdefault("model", model) == model
    warned = [r.message for r in caplog.records if r.message.startswith("tracking: W&B")]
    assert len(warned) == len(said), warned
    for words, line in zip(said, warned, strict=True):
        assert words in line and "\n" not in line
        assert any(
            place in line for place in (f"{run_dir}/wandb", f"{run_dir}/pred", "_state.json")
        )
    assert fake.modes == modes
    assert list(dict.fromkeys(fake.steps)) == steps
    assert ("headline" in fake.keys) == bool(steps)


def test_an_agents_id_is_the_records_and_a_resume_goes_on_with_it(toy_run, service):
    fake = service()
    fake.agent = "agents"
    run_dir = toy_run(*SHORT, "tracking=wandb")
    assert read_json(run_dir / "run_metadata.json")["wandb_id"] == "agents"
    fake.agent = None
    state = read_json(run_dir / "training_state.json")
    write_json(run_dir / "training_state.json", state | {"status": "failed"})
    toy_run(*SHORT, "tracking=wandb")
    assert [asked["id"] == "agents" for asked in fake.asked] == [False, True]


def test_the_environment_counts_where_no_key_says_otherwise(toy_run, service, monkeypatch):
    fake = service()
    toy_run(*SHORT, "tracking=wandb", at="alone")
    for name in ("PROJECT", "NAME", "RUN_GROUP", "JOB_TYPE", "ENTITY", "RUN_ID"):
        monkeypatch.setenv(f"WANDB_{name}", name.lower())
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    toy_run(*SHORT, "tracking=wandb", at="environment")
    toy_run(*SHORT, "tracking=wandb", "tracking.project=mine", "tracking.entity=me",
            "tracking.tags=[mine]", at="keys")  # fmt: skip
    toy_run(*SHORT, "tracking=wandb", at="sweep/0")
    alone, environment, keys, job = fake.asked
    assert alone["project"] == "forge" and alone["name"].endswith("alone")
    read_by_wandb = {"name", "group", "job_type"}  # what it is not given
    assert not read_by_wandb & environment.keys() and environment["entity"] is None
    assert (environment["project"], environment["id"]) == ("project", "run_id")
    assert environment["tags"][:2] == ["a", "b"]
    assert (keys["project"], keys["entity"], keys["tags"][:3]) == ("mine", "me", ["mine", "a", "b"])
    assert job["id"] != "run_id"  # all jobs of a sweep would share it


@pytest.mark.slow
@QUIET
def test_wandb_itself_files_a_run_as_agent_and_environment_say(toy_run, monkeypatch):
    names = {"SWEEP_ID": "sweep", "RUN_ID": "agents", "PROJECT": "p", "ENTITY": "e", "NAME": "n"}
    for name, value in names.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()  # which had read the environment
    try:
        run_dir = toy_run(*SHORT, "tracking=wandb")
    finally:
        wandb.teardown()
    assert read_json(run_dir / "run_metadata.json")["wandb_id"] == "agents"
    (file,) = run_dir.glob("wandb/offline-run-*/run-agents.wandb")
    run = steps_and_run(file)[1]
    assert (run["project"], run["entity"], run["display_name"]) == ("p", "e", "n")


@pytest.mark.slow
@QUIET
def test_without_a_network_the_run_goes_on_offline(toy_run, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.teardown()  # which had read the environment
    try:
        run_dir = toy_run(*SHORT, "tracking=wandb", "tracking.settings.init_timeout=1")
    finally:
        wandb.teardown()
    assert "connection refused" in caplog.text
    assert f"send it later with: wandb sync {run_dir}/wandb" in caplog.text
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert steps_and_run(file)[0] == [1, 2, 3]


@pytest.mark.slow
@QUIET
def test_of_a_distillation_terms_shares_and_the_teacher_are_sent(toy_run, service):
    teacher = toy_run(*SHORT, at="a/b/c/teacher")
    fake = service()
    kd = ("mode=kd", f"teacher.path={teacher}", "mode.gate=off", "tracking=wandb")
    toy_run(*SHORT, *kd, "trainer.eval_strategy=epoch", "trainer.max_steps=20")
    assert fake.keys >= {"train/loss", "train/loss_task", "train/loss_kl",
                         "train/gradient_share_task", "train/gradient_share_kl",
                         "teacher/headline", "headline", "validation/accuracy",
                         "train/examples_per_second", "predictions/validation"}  # fmt: skip
    (asked,) = fake.asked
    assert asked["tags"] == ["teacher:a/b/c/teacher"] and fake.codes == [0]
    shown = json.dumps(dashboard.specification(dashboard.build("forge", "me")))
    metrics = re.findall(r'"metrics": \[([^]]*)\]|"summary:([^"]+)"', shown)
    keys = {key for found in metrics for word in found for key in re.findall(r"[a-z_/]+", word)}
    assert "eval/headline" in keys and keys <= fake.keys
    for pattern in re.findall(r'"metricRegex": "([^"]+)"', shown):
        assert any(re.fullmatch(pattern, key) for key in fake.keys)


def test_only_rank_0_tracks(composed, monkeypatch):
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    track = tracker.tracker(to_config(composed("tracking=wandb")))
    with track(None, None) as callbacks:
        assert callbacks == []


@pytest.mark.parametrize("content", [b"", b":W&B\xe1\xbe\x00"])
def test_a_file_that_a_kill_left_empty_counts_for_nothing(tmp_path, content):
    (tmp_path / "run-x.wandb").write_bytes(content)
    assert tracking_wandb._last_step(tmp_path / "run-x.wandb") == -1


def about(tmp_path, choices, folder, **more):
    model = {"path": None}
    metadata = {"wandb_id": "x", "choices": choices, "config": {"model": model, "teacher": model}}
    rec = Record(tmp_path / folder)
    rec.metadata = metadata | more
    return tracking_wandb._about(rec, ["mine", "t" * 80], None)


def test_how_a_run_is_filed(tmp_path):
    choices = {"task": "toy", "model": "tiny", "mode": "kd", "model@teacher": "small"}
    alone = about(tmp_path, choices, "outputs/toy/tiny/kd/20260101-120000Z")
    assert alone["name"] == "toy/tiny/kd/20260101-120000Z"
    assert "group" not in alone and alone["job_type"] == "kd"
    assert alone["tags"] == ["mine", "t" * 64, "toy", "tiny", "kd"]  # alpha 0: no teacher
    taught = {"teacher": {"paths": ["outputs/toy/small/sft/20260101-110000Z"]}}
    job = about(tmp_path, choices, "multirun/toy/tiny/kd/20260101-120000Z/3", **taught)
    assert job["name"] == "toy/tiny/kd/20260101-120000Z/3"
    assert job["group"] == "toy/tiny/kd/20260101-120000Z"
    assert job["tags"][-1] == "teacher:small"


def test_a_row_is_sent_whole_and_once_and_what_a_killed_attempt_lost_too(tmp_path):
    """Of a killed attempt that went to step 6, the service has rows to 2, the checkpoint 4."""
    seen = []

    class Sink(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, logs))

    rec = Record(tmp_path)
    rec.state = {"tracked": {"sink": 2}}
    history = [{"step": s, "loss": float(s)} for s in (1, 2, 3, 4)]
    state = TrainerState(log_history=[*history, {"step": 4, "eval_loss": 0.4}], global_step=4)
    curves = tracking_wandb.Curves(rec, "sink", Sink())
    curves.on_step_begin(None, state, None)
    assert seen == [(3, {"loss": 3.0}), (4, {"loss": 4.0, "eval_loss": 0.4})]
    state.log_history.append({"step": 5, "loss": 5.0})
    state.global_step = 5
    curves.on_train_end(None, state, None)
    state.log_history.append({"step": 5, "train_loss": 2.0})
    curves.end()
    curves.end()
    assert seen[2:] == [(5, {"loss": 5.0, "train_loss": 2.0})]
    assert (
        tracking_wandb.Curves(rec, "sink").sent == 5
        and tracking_wandb.Curves(rec, "other").sent == -1
    )


def test_predictions_carry_texts_names_and_how_sure(toy_run, composed, service):
    fake, kept = service(), []
    fake.update = lambda values: kept.append(values)
    toy_run(*SHORT, "tracking=wandb", "tracking.table_rows=7")
    (table,) = [v for values in kept for k, v in values.items() if k == "predictions/validation"]
    assert table.columns == ["id", "premise", "hypothesis", "label", "prediction", "probability"]
    names = composed(*TOY).task.labels
    assert len(table.data) == 7
    for row in table.data:
        assert row[3] in names and row[4] in names and 1 / 3 < row[5] <= 1 and row[1]


def test_a_language_models_predictions_carry_prompt_and_completion(launch, service):
    fake, kept = service(), []
    fake.update = lambda values: kept.append(values)
    launch(*TINY, *SHORT, "tracking=wandb", "tracking.table_rows=7")
    (table,) = [v for values in kept for k, v in values.items() if k == "predictions/validation"]
    assert table.columns == ["id", "prompt", "completion", "label", "prediction"]
    assert len(table.data) == 7 and all(row[1].endswith("now?\n") for row in table.data)


def test_a_setting_that_wandb_does_not_know_is_refused(toy_run, service):
    service()
    with pytest.raises(UserError, match=r"tracking: .*init_timeot"):
        toy_run(*SHORT, "tracking=wandb", "+tracking.settings.init_timeot=1")


def events(run_dir):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for file in sorted(run_dir.glob("tensorboard/events*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                yield value.tag, event.step


@pytest.mark.slow
@QUIET
def test_tensorboard_has_each_step_once_over_a_resume(toy_run, monkeypatch):
    train = Trainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 6:
            raise RuntimeError("the power went off")
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dies)
    words = (*STEPS, "tracking=tensorboard")
    with pytest.raises(RuntimeError, match="power"):
        toy_run(*words)
    monkeypatch.setattr(Trainer, "training_step", train)
    run_dir = toy_run(*words)
    found = list(events(run_dir))
    assert len(list(run_dir.glob("tensorboard/events*"))) == 2
    assert [step for tag, step in found if tag == "train/loss"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step for tag, step in found if tag == "eval/accuracy"] == [2, 4, 6, 8]


def test_a_service_that_is_not_installed_is_one_line(monkeypatch, composed):
    from omegaconf import OmegaConf

    package, found = "tensorboard", util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda n, *a: None if n == package else found(n, *a))
    node = OmegaConf.to_container(composed(f"tracking={package}").tracking)
    with pytest.raises(UserError, match=f"{package} is not installed; pip install"):
        build(node, "tracking")
