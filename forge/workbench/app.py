"""The pages as an ASGI app: what each address shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from forge.errors import Failure, UserError, one_line
from forge.records.files import Json
from forge.workbench.asked import Asked, url
from forge.workbench.guard import Guard
from forge.workbench.library import Library

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
VIEWS = {
    "runs": "Runs",
    "run": "One run",
    "helped": "Did it help?",
    "rows": "Disagreements",
    "curves": "Curves",
    "configs": "Config diff",
    "rewards": "Rewards",
    "data": "Data",
    "try": "Try it",
    "guide": "Guide",
}
MODULES = {"run": "one_run", "try": "trying"}  # of views whose names are others
NOT_OURS = (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
View: TypeAlias = Callable[[Asked], Json]


def environment() -> Environment:
    """The templates; every value is escaped."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"url": url, "views": VIEWS.items()}
    return made


def render(templates: Environment, asked: Asked, exported: Json | None = None) -> tuple[str, int]:
    """A page and its status; what is wrong with an address, or with a run, is a page as well."""
    module = import_module(f"forge.workbench.{MODULES.get(asked.view, asked.view)}")
    common = {"view": asked.view, "here": asked.here, "exported": exported, "chosen": [], "live": 0}
    try:
        common["chosen"] = asked.chosen
        known = [kept.id for kept in list(asked.library.kept.values())[:500]]
        context = {"known": known, **common, **module.view(asked)}
        return templates.get_template(f"{asked.view}.html").render(context), 200
    except (UserError, Failure) as error:
        problem, status = str(error), 404
    except NOT_OURS as error:
        log.debug("%s", asked, exc_info=True)
        problem, status = one_line(f"{type(error).__name__}: {error}")[:300], 422
    context = {**common, "title": VIEWS[asked.view], "problem": problem, "status": status}
    return templates.get_template("problem.html").render(context), status


def page(request: Request, *, view: str, library: Library, templates: Environment) -> Response:
    text, status = render(templates, Asked(view, lists(request), library))
    return Response(text, status, media_type="text/html; charset=utf-8")


def lists(request: Request) -> Mapping[str, list[str]]:
    """The parameters of an address, each with all its values."""
    return {key: request.query_params.getlist(key) for key in request.query_params}


async def change(
    request: Request, *, action: Callable[[Asked, Any], Json], library: Library
) -> Response:
    """What changes something: JSON in, JSON out."""
    from starlette.concurrency import run_in_threadpool

    try:
        asked = Asked("", lists(request), library)
        return JSONResponse(await run_in_threadpool(action, asked, await request.json()))
    except (UserError, Failure, *NOT_OURS) as error:
        return JSONResponse({"problem": one_line(str(error))[:500]}, 422)


def picture(request: Request, *, library: Library) -> Response:
    """A row's picture."""
    from forge.workbench import rows

    try:
        found = rows.picture(Asked("", lists(request), library))
    except (UserError, *NOT_OURS):
        found = None
    if found is None:
        raise HTTPException(404)
    data, kind = found
    return Response(data, media_type=kind, headers={"cache-control": "private, max-age=3600"})


def application(library: Library, token: str, hosts: list[str], base: str = "") -> ASGIApp:
    """Everything: the pages, guarded, below a base path."""
    from forge.workbench import rows, trying

    templates = environment()
    shown = partial(page, library=library, templates=templates)
    pages = [Route(f"/{name}", partial(shown, view=name)) for name in VIEWS]
    app = Starlette(
        routes=[
            Route("/", partial(shown, view="runs")),
            *pages,
            Route("/picture", partial(picture, library=library)),
            Route("/flag", partial(change, action=rows.flag, library=library), methods=["POST"]),
            Route(
                "/answer", partial(change, action=trying.answer, library=library), methods=["POST"]
            ),
            Route("/favicon.ico", lambda _: FileResponse(HERE / "static" / "favicon.svg")),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]
    )
    login = templates.get_template("login.html").render()
    return below(Guard(app, token, hosts, login), base)


def below(app: ASGIApp, base: str) -> ASGIApp:
    """The app at a base path, whether or not a proxy has taken it off."""
    base = "/" + base.strip("/") if base.strip("/") else ""

    async def stripped(scope: Scope, receive: Receive, send: Send) -> None:
        if base and scope["type"] == "http":
            path = scope["path"]
            if path == base:
                moved = Response(status_code=307, headers={"location": f"{base}/"})
                return await moved(scope, receive, send)
            if path.startswith(f"{base}/"):
                scope = {**scope, "path": path[len(base) :], "raw_path": None}
        await app(scope, receive, send)

    return stripped
