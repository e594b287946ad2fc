"""README's and the guide's commands compose, what they name exists, generated parts are fresh."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
import typer
import yaml
from hydra import compose

from forge import guide
from forge.__main__ import app
from forge.config.check import check
from forge.config.compose import searched
from tests.support.guide import ROOT, masked, played, reference

PAGES = {name: file.read_text() for name, file in guide.pages().items()}
TEXTS = PAGES | {name: (ROOT / f"{name}.md").read_text() for name in ("README", "CONTRIBUTING")}
COMMANDS = {  # of every page, in blocks
    name: "\n".join(re.findall(r"^ *```bash\n(.*?)```", text, re.S | re.M)).splitlines()
    for name, text in TEXTS.items()
}
LAUNCHED = re.compile(r"\s*(?:python|torchrun \S+) launch\.py (.*)")
EXAMPLE = re.compile(r"^`([\w/.]+)`:\n\n```(?:python|yaml)\n(.*?)```", re.S | re.M)  # a whole file


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """The files of the page about adding things, in a folder that Python and Hydra search."""
    folder = tmp_path_factory.mktemp("added")
    for name, text in EXAMPLE.findall(PAGES["add"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "dont_write_bytecode", True)
        yield folder


def launched() -> dict[str, str]:
    """Arguments of launch.py, and the page that names them first."""
    found = {}
    for name, commands in COMMANDS.items():
        for match in filter(None, map(LAUNCHED.match, commands)):
            found.setdefault(match[1], name)
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_commands_of_a_page_compose(name, examples):
    for arguments in [each for each, page in launched().items() if page == name]:
        words = [re.sub(r"=([^\[{,]+),.*", r"=\1", word) for word in shlex.split(arguments, True)]
        words = searched([w for w in words if w not in ("-m", "--help", "--cfg", "job")])
        places = [f"hydra.searchpath=['file://{examples / 'conf'}']"] if name == "add" else []
        assert compose("config", [*words, *places]).task, arguments


@pytest.mark.parametrize("name", TEXTS)
def test_verbs_and_their_options_exist(name):
    verbs = typer.main.get_command(app).commands
    lines = [*COMMANDS[name], *re.findall(r"`(python -m forge [^`…]+)`", TEXTS[name])]
    for command in lines:
        words = shlex.split(command, comments=True)
        if words[:3] == ["python", "-m", "forge"] and words[3].islower():
            parsed = verbs[words[3]].make_context(words[3], words[4:], resilient_parsing=True)
            unknown = [w for w in parsed.args if w.startswith("--")]
            assert not unknown, command


def test_make_targets_and_named_files_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for name, text in TEXTS.items():
        assert set(re.findall(r"[`(]make ([a-z-]+)|^make ([a-z-]+)", text, re.M)) <= {
            pair for t in targets for pair in ((t, ""), ("", t))
        }, name
        for path in re.findall(r"`((?:forge|conf|tests)/[\w/]+(?:\.\w+|/))`", text):
            ours = (name == "add" and "my_" in path) or path in ("conf/local/default.yaml",)
            ours |= path == "conf/mode/loss/cosine.yaml"
            assert ours or (ROOT / path).exists(), f"{name}: {path}"


def test_links_lead_to_pages_and_every_page_is_listed():
    assert {file.name for file in guide.HERE.glob("*.md")} == {
        f.name for f in guide.pages().values()
    }
    for name, text in PAGES.items():
        assert text.startswith("# "), name
        assert set(guide.LINK.findall(text)) <= PAGES.keys(), name
    for name in ("README", "CONTRIBUTING"):
        for link in re.findall(r"\]\(([^)#]+)\)", TEXTS[name]):
            assert link.startswith("http") or (ROOT / link).exists(), link
    for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", "".join(PAGES.values())):
        assert (guide.HERE / link).stat().st_size < 150_000


def test_readme_is_short():
    assert len(TEXTS["README"]) <= 8000


def test_every_room_is_in_the_tree():
    tree = TEXTS["CONTRIBUTING"].split("```text")[1]
    for name in re.findall(r"^(\S+)  ", tree, re.M):
        assert (ROOT / name).exists(), name
    for path in (ROOT / "forge").iterdir():
        if not path.name.startswith("_"):
            assert f"forge/{path.name}" in tree, path.name


def test_the_reference_is_up_to_date():
    assert PAGES["reference"] == reference(), "make guide"


def test_the_examples_of_additions_fit(examples):
    import my_rows
    from omegaconf import OmegaConf

    place = f"hydra.searchpath=['file://{examples / 'conf'}']"
    cfg = compose("config", [place, "task=my_rows", "mode=kd", "mode/loss=[kl,cosine]"])
    node = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    check(node["task"], "task")
    check(node["mode"], "mode")
    assert check({"_target_": "my_callbacks.Bell"}, "callbacks.bell")
    assert importlib.import_module("my_rewards").short(["four"]) == [-0.04]
    assert len(my_rows.rows(40)["train"]) == 20
    tested = subprocess.run(
        [sys.executable, "-c", "import tests.test_my_rows as t; "
         "t.test_every_text_has_its_label_and_no_text_is_in_both_splits()"],
        cwd=examples, env={"PATH": "", "PYTHONPATH": str(examples)}, capture_output=True, text=True,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stderr


def test_the_public_workflow_does_what_ci_does():
    public, ours = (ROOT / ".github/workflows/test.yml").read_text(), (ROOT / ".ci/run").read_text()
    runs = [
        step["run"] for step in yaml.safe_load(public)["jobs"]["test"]["steps"] if "run" in step
    ]
    assert runs[-1] == ours.splitlines()[-1] == "make test"
    assert all(("install" in text and "chromium" in text) for text in (runs[0], ours))
    needed = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert yaml.safe_load(public)["jobs"]["test"]["strategy"]["matrix"]["python"][0] == needed[1]


@pytest.mark.slow
def test_the_page_of_one_run_is_what_a_run_prints(tmp_path):
    assert masked(played(PAGES["one-run"], tmp_path)) == masked(PAGES["one-run"]), "make guide"
