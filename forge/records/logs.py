"""Where log lines go: the console, output.log, and those of the libraries."""

from __future__ import annotations

import codecs
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from forge import ranks
from forge.errors import FULL

DASHES = "\u2500\u2501\u2013\u2014"


@contextmanager
def library_logs() -> Iterator[None]:
    """Warnings and library logs go where ours go; their bars show in a terminal only.

    What was before comes back at the end, also in the run that trains a run's teacher.
    """
    import datasets
    import transformers.utils.logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    libraries = [logging.getLogger(name) for name in ("transformers", "datasets")]
    before = [(library, library.propagate, list(library.handlers)) for library in libraries]
    transformers_logging.disable_default_handler()
    for library in libraries:
        library.propagate = True
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            yield
    finally:
        for library, propagate, handlers in before:
            library.propagate, library.handlers = propagate, handlers


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    logging.getLogger("py.warnings").warning("%s", text)


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """What is logged goes there too, that of the first rank."""
    lines = logging.FileHandler(os.devnull if ranks.rank() else path, encoding="utf-8")
    lines.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    logging.getLogger().addHandler(lines)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(lines)
        lines.close()


class LogFile(logging.FileHandler):
    """output.log; on a full disk lines are lost, and the run says why it ends."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not (isinstance(error, OSError) and error.errno in FULL):
            super().handleError(record)


class Console(logging.StreamHandler[TextIO]):
    """What a run prints; where nobody reads on (`| head`) it goes on all the same."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


def print_anywhere() -> None:
    """Let a terminal that knows no such character show a dash for a line, else its number."""

    def shown(error: UnicodeError) -> tuple[str | bytes, int]:
        if isinstance(error, UnicodeEncodeError) and error.object[error.start] in DASHES:
            return "-", error.start + 1
        return codecs.backslashreplace_errors(error)

    codecs.register_error("forge", shown)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="forge")


def leave_quietly() -> int:
    """The exit code when nobody reads what is printed (SIGPIPE's); nothing more is written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


class Readable(logging.Filter):
    """The console shows what Forge says, and errors of libraries; output.log holds all."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name.split(".")[0] in ("forge", "hydra", "__main__")
        return ours or record.levelno >= logging.ERROR
