"""The guide: pages in Markdown, in the order in which README.md beside them lists them.

One text for a code host, a terminal (`python -m forge learn`) and the workbench.
"""

from __future__ import annotations

import re
from pathlib import Path

from forge.errors import UserError, did_you_mean

HERE = Path(__file__).resolve().parent
CONTENTS = "contents"  # the page that lists the others
LINK = re.compile(r"\]\((?:\./)?([\w-]+)\.md(?:#[\w-]*)?\)")  # to another page


def pages() -> dict[str, Path]:
    """The pages by name, the table of contents first."""
    listed = LINK.findall((HERE / "README.md").read_text(encoding="utf-8"))
    return {CONTENTS: HERE / "README.md", **{name: HERE / f"{name}.md" for name in listed}}


def page(name: str) -> str:
    """The Markdown of a page; raises `UserError` for one that there is not."""
    known = pages()
    if name not in known:
        raise UserError(f"{name}: no such page of the guide{did_you_mean(name, known)}")
    return known[name].read_text(encoding="utf-8")
