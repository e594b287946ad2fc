"""Distillation of classifiers: what a run of mode=kd learns, finds and refuses."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from forge.config.schema import to_config
from forge.data import fingerprints
from forge.distillation import finding, stored
from forge.errors import UserError
from forge.experiment import train_teachers
from forge.records.files import read_json
from forge.tasks.label import Label
from forge.training.arguments import check_all
from tests.support.runs import SMALL, TOY, history, launch_in, results, weights, write_rows

FEW = ("trainer.max_steps=6", "trainer.logging_steps=1")


NO_DROPOUT = (  # of the student
    "+model.config.hidden_dropout_prob=0",
    "+model.config.attention_probs_dropout_prob=0",
)


def easy_in(folder):
    """Runs in `folder` on a task that is soon learnt: a word says the label, in 8 rows of 9."""
    words = ("good", "fair", "bad")
    rows = [
        {
            "text": f"a {words[i % 3]} thing {'indeed ' * (i % 5)}",
            "label": words[(i + (i % 9 == 0)) % 3],
        }
        for i in range(320)
    ]
    files = [
        f"task.files.{split}={write_rows(folder / f'{split}.jsonl', part)}"
        for split, part in (("train", rows[:256]), ("validation", rows[200:]))
    ]
    task = ("task=files", *files, "task.text=text", "task.labels=[good,fair,bad]")

    launch = launch_in(folder)
    return lambda *overrides, at="run", size=SMALL: launch(*size, *task, *overrides, at=at)


@pytest.fixture
def easy(tmp_path, quick):
    return easy_in(tmp_path)


@pytest.fixture(scope="module")
def taught(tmp_path_factory, quick):
    return easy_in(tmp_path_factory.mktemp("taught"))(
        "trainer.num_train_epochs=4",
        "trainer.learning_rate=5e-3",
        "model.config.hidden_size=32",
        at="teacher",
    )


@pytest.fixture
def teacher_run(taught, tmp_path):
    """A copy of a finished run of the teacher, which a test may change."""
    return shutil.copytree(taught, tmp_path / "teacher")


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """Teachers are looked for, and trained, under outputs/ of the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kd(easy, teacher_run):
    def start(*overrides, **where):
        return easy("mode=kd", f"teacher.path={teacher_run}", *FEW, *overrides, **where)

    return start


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("mode.class_weights=balanced",),
        ("mode.focal_gamma=2",),
        ("trainer.label_smoothing_factor=0.1",),
    ],
)
def test_alpha_zero_is_sft_to_the_bit_without_a_teacher(toy_run, settings):
    sft = toy_run(*FEW, *settings, at="sft")
    kd = toy_run(*FEW, *settings, "mode=kd", "mode.alpha=0", "teacher.path=/nowhere", at="kd")
    assert all(torch.equal(weights(sft)[name], tensor) for name, tensor in weights(kd).items())
    assert [row["loss"] for row in history(sft)] == [row["loss"] for row in history(kd)]
    assert results(sft)["headline"] == results(kd)["headline"]


def test_the_blend_is_what_the_formula_says(kd, caplog):
    caplog.set_level(logging.INFO)
    run_dir = kd("mode.alpha=0.25", "mode.loss.kl.temperature=3")
    assert "0.75 * task loss + 0.25 * (1 * kl(temperature 3" in caplog.text
    assert "times T^2" in caplog.text
    for row in history(run_dir):
        assert row["loss"] == pytest.approx(row["loss_task"] + row["loss_kl"], abs=1e-5)
    shares = [v for k, v in history(run_dir)[0].items() if k.startswith("gradient_share_")]
    assert len(shares) == 2 and sum(shares) == pytest.approx(1) and min(shares) > 0
    assert "shares of the gradient norm in the first batch: task" in caplog.text
    recorded = read_json(run_dir / "run_metadata.json")["teacher"]
    assert recorded["splits"]["validation"]["accuracy"] > recorded["baseline"]


@pytest.mark.slow
def test_alpha_one_takes_nothing_from_the_labels(kd, teacher_run):
    row = history(kd("mode.alpha=1"))[0]
    assert "loss_task" not in row and row["gradient_share_kl"] == 1


