"""The record holds what ran, replaces files whole, and keeps secrets out."""

import json
import logging
import os
from contextlib import suppress

import pytest
from omegaconf import OmegaConf

from forge.errors import UserError
from forge.records.files import write_json
from forge.records.logs import LogFile
from forge.records.record import Record, reached, record
from forge.records.secrets import masked


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"token": "abc", "max_tokens": 5}, {"token": "***", "max_tokens": 5}),
        ({"a": {"api_key": "k", "project": "p"}}, {"a": {"api_key": "***", "project": "p"}}),
        (["+a.from_pretrained.token=hf_x", "seed=1"], ["+a.from_pretrained.token=***", "seed=1"]),
        ("model.tokenizer=bert", "model.tokenizer=bert"),
        ("a.b={token: x, max_tokens: 5}", "a.b={token: ***, max_tokens: 5}"),
        ("+a=[{c: 1, 'api_key': 'x, y', d: null}]", "+a=[{c: 1, 'api_key': ***, d: null}]"),
        ("a={token:null,b:{hub_token:x}}", "a={token:null,b:{hub_token:***}}"),
        ("x=hf_" + "a" * 30, "x=***"),
        ("https://me:secret@host/x", "https://***@host/x"),
        ({"token": None}, {"token": None}),
        ({"password": 123456, "token": True}, {"password": "***", "token": True}),
        ({"api_key": ["k", "l"]}, {"api_key": ["***", "***"]}),
        (
            {"override_dirname": "a={b:1,password:x},+a.token=x,seed=1"},
            {"override_dirname": "a={b:1,password:***},+a.token=***,seed=1"},
        ),
        ("a.token=null", "a.token=null"),
    ],
)
def test_secrets_are_masked(value, expected):
    assert masked(value) == expected


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_two_processes_do_not_share_a_directory(tmp_path):
    cfg = OmegaConf.create({"a": 1})
    with record(cfg, tmp_path), pytest.raises(UserError, match="another process is at work"):
        record(cfg, tmp_path).__enter__()


def test_an_attempt_ends_as_it_went(tmp_path):
    cfg = OmegaConf.create({"a": 1})
    for error, status in ((RuntimeError("x"), "failed"), (KeyboardInterrupt(), "interrupted")):
        with pytest.raises(type(error)), record(cfg, tmp_path) as rec:
            assert rec.state["status"] == "running"
            raise error
        assert rec.state["status"] == status
        assert rec.metadata["attempts"][-1]["status"] == status
    assert len(rec.metadata["attempts"]) == 2


