"""Hand an artifact on to other software: export."""

from __future__ import annotations

from pathlib import Path

import click

from squeeze.commands.options import results_option

# What reads each format: how to get it, what it is called, and the file of the folder that it wants, if it wants one.
# The versions are those that the tests, or scripts/crosscheck, read it with.
READERS = {
    "compressed-tensors": (
        "pip install 'transformers>=5.0' 'compressed-tensors>=0.19'",
        "transformers.AutoModelForCausalLM.from_pretrained",
        "",
    ),
    "gptq": ("pip install gptqmodel", "gptqmodel.GPTQModel.load", ""),
    "openvino": ("pip install openvino", "openvino.compile_model", "openvino_model.xml"),
    "onnx": ("pip install onnxruntime", "onnxruntime.InferenceSession", "model.onnx"),
    "gguf": ("pip install llama-cpp-python", "llama_cpp.Llama", "model.gguf"),
}


@click.command()
@click.argument("artifact")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@results_option
@click.option(
    "--format",
    "layout",
    type=click.Choice(list(READERS)),
    default="compressed-tensors",
    show_default=True,
    help="compressed-tensors: for transformers and vLLM; gptq: for gptqmodel, vLLM and transformers with gptqmodel; "
    "gguf: for llama.cpp; openvino, onnx: for these engines, with Python packages of their own (nox -s runtimes).",
)
def export(artifact: str, folder: Path, results: Path, layout: str) -> None:
    """Write an artifact, of rtn, gptq or awq unless a format holds floats, too, to FOLDER for other software to load.

    ARTIFACT is a row's label, the beginning of its key or attempt, the beginning of an artifact's key in the cache, or
    the artifact's folder. FOLDER must be new or empty.
    """
    from squeeze.artifacts.exports.destination import check_vacant
    from squeeze.core.files import total_bytes
    from squeeze.runner import exporting
    from squeeze.runner.located import built

    source = built(artifact, results)
    check_vacant(folder)
    exporting.export(layout, source, folder)
    needed, reader, file = READERS[layout]
    size = total_bytes(folder.iterdir()) / 1e6
    click.echo(f"{folder}: {size:.1f} MB of {layout}; to load it, {needed}, then {reader}({str(folder / file)!r})")
