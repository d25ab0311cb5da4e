"""One recipe over a grid of settings, and what its runs say when they are held against each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.errors import RunError, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from holdfast.report.audit import Cell
    from holdfast.report.pareto import Point

Judge = Annotated[
    str, typer.Option(help="Numbers to judge by, for example true_help,true_harm:lower; the recipe's own when empty.")
]


def sweep(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, or the name of a shipped one: safe_rlhf_v/pocket")],
    over: Annotated[list[str], typer.Option(help="A setting and its values: ppo.kl.coef=0.1,0.3 (may be repeated).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of all runs as key=value.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of every setting, separated by commas.")] = "",
    judge: Judge = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the sweep, with one run folder each.")] = Path(
        "runs/sweep"
    ),
    launcher: Annotated[
        str, typer.Option(help="Words before `-m holdfast run`: 'accelerate launch --num_processes 8'.")
    ] = "",
) -> None:
    """Run a recipe over a grid of settings and report the trade-off: front, hypervolume, plot.

    What has finished is kept, so the same command goes on after a stop. A run that fails is named, the others go on,
    and the exit code is 3.
    """
    from holdfast.systems import sweep as runs

    axes: dict[str, list[object]] = {}
    for text in over:
        key, values = runs.axis(text)
        if key in axes:
            raise UserError(f"--over {key}: given twice; write all its values in one list")
        axes[key] = values
    planned = runs.grid(recipe, axes, _seeds(seeds), overrides or [])
    names = _names(judge)
    told = {"recipe": str(recipe), "over": list(axes), "judge": names}
    failed = runs.run(recipe, planned, out, told, launcher)
    _tell(out, names)
    if failed:
        raise RunError(f"{len(failed)} of {len(planned)} runs failed: {', '.join(failed)}; see {out / 'logs'}")


def pareto(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep, or any folder whose folders are runs.")] = Path(
        "runs/sweep"
    ),
    judge: Judge = "",
) -> None:
    """Hold the finished runs of a sweep against each other: pareto.json, .md, .png and report.html."""
    _tell(folder, _names(judge))


def _tell(folder: Path, names: list[str]) -> None:
    from holdfast.cli import show
    from holdfast.report.pareto import judge
    from holdfast.report.pareto_page import sentence, tables, write
    from holdfast.report.pareto_plots import heading

    trade = judge(folder, names)
    page = write(trade, folder)
    for head, rows in tables(trade):
        show.renderable(_table(head, rows))
    for line in (*(f"failed: {name}: {why}" for name, why in trade.failed.items()), *trade.warnings):
        typer.secho(line, fg="yellow")
    typer.echo(f"{heading(trade)}. {sentence(trade)}\nreport: {page}")


def _table(head: list[str], rows: "list[tuple[Point, list[Cell]]]") -> "Table":
    """As a table for the terminal; what is not on the front is dim."""
    from rich import box
    from rich.markup import escape
    from rich.table import Column, Table

    columns = [Column(head[0], overflow="fold"), *(Column(name, justify="right") for name in head[1:])]
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for point, cells in rows:
        row = (f"{one.text}\n[dim]{one.range}[/]" for one in cells)
        table.add_row(escape(point.label), *row, style="" if point.on_front else "dim")
    return table


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
    found = _names(text)
    if not all(seed.isdecimal() for seed in found) or len(set(found)) < len(found):
        raise UserError(f"--seeds {text}: give different whole numbers separated by commas, for example 0,1,2")
    return [int(seed) for seed in found]
