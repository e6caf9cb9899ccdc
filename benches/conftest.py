"""Define what all benches share: cells and samples (squeeze.pytest_plugin), and the prompts of real text."""

import pytest
from torch import Tensor

from squeeze.request.cell import Cell
from squeeze.runtimes.contract import Engine
from squeeze.sources.corpora import tokens

pytest_plugins = ["squeeze.pytest_plugin"]


@pytest.fixture(scope="session")
def prompts(engine: Engine, cell: Cell) -> Tensor:
    """Return (largest batch size, prompt tokens) int64: consecutive evaluation text, on the cell's device."""
    latency = cell.protocol["latency"]
    rows, length = max(latency["batch_sizes"]), latency["prompt_tokens"]
    text = tokens(cell.protocol["perplexity"]["corpus"], engine.tokenizer, rows * length)
    return text.view(rows, length).to(cell.runtime["device"])
