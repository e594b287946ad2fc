"""A user's mistake is one plain line: the value, the reason, the way out. Bugs keep tracebacks."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

FULL = (ENOSPC, EDQUOT)  # a full disk, or what a user may have of it


class UserError(Exception):
    """Something the user can mend: printed as one line, exit code 2, no traceback."""


class Failure(Exception):
    """A run that cannot go on, through no fault of its config: one line, exit code 1."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Around an import for `what`: without it the way out is to install the extra."""
    try:
        yield
    except ImportError as error:
        module = (error.name or extra).partition(".")[0]
        raise UserError(
            f"{what}: {module} is not installed; pip install 'forge[{extra}]'"
        ) from error


def did_you_mean(name: str, known: Iterable[str], listed: bool = True) -> str:
    """`; did you mean …?` when a close match exists, else the known names if `listed`."""
    known = list(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known: {', '.join(known)}" if known and listed else ""


def one_line(text: str) -> str:
    """The text with its line breaks and runs of blanks folded."""
    return " ".join(text.split())


USER_ERRORS = (UserError, HydraException, OmegaConfBaseException, YAMLError)


class Preempted(BaseException):
    """The run was asked to stop and did, at a point to go on from; not an error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
