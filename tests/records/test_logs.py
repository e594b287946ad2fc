"""What is printed reaches whatever reads it."""

import io
import sys

from forge.records.logs import print_anywhere


def test_an_ascii_terminal_gets_dashes_and_numbers(monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    print_anywhere()
    print("\u2500\u2500 na\xefve \u2013 ok", flush=True)
    assert raw.getvalue() == rb"-- na\xefve - ok" + b"\n"
