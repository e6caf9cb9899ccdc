"""Say, as command lines and their files, how lm-eval and optimum-benchmark take the figures that a cell's row has.

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

from squeeze.sources import tasks

BATCH_SIZE = 16  # lm-eval's, on a CPU; ours follows from the protocol's token_budget
OURS = "custom_dataset: !function squeeze.sources.questions.text"  # of conf/task/_text.yml
THEIRS = "dataset_path: json"
ENTRY = "from optimum_benchmark.cli import main; main()"  # what its console script runs


@dataclass(frozen=True)
class Command:
    """Hold a command line, of which tool and for which model, to be run ``times`` times, each in a fresh process."""

    tool: str
    model: str
    line: tuple[str, ...]
    times: int = 1


def task_folder(protocol: Mapping[str, Any], text: str, folder: Path) -> Path:
    """Copy conf/task to ``folder``, its perplexity text replaced by ``text``, the very tokens that we score.

    (Our own definition gives lm-eval some more characters than are scored, of which SubjectLM takes the first tokens.)
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


def latency(model: str, folder: Path, cell: Mapping[str, Any], out: Path) -> list[Command]:
    """Return optimum-benchmark's command lines for time and memory, one a batch size; their configuration is in out."""
    protocol, asked = cell["protocol"], cell["protocol"]["latency"]
    out.mkdir(parents=True, exist_ok=True)
    commands = []
    for batch in asked["batch_sizes"]:
        name = f"{model}-b{batch}"
        path = out / f"{name}.yaml"
        path.write_text(json.dumps(_benchmark(name, folder, batch, asked, cell["runtime"]["threads"], out)))
        line = (sys.executable, "-c", ENTRY, "--config-dir", str(out), "--config-name", name)
        commands.append(Command("optimum-benchmark", model, line, protocol["rounds"]))
    return commands


def _benchmark(
    name: str, folder: Path, batch: int, asked: Mapping[str, Any], threads: int, out: Path
) -> dict[str, Any]:
    """Return optimum-benchmark's configuration (JSON is YAML): as many repetitions and tokens as we time."""
    tokens = asked["decode_tokens"] + 1  # the first one comes of the prompt
    return {
        "defaults": [
            *("benchmark", {"scenario": "inference"}, {"launcher": "process"}, {"backend": "pytorch"}, "_self_")
        ],
        "name": name,
        "launcher": {"device_isolation": False},
        "backend": {
            **{"device": "cpu", "model": str(folder), "torch_dtype": "bfloat16", "library": "transformers"},
            **{"task": "text-generation", "inter_op_num_threads": threads, "intra_op_num_threads": threads},
        },
        "scenario": {
            **{"latency": True, "memory": True, "duration": 0, "iterations": asked["prefill_repeats"]},
            **{"warmup_runs": asked["warmup_rounds"]},
            "input_shapes": {"batch_size": batch, "sequence_length": asked["prompt_tokens"]},
            "generate_kwargs": {"max_new_tokens": tokens, "min_new_tokens": tokens},
        },
        "hydra": {"run": {"dir": str(out / name)}, "job": {"chdir": True}},
    }
