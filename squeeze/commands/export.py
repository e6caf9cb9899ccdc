"""Hand an artifact on to other software: export."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
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
