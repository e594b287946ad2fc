"""`python -m forge VERB`: what there is to do beside a run. A verb is a function and a parser."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from forge.errors import UserError


def doctor(args: argparse.Namespace) -> int:
    from forge import doctor

    return doctor.main(as_json=args.json)


def report(args: argparse.Namespace) -> int:
    from forge import results

    print(results.report(args.directory))
    return 0


def parser() -> argparse.ArgumentParser:
    """All verbs; each sets `run`, a function from its arguments to the exit code."""
    root = argparse.ArgumentParser("python -m forge", description="Runs start with launch.py.")
    verbs = root.add_subparsers(title="verbs", metavar="VERB")

    verb = verbs.add_parser("doctor", help="check this machine: one line per check")
    verb.add_argument("--json", action="store_true", help="a list of objects instead of lines")
    verb.set_defaults(run=doctor)

    verb = verbs.add_parser("report", help="table, paired tests and plot of a sweep")
    verb.add_argument("directory", type=Path, help="e.g. multirun/toy/tiny/kd/20260101-120000Z")
    verb.set_defaults(run=report)
    return root


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 a verb's own no, 2 the command or the data need mending."""
    root = parser()
    args = root.parse_args(arguments)
    if "run" not in args:
        root.print_help()
        return 0
    try:
        code: int = args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
