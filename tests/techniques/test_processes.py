"""Processes that train together end with the weights of one that trains alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from squeeze.core.errors import SqueezeError
from squeeze.core.interpreters import environment_with
from squeeze.techniques.contract import Workplace
from squeeze.techniques.processes import Processes
from squeeze.techniques.training_loop import Plan, train
from tests.tiny import tiny_model

TOGETHER = "import sys; from tests.techniques.test_processes import work; work(sys.argv[1])"
PLAN = Plan(steps=6, windows=3, learning_rate=1e-2, at_once=1, schedule="cosine", patience=3)
TOKEN_IDS = torch.randint(256, (8, 12), generator=torch.Generator().manual_seed(0))


def learned(seed: int) -> tuple[dict[str, torch.Tensor], list[list[float | None]]]:
    """A tiny model in float64, where the order of sums hardly shows, after training all of it; the loss curve."""
    model, workplace = tiny_model("gpt2", seed=seed).double(), Workplace()

    def loss(token_ids: torch.Tensor) -> torch.Tensor:
        logits = model(token_ids).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten())

    parameters = list(model.parameters())
    # Looked at is what is learned, too: of other random tokens nothing can be learned, and all would be taken back.
    train(parameters, loss, TOKEN_IDS[:5], PLAN, title="it", workplace=workplace, held_out=TOKEN_IDS[2:5])
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return weights, [list(point) for point in workplace.curve]


def work(folder: str) -> None:
    """Trains as one of several processes; all but the first begin with other weights, which must not matter."""
    from accelerate import PartialState

    rank = PartialState(cpu=True).process_index
    weights, curve = learned(seed=rank)
    save_file(weights, f"{folder}/{rank}.safetensors")
    Path(folder, f"{rank}.json").write_text(json.dumps(curve))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(count: int, *command: str) -> list[subprocess.Popen[bytes]]:
    """Processes that know of each other as accelerate and torchrun tell them."""
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    group |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    ranks = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [subprocess.Popen([sys.executable, *command], env=environment_with(rank)) for rank in ranks]


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    processes = started(2, "-c", TOGETHER, str(tmp_path))
    alone, curve = learned(seed=0)
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    before = dict(tiny_model("gpt2").named_parameters())
    for name, weight in alone.items():
        assert float((before[name] - weight).abs().max()) > 1e-3, "it learned something"
        assert torch.equal(first[name], second[name])
        assert float((first[name] - weight).abs().max()) < 1e-6
    curves = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert curves[0] == curves[1]
    for one, other in zip(curves[0], curve, strict=True):
        assert one == pytest.approx(other, abs=1e-9)


def test_rows_are_dealt_out_and_none_is_left() -> None:
    rows = torch.arange(7)
    shares = [Processes(rank, 3).share(rows) for rank in range(3)]
    assert sorted(torch.cat(shares).tolist()) == rows.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_step_with_fewer_windows_than_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "now", classmethod(lambda cls: cls(0, 4)))
    with pytest.raises(
        SqueezeError, match=r"the 3 windows .* 4 processes, .*; ask for technique\.steps\.N\.windows=4,"
    ):
        train([nn.Parameter(torch.zeros(1))], torch.sum, TOKEN_IDS, PLAN, title="it", workplace=Workplace(),
              held_out=TOKEN_IDS)  # fmt: skip


def test_a_process_that_nobody_joined_is_alone() -> None:
    assert Processes.now() == Processes(0, 1)
    assert Processes().is_first
