"""The commands: each imports what it needs when it is called, so `--help` is quick."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.sweep import pareto, sweep
from holdfast.errors import HoldfastError, RunError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Align language models with human preferences, under limits that hold.",
    epilog="Exit codes: 0 done or CERTIFIED, 2 something given cannot be used, 3 a run had to stop, 4 NSF, 5 INVALID.",
)
certify = typer.Typer(no_args_is_help=True, help="Plan, run and explain a safety test of any saved policy.")
data = typer.Typer(no_args_is_help=True, help="Look at data before training on them.")
app.add_typer(certify, name="certify")
app.add_typer(data, name="data")

EXIT = {"CERTIFIED": 0, "NSF": 4, "INVALID": 5}

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key=value: seed=1 online.iterations=50")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin anew where another run lies.")]


@app.callback()
def start(context: typer.Context) -> None:
    """Refuse what several processes would only do several times over: a seal opened, a file written, a grid begun."""
    if context.invoked_subcommand not in ("run", "demo") and "LOCAL_RANK" in os.environ and _processes() > 1:
        raise UserError(
            f"{context.invoked_subcommand} works on one process, and a launcher started {_processes()}; start it alone"
            + (", and give the launcher as --launcher" if context.invoked_subcommand == "sweep" else "")
        )


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@app.command()
def demo(
    method: Annotated[str, typer.Option(help="pessimistic, mean (kappa = 0), or reward_only (no limit).")] = (
        "pessimistic"
    ),
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    out: Out = Path("runs/demo"),
    overwrite: Overwrite = False,
    overrides: Overrides = None,
) -> None:
    """Align a tiny model in a pocket world, in minutes and offline, with a certificate at the end."""
    run(Path("hc_rlhf/pocket"), [f"method={method}", f"seed={seed}", *(overrides or [])], out, overwrite)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, or the name of a shipped one: hc_rlhf/pocket")],
    overrides: Overrides = None,
    out: Out = Path("runs/latest"),
    overwrite: Overwrite = False,
) -> None:
    """Run a recipe, for example `holdfast run hc_rlhf/one_gpu model=NAME data=PATH`."""
    from holdfast import config, systems
    from holdfast.cli import show
    from holdfast.report.card import write_card
    from holdfast.report.page import render

    values = config.read_values(systems.recipe(recipe), overrides or [])
    kind, start = systems.find(values.get("system")).load()
    settings = config.build(kind, values)
    first = os.environ.get("RANK", "0") == "0"
    if first:
        show.configuration(config.to_yaml(settings), config.fingerprint(settings))
    summary = start(settings, out, overwrite=overwrite)
    if first:
        if (released := out / "models" / "policy").is_dir():
            write_card(out, released)
        files = sorted(out.glob("audit-*.json"))
        audits = {file.stem.removeprefix("audit-"): json.loads(file.read_text(encoding="utf-8")) for file in files}
        show.outcome(summary, render(out), audits)
    raise typer.Exit(EXIT.get(summary["verdict"], 0))


app.command()(sweep)
app.command()(pareto)


@data.command("check")
def data_check(
    paths: Annotated[
        list[str], typer.Argument(help="Data sets: hub names, folders or files; name=PATH names a split.")
    ],
    format: Annotated[str, typer.Option(help="Layout of the rows; auto looks at the columns.")] = "auto",
    tokenizer: Annotated[str | None, typer.Option(help="Measure lengths in tokens of this model.")] = None,
    max_length: Annotated[int, typer.Option(help="Window for the truncation figure.")] = 512,
) -> None:
    """Report rows, labels, lengths, duplicates, leaks between splits, truncation and disagreement of labels."""
    from holdfast.cli import show
    from holdfast.config import build
    from holdfast.data.check import check, render
    from holdfast.data.sources import DataSettings

    sources = {}
    for path in paths:
        name, _, rest = path.rpartition("=")
        values = {"path": rest, "format": format, "split": "all", "on_bad_row": "skip"}
        sources[name or path] = build(DataSettings, values)
    show.renderable(render(check(sources, _template(tokenizer, max_length) if tokenizer else None)))


def _template(name: str, max_length: int):  # type: ignore[no-untyped-def]
    from holdfast.data.template import Template
    from holdfast.models.load import load_tokenizer

    return Template(load_tokenizer(name), max_length=max_length)


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="Folder of a score model that Holdfast saved.")],
    conversations: Annotated[str, typer.Argument(help="Answered conversations or pairs: file, folder or hub name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the scores, one JSON object per line.")] = Path(
        "scores.jsonl"
    ),
    max_length: Annotated[int, typer.Option(help="Longest row in tokens.")] = 512,
    audit: Annotated[
        bool, typer.Option("--audit", help="Hold the scores against the labels: audit.json and audit.html.")
    ] = False,
) -> None:
    """Score answered conversations with a reward, cost or attribute model, and say what its scores are worth."""
    from holdfast.cli import work

    work.score(model, conversations, out, max_length, audit)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Policy: hub name or folder.")],
    prompts: Annotated[str, typer.Argument(help="Prompts: file, folder or hub name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the answers, one JSON object per line.")] = Path(
        "answers.jsonl"
    ),
    samples: Annotated[int, typer.Option("-n", min=1, help="Answers per prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampler.")] = 0,
) -> None:
    """Answer prompts with a policy."""
    from holdfast.cli import work

    work.generate(model, prompts, out, samples, work.sampling(max_new_tokens, temperature), seed)


@certify.command("plan")
def certify_plan(
    test: Annotated[Path, typer.Argument(help="YAML file of the test: policy, scorer, prompts, limit.")],
    overrides: Overrides = None,
) -> None:
    """Say what a test can show before anything is opened: prompts needed, harmful answers allowed."""
    from holdfast.certificate.plan import power_table, refuse_hopeless
    from holdfast.config import load
    from holdfast.systems.safety_test import SafetyTest

    plan = load(SafetyTest, test, overrides or []).plan()
    refuse_hopeless(plan)
    typer.echo(power_table(plan))


@certify.command("run")
def certify_run(
    test: Annotated[Path, typer.Argument(help="YAML file of the test: policy, scorer, prompts, limit.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the certificate.")] = Path("runs/certificate"),
) -> None:
    """Test a policy once on sealed prompts; write certificate.json and its evidence."""
    from holdfast.config import load
    from holdfast.systems import safety_test

    verdict = safety_test.run(load(safety_test.SafetyTest, test, overrides or []), out)
    certify_explain(out)
    raise typer.Exit(EXIT[verdict["verdict"]])


@certify.command("explain")
def certify_explain(
    folder: Annotated[Path, typer.Argument(help="Folder that holds certificate.json.")] = Path("runs/demo"),
) -> None:
    """Say in plain words what a certificate claims, and what it does not."""
    from holdfast.certificate.explain import explain

    file = _certificate(folder)
    try:
        text = explain(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{file} is no certificate, or was altered; `holdfast verify {folder}` says what is wrong with it"
        ) from error
    typer.echo(text)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder with certificate.json, evidence.jsonl, ledger.jsonl.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Recompute a certificate from its evidence; needs neither torch nor the model."""
    from holdfast.certificate.verify import verify as check

    file = _certificate(folder)
    checks = check(file)
    for one in checks:
        typer.echo(f"{'ok    ' if one.ok else 'FAILED'}  {one.name}: {one.detail}")
    if not all(one.ok for one in checks):
        raise UserError(f"{file} does not stand: see the failed checks above")


