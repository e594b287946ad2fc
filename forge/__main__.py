"""`python -m forge VERB`: what there is to do beside a run. A verb is a function and a parser."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from forge.errors import USER_ERRORS, Failure, UserError, explain


def doctor(args: argparse.Namespace) -> int:
    from forge.commands import doctor as commands_doctor

    return commands_doctor.main(as_json=args.json)


def report(args: argparse.Namespace) -> int:
    from forge.records.files import METADATA
    from forge.results import run_report, sweep_report

    os.environ["HF_HUB_OFFLINE"] = "1"  # what is here is told; nothing is fetched for it
    of_run = (args.directory / METADATA).is_file()
    found, text = (run_report if of_run else sweep_report).report(args.directory, args.out)
    if args.json:
        tell(found)
    else:
        print(text)
    return 0


def compare(args: argparse.Namespace) -> int:
    from forge.results import comparison

    found = comparison.side_by_side([args.first, *args.others])
    if args.json:
        tell(found)
    else:
        print(comparison.comparison_text(found))
    return 0


def show(args: argparse.Namespace) -> int:
    from forge.results import runs as results_runs
    from forge.results import show as results_show

    lines = results_show.shown(args.directory)
    if args.json:
        run = results_runs.read_run(args.directory)
        tell({"metadata": run.metadata, "state": run.state, "results": run.results})
    else:
        print("\n".join(f"{name:<11} {value}" for name, value in lines))
    return 0


def runs(args: argparse.Namespace) -> int:
    from forge.launching import jobs
    from forge.results import index

    if args.watch:
        return jobs.watch(args.directory)
    asked, found = index.listing(args.directory, args.where, args.sort)
    if args.json:
        keys = (*index.FACTS, *asked)
        tell([{key: run.get(key) for key in keys} for run in found])
    else:
        index.show(found, asked, args.csv)
    return 0


def dashboard(args: argparse.Namespace) -> int:
    from forge.commands import dashboard as commands_dashboard

    return commands_dashboard.main(args.project, args.entity, args.dry_run)


def evaluate(args: argparse.Namespace) -> int:
    from forge.commands import evaluate as commands_evaluate

    found = commands_evaluate.evaluate(args.directory, args.overrides, args.out)
    text = found.pop("text")
    tell(found) if args.json else print(text)
    return 1 if found["lost"] and args.out else 0


def predict(args: argparse.Namespace) -> int:
    from forge.commands import predict as commands_predict
    from forge.results import tables

    if args.pair and len(args.pair) != len(args.text or ()):
        raise UserError(
            f"--pair: {len(args.pair)} of them, and --text {len(args.text or ())} times"
        )
    texts = [texts for texts in (args.text, args.pair) if texts]
    found = commands_predict.predict(args.runs, texts, args.file)
    if args.out:
        commands_predict.write_rows(args.out, found["rows"])
    if args.json:
        tell(found)
        return 0
    if not args.out:
        tables.print_table(*commands_predict.prediction_table(found))
    print(
        "\n".join(commands_predict.prediction_notes(found)),
        file=None if sys.stdout.isatty() else sys.stderr,
    )
    return 0


def export(args: argparse.Namespace) -> int:
    from forge.commands import export as commands_export

    found = (commands_export.merge if args.merged else commands_export.export)(
        args.directory, args.out
    )
    tell(found) if args.json else print(commands_export.text(found))
    return 0


def reproduce(args: argparse.Namespace) -> int:
    from forge.commands import reproduce as commands_reproduce

    return commands_reproduce.main(args.directory, args.run_it, args.out, args.json)


def prefetch(args: argparse.Namespace) -> int:
    from forge.commands import prefetch as commands_prefetch

    return commands_prefetch.main(args.overrides)


def rewards(args: argparse.Namespace) -> int:
    from forge.commands import rewards as commands_rewards

    return commands_rewards.main(args.overrides, args.cases, args.json)


def verify_resume(args: argparse.Namespace) -> int:
    from forge.commands import verify

    return verify.main(args.overrides, args.steps)


def parser() -> argparse.ArgumentParser:
    """All verbs; each sets `run`, a function from its arguments to the exit code."""
    root = argparse.ArgumentParser("python -m forge", description="Runs start with launch.py.")
    verbs = root.add_subparsers(title="verbs", metavar="VERB")
    _add_readings(verbs)
    _add_uses(verbs)
    _add_checks(verbs)
    return root


def _add_readings(verbs: Any) -> None:
    """What tells of runs."""
    verb = verbs.add_parser("runs", help="status, step, headline and age of runs; how to go on")
    verb.add_argument("directory", type=Path, nargs="?", default=Path("."))
    verb.add_argument(
        "--where",
        default="",
        metavar="CONDITIONS",
        help="'task=mnli mode=kd mode.alpha>=0.5 headline>0.8': choices, status, seed, metrics "
        "(validation.accuracy), any key of the config; with = != > < >= <=",
    )
    verb.add_argument(
        "--sort", default="age", metavar="KEY", help="any of these; -KEY: the largest first"
    )
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="all columns, numbers in full")
    form.add_argument("--json", action="store_true", help="the same as a list of objects")
    verb.add_argument("--watch", action="store_true", help="follow a sweep that was submitted")
    verb.set_defaults(run=runs)

    verb = verbs.add_parser("show", help="what ran, where it stands, its metrics, how to use it")
    verb.add_argument("directory", type=Path, metavar="RUN")
    verb.add_argument("--json", action="store_true", help="its whole record as one object")
    verb.set_defaults(run=show)

    verb = verbs.add_parser("compare", help="runs side by side, with a paired test of each pair")
    verb.add_argument("first", type=Path, metavar="RUN")
    verb.add_argument("others", type=Path, metavar="RUN", nargs="+")
    verb.add_argument("--json", action="store_true", help="one object instead of text")
    verb.set_defaults(run=compare)

    verb = verbs.add_parser("report", help="what a run or a sweep found: tables, tests and plots")
    verb.add_argument("directory", type=Path, help="e.g. multirun/toy/tiny/kd/20260101-120000Z")
    verb.add_argument("--out", type=Path, metavar="DIR", help="write the files there")
    verb.add_argument("--json", action="store_true", help="print the numbers as one object")
    verb.set_defaults(run=report)

    verb = verbs.add_parser("dashboard", help="a saved W&B workspace over the runs of a project")
    verb.add_argument("project", metavar="PROJECT", help="as in tracking.project")
    verb.add_argument("--entity", help="user or team; that of the login when it is left out")
    verb.add_argument("--dry-run", action="store_true", help="print it, sending nothing")
    verb.set_defaults(run=dashboard)


def _add_checks(verbs: Any) -> None:
    """What is done before a run."""
    verb = verbs.add_parser("doctor", help="check this machine: one line per check")
    verb.add_argument("--json", action="store_true", help="a list of objects instead of lines")
    verb.set_defaults(run=doctor)

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


def _add_uses(verbs: Any) -> None:
    """What is done with a finished run."""
    verb = verbs.add_parser("evaluate", help="a run's model on another split, file or task")
    verb.add_argument("directory", type=Path, metavar="RUN")
    verb.add_argument("overrides", nargs="*", help="e.g. task.evaluation=[test], or task=rte")
    verb.add_argument("--out", type=Path, metavar="DIR", help="instead of RUN/evaluations/NAME")
    verb.add_argument("--json", action="store_true", help="one object instead of text")
    verb.set_defaults(run=evaluate)

    verb = verbs.add_parser("predict", help="what the models of runs answer to texts")
    verb.add_argument("runs", type=Path, metavar="RUN", nargs="+")
    asked = verb.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", action="append", help="may be given several times")
    asked.add_argument("--file", type=Path, help="csv, tsv, json, jsonl or parquet")
    verb.add_argument("--pair", action="append", metavar="TEXT", help="the second text of a pair")
    verb.add_argument("--out", type=Path, metavar="FILE", help="write a JSON line for each row")
    verb.add_argument("--json", action="store_true", help="one object instead of a table")
    verb.set_defaults(run=predict)

    verb = verbs.add_parser("export", help="a run's model as ONNX, or its adapter merged")
    verb.add_argument("directory", type=Path, metavar="RUN")
    form = verb.add_mutually_exclusive_group(required=True)
    form.add_argument("--onnx", action="store_true", help="for other runtimes, checked and timed")
    form.add_argument("--merged", action="store_true", help="an adapter (LoRA) in its base")
    verb.add_argument("--out", type=Path, metavar="DIR", help="instead of RUN/onnx or RUN/merged")
    verb.add_argument("--json", action="store_true", help="one object instead of text")
    verb.set_defaults(run=export)

    verb = verbs.add_parser(
        "reproduce", help="the command of a run; with --run: are the bits equal?"
    )
    verb.add_argument("directory", type=Path, metavar="RUN")
    verb.add_argument("--run", action="store_true", dest="run_it", help="run it again and compare")
    verb.add_argument("--out", type=Path, metavar="DIR", help="the new run's directory")
    verb.add_argument("--json", action="store_true", help="one object instead of text")
    verb.set_defaults(run=reproduce)


def _joined(arguments: list[str]) -> list[str]:
    """`--sort -KEY` as argparse wants it, which takes `-KEY` for an option: `--sort=-KEY`."""
    words = iter(arguments)
    return [f"{word}={next(words, '')}" if word == "--sort" else word for word in words]


def tell(found: Any) -> None:
    """Print one JSON document; what JSON has no number for, such as NaN, is null."""
    print(json.dumps(_finite(found), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(nested) for key, nested in value.items()}
    if isinstance(value, list):
        return [_finite(nested) for nested in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 a verb's own no, 2 the command or the data need mending."""
    root = parser()
    args, options = root.parse_known_args(_joined(sys.argv[1:] if arguments is None else arguments))
    if options and getattr(args, "run", None) not in (prefetch, evaluate):
        root.error(f"unrecognized arguments: {' '.join(options)}")
    if options:  # launch.py's own, -m and --config-dir=
        args.overrides += options
    if "run" not in args:
        root.print_help()
        return 0
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except USER_ERRORS as error:
        line = str(error) if isinstance(error, UserError) else explain(error)
        print(f"error: {line}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads has had enough, e.g. `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())
