"""Who may ask, and what files may do: tokens, hosts, traversal, hostile and damaged runs."""

import json
import os
import stat
import subprocess
import sys
from urllib.parse import urlencode

import pytest

from forge import guide
from forge.errors import UserError
from forge.workbench import server
from tests.support.pages import HOSTILE, write_run

VIEWS = ("runs", "run", "helped", "rows", "curves", "configs", "rewards", "data", "try", "guide")
MARKED = {"content-type": "application/json", "x-forge-workbench": "1"}


def test_nothing_is_shown_without_the_token(served, tmp_path):
    page = served(write_run(tmp_path / "runs" / "a").parent)
    for path in ("/", *(f"/{view}" for view in VIEWS), "/picture?run=a"):
        status, _, text = page.ask(path, cookie=False)
        assert status == 401 and "a dog" not in text
    form = {"content-type": "application/x-www-form-urlencoded"}
    status, headers, _ = page.ask("/login", "POST", "token=wrong", form, cookie=False)
    assert status == 401 and "set-cookie" not in headers
    status, headers, _ = page.ask("/login", "POST", "token=tok&next=//evil.example", form)
    assert headers["location"] == "./" and "HttpOnly" in headers["set-cookie"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_host_is_refused_whatever_its_port(served, tmp_path, host):
    page = served(write_run(tmp_path / "runs" / "a").parent)
    assert page.ask("/", headers={"host": host})[0] == 403
    assert page.ask("/", headers={"host": "localhost:99"})[0] == 200


def test_another_page_cannot_ask(served, tmp_path):
    page = served(write_run(tmp_path / "runs" / "a").parent)
    _, headers, _ = page.ask("/")
    assert "access-control-allow-origin" not in headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert page.ask("/", headers={"origin": "http://evil.example"})[0] == 403
    assert (
        page.ask("/", headers={"sec-fetch-site": "same-site", "origin": "http://localhost"})[0]
        == 403
    )
    flag = json.dumps({"id": 1, "flagged": True})
    assert page.ask("/flag?run=a&split=validation", "POST", flag)[0] == 403  # as a form would


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd",
     "/picture?run=../../etc&split=x&row=1", "/run?run=/etc",
     "/rows?run=a&split=../../../etc/passwd", "/guide?page=../../etc/passwd",
     "/helped?sweep=/etc", "/rewards?run=a&step=../x"],
)  # fmt: skip
def test_no_path_comes_from_an_address(served, tmp_path, path):
    page = served(write_run(tmp_path / "runs" / "a").parent)
    status, _, text = page.ask(path)
    assert status == 404 and "root:" not in text and "def application" not in text


def test_hostile_texts_are_texts(served, tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "<script>alert(1)<", text=HOSTILE)
    write_run(runs / "b", seed=2, alpha="1", text=HOSTILE)
    page = served(runs)
    for view in VIEWS:
        for run in page.library.kept:
            status, _, text = page.ask(f"/{view}?{urlencode({'run': run})}")
            assert status == 200
            assert "<script>alert" not in text and "<img src=x" not in text
            assert "<script>document" not in text


