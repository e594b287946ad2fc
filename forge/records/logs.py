"""Where log lines go: the console, output.log, and those of the libraries."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from forge import ranks
from forge.errors import FULL


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


class Readable(logging.Filter):
    """The console shows what Forge says, and errors of libraries; output.log holds all."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name.split(".")[0] in ("forge", "hydra", "__main__")
        return ours or record.levelno >= logging.ERROR
