"""The verbs of `python -m forge`, one module each: parse, call, print."""
