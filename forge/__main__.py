"""`python -m forge VERB`: what there is to do beside a run; each verb calls the module for it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from typer import Argument, Option

from forge.config.explain import explain
from forge.errors import USER_ERRORS, Failure, UserError, needs
from forge.records.files import finite
from forge.records.logs import print_anywhere

app = typer.Typer(
    help="Runs start with launch.py.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
LIKE_LAUNCH = {"ignore_unknown_options": True}  # takes launch.py's own, -m and --config-dir=
Run = Annotated[Path, Argument(metavar="RUN", show_default=False)]
Runs = Annotated[list[Path], Argument(metavar="RUN...", show_default=False)]
Words = Annotated[Optional[list[str]], Argument(metavar="[OVERRIDES]...", show_default=False)]  # noqa: UP045
Json = Annotated[bool, Option("--json", help="One JSON document instead of text.")]
Out = Annotated[Optional[Path], Option(metavar="DIR", help="Write it there.")]  # noqa: UP045


@app.command()
def runs(
    directory: Annotated[Path, Argument()] = Path("."),
    where: Annotated[
        str,
        Option(
            metavar="CONDITIONS",
            help="'task=mnli mode=kd mode.alpha>=0.5 headline>0.8': choices, status, seed, metrics "
            "(validation.accuracy), any key of the config; with = != > < >= <=",
        ),
    ] = "",
    sort: Annotated[
        str, Option(metavar="KEY", help="Any of these; -KEY: the largest first.")
    ] = "age",
    csv: Annotated[bool, Option("--csv", help="Every metric, and keys that differ.")] = False,
    as_json: Json = False,
    watch: Annotated[bool, Option("--watch", help="Follow a sweep that was submitted.")] = False,
) -> None:
    """Status, step, headline and age of runs; how to go on."""
    from forge.launching import jobs
    from forge.results import index

    if watch:
        raise typer.Exit(jobs.watch(directory))
    if csv and as_json:
        raise UserError("--csv, --json: one of the two")
    asked, listed = index.listing(directory, where, sort, full=csv or as_json)
    if as_json:
        tell([{key: run.get(key) for key in (*index.FACTS, *asked)} for run in listed])
    else:
        index.show(listed, asked, csv)


@app.command()
def show(run: Run, as_json: Json = False) -> None:
    """What ran, where it stands, its metrics, how to use it."""
    from forge.results import runs as results_runs
    from forge.results import show as results_show

    lines = results_show.shown(run)
    if as_json:
        whole = results_runs.read_run(run)
        tell({"metadata": whole.metadata, "state": whole.state, "results": whole.results})
    else:
        print("\n".join(f"{name:<11} {value}" for name, value in lines))


@app.command("explain", context_settings=LIKE_LAUNCH)
def explain_run(
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        Argument(metavar="[RUN | OVERRIDES]...", show_default=False),
    ] = None,
    every: Annotated[bool, Option("--all", help="Every key, and what set it.")] = False,
    as_json: Json = False,
) -> None:
    """What a command would run, or a run, in plain sentences."""
    from forge.commands import explain as commands_explain

    told = commands_explain.explained(words or [], every)
    tell(told.json()) if as_json else print(told.text())


@app.command()
def learn(
    page: Annotated[Optional[str], Argument(metavar="[PAGE]", show_default=False)] = None,  # noqa: UP045
) -> None:
    """The guide's pages; without one, where you are."""
    from forge.commands import learn as commands_learn

    if page:
        commands_learn.show(page)
    else:
        print(commands_learn.stations())


@app.command()
def compare(runs: Runs, as_json: Json = False) -> None:
    """Runs side by side, with a paired test of each pair."""
    from forge.results import comparison

    if len(runs) < 2:
        raise UserError(f"{runs[0]}: one run; name another to compare it with")
    compared = comparison.side_by_side(runs)
    tell(compared) if as_json else print(comparison.comparison_text(compared))


