"""Define the options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

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
yes_option = click.option("--yes", is_flag=True, help="Do not ask, though OVERRIDES name nothing.")
quiet_option = click.option(
    "--quiet-machine",
    "quiet",
    type=click.FloatRange(min=0),
    metavar="MINUTES",
    help="Wait so long at most until no other program uses the processors, and measure nothing if some still does.",
)
retry_option = click.option("--retry", is_flag=True, help="Measure anew the cells that failed, too.")


def terms_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --margin, --price and --memory; it is called with what they say as ``asked``."""

    @wraps(command)
    def called(*arguments: Any, price: str | None, memory: str | None, margins: str, **options: Any) -> None:
        from squeeze.boards.terms import Terms

        command(*arguments, asked=Terms.of(price, memory, margins), **options)

    price = click.option("--price", help="Of the machine, an hour: adds what a million tokens cost.")
    memory = click.option("--memory", help="Such as 4GB: adds the longest context that fits (computed, not run).")
    return margin_option(price(memory(called)))
