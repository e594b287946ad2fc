"""Pictures in every mode: the seam of inputs and answers, on what is no text."""

import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hydra.errors import ConfigCompositionException
from transformers import AutoModelForImageClassification

from forge.commands.export import export
from forge.commands.predict import predict
from forge.data.toy_shapes import shapes
from forge.errors import Preempted, UserError
from forge.records import checkpoints
from forge.records.files import read_json
from forge.results.run_report import report
from tests.support.runs import results, weights
from tests.support.stopping import RUN, assert_same

PICTURES = ("task=toy_shapes", "task.dataset.train=320", "task.dataset.validation=60")
RESNET = ("model=tiny_resnet", "model.config.hidden_sizes=[8,8,16]", "precision=fp32")
VIT = ("model=tiny_vit", "model.config.num_hidden_layers=2", "model.config.hidden_size=16",
       "model.config.intermediate_size=16", "precision=fp32")  # fmt: skip
FAST = ("trainer.learning_rate=3e-3", "trainer.num_train_epochs=1", "mode.gate=off")

AUGMENTED = ("task.augment.crop=4", "task.augment.flip=0.5", "task.augment.resized_crop=[0.5,1]",
             "task.augment.jitter=0.2")  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each class, and a table of the same validation pictures."""
    root = tmp_path_factory.mktemp("pictures")
    for split, rows in shapes(train=160, validation=40).items():
        lines = ["image,label"]
        for i, (image, label) in enumerate(zip(rows["image"], rows["label"], strict=True)):
            file = root / split / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
            lines.append(f"{file.relative_to(root)},{label}")
        (root / f"{split}.csv").write_text("\n".join(lines))
    return root


def answers(run_dir, split="validation"):
    return pq.read_table(run_dir / "predictions" / f"{split}.parquet").to_pydict()


def test_shapes_are_learnt_from_pixels(launch):
    run_dir = launch("task=toy_shapes", "model=tiny_resnet", "task.dataset.train=1600",
                     "trainer.learning_rate=5e-3", "trainer.num_train_epochs=4")  # fmt: skip
    assert results(run_dir)["splits"]["validation"]["accuracy"] > 0.8
    assert "tokens_per_second" not in results(run_dir)["train"]


def test_distilled_at_alpha_0_is_fine_tuned_and_stored_answers_are_live_ones(launch):
    teacher = launch(*PICTURES, *RESNET, *FAST[:2], at="teacher")
    taught = (*PICTURES, *VIT, *FAST, "mode=kd", f"teacher.path={teacher}")
    plain = weights(launch(*PICTURES, *VIT, *FAST[:2], at="sft"))
    zero = weights(launch(*taught, "mode.alpha=0", at="zero"))
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    stored, live = (weights(launch(*taught, f"mode.cache={c}", at=c)) for c in ("true", "false"))
    assert all(torch.allclose(stored[name], live[name], atol=1e-5) for name in stored)
    assert not all(torch.equal(plain[name], stored[name]) for name in plain)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_views_do_not_depend_on_loader_workers(launch):
    last = ("trainer.load_best_model_at_end=false", "trainer.num_train_epochs=2")
    run, workers = (*PICTURES, *RESNET, *FAST[:1], *last), "trainer.dataloader_num_workers=2"
    several = (workers, "+trainer.dataloader_persistent_workers=true")
    one, other = (
        weights(launch(*run, *AUGMENTED, *how, at=f"{len(how)}")) for how in ((), several)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    plain = weights(launch(*run, at="plain"))
    assert not all(torch.equal(one[name], plain[name]) for name in one)


def test_stored_views_teach_what_a_live_teacher_does(launch, caplog):
    teacher = launch(*PICTURES, *RESNET, *FAST[:2], at="teacher")
    taught = (*PICTURES, *VIT, *FAST, *AUGMENTED, "mode=kd", f"teacher.path={teacher}",
              "trainer.num_train_epochs=2", "trainer.load_best_model_at_end=false")  # fmt: skip
    live, stored, one = (
        weights(launch(*taught, f"mode.views={views}", at=f"{views}")) for views in ("null", 2, 1)
    )
    assert all(torch.allclose(live[name], stored[name], atol=1e-5) for name in live)
    assert not all(torch.allclose(live[name], one[name], atol=1e-5) for name in live)
    caplog.clear()
    launch(*taught, "mode.views=1", "trainer.num_train_epochs=5", "trainer.max_steps=1", at="five")
    assert "sees each view 5 times" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("mode.views=2",), "nothing changes from view to view"),
        (("mode.views=2", "mode.cache=off", "task.augment.flip=0.5"), "stores no answers"),
        (("mode.views=2", "mode/loss=hidden", "task.augment.flip=0.5"), "in every step"),
        (("task.augment.flip=2",), "task.augment.flip=2"),
        (("task.augment.mixup=0.2",), "mixup"),
    ],
)
def test_views_that_cannot_be_are_one_line(launch, settings, message):
    with pytest.raises((UserError, ConfigCompositionException), match=message):
        launch(*PICTURES, *RESNET, "mode=kd", "teacher.path=/nowhere", *settings)


def test_the_processors_backend_is_recorded_and_small_norms_are_said(launch, caplog):
    caplog.set_level(logging.INFO)
    run_dir = launch(
        *PICTURES, *RESNET, "trainer.max_steps=1", "trainer.gradient_accumulation_steps=2"
    )
    assert read_json(run_dir / "run_metadata.json")["processor"] == "ViTImageProcessorPil"
    assert "BatchNorm" in caplog.text


def test_pictures_without_labels_teach_too(launch, folders):
    files = [f"task.files.{split}={folders / split}" for split in ("train", "validation")]
    of_files = ("task=files_images", *files, *RESNET)
    teacher = launch(*of_files, *FAST[:2], at="teacher")
    unlabelled = f"task.files.unlabelled={folders / 'train'}"
    kd = ("mode=kd", "mode.alpha=1", f"teacher.path={teacher}", unlabelled)
    taught = launch(*of_files, *FAST, *kd, at="kd")
    assert results(taught)["train"]["steps"] == 2 * results(teacher)["train"]["steps"]


def test_the_best_checkpoints_weights_are_those_that_are_kept(launch):
    """Of a model whose weights have other names on the Hub than in transformers."""
    worse = (
        "trainer.learning_rate=1.0",
        "trainer.max_grad_norm=1000",
        "trainer.num_train_epochs=3",
        "seed=1",
    )
    run_dir = launch(*PICTURES, *VIT, *worse, "trainer.lr_scheduler_type=constant")
    best = Path(read_json(run_dir / "trainer_state.json")["best_model_checkpoint"]).name
    kept = AutoModelForImageClassification.from_pretrained(run_dir / "model").state_dict()
    newest = max(checkpoints.steps(run_dir))
    assert best != f"checkpoint-{newest}"
    for folder, same in ((best, True), (f"checkpoint-{newest}", False)):
        read = AutoModelForImageClassification.from_pretrained(run_dir / folder).state_dict()
        assert all(torch.equal(kept[name], read[name]) for name in kept) == same


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    "settings",
    [
        RESNET,
        (*RESNET, *AUGMENTED, "trainer.dataloader_num_workers=2"),
        (*VIT, *AUGMENTED, "mode=rl", "mode.gate=off"),
    ],
)
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(launch, stop_at, settings):
    run = (*PICTURES, *settings, *RUN)
    whole = launch(*run, at="whole")
    stop_at(13)
    with pytest.raises(Preempted):
        launch(*run, at="stopped")
    assert_same(whole, launch(*run, at="stopped"))


def test_folders_and_a_table_are_the_same_task(launch, folders):
    def run(name, suffix=""):
        files = [f"task.files.{s}={folders / s}{suffix}" for s in ("train", "validation")]
        return launch("task=files_images", *files, *RESNET, *FAST[:2], at=name)

    of_folders, of_tables = run("folders"), run("tables", ".csv")
    one, other = (sorted(answers(d)["label"]) for d in (of_folders, of_tables))
    assert one == other
    (file,) = folders.glob("validation/*/0.png")
    for asked in ({"given": [[str(file)]]}, {"file": folders / "validation.csv"}):
        row = predict([of_tables], **asked)["rows"][0]["predictions"][0]
        logits = np.array(answers(of_tables)["logits"][answers(of_tables)["id"].index(0)])
        probabilities = np.exp(logits) / np.exp(logits).sum()
        assert np.allclose(list(row["probabilities"].values()), probabilities, atol=1e-5)
    assert report(of_folders)
    assert "image-classification" in (of_folders / "model" / "README.md").read_text()
    assert export(of_folders)["difference"] < 1e-4


def test_lora_on_pictures_leaves_the_base_alone(launch):
    base = launch(*PICTURES, *VIT, *FAST[:2], at="base")
    small = launch(*PICTURES, f"model.path={base}", "model.lora.r=2", *FAST[:2], at="lora")
    names = weights(small)
    assert names and all("lora" in name or "classifier" in name for name in names)
    assert np.isfinite(
        predict([small], file=None, given=[[_png(base)]])["rows"][0]["predictions"][0][
            "probabilities"
        ]["circle"]
    )


def _png(folder):
    (folder / "x.png").write_bytes(shapes(train=1, validation=1)["train"]["image"][0])
    return str(folder / "x.png")


def test_a_class_that_train_lacks_is_refused_and_one_that_validation_lacks_shifts_none(
    launch, folders, tmp_path
):
    lines = (folders / "validation.csv").read_text().splitlines()
    few, foreign = tmp_path / "few.csv", tmp_path / "foreign.csv"
    whole = [line.replace("validation/", f"{folders}/validation/", 1) for line in lines]
    few.write_text("\n".join(line for line in whole if not line.endswith("circle")))
    foreign.write_text("\n".join(whole).replace(",circle", ",star"))
    train = ("task=files_images", f"task.files.train={folders}/train", *RESNET, *FAST[:2])
    run_dir = launch(*train, f"task.files.validation={few}", at="few")
    assert set(answers(run_dir)["label"]) == {1, 2, 3}
    with pytest.raises(UserError, match="star"):
        launch(*train, f"task.files.validation={foreign}", at="foreign")


@pytest.mark.parametrize(
    ("task", "model", "word"), [("toy_shapes", "tiny", "pictures"), ("toy", "tiny_vit", "text")]
)
def test_a_model_that_reads_something_else_is_one_line(launch, task, model, word):
    with pytest.raises(UserError, match=f"does not read {word}"):
        launch(
            f"task={task}", "task.dataset.train=30", "task.dataset.validation=30", f"model={model}"
        )
