"""`--export FILE.html`: the page of a run, or of a sweep, as one file that opens from disk."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path

from forge.errors import Failure, UserError
from forge.records.files import METADATA
from forge.workbench.app import HERE, environment, render
from forge.workbench.asked import Asked
from forge.workbench.library import Library

MOST = 6_000_000  # bytes
PATIENCE = 3600.0  # seconds for the tests of a sweep


def write(folders: Sequence[Path], file: Path) -> str:
    """Write the page of the only directory that is given; a line on it. Raises `UserError`."""
    if len(folders) != 1:
        raise UserError("--export: name one run or one sweep")
    folder = folders[0]
    library = Library([folder])
    if (folder / METADATA).is_file():
        view, given = "run", {"run": [next(iter(library.kept))]}
    else:
        view, given = "helped", {"run": list(library.kept), "exported": ["1"]}
    if not library.kept:
        raise UserError(f"{folder}: no run in it")
    asked, began = Asked(view, given, library), time.monotonic()
    text, status = render(environment(), asked, parts())
    while "being computed" in text and time.monotonic() - began < PATIENCE:
        time.sleep(1)
        text, status = render(environment(), asked, parts())
    if status != 200:
        problem = re.search(r'class="verdict error">(.*?)</p>', text, re.S)
        raise UserError(f"{folder}: {problem[1] if problem else 'cannot be shown'}")
    data = text.encode()
    if len(data) > MOST:
        raise Failure(f"{folder}: the page would have {len(data) / 1e6:.1f} MB")
    try:
        file.write_bytes(data)
    except OSError as error:
        raise UserError(f"--export {file}: {error.strerror}") from error
    return f"export  {file}, {len(data) / 1e3:,.0f} kB"


def parts() -> dict[str, str]:
    """Style and script to be put into a page, and the script's hash for its policy."""
    static = HERE / "static"
    charts, page = (static / name for name in ("charts.js", "page.js"))
    own = re.sub(r"^import .*\n", "", page.read_text(), flags=re.M).replace("export ", "")
    own = re.sub(r"^.*\bactions\(document, tell\);\n", "", own, flags=re.M)
    script = charts.read_text().replace("export ", "") + own
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": (static / "style.css").read_text(), "script": script, "hash": digest,
            "date": time.strftime("%Y-%m-%d")}  # fmt: skip
