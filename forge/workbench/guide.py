"""The guide's pages, rendered; what they hold is text, HTML in them is shown."""

from __future__ import annotations

import re

from markupsafe import Markup

from forge import guide
from forge.records.files import Json
from forge.workbench.asked import Asked, url


def view(asked: Asked) -> Json:
    """Parameters: page (a name of `guide.pages`)."""
    name = asked.text("page", guide.CONTENTS)
    text = rendered(guide.page(name))
    return {"title": "Guide", "pages": list(guide.pages()), "page": name, "text": text}


def rendered(text: str) -> Markup:
    """Markdown as HTML; links to other pages of the guide lead to them, pictures are named."""
    from markdown_it import MarkdownIt

    def inside(link: re.Match[str]) -> str:
        return f"]({url('guide', page=link[1])})"

    text = re.sub(r"!\[([^\]]*)\]\([^)]*\)", r"(\1)", text)
    text = guide.LINK.sub(inside, text)
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))
