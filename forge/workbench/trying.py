"""Try it: texts to several models side by side, in a child process that is ended when idle.

The pages open JSON and parquet only; the child loads models, as `python -m forge predict` does, and
is started by a question alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from forge.errors import Failure, UserError, one_line
from forge.records.files import Json
from forge.results import answers
from forge.workbench.asked import Asked

IDLE, LETTERS, MOST = 300.0, 20_000, 4  # seconds, of a text, models


def view(asked: Asked) -> Json:
    """Parameters: run (several)."""
    runs = asked.runs()
    inputs = {tuple(_columns(run.metadata["config"].get("task") or {})) for run in runs.values()}
    return {
        "title": "Try it",
        "chosen": list(runs),
        "columns": list(max(inputs, key=lambda names: len(list(names)), default=())),
        "pictured": any(
            answers.pictured(run, s) for run in runs.values() for s in answers.splits(run)[:1]
        ),
    }


def _columns(task: Json) -> list[str]:
    text = task.get("text") or task.get("prompt") or task.get("image") or "text"
    if task.get("question") and task.get("answer"):
        text = [task["context"], task["question"]]
    return [text] if isinstance(text, str) else [str(name) for name in text]


class Child:
    """A process that answers questions, one line of JSON each; started when one is asked."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock, self.timer = threading.Lock(), threading.Timer(IDLE, lambda: None)

    def ask(self, question: Json) -> Json:
        """Raises `Failure` for a process that dies, `UserError` for what it refuses."""
        with self.lock:
            self.timer.cancel()
            if self.process is None or self.process.poll() is not None:
                self.process = self._start()
            process = self.process
            assert process.stdin and process.stdout
            try:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = ""
            self.timer = threading.Timer(IDLE, self.end)
            self.timer.daemon = True
            self.timer.start()
        if not line:
            raise Failure("the process that asks the models ended; the memory may be too small")
        found: Json = json.loads(line)
        if "problem" in found:
            raise UserError(found["problem"])
        return found

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "forge.workbench.trying"]
        root = str(Path(__file__).resolve().parents[2])
        given = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=given
        )

    def end(self) -> None:
        """End the process, if there is one; the next question starts another."""
        with self.lock:
            if self.process is not None:
                self.process.kill()
                self.process.wait()
            self.process = None


CHILD = Child()


def answer(asked: Asked, given: Json) -> Json:
    """What some runs' models answer. Parameters: run (several); given: texts."""
    runs = [asked.library.find(id).path for id in asked.chosen]
    texts = [str(text)[:LETTERS] for text in given["texts"]]
    if not runs or len(runs) > MOST:
        raise UserError(f"{len(runs)} runs: choose one to {MOST}")
    if not any(text.strip() for text in texts):
        raise UserError("no text: write one")
    return CHILD.ask({"runs": [str(path) for path in runs], "texts": [[text] for text in texts]})


def main() -> None:
    """The child: answers each line of the input until that ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from forge.commands import predict

    for line in sys.stdin:
        question = json.loads(line)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                os.chdir(scratch)
                result = predict.predict(
                    [Path(p) for p in question["runs"]], question["texts"], None
                )
                os.chdir("/")
            header, rows = predict.prediction_table(result)
            found = {"header": header, "rows": rows, "notes": predict.prediction_notes(result)}
        except Exception as error:  # a model that cannot be loaded, texts that do not fit
            found = {"problem": one_line(str(error))[:500]}
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    main()
