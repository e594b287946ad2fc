"""Figures without a screen, and the letters that the fonts of this machine have for them."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_FONTS = ("Last Resort", "NonUnicode", "Size")  # of boxes, and of mathematics


@contextmanager
def letters(texts: Iterable[str]) -> Iterator[None]:
    """Draw with fonts of this machine that have the characters of these texts."""
    import matplotlib

    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    others = dict.fromkeys(font for text in texts for c in text if (font := font_of(c)))
    with matplotlib.rc_context({"font.family": ["sans-serif", *others]}):
        yield


@cache
def font_of(character: str) -> str | None:
    """The family of a font that has a character, matplotlib's own before others; None without."""
    from matplotlib import font_manager

    own = font_manager.FontProperties().get_name()
    fonts = [font for font in font_manager.fontManager.ttflist if not _is_special(font.name)]
    for font in sorted(fonts, key=lambda font: (font.name != own, font.style, font.name)):
        try:
            if font_manager.get_font(font.fname).get_char_index(ord(character)):
                return str(font.name)
        except (OSError, RuntimeError):  # a font that matplotlib cannot draw
            continue
    return None


def _is_special(name: str) -> bool:
    return name.startswith("cm") or any(part in name for part in NO_FONTS)


def lacking(texts: Iterable[str]) -> list[str]:
    """The characters of texts that no font here has, each once."""
    characters = dict.fromkeys(c for text in texts for c in text if not c.isspace())
    return [character for character in characters if font_of(character) is None]


def drawable(text: str) -> str:
    """A text for a picture: characters that no font has as escapes, and no mathematics."""
    for character in lacking([text]):
        text = text.replace(character, ascii(character)[1:-1])
    return text.replace("$", r"\$")


def note(texts: Iterable[str], instead: str) -> list[str]:
    """A line on the characters that the pictures lack; none where they lack none."""
    if not (missing := lacking(texts)):
        return []
    shown = " ".join(missing[:10]) + (" …" if len(missing) > 10 else "")
    return [f"No font of this machine has {shown}; the pictures show {instead} instead."]


def figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    """A picture's file."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name that nobody could foresee
        figure.savefig(out, dpi=150, format="png")
    return out.getvalue()