@pytest.mark.slow
def test_the_teacher_is_asked_once_for_all_runs(kd, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    own = f"cache_dir={tmp_path / 'cache'}"
    kd("mode.alpha=0.5", own, at="a")
    assert "asked about 256 train rows" in caplog.text
    caplog.clear()
    kd("mode.alpha=0.75", "seed=3", own, at="b")
    assert "found in the cache" in caplog.text
    assert "asked about" not in caplog.text


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew(kd, cache, caplog):
    first = kd("mode.alpha=0.5", at="a")
    for path in (cache / "teacher").glob("*.safetensors"):
        path.write_bytes(b"broken")
    second = kd("mode.alpha=0.5", at="b")
    assert "damaged" in caplog.text
    assert history(first)[-1]["loss"] == history(second)[-1]["loss"]


@pytest.mark.slow
def test_answers_to_rows_of_another_data_set_are_not_taken(kd, caplog, tmp_path):
    from safetensors.numpy import load_file, save_file

    own = f"cache_dir={tmp_path / 'cache'}"
    first = kd("mode.alpha=0.5", own, at="a")
    for path in (tmp_path / "cache" / "teacher").glob("*.safetensors"):
        stored = load_file(path)
        save_file(stored | {"ids": stored["ids"][::-1].copy()}, path)
    second = kd("mode.alpha=0.5", own, at="b")
    assert "of other rows" in caplog.text
    assert history(first) == history(second)


@pytest.mark.slow
def test_answers_that_another_teacher_gave_are_refused(kd, tmp_path):
    from safetensors.numpy import load_file, save_file

    own = f"cache_dir={tmp_path / 'cache'}"
    kd("mode.alpha=0.5", own, at="a")
    for path in (tmp_path / "cache" / "teacher").glob("*.safetensors"):
        stored = load_file(path)
        other = (stored["logits"] + [3, 0, 0]).astype(np.float32)
        save_file(
            stored | {"logits": other}, path, {"xxh128": fingerprints.digest(other.tobytes())}
        )
    with pytest.raises(UserError, match=r"stored answers differ from live ones by 0\.\d+; delete"):
        kd("mode.alpha=0.5", own, at="b")


@pytest.mark.slow
def test_smoothing_touches_the_task_loss_only(kd):
    smooth = [
        history(kd(f"trainer.label_smoothing_factor={share}", at=f"smooth_{share}"))[0]
        for share in (0, 0.3)
    ]
    assert smooth[0]["loss_kl"] == smooth[1]["loss_kl"]
    assert smooth[0]["loss_task"] != smooth[1]["loss_task"]


@pytest.mark.slow
def test_the_teacher_stays_out_of_the_optimizer_and_without_dropout(kd):
    often = ("trainer.eval_strategy=steps", "trainer.eval_steps=2")
    run_dir = kd("mode/loss=hidden", *NO_DROPOUT, *often, "trainer.load_best_model_at_end=false")
    state = torch.load(run_dir / "checkpoint-6" / "optimizer.pt", weights_only=True)["state"]
    projections = load_file(run_dir / "checkpoint-6" / "losses.safetensors")
    assert len(state) == len(weights(run_dir)) + len(projections)
    never = ("trainer.eval_strategy=no", "trainer.save_strategy=no")
    unkept = "trainer.load_best_model_at_end=false"
    again = kd("mode/loss=hidden", *NO_DROPOUT, *never, unkept, at="unjudged")
    assert all(torch.equal(t, weights(again)[name]) for name, t in weights(run_dir).items())


def relabel(run_dir, names, rows):
    """Give the saved head other names, its rows in another order."""
    from safetensors.torch import save_file

    tensors = weights(run_dir)
    for key in ("classifier.weight", "classifier.bias"):
        tensors[key] = tensors[key][rows].clone()
    save_file(tensors, run_dir / "model" / "model.safetensors", metadata={"format": "pt"})
    path = run_dir / "model" / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    path.write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.parametrize("names", [("Bad", "GOOD", "fair"), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_a_teacher_of_another_order_teaches_the_same(kd, teacher_run, names, caplog):
    caplog.set_level(logging.INFO)
    first = kd("mode.alpha=0.5", at="a")
    relabel(teacher_run, names, [2, 0, 1])
    second = kd("mode.alpha=0.5", at="b")
    said = "matched by trial" if names[0].startswith("LABEL") else "put into the task's order"
    assert said in caplog.text
    curves = [[row["loss"] for row in history(run)] for run in (first, second)]
    np.testing.assert_allclose(*curves, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode.alpha=1.5"], r"mode\.alpha=1\.5: input should be less than or equal to 1"),
        (["mode.top_k=4"], "mode.top_k=4: it is for language models"),
        (["mode.loss.kl.temperature=0"], r"mode\.loss\.kl: temperature=0"),
        (["mode.loss.kl.divergence=backward"], r"mode\.loss\.kl: divergence=backward"),
        (["+mode.loss.kl.temprature=2"], r"mode\.loss\.kl\.temprature: .*did you mean temperature"),
        (["model@teacher=bert", "teacher.path=null"], "teacher.path=null: name a run or a model"),
        (["teacher.path=null", "teacher.train=off"], "train one with python launch.py mode=sft"),
        (["teacher.path=/nowhere"], r"teacher\.path=/nowhere: no such directory"),
        (["mode/loss=hidden", "model.config.vocab_size=30"], "read the text as different tokens"),
        (["task.labels=[a,b,c]"], "not among task.labels"),
    ],
)
def test_what_cannot_teach_is_refused_in_one_line(kd, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        kd(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_teacher_of_other_labels_or_without_a_head_is_refused(kd, teacher_run):
    relabel(teacher_run, ("yes", "maybe", "no"), [0, 1, 2])
    with pytest.raises(UserError, match=r"teacher\.path=.*\[yes, maybe, no\]"):
        kd()
    path = teacher_run / "model" / "config.json"
    path.write_text(path.read_text().replace("BertForSequenceClassification", "BertModel"))
    with pytest.raises(UserError, match="no head trained for this task"):
        kd("teacher.train=false")


@pytest.mark.slow
def test_a_teacher_that_knows_nothing_is_stopped_at_the_gate(easy):
    untrained = easy("trainer.num_train_epochs=0", at="untrained")
    settings = ("mode=kd", f"teacher.path={untrained}", *FEW)
    with pytest.raises(UserError, match=r"no better than always giving the commonest answer"):
        easy(*settings, at="gated")
    assert results(easy(*settings, "mode.gate=false", at="open"))["headline"]


@pytest.mark.slow
def test_hidden_states_and_attention_are_distilled_live(kd):
    run_dir = kd("mode/loss=[kl,hidden,attention]", "mode.loss.hidden.weight=0.1")
    row = history(run_dir)[0]
    assert {"loss_kl", "loss_hidden", "loss_attention"} <= row.keys()
    assert row["gradient_share_hidden"] > 0 and row["gradient_share_attention"] > 0
    assert (run_dir / "checkpoint-6" / "losses.safetensors").is_file()  # widths 16 and 32
    assert not any("teacher" in name or "losses" in name for name in weights(run_dir))


@pytest.mark.slow
def test_two_vocabularies_share_a_teacher_of_logits(kd):
    assert history(kd("model.config.vocab_size=30"))[-1]["loss_kl"] > 0


@pytest.mark.slow
def test_gradient_accumulation_gives_the_step_of_the_whole_batch(kd):
    off = (*NO_DROPOUT, "trainer.train_sampling_strategy=random")
    parts = ("trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=4")
    curves = [
        [row["loss"] for row in history(kd(*off, *settings, at=name))]
        for name, settings in (("whole", ()), ("parts", parts))
    ]
    np.testing.assert_allclose(*curves, atol=1e-5)


TEACHER = (
    "mode=kd",
    "model@teacher=tiny",
    "teacher.config.hidden_size=32",
    "teacher.config.intermediate_size=32",
    "teacher.trainer.num_train_epochs=4",
    "teacher.trainer.learning_rate=5e-3",
    *FEW,
)


@pytest.mark.slow
def test_a_missing_teacher_is_trained_once_in_a_run_of_its_own(easy, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    first = easy(*TEACHER, at="a")
    assert "it is trained first" in caplog.text
    (trained,) = tmp_path.glob("outputs/*/*/sft/teacher-*/results.json")
    assert (trained.parent / "output.log").read_text().count("evaluation loss") == 4
    caplog.clear()
    second = easy(*TEACHER, "seed=7", at="b")
    assert f"found in {trained.parent}" in caplog.text and "trained first" not in caplog.text
    named = easy(*TEACHER, f"teacher.path={trained.parent}", at="c")
    assert history(first) == history(named)
    paths = [read_json(run / "run_metadata.json")["teacher"]["paths"] for run in (first, second)]
    assert paths == [[str(trained.parent / "model")]] * 2


@pytest.mark.slow
def test_a_job_before_the_students_trains_their_teacher(composed, caplog):
    words = (*TOY, *SMALL, *TEACHER, "teacher.trainer.num_train_epochs=1")
    caplog.set_level(logging.INFO)
    cfg, control = composed(*words), composed(*words, "mode.alpha=0")
    assert [len(finding.untrained(to_config(c))) for c in (cfg, control)] == [1, 0]
    train_teachers(cfg)
    assert "it is trained first" in caplog.text
    assert finding.untrained(to_config(cfg)) == []


def test_a_teacher_may_be_trained_on_a_task_that_differs(composed):
    noise = ("task.dataset.label_noise=0.4", "teacher.task.dataset.label_noise=0")
    cfg = to_config(composed(*TOY, *SMALL, *TEACHER, *noise))
    (run,) = finding.untrained(cfg)
    assert (cfg.task["dataset"]["label_noise"], run.cfg.task.dataset.label_noise) == (0.4, 0)
    assert run.cfg.task.dataset.train == cfg.task["dataset"]["train"]
    with pytest.raises(UserError, match=r"teacher\.task\.dataset\.noise: .*did you mean"):
        check_all(to_config(composed(*TOY, *TEACHER, "teacher.task.dataset.noise=0")))


@pytest.mark.slow
def test_the_best_finished_run_of_the_teacher_is_found(easy, caplog):
    caplog.set_level(logging.INFO)
    model = ("model.config.hidden_size=32", "model.config.num_attention_heads=2")
    for name, rate in (("bad", "1e-6"), ("good", "5e-3"), ("other", "5e-3")):
        size = ("model.config.hidden_size=48",) if name == "other" else ()
        plan = ("trainer.num_train_epochs=5", f"trainer.learning_rate={rate}")
        easy(*model, *size, *plan, at=f"outputs/x/{name}")
    easy(*TEACHER, "teacher.train=false", at="a")
    assert "outputs/x/good" in caplog.text
    with pytest.raises(UserError, match="no finished run of it under outputs or multirun"):
        easy(*TEACHER, "teacher.train=false", "task.max_rows=200", at="b")


@pytest.mark.slow
def test_stored_answers_teach_what_live_ones_do(kd):
    own = "model.config.vocab_size=30"  # another vocabulary than the teacher's
    curves = [
        [row["loss_kl"] for row in history(kd(own, f"mode.cache={cache}", at=f"cache_{cache}"))]
        for cache in ("on", "off")
    ]
    np.testing.assert_allclose(*curves, atol=1e-5)


@pytest.mark.slow
def test_the_teacher_hears_the_training_rows_once_in_a_sweep_over_alpha(kd, monkeypatch, tmp_path):
    heard, compute = [], stored.compute

    def counted(teacher, rows, *settings):
        heard.append(len(rows))
        return compute(teacher, rows, *settings)

    monkeypatch.setattr(stored, "compute", counted)
    for alpha in (0, 0.25, 0.5, 0.75, 1):
        kd(f"mode.alpha={alpha}", f"cache_dir={tmp_path / 'cache'}", at=f"alpha_{alpha}")
    assert heard.count(256) == 1 and heard.count(120) == 1  # training, evaluation
    assert set(heard) <= {256, 120, 16, 15}  # and a few rows to check what is stored


@pytest.mark.slow
def test_rows_without_labels_are_learnt_from_at_alpha_one(kd, jsonl, caplog):
    caplog.set_level(logging.INFO)
    extra = jsonl("extra.jsonl", [{"text": f"so {word} a thing"} for word in ("good", "bad") * 32])
    unlabelled = f"task.files.unlabelled={extra}"
    epoch = "trainer.max_steps=-1", "trainer.num_train_epochs=1"
    assert results(kd(unlabelled, "mode.alpha=1", *epoch, at="a"))["train"]["steps"] == 10
    assert "asked about 64 unlabelled rows" in caplog.text
    assert results(kd(unlabelled, "mode.alpha=0.9", *epoch, at="b"))["train"]["steps"] == 8
    assert "mode.alpha=1 only; left out" in caplog.text
    with pytest.raises(UserError, match="mode/loss=dkd: it reads labels"):
        kd(unlabelled, "mode.alpha=1", "mode/loss=dkd", at="c")


@pytest.mark.slow
def test_several_teachers_average_their_probabilities(kd, teacher_run, easy, caplog):
    caplog.set_level(logging.INFO)
    wider = ("model.config.hidden_size=48", "trainer.num_train_epochs=4")
    other = easy(*wider, "trainer.learning_rate=5e-3", at="other")
    both = f"teacher.path=[{teacher_run},{other}]"
    run_dir = kd(both, "teacher.weights=[3,1]", at="both")
    assert "probabilities averaged (weights 0.75, 0.25)" in caplog.text
    assert len(read_json(run_dir / "run_metadata.json")["teacher"]["paths"]) == 2
    live = kd(both, "teacher.weights=[3,1]", "mode.cache=off", at="live")
    kls = [[row["loss_kl"] for row in history(run)] for run in (run_dir, live)]
    np.testing.assert_allclose(*kls, atol=1e-5)
    with pytest.raises(UserError, match=r"teacher\.weights=.*each of 2 teachers"):
        kd(both, "teacher.weights=[1,2,3]", at="wrong")
    with pytest.raises(UserError, match="mode/loss=hidden: it takes one teacher"):
        kd(both, "mode/loss=hidden", at="hidden")


def test_probabilities_are_averaged_not_logits():
    from forge.distillation.teacher import combine
    from forge.tasks.label import Label
    from forge.tasks.number import Number

    sure, unsure = torch.tensor([[8.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.3, 0.0]])
    label = Label("label", ["a", "b", "c"])
    mean = combine([sure, unsure], [0.25, 0.75], label).softmax(-1)
    expected = 0.25 * sure.softmax(-1) + 0.75 * unsure.softmax(-1)
    torch.testing.assert_close(mean, expected)
    assert mean.argmax() != (0.25 * sure + 0.75 * unsure).argmax() or mean[0, 0] < 0.6
    values = combine([torch.tensor([[1.0]]), torch.tensor([[3.0]])], [0.5, 0.5], Number("score"))
    assert values.item() == 2


@pytest.mark.slow
def test_a_student_starts_from_layers_of_its_teacher(kd, teacher_run, caplog):
    caplog.set_level(logging.INFO)
    none = ("trainer.max_steps=-1", "trainer.num_train_epochs=0")
    start = kd("model=from_teacher", "model.layers=[1]", "mode.alpha=0", *none, at="start", size=())
    assert "weights: layers 1 of" in caplog.text
    theirs, mine = weights(teacher_run), weights(start)
    old, new = "bert.encoder.layer.1.", "bert.encoder.layer.0."
    assert not any("layer.1." in name for name in mine)
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name.replace(new, old)]), name
    whole = kd(
        "model=from_teacher", "model.layers=null", "mode.alpha=0", *none, at="whole", size=()
    )
    scores = [results(run)["splits"]["validation"]["accuracy"] for run in (whole, teacher_run)]
    assert scores[0] == scores[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.init=teacher", "model.config.hidden_size=48"],
            "choose one of the same family and width",
        ),
        (["model=from_teacher", "model.layers=5"], r"model\.layers=5: a number from 1 to 2"),
        (["model=from_teacher", "model.layers=[0,0]"], r"model\.layers=\[0, 0\]"),
        (["model.init=master"], r"model\.init=master: teacher, or null"),
    ],
)
def test_layers_that_are_not_there_are_refused(kd, overrides, message):
    with pytest.raises(UserError, match=message):
        kd(*overrides, size=())


@pytest.mark.slow
def test_a_regression_learns_the_teachers_values(launch, jsonl, caplog):
    caplog.set_level(logging.INFO)
    rows = [{"text": f"{'very ' * (i % 5)}good", "label": (i % 5) + 0.5} for i in range(160)]
    files = [f"task.files.{s}={jsonl(f'{s}.jsonl', rows)}" for s in ("train", "validation")]
    task = (*SMALL, "task=files", *files, "task.text=text")
    teacher = launch(*task, "trainer.num_train_epochs=6", "trainer.learning_rate=5e-3", at="t")
    student = ("mode=kd", "mode.gate=off", f"teacher.path={teacher}", *FEW)
    run_dir = launch(*task, *student, at="kd")
    assert "regression: mse for kl" in caplog.text
    assert history(run_dir)[0]["loss_mse"] > 0
    with pytest.raises(UserError, match="use mode/loss=mse"):
        launch(*task, "mode=kd", "mode/loss=dist", f"teacher.path={teacher}", *FEW, at="dist")


@pytest.mark.slow
def test_a_full_disk_while_storing_answers_is_one_line(kd, monkeypatch, tmp_path):
    import safetensors.numpy

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(UserError, match=r"No space left on device.*cache_dir=DIR"):
        kd(f"cache_dir={tmp_path / 'cache'}")
    assert not list((tmp_path / "cache" / "teacher").glob("*.safetensors"))


def test_two_who_want_the_same_answers_ask_once(monkeypatch, tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    from types import SimpleNamespace

    from datasets import Dataset

    rows = Dataset.from_dict({"id": range(9), "text_0": ["a"] * 9, "labels": [0] * 9})
    prepared = SimpleNamespace(
        task=SimpleNamespace(answer=Label("label", ["a", "b", "c"])),
        rows={"train": rows},
        args=SimpleNamespace(bf16=False, fp16=False),
        config=SimpleNamespace(cache_dir=str(tmp_path / "cache")),
    )
    asked = []

    def compute(*_):
        asked.append(1)
        return np.arange(27.0, dtype=np.float32).reshape(9, 3)

    monkeypatch.setattr(stored, "compute", compute)
    monkeypatch.setattr(stored, "_spot_check", lambda *_: None)
    teacher = SimpleNamespace(digest="same", settings={}, encode=lambda *_: rows)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: stored.stored_logits(teacher, prepared, "train"), range(4)))
    assert len(asked) == 1
    assert all(np.array_equal(found[0], other) for other in found)


