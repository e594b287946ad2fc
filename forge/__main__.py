"""`python -m forge VERB`: what there is to do beside a run. A verb is a function and a parser."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from forge.errors import USER_ERRORS, Failure, UserError, explain


def doctor(args: argparse.Namespace) -> int:
    from forge import doctor

    return doctor.main(as_json=args.json)


def report(args: argparse.Namespace) -> int:
    from forge import report as reports

    print(reports.report(args.directory))
    return 0


def compare(args: argparse.Namespace) -> int:
    from forge import results

    found = results.side_by_side([args.first, *args.others])
    print(json.dumps(found, indent=2) if args.json else results.comparison_text(found))
    return 0


def show(args: argparse.Namespace) -> int:
    from forge import results

    lines = results.shown(args.directory)
    if args.json:
        run = results.read_run(args.directory)
        found = {"metadata": run.metadata, "state": run.state, "results": run.results}
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(f"{name:<11} {value}" for name, value in lines))
    return 0


def runs(args: argparse.Namespace) -> int:
    from forge import jobs, results

    if args.watch:
        return jobs.watch(args.directory)
    header, lines = results.listing(args.directory)
    if args.json:
        print(json.dumps([dict(zip(header, line, strict=True)) for line in lines], indent=2))
    elif sys.stdout.isatty():
        print(results.drawn(header, lines))
    else:
        print("\n".join("\t".join(line) for line in [header, *lines]))
    return 0


def prefetch(args: argparse.Namespace) -> int:
    from forge import prefetch

    return prefetch.main(args.overrides)


def rewards(args: argparse.Namespace) -> int:
    from forge import bench

    return bench.main(args.overrides, args.cases, args.json)


def verify_resume(args: argparse.Namespace) -> int:
    from forge import verify

    return verify.main(args.overrides, args.steps)


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

    verb = verbs.add_parser("compare", help="runs side by side, with a paired test of each pair")
    verb.add_argument("first", type=Path, metavar="RUN")
    verb.add_argument("others", type=Path, metavar="RUN", nargs="+")
    verb.add_argument("--json", action="store_true", help="one object instead of text")
    verb.set_defaults(run=compare)

    verb = verbs.add_parser("show", help="what ran, where it stands, its metrics, how to use it")
    verb.add_argument("directory", type=Path, metavar="RUN")
    verb.add_argument("--json", action="store_true", help="its whole record as one object")
    verb.set_defaults(run=show)

    verb = verbs.add_parser("runs", help="status, step, headline and age of runs; how to go on")
    verb.add_argument("directory", type=Path, nargs="?", default=Path("."))
    verb.add_argument("--json", action="store_true", help="a list of objects instead of lines")
    verb.add_argument("--watch", action="store_true", help="follow a sweep that was submitted")
    verb.set_defaults(run=runs)

    verb = verbs.add_parser(
        "prefetch",
        help="download and tokenise what a run or sweep needs, for nodes without network",
    )
    verb.add_argument("overrides", nargs="*", help="as for launch.py, e.g. task=mnli mode=kd")
    verb.set_defaults(run=prefetch)

    verb = verbs.add_parser(
        "rewards", help="try rewards on cases, on odd input and on answers of the starting model"
    )
    verb.add_argument("overrides", nargs="*", help="as for launch.py; mode=rl is understood")
    verb.add_argument("--cases", type=Path, help="yaml: a list of completion, columns, expected")
    verb.add_argument("--json", action="store_true", help="one object instead of lines")
    verb.set_defaults(run=rewards)

    verb = verbs.add_parser(
        "verify-resume", help="prove that a config resumes to the bit: run, kill, go on, compare"
    )
    verb.add_argument("overrides", nargs="*", help="as for launch.py, e.g. task=toy model=tiny")
    verb.add_argument("--steps", type=int, default=20, help="of the run; it is killed at half")
    verb.set_defaults(run=verify_resume)
    return root


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 a verb's own no, 2 the command or the data need mending."""
    root = parser()
    args, options = root.parse_known_args(arguments)
    if options and getattr(args, "run", None) is not prefetch:
        root.error(f"unrecognized arguments: {' '.join(options)}")
    if options:  # launch.py's own, -m and --config-dir=
        args.overrides += options
    if "run" not in args:
        root.print_help()
        return 0
    try:
        code: int = args.run(args)
    except USER_ERRORS as error:
        line = str(error) if isinstance(error, UserError) else explain(error)
        print(f"error: {line}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
