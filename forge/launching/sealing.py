"""Pickles without secrets, which travel in the environment; pickles read without their code."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forge.errors import UserError, one_line

SECRETS = "FORGE_SECRETS"  # environment: the values that a pickle leaves out, as a JSON list


def seal(value: object, secrets: Sequence[str]) -> bytes:
    """A pickle of `value` in which numbers stand for the texts `secrets`, wherever they are."""
    import cloudpickle

    parts = re.compile("|".join(map(re.escape, sorted(secrets, key=len, reverse=True))) or r"(?!)")

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
        def persistent_id(self, value: object) -> tuple[str, list[str], list[int]] | None:
            if type(value) not in (str, int, float) or not parts.search(text := str(value)):
                return None
            hidden = [secrets.index(secret) for secret in parts.findall(text)]
            return type(value).__name__, parts.split(text), hidden

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def unseal(sealed: bytes) -> Any:
    """The value that was sealed, with the secrets of the environment.

    Raises `UserError` where the environment does not have them.
    """
    secrets: list[str] = json.loads(os.environ.get(SECRETS, "[]"))
    types = {"str": str, "int": int, "float": float}

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, reference: tuple[str, list[str], list[int]]) -> object:
            name, parts, hidden = reference
            if max(hidden) >= len(secrets):
                raise UserError(
                    f"{SECRETS}: not in this job's environment, which holds its tokens and "
                    "passwords; submit it without --export=NONE"
                )
            between = [secrets[number] for number in hidden]
            return types[name]("".join(map("".join, zip(parts, [*between, ""], strict=True))))

    return Unpickler(io.BytesIO(sealed)).load()


def read_plain(file: Path, *classes: type) -> object:
    """What a pickle holds: numbers, texts, collections of them, and objects of `classes`.

    Nothing else is imported or called, for a run directory may be anybody's. Raises `UserError`
    for a file that asks for it, or is damaged.
    """
    allowed = {(each.__module__, each.__qualname__): each for each in classes}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> type:
            if (module, name) not in allowed:
                raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
            return allowed[module, name]

    try:
        return Unpickler(io.BytesIO(file.read_bytes())).load()
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise UserError(f"{file}: cannot be read ({one_line(str(error))})") from error