def stored_answers(kd, monkeypatch, *overrides, at):
    """What the collator hands to the loss, by the id of the training row."""
    from forge.distillation.distiller import Distiller

    told, compute = {}, Distiller.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if "teacher_logits" in inputs:
            told.update(zip(self.last_ids.tolist(), inputs["teacher_logits"].tolist(), strict=True))
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Distiller, "compute_loss", compute_loss)
    kd(*overrides, at=at)
    monkeypatch.undo()
    return told


@pytest.mark.slow
def test_answers_stay_with_their_rows_when_the_training_rows_are_judged_too(
    launch, jsonl, teacher_run, monkeypatch, tmp_path
):
    words = ("good", "fair", "bad")
    rows = [
        {"text": f"a {words[i % 3]} thing {'indeed ' * (i % 5)}", "label": words[i % 3]}
        for i in range(192)
    ]
    for split in ("train", "dev"):
        jsonl(f"{split}.jsonl", rows)
    task = ("task=cola", f"task.dataset.path={tmp_path}", "task.text=[text]")
    labels = ("task.labels=[good,fair,bad]", "task.metrics=[accuracy]", "task.headline=accuracy")

    def kd(*overrides, at):
        teacher = f"teacher.path={teacher_run}"
        return launch(*SMALL, *task, *labels, "mode=kd", teacher, *FEW, *overrides, at=at)

    monkeypatch.chdir(tmp_path)
    told = [
        stored_answers(kd, monkeypatch, f"task.evaluation={splits}", at=name)
        for name, splits in (("dev", "[dev]"), ("both", "[dev,train]"))
    ]
    shared = told[0].keys() & told[1].keys()
    assert len(shared) > 100
    for row in shared:
        np.testing.assert_allclose(told[0][row], told[1][row], atol=1e-5)


