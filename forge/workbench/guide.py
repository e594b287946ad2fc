"""The guide's pages and the README, rendered; what they hold is text, HTML in them is shown."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup

from forge.errors import UserError
from forge.records.files import Json
from forge.workbench.asked import Asked, url

ROOT = Path(__file__).resolve().parents[2]


def pages() -> dict[str, Path]:
    """The guide's pages by name; none where the package is installed without them."""
    found = [*sorted(ROOT.glob("guide/*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"]
    return {file.stem: file for file in found if file.is_file()}


def view(asked: Asked) -> Json:
    """Parameters: page (a name of `pages`)."""
    known = pages()
    if not known:
        raise UserError("the guide lies in the repository, beside launch.py; it is not here")
    name = asked.text("page", next(iter(known)))
    if name not in known:
        raise UserError(f"{name}: no such page of the guide")
    text = known[name].read_text(encoding="utf-8")
    return {"title": "Guide", "pages": list(known), "page": name, "text": rendered(text, known)}


def rendered(text: str, known: dict[str, Path]) -> Markup:
    """Markdown as HTML; links to other pages of the guide lead to them."""
    from markdown_it import MarkdownIt

    def inside(link: re.Match[str]) -> str:
        return f"]({url('guide', page=link[1])})" if link[1] in known else link[0]

    text = re.sub(r"\]\((?:\./)?([\w-]+)\.md(?:#[\w-]*)?\)", inside, text)
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))