@app.command()
def report(
    directory: Annotated[Path, Argument(help="Of a run or a sweep.", show_default=False)],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """What a run or a sweep found: tables, tests and plots."""
    from forge.records.files import METADATA
    from forge.results import run_report, sweep_report

    os.environ["HF_HUB_OFFLINE"] = "1"  # what is here is told; nothing is fetched for it
    of_run = (directory / METADATA).is_file()
    facts, text = (run_report if of_run else sweep_report).report(directory, out)
    tell(facts) if as_json else print(text)


@app.command()
def dashboard(
    project: Annotated[str, Argument(help="As in tracking.project.", show_default=False)],
    entity: Annotated[
        Optional[str],  # noqa: UP045
        Option(help="User or team; that of the login when it is left out."),
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print it, sending nothing.")] = False,
) -> None:
    """A saved W&B workspace over the runs of a project."""
    from forge.commands import dashboard

    raise typer.Exit(dashboard.main(project, entity, dry_run))


@app.command(context_settings=LIKE_LAUNCH)
def evaluate(run: Run, overrides: Words = None, out: Out = None, as_json: Json = False) -> None:
    """A run's model on another split, file or task."""
    from forge.commands import evaluate

    evaluation = evaluate.evaluate(run, overrides or [], out)
    text = evaluation.pop("text")
    tell(evaluation) if as_json else print(text)
    raise typer.Exit(1 if evaluation["lost"] and out else 0)


@app.command()
def predict(
    runs: Runs,
    text: Annotated[
        Optional[list[str]],  # noqa: UP045
        Option(help="A text, the path of a picture or recording; may be given several times."),
    ] = None,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        Option(help="csv, tsv, json, jsonl or parquet; one picture or recording."),
    ] = None,
    pair: Annotated[
        Optional[list[str]],  # noqa: UP045
        Option(metavar="TEXT", help="The second text of a pair; what is asked of the first."),
    ] = None,
    option: Annotated[
        Optional[list[str]],  # noqa: UP045
        Option(metavar="TEXT", help="An option to choose from; given for each of a row's."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        Option(metavar="FILE", help="Write a row for each: .csv, .tsv, else JSON lines."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What the models of runs answer."""
    from forge.commands import predict
    from forge.results import tables

    if (text is None) == (file is None):
        raise UserError("predict: give --text TEXT, or the rows of --file FILE")
    if pair and len(pair) != len(text or ()):
        raise UserError(f"--pair: {len(pair)} of them, and --text {len(text or ())} times")
    result = predict.predict(runs, [given for given in (text, pair, option) if given], file)
    if out:
        predict.write_answers(out, result)
    if as_json:
        return tell(result)
    if not out:
        shape = predict.prediction_table if sys.stdout.isatty() else predict.answer_rows
        tables.print_table(*shape(result))
    aside = None if sys.stdout.isatty() else sys.stderr
    print("\n".join(predict.prediction_notes(result)), file=aside)


@app.command()
def export(
    run: Run,
    onnx: Annotated[
        bool, Option("--onnx", help="For other runtimes, checked and timed; in RUN/onnx.")
    ] = False,
    merged: Annotated[
        bool, Option("--merged", help="An adapter (LoRA) in its base; in RUN/merged.")
    ] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """A run's model as ONNX, or its adapter merged."""
    from forge.commands import export

    if onnx == merged:
        raise UserError("export: --onnx or --merged, one of the two")
    exported = (export.merge if merged else export.export)(run, out)
    tell(exported) if as_json else print(export.text(exported))


@app.command()
def reproduce(
    run: Run,
    run_it: Annotated[bool, Option("--run", help="Run it again and compare.")] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The command of a run; with --run: are the bits equal?"""
    from forge.commands import reproduce

    raise typer.Exit(reproduce.main(run, run_it, out, as_json))


@app.command()
def workbench(
    directories: Annotated[
        Optional[list[Path]],  # noqa: UP045
        Argument(metavar="[DIR]...", help="Of runs.", show_default=False),
    ] = None,
    port: Annotated[Optional[int], Option(metavar="N", help="A free one without.")] = None,  # noqa: UP045
    token: Annotated[
        Optional[str],  # noqa: UP045
        Option(metavar="T", envvar="FORGE_WORKBENCH_TOKEN", help="A new one without."),
    ] = None,
    socket: Annotated[
        Optional[Path],  # noqa: UP045
        Option(metavar="PATH", help="A unix socket in a directory of mode 0700 instead of a port."),
    ] = None,
    base_path: Annotated[str, Option(metavar="P", help="Behind a proxy that keeps it.")] = "",
    allow_host: Annotated[
        Optional[list[str]],  # noqa: UP045
        Option(
            metavar="NAME", help="A name that a proxy is reached by; may be given several times."
        ),
    ] = None,
    no_open: Annotated[bool, Option("--no-open", help="Open no browser.")] = False,
    export: Annotated[
        Optional[Path],  # noqa: UP045
        Option(metavar="FILE.html", help="Write the page of a run or sweep to a file instead."),
    ] = None,
) -> None:
    """Look at runs in a browser: what helped, which rows, why."""
    with needs("workbench", "workbench"):
        import jinja2, starlette, uvicorn  # noqa: E401, F401, I001
    from forge.workbench import export as workbench_export
    from forge.workbench import server

    folders = directories or [each for each in map(Path, ("outputs", "multirun")) if each.is_dir()]
    if export:
        print(workbench_export.write(folders or [Path(".")], export))
        return
    server.serve(
        folders or [Path(".")], port, token, socket, base_path, allow_host or [], not no_open
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: one line per check."""
    from forge.commands import doctor

    raise typer.Exit(doctor.main(as_json=as_json))


@app.command(context_settings=LIKE_LAUNCH)
def prefetch(overrides: Words = None) -> None:
    """Fetch what nodes without network need."""
    from forge.commands import prefetch

    raise typer.Exit(prefetch.main(overrides or []))


@app.command()
def rewards(
    overrides: Words = None,
    cases: Annotated[
        Optional[Path],  # noqa: UP045
        Option(help="yaml: a list of completion, columns, expected."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Try rewards on cases, odd input, the start's answers."""
    from forge.commands import rewards

    raise typer.Exit(rewards.main(overrides or [], cases, as_json))


@app.command("verify-resume")
def verify_resume(
    overrides: Words = None,
    steps: Annotated[int, Option(help="Of the run; it is killed at half.")] = 20,
) -> None:
    """Run, kill, go on, compare: are the bits equal?"""
    from forge.commands import verify

    raise typer.Exit(verify.main(overrides or [], steps))


def tell(document: object) -> None:
    """Print one JSON document; what JSON has no number for, such as NaN, is null."""
    print(json.dumps(finite(document), indent=2, allow_nan=False))


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 a verb's own no, 2 the command or the data need mending."""
    print_anywhere()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        app(given or ["--help"], prog_name="python -m forge")
    except SystemExit as ended:
        return int(ended.code or 0)
    except USER_ERRORS as error:
        line = str(error) if isinstance(error, UserError) else explain(error)
        print(f"error: {line}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
