"""Pickles without secrets: what is left out of them travels in the environment."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections.abc import Sequence
from typing import Any

from forge.errors import UserError

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
