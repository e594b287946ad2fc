"""The workbench's process: where it listens, and what it tells its user."""

from __future__ import annotations

import getpass
import logging
import os
import secrets
import socket
import stat
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from forge.errors import UserError
from forge.workbench.app import application
from forge.workbench.library import Library


def serve(
    folders: Sequence[Path],
    port: int | None,
    token: str | None,
    path: Path | None,
    base: str,
    hosts: list[str],
    open_it: bool,
) -> None:
    """Serve the pages until Ctrl-C. Raises `UserError` for what cannot be listened at or read."""
    token = token or secrets.token_urlsafe(24)
    place = _unix_socket(path) if path else _loopback(port)
    library = Library(folders)
    app = application(library, token, hosts, base)
    prefix = "/" + base.strip("/") + "/" if base.strip("/") else "/"
    with place:
        if path:
            print(f"workbench  {path}; token {token}")
        else:
            number = place.getsockname()[1]
            address = f"http://127.0.0.1:{number}{prefix}#token={token}"
            print(f"workbench  {address}")
            if "SSH_CONNECTION" in os.environ or "SLURM_JOB_ID" in os.environ:
                host = f"{getpass.getuser()}@{socket.getfqdn()}"
                print(f"from your own machine first: ssh -N -L {number}:127.0.0.1:{number} {host}")
            if open_it and _has_browser():
                _open(address)
        print(f"{len(library.kept):,} runs; Ctrl-C ends it", flush=True)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        config = uvicorn.Config(app, access_log=False, log_level="warning", lifespan="off",
                                ws="none", server_header=False)  # fmt: skip
        uvicorn.Server(config).run(sockets=[place])


def _loopback(port: int | None) -> socket.socket:
    """A listening socket of this machine alone."""
    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind(("127.0.0.1", port or 0))
    except (OSError, OverflowError) as error:
        place.close()
        raise UserError(f"--port {port}: {error}; leave it out for a free one") from error
    return place


def _unix_socket(path: Path) -> socket.socket:
    """A socket in a directory that is its user's alone, made where there is none."""
    folder = path.absolute().parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
        if facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o077:
            raise UserError(f"--socket {path}: others may enter {folder}; chmod 700 {folder}")
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
        place = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o177)
        try:
            place.bind(str(path))
        finally:
            os.umask(umask)
    except OSError as error:
        raise UserError(f"--socket {path}: {error}") from error
    return place


def _has_browser() -> bool:
    """Whether a window can open; a browser in the terminal would be in the way."""
    return sys.platform == "darwin" or bool(
        {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys() and "SSH_CONNECTION" not in os.environ
    )


def _open(address: str) -> None:
    """By a file of ours alone: a command line, with the token in it, is everybody's to read."""
    file = Path(tempfile.mkdtemp(prefix="forge-workbench-")) / "open.html"
    file.write_text(f'<meta http-equiv="refresh" content="0; url={address}">')
    webbrowser.open(file.as_uri())