def _certificate(folder: Path) -> Path:
    file = folder / "certificate.json"
    if not file.is_file():
        raise UserError(f"no certificate at {file}; give the folder of a run that ended with a safety test")
    return file


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")] = Path("runs/demo"),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write the page.")] = None,
) -> None:
    """Write a self-contained HTML page about a run."""
    from holdfast.report.page import render

    typer.echo(render(folder, out))


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="hc_rlhf, micro, micro_hh or attributes")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; runs/studies/NAME when not given.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds to run now, separated by commas; finished ones are read.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A reduced form that only shows that it runs.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 when a criterion does not hold.")] = False,
) -> None:
    """Test the central claim of a paper by criteria that were written down first."""
    from holdfast.cli import work

    holds = work.study(name, out or Path("runs/studies") / name, seeds, quick)
    raise typer.Exit(1 if check and not holds else 0)


@app.command()
def env() -> None:
    """Say what Holdfast runs on here: versions, processors, memory, accelerators."""
    from holdfast.cli import work

    for name, value in work.environment().items():
        typer.echo(f"{name:<14}{value}")


def main() -> None:
    """Run the command line; a message for people instead of a traceback, and an exit code that means something."""
    # transformers draws a bar for every file it writes; the stages have their own.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except HoldfastError as error:
        _stop(str(error), error.exit_code)
    except OSError as error:
        # A full disk, a folder that may not be written, a path through a file: the message names the path.
        _stop(f"{error}; check the path, its permissions and the space on the disk", RunError.exit_code)


def _stop(message: str, code: int) -> None:
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"process {rank}: "
    typer.secho(f"{who}error: {message}", fg="red", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
