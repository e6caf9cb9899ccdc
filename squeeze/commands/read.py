"""Read what was measured: board, collate, compare, pick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from squeeze.commands.options import margin_option, results_option, terms_options

if TYPE_CHECKING:
    from squeeze.boards.terms import Terms


@click.command()
@results_option
@click.option("--costs", is_flag=True, help="Show what the measuring itself took, by stage.")
@click.option("--literature", is_flag=True, help="Show what others have published of the same, and how far off it is.")
@click.option("--serving", is_flag=True, help="Show what serving takes: latencies by batch size, loading, energy.")
@click.option("--claims", is_flag=True, help="Show what each row claims to leave beside what it was found to leave.")
@click.option(
    "--iso-bytes", "most", metavar="SIZE", help="Show the best row of each family within SIZE, such as 100M (k, M, G)."
)
@click.option(
    "--plot",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw into a file, too: with --iso-bytes, what each family reaches by bytes; with --serving, first tokens by "
    "length of the prompt, and throughput against latency.",
)
@terms_options
def board(
    results: Path,
    costs: bool,
    literature: bool,
    serving: bool,
    claims: bool,
    most: str | None,
    picture: Path | None,
    asked: Terms,
) -> None:
    """Print the leaderboard.

    With --price or --memory, what follows from them stands in the table of --serving.
    """
    of_serving = serving or (asked.of_serving and not (claims or literature))
    if picture is not None and most is None and (claims or literature or not of_serving):
        raise click.UsageError(
            "--plot draws families by their bytes, or serving; expected --iso-bytes SIZE or --serving beside it"
        )
    if most is not None:
        from squeeze.boards.terminal import show_iso

        show_iso(results, most, picture, asked)
    elif claims:
        from squeeze.boards.terminal import show_claims

        show_claims(results, asked)
    elif literature:
        from squeeze.boards.terminal import show_literature

        show_literature(results)
    elif of_serving:
        from squeeze.boards.terminal import show_serving

        show_serving(results, asked, picture)
    else:
        from squeeze.boards.terminal import show

        show(results, costs=costs, asked=asked)


@click.command()
@click.argument("results", type=click.Path(path_type=Path, file_okay=False), default=Path("results"))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the leaderboards (default: RESULTS)."
)
@terms_options
def collate(results: Path, out: Path | None, asked: Terms) -> None:
    """Turn the records below RESULTS into its leaderboards: CSVs, Markdown and a plot.

    RESULTS is the folder that holds records/ (default: results).
    """
    from squeeze.boards.leaderboard import collate as collate_records

    collate_records(results, out or results, asked)


@click.command()
@click.argument("first")
@click.argument("second")
@results_option
@click.option("--allow-mixed", is_flag=True, help="Show rows of unlike machines or protocols, apart.")
@margin_option
def compare(first: str, second: str, results: Path, allow_mixed: bool, margins: str) -> None:
    """Explain how two measured cells differ.

    FIRST and SECOND are labels, keys or beginnings of keys, as `squeeze list` shows them.
    """
    from squeeze.boards.compare import explain
    from squeeze.records.answers import Margins

    explain(results, first, second, allow_mixed, Margins.of(margins))


@click.command()
@results_option
@click.option("--max", "most", multiple=True, metavar="COLUMN=VALUE", help="At most, such as bytes=80M; repeatable.")
@click.option("--min", "least", multiple=True, metavar="COLUMN=VALUE", help="At least, such as top1_agreement=0.9.")
@click.option(
    "--by", metavar="COLUMN", help="What the best is best in (default: perplexity; of classifiers, acc_pooled)."
)
@terms_options
@click.pass_context
def pick(
    context: click.Context, results: Path, most: tuple[str, ...], least: tuple[str, ...], by: str | None, asked: Terms
) -> None:
    """Print the rows that keep all bounds, best first; the exit code is 1 when there is none.

    The columns are those of leaderboard.csv: squeeze pick --max bytes=80M --max ttft_ms=20 --max itl_p95_ms=60. Those
    of --price and --memory may be bounded, too: squeeze pick --memory 4GB --min max_context_estimated=8192.
    """
    from squeeze.boards.pick import show

    context.exit(show(results, most, least, by, asked))
