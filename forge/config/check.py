"""How a config node becomes an object: its callee's signature is its schema.

`check` compares the two before anything slow starts, `build` makes the object.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from hydra.errors import HydraException, InstantiationException

from forge.config.moved import with_current_targets
from forge.config.schema import Node
from forge.errors import FULL, UserError, did_you_mean, one_line


def check(node: Node, where: str) -> Node:
    """A copy of the node, ready for `build`: its keys and values fit what its `_target_` takes.

    So do those of nodes with a `_target_` below it. In the copy switches spelled on and off are
    booleans, and import paths are today's. Raises `UserError` for what does not fit.
    """
    return _checked(with_current_targets(node), where)


def build(checked: Node, where: str) -> Any:
    """The object that `checked`, a node from `check`, describes.

    Raises `UserError` for what the callee itself refuses, with the reason that it gives.
    """
    from hydra.utils import instantiate

    try:
        return instantiate(checked, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        if isinstance(error.__cause__, OSError) and error.__cause__.errno not in FULL:
            raise UserError(
                f"{where}: {error.__cause__}; Hugging Face's caches are where HF_HOME says, ours "
                "where cache_dir= does"
            ) from error
        if isinstance(error.__cause__, ValueError):
            below = re.search(r"full_key: (\S+)", str(error))
            at = f"{where}.{below[1]}" if below else where
            raise UserError(f"{at}: {one_line(str(error.__cause__))}") from error
        raise


def _checked(node: Node, where: str) -> Node:
    node = {key: _checked_below(value, f"{where}.{key}") for key, value in node.items()}
    callee = locate(node.get("_target_"), where)
    given = {k: v for k, v in node.items() if not (k.startswith("_") and k.endswith("_"))}
    parameters = inspect.signature(callee).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any or where == "mode":  # whose other arguments the run gives it
        later = node.get("_partial_")  # what has no default then is not for a config
        known = [n for n, p in parameters.items() if not later or p.default is not p.empty]
        for key in given.keys() - {n for n, p in parameters.items() if _by_name(p)}:
            raise UserError(
                f"{where}.{key}: {node['_target_']} has no such setting{did_you_mean(key, known)}"
            )
    if not node.get("_partial_"):
        needed = {n for n, p in parameters.items() if p.default is p.empty and _by_name(p)}
        if missing := sorted(f"{where}.{name}" for name in needed - given.keys()):
            ways = " ".join(f"{key}=…" for key in missing)
            verb = "are" if missing[1:] else "is"
            raise UserError(f"{', '.join(missing)} {verb} needed by {node['_target_']}; set {ways}")
    return node | _fitting(callee, given, where)


def _checked_below(value: object, where: str) -> object:
    """Check the nodes of a group that holds several, such as mode.loss."""
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return _checked(value, where)
    return {key: _checked_below(nested, f"{where}.{key}") for key, nested in value.items()}


def _by_name(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _fitting(
    callee: Callable[..., object], given: Mapping[str, object], where: str
) -> dict[str, object]:
    """The values, which must fit the callee's annotations; switches as booleans."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    function = getattr(callee, "__init__", callee) if inspect.isclass(callee) else callee
    values = dict(given)
    for key, value in given.items():
        if isinstance(value, dict) and any("_target_" in str(v) for v in (value, *value.values())):
            continue  # Hydra builds it first
        hint = _type_hint(function, key)
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        try:
            fitting = adapter.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].lower()
            raise UserError(f"{where}.{key}={value}: {problem}") from error
        except PydanticUserError:  # a type that pydantic cannot describe: the callee will judge
            continue
        if isinstance(fitting, bool):
            values[key] = fitting
    return values


def _type_hint(function: object, key: str) -> Any:
    """The parameter's type; Any when it has none or names what only a type checker imports."""
    hint = getattr(function, "__annotations__", {}).get(key, Any)
    holder = SimpleNamespace(__annotations__={key: hint})
    try:
        names = getattr(function, "__globals__", {})
        return typing.get_type_hints(holder, names, include_extras=True)[key]
    except NameError:
        return Any


def locate(target: str | None, where: str) -> Callable[..., object]:
    """What an import path names; raises `UserError`, which names the node, where nothing is."""
    from hydra.utils import get_object

    if not target:
        raise UserError(f"{where}: this node needs a _target_ (an import path)")
    try:
        callee: Callable[..., object] = get_object(target)
    except (HydraException, ImportError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{where}._target_={target}: cannot be imported ({reason})") from error
    return callee
