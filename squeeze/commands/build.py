"""Build one artifact and measure nothing: build."""

from __future__ import annotations

from pathlib import Path

import click

from squeeze.commands.options import config_option, overrides_argument
from squeeze.core.errors import SqueezeError


@click.command()
@overrides_argument
@config_option
def build(overrides: tuple[str, ...], config_dir: Path | None) -> None:
    """Build the artifact of the one cell that OVERRIDES name, where `squeeze run` finds it; measure nothing.

    Processes that accelerate starts train it together, one a GPU, each with its share of a step's windows: accelerate
    launch --multi_gpu --num_processes 4 --module squeeze.cli build technique=qat technique.steps.0.windows=4
    """
    from squeeze.request.expand import cells
    from squeeze.runner.jobs import together

    wanted = cells(overrides, config_dir)
    if len(wanted) != 1:
        raise SqueezeError(f"{len(wanted)} cells are named, expected 1: name one value of each axis")
    place = together.Place.given()
    folder = together.build(wanted[0], place)
    if place.rank == 0:
        click.echo(str(folder))