DAMAGE = {
    "run_metadata.json": ["", "{", "[]", '{"config": 3}', '{"config": {}, "attempts": {"a": 1}}',
                          '{"config": {"a": 1}, "attempts": [3], "choices": []}'],
    "training_state.json": ["{", '{"status": {"a": 1}, "updated": "yesterday"}',
                            '{"status": "running", "step": "x"}'],
    "results.json": ["nonsense", '{"headline": 3, "splits": []}',
                     '{"headline": {"value": "x"}, "splits": {"validation": 3}}'],
    "log.jsonl": ["{", '{"step": 1, "loss": "x"}\n{"step": 2, "loss": [1]}\n'],
    "samples/4.json": ["{", '{"groups": [3]}', '{"groups": [{"answers": [{}]}]}'],
    "predictions/validation.parquet": ["", "PAR1 nonsense PAR1"],
    "rows/validation.parquet": ["", "x"],
    "model/config.json": ["{", '{"id2label": 3}', '{"id2label": {"a": 1}}'],
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_one_page_with_a_line_and_the_others_are_shown(served, tmp_path, name):
    good = write_run(tmp_path / "runs" / "good")
    bad = write_run(tmp_path / "runs" / "bad", seed=2, alpha="1")
    page = served(good.parent)
    for content in DAMAGE[name]:
        (bad / name).write_text(content)
        page.library.read()
        for view in VIEWS:
            for given in ("run=bad", "run=good&run=bad"):
                status, _, text = page.ask(f"/{view}?{given}")
                assert status in (200, 404, 422), text[-500:]
                assert "Traceback" not in text
        assert "good" in page.ask("/")[2]
        assert page.ask("/run?run=good")[0] == 200


def test_nothing_is_written_into_runs(served, tmp_path, monkeypatch):
    run = write_run(tmp_path / "runs" / "a")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    page = served(run.parent)
    for view in VIEWS:
        assert page.ask(f"/{view}?run=a")[0] == 200
    flag = json.dumps({"id": 7, "flagged": True})
    status, _, told = page.ask("/flag?run=a&split=validation", "POST", flag, MARKED)
    assert status == 200 and "1 flagged" in told
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (file,) = (tmp_path / "cwd" / "workbench-flags").iterdir()
    assert file.read_text() == "7\n"
    status, _, told = page.ask("/flag?run=a&split=validation", "POST", '{"id": 9999}', MARKED)
    assert status == 422 and "no such row" in told


def test_a_large_split_is_paged(served, tmp_path, monkeypatch):
    from forge.results import answers

    monkeypatch.setattr(answers, "MOST", 1_000)
    page = served(write_run(tmp_path / "runs" / "a", rows=5_000).parent)
    _, _, text = page.ask("/rows?run=a")
    assert "The first 1,000 of 5,000 rows" in text and text.count('class="flag"') == 50


def test_pages_hold_behind_a_prefix_that_a_proxy_keeps_or_takes_off(served, tmp_path):
    page = served(
        write_run(tmp_path / "runs" / "a").parent, base="/node/x", hosts=["portal.example"]
    )
    status, _, text = page.ask("/run?run=a", headers={"host": "portal.example:443"})
    assert status == 200 and 'href="/' not in text and 'src="/' not in text
    page.base = ""
    assert page.ask("/run?run=a")[0] == 200


def test_a_socket_is_its_users_alone(tmp_path):
    place = server._unix_socket(tmp_path / "own" / "socket")
    assert stat.S_IMODE(os.stat(tmp_path / "own").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(tmp_path / "own" / "socket").st_mode) == 0o600
    place.close()
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(UserError, match="others may enter"):
        server._unix_socket(tmp_path / "open" / "socket")


def test_browsing_imports_no_torch_and_runs_no_recorded_code(tmp_path):
    from forge.records.files import read_json, write_json

    run = write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", seed=1, alpha="1")
    metadata = read_json(run / "run_metadata.json")
    metadata["config"]["task"]["_target_"] = "os.abort"
    write_json(run / "run_metadata.json", metadata)
    code = f"""
import sys
from pathlib import Path
from forge.workbench import app
from forge.workbench.asked import Asked
from forge.workbench.library import Library
library, pages = Library([Path({str(run.parent)!r})]), app.environment()
for view in app.VIEWS:
    for ids in (["a"], ["a", "b"]):
        text, status = app.render(pages, Asked(view, {{"run": ids}}, library))
        assert status == 200, text
assert not {{"torch", "transformers", "pickle5"}} & sys.modules.keys()
"""
    given = os.environ | {"FORGE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]


def test_an_exported_page_is_whole(tmp_path, monkeypatch):
    from forge.__main__ import main

    monkeypatch.setenv("FORGE_CACHE", str(tmp_path / "cache"))
    for alpha in ("0", "1"):
        for seed in (1, 2):
            write_run(tmp_path / "sweep" / f"{alpha}{seed}", seed, alpha, 0.5 + 0.4 * float(alpha))
    for folder, holds in (
        (tmp_path / "sweep", "Yes, it helped"),
        (tmp_path / "sweep" / "01", "accuracy"),
    ):
        file = tmp_path / "page.html"
        assert main(["workbench", str(folder), "--export", str(file)]) == 0
        text = file.read_text()
        assert holds in text and len(text) < 6_000_000
        assert 'src="' not in text and 'href="static' not in text and "<script>document" not in text


def test_the_guide_s_pages_are_rendered_and_lead_to_each_other(served, tmp_path):
    page = served(write_run(tmp_path / "runs" / "a").parent)
    status, _, text = page.ask("/guide")
    assert status == 200 and 'href="guide?page=kd"' in text
    for name in guide.pages():
        status, _, text = page.ask(f"/guide?page={name}")
        article = text.partition("<article")[2]
        assert status == 200 and "<h1>" in article and ".md)" not in article, name
    assert page.ask("/guide?page=kdd")[0] == 404
