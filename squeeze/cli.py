"""Run the command ``squeeze``. Each command imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from squeeze import __version__
from squeeze.core.errors import SqueezeError

if TYPE_CHECKING:
    from squeeze.boards.terms import Terms
    from squeeze.records.record import Record
    from squeeze.request.cell import Cell

USAGE, INTERRUPTED = 2, 130

results_option = click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder of records and leaderboards.",
)
config_option = click.option(
    "--config-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with choices of your own, laid out as conf/ is (technique/NAME.yaml, ...).",
)
overrides_argument = click.argument("overrides", nargs=-1)
margin_option = click.option(
    "--margin",
    "margins",
    default="",
    metavar="NAME=NUMBER,...",
    help="Differences that count as none, such as speed=0.05,perplexity=0.01,accuracy=0.01,kl=0.01 (the defaults).",
)
retry_option = click.option("--retry", is_flag=True, help="Measure anew the cells that failed, too.")


def terms_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --price and --memory; it is called with what they say as ``asked``."""

    @wraps(command)
    def called(*arguments: Any, price: str | None, memory: str | None, **options: Any) -> None:
        from squeeze.boards.terms import Terms

        command(*arguments, asked=Terms.of(price, memory), **options)

    price = click.option("--price", help="Of the machine, an hour: adds what a million tokens cost.")
    memory = click.option("--memory", help="Such as 4GB: adds the longest context that fits (computed, not run).")
    return price(memory(called))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="squeeze")
def app() -> None:
    """Compress language models, measure what was gained and lost, and rank the results.

    OVERRIDES choose and sweep in Hydra's grammar: technique=rtn,magnitude bits=8,4,3 protocol=smoke, or sweep=smoke.
    """


@app.command()
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
    from squeeze.runner import plan
    from squeeze.runner.run import run as run_cells

    wanted = cells(overrides, config_dir)
    _advise_controls(wanted, RecordStore(results).records())
    plan.save(wanted, results)
    context.exit(run_cells(wanted, results, resume=not fresh, retry=retry))


@app.command()
@results_option
@retry_option
@click.pass_context
def resume(context: click.Context, results: Path, retry: bool) -> None:
    """Measure what the last run has left unmeasured."""
    from squeeze.runner import plan
    from squeeze.runner.run import run as run_cells

    context.exit(run_cells(plan.load(results), results, resume=True, retry=retry))


@app.command(name="list")
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


@app.command(name="axes")
@config_option
def show_axes(config_dir: Path | None) -> None:
    """Show what can be swept.

    One line each, with tabs between: name, default, allowed values, meaning.
    """
    from squeeze.request.axes import described
    from squeeze.request.choices import Choices

    for row in described(Choices.within(config_dir).scalars):
        click.echo("\t".join(row))


@app.command()
@results_option
@click.option("--costs", is_flag=True, help="Show what the measuring itself took, by stage.")
@click.option("--literature", is_flag=True, help="Show what others have published of the same, and how far off it is.")
@click.option("--serving", is_flag=True, help="Show what serving takes: latencies by batch size, loading, energy.")
@terms_options
def board(results: Path, costs: bool, literature: bool, serving: bool, asked: Terms) -> None:
    """Print the leaderboard.

    With --price or --memory, what follows from them stands in the table of --serving.
    """
    if literature:
        from squeeze.boards.terminal import show_literature

        show_literature(results)
    elif serving or asked.of_serving:
        from squeeze.boards.terminal import show_serving

        show_serving(results, asked)
    else:
        from squeeze.boards.terminal import show

        show(results, costs=costs, asked=asked)


@app.command()
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


@app.command()
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


@app.command()
@results_option
@click.option("--deep", is_flag=True, help="Recompute every figure from its raw samples; hash cached artifacts.")
@click.pass_context
def verify(context: click.Context, results: Path, deep: bool) -> None:
    """Check records, samples, artifacts and leaderboards.

    One line for each thing that is wrong; the exit code is 0 when nothing is, else 1.
    """
    from squeeze.audit.verify import verify as verify_folder

    context.exit(verify_folder(results, deep))


@app.command()
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


@app.command()
@results_option
@click.option("--max", "most", multiple=True, metavar="COLUMN=VALUE", help="At most, such as bytes=80M; repeatable.")
@click.option("--min", "least", multiple=True, metavar="COLUMN=VALUE", help="At least, such as top1_agreement=0.9.")
@click.option("--by", default="perplexity", show_default=True, metavar="COLUMN", help="What the best is best in.")
@terms_options
@click.pass_context
def pick(
    context: click.Context, results: Path, most: tuple[str, ...], least: tuple[str, ...], by: str, asked: Terms
) -> None:
    """Print the rows that keep all bounds, best first; the exit code is 1 when there is none.

    The columns are those of leaderboard.csv: squeeze pick --max bytes=80M --max ttft_ms=20 --max itl_p95_ms=60. Those
    of --price and --memory may be bounded, too: squeeze pick --memory 4GB --min max_context_estimated=8192.
    """
    from squeeze.boards.pick import show

    context.exit(show(results, most, least, by, asked))


@app.command()
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


@app.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--format",
    "layout",
    type=click.Choice(["compressed-tensors", "gptq"]),
    default="compressed-tensors",
    show_default=True,
    help="compressed-tensors: for transformers and vLLM; gptq: for gptqmodel, vLLM and transformers with gptqmodel.",
)
def export(artifact: Path, folder: Path, layout: str) -> None:
    """Write the ARTIFACT folder, of rtn, gptq or awq, to FOLDER in a format that other software loads."""
    from squeeze.artifacts.exports.compressed_tensors import to_compressed_tensors
    from squeeze.artifacts.exports.gptq import to_gptq

    write = to_gptq if layout == "gptq" else to_compressed_tensors
    write(artifact, folder)


def _advise_controls(cells: Sequence[Cell], records: Iterable[Record]) -> None:
    """Say on stderr which cells are trained without anything to compare them with."""
    from squeeze.runner.plan import advice, uncontrolled

    if alone := uncontrolled(cells, records):
        click.echo(f"note: {advice(alone)}", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code: 0, 2 for a request that cannot be served, 130 when interrupted."""
    try:
        return int(app.main(arguments, prog_name="squeeze", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return USAGE
    except click.ClickException as error:
        return _fail(error.format_message())
    except SqueezeError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of `squeeze list | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        print("interrupted: every record written so far is kept; `squeeze resume` measures the rest", file=sys.stderr)
        return INTERRUPTED


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