def test_libraries_log_to_our_handlers_during_a_run_only(tmp_path):
    import warnings

    import transformers

    transformers.logging.disable_propagation()  # which CI turns on
    ours = logging.FileHandler(tmp_path / "ours.log")  # pytest's own is put on every logger
    library = logging.getLogger("transformers.modeling_utils")
    logging.getLogger().addHandler(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with record(OmegaConf.create({}), tmp_path):
            with record(OmegaConf.create({}), tmp_path / "teacher"):
                pass
            library.warning("from a library")
            warnings.warn("from a warning", stacklevel=1)
    library.warning("after")
    logging.getLogger().removeHandler(ours)
    ours.close()
    said = (tmp_path / "ours.log").read_text()
    assert "from a library" in said
    assert "from a warning" in said
    assert "after" not in said


def test_a_second_process_is_told_who_is_at_work(composed, tmp_path):
    cfg = composed("task=toy")
    with (
        record(cfg, tmp_path / "run"),
        pytest.raises(UserError, match=rf"another process .* \(process {os.getpid()} on "),
        record(cfg, tmp_path / "run"),
    ):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(composed, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # kill -9 leaves the file, and the kernel the lock
    with record(composed("task=toy"), tmp_path / "run") as rec:
        assert rec.state["status"] == "running"


def test_a_damaged_state_is_written_anew_and_a_damaged_record_refused(composed, tmp_path, caplog):
    cfg, run_dir = composed("task=toy"), tmp_path / "run"
    with record(cfg, run_dir):
        pass
    (run_dir / ".run_metadata.json.123").touch()  # a kill in the midst of writing leaves it
    (run_dir / "training_state.json").write_text('{"status": "fin')
    with record(cfg, run_dir) as rec:
        assert rec.state["status"] == "running" and "written anew" in caplog.text
        assert not list(run_dir.glob(".run_metadata*"))
    (run_dir / "run_metadata.json").write_bytes(b"\xff{}")
    with (
        pytest.raises(UserError, match=r"run_metadata\.json: cannot be read, it is damaged"),
        record(cfg, run_dir),
    ):
        pass
    assert (run_dir / "training_state.json").is_file()


def test_a_log_on_a_full_disk_loses_lines_only(capsys):
    log = LogFile("/dev/full")
    log.handle(logging.makeLogRecord({"msg": "a line"}))
    with suppress(OSError):
        log.close()
    assert not capsys.readouterr().err


def test_code_that_has_changed_since_the_submission_is_said(composed, caplog, tmp_path):
    then = {"commit": "a" * 40, "dirty": True}
    with record(composed("task=toy"), tmp_path / "run", submitted=then) as rec:
        assert rec.metadata["attempts"][0]["submitted"] == then
    assert "changed since the submission: aaaaaaaaaa with changes then" in caplog.text


def test_a_refusal_leaves_the_record_as_it_was(composed, tmp_path):
    with pytest.raises(RuntimeError), record(composed("task=toy"), tmp_path / "run"):
        raise RuntimeError("x")
    file = tmp_path / "run" / "run_metadata.json"
    killed = json.loads(file.read_text())
    del killed["attempts"][0]["ended"]  # as kill -9 leaves it
    file.write_text(json.dumps(killed))
    with pytest.raises(UserError, match="seed=7"), record(composed("seed=7"), tmp_path / "run"):
        pass
    assert json.loads(file.read_text()) == killed


def test_a_mistake_that_shows_amid_training_keeps_the_record_of_its_checkpoints(composed, tmp_path):
    with pytest.raises(UserError), record(composed("task=toy"), tmp_path / "run") as rec:
        rec.update_state(step=5)  # as a reward that raises, after a checkpoint
        raise UserError("x")
    assert json.loads((tmp_path / "run" / "training_state.json").read_text())["status"] == "failed"
    assert json.loads((tmp_path / "run" / "run_metadata.json").read_text())["id"]


def test_a_refused_change_leaves_a_run_as_it_was_recorded(composed, tmp_path):
    cfg, run_dir = composed("task=toy"), tmp_path / "run"
    with record(cfg, run_dir) as rec:
        rec.update_state(step=5)
        rec.reason = "3 epochs were done"
    write_json(run_dir / "results.json", {"headline": {"value": 1.0}})
    asked = composed("task=toy", "resume=x", "trainer.max_steps=9")
    with pytest.raises(UserError), record(asked, run_dir):
        raise UserError("a callback that does not fit")
    assert Record(run_dir).finished
    assert Record(run_dir).state["reason"] == "3 epochs were done"
    assert Record(run_dir).metadata["config"]["trainer"]["max_steps"] == -1
    with pytest.raises(UserError), record(asked, run_dir) as rec:
        rec.update_state(step=8)
        raise UserError("a reward that raises")
    assert Record(run_dir).state["status"] == "failed"
    assert Record(run_dir).metadata["config"]["trainer"]["max_steps"] == 9


@pytest.mark.parametrize(
    ("recorded", "done", "asked", "goes_on"),
    [
        ("trainer.max_steps=0", {}, "trainer.max_steps=-1", True),  # epochs then decide
        ("trainer.max_steps=4", {"step": 4, "epoch": 3.0}, "trainer.max_steps=-1", False),
        ("trainer.max_steps=4", {"step": 4, "epoch": 0.5}, "trainer.max_steps=9", True),
        ("trainer.max_steps=4", {"step": 4, "epoch": 0.5}, "trainer.num_train_epochs=9", False),
        ("trainer.max_steps=-1", {"step": 4, "epoch": 3.0}, "trainer.num_train_epochs=9", True),
        ("trainer.max_steps=-1", {"step": 4, "epoch": 3.0}, "trainer.max_steps=0", False),
    ],
)
def test_a_finished_run_goes_on_where_more_is_asked(
    composed, tmp_path, recorded, done, asked, goes_on
):
    run_dir, common = tmp_path / "run", ("task=toy", "trainer.num_train_epochs=3")
    with record(composed(*common, recorded), run_dir) as rec:
        rec.update_state(**done)
    write_json(run_dir / "results.json", {"headline": {"value": 1.0}})
    assert reached(composed(*common, recorded), run_dir) == 1.0
    longer = composed(*common, recorded, asked, "resume=x")
    assert reached(longer, run_dir) == (None if goes_on else 1.0)
