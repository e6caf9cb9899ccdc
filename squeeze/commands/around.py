"""Say what a run will do, and what came of it: on stderr, but for the board."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squeeze.core.errors import SqueezeError

if TYPE_CHECKING:
    import pandas as pd

    from squeeze.records.record import Record
    from squeeze.request.cell import Cell

FAILED, INTERRUPTED = 1, 130
FIRST = "squeeze run model=tiny technique=none,rtn bits=8,4,2 protocol=smoke"  # ok rows in a minute


def announce(
    wanted: Sequence[Cell], results: Path, records: Sequence[Record], *, retry: bool, fresh: bool = False
) -> None:
    """Say how many cells there are, how many of them a run will measure, how long that takes, and where it goes."""
    from squeeze.records.record import Status
    from squeeze.runner import listing, plan

    found = {} if fresh else plan.statuses(wanted, records)
    done = {key for key, status in found.items() if status is Status.OK or not retry}
    ahead = [cell for cell in wanted if cell.key not in done]
    seconds = listing.forecast(ahead, records)
    parts = [f"{len(wanted)} cell{'' if len(wanted) == 1 else 's'}"]
    if done:
        parts.append("all measured already" if not ahead else f"{len(wanted) - len(ahead)} of them measured already")
    if ahead:
        parts.append(listing.about(sum(seconds[cell.key] for cell in ahead)))
    say(f"{', '.join(parts)}, results in {results}")


def ask(wanted: Sequence[Cell]) -> bool:
    """Ask whether to measure what is measured when nothing is said; say so where the answer is no.

    Raises SqueezeError, which says what to type, where there is no terminal to ask on.
    """
    names = ", ".join(f"{cell.label} (protocol {cell.protocol['name']})" for cell in wanted)
    if not sys.stdin.isatty():
        raise SqueezeError(
            f"`squeeze run` names no cells; type `squeeze run --yes` for {names}, or say what to measure, such as "
            f"`{FIRST}`"
        )
    say(f"nothing was named, so this is measured: {names}; for a first look in a minute: {FIRST}")
    if click.confirm("measure it?", err=True):
        return True
    say("nothing was measured")
    return False


def conclude(wanted: Sequence[Cell], results: Path, code: int) -> int:
    """Write the leaderboards, print what was measured and what to type next; return the exit code of the run.

    code: how measuring ended, which stands unless it was 0 and all cells failed: then 1. The records are on the disk
    already, so that whatever fails here is said and costs nothing.
    """
    from squeeze.records.record import Status
    from squeeze.records.store import RecordStore
    from squeeze.runner import plan

    if code == INTERRUPTED:
        return code
    found = plan.statuses(wanted, RecordStore(results).records(lambda *_: None))
    failed = bool(found) and all(status is not Status.OK for status in found.values())
    try:
        _show(wanted, results, failed=failed, pending=code != 0)
    except BrokenPipeError:  # its reader has seen enough
        raise
    except Exception as error:  # a board that cannot be made must not hide how measuring ended
        why = " ".join(str(error).split())
        say(f"note: no leaderboards ({why}); the records are kept; `squeeze collate` tries again")
    return code or (FAILED if failed else 0)


def say(line: str) -> None:
    """Print one line on stderr."""
    click.echo(line, err=True)


def _show(wanted: Sequence[Cell], results: Path, *, failed: bool, pending: bool) -> None:
    from squeeze.boards import leaderboard, terminal

    frame = leaderboard.collate(results, results, leaderboard.terms_of(results))
    keys = {cell.key for cell in wanted}
    terminal.show_rows(frame, keys)
    sys.stdout.flush()
    where = "" if str(results) == "results" else f" --results {results}"
    say(f"results: leaderboard.csv, leaderboard.md and pareto.png in {results}, records in {results / 'records'}")
    if pending:
        say(f"next: squeeze resume{where}   # measures the cells that are left")
        return
    told = "why it failed, and its log" if failed else "all of one row, how to make it again and load it"
    say(f"next: squeeze show {_first(frame[frame['key'].isin(keys)])}{where}   # {told}")


def _first(rows: pd.DataFrame) -> str:
    """Return the row to look at next: the best one that is compressed, if there is one."""
    from squeeze.boards.words import short_label

    ordered = rows.assign(failed=rows["status"] != "ok", own=rows["family"] == "baseline").sort_values(
        ["failed", "own", "rank_low"], kind="stable", na_position="last"
    )
    return short_label(ordered.iloc[0])