@pytest.mark.slow
def test_a_teacher_named_by_its_path_is_trained_under_its_own_name(easy, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    start = easy("model=tiny", "trainer.max_steps=1", at="start") / "model"
    encoder = tmp_path / "my_encoder"
    for auto in (AutoModel, AutoTokenizer):
        auto.from_pretrained(start).save_pretrained(encoder)
    settings = [word for word in TEACHER if not word.startswith(("model@", "teacher.config"))]
    easy(*settings, f"teacher.path={encoder}", "mode.gate=off", at="kd")
    assert list(tmp_path.glob("outputs/*/my_encoder/sft/teacher-*/results.json"))


@pytest.mark.slow
def test_a_teacher_in_the_making_is_taken_over_by_another_seed(easy, monkeypatch, tmp_path):
    from forge.training.trainer import Trainer

    train = Trainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 20:
            raise RuntimeError("the power went off")
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dies)
    with pytest.raises(RuntimeError, match="power"):
        easy(*TEACHER, "seed=1", at="one")
    monkeypatch.setattr(Trainer, "training_step", train)
    run_dir = easy(*TEACHER, "seed=2", "callbacks=early_stopping", at="two")
    (trained,) = tmp_path.glob("outputs/*/*/sft/teacher-*/results.json")
    assert json.loads(trained.read_text())["train"]["resumed_from"] == "checkpoint-16"
    assert (
        str(trained.parent / "model")
        in read_json(run_dir / "run_metadata.json")["teacher"]["paths"]
    )


