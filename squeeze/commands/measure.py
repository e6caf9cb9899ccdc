"""Measure cells, and show what would be measured: run, resume, list, axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squeeze.commands.options import config_option, overrides_argument, results_option, retry_option

if TYPE_CHECKING:
    from squeeze.records.record import Record
    from squeeze.request.cell import Cell


@click.command()
@overrides_argument
@results_option
@config_option
@retry_option
@click.option("--fresh", is_flag=True, help="Measure the cells that have a valid record, too.")
@click.pass_context
def run(
    context: click.Context, overrides: tuple[str, ...], results: Path, config_dir: Path | None, retry: bool, fresh: bool
) -> None:
    """Measure the cells that OVERRIDES name.

    Cells that have a valid record already are passed over, and so are those that failed.
    """
    from squeeze.records.store import RecordStore
    from squeeze.request.expand import cells
    from squeeze.runner.run import run as run_cells

    wanted = cells(overrides, config_dir)
    _advise_controls(wanted, RecordStore(results).records())
    context.exit(run_cells(wanted, results, resume=not fresh, retry=retry))


@click.command()
@results_option
@retry_option
@click.pass_context
def resume(context: click.Context, results: Path, retry: bool) -> None:
    """Measure what the runs into this folder have left unmeasured.

    A fault of the environment (a full disk, a kill from outside) leaves a cell unmeasured; a failure of its own does
    not.
    """
    from squeeze.records.store import RecordStore
    from squeeze.runner import plan
    from squeeze.runner.run import run as run_cells

    left = plan.unfinished(plan.load(results), RecordStore(results).records(), retry=retry)
    if cells := plan.measurable(left, lambda line: click.echo(line, err=True)):
        context.exit(run_cells(cells, results, resume=False, retry=retry))
    click.echo(f"nothing to do: whatever was asked for and can be measured has its record in {results}", err=True)


@click.command(name="list")
@overrides_argument
@results_option
@config_option
def list_cells(overrides: tuple[str, ...], results: Path, config_dir: Path | None) -> None:
    """Show cells, their status and estimated time.

    Nothing is run. A cell is "planned" when a run here would measure it; the time is that of measuring it anew.
    """
    from squeeze.records.store import RecordStore
    from squeeze.request.expand import cells
    from squeeze.runner import listing, plan

    wanted = cells(overrides, config_dir)
    records = list(RecordStore(results).records())
    listing.show(wanted, plan.statuses(wanted, records), listing.forecast(wanted, records))
    _advise_controls(wanted, records)


@click.command(name="axes")
@config_option
def show_axes(config_dir: Path | None) -> None:
    """Show what can be swept.

    One line each, with tabs between: name, default, allowed values, meaning.
    """
    from squeeze.request.axes import described
    from squeeze.request.choices import Choices

    for row in described(Choices.within(config_dir).scalars):
        click.echo("\t".join(row))


def _advise_controls(cells: Sequence[Cell], records: Iterable[Record]) -> None:
    """Say on stderr which cells are trained without anything to compare them with."""
    from squeeze.runner.plan import advice, uncontrolled

    if alone := uncontrolled(cells, records):
        click.echo(f"note: {advice(alone)}", err=True)
