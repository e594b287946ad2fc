"""Who may ask, from where, and what a page may do: around every request.

Every user of a login node reaches loopback, so a token is asked for, once; then a cookie counts.
The Host and the Origin of a request must be known ones (a page elsewhere may send requests here,
and a name may be bound anew to this address); what changes things has a header that no form of
another page can send. Nothing may be loaded but from here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost", "::1")
MARKER = "x-forge-workbench"  # of requests that change something
FREE = ("/static/", "/favicon.ico")  # hold nothing of runs
LONGEST = 64_000  # bytes of what a page sends
POLICY = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def name_of(host: str) -> str:
    """A Host header, or the host of an Origin, without its port."""
    return re.sub(r":\d+$", "", host.strip().lower()).strip("[]")


class Guard:
    """ASGI middleware; `login` is the page that asks for the token."""

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str], login: str) -> None:
        self.app, self.token, self.login = app, token.encode(), login
        self.hosts = {*HOSTS, *map(name_of, hosts)}
        self.secret = hmac.new(self.token, b"session", hashlib.sha256).hexdigest()
        name = hashlib.sha256(self.token).hexdigest()[:8]
        self.cookie = f"forge-{name}"  # cookies know no ports: two workbenches have two

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {k.encode(): v.encode() for k, v in HEADERS.items()}
                given = {k: v for k, v in message["headers"] if k not in own}
                given.setdefault(b"cache-control", b"no-store")
                message["headers"] = [*given.items(), *own.items()]
            await send(message)

        request = Request(scope, receive)
        answer = await self.refusal(request)
        await (answer or self.app)(scope, receive, guarded)

    async def refusal(self, request: Request) -> Response | None:
        """What is answered instead of a page; None where the page may be seen."""
        headers, path = request.headers, request.scope["path"]
        if name_of(headers.get("host", "")) not in self.hosts:
            return PlainTextResponse("unknown host; see --allow-host", 403)
        if not self._from_here(headers):
            return PlainTextResponse("requests from other pages are not answered", 403)
        if request.method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("no such method", 405)
        if int(headers.get("content-length") or 0) > LONGEST:
            return PlainTextResponse("too long", 413)
        if path == "/login" and request.method == "POST":
            return await self._log_in(request)
        if path.startswith(FREE):
            return None
        given = request.cookies.get(self.cookie, "")
        if not hmac.compare_digest(given.encode(), self.secret.encode()):
            return Response(self.login, 401, media_type="text/html; charset=utf-8")
        if request.method == "POST" and MARKER not in headers:
            return PlainTextResponse(f"no {MARKER} header", 403)
        return None

    def _from_here(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None and name_of(urlsplit(origin).netloc) not in self.hosts:
            return False
        return headers.get("sec-fetch-site", "none") in ("none", "same-origin") or (
            headers.get("sec-fetch-mode") == "navigate" and origin is None
        )

    async def _log_in(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LONGEST:
                return PlainTextResponse("too long", 413)
        form = parse_qs(body.decode("latin-1"))
        if not hmac.compare_digest(form.get("token", [""])[0].strip().encode(), self.token):
            return Response(self.login, 401, media_type="text/html; charset=utf-8")
        wanted = form.get("next", [""])[0]
        wanted = wanted if re.fullmatch(r"[a-z]+(\?[^\r\n\\]*)?", wanted) else "./"
        answer = RedirectResponse(wanted, 303)
        answer.set_cookie(self.cookie, self.secret, httponly=True, samesite="lax")
        return answer
