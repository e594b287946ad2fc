"""A user's mistake is one plain line: the value, the reason, the way out. Bugs keep tracebacks."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
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


def explain(error: Exception, keys: Iterable[str] = ()) -> str:
    """One line for an error of Hydra's or OmegaConf's; `keys` are the config's dotted keys."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option}: no such option" + did_you_mean(option, error.options or ())
    if isinstance(error, MissingMandatoryValue):
        key = error.full_key or text.rpartition(" ")[2]
        return f"{key} has no value: give it one with {key}=…"
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(unknown[1], list(keys))
    if unknown := re.search(r"[Kk]ey '([^']+)' not in '(\w+)'", one_line(f"{text} {cause or ''}")):
        full = str(getattr(cause or error, "full_key", None) or unknown[1])
        return _unknown_key(full, list(keys))
    if cause is not None:
        key = cause.full_key or ""
        reason = str(cause).splitlines()[0]
        return f"{key}: {reason[0].lower()}{reason[1:]}" if key else reason
    return one_line(text)


def _unknown_key(key: str, keys: list[str]) -> str:
    parent, _, last = key.rpartition(".")
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    hint = did_you_mean(last, siblings)
    if parent == "trainer" and "did you mean" not in hint:
        hint += f" (a TrainingArguments field that is not listed: +{key}=…)"
    return f"{key}: no such key{hint}"


USER_ERRORS = (UserError, HydraException, OmegaConfBaseException, YAMLError)


class Preempted(BaseException):
    """The run was asked to stop and did, at a point to go on from; not an error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
