"""Say, as command lines and their files, how lm-eval and a plain timing script take the figures that a cell's row has.

Everything follows from the cell's protocol and from conf/task; nothing of it is repeated here.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squeeze.request.cell import Cell
from squeeze.sources import tasks

BATCH_SIZE = 16  # lm-eval's, on a CPU; ours follows from the protocol's token_budget
OURS = "custom_dataset: !function squeeze.sources.questions.text"  # of conf/task/_text.yml
THEIRS = "dataset_path: json"


@dataclass(frozen=True)
class Command:
    """Hold a command line, of which tool and for which model, to be run ``times`` times, each in a fresh process."""

    tool: str
    model: str
    line: tuple[str, ...]
    times: int = 1


def task_folder(protocol: Mapping[str, Any], text: str, folder: Path) -> Path:
    """Copy conf/task to ``folder``, its perplexity text replaced by ``text``, the very tokens that we score.

    (Our own definition gives lm-eval some more characters than are scored, of which ours takes the first tokens.)
    Raises ValueError where conf/task/_text.yml no longer says where the text comes from.
    """
    shutil.copytree(tasks.FOLDER, folder)
    shared = (folder / "_text.yml").read_text()
    if OURS not in shared:
        raise ValueError(f"conf/task/_text.yml lacks the line {OURS!r}, in whose place peers have {THEIRS!r}")
    (folder / "_text.yml").write_text(shared.replace(OURS, THEIRS))
    name, document = protocol["perplexity"]["corpus"], folder / "text.json"
    document.write_text(json.dumps([{"text": text}]))
    given = {"include": "_text.yml", "task": name, "dataset_kwargs": {"data_files": {"test": str(document)}}}
    (folder / f"{name}.yaml").write_text(json.dumps(given))
    return folder


def quality(model: str, folder: Path, protocol: Mapping[str, Any], task_folder: Path, out: Path) -> Command:
    """Return lm-eval's command line for the protocol's text and tasks."""
    arguments = f"pretrained={folder},dtype=bfloat16,max_length={protocol['perplexity']['window']}"
    line = (
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments),
        *("--tasks", ",".join([protocol["perplexity"]["corpus"], *protocol["tasks"]])),
        *("--include_path", str(task_folder), "--batch_size", str(BATCH_SIZE), "--device", "cpu"),
        *("--metadata", json.dumps({"items": protocol["items"]}), "--output_path", str(out)),
    )
    return Command("lm-eval", model, line)


def latency(model: str, folder: Path, cell: Cell) -> list[Command]:
    """Return the command lines of scripts.peers.generate, one a batch size: our repetitions, tokens and processes."""
    asked = cell.protocol["latency"]
    options = {
        "threads": cell.runtime["threads"],
        "prompt": asked["prompt_tokens"],
        "tokens": asked["decode_tokens"] + 1,  # the first one comes of the prompt
        "warmup": asked["warmup_rounds"],
        "iterations": asked["prefill_repeats"],
    }
    given = tuple(str(part) for name, value in options.items() for part in (f"--{name}", value))
    line = (sys.executable, "-m", "scripts.peers.generate", str(folder), *given)
    return [
        Command("generate", model, (*line, "--batch", str(batch)), cell.protocol["rounds"])
        for batch in asked["batch_sizes"]
    ]
