"""How a config node becomes an object: its callee's signature is its schema.

`check` compares the two before anything slow starts, `build` makes the object.
"""

from __future__ import annotations

import inspect
import re
import typing
from types import SimpleNamespace
from typing import Any

from hydra.errors import HydraException, InstantiationException

from forge.config.moved import current, with_current_targets
from forge.errors import UserError, did_you_mean, one_line


def check(node: dict[str, Any], where: str) -> None:
    """Raise `UserError` unless the node's keys and values fit the signature of its `_target_`.

    Nested nodes with a `_target_` of their own are checked too.
    """
    for key, value in node.items():
        _check_below(value, f"{where}.{key}")
    callee = locate(node.get("_target_"), where)
    given = {k: v for k, v in node.items() if not (k.startswith("_") and k.endswith("_"))}
    parameters = inspect.signature(callee).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any or where == "mode":  # whose other arguments the run gives it
        for key in given.keys() - parameters.keys():
            raise UserError(
                f"{where}.{key}: {node['_target_']} has no such setting"
                + did_you_mean(key, parameters)
            )
    if not node.get("_partial_"):
        needed = {n for n, p in parameters.items() if p.default is p.empty and _by_name(p)}
        for name in sorted(needed - given.keys()):
            raise UserError(f"{where}.{name} is needed by {node['_target_']}; set {where}.{name}=…")
    _check_types(callee, given, where)
    node |= given


def _check_below(value: Any, where: str) -> None:
    """Check the nodes of a group that holds several, such as mode.loss."""
    if isinstance(value, dict) and "_target_" in value:
        check(value, where)
    elif isinstance(value, dict):
        for key, nested in value.items():
            _check_below(nested, f"{where}.{key}")


def _by_name(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _check_types(callee: Any, given: dict[str, Any], where: str) -> None:
    """Hold values against annotations; switches spelled on and off become booleans in `given`."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    function = callee.__init__ if inspect.isclass(callee) else callee
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
            given[key] = fitting


def _type_hint(function: Any, key: str) -> Any:
    """The parameter's type; Any when it has none or names what only a type checker imports."""
    hint = getattr(function, "__annotations__", {}).get(key, Any)
    holder = SimpleNamespace(__annotations__={key: hint})
    try:
        names = getattr(function, "__globals__", {})
        return typing.get_type_hints(holder, names, include_extras=True)[key]
    except NameError:
        return Any


def locate(target: str | None, where: str) -> Any:
    """The object behind an import path, or a `UserError` that names the node."""
    from hydra.utils import get_object

    if not target:
        raise UserError(f"{where}: this node needs a _target_ (an import path)")
    try:
        return get_object(current(target))
    except (HydraException, ImportError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{where}._target_={target}: cannot be imported ({reason})") from error


def build(node: dict[str, Any], where: str) -> Any:
    """Config becomes object: check the node, then call its `_target_` with its settings."""
    from hydra.utils import instantiate

    node = with_current_targets(node)
    check(node, where)
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:  # the callee's own words, without Hydra's around them
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        if isinstance(error.__cause__, ValueError):
            below = re.search(r"full_key: (\S+)", str(error))
            at = f"{where}.{below[1]}" if below else where
            raise UserError(f"{at}: {one_line(str(error.__cause__))}") from error
        raise
