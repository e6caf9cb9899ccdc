"""Check records, measure rows anew, and hold one model against another: verify, rerun, kld."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from squeeze.commands.options import results_option


@click.command()
@results_option
@click.option("--deep", is_flag=True, help="Recompute every figure from its raw samples; hash cached artifacts.")
@click.pass_context
def verify(context: click.Context, results: Path, deep: bool) -> None:
    """Check records, samples, artifacts and leaderboards.

    One line for each thing that is wrong; the exit code is 0 when nothing is, else 1.
    """
    from squeeze.audit.verify import verify as verify_folder

    context.exit(verify_folder(results, deep))


@click.command()
@click.argument("row")
@results_option
@click.pass_context
def rerun(context: click.Context, row: str, results: Path) -> None:
    """Measure a row anew, from its record alone.

    ROW is a label, or the beginning of a key or an attempt. Field by field it is said whether the figures are the same;
    the exit code is 0 when none has drifted, else 1. The new record is kept in FOLDER/rerun.
    """
    from squeeze.audit.rerun import rerun as rerun_row

    context.exit(rerun_row(results, row))


@click.command()
@click.argument("a")
@click.argument("b")
@results_option
@click.option("--text", default="wikipedia_eval", show_default=True, metavar="NAME|FILE", help="Corpus or text file.")
@click.option("--tokens", type=click.IntRange(1), default=8192, show_default=True, help="To predict.")
@click.option("--window", type=click.IntRange(1), default=1024, show_default=True, help="Tokens read at a time.")
@click.option("--isolate", is_flag=True, help="Run each block of B alone, too, on A's hidden states.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the processor (default: all that may be used).")
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here, too.")
def kld(a: str, b: str, results: Path, file: Path | None, threads: int | None, **conditions: Any) -> None:
    """Measure how far model B is from model A: KL, perplexity, agreement, hidden states block by block.

    A and B are folders (artifacts, or models as transformers saves them), rows of the results, models of conf/model,
    keys in the cache, or requests in quotes: squeeze kld smollm2_135m "technique=rtn bits=4".
    """
    from squeeze.boards.distance import show
    from squeeze.core.environment import usable_threads
    from squeeze.probes.distance import Conditions, distance
    from squeeze.runner.located import located

    folders = (located(a, results), located(b, results))
    show(distance((a, b), folders, Conditions(**conditions, threads=threads or usable_threads())), file)
