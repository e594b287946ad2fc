"""Where log lines go: the console, output.log, and those of the libraries."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from forge.errors import FULL

routed = False  # whether the libraries' logs go where ours go


@contextmanager
def library_logs() -> Iterator[None]:
    """Warnings and library logs go where ours go; their bars show in a terminal only."""
    global routed
    if routed:  # by the run around this one, which trains its teacher
        yield
        return
    import datasets
    import datasets.utils.logging as datasets_logging
    import transformers.utils.logging as transformers_logging

    logging.captureWarnings(True)
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    for library in (transformers_logging, datasets_logging):
        library.enable_propagation()
    transformers_logging.disable_default_handler()
    routed = True
    try:
        yield
    finally:
        routed = False
        logging.captureWarnings(False)
        transformers_logging.enable_default_handler()
        for library in (transformers_logging, datasets_logging):
            library.disable_propagation()


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
