"""The guide's generated parts: what the commands of a page printed, and the reference.

`python -m tests.support.guide` (make guide) writes them; tests/guide compares.
"""

import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import typer

from forge import guide
from forge.config.compose import CONF
from forge.records.contents import CONTENTS
from forge.results.tables import markdown_table
from tests.support import commands

ROOT = Path(__file__).resolve().parents[2]
PLAYED = re.compile(r"```bash\n([^\n]*)\n```\n\n```text\n.*?```", re.S)  # a command, its output
GROUPS = ("task", "model", "mode", "mode/loss", "mode/reward", "trainer", "callbacks", "tracking",
          "launcher", "experiment")  # fmt: skip
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]\d+)?%?")


def played(text: str, folder: Path) -> str:
    """The page with what its commands print in a folder."""

    def anew(found: re.Match[str]) -> str:
        return f"```bash\n{found[1]}\n```\n\n```text\n{_output(found[1], folder)}\n```"

    return PLAYED.sub(anew, text)


def _output(command: str, folder: Path) -> str:
    program, *words = shlex.split(command)
    if words[0] == "launch.py":
        done = commands.launch(folder, *words[1:], PYTHONWARNINGS="ignore")
    elif words[:2] == ["-m", "forge"]:
        done = commands.forge(*words[2:], folder=folder)
    else:
        found = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True)
        done = commands.Done(found.returncode, found.stdout, found.stderr)
    assert done.returncode == 0, (command, done)
    lines = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
    return "\n".join(lines).strip("\n").replace(f"{folder}/", "")


def masked(text: str) -> str:
    """Without what differs from machine to machine: numbers, devices, commits, blanks."""
    text = re.sub(r"\d+-\d+-\d+T\S+", "#", text)
    text = re.sub(r"^(device|code)( .*)$", r"\1", text, flags=re.M)
    text = re.sub(r"\| [^|\n]* left", "", text)
    return re.sub(r"[ ─]+", " ", NUMBER.sub("#", text))


def reference() -> str:
    """The page that lists groups, keys, verbs, metrics and files."""
    parts = [
        "# Reference",
        "",
        "Made by `make guide` from the code and the yamls; a test holds it up to date.",
        "",
        "## Groups and their options",
        "",
        "`GROUP=OPTION` on the command line picks one; `model@teacher=` takes those of model.",
        *(line for group in GROUPS for line in _group(group)),
        "",
        "## Keys",
        "",
        "`KEY=VALUE` sets one. `python -m forge explain --all …` lists all that a command has.",
        *_keys(),
        "",
        "## Verbs",
        "",
        "`python -m forge VERB --help` says more.",
        "",
        *_verbs(),
        "",
        "## Metrics",
        "",
        *_metrics(),
        "",
        "## Files of a run",
        "",
        markdown_table(
            ["file", "what it holds"],
            [[f"`{name}`", f"{short}: {full}"] for name, (short, full) in CONTENTS.items()],
        ),
    ]
    return "\n".join(parts) + "\n"


def _group(group: str) -> list[str]:
    options = []
    for file in sorted((CONF / group).glob("*.yaml")):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("# @pack")]
        options.append([f"`{group}={file.stem}`", lines[0].removeprefix("# ")])
    return ["", f"### {group}", "", markdown_table(["option", "what it is"], options)]


def _keys() -> list[str]:
    made = []
    schema = (ROOT / "forge/config/schema.py").read_text()
    for name, where in (("Config", ""), ("Model", "model."), ("Teacher", "teacher.")):
        body = re.search(rf"^class {name}\b.*?(?=^@|^def )", schema, re.M | re.S)[0]
        fields = re.findall(r"^    (\w+): [^=\n]+= (.+?)  # (.+)$", body, re.M)
        rows = [[f"`{where}{key}`", _plain(value), text] for key, value, text in fields]
        title = {"Config": "of the whole run", "Model": "model"}.get(
            name, "teacher, beside model's"
        )
        made += ["", f"### {title}", "", markdown_table(["key", "default", "meaning"], rows)]
    for file in (
        "trainer/default",
        "mode/sft",
        "mode/kd",
        "mode/rl",
        "task/files",
        "launcher/slurm",
    ):
        text = (CONF / f"{file}.yaml").read_text().rstrip()
        made += ["", f"### conf/{file}.yaml", "", "```yaml", text, "```"]
    return made


def _plain(default: str) -> str:
    values = {"None": "null", "True": "true", "False": "false", "MISSING": ""}
    return values.get(default, "" if "(" in default else default.split(".")[-1])


def _verbs() -> list[str]:
    from forge.__main__ import app  # here: as a command's main module it is not to be imported yet

    made = []
    for name, command in typer.main.get_command(app).commands.items():
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        given = " ".join(f"`{p.opts[0]}`" for p in options)
        made.append([f"`{name}`", (command.help or "").rstrip("."), given])
    return [markdown_table(["verb", "what it does", "options"], made)]


def _metrics() -> list[str]:
    from forge.tasks.metrics import FUNCTIONS

    rows = []
    for name, each in FUNCTIONS.items():
        docs = [(part.__doc__ or "").split("\n\n")[0] for part in (each.score, each.counts) if part]
        better = "more" if each.greater_is_better else "less"
        rows.append([f"`{name}`", " ".join(" ".join(docs).split()), better])
    return [markdown_table(["metric", "what it is", "better is"], rows)]


def main() -> None:
    (guide.HERE / "reference.md").write_text(reference())
    page = guide.HERE / "one-run.md"
    with tempfile.TemporaryDirectory() as folder:
        page.write_text(played(page.read_text(), Path(folder)))


if __name__ == "__main__":
    main()
