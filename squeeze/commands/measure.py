"""Measure cells, and show what would be measured: run, resume, list, axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squeeze.commands.options import (
    config_option,
    overrides_argument,
    quiet_option,
    results_option,
    retry_option,
    yes_option,
)

if TYPE_CHECKING:
    from squeeze.records.record import Record
    from squeeze.request.cell import Cell


@click.command()
@overrides_argument
@results_option
@config_option
@retry_option
@quiet_option
@click.option("--fresh", is_flag=True, help="Measure the cells that have a valid record, too.")
@yes_option
@click.pass_context
def run(
    context: click.Context,
    overrides: tuple[str, ...],
    results: Path,
    config_dir: Path | None,
    retry: bool,
    quiet: float | None,
    fresh: bool,
    yes: bool,
) -> None:
    """Measure the cells that OVERRIDES name, and write the leaderboards.

    Cells that have a valid record already are passed over, and so are those that failed. The exit code is 1 when all
    cells failed.
    """
    from squeeze.commands.around import announce, ask, conclude
    from squeeze.records.store import RecordStore
    from squeeze.request.expand import cells
    from squeeze.runner.run import run as run_cells

    wanted = cells(overrides, config_dir, _note)
    records = list(RecordStore(results).records())
    announce(wanted, results, records, retry=retry, fresh=fresh)
    _advise_controls(wanted, records)
    if not (overrides or yes or ask(wanted)):
        return
    code = run_cells(wanted, results, resume=not fresh, retry=retry, quiet=quiet)
    context.exit(conclude(wanted, results, code))


@click.command()
@results_option
@retry_option
@quiet_option
@click.pass_context
def resume(context: click.Context, results: Path, retry: bool, quiet: float | None) -> None:
    """Measure what the runs into this folder have left unmeasured.

    A fault of the environment (a full disk, a kill from outside) leaves a cell unmeasured; a failure of its own does
    not.
    """
    from squeeze.commands.around import announce, conclude
    from squeeze.records.store import RecordStore
    from squeeze.runner import plan
    from squeeze.runner.run import run as run_cells

    records = list(RecordStore(results).records())
    left = plan.unfinished(plan.load(results), records, retry=retry)
    cells = plan.measurable(left, lambda line: click.echo(line, err=True))
    if not cells:
        click.echo(f"nothing to do: whatever was asked for and can be measured has its record in {results}", err=True)
        return
    announce(cells, results, records, retry=retry, fresh=True)
    code = run_cells(cells, results, resume=False, retry=retry, quiet=quiet)
    context.exit(conclude(cells, results, code))


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

    wanted = cells(overrides, config_dir, _note)
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
        _note(advice(alone))


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)
