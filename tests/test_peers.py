"""What other tools are asked for follows from the protocol, and gets the model and the tokens that we measure."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from scripts.peers.__main__ import report, run
from scripts.peers.commands import Command, latency, quality, task_folder
from scripts.peers.folders import densify
from squeeze.core.errors import SqueezeError
from squeeze.layers.contract import is_compressed
from squeeze.models.subject import Subject
from squeeze.request.expand import cells
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import CAUSAL, tiny_model


@pytest.fixture
def cell():
    given = "protocol.rounds=4 protocol.tasks=[sciq,piqa] protocol.items=20 protocol.latency.batch_sizes=[1,8]"
    return cells(["technique=rtn", "protocol=smoke", *given.split(), "threads=3"])[0]


def option(line, name):
    return line[line.index(name) + 1]


def test_lm_eval_is_asked_for_the_protocols_tasks_and_text(cell, tmp_path):
    line = quality("m", tmp_path / "m", cell.protocol, tmp_path / "task", tmp_path / "out").line
    assert option(line, "--tasks") == "wikipedia_eval,sciq,piqa"
    assert option(line, "--model_args") == f"pretrained={tmp_path}/m,dtype=bfloat16,max_length=1024"
    assert json.loads(option(line, "--metadata")) == {"items": 20}


def test_a_command_a_batch_size_times_what_we_time_as_often(cell, tmp_path):
    commands = latency("m", tmp_path / "m", cell)
    asked = cell.protocol["latency"]
    assert [(command.times, option(command.line, "--batch")) for command in commands] == [(4, "1"), (4, "8")]
    for command in commands:
        assert option(command.line, "--prompt") == str(asked["prompt_tokens"])
        assert option(command.line, "--tokens") == str(asked["decode_tokens"] + 1)
        assert option(command.line, "--threads") == "3"


def test_their_text_is_the_one_given_and_the_tasks_stay_ours(cell, tmp_path):
    folder = task_folder(cell.protocol, "Just this.", tmp_path / "task")
    given = yaml.safe_load((folder / "wikipedia_eval.yaml").read_text())
    document = Path(given["dataset_kwargs"]["data_files"]["test"])
    assert json.loads(document.read_text()) == [{"text": "Just this."}]
    assert "dataset_path: json" in (folder / "_text.yml").read_text()
    assert "custom_dataset" not in (folder / "_text.yml").read_text()
    assert "custom_dataset" in (folder / "_multiple_choice.yml").read_text()


@pytest.mark.parametrize("architecture", CAUSAL[:1])
def test_peers_get_the_parameters_of_the_compressed_model(architecture):
    compressed = tiny_model(architecture)
    with torch.no_grad():
        next(parameter for name, parameter in compressed.named_parameters() if "norm" in name).mul_(3)
    compressed = RoundToNearest(bits=3, group_size=16, symmetric=True).apply(Subject(compressed, None), None).model
    assert any(map(is_compressed, compressed.modules()))
    dense, tokens = tiny_model(architecture), torch.arange(12)[None]
    densify(dense, compressed)
    assert torch.allclose(dense(tokens).logits, compressed(tokens).logits, atol=1e-4)


def test_seconds_a_row_are_all_seconds_over_the_rows():
    sides = [("squeeze", "all", 1, 60.0), ("lm-eval", "u", 1, 40.0), ("lm-eval", "a", 1, 80.0)]
    sides.append(("generate", "a", 5, 120.0))
    text = report(pd.DataFrame(sides, columns=["tool", "model", "processes", "seconds"]), cells=2)
    assert "squeeze 30 s and lm-eval with a plain timing script 120 s: 0.25 of their time, over 2 rows" in text
    assert "| generate | a | 5 | 120.0 |" in text


def test_a_process_is_fresh_each_time_and_a_failure_ends_the_comparison(tmp_path):
    line = run(Command("tool", "m", ("sh", "-c", "echo $$"), times=3), tmp_path, {})
    assert line["processes"] == 3
    assert len(set((tmp_path / "tool-m.log").read_text().split())) == 3
    with pytest.raises(SqueezeError, match=r"tool of m ended with 7: .*tool-m\.log"):
        run(Command("tool", "m", ("/bin/sh", "-c", "exit 7")), tmp_path, {})