@pytest.mark.slow
def test_records_that_are_not_whole_are_passed_over(easy, tmp_path, caplog):
    for name, content in (("broken", "{"), ("empty", "")):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "run_metadata.json").write_text(content)
    assert results(easy(*TEACHER, at="a"))["headline"]


@pytest.mark.slow
def test_an_unnamed_head_is_not_started_from(kd, teacher_run):
    relabel(teacher_run, ("LABEL_0", "LABEL_1", "LABEL_2"), [2, 0, 1])
    with pytest.raises(UserError, match=r"model\.init=teacher: the labels of .* are unnamed"):
        kd("model=from_teacher", "model.layers=2", size=())


@pytest.mark.slow
def test_positions_are_compared_on_the_very_same_tokens(kd, teacher_run):
    config = teacher_run / "model" / "tokenizer_config.json"
    config.write_text(
        config.read_text().replace('"model_max_length": 128', '"model_max_length": 8')
    )
    with pytest.raises(UserError, match="read the text as different tokens"):
        kd("mode/loss=hidden")


@pytest.mark.slow
def test_random_weights_have_no_layers_to_choose_from(easy):
    with pytest.raises(UserError, match=r"model\.layers=1: random weights"):
        easy("model.layers=1")


def test_the_command_for_a_teacher_by_hand(monkeypatch):
    from forge.config.schema import Model

    composed = {
        "choices": {"task": "mnli", "model@teacher": "bert"},
        "overrides": ["experiment=x", "task.max_length=64", "teacher.trainer.num_train_epochs=2"],
    }
    monkeypatch.setattr(finding, "composition", lambda: composed)
    assert finding._command(Model(path="a b")) == (
        "python launch.py mode=sft task=mnli task.max_length=64 'model.path=a b' "
        "trainer.num_train_epochs=2"
    )
    assert "model=bert" in finding._command(Model())


def test_a_model_with_a_path_is_the_same_whatever_sizes_stand_beside_it(tmp_path):
    from forge.distillation.finding import _identity

    one = {"path": str(tmp_path), "config": {"hidden_size": 1}, "layers": None}
    assert _identity(one) == _identity({"path": f"{tmp_path}/.", "config": {}, "new_head": True})
    assert _identity(one) != _identity({"path": str(tmp_path), "layers": 3})
    assert _identity({"config": {"a": 1}}) != _identity({"config": {"a": 2}})
